"""A clip measured by hand against the still that it was made of."""
