"""Predicted peak bytes and operations of a clip per stage, in closed form, without torch.

    stage = weights on the card + largest of (fixed + per pixel × pixels + per pixel and frame × pixels × frames)

Coefficients lie in `pipeline/footprints/<family>.json`, fitted to dry runs of the real networks by
`clipmill footprint FAMILY --write`. They count tensors; what CUDA takes besides is estimated apart, by `cuda_share`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from pipeline.clip import ClipSpec
from pipeline.families import Family, Line, MemoryModel, Stage, family_named
from pipeline.layouts import RESIDENT, Layout


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Peak bytes of tensors on the card per stage, weights included."""

    encode_bytes: int
    denoise_bytes: int
    decode_bytes: int

    @property
    def peak_bytes(self) -> int:
        """The largest stage: what a card must have free before the clip starts."""
        return max(self.encode_bytes, self.denoise_bytes, self.decode_bytes)

    @property
    def stages(self) -> Mapping[str, int]:
        """The three by name."""
        return {"encode": self.encode_bytes, "denoise": self.denoise_bytes, "decode": self.decode_bytes}


@dataclass(frozen=True, kw_only=True)
class CudaModel:
    """What a card holds besides tensors; see `footprints/cuda.json`."""

    #: The process's context and loaded kernels.
    context_bytes: int
    #: Workspaces that cuBLAS and cuDNN keep.
    workspace_bytes: int
    #: Share of the tensors' bytes that the caching allocator cannot use: blocks are rounded to 512 bytes and cut from
    #: segments of 2 MiB and more, whose rests lie idle.
    fragmentation: float
    source: str


NOTHING = Footprint(encode_bytes=0, denoise_bytes=0, decode_bytes=0)


@cache
def memory_model(family: Family) -> MemoryModel | None:
    """The family's coefficients: its own, else its table; None for a family that uses no card memory.

    Raises `FileNotFoundError` for a family with networks and no table: write it by `clipmill footprint`.
    """
    if family.memory is not None or not family.needs_torch:
        return family.memory
    return parse(_read(family.name))


@cache
def cuda_model() -> CudaModel:
    """What CUDA takes besides tensors."""
    return CudaModel(**_read("cuda"))


def cuda_share(tensor_bytes: int) -> int:
    """Estimated bytes that CUDA takes besides tensors whose peak is `tensor_bytes`; 0 where there are none."""
    if tensor_bytes == 0:
        return 0
    model = cuda_model()
    return model.context_bytes + model.workspace_bytes + round(model.fragmentation * tensor_bytes)


def parse(table: Mapping[str, Any]) -> MemoryModel:
    """The model a table holds. Raises `KeyError` or `TypeError` for what is none."""

    def lines(found: Iterable[Mapping[str, float]]) -> tuple[Line, ...]:
        return tuple(Line(**line) for line in found)

    return MemoryModel(
        weights={Stage(stage): count for stage, count in table["weights"].items()},
        streamed={Stage(stage): count for stage, count in table["streamed"].items()},
        encode=lines(table["encode"]),
        denoise={switches: lines(found) for switches, found in table["denoise"].items()},
        decode=lines(table["decode"]),
        latents=table["latents"],
        flops=table["flops"],
        dtype=table["dtype"],
        configs=table["configs"],
        source=table["source"],
    )


@cache
def _footprint(family: Family, pixels: int, frames: int, held: int, layout: Layout) -> Footprint:
    model = memory_model(family)
    if model is None:
        return NOTHING
    if layout.denoise_switches not in model.denoise:
        raise LookupError(
            f"the footprint table of {family.name!r} has no layout {layout.denoise_switches!r}: "
            f"declare it in the family and run `clipmill footprint {family.name} --write`"
        )
    weights = weights_on_card(family, layout)
    clip = latent_frames(family, frames)
    window = latent_frames(family, min(frames, held or frames))

    def largest(lines: Iterable[Line], count: int) -> int:
        return max(line.at(pixels, count) for line in lines)

    encode = largest(model.encode, frames)
    # Of a windowed clip, its latents, their prediction and the noise are there whole.
    denoise = largest(model.denoise[layout.denoise_switches], window) + round(
        3 * model.latents * pixels * (clip - window)
    )
    decode = largest(model.decode, min(frames, layout.decode_frames)) + round(model.latents * pixels * clip)
    return Footprint(
        encode_bytes=weights.encode_bytes + encode,
        denoise_bytes=weights.denoise_bytes + denoise,
        decode_bytes=weights.decode_bytes + decode,
    )


@cache
def weights_on_card(family: Family, layout: Layout) -> Footprint:
    """Bytes of the networks alone that are on the card in each stage; nothing for a family without networks."""
    model = memory_model(family)
    if model is None:
        return NOTHING
    weights = {**model.weights, **model.streamed} if layout.stream_weights else model.weights
    encoders, denoiser, decoder = (weights[stage] for stage in (Stage.ENCODE, Stage.DENOISE, Stage.DECODE))
    stays = 0 if layout.evict_encoders else encoders
    return Footprint(
        # The still is encoded by the decoder's network, so that is there from the start.
        encode_bytes=encoders + decoder + (0 if layout.evict_encoders else denoiser),
        denoise_bytes=stays + denoiser + decoder,
        decode_bytes=stays + (0 if layout.evict_denoiser else denoiser) + decoder,
    )


