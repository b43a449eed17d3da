"""Second floor: the running farm; Ray's own `serve` is always `from ray import serve as ray_serve`."""
