"""Measure a family's memory coefficients on an emulated card, and check the closed form against other sizes.

    python benchmarks/footprints.py --family i2vgen-xl-tiny [--write] [--check] [--json FILE]

Small clips give the coefficients; then one-step clips of every class and of 8, 16 and 32 frames are rendered
whole under every layout, and the peak of each is compared with what `pipeline.footprint` says of it.
Aim: every prediction within 5 % of the measured peak.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline import footprint as closed_form
from pipeline.clip import ClipSpec, ResolutionClass
from pipeline.families import FAMILIES, Family, MemoryModel
from pipeline.layouts import RESIDENT, Layout
from pipeline.models.devices import HostDevice
from pipeline.models.i2vgen_xl import I2VGenXL
from pipeline.models.loading import load_model

AIM = 0.05
SPLIT = Layout(split_guidance=True)
#: What the coefficients are fitted to; none of the larger sizes checked below is among them.
FIT_SIZES = ((ResolutionClass.P256, 8), (ResolutionClass.P256, 16), (ResolutionClass.P512, 8))
CHECK_FRAMES = (8, 16, 32)


def clip(family: Family, resolution_class: ResolutionClass, frames: int) -> ClipSpec:
    """A square one-step clip."""
    return ClipSpec(
        family=family.name,
        revision=family.revision,
        prompt="camera slowly panning left",
        resolution_class=resolution_class,
        width=resolution_class.side,
        height=resolution_class.side,
        frames=frames,
        fps=8,
        steps=1,
        guidance=family.guidance,
        seed=0,
    )


def ignore_step(_done: int, _total: int, _snapshot: object) -> None:
    """Progress nobody reads."""


def measure(family: Family, model: I2VGenXL, card: HostDevice, still: Image.Image) -> MemoryModel:
    """The coefficients: of each stage the largest ratio of activation bytes to pixels held at once.

    A line through the origin is what the closed form is; the largest ratio is the lowest such line with no
    measured point above it, so that rounding errs towards refusing.
    """
    weights = card.used_bytes()
    encode, batched, split, decode = [0.0], [0.0], [0.0], [0.0]

    def activations() -> int:
        peak = card.peak_bytes() - weights
        card.reset_peak()
        return peak

    for resolution_class, frames in FIT_SIZES:
        spec = clip(family, resolution_class, frames)
        pixels = spec.width * spec.height
        card.reset_peak()
        conditions = encode(model, still, spec)
        encode.append(activations() / pixels)
        latents = model.denoise(conditions, spec, RESIDENT, ignore_step)
        batched.append(activations() / (pixels * frames))
        del latents
        card.reset_peak()
        latents = model.denoise(conditions, spec, SPLIT, ignore_step)
        split.append(activations() / (pixels * frames))
        del conditions
        card.reset_peak()
        model.decode(latents, RESIDENT)
        decode.append(activations() / pixels)
        del latents
    return MemoryModel(
        weights_bytes=weights,
        encode_per_pixel=round(max(encode), 4),
        denoise_per_pixel_frame=round(max(batched), 4),
        denoise_split_per_pixel_frame=round(max(split), 4),
        decode_per_pixel_frame=round(max(decode), 4),
        source=f"benchmarks/footprints.py --family {family.name} --write; torch {version('torch')}, float32 on the CPU",
    )


def check(family: Family, model: I2VGenXL, card: HostDevice, still: Image.Image) -> list[dict[str, Any]]:
    """Render every class × frame count × layout for one step; predicted and measured peaks."""
    rows = []
    for layout in family.layouts:
        for resolution_class in family.classes:
            for frames in CHECK_FRAMES:
                spec = clip(family, resolution_class, frames)
                predicted = closed_form.footprint(spec, layout).peak_bytes
                card.reset_peak()
                started = time.perf_counter()
                model.render(still, spec, layout, ignore_step)
                measured = card.peak_bytes()
                rows.append(
                    {
                        "resolution_class": resolution_class.value,
                        "frames": frames,
                        "layout": str(layout),
                        "predicted_bytes": predicted,
                        "measured_bytes": measured,
                        "error": predicted / measured - 1,
                        "seconds": time.perf_counter() - started,
                    }
                )
                print(
                    f"{resolution_class.value:>6} × {frames:2}  {layout!s:28} predicted {predicted / 2**20:7.1f} MiB  "
                    f"measured {measured / 2**20:7.1f} MiB  {rows[-1]['error']:+.2%}  {rows[-1]['seconds']:.1f} s",
                    flush=True,
                )
    return rows


def main() -> int:
    """Run; returns the exit status."""
    measured_families = [f.name for f in FAMILIES.values() if f.needs_torch and f.memory is None]
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--family", choices=measured_families, default=measured_families[0])
    parser.add_argument("--write", action="store_true", help="fit the coefficients and write them into the package")
    parser.add_argument("--check", action="store_true", help="exit 1 where a prediction misses its aim")
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

    card = HostDevice()
    with tempfile.TemporaryDirectory() as home:
        model = load_model(family, card, weights_dir=None, home=Path(home), offline=True, on_load=lambda _text: None)
    assert isinstance(model, I2VGenXL)
    still = Image.fromarray(np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8))

    fitted = measure(family, model, card, still)
    print(json.dumps(asdict(fitted), indent=1))
    if arguments.write:
        table = Path(closed_form.__file__).parent / "footprints" / f"{family.name}.json"
        table.write_text(json.dumps(asdict(fitted), indent=2) + "\n", encoding="utf-8")
        print(f"wrote {table.name}")

    rows = check(family, model, card, still)
    worst = max(abs(row["error"]) for row in rows)
    met = worst <= AIM
    print(f"largest error {worst:.2%}, aim at most {AIM:.0%}: {'met' if met else 'MISSED'}")
    if arguments.json:
        figures = {"machine": machine, "fitted": asdict(fitted), "clips": rows, "largest_error": worst, "aim": AIM}
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 1 if arguments.check and not met else 0


if __name__ == "__main__":
    sys.exit(main())
