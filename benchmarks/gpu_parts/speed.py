"""Steps, whole clips, decoding and resuming: what takes how long, and whether it is the same picture."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import pairwise
from typing import Any

import torch

from gpu_parts import stock
from gpu_parts.bench import MEASURED, SPEED_SHAPES, Bench, difference, off_card, on_card, shape_name
from gpu_parts.cases import Case
from gpu_parts.speed_ups import SpeedUp, applied, known
from pipeline.clips.clip import ClipSpec, Tier
from pipeline.clips.frames import Frames
from pipeline.families import Stage
from pipeline.families.layouts import Layout
from pipeline.kernels.kernels import KernelChoice
from pipeline.memory.footprint import flops_per_step, footprint
from pipeline.models.diffusion import DiffusionModel
from pipeline.models.model import RenderStopped
from pipeline.models.parts import Halves
from pipeline.units import GIB

#: Steps of a run; the first loads kernels and is not counted.
STEPS = 4
#: Seconds of one step of each family at `SPEED_SHAPES` on an H200, estimated, and of one whole decode.
_STEP_S = {"i2vgen-xl": 0.15, "svd-xt": 0.5, "wan2.2-5b": 2.6}
_DECODE_S = {"i2vgen-xl": 1.0, "svd-xt": 2.0, "wan2.2-5b": 9.0}
#: Seconds to put a family's networks on the card.
_PLACING_S = {"i2vgen-xl": 2.0, "svd-xt": 2.0, "wan2.2-5b": 6.0}
#: Families whose speed an aim is read from.
_AIMED = ("i2vgen-xl", "wan2.2-5b")
#: Clips whose steps are short enough to wait for launches, and steps of them: the first three are launched anyway.
_SMALL_SHAPES = {"i2vgen-xl": (256, 256, 16), "svd-xt": (256, 256, 14), "wan2.2-5b": (256, 256, 17)}
_SMALL_STEPS = 16
#: A clip that ends soon, for what is asked of its bits.
_RESUME_SHAPES = {"i2vgen-xl": (512, 512, 16), "svd-xt": (512, 512, 14), "wan2.2-5b": (832, 480, 33)}


# -- steps -------------------------------------------------------------------------------------------------------


def step_cases(bench: Bench) -> list[Case]:
    """For each family: without speed-ups, with each alone, with all, diffusers' own, streamed weights; small clips."""
    found = []
    for name in MEASURED:
        run = _STEP_S[name] * STEPS
        first = True
        present, _ = known(bench.family(name).engine, bench.torch_device)
        for variant, ups in variants(present):
            cost = run + sum(each.prepares_s for each in ups) + (_PLACING_S[name] if first else 0.5)
            first = False
            found.append(
                Case(
                    part="steps",
                    name=f"{name}, {variant}",
                    cost_s=cost,
                    work=partial(ours, bench, name, [each.name for each in ups]),
                    rank=_rank(name, variant, ups),
                )
            )
        found += [
            Case(
                part="steps",
                name=f"{name}, diffusers",
                cost_s=1.2 * run + 1,
                work=partial(diffusers_own, bench, name),
                rank=int(name not in _AIMED),
            ),
            Case(
                part="steps",
                name=f"{name}, streamed",
                cost_s=2 * run + 4,
                work=partial(streamed, bench, name),
                rank=int(name != "wan2.2-5b"),
            ),
        ]
        if bench.torch_device.startswith("cuda"):
            # Compiled for 256p alone. On a CPU nothing waits for launches.
            found.append(
                Case(
                    part="steps",
                    name=f"{name}, small, with CUDA graphs",
                    cost_s=60 + 3 * _SMALL_STEPS * 0.05 + _PLACING_S[name],
                    work=partial(small, bench, name),
                    rank=1 if name == "i2vgen-xl" else 2,
                )
            )
    return found


def _rank(name: str, variant: str, ups: Sequence[SpeedUp]) -> int:
    """Aims are read from what a renderer does by itself; what takes a minute to prepare is tried on Wan first."""
    if variant.startswith("product"):
        return int(name not in _AIMED)
    return 2 if any(each.prepares_s for each in ups) and name != "wan2.2-5b" else 1


