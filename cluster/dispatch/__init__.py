"""The loop between store, placement and renderers, and what follows when an attempt ends."""
