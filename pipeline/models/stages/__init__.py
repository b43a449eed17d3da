"""The stages of a clip, for every diffusion family: conditioning, denoising in phases, decoding, and what lies where.

`pipeline.models.diffusion.DiffusionModel` runs them in order; what differs between families is behind
`pipeline.models.networks.DiffusionNetworks`.
"""
