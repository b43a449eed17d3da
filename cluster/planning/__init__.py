"""Plans for the tail of a batch."""
