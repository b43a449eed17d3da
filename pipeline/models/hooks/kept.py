"""What is computed of a network's conditions alone, kept for as long as it is given the same ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

#: Sets of conditions whose results are kept: guidance that is split evaluates two in turn.
_KEPT = 2


@contextmanager
def before_evaluations(network: Any, begin: Callable[[Mapping[str, Any]], None]) -> Iterator[None]:
    """Inside, `begin` is told the keyword arguments of each evaluation of `network` before it.

    Not a hook of torch's: within those, the arguments of an evaluation that ran out of memory live on with the
    traceback of its error, in cells that nobody can clear.
    """
    before, given = network.forward, network.__dict__.get("forward")

    def forward(*args: Any, **kwargs: Any) -> Any:
        begin(kwargs)
        return before(*args, **kwargs)

    network.forward = forward
    try:
        yield
    finally:
        if given is None:
            del network.forward
        else:
            network.forward = given


class KeptByConditions:
    """Results by conditions and module. Holds tensors only between `begin` and `forget`.

    Conditions are the same if they are the very same tensors and nobody wrote into them. Weights are not looked at:
    whatever changes them is laid on before, and taken off after, the life of this object.
    """

    def __init__(self, names: Sequence[str]) -> None:
        """`names`: keyword arguments of the network that results depend on."""
        self._names = tuple(names)
        self._kept: list[tuple[list[tuple[torch.Tensor, int]], dict[int, torch.Tensor]]] = []

    def begin(self, kwargs: Mapping[str, Any]) -> None:
        """Before an evaluation with these keywords: its conditions become the first of the kept."""
        given = [(kwargs[name], kwargs[name]._version) for name in self._names]
        nothing: tuple[list[tuple[torch.Tensor, int]], dict[int, torch.Tensor]] = (given, {})
        found = next((kept for kept in self._kept if _same(kept[0], given)), nothing)
        self._kept = [found, *(kept for kept in self._kept if kept is not found)][:_KEPT]

    @property
    def rows(self) -> int:
        """Rows of the conditions of this evaluation."""
        return self._kept[0][0][0][0].shape[0]

    def of(self, module: nn.Module, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What `make` gave for `module` under the conditions of this evaluation."""
        found = self._kept[0][1]
        if id(module) not in found:
            found[id(module)] = make()
        return found[id(module)]

    def forget(self) -> None:
        """Let go of all tensors."""
        self._kept.clear()


def _same(one: list[tuple[torch.Tensor, int]], other: list[tuple[torch.Tensor, int]]) -> bool:
    return all(a is b and version == now for (a, version), (b, now) in zip(one, other, strict=True))
