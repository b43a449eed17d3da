"""The farm's HTTP face."""
