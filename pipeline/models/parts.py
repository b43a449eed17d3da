"""What engines, loaders and stages hand each other: the components of a model, conditions, pictures as numbers."""

from __future__ import annotations

from collections.abc import Mapping
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
        """The components that have weights."""
        return tuple(getattr(self, name) for name in self.stages)


@dataclass(frozen=True, kw_only=True)
class Halves:
    """What denoising is conditioned on: arguments of the network for each half of guidance, one row a clip."""

    unconditional: Conditions
    conditional: Conditions


def unit_floats(picture: Image.Image) -> np.ndarray[Any, np.dtype[np.float32]]:
    """(1, 3, height, width) float32 in 0…1."""
    array = np.asarray(picture.convert("RGB"), dtype=np.float32) / 255.0
    return np.ascontiguousarray(array.transpose(2, 0, 1)[None])