def variants(present: Sequence[SpeedUp]) -> list[tuple[str, tuple[SpeedUp, ...]]]:
    """(name, speed-ups that are on), no set of them twice.

    `product` is what a renderer has by itself, `product, set` with the settings that a farm may choose besides.
    """
    product = tuple(each for each in present if each.in_product)
    chosen = tuple(each for each in present if each.in_product or each.setting)
    wanted = [("product", product), ("product, set", chosen), ("plain", ())]
    wanted += [(f"{each.name} alone", (each,)) for each in present]
    wanted.append(("all", tuple(present)))
    found: dict[tuple[SpeedUp, ...], str] = {}
    for name, ups in wanted:
        found.setdefault(ups, name)
    return [(name, ups) for ups, name in found.items()]


def ours(bench: Bench, name: str, names: Sequence[str]) -> dict[str, Any]:
    """Our loop with the speed-ups of `names`, and no other."""
    model, spec = bench.model(name), bench.clip(name, SPEED_SHAPES[name], STEPS)
    _, absent = known(model.family.engine, bench.torch_device)
    halves = conditions(bench, model, spec)
    with applied(model, names):
        times = steps_s(model, halves, spec, fastest(model))
    off_card(model)
    not_here = {each: why for each, why in absent.items() if not why.startswith("not for ")}
    return speed(bench, name, spec, times) | {"on": list(names), "not_here": not_here}


def diffusers_own(bench: Bench, name: str) -> dict[str, Any]:
    """diffusers' own loop, the same networks, size and number of steps."""
    model, spec = bench.model(name), bench.clip(name, SPEED_SHAPES[name], STEPS)
    halves = conditions(bench, model, spec)
    on_card(model)
    # One more, since the end of its last step is not seen.
    times = stock.steps_s(bench, model, halves, spec.model_copy(update={"steps": STEPS + 1}))
    off_card(model)
    return speed(bench, name, spec, times)


def streamed(bench: Bench, name: str) -> dict[str, Any]:
    """The same steps with weights that stay and with weights that pass through the card."""
    model, spec = bench.model(name), bench.clip(name, SPEED_SHAPES[name], STEPS)
    halves = conditions(bench, model, spec)
    lean = {"evict_encoders": True, "split_guidance": True}
    resident = steps_s(model, halves, spec, fastest(model).model_copy(update=lean))
    there = sum(tensor.nbytes for network in model.parts.of(Stage.DENOISE) for tensor in network.parameters())
    through = steps_s(model, halves, spec, fastest(model).model_copy(update={**lean, "stream_weights": True}))
    off_card(model)
    evaluations = 2 if spec.guidance > 1 else 1
    return {
        "resident_step_s": median(resident),
        "streamed_step_s": median(through),
        "slower": median(through) / median(resident) - 1,
        "copied_bytes_a_step": there * evaluations,
    }


def small(bench: Bench, name: str) -> dict[str, Any]:
    """A small clip by eager and by compiled kernels, and recorded; what a graph takes beside torch's memory."""
    model, spec = bench.model(name), bench.clip(name, _SMALL_SHAPES[name], _SMALL_STEPS)
    halves, kernels = conditions(bench, model, spec), model.kernels
    before = kernels.choice, kernels.graphs
    found: dict[str, Any] = {"clip": shape_name(spec)}
    beside: list[int] = []

    def on_step(done: int, total: int, _snapshot: object) -> None:
        ends.append(time.perf_counter())
        if done == total:
            free_bytes, total_bytes = torch.cuda.mem_get_info()
            beside.append(total_bytes - free_bytes - torch.cuda.memory_reserved())

    try:
        for way, choice, graphs in (
            ("eager", KernelChoice.EAGER, False),
            ("compiled", KernelChoice.COMPILED, False),
            ("recorded", KernelChoice.COMPILED, True),
        ):
            kernels.choice, kernels.graphs = choice, graphs
            ends: list[float] = []
            torch.cuda.reset_peak_memory_stats()
            model.denoise(halves, spec, fastest(model), on_step)
            # The last eight: what comes before compiles, looks and records.
            times = [after - earlier for earlier, after in pairwise(ends)][-8:]
            found[way] = {
                "step_s": statistics.median(times),
                "peak_bytes": torch.cuda.max_memory_reserved(),
                "kernels": kernels.used.told(),
            }
    finally:
        kernels.choice, kernels.graphs = before
        off_card(model)
    # Next to what `graph_bytes` of `pipeline/memory/footprints/cuda.json` estimates.
    return found | {"graph_bytes": beside[-1] - beside[-2]}


