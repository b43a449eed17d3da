"""LoRA adapters over a denoiser (Hu et al., 2021, arXiv:2106.09685), by peft."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from diffusers.utils.peft_utils import recurse_remove_peft_layers
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from pipeline.clips.clip import Adapter
from pipeline.weights.weights import WeightsError

_NAME = "clip"
#: Names in front of a module's own that trainers write.
_PREFIX = re.compile(r"^(?:base_model\.model\.|unet\.|transformer\.|diffusion_model\.)+")
_FACTORS = {"lora_A": "lora_A", "lora_B": "lora_B", "lora_down": "lora_A", "lora_up": "lora_B"}


def put_on(network: nn.Module, adapter: Adapter, path: Path) -> None:
    """Lay the LoRA in the safetensors file `path` over `network`, at `adapter.scale`.

    Raises `WeightsError` where the file is not the one the adapter names, cannot be read, or fits other modules.
    """
    where = str(path)
    if not path.is_file():
        raise WeightsError(
            f"The adapter {adapter.name!r} is not there", where, "Correct its path in the configuration."
        )
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != adapter.sha256:
        raise WeightsError(
            f"The adapter {adapter.name!r} has SHA-256 {found[:12]}, the clip was submitted with {adapter.sha256[:12]}",
            where,
            "Put the old file back, or submit the rows again.",
        )
    try:
        raw = load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"The adapter {adapter.name!r} cannot be read: {error}", where, "Give a safetensors file; fetch it again."
        ) from error
    unfit = f"The adapter {adapter.name!r} does not fit"
    remedy = "Use an adapter trained for this family."
    try:
        config, factors = _plan(network, adapter, raw)
    except (ValueError, IndexError, KeyError) as error:
        raise WeightsError(f"{unfit}: {error}", where, remedy) from error
    try:
        inject_adapter_in_model(config, network, _NAME)
        result = set_peft_model_state_dict(network, factors, _NAME)
        # What no factor came for would keep the random values it was made with.
        placed = sum(".lora_" in name for name, _ in network.named_parameters())
        if result.unexpected_keys or placed != len(factors):
            raise ValueError(f"{len(factors)} factors for {placed} places, {len(result.unexpected_keys)} without any")
    except Exception as error:
        # Whatever it was, nothing of it may stay: the next clip would be rendered through it.
        take_off(network)
        raise WeightsError(f"{unfit}: {error}", where, remedy) from error
    network.eval().requires_grad_(False)
    some = next(iter(network.parameters()))
    for name, parameter in network.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.to(some.dtype)


def _plan(network: nn.Module, adapter: Adapter, raw: dict[str, Any]) -> tuple[LoraConfig, dict[str, Any]]:
    """What peft is to make, and the factors to fill it with. Raises `ValueError` for a file of another network."""
    factors, alphas = _sorted_out(raw)
    ranks = {name: factors[f"{name}.lora_A.weight"].shape[0] for name in _modules(factors)}
    modules = dict(network.named_modules())
    if not ranks:
        raise ValueError("it is no LoRA at all")
    if strange := sorted(name for name in ranks if name not in modules):
        raise ValueError(f"it is for another network: {len(strange)} modules are unknown, such as {strange[0]}")
    if lacking := sorted(name for name in ranks if f"{name}.lora_B.weight" not in factors):
        raise ValueError(f"{len(lacking)} modules have one factor of two, such as {lacking[0]}")
    config = LoraConfig(
        r=max(ranks.values()),
        lora_alpha=max(ranks.values()),
        target_modules=list(ranks),
        rank_pattern={f"^{re.escape(name)}$": rank for name, rank in ranks.items()},
        # The scale of a LoRA is alpha / rank; a file without alpha means a scale of 1.
        alpha_pattern={f"^{re.escape(name)}$": adapter.scale * alphas.get(name, rank) for name, rank in ranks.items()},
        init_lora_weights=False,
    )
    return config, factors


def take_off(network: nn.Module) -> None:
    """Remove the adapter; the network's own weights are as before."""
    recurse_remove_peft_layers(network)


def _sorted_out(raw: dict[str, Any]) -> tuple[dict[str, Any], dict[str, float]]:
    """Factors under peft's names, and alphas by module."""
    factors: dict[str, Any] = {}
    alphas: dict[str, float] = {}
    for key, tensor in raw.items():
        name = _PREFIX.sub("", key)
        if name.endswith(".alpha"):
            alphas[name.removesuffix(".alpha")] = float(tensor)
            continue
        module, _, rest = name.partition(".lora_")
        factor = _FACTORS.get("lora_" + rest.removesuffix(".weight").removesuffix(".default"))
        factors[f"{module}.{factor}.weight" if factor else name] = tensor
    return factors, alphas


def _modules(factors: dict[str, Any]) -> list[str]:
    return [key.removesuffix(".lora_A.weight") for key in factors if key.endswith(".lora_A.weight")]
