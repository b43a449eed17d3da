"""Marks of files that leave the farm: what made them, machine-readable and signed, and how they are read and checked."""
