"""Reuse of deep layers across steps (DeepCache: Ma, Fang & Wang, 2023, arXiv:2312.00858), by its authors' package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from DeepCache import DeepCacheSDHelper
from torch import nn


class _StepCache(DeepCacheSDHelper):
    """The helper, with a store for each half of guidance: split, the halves are two evaluations of one step."""

    def __init__(self, unet: nn.Module, scheduler: Any) -> None:
        self._halves: dict[int, dict[Any, Any]] = {}
        self._half = 0
        super().__init__(SimpleNamespace(unet=unet, scheduler=scheduler))

    @property
    def cached_output(self) -> dict[Any, Any]:
        return self._halves.setdefault(self._half, {})

    @cached_output.setter
    def cached_output(self, _empty: dict[Any, Any]) -> None:
        self._halves = {}

    def wrap_unet_forward(self) -> None:
        # Instead of the helper's, which reads the timestep back to find its place in the schedule: a card would be
        # waited for. Steps come in order, so counting them is enough.
        inner = self.function_dict["unet_forward"] = self.pipe.unet.forward
        last: list[Any] = []
        step = [0]

        def forward(sample: Any, timestep: Any, *args: Any, **kwargs: Any) -> Any:
            # Kept, so that no other tensor can be the same one.
            if last and last[0] is timestep:
                self._half += 1
            else:
                step[0] = step[0] + 1 if last else 0
                self.cur_timestep = step[0]
                self._half = 0
                last[:] = [timestep]
            return inner(sample, timestep, *args, **kwargs)

        self.pipe.unet.forward = forward


@contextmanager
def reusing_deep_layers(unet: nn.Module, scheduler: Any, interval: int) -> Iterator[None]:
    """Inside, only every `interval`-th step runs the whole of `unet`; the others take its deep layers' last results.

    The first step inside is a whole one. `unet` is a diffusers UNet called with (sample, timestep); timesteps are
    those of `scheduler`, and the evaluations of one step are given the very same tensor. Steps must come in order.
    Changes the result, and keeps the layers' outputs on the card.
    """
    helper = _StepCache(unet, scheduler)
    helper.set_params(cache_interval=interval, cache_branch_id=0)
    helper.enable()
    try:
        yield
    finally:
        helper.disable()
