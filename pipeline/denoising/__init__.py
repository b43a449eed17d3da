"""The denoising loop of all families: samplers, noise, checkpoints, caches between clips."""
