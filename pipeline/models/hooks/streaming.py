"""Weights that pass through the card: a network of any size computes beside a few hundred megabytes of itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from pipeline.devices.copying import CopyLane, SentTensors, copy_lane
from pipeline.devices.emulated import off_card
from pipeline.devices.transfer import tensors_of

#: A group of weights is at most this share of the network's, or a single module that cannot be divided.
_SHARE = 1 / 16

#: Groups that are copied while one computes. One keeps the bus busy; every further one takes its bytes of the card.
AHEAD = 1


class StreamedWeights:
    """While in force, each group of a network's weights is on the card while its module computes, and shortly before.

    Groups are the largest submodules below a sixteenth of the network; parameters that belong to none, and buffers,
    stay on the card. While a group computes, the `ahead` that followed it in the evaluation before are copied; the
    first evaluation learns the order, and a group that was not foreseen is copied when it is called. Between
    evaluations none is on the card.

    Exact: the weights are the same. Every evaluation copies them all once, so a step takes at least as long as the
    bus takes for the network.
    """

    def __init__(self, network: nn.Module, device: str, *, ahead: int = AHEAD, lane: CopyLane | None = None) -> None:
        """Put on the card what stays there, and hook the rest. The network must lie on the host.

        `lane` brings weights to `device`: by default a stream of its own, where the device has streams. Raises
        `torch.OutOfMemoryError` where what stays does not fit; nothing is on the card or hooked then.
        """
        self._device = device
        self._ahead = ahead
        self._lane = lane or copy_lane(device)
        self._network = network
        self._handles: list[RemovableHandle] = []
        #: Groups on the card or on their way.
        self._there: dict[nn.Module, SentTensors] = {}
        #: What was called after each group in the last evaluation.
        self._after: dict[nn.Module, nn.Module] = {}
        self._last: nn.Module | None = None
        with off_card():
            # The host keeps its own, so that nothing has to be copied back. By the tensor, as groups may share one.
            self._hosts = {tensor: tensor.data for tensor in tensors_of(network)}
        self.groups, self._staying = divide(network)
        try:
            for tensor in self._staying:
                tensor.data = self._hosts[tensor].to(device, copy=True)
        except BaseException:
            self.end()
            raise
        self._handles.append(network.register_forward_pre_hook(self._begin))
        for group in self.groups:
            self._handles.append(group.register_forward_pre_hook(self._arrive))
            # Also after a step that was cancelled or ran out of memory inside the group.
            self._handles.append(group.register_forward_hook(self._depart, always_call=True))
        self._handles.append(network.register_forward_hook(self._finish, always_call=True))

    def end(self) -> None:
        """Put everything back on the host and leave no hook behind."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for group in list(self._there):
            self._release(group)
        for tensor in self._staying:
            tensor.data = self._hosts[tensor]
        self._after.clear()

    def _begin(self, _network: nn.Module, _args: Any) -> None:
        self._last = None

    def _arrive(self, group: nn.Module, _args: Any) -> None:
        if self._last is not None:
            self._after[self._last] = group
        self._last = group
        wanted = [group, *self._following(group)]
        for other in [other for other in self._there if other not in wanted]:
            self._release(other)  # foreseen, and not called this time
        for each in wanted:
            if each not in self._there:
                self._there[each] = self._lane.send(self._hosts[tensor] for tensor in each.parameters())
        sent = self._there[group]
        self._lane.wait(sent)
        for tensor, copy in zip(group.parameters(), sent.tensors, strict=True):
            tensor.data = copy

    def _following(self, group: nn.Module) -> list[nn.Module]:
        found: list[nn.Module] = []
        while len(found) < self._ahead:
            following = self._after.get(found[-1] if found else group)
            if following is None or following is group or following in found:
                break
            found.append(following)
        return found

    def _depart(self, group: nn.Module, _args: Any, _result: Any) -> None:
        self._release(group)

    def _finish(self, _network: nn.Module, _args: Any, _result: Any) -> None:
        if self._last is not None:
            # The first of the next evaluation is not copied before it: between evaluations the card is others'.
            self._after.pop(self._last, None)
        for group in list(self._there):
            self._release(group)

    def _release(self, group: nn.Module) -> None:
        sent = self._there.pop(group, None)
        if sent is None:
            return
        # First: with the last reference to a copy its memory is the next copy's.
        self._lane.retire(sent)
        for tensor in group.parameters():
            tensor.data = self._hosts[tensor]


def divide(network: nn.Module) -> tuple[list[nn.Module], list[torch.Tensor]]:
    """(groups, staying): the modules whose parameters are streamed, and the tensors that stay on the card.

    Buffers stay: there are few, and what a module returns may be a view of one.
    """
    groups, staying = _divide(network, _SHARE * _bytes(network))
    return list(dict.fromkeys(groups)), [*staying, *network.buffers()]


def _divide(module: nn.Module, limit: float) -> tuple[list[nn.Module], list[torch.Tensor]]:
    children = [child for child in module.children() if _bytes(child)]
    # A list of modules is never called itself, so it can carry no hook.
    if not isinstance(module, (nn.ModuleList, nn.ModuleDict)) and (_bytes(module) <= limit or not children):
        return ([module] if _bytes(module) else []), []
    groups: list[nn.Module] = []
    staying: list[torch.Tensor] = [*module.parameters(recurse=False)]
    for child in children:
        of_child = _divide(child, limit)
        groups += of_child[0]
        staying += of_child[1]
    return groups, staying


def streamed_bytes(network: nn.Module, ahead: int = AHEAD) -> int:
    """Most bytes of the network that are on the card at a time, `ahead` groups being copied while one computes.

    Any groups may follow one another, so it counts the largest; groups of the same tensors are one.
    """
    groups, staying = divide(network)
    distinct = {frozenset(group.parameters()): _bytes(group) for group in groups}
    largest = sorted(distinct.values(), reverse=True)[: 1 + ahead]
    return sum(tensor.nbytes for tensor in staying) + sum(largest)


def _bytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())
