"""Parts of `benchmarks/gpu.py`: what is measured on a card, what of it fits a time, and the aims it is held to."""
