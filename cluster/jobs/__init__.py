"""Batches, jobs, attempts and clips, and how they move between their states: pure, and below every other room."""
