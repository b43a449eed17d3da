"""What a layout costs in time: bytes over the bus and arithmetic of a whole clip, in closed form, without torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from pipeline.clips.clip import ClipSpec, Upscale
from pipeline.families import Family, Stage, family_named
from pipeline.families.layouts import RESIDENT, Layout
from pipeline.memory.footprint import Footprint, flops_per_step, footprint, latent_frames, memory_model, plan
from pipeline.memory.tiles import decoded_pixels

#: GB/s that weights move at between host and card. A guess: pageable memory over PCIe 4.0 ×16, whose 32 GB/s nobody
#: sees; pinned memory does about 24.
BUS_GB_S = 12.0
#: Share of a step that is lost where guidance is split: two evaluations of half the rows fill a card less well and
#: launch each kernel twice. A guess.
SPLIT_LOSS = 0.01
#: Share of a step that is lost where feed-forward layers do their tokens in chunks, however many. A guess.
CHUNKS_LOSS = 0.01
#: Arithmetic of a step that reuses deep layers, as a share of a whole one, by engine: dry runs at 512p × 16 frames.
CACHED_STEP: Mapping[str, float] = {"i2vgen-xl": 0.15, "svd": 0.074}


@dataclass(frozen=True, kw_only=True)
class FasterLayout:
    """A layout that would be taken before another, if the card had memory for it."""

    layout: Layout
    #: The stage that takes most.
    stage: Stage
    #: Bytes of tensors that it takes, and how many of them there are too few.
    needs_bytes: int
    missing_bytes: int
    #: Share of the clip's time that it would save; None where the card's speed is not known, or where no layout fits.
    #: Not above 0 for an exact layout that stands before a faster one in tiles.
    saves: float | None = None


def why_not_faster(
    spec: ClipSpec,
    usable_bytes: int,
    *,
    tflops: float | None = None,
    bus_gb_s: float = BUS_GB_S,
    correct: Callable[[Layout, Footprint], int] | None = None,
) -> tuple[FasterLayout, ...]:
    """Layouts that `pipeline.memory.footprint.plan` passes over for want of memory, best first; all where none fits.

    `correct` as for `plan`, `tflops` as for `slowdown`.
    """
    planned = plan(spec, usable_bytes, correct)
    chosen = planned[0] if planned else None
    taken = slowdown(spec, chosen, tflops=tflops, bus_gb_s=bus_gb_s) if chosen and tflops else None
    found = []
    for layout in family_named(spec.family).layouts:
        if layout == chosen:
            break
        predicted = footprint(spec, layout)
        needed = correct(layout, predicted) if correct else predicted.peak_bytes
        saves = None
        if taken and tflops:
            saves = 1 - slowdown(spec, layout, tflops=tflops, bus_gb_s=bus_gb_s) / taken
        found.append(
            FasterLayout(
                layout=layout,
                stage=predicted.largest,
                needs_bytes=needed,
                missing_bytes=needed - usable_bytes,
                saves=saves,
            )
        )
    return tuple(found)


def transferred_bytes(spec: ClipSpec, layout: Layout) -> int:
    """Bytes of weights that a whole clip moves between host and card beyond what `RESIDENT` moves (none).

    Of a clip whose still and prompts are seen for the first time, after another clip in the same layout: encodings
    that are cached need no encoders. Streamed networks are counted whole for every evaluation, encoders once for the
    prompt, once for the negative prompt and once for the still of each rendering, though no encoder does all of them.
    """
    family = family_named(spec.family)
    model = memory_model(family)
    if model is None:
        return 0
    encoders, denoiser = model.weights[Stage.ENCODE], model.weights[Stage.DENOISE]
    phases = list(_phases(spec))
    moved = 0
    if layout.decode_half:
        # Placed anew to decode, rounded on the card, and once more, as it is, to encode.
        moved += 2 * model.weights[Stage.DECODE] * (len(phases) if spec.upscale is Upscale.FRAMES else 1)
    if layout.stream_weights:
        # Copied, never copied back: the host keeps its own.
        evaluations = sum(_evaluations(family, phase, layout) * steps for phase, steps in phases)
        return moved + denoiser * evaluations + encoders * (1 + len(phases))
    if layout.evict_encoders:
        moved += encoders * len(phases)
    if layout.evict_encoders or layout.evict_denoiser:
        # It makes room for the encoders of every rendering, or for the decoder at the end, and comes back.
        again = layout.evict_encoders or spec.upscale is Upscale.FRAMES
        moved += denoiser * (len(phases) if again else 1)
    # On to the card; off it the host's own tensors are put back.
    return moved


def clip_flops(spec: ClipSpec, layout: Layout = RESIDENT) -> float:
    """Floating point operations of a whole clip, a multiplication and an addition being two; encoding is left out.

    Steps of the clip and of its base, without guidance at half price, windows with what they share, steps that reuse
    deep layers at `CACHED_STEP`; decoding with the pixels that several tiles decode.
    """
    family = family_named(spec.family)
    return _denoise_flops(family, spec) + _decode_flops(family, spec, layout)


def slowdown(spec: ClipSpec, layout: Layout, *, tflops: float, bus_gb_s: float = BUS_GB_S) -> float:
    """Time of a clip under `layout` over its time under `RESIDENT`, ≥ 1; 1 for a family without arithmetic.

    `tflops`: 10^12 operations a second that the networks reach on the card, which is less than what is printed on it.
    As if weights were copied while nothing computes; streamed ones are copied beside it, so this is the most it takes.
    """
    family = family_named(spec.family)
    resident = clip_flops(spec)
    if not resident:
        return 1.0
    lost = (SPLIT_LOSS if layout.split_guidance and spec.guidance > 1 else 0.0) + (
        CHUNKS_LOSS if layout.chunk_feed_forward > 1 else 0.0
    )
    operations = _denoise_flops(family, spec) * (1 + lost) + _decode_flops(family, spec, layout)
    copying_s = transferred_bytes(spec, layout) / (bus_gb_s * 1e9)
    return max(1.0, (operations + copying_s * tflops * 1e12) / resident)


def _phases(spec: ClipSpec) -> Iterator[tuple[ClipSpec, int]]:
    """The renderings of a clip and the steps of each, its base first."""
    base = spec.base_spec
    if base is not None:
        yield base, base.steps
    yield spec, spec.refined_steps


def _windows(family: Family, spec: ClipSpec) -> tuple[int, int]:
    """(windows a step, frames of each)."""
    if not spec.window or spec.frames <= spec.window:
        return 1, spec.frames
    # As `pipeline.denoising.denoise.window_spans` cuts them, in latent frames.
    whole, window = latent_frames(family, spec.frames), latent_frames(family, spec.window)
    stride = window - spec.window_overlap // family.frames_per_latent
    return 1 + -(-(whole - window) // stride), spec.window


def _evaluations(family: Family, spec: ClipSpec, layout: Layout) -> int:
    """Evaluations of the network in a step."""
    halves = 2 if layout.split_guidance and spec.guidance > 1 else 1
    return _windows(family, spec)[0] * halves


def _denoise_flops(family: Family, spec: ClipSpec) -> float:
    total = 0.0
    for phase, steps in _phases(spec):
        windows, frames = _windows(family, phase)
        step = windows * flops_per_step(family, phase.width * phase.height, frames)
        whole = float(-(-steps // phase.step_cache))
        whole += CACHED_STEP.get(family.engine, 1.0) * (steps - whole)
        total += step * whole * (1.0 if phase.guidance > 1 else 0.5)
    return total


def _decode_flops(family: Family, spec: ClipSpec, layout: Layout) -> float:
    model = memory_model(family)
    if model is None:
        return 0.0
    decoded = [spec]
    if spec.base_spec is not None and spec.upscale is Upscale.FRAMES:
        decoded.append(spec.base_spec)
    return sum(
        model.decode_flops * each.frames * decoded_pixels(each.width, each.height, layout, family.pixels_per_latent)
        for each in decoded
    )
