"""How far the closed form of a model's memory is from dry runs of its networks, over classes × frames × aspects.

    python benchmarks/footprints.py --family i2vgen-xl [--write] [--check] [--real] [--json FILE]

`--real` renders one-step clips as well, on the CPU, and compares the prediction with what the tracker of emulated
cards saw: for the small networks. `--check` exits 1 unless every prediction is within 5 % of what was found; what is
compared are the bytes besides the weights, which would hide an error.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipeline.clips.clip import ResolutionClass
from pipeline.devices.emulated import HostDevice
from pipeline.dryrun import table
from pipeline.dryrun.run import clip_of
from pipeline.families import FAMILIES, Family
from pipeline.memory import footprint as closed_form
from pipeline.models.build import build

AIM = 0.05
#: Frames and aspect ratios of the clips whose dry runs the closed form is checked against.
CHECK_FRAMES = (8, 16, 24, 32)
CHECK_ASPECTS = (1.0, 4 / 3, 3 / 4, 16 / 9, 9 / 16)
#: Frames and classes of the clips that are rendered for comparison.
REAL_FRAMES = (8, 16)
REAL_CLASSES = (ResolutionClass.P256, ResolutionClass.P512)


def ignore_step(_done: int, _total: int, _snapshot: object) -> None:
    """Progress nobody reads."""


def render(family: Family) -> Iterator[dict[str, Any]]:
    """Rows of predicted and tracked peak of whole clips, layout by layout."""
    card = HostDevice()
    model = build(family, card, table.dtype_of(family))
    still = Image.fromarray(np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8))
    for layout in family.layouts:
        for resolution_class in REAL_CLASSES:
            for frames in table.allowed_frames(family, REAL_FRAMES):
                side = resolution_class.side
                spec = clip_of(family, side, side, frames)
                model.render(still, spec, layout, ignore_step)
                predicted = closed_form.footprint(spec, layout)
                card.reset_peak()
                started = time.perf_counter()
                # Another picture, so that it is encoded again.
                still = Image.fromarray(255 - np.asarray(still))
                model.render(still, spec, layout, ignore_step)
                memory = closed_form.memory_model(family)
                weights = memory.weights_bytes if memory and not layout.evict_encoders else 0
                measured = card.peak_bytes()
                yield {
                    "class": resolution_class.value,
                    "width": side,
                    "height": side,
                    "frames": frames,
                    "layout": str(layout),
                    "stage": "render",
                    "predicted_bytes": predicted.peak_bytes,
                    "dry_run_bytes": measured,
                    "error": predicted.peak_bytes / measured - 1,
                    "activation_error": (predicted.peak_bytes - weights) / (measured - weights) - 1,
                    "flops_error": 0.0,
                    "seconds": time.perf_counter() - started,
                }


def show(row: dict[str, Any]) -> None:
    """One line of it."""
    print(
        f"{row['class']:>6} {row['width']:>4}×{row['height']:<4} × {row['frames']:2}  "
        f"{row['stage']:8} {row['layout']:52} "
        f"predicted {row['predicted_bytes'] / 2**20:9.1f} MiB  found {row['dry_run_bytes'] / 2**20:9.1f} MiB  "
        f"besides weights {row['activation_error']:+.2%}  {row['seconds']:.1f} s",
        flush=True,
    )


def main() -> int:
    """Run; returns the exit status."""
    with_networks = [family.name for family in FAMILIES.values() if family.components]
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--family", choices=with_networks, default="i2vgen-xl-tiny")
    parser.add_argument("--write", action="store_true", help="fit the coefficients and write them into the package")
    parser.add_argument("--check", action="store_true", help="exit 1 where a prediction misses its aim")
    parser.add_argument("--real", action="store_true", help="render clips too; for small networks")
    parser.add_argument("--frames", type=int, nargs="+", default=list(CHECK_FRAMES), metavar="N")
    parser.add_argument("--aspects", type=float, nargs="+", default=list(CHECK_ASPECTS), metavar="RATIO")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    arguments = parser.parse_args()
    family = FAMILIES[arguments.family]

    machine = {
        "machine": platform.platform(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "diffusers", "transformers", "numpy")},
    }
    print(" ".join(f"{name}={value}" for name, value in machine.items()), flush=True)
    if arguments.write:
        print(f"wrote {table.write(family, table.measure(family, print))}")
        closed_form.reread()

    rows = []
    with torch.no_grad():
        for row in table.check(family, family.classes, arguments.frames, arguments.aspects, family.layouts):
            show(row)
            rows.append(row)
        for row in render(family) if arguments.real else ():
            show(row)
            rows.append(row)
    worst = max(abs(row["activation_error"]) for row in rows)
    whole = max(abs(row["error"]) for row in rows)
    operations = max(abs(row["flops_error"]) for row in rows)
    slowest = max(row["seconds"] for row in rows)
    met = worst <= AIM
    print(
        f"{len(rows)} stages; largest error besides weights {worst:.2%}, with weights {whole:.2%}, of operations "
        f"{operations:.2%}; slowest shape {slowest:.1f} s; aim at most {AIM:.0%}: {'met' if met else 'MISSED'}"
    )
    if arguments.json:
        figures = {"machine": machine, "clips": rows, "largest_error": worst, "aim": AIM}
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 1 if arguments.check and not met else 0


if __name__ == "__main__":
    sys.exit(main())
