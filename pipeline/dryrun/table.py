"""Footprint tables: lines fitted to dry runs, and how far the lines are from other dry runs."""

from __future__ import annotations

import hashlib
import json
import math
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.clips.clip import ResolutionClass
from pipeline.dryrun.run import ALL_THERE, DryModel, DryRun, StageRun, clip_of
from pipeline.families import Family, Stage, size_for
from pipeline.families.layouts import Layout
from pipeline.memory.footprint import decode_of, flops_per_step, footprint, latent_frames
from pipeline.memory.tiles import largest_tile
from pipeline.models.build import configs_of
from pipeline.models.hooks.streaming import streamed_bytes
from pipeline.placing import replace_if

#: What lines are fitted to: the largest and the smallest class and one between, and one size that is no square.
FIT_CLASSES = (ResolutionClass.P256, ResolutionClass.P512, ResolutionClass.P1024)
FIT_FRAMES = (8, 16, 32)

#: Terms of a step's operations, as powers of pixels and latent frames: convolutions and feed-forward layers; attention
#: in space, in time and in both; what is done once a clip or once a frame whatever its size.
_TERMS = ((1, 1), (2, 1), (1, 2), (2, 2), (1, 0), (0, 1), (0, 0))
#: What every table that was written here says of its source first.
_SOURCE = "clipmill footprint "
_HALF = {"decode_half": True}
#: A fit whose worst point is off by less is not given a second line.
_GOOD = 0.01


@dataclass(frozen=True, kw_only=True)
class Point:
    """One stage of one dry run."""

    pixels: int
    #: Frames as the stage's line counts them.
    frames: int
    bytes: int
    where: str


def allowed_frames(family: Family, wanted: Iterable[int]) -> list[int]:
    """The nearest frame counts, upwards, that the family can render."""
    found = []
    for count in wanted:
        near = next((n for n in range(count, count + family.frame_rule.multiple) if family.frame_rule.allows(n)), None)
        if near is not None and near not in found:
            found.append(near)
    return found


def dtype_of(family: Family) -> torch.dtype:
    """What a family's cards compute in: half precision on real ones, float32 on the emulated ones of small networks."""
    dtype: torch.dtype = torch.float32 if family.repo is None else getattr(torch, family.half)
    return dtype


def configs_hash(family: Family) -> str:
    """SHA-256 (hex) of the configurations of the family's networks."""
    configs = configs_of(family)
    content = {c.name: [c.cls.rpartition(".")[2], configs[c.name]] for c in family.components if c.stage is not None}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def measure(family: Family, tell: Callable[[str], None] = lambda _text: None) -> dict[str, Any]:
    """The family's footprint table, from dry runs of its networks; as JSON has it."""
    model = DryModel(family, dtype_of(family))
    encode: list[Point] = []
    reencode: list[Point] = []
    denoise: dict[str, list[Point]] = {}
    convolved: dict[str, list[Point]] = {}
    operations: list[tuple[int, int, int]] = []
    # What weights take is known exactly; the runs are for what is there besides.
    whole = [layout.model_copy(update=ALL_THERE) for layout in family.layouts]
    by_switches = {layout.denoise_switches: layout for layout in whole}
    sizes = [size_for(cls, 1.0, family.stride) for cls in FIT_CLASSES]
    sizes.append(size_for(ResolutionClass.P512, 16 / 9, family.stride))
    for (width, height), frames in product(sizes, allowed_frames(family, FIT_FRAMES)):
        count = latent_frames(family, frames)
        for switches, layout in by_switches.items():
            run = model.run(width, height, frames, layout, frozenset({Stage.ENCODE, Stage.DENOISE}))
            denoise.setdefault(switches, []).append(_point(run, Stage.DENOISE, count))
            convolved.setdefault(switches, []).append(_convolution(run.stages[Stage.DENOISE], run.pixels, count))
            tell(f"{width}×{height} × {frames} frames, {switches}: {run.seconds:.1f} s")
        encode.append(_point(run, Stage.ENCODE, frames))
        convolved.setdefault("encode", []).append(_convolution(run.stages[Stage.ENCODE], run.pixels, frames))
        operations.append((width * height, count, run.stages[Stage.DENOISE].flops))
        if family.refinable and (width, height) in sizes[:2]:
            found = model.reencode(width, height, frames)
            reencode.append(Point(pixels=width * height, frames=frames, bytes=found.peak_bytes, where=found.where))
            convolved.setdefault("reencode", []).append(_convolution(found, width * height, frames))
    most = max(allowed_frames(family, FIT_FRAMES))
    decoded = _measure_decode(model, sizes, most, convolved, tell)
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers"))
    return {
        "family": family.name,
        "dtype": model.dtype,
        "configs": configs_hash(family),
        "source": f"{_SOURCE}{family.name} --write; {versions}",
        "weights": {stage.value: count for stage, count in model.weights.items()},
        "streamed": {
            stage.value: sum(map(streamed_bytes, model.engine.parts.of(stage)))
            for stage in (Stage.ENCODE, Stage.DENOISE)
        },
        "encode": fit_lines(encode),
        "denoise": {switches: fit_lines(points) for switches, points in denoise.items()},
        **decoded,
        "reencode": fit_lines(reencode) if reencode else [],
        "latents": model.latents_bytes(*sizes[0], most) / math.prod(sizes[0]) / latent_frames(family, most),
        "flops": fit_operations(operations),
        "convolutions": {where: fit_lines(points) for where, points in convolved.items()},
    }


