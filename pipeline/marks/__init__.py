"""Marks of files that leave the farm: who or what made them, signed, and how that is read back and checked."""
