"""What a clip is: its class, its tier, its complete specification and its content key."""

from __future__ import annotations

import hashlib
import json
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

#: Raised whenever the same spec and still would give other pixels; part of every content key.
RENDERER_VERSION = "1"


class ResolutionClass(StrEnum):
    """A pixel budget of side², shared by all aspect ratios of the class."""

    P256 = "256p"
    P512 = "512p"
    P768 = "768p"
    P1024 = "1024p"

    @property
    def side(self) -> int:
        """Side in pixels of the class's square."""
        return int(self.value[:-1])

    @property
    def pixels(self) -> int:
        """The class's pixel budget."""
        return self.side**2


class Tier(StrEnum):
    """How much work goes into a clip; each family says what a tier means for it."""

    DRAFT = "draft"
    STANDARD = "standard"
    HIGH = "high"


class Fit(StrEnum):
    """How a still is brought to the clip's aspect ratio."""

    #: Whole picture, padded with its own border colour. The default: a product is never cut.
    CONTAIN = "contain"
    #: Fills the frame, centre crop.
    COVER = "cover"
    #: Fills the frame, distorted.
    STRETCH = "stretch"


class ClipSpec(BaseModel):
    """Everything besides the still that decides a clip's pixels. All values are final: nothing is defaulted later."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Family name, a key of `pipeline.families.FAMILIES`.
    family: str
    #: Revision of the family's weights (or of its code, for a family without weights).
    revision: str
    prompt: str = Field(min_length=1)
    negative_prompt: str = ""
    resolution_class: ResolutionClass
    #: Pixels, multiples of the family's stride.
    width: int = Field(gt=0)
    height: int = Field(gt=0)
    frames: int = Field(gt=0)
    #: Frames per second of playback.
    fps: int = Field(gt=0, le=120)
    #: Denoising steps; 1 for families that do not denoise.
    steps: int = Field(gt=0)
    #: Classifier-free guidance scale; 1 means none.
    guidance: float = Field(ge=1)
    seed: int = Field(ge=0, lt=2**63)
    fit: Fit = Fit.CONTAIN

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.width, self.height

    @property
    def seconds(self) -> float:
        """Length of the clip in seconds."""
        return self.frames / self.fps


def content_key(still_sha256: str, spec: ClipSpec) -> str:
    """SHA-256 (hex) naming the clip that `spec` makes of a still.

    Two jobs of one owner with equal keys share one clip; the key changes with any parameter,
    with the family's revision and with `RENDERER_VERSION`.
    """
    content = {"still": still_sha256, "spec": spec.model_dump(mode="json"), "renderer": RENDERER_VERSION}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
