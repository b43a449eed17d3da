"""Weights that pass through the card: a network of any size computes beside a few hundred megabytes of itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from pipeline.models.devices import off_card

#: A group of weights is at most this share of the network's, or a single module that cannot be divided.
_SHARE = 1 / 16


class StreamedWeights:
    """While in force, each group of a network's weights is on the card only while its module computes.

    Groups are the largest submodules below a sixteenth of the network; weights that belong to none stay on the card.
    Exact: the weights are the same. Every evaluation copies them all once, so a step takes at least as long as the
    bus takes for the network.
    """

    def __init__(self, network: nn.Module, device: str) -> None:
        """Put on the card what stays there, and hook the rest. The network must lie on the host."""
        self._device = device
        self._host: dict[int, torch.Tensor] = {}
        self._handles: list[RemovableHandle] = []
        self._network = network
        self.groups, staying = divide(network)
        for tensor in staying:
            self._fetch(tensor)
        for group in self.groups:
            self._handles.append(group.register_forward_pre_hook(self._arrive))
            # Also after a step that was cancelled or ran out of memory inside the group.
            self._handles.append(group.register_forward_hook(self._depart, always_call=True))

    def end(self) -> None:
        """Put everything back on the host and leave no hook behind."""
        for handle in self._handles:
            handle.remove()
        for tensor in _tensors(self._network):
            self._release(tensor)
        self._host.clear()

    def _arrive(self, module: nn.Module, _args: Any) -> None:
        for tensor in _tensors(module):
            self._fetch(tensor)

    def _depart(self, module: nn.Module, _args: Any, _result: Any) -> None:
        for tensor in _tensors(module):
            self._release(tensor)

    def _fetch(self, tensor: torch.Tensor) -> None:
        if id(tensor) in self._host:
            return  # shared by two modules, and there already
        with off_card():
            # The host's copy is kept, so that nothing has to be copied back.
            host = self._host[id(tensor)] = tensor.data
        tensor.data = host.to(self._device, copy=True)

    def _release(self, tensor: torch.Tensor) -> None:
        host = self._host.pop(id(tensor), None)
        if host is not None:
            tensor.data = host


def divide(network: nn.Module) -> tuple[list[nn.Module], list[torch.Tensor]]:
    """(groups, staying): the modules whose weights are streamed, and the tensors that stay on the card."""
    return _divide(network, _SHARE * _bytes(network))


def _divide(module: nn.Module, limit: float) -> tuple[list[nn.Module], list[torch.Tensor]]:
    children = [child for child in module.children() if _bytes(child)]
    # A list of modules is never called itself, so it can carry no hook.
    if not isinstance(module, (nn.ModuleList, nn.ModuleDict)) and (_bytes(module) <= limit or not children):
        return [module], []
    groups: list[nn.Module] = []
    staying = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    for child in children:
        of_child = _divide(child, limit)
        groups += of_child[0]
        staying += of_child[1]
    return groups, staying


def streamed_bytes(network: nn.Module) -> int:
    """Most bytes of the network that are on the card at a time."""
    groups, staying = divide(network)
    return sum(tensor.nbytes for tensor in staying) + max(map(_bytes, groups), default=0)


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


def _bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in _tensors(module))