def conditions(bench: Bench, model: DiffusionModel, spec: ClipSpec) -> Halves:
    """What the clip is conditioned on, encoded on the card."""
    from pipeline.clips.stills import fit_still

    with model.device.work(), torch.no_grad():
        model.residency.lay_out(fastest(model).model_copy(update={"evict_encoders": True}))
        return model.condition(fit_still(bench.still(), spec.size, spec.fit), spec)


def fastest(model: DiffusionModel) -> Layout:
    """The family's first layout, its encoders off the card while it denoises: they are of no use then."""
    return model.family.layouts[0].model_copy(update={"evict_encoders": True})


def steps_s(model: DiffusionModel, halves: Halves, spec: ClipSpec, layout: Layout) -> list[float]:
    """Seconds of each step after the first, which loads kernels; the loop waits for the card after each."""
    ends: list[float] = []
    model.denoise(halves, spec, layout, lambda _done, _total, _snapshot: ends.append(time.perf_counter()))
    return [after - before for before, after in pairwise(ends)]


def median(times: Sequence[float]) -> float:
    """Median of steps after the first counted one, where there are several: caches fill with it."""
    return statistics.median(times[1:] if len(times) > 2 else times)


def speed(bench: Bench, name: str, spec: ClipSpec, times: Sequence[float]) -> dict[str, Any]:
    """Seconds a step, and operations a second of those that the stock network does in it."""
    family = bench.family(name)
    operations = flops_per_step(family, spec.width * spec.height, spec.frames) * (1.0 if spec.guidance > 1 else 0.5)
    return {
        "clip": shape_name(spec),
        "dtype": str(bench.dtype(name)).removeprefix("torch."),
        "step_s": median(times),
        "steps_s": [round(each, 5) for each in times],
        "tflop_a_step": operations / 1e12,
        "tflops": operations / median(times) / 1e12,
    }


# -- clips, decoding, resuming -----------------------------------------------------------------------------------


def clip_cases(bench: Bench) -> list[Case]:
    """A whole clip of each family."""
    return _each("clips", lambda name: clip(bench, name), lambda n: (STEPS + 1) * _STEP_S[n] + 2 * _DECODE_S[n] + 4, 1)


def decode_cases(bench: Bench) -> list[Case]:
    """Decoding by this project and by diffusers."""
    return _each("decode", lambda name: decoding(bench, name), lambda n: 7 * _DECODE_S[n] + 6, 0)


def resume_cases(bench: Bench) -> list[Case]:
    """A clip that was interrupted and went on."""
    return _each("resume", lambda name: resuming(bench, name), lambda n: 4 + _PLACING_S[n], 0)


def _each(part: str, work: Callable[[str], dict[str, Any]], cost: Callable[[str], float], rank: int) -> list[Case]:
    return [Case(part=part, name=name, cost_s=cost(name), work=partial(work, name), rank=rank) for name in MEASURED]


def clip(bench: Bench, name: str) -> dict[str, Any]:
    """Seconds of a clip of a few steps, from the still to frames on the host, and what its tier's steps would take."""
    model, spec = bench.model(name), bench.clip(name, SPEED_SHAPES[name], STEPS)
    layout = model.family.layouts[0]
    short = spec.model_copy(update={"steps": 1})
    # Kernels are chosen, and memory is reserved, by a first clip.
    model.render(bench.still(), short, layout, lambda *_: None)
    model.conditioning.cache = type(model.conditioning.cache)()
    bench.device.reset_peak()
    ends: list[float] = []
    began = time.perf_counter()
    frames = model.render(bench.still(), spec, layout, lambda *_: ends.append(time.perf_counter()))
    ended = time.perf_counter()
    step = median([after - before for before, after in pairwise(ends)])
    tier = model.family.tiers[Tier.STANDARD]
    measured, predicted = bench.device.peak_bytes(), footprint(spec, layout).peak_bytes
    encode, decode = ends[0] - began - step, ended - ends[-1]
    off_card(model)
    return {
        "clip": f"{shape_name(spec)}, {spec.steps} steps",
        "layout": str(layout),
        "clip_s": ended - began,
        "encode_s": encode,
        "step_s": step,
        "decode_s": decode,
        f"computed_for_{tier.steps}_steps_s": encode + tier.steps * step + decode,
        "measured_gib": measured / GIB,
        "predicted_gib": predicted / GIB,
        "spread_of_255": float(frames.astype("float32").std()),
    }


