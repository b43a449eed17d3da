"""Which kernels a network computes with: what decides how sums are rounded, and whether its layers are compiled."""
