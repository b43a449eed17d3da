"""A host whose processor rounds a sampler's tables otherwise."""

from __future__ import annotations

from typing import Any

import torch

_TABLES = ("sigmas", "alphas_cumprod", "timesteps")


def elsewhere(scheduler: Any) -> Any:
    """`scheduler` as another processor lays it out: of the same class by name, its tables off by their last bits."""
    kind = type(scheduler)

    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> None:
        kind.set_timesteps(self, *args, **kwargs)
        for name in _TABLES:
            table = getattr(self, name, None)
            if isinstance(table, torch.Tensor) and table.is_floating_point():
                setattr(self, name, torch.nextafter(table, torch.zeros_like(table)))

    scheduler.__class__ = type(kind.__name__, (kind,), {"set_timesteps": set_timesteps})
    return scheduler
