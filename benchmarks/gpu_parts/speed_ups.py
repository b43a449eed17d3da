"""Everything that makes a step faster, each to be laid on alone or left out.

An entry in `SPEED_UPS` is all that it takes to be measured. It names what it looks for by `module:attribute`; where
that is not in this version, or cannot work on this machine, the run says so and goes on. `switch(model, on)` is entered
around a run of the loop, whether the speed-up is to be on or off: what the product always has can be taken away too.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any
from unittest.mock import patch

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipeline.families import Stage
from pipeline.models.diffusion import DiffusionModel

Switch = Callable[[DiffusionModel, bool], AbstractContextManager[Any]]


@dataclass(frozen=True, kw_only=True)
class SpeedUp:
    """One way to do the same step in less time."""

    name: str
    switch: Switch
    #: What it needs, as `module:attribute` or a module's name; empty: nothing but torch.
    target: str = ""
    #: Engines (`Family.engine`) that it is for; empty: all.
    engines: tuple[str, ...] = ()
    #: Whether a renderer has it by itself. What it has not is measured to see whether it should.
    in_product: bool = True
    #: The setting of a farm that turns it on, where a renderer has it only if told so.
    setting: str = ""
    #: What makes it superfluous, as `target`: where the product has that, this stand-in is not measured any more.
    stands_in_for: str = ""
    #: Whether it needs a CUDA card.
    needs_cuda: bool = False
    #: Seconds it takes before the first step, compiling say.
    prepares_s: float = 0.0

    def absent(self, engine: str, torch_device: str) -> str:
        """Why it cannot be measured with models of `engine` on a card; empty where it can."""
        if self.engines and engine not in self.engines:
            return f"not for {engine}"
        if self.stands_in_for and not _absent(self.stands_in_for):
            return f"the product has {self.stands_in_for}"
        if self.needs_cuda and not torch_device.startswith("cuda"):
            return "needs a CUDA card"
        return _absent(self.target)


@contextmanager
def applied(model: DiffusionModel, names: Iterable[str]) -> Iterator[None]:
    """Inside, the speed-ups of `names` are on and all others that there are are off."""
    wanted = set(names)
    present, _ = known(model.family.engine, model.device.torch_device)
    with ExitStack() as stack:
        for each in present:
            stack.enter_context(each.switch(model, each.name in wanted))
        yield


def _absent(target: str) -> str:
    module, _, attribute = target.partition(":")
    if not module:
        return ""
    try:
        if find_spec(module) is None:
            return f"this version has no {module}"
        found: Any = importlib.import_module(module)
    except ImportError as error:
        return f"{module} cannot be imported: {error}"
    for name in filter(None, attribute.split(".")):
        if not hasattr(found, name):
            return f"this version has no {target}"
        found = getattr(found, name)
    return ""


# -- taken away from the product ---------------------------------------------------------------------------------


@contextmanager
def _a_timestep_a_token(network: Any, first_tokens: int) -> Iterator[None]:
    """In place of `two_timesteps`: the stock forward, which embeds a timestep for every token."""

    def forward(hidden_states: torch.Tensor, timestep: torch.Tensor, **options: Any) -> Any:
        patch_size = network.config.patch_size
        tokens = 1
        for side, part in zip(hidden_states.shape[2:], patch_size, strict=True):
            tokens *= side // part
        by_token = timestep[:, 1:].expand(-1, tokens).clone()
        by_token[:, :first_tokens] = timestep[:, :1]
        return type(network).forward(network, hidden_states=hidden_states, timestep=by_token, **options)

    network.forward = forward
    try:
        yield
    finally:
        network.__dict__.pop("forward", None)


def replaced(target: str, stand_in: object) -> Switch:
    """A switch for what the product always does: off, `stand_in` is in place of `module:attribute`."""

    def switch(_model: DiffusionModel, on: bool) -> AbstractContextManager[Any]:
        module, _, attribute = target.partition(":")
        return nullcontext() if on else patch.object(importlib.import_module(module), attribute, stand_in)

    return switch


# -- laid on -----------------------------------------------------------------------------------------------------


def _attention(backend: SDPBackend) -> Switch:
    order = [backend, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]

    def switch(_model: DiffusionModel, on: bool) -> AbstractContextManager[Any]:
        return sdpa_kernel(list(dict.fromkeys(order)), set_priority=True) if on else nullcontext()

    return switch


@contextmanager
def _channels_last(model: DiffusionModel, on: bool) -> Iterator[None]:
    if not on:
        yield
        return
    changed = []
    for network in model.parts.of(Stage.DENOISE):
        for parameter in network.parameters():
            if parameter.ndim == 4:
                changed.append(parameter)
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    try:
        yield
    finally:
        for parameter in changed:
            parameter.data = parameter.data.contiguous(memory_format=torch.contiguous_format)


@contextmanager
def _compiled_blocks(model: DiffusionModel, on: bool) -> Iterator[None]:
    """Each kind of block compiled once: transformer blocks, or the blocks of a UNet's levels."""
    if not on:
        yield
        return
    compiled = []
    for network in model.parts.of(Stage.DENOISE):
        names = set(getattr(network, "_repeated_blocks", None) or ("BasicTransformerBlock", "ResnetBlock2D"))
        for module in network.modules():
            if type(module).__name__ in names:
                module.compile(dynamic=False)
                compiled.append(module)
    try:
        yield
    finally:
        for module in compiled:
            module._compiled_call_impl = None
        torch._dynamo.reset()


