"""Weights on this machine, without torch: where they lie, which they are, and how they are fetched."""
