"""Techniques laid around a loaded network and taken off again: where its weights lie, how its layers compute.

Each is a module that knows networks of torch, and no family or stage. `pipeline.models.stages.residency` streams
weights, `pipeline.models.stages.denoiser` lays on what a clip and its layout ask of the denoiser, and
`pipeline.models.stages.kernels` compiled blocks and the order of attention's back ends. A hook leaves the
network as it found it.
"""
