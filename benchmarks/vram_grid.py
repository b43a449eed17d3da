"""Predicted against allocated and reserved memory, stage by stage, at full size within budgets of smaller cards.

    python benchmarks/vram_grid.py [--family i2vgen-xl ...] [--budget 8 ...] [--frames 16 ...] [--json FILE] [--check]

Needs an NVIDIA GPU; without one it says so and exits 2 (`--tiny` runs the small network on emulated cards instead, to
try the script). Networks are built at full size with random weights, so nothing is downloaded. A budget stands for a
card of so many GiB: the allocator is held to what such a card would leave it, CUDA's context counted apart, and a clip
is planned and escalated as a renderer does it. Use a card on which nobody else works.

Aims: no stage takes more than predicted with CUDA's share and the margin; median error at most 5 %; no clip that was
admitted fails; I2VGen-XL at 1024p × 16 frames fits a budget of 8 GiB.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from PIL import Image
from report import Aim, Report, parser

from pipeline.admission import margin
from pipeline.clip import ClipSpec, ResolutionClass
from pipeline.emulation import emulated_bytes
from pipeline.families import FAMILIES, Family, Stage, size_for
from pipeline.footprint import Footprint, cuda_share, footprint, leaner, plan
from pipeline.layouts import Layout

GIB = 2**30
BUDGETS_GIB = (8, 12, 16, 24, 40, 80)


@dataclass(frozen=True, kw_only=True)
class StageFigures:
    """One stage of one clip, in bytes."""

    stage: str
    predicted: int
    allocated: int
    reserved: int
    #: What a card must have for it by prediction: CUDA's share and the margin included.
    promised: int
    #: Reserved and CUDA's context.
    taken: int

    @property
    def error(self) -> float:
        """Allocated over predicted, less one."""
        return self.allocated / self.predicted - 1


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One clip in one budget."""

    family: str
    budget_gib: int
    resolution_class: str
    frames: int
    #: Empty where the clip was not admitted.
    layout: str = ""
    #: Layouts that ran out of memory before.
    ooms: int = 0
    done: bool = False
    seconds: float = 0.0
    stages: tuple[StageFigures, ...] = ()


class Budget:
    """A share of the card at hand that stands for a card of `total_bytes`."""

    def __init__(self, total_bytes: int, device: Any, context_bytes: int) -> None:
        self.total_bytes, self.device, self.context_bytes = total_bytes, device, context_bytes

    @property
    def usable_bytes(self) -> int:
        """What a renderer would give to clips."""
        if self.device.torch_device == "cpu":
            return int(self.device.usable_bytes())
        return max(0, self.total_bytes - self.context_bytes - margin(self.total_bytes))

    def reserved_peak(self) -> int:
        """Highest bytes of the allocator since the last reset."""
        if self.device.torch_device == "cpu":
            return int(self.device.peak_bytes())
        import torch

        return int(torch.cuda.max_memory_reserved())

    def promised(self, predicted: int) -> int:
        """Bytes that a stage predicted at `predicted` may take of the card in all."""
        if self.device.torch_device == "cpu":
            return predicted + self.total_bytes // 20
        return predicted + cuda_share(predicted) + margin(self.total_bytes)


@contextmanager
def budgets(sizes: list[int], *, tiny: bool) -> Iterator[list[Budget]]:
    """A budget of each size in GiB; the card's own limit comes back at the end."""
    from pipeline.models.devices import CudaDevice, EmulatedDevice

    if tiny:
        yield [Budget(emulated_bytes(gib * GIB), EmulatedDevice(emulated_bytes(gib * GIB)), 0) for gib in sizes]
        return
    import torch

    torch.ones(1, device="cuda:0").sum().item()
    free, total = torch.cuda.mem_get_info(0)
    context = total - free - torch.cuda.memory_reserved(0)
    try:
        yield [Budget(gib * GIB, CudaDevice(0), context) for gib in sizes if gib * GIB <= total]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, 0)