def latent_frames(family: Family, frames: int) -> int:
    """Latent frames of a clip: the first frame has one of its own."""
    return (frames - 1) // family.frames_per_latent + 1


def footprint(spec: ClipSpec, layout: Layout = RESIDENT) -> Footprint:
    """Predicted peak bytes of `spec` under `layout`: of its base rendering, where that is the larger one."""
    family = family_named(spec.family)
    own = _footprint(family, spec.width * spec.height, spec.frames, spec.window, layout)
    base = spec.base_spec
    if base is None:
        return own
    small = _footprint(family, base.width * base.height, base.frames, base.window, layout)
    return Footprint(
        encode_bytes=max(own.encode_bytes, small.encode_bytes),
        denoise_bytes=max(own.denoise_bytes, small.denoise_bytes),
        decode_bytes=max(own.decode_bytes, small.decode_bytes),
    )


def footprint_of(family: Family, pixels: int, frames: int, layout: Layout = RESIDENT) -> Footprint:
    """The same for any clip of `frames` frames of `pixels` each, all evaluated at once."""
    return _footprint(family, pixels, frames, 0, layout)


def flops_per_step(family: Family, pixels: int, frames: int) -> float:
    """Floating point operations of one denoising step with guidance, a multiplication and an addition being two.

    The layout changes their order and not their number. Without guidance it is half of it. 0 for a family that does
    not denoise.
    """
    model = memory_model(family)
    if model is None:
        return 0.0
    count = latent_frames(family, frames)
    total = 0.0
    for term, coefficient in model.flops.items():
        of_pixels, of_frames = term.split(",")
        total += coefficient * pixels ** int(of_pixels) * count ** int(of_frames)
    return total


def leanest(spec: ClipSpec) -> tuple[Layout, Footprint]:
    """The layout of the family that needs the least memory for `spec`, and that footprint."""
    layouts = family_named(spec.family).layouts
    return min(((layout, footprint(spec, layout)) for layout in layouts), key=lambda pair: pair[1].peak_bytes)


def leanest_of(family: Family, pixels: int, frames: int) -> tuple[Layout, Footprint]:
    """The same for any clip of `frames` frames of `pixels` each."""
    return min(
        ((layout, footprint_of(family, pixels, frames, layout)) for layout in family.layouts),
        key=lambda pair: pair[1].peak_bytes,
    )


def plan(
    spec: ClipSpec, usable_bytes: int, correct: Callable[[Layout, Footprint], int] | None = None
) -> tuple[Layout, Footprint] | None:
    """The fastest layout whose peak fits in `usable_bytes`; None where none fits.

    `correct` gives the bytes to expect of a layout in place of its predicted peak, from what was measured before.
    That is experience and no proof: where nothing fits as corrected, the leanest is tried if it fits as predicted.
    """
    predicted = [(layout, footprint(spec, layout)) for layout in family_named(spec.family).layouts]
    for layout, expected in predicted:
        if (correct(layout, expected) if correct else expected.peak_bytes) <= usable_bytes:
            return layout, expected
    if correct:
        least = min(predicted, key=lambda pair: pair[1].peak_bytes)
        return least if least[1].peak_bytes <= usable_bytes else None
    return None


def leaner(layout: Layout, stage: Stage, family: Family) -> Layout | None:
    """The next layout for a clip whose `stage` took too much memory in `layout`; None where there is none.

    Only switches of that stage change, the cheapest exact one first: of denoising those that the family declares, in
    its order; of every stage networks that it does not need go off the card; decoding fewer frames at once comes last,
    since some decoders mix them. Ends after a few: each call switches one thing on that was off.
    """
    if memory_model(family) is None:
        return None
    if stage is Stage.DENOISE:
        switches = list(dict.fromkeys((known.split_guidance, known.chunk_feed_forward) for known in family.layouts))
        tried = (layout.split_guidance, layout.chunk_feed_forward)
        later = switches[switches.index(tried) + 1 :] if tried in switches else []
        if later:
            return layout.model_copy(update={"split_guidance": later[0][0], "chunk_feed_forward": later[0][1]})
    if not layout.evict_encoders:
        return layout.model_copy(update={"evict_encoders": True})
    if stage is Stage.DECODE:
        if not layout.evict_denoiser:
            return layout.model_copy(update={"evict_denoiser": True})
        if layout.decode_frames > 1:
            return layout.model_copy(update={"decode_frames": layout.decode_frames // 2})
    elif not layout.stream_weights and any(known.stream_weights for known in family.layouts):
        return layout.model_copy(update={"stream_weights": True})
    return None


def _read(name: str) -> dict[str, Any]:
    table = resources.files("pipeline") / "footprints" / f"{name}.json"
    found: dict[str, Any] = json.loads(table.read_text(encoding="utf-8"))
    return found
