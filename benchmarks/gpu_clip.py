"""One clip of every family at full size with random weights: time, memory, and how exact exact is on a real card.

    python benchmarks/gpu_clip.py [--family NAME ...] [--class 512p] [--steps 10] [--check] [--json FILE]

Needs an NVIDIA GPU; without one it says so and exits 2 (`--tiny` runs the small networks on the CPU instead, to try the
script). Networks are built from their published configurations on the card itself, so nothing is downloaded; random
weights prove speed and memory, never a picture. For each family: a clip of the native frame count, seconds, seconds a
step, predicted and measured peak, whether all frames are finite, the PSNR of a clip that was stopped half way and
resumed against the uninterrupted one, and the PSNR of every other layout that fits.

Aims: frames finite; a resumed clip equal to the uninterrupted one (same card, same layout).
"""

from __future__ import annotations

import gc
import math
import sys
import time
from typing import Any

import numpy as np
from PIL import Image
from report import Aim, Report, parser

from pipeline.clip import ClipSpec, ResolutionClass, Tier
from pipeline.families import FAMILIES, Family, size_for
from pipeline.footprint import footprint
from pipeline.similarity import psnr


def standard_clip(family: Family, resolution_class: ResolutionClass, steps: int) -> ClipSpec:
    """A clip of the family's standard tier at 16:9, with few steps."""
    tier = family.tiers[Tier.STANDARD]
    width, height = size_for(resolution_class, 16 / 9, family.stride, family.native_sizes)
    return ClipSpec(
        family=family.name,
        revision=family.revision,
        prompt="camera slowly panning left",
        resolution_class=resolution_class,
        width=width,
        height=height,
        frames=tier.frames,
        fps=tier.fps,
        steps=steps,
        guidance=family.guidance,
        seed=7,
        sampler=family.samplers[0],
    )


def measure(family: Family, spec: ClipSpec, device: Any) -> dict[str, Any]:
    """Render whole, resumed, and in the other layouts."""
    from pipeline.models.build import build

    began = time.perf_counter()
    model = build(family, device)
    loaded_s = time.perf_counter() - began
    still = Image.fromarray(np.random.default_rng(0).integers(0, 256, (72, 128, 3), dtype=np.uint8)).resize((1280, 720))
    times: list[float] = []
    kept: dict[int, bytes] = {}
    half = spec.total_steps // 2

    def watch(done: int, _total: int, snapshot: Any) -> None:
        times.append(time.perf_counter())
        if done == half and snapshot is not None:
            kept[done] = snapshot()

    def ignore(_done: int, _total: int, _snapshot: Any) -> None:
        pass

    fastest = family.layouts[0]
    # Kernels are chosen, and memory is reserved, by a first clip.
    model.render(still, spec.model_copy(update={"steps": 1}), fastest, ignore)
    device.reset_peak()
    began = time.perf_counter()
    whole = model.render(still, spec, fastest, watch)
    seconds = time.perf_counter() - began
    steps = np.diff(times)
    found: dict[str, Any] = {
        "size": f"{spec.width}x{spec.height}x{spec.frames}, {spec.steps} steps",
        "built_s": round(loaded_s, 2),
        "clip_s": round(seconds, 3),
        "step_s": round(float(np.median(steps)), 4) if len(steps) else None,
        "measured_gib": round(device.peak_bytes() / 2**30, 3),
        "predicted_gib": round(footprint(spec, fastest).peak_bytes / 2**30, 3),
        "checkpoint_bytes": len(kept.get(half, b"")),
        "spread": round(float(whole.astype(float).std()), 2),
    }
    resumed = model.render(still, spec, fastest, ignore, kept[half])
    found["resumed_psnr_db"] = psnr(whole, resumed)
    for layout in family.layouts[1:]:
        device.reset_peak()
        try:
            began = time.perf_counter()
            other = model.render(still, spec, layout, ignore)
        except Exception as error:
            found[f"{layout}"] = f"{type(error).__name__}: {str(error)[:120]}"
            continue
        found[f"{layout}"] = {
            "psnr_db": round(psnr(whole, other), 2),
            "clip_s": round(time.perf_counter() - began, 3),
            "measured_gib": round(device.peak_bytes() / 2**30, 3),
            "predicted_gib": round(footprint(spec, layout).peak_bytes / 2**30, 3),
        }
    model.unload()
    gc.collect()
    found["left_bytes"] = device.used_bytes()
    return found


def main() -> int:
    """Measure each family in turn."""
    options = parser(__doc__)
    options.add_argument("--family", action="append", help="default: every family with weights to fetch")
    options.add_argument("--class", dest="resolution_class", type=ResolutionClass, default=ResolutionClass.P512)
    options.add_argument("--steps", type=int, default=10)
    options.add_argument("--tiny", action="store_true", help="small networks on the CPU, to try the script")
    chosen = options.parse_args()
    import torch

    if not chosen.tiny and not torch.cuda.is_available():
        print(
            "no CUDA card here: run this where `nvidia-smi` lists one, or try the script with --tiny", file=sys.stderr
        )
        return 2
    from pipeline.models.devices import CudaDevice, HostDevice

    names = chosen.family or [f.name for f in FAMILIES.values() if f.components and bool(f.repo) != chosen.tiny]
    device = HostDevice() if chosen.tiny else CudaDevice(0)
    figures: dict[str, Any] = {"card": "host memory" if chosen.tiny else torch.cuda.get_device_name(0)}
    aims = []
    for name in names:
        family = FAMILIES[name]
        found = measure(family, standard_clip(family, chosen.resolution_class, chosen.steps), device)
        figures[name] = found
        # `render` raises where a frame is not finite, so that it came back is the proof.
        psnr_db = found["resumed_psnr_db"]
        aims.append(Aim(name=f"{name}: resumed differs", value=0.0 if psnr_db == math.inf else 1.0, at_most=0.0))
        aims.append(Aim(name=f"{name}: bytes left on the card", value=float(found["left_bytes"]), at_most=0.0))
        found["resumed_psnr_db"] = "equal" if psnr_db == math.inf else round(psnr_db, 2)
    return Report(name="gpu_clip", figures=figures, aims=aims).finish(chosen)


if __name__ == "__main__":
    sys.exit(main())
