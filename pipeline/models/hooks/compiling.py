"""Repeated blocks of a denoiser compiled, each distinct one once for a bucket ("regional compilation").

The whole of a UNet as one graph takes minutes to compile and compiles anew for any change; its layers are few kinds
repeated often. Each kind is compiled for the very shapes of a bucket (`dynamic=False`), as one graph without a break
(`fullgraph=True`), and what is around them stays as it is: hooks on the network, the loop, guidance.
"""

from __future__ import annotations

import time
import types
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._dynamo import config as dynamo_config
from torch._dynamo.callback import callback_handler
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from torch._dynamo.utils import counters
from torch.nn.attention import SDPBackend, sdpa_kernel

#: Blocks that repeat, by the class of the network, where diffusers does not declare them (`_repeated_blocks`).
_REPEATED = {
    "I2VGenXLUNet": ("ResnetBlock2D", "TemporalConvLayer", "Transformer2DModel", "TransformerTemporalModel"),
    "UNetSpatioTemporalConditionModel": ("SpatioTemporalResBlock", "TransformerSpatioTemporalModel"),
}
#: Compiles beyond the first evaluation of a bucket after which it is given up: something differs at every step.
MOST_RECOMPILES = 4

#: Called before each block that is compiled, which takes seconds to a minute.
OnCompile = Callable[[], None]


class CompileError(Exception):
    """A block could not be compiled, or is compiled again and again; `str` says which and why."""


class CompiledBlocks:
    """The compiled blocks of one network for one bucket.

    Laid on with `on`, they stand in for the blocks' calls; what was compiled is kept for the next clip of the bucket,
    and freed with this object. Weights are read where they lie when a block is called, so moving them is no change.
    """

    def __init__(self, network: nn.Module, backend: str | Callable[..., Any] = "inductor") -> None:
        """`backend`: a back end of `torch.compile`. Nothing is compiled before the first evaluation."""
        found = repeated_blocks(network)
        most = Counter(type(block) for block in found)
        # Each of them may have weights or inputs of another shape.
        self._most_compiles = max(most.values()) + MOST_RECOMPILES
        # One code object for each kind: torch keeps what it compiled, and its limit, with the code, so no bucket ends
        # at another's limit, and all of it goes when the bucket does.
        compiled = {
            kind: torch.compile(
                _own_code(kind.__name__),
                backend=backend,
                dynamic=False,
                fullgraph=True,
            )
            for kind in most
        }
        self._calls = {block: _Block(block, compiled[type(block)]) for block in found}
        self._first = True
        #: Blocks compiled in the first evaluation, those compiled later on, and seconds that took.
        self.compiles = self.recompiles = 0
        self.compile_seconds = 0.0

    @contextmanager
    def on(self, on_compile: OnCompile = lambda: None) -> Iterator[None]:
        """Inside, blocks are called compiled; evaluations raise `CompileError` where one cannot be."""

        def starts(_what: Any) -> None:
            on_compile()

        callback_handler.register_start_callback(starts)
        try:
            for block, call in self._calls.items():
                # What `nn.Module.compile` sets; the block's own `forward`, and whatever hides it, is what is compiled.
                block._compiled_call_impl = call
            with dynamo_config.patch(recompile_limit=self._most_compiles):
                yield
        finally:
            callback_handler.remove_start_callback(starts)
            for block in self._calls:
                block._compiled_call_impl = None

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Around one evaluation: counts what it compiled.

        Raises `CompileError` where too much was compiled after the first evaluation that ended well.
        """
        before, began = _graphs(), time.monotonic()
        yield
        new = _graphs() - before
        if new:
            self.compile_seconds += time.monotonic() - began
        if self._first:
            self.compiles += new
            self._first = False
            return
        self.recompiles += new
        if self.recompiles > MOST_RECOMPILES:
            raise CompileError(f"{self.recompiles} blocks were compiled again after the first evaluation")


class _Block:
    """The compiled call of one block."""

    def __init__(self, block: nn.Module, compiled: Callable[..., Any]) -> None:
        self._block = block
        self._compiled = compiled

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self._compiled(self._block, *args, **kwargs)
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:
            inner = getattr(error, "inner_exception", None) or error.__cause__
            if isinstance(inner, torch.OutOfMemoryError):
                raise inner from None
            lines = [line for line in f"{type(error).__name__}: {error}".splitlines() if line.strip()]
            text = f"{type(self._block).__name__}: {' '.join(lines[:3])[:300]}"
        # Outside the `except`: the error's traceback holds activations, and is let go of here.
        raise CompileError(text)


def repeated_blocks(network: nn.Module) -> list[nn.Module]:
    """The blocks that are compiled, none within another. Raises `CompileError` for a network that declares none."""
    found = _declared(network)
    if not found:
        raise CompileError(f"{type(network).__name__} declares no blocks that repeat")
    return found


def _declared(network: nn.Module) -> list[nn.Module]:
    declared: tuple[str, ...] = tuple(getattr(network, "_repeated_blocks", None) or ())
    for kind in type(network).__mro__:
        declared = declared or _REPEATED.get(kind.__name__, ())
    found = [module for module in network.modules() if type(module).__name__ in declared]
    within = {id(inner) for block in found for inner in block.modules() if inner is not block}
    return [block for block in found if id(block) not in within]


def _own_code(name: str) -> Callable[..., Any]:
    """Calls a block as it would be called without compiled kernels; a code object of its own."""

    def call(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return block._call_impl(*args, **kwargs)

    return types.FunctionType(call.__code__.replace(co_name=f"call_{name}"), call.__globals__, f"call_{name}")


def _graphs() -> int:
    """Graphs that were captured in this process so far."""
    return int(counters["stats"]["unique_graphs"])


def graph_breaks() -> int:
    """Places at which a graph broke off in this process so far; within compiled blocks there can be none."""
    return sum(counters["graph_break"].values())


def arrange_convolutions(network: nn.Module, channels_last: bool) -> int:
    """Lay the weights of convolutions in the compiled blocks out channels last, or as they came; how many there are.

    Tensor cores read channels last; what a convolution gives lies as its weights do. Only in place of what is there
    now: tensors that are kept for these weights elsewhere stay as they are. Takes another one of the largest of them
    for a moment. Nothing is done to a network that declares no blocks.
    """
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    inner = [module for block in _declared(network) for module in block.modules()]
    convolutions = [module for module in inner if isinstance(module, (nn.Conv2d, nn.Conv3d))]
    for module in convolutions:
        wanted = formats[module.weight.ndim] if channels_last else torch.contiguous_format
        module.weight.data = module.weight.data.contiguous(memory_format=wanted)
    return len(convolutions)


_BACKENDS: Mapping[str, SDPBackend] = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


@contextmanager
def attention_by(order: tuple[str, ...]) -> Iterator[None]:
    """Inside, torch's attention tries the back ends of `order`, the first first; empty: torch's own order.

    For diffusers' attention of every kind: what it calls by default is torch's own function. A back end that cannot do
    what is asked of it (a type, a mask, a width of heads) is passed over, which a fixed one
    (`set_attention_backend`) is not.
    """
    if not order:
        yield
        return
    with sdpa_kernel([_BACKENDS[name] for name in order], set_priority=True):
        yield
