"""First floor: many clips on many cards; imports nothing heavy."""
