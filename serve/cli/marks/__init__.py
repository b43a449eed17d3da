"""Marks of files: setting up who signs them, and checking what a file carries."""
