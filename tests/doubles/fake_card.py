"""A card whose tensors have a device and a type and no data: what is mixed up between host and card is found out.

torch's fake tensors say `cuda:0` on a machine without CUDA. Where torch would ask CUDA itself, by indexing say, the
operation below it is called in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.denoising.caches import TensorCache, Tensors
from pipeline.families import Family, Stage
from pipeline.models.build import Configs, build_parts, configs_of
from pipeline.models.diffusion import DiffusionModel
from pipeline.models.loading import engine_of
from tests.doubles.streams import FakeStreams

_aten = torch.ops.aten
_SET_DATA = torch.Tensor.data.__set__  # type: ignore[attr-defined]


#: What makes a tensor of a number on the way, where the others are.
_MAKES_NUMBERS = frozenset({torch.where})

#: What CUDA refuses for operands of different types, and fake tensors compute.
_OF_ONE_TYPE = frozenset(
    {_aten.mm.default, _aten.addmm.default, _aten.bmm.default, _aten.baddbmm.default, _aten.convolution.default}
)


class FakeCard:
    """A card of any size on which networks of any size compute nothing. Enter `work` for all that touches it.

    Tensors of the host are real ones, and what is copied off the card is a real tensor of ones.
    """

    torch_device = "cuda:0"
    total_bytes = 2**50

    def __init__(self) -> None:
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        #: How often the host waited for the card: values read back, tensors copied off it, and tensors copied to it
        #: from memory that is not pinned.
        self.waits = 0
        #: How often it waited because it was told to, once a step.
        self.synchronized = 0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> FakeCard:
        """Stand in for what of `torch.cuda` is asked for beside operations, until the test ends."""

        def synchronize(_device: Any = None) -> None:
            self.synchronized += 1

        made = torch.Generator
        FakeStreams().install(monkeypatch)
        monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device=None: (9, 0))
        # What is drawn comes from the host, so it is copied, which a card's own generator would spare.
        monkeypatch.setattr(torch, "Generator", lambda device="cpu": made("cpu"))
        return self

    @contextmanager
    def work(self) -> Iterator[None]:
        """Inside, tensors of the card are fake; one beside a tensor of the host, or of another type, raises."""
        with _Reads(self), _OnCard(self, self._fake), torch.no_grad():
            yield

    def free_cached(self) -> None:
        """Nothing is cached."""

    def model(self, family: Family, *, shallow: bool = False, on_host: bool = False) -> DiffusionModel:
        """The full-size networks of `family` on the card, in the precision that loading gives them.

        `shallow`: of full width and all kinds of blocks, but few blocks of each, which takes a tenth of the time.
        `on_host`: not on the card yet; what is rendered has to bring them there.
        """
        dtype = getattr(torch, family.half)
        configs = configs_of(family)
        parts = build_parts(family, _shallow(configs) if shallow else configs, dtype, "meta")
        where = "cpu" if on_host else self.torch_device
        with self._fake:
            for network in parts.networks:
                # Fake tensors cannot be swapped, by which `nn.Module` would change their type.
                network._apply = partial(_apply, network)
                for module in network.modules():
                    for name, weight in module._parameters.items():
                        if weight is not None:
                            there = torch.empty(weight.shape, dtype=weight.dtype, device=where)
                            module._parameters[name] = torch.nn.Parameter(there, requires_grad=False)
                    for name, buffer in module._buffers.items():
                        if buffer is not None:
                            module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=where)
        origin = {"family": family.name, "revision": "fake", "repo": ""}
        model = engine_of(family)(family, parts, self, origin, _Kept())  # type: ignore[arg-type]
        if not on_host:
            # They are there, and stay.
            model.residency._placed.update({stage: [] for stage in Stage})
        return model


#: Settings that say how many blocks alike a network has.
_DEPTHS = {"num_layers": 2, "num_hidden_layers": 3, "num_res_blocks": 1, "layers_per_block": 1}


def _shallow(configs: Configs) -> Configs:
    return {
        name: {key: _DEPTHS.get(key, value) if isinstance(value, int) else value for key, value in config.items()}
        for name, config in configs.items()
    }


def _apply(network: torch.nn.Module, function: Callable[[torch.Tensor], torch.Tensor]) -> torch.nn.Module:
    """`nn.Module._apply` with new parameters in place of the old ones."""
    for module in network.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = torch.nn.Parameter(function(weight), requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = function(buffer)
    return network


class _Kept(TensorCache):
    """Makes everything anew, and hands it back through the host as the real one does."""

    def fetch(self, key: str, make: Callable[[], Tensors]) -> Tensors:
        return {name: tensor.cpu() for name, tensor in make().items()}


class _Reads(TorchDispatchMode):
    """What a card answers and a tensor without data cannot: values that are read back, made up.

    Flags are true and numbers 2: so results are finite, and guidance is on.
    """

    def __init__(self, card: FakeCard) -> None:
        super().__init__()
        self._card = card

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _aten._local_scalar_dense.default and _on_card(args[0]):
            self._card.waits += 1
            return True if args[0].dtype is torch.bool else 2.0 if args[0].is_floating_point() else 2
        if func is _aten.equal.default:
            return True
        if func in _OF_ONE_TYPE:
            found = {each.dtype for each in args if isinstance(each, torch.Tensor)}
            if len(found) > 1:
                raise RuntimeError(f"{func}: operands of different dtypes, {sorted(map(str, found))}")
        return func(*args, **(kwargs or {}))


class _OnCard(TorchFunctionMode):
    """Makes fake what is made on the card or copied to it, and real what comes off it; indexes without CUDA.

    Indexing asks CUDA for a stream: the operations that it stands for do not.
    """

    def __init__(self, card: FakeCard, fake: FakeTensorMode) -> None:
        super().__init__()
        self._card = card
        self._fake = fake

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        given = dict(kwargs or {})
        there = bool(args) and _on_card(args[0])
        self._card.waits += _waits(func, args, given)
        if func == _SET_DATA:
            func(*args)
            # Not a part of its data: a tensor that is brought elsewhere would say that it is where it was.
            if isinstance(args[0], FakeTensor):
                args[0].fake_device = args[1].device
            return None
        if (
            there
            and func in (torch.Tensor.cpu, torch.Tensor.to)
            and (func is torch.Tensor.cpu or _names("cpu", args, given))
        ):
            dtypes = [each for each in (*args, *given.values()) if isinstance(each, torch.dtype)]
            return torch.ones(args[0].shape, dtype=(dtypes or [args[0].dtype])[0])
        if there and func is torch.Tensor.__getitem__:
            return _view(args[0], args[1])
        if there and func is torch.Tensor.__setitem__:
            target, value = _view(args[0], args[1]), args[2]
            if isinstance(value, torch.Tensor) and value.ndim:
                _aten.copy_.default(target, value)
            else:
                # A number, or a tensor of one, may come from the host.
                _aten.fill_.Scalar(target, 0)
            return None
        if there and func is torch.Tensor.contiguous:
            wanted = given.get("memory_format", torch.contiguous_format)
            if args[0].is_contiguous(memory_format=wanted):
                return args[0]
            return _aten.clone.default(args[0], memory_format=wanted)
        if there and func is torch.Tensor.new_empty:
            sizes = args[1] if isinstance(args[1], (tuple, list)) else args[1:]
            return _aten.new_empty.default(args[0], list(sizes), **given)
        if there and func is torch.Tensor.copy_:
            return _aten.copy_.default(*args)
        if func is torch.nn.functional.interpolate and any(map(_on_card, args)) and given.get("size") is not None:
            # Of two sides, which is all that is asked for with a size.
            return _aten.new_empty.default(args[0], [*args[0].shape[:-2], *given["size"]])
        if func is torch.nn.functional.scaled_dot_product_attention and any(map(_on_card, args)):
            return _attended(*args, **given)
        if (func in _MAKES_NUMBERS and any(map(_on_card, args))) or _names("cuda", args, given):
            with self._fake:
                return func(*args, **given)
        return func(*args, **given)


def _attended(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None = None, **_how: Any
) -> torch.Tensor:
    """What attention returns. Raises `RuntimeError` for what every kernel of it refuses."""
    given = [query, key, value]
    # A mask of booleans, or one that is added.
    added = attn_mask is not None and attn_mask.dtype is not torch.bool
    dtypes = {each.dtype for each in [*given, *([attn_mask] if added else [])]}  # type: ignore[union-attr]
    devices = {each.device for each in [*given, *([attn_mask] if attn_mask is not None else [])]}
    if len(dtypes) > 1 or len(devices) > 1:
        raise RuntimeError(f"attention of another dtype or device: {sorted(map(str, [*dtypes, *devices]))}")
    if attn_mask is not None:
        torch.broadcast_shapes(attn_mask.shape, (*query.shape[:-1], key.shape[-2]))
    return _aten.new_empty.default(query, [*query.shape[:-1], value.shape[-1]])


def _waits(func: Any, args: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether the host waits for a copy."""
    if func in (torch.tensor, torch.as_tensor):
        return _names("cuda", (), kwargs)
    if not args or not isinstance(args[0], torch.Tensor) or kwargs.get("non_blocking"):
        return False
    if func is torch.Tensor.cpu or func is torch.Tensor.to:
        here, there = args[0].device.type, "cpu" if func is torch.Tensor.cpu else _device_of(args[1:], kwargs)
        return there is not None and here != there
    if func in (torch.Tensor.copy_, torch.Tensor.__setitem__):
        # A number is an argument of the kernel that fills.
        value = args[-1]
        return _on_card(args[0]) and isinstance(value, torch.Tensor) and value.ndim > 0 and not _on_card(value)
    return False


