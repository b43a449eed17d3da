"""Doubles of what no test machine has.

NVIDIA's driver (`nvml`), a CUDA card as torch reports it (`cuda`), and what both say when something is wrong
(`words`).
"""