def limit(budget: Budget) -> None:
    """Hold the allocator to what the budget's card would leave it."""
    if budget.device.torch_device == "cpu":
        return
    import torch

    total = torch.cuda.mem_get_info(0)[1]
    torch.cuda.set_per_process_memory_fraction(min(1.0, (budget.total_bytes - budget.context_bytes) / total), 0)


def clip_of(family: Family, resolution_class: ResolutionClass, frames: int) -> ClipSpec:
    """A square clip in two steps."""
    width, height = size_for(resolution_class, 1.0, family.stride)
    return ClipSpec(
        family=family.name,
        revision=family.revision,
        prompt="camera slowly panning left",
        resolution_class=resolution_class,
        width=width,
        height=height,
        frames=frames,
        fps=8,
        steps=2,
        guidance=family.guidance,
        seed=7,
        sampler=family.samplers[0],
    )


class Peaks:
    """Peaks of each stage: a model tells what it is doing by setting its `stage`."""

    def __init__(self, model: Any, budget: Budget) -> None:
        self._budget = budget
        self._stage = Stage.ENCODE
        self.found: dict[str, tuple[int, int]] = {}
        watcher = self

        def told(_model: Any, stage: Stage) -> None:
            if stage is not watcher._stage:
                watcher.note()
                watcher._stage = stage

        watched = property(lambda _model: watcher._stage, told)
        plain = model.__dict__.pop("stage", None)
        assert plain is not None
        base = getattr(type(model), "_unwatched", type(model))
        model.__class__ = type(base.__name__, (base,), {"stage": watched, "_unwatched": base})
        budget.device.reset_peak()

    def note(self) -> None:
        """Put the peaks since the last call down to the stage that is ending."""
        allocated, reserved = self.found.get(str(self._stage), (0, 0))
        now = (self._budget.device.peak_bytes(), self._budget.reserved_peak())
        self.found[str(self._stage)] = (max(allocated, now[0]), max(reserved, now[1]))
        self._budget.device.reset_peak()


def render(model: Any, spec: ClipSpec, budget: Budget, layout: Layout) -> tuple[dict[str, tuple[int, int]], str]:
    """Peaks by stage, and the stage that ran out of memory; empty where none did."""
    from serve.faults import is_out_of_memory

    still = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).resize((256, 256))
    # Without what an earlier clip encoded: encoding is measured too.
    model.cache = type(model.cache)()
    model.stage = Stage.ENCODE
    peaks = Peaks(model, budget)
    failed = ""
    try:
        model.render(still, spec, layout, lambda *_: None)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        failed = str(model.stage)
    peaks.note()
    model.stage = peaks._stage
    base = type(model)._unwatched
    model.__class__ = base
    model.stage = Stage.ENCODE
    gc.collect()
    budget.device.free_cached()
    return peaks.found, failed


def measure(model: Any, spec: ClipSpec, gib: int, budget: Budget) -> Cell:
    """One clip, admitted and escalated as in a renderer."""
    family = FAMILIES[spec.family]
    cell = Cell(family=family.name, budget_gib=gib, resolution_class=str(spec.resolution_class), frames=spec.frames)
    planned: tuple[Layout, Footprint] | None = plan(spec, budget.usable_bytes)
    if planned is None:
        return cell
    layout, predicted = planned
    ooms, began = 0, time.perf_counter()
    while True:
        found, failed = render(model, spec, budget, layout)
        if not failed:
            break
        ooms += 1
        following = leaner(layout, Stage(failed), family)
        if following is None:
            return replace(cell, layout=str(layout), ooms=ooms)
        layout, predicted = following, footprint(spec, following)
    return replace(
        cell,
        layout=str(layout),
        ooms=ooms,
        done=True,
        seconds=round(time.perf_counter() - began, 2),
        stages=tuple(
            StageFigures(
                stage=stage,
                predicted=count,
                allocated=found[stage][0],
                reserved=found[stage][1],
                promised=budget.promised(count),
                taken=found[stage][1] + budget.context_bytes,
            )
            for stage, count in predicted.stages.items()
            if stage in found
        ),
    )