def _device_of(args: Any, kwargs: Mapping[str, Any]) -> str | None:
    return next((kind for kind in ("cuda", "cpu") if _names(kind, args, kwargs)), None)


def _names(kind: str, args: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether an argument is a device of `kind`."""
    for each in (*args, *kwargs.values()):
        if isinstance(each, torch.device) and each.type == kind:
            return True
        if isinstance(each, str) and each.partition(":")[0] == kind:
            return True
    return False


def _on_card(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.device.type == "cuda"


def _view(tensor: torch.Tensor, index: Any) -> torch.Tensor:
    index = index if isinstance(index, tuple) else (index,)
    index = tuple(torch.tensor(each) if isinstance(each, list) else each for each in index)
    named = sum(1 for each in index if each is not None and each is not Ellipsis)
    spread: list[Any] = []
    for each in index:
        spread += [slice(None)] * (tensor.ndim - named) if each is Ellipsis else [each]
    # Tensors index together, whatever stands between them.
    together: list[torch.Tensor | None] = []
    for each in spread:
        dimension = len(together)
        if isinstance(each, int):
            tensor = _aten.select.int(tensor, dimension, each)
            continue
        if each is None:
            tensor = _aten.unsqueeze.default(tensor, dimension)
        elif isinstance(each, slice) and each != slice(None):
            tensor = _aten.slice.Tensor(tensor, dimension, each.start, each.stop, each.step or 1)
        together.append(each if isinstance(each, torch.Tensor) else None)
    if any(each is not None for each in together):
        return _aten.index.Tensor(tensor, together)
    return tensor