def _measure_decode(
    model: DryModel,
    sizes: Sequence[tuple[int, int]],
    most: int,
    convolved: dict[str, list[Point]],
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Measure decoding: lines as declared and in float32, bytes of a blended frame, operations; fills `convolved`."""
    family = model.family
    whole: list[Point] = []
    single: list[Point] = []
    halved: list[Point] = []
    operations: list[float] = []
    overflows, halves = model.half_decoder, any(known.decode_half for known in family.layouts)
    counts = sorted({layout.decode_frames for layout in family.layouts} | {1, 2})
    for (width, height), together in product(sizes, counts):
        layout, latents = Layout(decode_frames=together), model.latents_bytes(width, height, most)
        run = model.run(width, height, most, layout, frozenset({Stage.DECODE}))
        pixels, at_once = width * height, min(together, most)
        whole.append(_decode_point(run.stages[Stage.DECODE], pixels, at_once, latents))
        convolved.setdefault("decode", []).append(_convolution(run.stages[Stage.DECODE], pixels, at_once))
        if overflows:
            again = model.decode_single(width, height, most, layout)
            single.append(_decode_point(again, pixels, at_once, latents))
            convolved.setdefault("decode_single", []).append(_convolution(again, pixels, at_once))
        if halves:
            rounded = model.run(width, height, most, layout.model_copy(update=_HALF), frozenset({Stage.DECODE}))
            halved.append(_decode_point(rounded.stages[Stage.DECODE], pixels, at_once, latents))
            convolved.setdefault("decode_half", []).append(_convolution(rounded.stages[Stage.DECODE], pixels, at_once))
        operations.append(run.stages[Stage.DECODE].flops / (pixels * model.decoded_frames(layout, most)))
        tell(f"{width}×{height}, {together} decoded together: {run.seconds:.1f} s")
    lines = fit_lines(whole)
    canvas, blended = [0.0], [0.0]
    # Of a decoder in half precision both are the same: frames are blended in float32.
    tiled = [known.model_copy(update={"decode_half": False}) for known in family.layouts if known.decode_tile]
    layouts = {_decoding(known): known for known in tiled}.values()
    for (width, height), layout in product(sizes, layouts):
        tile = largest_tile(width, height, layout, family.pixels_per_latent)
        if tile == width * height:
            continue
        together = min(layout.decode_frames, most)
        run = model.run(width, height, most, layout, frozenset({Stage.DECODE}))
        found = _decode_point(
            run.stages[Stage.DECODE],
            tile,
            together,
            model.latents_bytes(width, height, most),
        )
        besides = found.bytes - max(_at(line, found) for line in lines)
        if found.where:
            canvas.append(besides / (width * height * together))
        elif besides > _GOOD * found.bytes:
            # In no module, and not what a tile takes: what is there when all tiles are done.
            blended.append(found.bytes / (width * height * together))
        tell(f"{width}×{height}, {together} decoded together in tiles of {layout.decode_tile}: {run.seconds:.1f} s")
    return {
        "decode": lines,
        "decode_single": fit_lines(single) if single else [],
        **({"decode_half": fit_lines(halved), "half_weights": model.half_weights} if halved else {}),
        "canvas": math.ceil(max(canvas) * 1e4) / 1e4,
        "blended": math.ceil(max(blended) * 1e4) / 1e4,
        "decode_flops": sum(operations) / len(operations),
    }


def _decode_point(found: StageRun, pixels: int, frames: int, latents_bytes: int) -> Point:
    return Point(pixels=pixels, frames=frames, bytes=found.peak_bytes - latents_bytes, where=found.where)


def write(family: Family, table: Mapping[str, Any]) -> Path:
    """Write a table into the package, whole or not at all, in place of the family's earlier one; returns where.

    Raises `FileExistsError` where what stands there is no table that was written here, and leaves it as it was.
    """
    import pipeline.memory

    path = Path(pipeline.memory.__file__).parent / "footprints" / f"{family.name}.json"
    temporary = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        temporary.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
        replace_if(temporary, path, lambda there: _is_table(there, family))
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _is_table(file: Path, family: Family) -> bool:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return found["family"] == family.name and str(found["source"]).startswith(_SOURCE)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def fit_lines(points: Sequence[Point]) -> list[dict[str, float]]:
    """Lines whose largest is at every point at least what was found there, and little more.

    One line where one is close. Else one for each module that the peak was in: at every module the live bytes are
    linear in the size, so their largest is what the peak is.
    """
    single = _fit(points)
    if max(_at(single, point) / point.bytes for point in points) - 1 <= _GOOD:
        return [single]
    places = sorted({point.where for point in points})
    lines = [_fit([point for point in points if point.where == place]) for place in places]
    worst = max(max(_at(line, point) for line in lines) / point.bytes for point in points) - 1
    return lines if worst < max(_at(single, point) / point.bytes for point in points) - 1 else [single]


def fit_operations(operations: Sequence[tuple[int, int, int]]) -> dict[str, float]:
    """Coefficients of `_TERMS` for (pixels, latent frames, operations), those that are not there left out."""
    columns = [[float(p**a * f**b) for p, f, _ in operations] for a, b in _TERMS]
    found = _positive(np.array(columns).T, np.array([float(n) for *_, n in operations]))
    return {f"{a},{b}": float(c) for (a, b), c in zip(_TERMS, found, strict=True) if c > 0}


def check(
    family: Family,
    classes: Iterable[ResolutionClass],
    frames: Iterable[int],
    aspects: Iterable[float],
    layouts: Iterable[Layout],
) -> Iterator[dict[str, Any]]:
    """Rows of stage, predicted and dry-run bytes (weights included), and the relative error of the prediction.

    Layouts that differ in nothing the dry run sees are checked once: whether weights stay is no matter of activations.
    """
    model = DryModel(family, dtype_of(family))
    resident = sum(model.weights.values())
    # With the decoder in half precision.
    rounded = resident - model.weights[Stage.DECODE] + model.half_weights
    distinct = list({(each.denoise_switches, _decoding(each)): each for each in layouts}.values())
    for cls, count, aspect in product(classes, allowed_frames(family, frames), aspects):
        width, height = size_for(cls, aspect, family.stride)
        clip = clip_of(family, width, height, count)
        denoised: set[str] = set()
        decoded: set[tuple[int, int, int, bool]] = set()
        for layout in (each.model_copy(update=ALL_THERE) for each in distinct):
            stages = {Stage.ENCODE} if not denoised else set()
            if layout.denoise_switches not in denoised:
                stages.add(Stage.DENOISE)
            if _decoding(layout) not in decoded:
                stages.add(Stage.DECODE)
            denoised.add(layout.denoise_switches)
            decoded.add(_decoding(layout))
            run = model.run(width, height, count, layout, frozenset(stages))
            predicted = footprint(clip, layout)
            # Without the retry, which is checked apart.
            figures = {**predicted.tensors, Stage.DECODE: decode_of(family, clip.size, count, layout)}
            rows = [
                (
                    stage.value,
                    figures[stage],
                    run.stages[stage],
                    rounded if stage is Stage.DECODE and layout.decode_half else resident,
                    run.seconds,
                )
                for stage in run.stages
            ]
            if Stage.DECODE in stages and model.half_decoder:
                started = time.perf_counter()
                again = model.decode_single(width, height, count, layout)
                most = decode_of(family, clip.size, count, layout, single=True)
                held = resident + model.weights[Stage.DECODE]
                rows.append(("float32", most, again, held, time.perf_counter() - started))
            for name, expected, found, held, seconds in rows:
                operations = flops_per_step(family, width * height, count)
                yield {
                    "class": cls.value,
                    "width": width,
                    "height": height,
                    "frames": count,
                    "layout": str(layout),
                    "stage": name,
                    "predicted_bytes": expected,
                    "dry_run_bytes": held + found.peak_bytes,
                    "error": expected / (held + found.peak_bytes) - 1,
                    # Weights are the same on both sides and would hide it.
                    "activation_error": (expected - held) / found.peak_bytes - 1,
                    "where": found.where,
                    "flops_error": operations / found.flops - 1 if name == Stage.DENOISE else 0.0,
                    "seconds": seconds,
                }


def _decoding(layout: Layout) -> tuple[int, int, int, bool]:
    return layout.decode_frames, layout.decode_tile, layout.decode_overlap, layout.decode_half


def _point(run: DryRun, stage: Stage, frames: int) -> Point:
    found = run.stages[stage]
    return Point(pixels=run.pixels, frames=frames, bytes=found.peak_bytes, where=found.where)


def _convolution(found: StageRun, pixels: int, frames: int) -> Point:
    return Point(pixels=pixels, frames=frames, bytes=found.convolution_bytes, where="")


def _at(line: Mapping[str, float], point: Point) -> float:
    per_pixel = line["per_pixel"] + line["per_pixel_frame"] * point.frames
    return line["fixed"] + per_pixel * point.pixels


def _fit(points: Sequence[Point]) -> dict[str, float]:
    """The line of least squared relative error, lifted until no point lies above it: rounding errs towards refusing."""
    # Where points differ in size or frames only, nothing tells what grows with the other.
    sized = len({point.pixels for point in points}) > 1
    framed = len({point.frames for point in points}) > 1
    rows = np.array([[1.0, p.pixels * sized, p.pixels * p.frames * framed] for p in points])
    found = _positive(rows, np.array([float(point.bytes) for point in points]))
    lift = max(1.0, max(point.bytes / float(row @ found) for row, point in zip(rows, points, strict=True)))
    fixed, per_pixel, per_pixel_frame = (float(np.ceil(c * lift * 1e4) / 1e4) for c in found)
    return {"fixed": fixed, "per_pixel": per_pixel, "per_pixel_frame": per_pixel_frame}


def _positive(rows: np.ndarray[Any, Any], values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Coefficients ≥ 0 of least squared relative error: negative ones are taken out one after the other."""
    kept = [column for column in range(rows.shape[1]) if rows[:, column].any()]
    weighted = rows / values[:, None]
    while True:
        scale = np.abs(weighted[:, kept]).max(axis=0)
        solved = np.linalg.lstsq(weighted[:, kept] / scale, np.ones(len(values)), rcond=1e-10)[0] / scale
        # What never makes a part in a million of any value is rounding.
        share = (weighted[:, kept] * solved).max(axis=0)
        if (share >= 1e-6).all():
            break
        kept.pop(int(np.argmin(share)))
    found = np.zeros(rows.shape[1])
    found[kept] = solved
    return found
