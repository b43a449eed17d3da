"""The dispatcher as a Serve deployment, its calls to renderers, and how many replicas it wants."""
