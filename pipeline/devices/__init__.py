"""Cards as models see them: CUDA, emulated cards, the host; `cuda`, `emulated` and `transfer` need torch."""