def aims_of(cells: list[Cell]) -> list[Aim]:
    """The figures with their bounds."""
    stages = [stage for cell in cells for stage in cell.stages]
    errors = [abs(stage.error) for stage in stages]
    found = [
        Aim(
            name="stages above what was promised",
            value=float(sum(stage.taken > stage.promised for stage in stages)),
            at_most=0.0,
        ),
        Aim(name="median error", value=100 * statistics.median(errors) if errors else 100.0, at_most=5.0, unit="%"),
        Aim(
            name="clips admitted that failed",
            value=float(sum(bool(cell.layout) and not cell.done for cell in cells)),
            at_most=0.0,
        ),
    ]
    asked = [
        c for c in cells if (c.family, c.budget_gib, c.resolution_class, c.frames) == ("i2vgen-xl", 8, "1024p", 16)
    ]
    if asked:
        missing = float(not asked[0].done)
        found.append(Aim(name="1024p × 16 frames not done in 8 GiB", value=missing, at_most=0.0))
    return found


def line(cell: Cell) -> str:
    """A cell in words."""
    if not cell.layout:
        return "not admitted"
    stages = ", ".join(
        f"{s.stage} {s.predicted / GIB:.2f}/{s.allocated / GIB:.2f}/{s.reserved / GIB:.2f}" for s in cell.stages
    )
    done = f"{cell.seconds} s" if cell.done else "OUT OF MEMORY"
    return f"{done}, {cell.ooms} OOMs, {cell.layout}: {stages}"


def options() -> argparse.ArgumentParser:
    """Command line."""
    made = parser(__doc__)
    made.add_argument("--family", action="append", help="default: i2vgen-xl")
    made.add_argument("--budget", action="append", type=int, help=f"GiB, again for more (default: {BUDGETS_GIB})")
    made.add_argument("--frames", action="append", type=int, help="again for more (default: 16)")
    made.add_argument("--class", dest="classes", action="append", type=ResolutionClass, help="default: all")
    made.add_argument("--tiny", action="store_true", help="the small network on emulated cards, to try the script")
    return made


def main() -> int:
    """Measure every cell."""
    chosen = options().parse_args()
    import torch

    if not chosen.tiny and not torch.cuda.is_available():
        print(
            "no CUDA card here: run this where `nvidia-smi` lists one, or try the script with --tiny", file=sys.stderr
        )
        return 2
    from pipeline.models.build import build

    cells = []
    sizes = chosen.budget or list(BUDGETS_GIB)
    with budgets(sizes, tiny=chosen.tiny) as found:
        for name in chosen.family or ["i2vgen-xl-tiny" if chosen.tiny else "i2vgen-xl"]:
            family = FAMILIES[name]
            for gib, budget in zip(sizes, found, strict=False):
                limit(Budget(2**62, budget.device, 0))
                model = build(family, budget.device, torch.float32 if chosen.tiny else None)
                # Built on the card itself: off it, so that each layout puts on what it needs.
                for stage in Stage:
                    model._placed.add(stage)
                    model._take_off(stage)
                limit(budget)
                for size in chosen.classes or list(family.classes):
                    for frames in chosen.frames or [16]:
                        cell = measure(model, clip_of(family, size, frames), gib, budget)
                        print(f"{name} {size} × {frames} in {gib} GiB: {line(cell)}", flush=True)
                        cells.append(cell)
                model.unload()
                del model
                gc.collect()
                budget.device.free_cached()
    figures: dict[str, Any] = {
        "card": "emulated" if chosen.tiny else torch.cuda.get_device_name(0),
        "context bytes": found[0].context_bytes if found else 0,
        "clips done": sum(cell.done for cell in cells),
        "clips not admitted": sum(not cell.layout for cell in cells),
        "OOMs on the way": sum(cell.ooms for cell in cells),
    }
    report = Report(name="vram_grid", figures=figures, aims=aims_of(cells))
    if chosen.json:
        figures["cells"] = [asdict(cell) for cell in cells]
    return report.finish(chosen)


if __name__ == "__main__":
    sys.exit(main())