def decoding(bench: Bench, name: str) -> dict[str, Any]:
    """Seconds of both decodings of equal latents, and how the frames differ."""
    model, spec = bench.model(name), bench.clip(name, SPEED_SHAPES[name], 1)
    layout = model.family.layouts[0].model_copy(update={"evict_encoders": True, "evict_denoiser": True})
    generator = torch.Generator("cpu").manual_seed(0)
    latents = torch.randn(1, *model.latent_shape(spec), generator=generator).to(bench.torch_device)
    few = latents[:, :, : max(3, 2 * layout.decode_frames)]
    model.residency.ready(Stage.DECODE, layout)
    pipeline = stock.pipeline_of(model, spec)
    model.decode(few, layout)
    bench.wait()
    began = time.perf_counter()
    mine = model.decode(latents, layout)
    ours_s = time.perf_counter() - began
    stock.decode(model, pipeline, few, layout.decode_frames)
    bench.wait()
    began = time.perf_counter()
    theirs = stock.decode(model, pipeline, latents, layout.decode_frames)
    stock_s = time.perf_counter() - began
    apart = stock.decoders_differ(model, few, layout)
    variants = {
        name: _rounded(bench, model, latents, few, mine, *how) for name, how in _variants(model, layout).items()
    }
    off_card(model)
    figures = {"clip": shape_name(spec), "ours_s": ours_s, "diffusers_s": stock_s, "faster": stock_s / ours_s}
    return figures | {"decoder_differs_by": apart, "frames": difference(mine, theirs), **variants}


def _variants(model: DiffusionModel, layout: Layout) -> dict[str, tuple[Layout, bool]]:
    """Decoders that round otherwise: by name the layout, and whether convolutions lie channels last."""
    found = {"channels_last": (layout, True)}
    if any(known.decode_half for known in model.family.layouts):
        half = layout.model_copy(update={"decode_half": True})
        found |= {"half": (half, False), "half_channels_last": (half, True)}
    return found


def _rounded(
    bench: Bench,
    model: DiffusionModel,
    latents: torch.Tensor,
    few: torch.Tensor,
    exact: Frames,
    layout: Layout,
    channels_last: bool,
) -> dict[str, Any]:
    """Seconds and highest memory of a whole decode in `layout`, and how its frames differ from `exact`."""
    model.residency.ready(Stage.DECODE, layout)
    if channels_last:
        _channels_last(model)
    try:
        # Kernels are chosen by a first one.
        model.decode(few, layout)
        bench.wait()
        bench.device.reset_peak()
        began = time.perf_counter()
        frames = model.decode(latents, layout)
        took = time.perf_counter() - began
        peak = bench.device.peak_bytes()
    finally:
        # Placed anew, the weights are the host's again.
        model.residency.displace(Stage.DECODE)
    return {"s": took, "peak_gib": peak / GIB, "frames": difference(frames, exact)}


def _channels_last(model: DiffusionModel) -> None:
    """Lay the weights of the decoder's convolutions out channels last, on the card; what they give lies so too."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    with torch.no_grad():
        for network in model.parts.of(Stage.DECODE):
            for module in network.modules():
                if isinstance(module, (torch.nn.Conv2d, torch.nn.Conv3d)):
                    module.weight.data = module.weight.data.contiguous(memory_format=formats[module.weight.ndim])


def resuming(bench: Bench, name: str) -> dict[str, Any]:
    """Whether a clip that was interrupted half way and went on from its checkpoint is the uninterrupted one."""
    model, spec = bench.model(name), bench.clip(name, _RESUME_SHAPES[name], STEPS)
    layout = model.family.layouts[0]
    whole = model.render(bench.still(), spec, layout, lambda *_: None)
    again = model.render(bench.still(), spec, layout, lambda *_: None)
    kept: list[bytes] = []

    def leave(done: int, total: int, snapshot: Any) -> None:
        if done == total // 2:
            kept.append(snapshot())
            raise RenderStopped

    with suppress(RenderStopped):
        model.render(bench.still(), spec, layout, leave)
    off_card(model)
    resumed = model.render(bench.still(), spec, layout, lambda *_: None, kept[0])
    off_card(model)
    return {
        "clip": f"{shape_name(spec)}, {spec.steps} steps, left after {spec.steps // 2}",
        "checkpoint_bytes": len(kept[0]),
        "resumed": difference(resumed, whole),
        # Kernels that add in another order each time would show here, and not be the checkpoint's doing.
        "rendered_twice": difference(again, whole),
    }