@contextmanager
def _compiled_kernels(model: DiffusionModel, on: bool) -> Iterator[None]:
    """What the farm's setting `kernels` turns on: compiled blocks with all that belongs to them."""
    choice = importlib.import_module("pipeline.kernels.kernels").KernelChoice
    kernels: Any = vars(model)["kernels"]
    before, kernels.choice = kernels.choice, choice.COMPILED if on else choice.EAGER
    try:
        yield
    finally:
        kernels.choice = before


def _nothing(*_arguments: object, **_options: object) -> AbstractContextManager[None]:
    return nullcontext()


#: In the order in which they are laid on.
SPEED_UPS: tuple[SpeedUp, ...] = (
    SpeedUp(
        name="two timesteps",
        target="pipeline.models.wan:two_timesteps",
        engines=("wan",),
        switch=replaced("pipeline.models.wan:two_timesteps", _a_timestep_a_token),
    ),
    SpeedUp(
        name="one-token attention",
        target="pipeline.models.svd:one_token_attention",
        engines=("svd",),
        switch=replaced("pipeline.models.svd:one_token_attention", _nothing),
    ),
    SpeedUp(
        name="context once",
        target="pipeline.models.i2vgen_xl:context_once",
        engines=("i2vgen-xl",),
        switch=replaced("pipeline.models.i2vgen_xl:context_once", _nothing),
    ),
    SpeedUp(
        name="compiled kernels",
        target="pipeline.kernels.kernels:KernelChoice",
        switch=_compiled_kernels,
        in_product=False,
        setting="kernels: compiled",
        needs_cuda=True,
        prepares_s=60.0,
    ),
    SpeedUp(
        name="cuDNN attention",
        switch=_attention(SDPBackend.CUDNN_ATTENTION),
        in_product=False,
        needs_cuda=True,
    ),
    SpeedUp(
        name="channels-last weights",
        engines=("i2vgen-xl", "svd"),
        switch=_channels_last,
        in_product=False,
    ),
    SpeedUp(
        name="compiled blocks",
        target="triton",
        stands_in_for="pipeline.kernels.kernels:KernelChoice",
        switch=_compiled_blocks,
        in_product=False,
        needs_cuda=True,
        prepares_s=60.0,
    ),
)


def known(engine: str, torch_device: str) -> tuple[list[SpeedUp], dict[str, str]]:
    """The speed-ups that models of `engine` can have on the card, and why each of the others cannot be measured."""
    absent = {each.name: each.absent(engine, torch_device) for each in SPEED_UPS}
    return [each for each in SPEED_UPS if not absent[each.name]], {name: why for name, why in absent.items() if why}
