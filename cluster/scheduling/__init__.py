"""Which clip starts on which card, and which moves: pure functions from a snapshot to decisions."""
