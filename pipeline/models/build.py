"""A family's networks from their published configurations alone: the real sizes without the weights.

On the `meta` device they take no memory, which is what a dry run needs; on a card they are full-size networks with
random weights, which is what a benchmark of speed and memory needs.
"""

from __future__ import annotations

import importlib
import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from pipeline.denoising.caches import TensorCache
from pipeline.devices.protocol import Device
from pipeline.families import Component, Family
from pipeline.models.diffusion import DiffusionModel
from pipeline.models.loading import engine_of
from pipeline.models.parts import Parts

#: Component name -> its published configuration.
Configs = Mapping[str, Mapping[str, Any]]

_FILES = ("config.json", "scheduler_config.json", "preprocessor_config.json")


@cache
def configs_of(family: Family) -> Configs:
    """The configuration of every component but the tokenizer: the package's copy, or a small network's own.

    Raises `LookupError` for a family that has neither.
    """
    if not family.components:
        raise LookupError(f"the family {family.name!r} has no networks")
    if family.repo is None:
        from pipeline.models.tiny import make_tiny

        with tempfile.TemporaryDirectory() as home:
            folder = Path(home) / family.name
            make_tiny(family, folder)
            return {c.name: _read(folder / c.name) for c in family.components if not _is_tokenizer(c)}
    folder = Path(str(resources.files("pipeline.families") / "configs" / family.name))
    if not folder.is_dir():
        raise LookupError(f"no configurations of {family.name!r} in {folder}: add one JSON file for each component")
    return {
        c.name: json.loads((folder / f"{c.name}.json").read_text(encoding="utf-8"))
        for c in family.components
        if not _is_tokenizer(c)
    }


def build_parts(family: Family, configs: Configs, dtype: torch.dtype, device: str = "meta") -> Parts:
    """Every component, networks in evaluation mode on `device` in the precision that loading would give them.

    Weights are random, of the size that keeps activations near 1; on `meta` there are none. The tokenizer is a
    stand-in: every prompt is as long as the text encoder allows.
    """
    found: dict[str, Any] = {}
    for component in family.components:
        if _is_tokenizer(component):
            found[component.name] = StandInTokenizer()
            continue
        cls = getattr(importlib.import_module(component.library), component.cls)
        config = dict(configs[component.name])
        if component.stage is None:
            found[component.name] = cls.from_config(config) if component.library != "transformers" else cls(**config)
            continue
        wanted = torch.float32 if component.full_precision else dtype
        # In its dtype from the start, as loading does it: in float32 first, Wan2.2 would take 35 GB of the card.
        with torch.device(device), _defaulting_to(wanted):
            by_diffusers = component.library != "transformers"
            network = cls.from_config(config) if by_diffusers else cls(cls.config_class(**config))
        # Some layers make a parameter of a list, which heeds no default device.
        network.to(device)
        _give_dtype(network, wanted)
        if device != "meta":
            _fill(network)
        found[component.name] = network.eval().requires_grad_(False)
    return Parts(stages={c.name: c.stage for c in family.components if c.stage is not None}, **found)


def build(
    family: Family, device: Device, dtype: torch.dtype | None = None, cache: TensorCache | None = None
) -> DiffusionModel:
    """The family's engine around random full-size networks on `device`, in its half precision unless told otherwise.

    Each network is made on the device itself and in its own precision, so the host needs no room for it and the card
    none beside it.
    """
    wanted = dtype or getattr(torch, family.half)
    parts = build_parts(family, configs_of(family), wanted, device.torch_device)
    origin = {"family": family.name, "revision": "random weights", "repo": ""}
    return engine_of(family)(family, parts, device, origin, cache)


class StandInTokenizer:
    """Answers like a tokenizer of transformers, with as many tokens as there is room for."""

    model_max_length = 77

    def __call__(self, prompts: str | list[str], **options: Any) -> Any:
        """`input_ids` and `attention_mask`: (prompts, length) int64 tensors of ones."""
        rows = 1 if isinstance(prompts, str) else len(prompts)
        ids = torch.ones(rows, options.get("max_length") or self.model_max_length, dtype=torch.int64)
        return SimpleNamespace(input_ids=ids, attention_mask=torch.ones_like(ids))


def _is_tokenizer(component: Component) -> bool:
    return component.name.startswith("tokenizer")


def _read(folder: Path) -> Mapping[str, Any]:
    path = next(folder / name for name in _FILES if (folder / name).is_file())
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    # Of the library's version and of the machine, not of the network.
    return {key: value for key, value in config.items() if key not in ("_diffusers_version", "transformers_version")}


@contextmanager
def _defaulting_to(dtype: torch.dtype) -> Iterator[None]:
    """Inside, parameters that name no dtype get `dtype`. Of the whole process, so for programs of one thread."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _give_dtype(network: nn.Module, dtype: torch.dtype) -> None:
    """Set the dtype as `from_pretrained` does: parts a class names stay in float32."""
    kept = tuple(getattr(network, "_keep_in_fp32_modules", None) or ())
    # transformers keeps its list in float32 against float16's small range only, diffusers always.
    if dtype is torch.bfloat16 and type(network).__module__.startswith("transformers"):
        kept = ()
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if not tensor.is_floating_point():
            continue
        if set(kept) & set(name.split(".")):
            tensor.data = tensor.data.to(torch.promote_types(tensor.dtype, torch.float32))
        else:
            tensor.data = tensor.data.to(dtype)


def _fill(network: nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 1.0 / math.sqrt(max(1, parameter[0].numel())))
            elif name.endswith("weight"):
                parameter.fill_(1.0)
            else:
                parameter.zero_()
