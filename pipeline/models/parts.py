"""What engines and loaders hand each other: the components of a model, conditions, and small steps on pictures."""

from __future__ import annotations

import hashlib
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipeline.families import Stage

#: Arguments of a network by name, one row a clip.
Conditions = Mapping[str, torch.Tensor]


class Parts(SimpleNamespace):
    """The components of a loaded model by name, networks in evaluation mode, and the stage each network serves."""

    stages: Mapping[str, Stage]

    def of(self, stage: Stage) -> list[torch.nn.Module]:
        """The networks of one stage."""
        return [getattr(self, name) for name, its in self.stages.items() if its is stage]

    @property
    def networks(self) -> tuple[torch.nn.Module, ...]:
        """The components that hold weights."""
        return tuple(getattr(self, name) for name in self.stages)


@dataclass(frozen=True, kw_only=True)
class Halves:
    """What denoising is conditioned on: arguments of the network for each half of guidance, one row a clip."""

    unconditional: Conditions
    conditional: Conditions


def picture_sha256(picture: Image.Image) -> str:
    """SHA-256 (hex) of a picture's size and RGB bytes."""
    return hashlib.sha256(f"{picture.size}".encode() + picture.convert("RGB").tobytes()).hexdigest()


def clear_frames(error: BaseException | None) -> None:
    """Drop the locals of every finished frame that `error`, its cause and its context hold."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def unit_floats(picture: Image.Image) -> np.ndarray[Any, np.dtype[np.float32]]:
    """(1, 3, height, width) float32 in 0…1."""
    array = np.asarray(picture.convert("RGB"), dtype=np.float32) / 255.0
    return np.ascontiguousarray(array.transpose(2, 0, 1)[None])


def rows(singles: Sequence[Conditions]) -> Conditions:
    return {name: torch.cat([single[name] for single in singles]) for name in singles[0]}


def along_time(clip: torch.Tensor, frames: int) -> torch.Tensor:
    """(rows, channels, frames', height, width) with another frame count, linearly, ends kept."""
    count = clip.shape[2]
    if count == frames:
        return clip
    places = torch.linspace(0, count - 1, frames, dtype=torch.float64)
    below = places.floor().long().clamp(max=count - 1)
    above = (below + 1).clamp(max=count - 1)
    share = (places - below).to(device=clip.device, dtype=clip.dtype).view(1, 1, -1, 1, 1)
    return clip[:, :, below] * (1 - share) + clip[:, :, above] * share


@contextmanager
def widened(networks: Sequence[torch.nn.Module]) -> Iterator[None]:
    """Inside, `networks` compute in float32; afterwards in what they did before."""
    before = [network.dtype for network in networks]
    try:
        for network in networks:
            network.float()
        yield
    finally:
        for network, dtype in zip(networks, before, strict=True):
            # Not the class's own: diffusers' warns of every move to half precision, whatever is lost by it.
            torch.nn.Module.to(network, dtype)  # type: ignore[arg-type]
