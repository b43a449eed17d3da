"""How fast cards are as published, and how long a clip takes at such a speed. Pure.

    step = launches + FLOPs / (TFLOPS × efficiency) + bytes moved / bus

Speeds and prices lie in `card_speeds_and_prices.json`. Nothing here is measured: `cluster.estimates.times` corrects it.
"""

from __future__ import annotations

import hashlib
import re
from enum import StrEnum
from functools import cache
from importlib import resources

from pydantic import BaseModel, ConfigDict, Field

from cluster.estimates.memory import footprint_version
from pipeline.clips.clip import ClipSpec, ResolutionClass, Sampler
from pipeline.families import FAMILIES, family_named
from pipeline.families.layouts import Layout
from pipeline.memory.footprint import flops_per_step, latent_frames, memory_model
from pipeline.memory.slowdown import CHUNKS_LOSS, SPLIT_LOSS, clip_flops, transferred_bytes

#: Part of the bus's rate that copies of pageable memory reach. A guess, as in `pipeline.memory.slowdown`.
BUS_EFFICIENCY = 0.4
#: Steps that decoding takes as many operations as, of a family whose table does not say it: 40 T and 41.9 T of an
#: I2VGen-XL clip at 512p.
DECODE_STEPS = 1.0
#: Seconds to launch a step's kernels, a clip's encoding, a decode; from one clip to the next on a warm card.
LAUNCH_S, ENCODE_S, DECODE_S, GAP_S = 0.02, 0.5, 0.05, 0.1
#: Loading: seconds to start, and bytes a second from disk to card.
LOAD_S, LOAD_BYTES_S = 2.0, 1.0e9
#: What importing torch and diffusers adds to a process's first load: estimated.
FIRST_S = 6.0
#: Storage: seconds a request, and bytes a second.
STORAGE_S, STORAGE_BYTES_S = 0.1, 100e6
#: Seconds of a CPU: `camera` before its first frame and for a megapixel, and an encoded video with what lies beside it.
CAMERA_PREPARE_S, CAMERA_S_PER_MPX, PUBLISH_S, PUBLISH_S_PER_MPX = 0.2, 0.05, 0.5, 0.04


class ClipPart(StrEnum):
    """What the time of a clip is made of."""

    #: From the card being free to the next clip's beginning where its family is not loaded: its weights, and a `GAP`.
    LOAD = "load"
    #: `LOAD` where the renderer's process never loaded the family: libraries are imported, files come from the disk.
    FIRST = "first"
    #: From the card being free to the next clip's beginning where its family is loaded.
    GAP = "gap"
    ENCODE = "encode"
    STEP = "step"
    DECODE = "decode"
    #: From the card being free to the clip being in storage, on the renderer's CPU.
    PUBLISH = "publish"


class CardRate(BaseModel):
    """What is published of one card kind."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: TFLOPS of fp16 matrix products with fp32 sums, without sparsity.
    tflops: float = Field(gt=0)
    memory_gb: float = Field(gt=0)
    #: GB/s from host to card.
    bus_gb_s: float = Field(gt=0)
    #: Part of `tflops` that is reached.
    efficiency: float = Field(default=0.5, gt=0, le=1)
    #: US dollars; an estimate. None: not known.
    price_per_hour: float | None = Field(default=None, ge=0)
    emulated: bool = False
    #: Where `tflops` is from, and below it the public page that was found to agree; empty: none.
    source: str = ""
    checked: str = ""


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    note: str
    currency: str
    unknown: CardRate
    emulated: CardRate
    cards: dict[str, CardRate]


@cache
def rate_table() -> _Table:
    """The content of `card_speeds_and_prices.json`."""
    text = (resources.files("cluster.estimates") / "card_speeds_and_prices.json").read_text(encoding="utf-8")
    return _Table.model_validate_json(text)


@cache
def card_name(kind: str) -> str | None:
    """The table's name of a card by its NVML name, such as `NVIDIA GeForce RTX 4090`; None for one not there.

    The longest name counts whose words are in `kind` one after the other. A word that makes it another card, such as
    `Laptop` or `Ti`, must be in the name too.
    """
    words = _words(kind)
    known = [
        name
        for name in rate_table().cards
        if f" {' '.join(_words(name))} " in f" {' '.join(words)} "
        and not (_QUALIFIERS & set(words)) - set(_words(name))
    ]
    return max(known, key=len) if known else None


@cache
def rate_of(kind: str) -> tuple[CardRate, bool]:
    """(what is published of a card kind, whether it is known); of an unknown kind a stated default."""
    if kind == "emulated":
        return rate_table().emulated, True
    name = card_name(kind)
    return (rate_table().cards[name], True) if name else (rate_table().unknown, False)


@cache
def canonical(kind: str) -> str:
    """The name under which measured times of a card kind are kept: the table's, so that `L4` finds `NVIDIA L4`."""
    return card_name(kind) or kind


def tflops_of(kind: str) -> float | None:
    """Published TFLOPS of a card by its name, such as `NVIDIA GeForce RTX 4090`; None for one that is not known."""
    name = card_name(kind)
    return rate_table().cards[name].tflops if name else None


#: Words that make a name another card.
_QUALIFIERS = frozenset({"d", "laptop", "max", "mig", "mobile", "nvl", "super", "ti"})


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def steps_of(spec: ClipSpec) -> int:
    """Steps as renderers report them: of a family that does not denoise, frames."""
    return spec.total_steps if family_named(spec.family).samplers else spec.frames


def phases_of(spec: ClipSpec) -> tuple[ClipSpec, ...]:
    """The renderings of a clip as clips of their own, its base first; the steps of each are those that it does."""
    base = spec.base_spec
    own = spec.model_copy(update={"base": None, "strength": 1.0, "steps": spec.refined_steps})
    return (own,) if base is None else (base, own)


