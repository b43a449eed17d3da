"""Clips that somebody looks at before they are made for good: their rounds, and several prompts a picture."""
