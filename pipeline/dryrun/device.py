"""A card on which tensors have shapes and no data: counts live bytes and arithmetic of whatever runs on it.

It is torch's `meta` device, so host tensors stay host tensors as beside a real card, and need no weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from pipeline.devices.emulated import EmulatedDevice
from pipeline.dryrun.shapes import KnownResults

_aten = torch.ops.aten


class DryDevice(EmulatedDevice):
    """Counts what an emulated card would count, never refuses, and knows where the peak was.

    A value read back from it is made up (true, one, two), so that code which looks at results goes the usual way:
    numbers are finite, guidance is on, pictures are not black.
    """

    torch_device = "meta"

    def __init__(self) -> None:
        super().__init__(2**62)
        #: Floating point operations since the last `reset_peak`, a multiplication and an addition being two.
        self.flops = 0
        #: Operations since the last `reset_peak` at which the host would have waited for a card: values read back, and
        #: tensors copied between them.
        self.waits = 0
        #: The module in which the peak since the last `reset_peak` arose; empty outside of all modules.
        self.where = ""
        #: Bytes of the largest convolution's input and output since the last `reset_peak`: what a kernel of another
        #: memory format copies.
        self.convolution_bytes = 0
        self.results = KnownResults()
        self._names: dict[int, str] = {}
        self._inside: list[str] = []

    def reset_peak(self) -> None:
        """Forget peak, place, operations, waits and the largest convolution."""
        super().reset_peak()
        self.flops, self.waits, self.where, self.convolution_bytes = 0, 0, "", 0

    def name(self, networks: Mapping[str, nn.Module]) -> None:
        """Learn what modules are called, for `where`."""
        for name, network in networks.items():
            for path, module in network.named_modules():
                self._names[id(module)] = f"{name}.{path}" if path else name

    def took(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Count one operation and the tensors it returned."""
        before = self._live.peak_bytes()
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.device.type == "meta":
                self._live.take(leaf.untyped_storage())
        if self._live.peak_bytes() > before:
            self.where = self._inside[-1] if self._inside else ""
        if func is _aten.convolution.default:
            self.convolution_bytes = max(self.convolution_bytes, args[0].nbytes + result.nbytes)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += int(formula(*args, **kwargs, out_val=result))

    @contextmanager
    def work(self) -> Iterator[None]:
        """Count this thread's operations on the card; entering again inside changes nothing."""
        if getattr(self._thread, "inside", False):
            yield
            return
        self._thread.inside = True
        try:
            with ExitStack() as stack:
                stack.callback(register_module_forward_pre_hook(self._enter).remove)
                stack.callback(register_module_forward_hook(self._leave, always_call=True).remove)
                stack.enter_context(_FusedAttention())
                stack.enter_context(_Count(self))
                yield
        finally:
            self._thread.inside = False
            self._inside.clear()

    def _enter(self, module: nn.Module, _args: Any) -> None:
        self._inside.append(self._names.get(id(module), type(module).__name__))

    def _leave(self, _module: nn.Module, _args: Any, _result: Any) -> None:
        self._inside.pop()


def _read_number(tensor: torch.Tensor) -> bool | int | float:
    if tensor.dtype is torch.bool:
        return True
    return 2.0 if tensor.is_floating_point() else 1


#: What a card answers and `meta` cannot: reading values back.
_READS: Mapping[Any, Callable[..., Any]] = {
    _aten._local_scalar_dense.default: _read_number,
    _aten.equal.default: lambda *_: True,
}


class _Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, device: DryDevice) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        from_card = bool(args) and isinstance(args[0], torch.Tensor) and args[0].device.type == "meta"
        if from_card and func in _READS:
            self._device.waits += 1
            return _READS[func](*args)
        target = kwargs.get("device")
        if from_card and func is _aten._to_copy.default and target is not None and target.type == "cpu":
            self._device.waits += 1
            return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        self._device.waits += _crosses(func, args, kwargs)
        result = self._device.results.call(func, args, kwargs)
        self._device.took(func, args, kwargs, result)
        return result


def _crosses(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether an operation copies from the host to the card: from memory that is not pinned, it waits for the queue."""
    if func is _aten.copy_.default:
        # A number is an argument of the kernel that fills.
        return bool(args[0].device.type == "meta" and args[1].device.type == "cpu" and args[1].ndim)
    target = kwargs.get("device")
    return bool(
        func is _aten._to_copy.default and target is not None and target.type == "meta" and args[0].device.type == "cpu"
    )


class _FusedAttention(TorchFunctionMode):
    """Attention by the fused kernel, as on a card: on `meta` torch would spell out the matrix of all pairs of tokens.

    A mask costs the fused kernel nothing beyond itself, so it is left out.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, key, value = (*args, *(kwargs[n] for n in ("query", "key", "value")[len(args) :]))[:3]
        if query.device.type != "meta":
            return func(*args, **kwargs)
        if key.shape[1] != query.shape[1] or query.ndim != 4:
            raise NotImplementedError(f"attention of {tuple(query.shape)} over {tuple(key.shape)}")
        return _aten._scaled_dot_product_flash_attention.default(query, key, value)[0]