def _of_steps(phase: ClipSpec, layout: Layout) -> tuple[float, float]:
    """(operations, bytes copied) of all steps of a phase: what the clip takes less what it takes without any step."""
    none = phase.model_copy(update={"steps": 0})
    copied = transferred_bytes(phase, layout) - transferred_bytes(none, layout)
    return clip_flops(phase, layout) - clip_flops(none, layout), float(copied)


def expected_phases(spec: ClipSpec, kind: str, layout: Layout) -> tuple[tuple[int, float], ...]:
    """(steps, seconds of each on average) of each rendering of a clip, its base's first; not corrected."""
    if not family_named(spec.family).samplers:
        return ((spec.frames, CAMERA_S_PER_MPX * _megapixels(spec)),)
    rate = rate_of(kind)[0]
    split = layout.split_guidance and spec.guidance > 1
    lost = (SPLIT_LOSS if split else 0.0) + (CHUNKS_LOSS if layout.chunk_feed_forward > 1 else 0.0)
    found = []
    for phase in phases_of(spec):
        flops, copied = _of_steps(phase, layout)
        total_s = flops * (1 + lost) / _flops_a_second(rate) + copied / _bytes_a_second(rate)
        found.append((phase.steps, LAUNCH_S + total_s / phase.steps))
    return tuple(found)


def expected(spec: ClipSpec, kind: str, layout: Layout) -> dict[ClipPart, float]:
    """Seconds of a clip by part, not corrected; `STEP` is one step at the clip's own size."""
    family = family_named(spec.family)
    found = {
        ClipPart.ENCODE: CAMERA_PREPARE_S,
        ClipPart.STEP: expected_phases(spec, kind, layout)[-1][1],
        ClipPart.DECODE: CAMERA_PREPARE_S,
        ClipPart.PUBLISH: PUBLISH_S + PUBLISH_S_PER_MPX * _megapixels(spec) * spec.frames,
    }
    if not family.samplers:
        return found
    rate = rate_of(kind)[0]
    of_steps = [_of_steps(phase, layout) for phase in phases_of(spec)]
    # Whatever is moved besides what every step streams makes room for the encoders, before the first step.
    moved = transferred_bytes(spec, layout) - sum(copied for _, copied in of_steps)
    denoising = sum(flops for flops, _ in of_steps)
    decoding = clip_flops(spec, layout) - denoising
    if decoding <= denoising * 1e-9:
        decoding = DECODE_STEPS * flops_per_step(family, spec.width * spec.height, spec.frames)
    found[ClipPart.ENCODE] = ENCODE_S + max(0.0, moved) / _bytes_a_second(rate)
    found[ClipPart.DECODE] = DECODE_S + decoding / _flops_a_second(rate)
    return found


def expected_start(part: ClipPart, family: str) -> float:
    """Seconds of `FIRST`, `LOAD` or `GAP` of a family, not corrected."""
    if part is ClipPart.GAP:
        return GAP_S
    known = FAMILIES.get(family)
    model = memory_model(known) if known else None
    if model is None:
        return GAP_S
    return GAP_S + (FIRST_S if part is ClipPart.FIRST else 0.0) + LOAD_S + model.weights_bytes / LOAD_BYTES_S


def checkpoint_bytes(spec: ClipSpec) -> float:
    """Bytes of a clip between two steps: its latents in float32, and as many again for each that its sampler keeps."""
    family = family_named(spec.family)
    model = memory_model(family)
    if model is None:
        return 0.0
    latents = model.latents * spec.width * spec.height * latent_frames(family, spec.frames)
    return latents * (1 if spec.sampler in MEMORYLESS else 3)


#: Samplers that keep nothing from one step to the next.
MEMORYLESS = frozenset({Sampler.DDIM, Sampler.EULER, Sampler.LCM, None})


def _flops_a_second(rate: CardRate) -> float:
    return rate.tflops * 1e12 * rate.efficiency


def _bytes_a_second(rate: CardRate) -> float:
    return rate.bus_gb_s * 1e9 * BUS_EFFICIENCY


def _megapixels(spec: ClipSpec) -> float:
    return spec.width * spec.height / 1e6


@cache
def prior_version(family: str, kind: str) -> str:
    """Short hash of what is expected of `family` on `kind`: of times of a few clips, whatever they follow from.

    Empty for an unknown family.
    """
    if (known := FAMILIES.get(family)) is None:
        return ""
    figures: list[object] = [
        footprint_version(family),
        expected_start(ClipPart.FIRST, family),
        expected_start(ClipPart.LOAD, family),
        expected_start(ClipPart.GAP, family),
    ]
    for side, frames, step_cache in ((256, 9, 1), (512, 17, 2)):
        probe = ClipSpec(
            family=family,
            revision=known.revision,
            prompt="-",
            resolution_class=ResolutionClass(f"{side}p"),
            width=side,
            height=side,
            frames=frames,
            fps=8,
            steps=10,
            guidance=2.0,
            seed=0,
            step_cache=step_cache,
        )
        for layout in known.layouts:
            figures += [expected(probe, kind, layout), expected_phases(probe, kind, layout)]
    # Parts are spelled as they always were here: in another spelling a farm would forget all that it has measured.
    text = repr(figures).replace("<ClipPart.", "<Part.")
    # Libraries of mathematics differ in the last digits.
    digits = re.sub(r"\d+\.\d+(e-?\d+)?", lambda found: f"{float(found[0]):.6g}", text)
    return hashlib.sha256(digits.encode()).hexdigest()[:16]
