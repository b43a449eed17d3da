"""What compiling the repeated blocks of the denoisers does: graphs, breaks, kernels of a step, seconds.

    python benchmarks/kernels.py [--family NAME …] [--device cuda] [--steps N] [--json FILE] [--check]

On the CPU the small networks are compiled by g++, whose speed says nothing about a card's; on `cuda` the full-size ones
are, with random weights. Two clips are denoised, eager and compiled. `--check` exits 1 unless every bucket was compiled
once (nothing again in later steps or in the second clip), no graph broke, no bucket fell back, both ways agree, a
compiled step launches fewer kernels than an eager one, and each SiLU is in one kernel with the norm before it, but for
those of timesteps, which have none.

Kernels are those that the card ran; on the CPU, library calls that compute (views and allocations left out) and
functions that the compiler wrote.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch._inductor import config as inductor_config
from torch.profiler import ProfilerActivity, profile

from pipeline.devices.emulated import HostDevice
from pipeline.dryrun.run import clip_of
from pipeline.families import FAMILIES, Family, Stage
from pipeline.families.layouts import RESIDENT
from pipeline.kernels.cache import keep_compiled_under
from pipeline.kernels.kernels import KernelChoice
from pipeline.models.build import build
from pipeline.models.loading import load_model
from pipeline.models.stages.denoising import denoise_from_noise

SMALL = ("i2vgen-xl-tiny", "svd-xt-tiny", "wan2.2-5b-tiny")
FULL = ("i2vgen-xl", "svd-xt", "wan2.2-5b")
#: SiLUs that no block has: after a network's last norm, and in what embeds timesteps, prompts and pictures.
OUTSIDE = 8
#: Relative difference of finished latents, in float32 and in half precision.
CLOSE = {torch.float32: 1e-4, torch.float16: 5e-2, torch.bfloat16: 5e-2}


def model_of(family: Family, device: str, home: Path) -> Any:
    """The small network with its weights, or the full-size one on a card with random ones."""
    if device == "cuda":
        from pipeline.devices.cuda import CudaDevice

        return build(family, CudaDevice(0))
    return load_model(
        family, HostDevice(counted=False), weights_dir=None, home=home, offline=True, on_load=lambda _text: None
    )


#: Library calls that compute nothing: allocations, and other looks at what is there.
_NO_KERNEL = frozenset(
    f"aten::{name}"
    for name in (
        *("_reshape_alias", "_unsafe_view", "alias", "as_strided", "broadcast_to", "chunk", "detach", "empty"),
        *("empty_like", "empty_strided", "expand", "lift_fresh", "movedim", "narrow", "permute", "reshape", "resize_"),
        *("resolve_conj", "resolve_neg", "result_type", "select", "slice", "split", "split_with_sizes", "squeeze", "t"),
        *("transpose", "unbind", "unflatten", "unsqueeze", "view", "_local_scalar_dense", "item", "is_nonzero"),
    )
)


def kernels_of(events: Iterable[Any]) -> list[str]:
    """Names of the kernels that a profile saw: those of the card, or where there is none those of the CPU."""
    events = list(events)
    found = [event.name for event in events if str(event.device_type).endswith("CUDA")]
    return found or [
        event.name
        for event in events
        if ("_fused_" in event.name)
        or (
            event.name.startswith("aten::")
            and event.name not in _NO_KERNEL
            and not any(child.name not in _NO_KERNEL for child in event.cpu_children)
        )
    ]


class Steps:
    """Times the steps of a clip, and counts the kernels of its last one."""

    def __init__(self, steps: int, device: str) -> None:
        self.seconds: list[float] = []
        self.operations: dict[str, int] = {}
        self._steps, self._last = steps, time.monotonic()
        kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
        self._profile: Any = profile(activities=kinds)

    def __call__(self, done: int, _total: int, _snapshot: Any) -> None:
        """After a step."""
        self.seconds.append(time.monotonic() - self._last)
        if done == self._steps - 1:
            self._profile.__enter__()
        if done == self._steps:
            self._profile.__exit__(None, None, None)
            kernels = kernels_of(self._profile.events() or ())
            silu = [name for name in kernels if "silu" in name]
            with_norm = [name for name in silu if "norm" in name]
            self.operations = {
                "kernels": len(kernels),
                "silu_with_norm": len(with_norm),
                "silu_alone": len(silu) - len(with_norm),
            }
        self._last = time.monotonic()


def measured(family: Family, device: str, steps: int, home: Path) -> dict[str, Any]:
    """Two clips of one bucket, by both kinds of kernels."""
    model = model_of(family, device, home)
    # On a card 512p and a clip's usual frames; for a CPU as little as there can be.
    (width, height), frames = ((960, 544), 25) if device == "cuda" else ((128, 64), max(3, family.frame_rule.minimum))
    frames = next(count for count in range(frames, frames + 8) if family.frame_rule.allows(count))
    width, height = (side // family.stride * family.stride for side in (width, height))
    clip = clip_of(family, width, height, frames).model_copy(update={"steps": steps})
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (clip.height, clip.width, 3), dtype=np.uint8))
    found: dict[str, Any] = {"family": family.name, "clip": f"{clip.width}×{clip.height}×{clip.frames}"}
    latents: dict[KernelChoice, list[torch.Tensor]] = {}
    with torch.no_grad(), model.device.work():
        halves = model.condition(picture, clip)
        for choice in (KernelChoice.EAGER, KernelChoice.COMPILED):
            model.kernels.choice = choice
            runs = [Steps(steps, device) for _ in range(2)]
            latents[choice] = [
                denoise_from_noise(model, halves, clip.model_copy(update={"seed": seed}), RESIDENT, run).float().cpu()
                for seed, run in enumerate(runs)
            ]
            found[str(choice)] = {
                "first_step_s": runs[0].seconds[0],
                "step_s": min(runs[1].seconds[1:-1]),
                **{f"step_{name}": count for name, count in runs[1].operations.items()},
                "kernels": model.kernels.used.told(),
            }
            if choice is KernelChoice.EAGER:
                continue
            found["counts"] = vars(model.kernel_counts)
    found["difference"] = max(
        float((a - b).abs().max() / a.abs().max()) for a, b in zip(*latents.values(), strict=True)
    )
    dtype = next(model.parts.of(Stage.DENOISE)[0].parameters()).dtype
    counts = found["counts"]
    # Residual blocks that a timestep goes into, by a SiLU without a norm.
    network = model.parts.of(Stage.DENOISE)[0]
    found["timesteps"] = sum(getattr(module, "time_emb_proj", None) is not None for module in network.modules())
    found["met"] = (
        found["compiled"]["kernels"]["mode"] == "compiled"
        and (counts["recompiles"], counts["graph_breaks"], counts["fallbacks"]) == (0, 0, 0)
        and counts["compiles"] > 0
        and found["difference"] <= CLOSE[dtype]
        and found["compiled"]["step_kernels"] < found["eager"]["step_kernels"]
        and found["compiled"]["step_silu_alone"] <= found["timesteps"] + OUTSIDE
    )
    return found


def main() -> int:
    """Parse arguments, measure, print, and check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", nargs="+", metavar="NAME", help="default: the small ones, the full ones on a card")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--steps", type=int, default=5, help="of each clip; at least 4")
    parser.add_argument("--check", action="store_true", help="exit 1 where something was not met")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    arguments = parser.parse_args()
    machine = {
        "machine": platform.platform(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "diffusers")},
    }
    print(" ".join(f"{name}={value}" for name, value in machine.items()), flush=True)
    rows = []
    # Functions that the compiler writes for a CPU are seen by a profile only so.
    with tempfile.TemporaryDirectory() as home, inductor_config.patch({"cpp.enable_kernel_profile": True}):
        # Nothing that was compiled before is found, unless the environment names where.
        keep_compiled_under(Path(home) / "cache")
        for name in arguments.family or (FULL if arguments.device == "cuda" else SMALL):
            row = measured(FAMILIES[name], arguments.device, max(4, arguments.steps), Path(home))
            rows.append(row)
            eager, compiled, counts = row["eager"], row["compiled"], row["counts"]
            print(
                f"{name} {row['clip']}: {counts['compiles']} graphs in {counts['compile_seconds']:.1f} s, "
                f"{counts['recompiles']} again, {counts['graph_breaks']} breaks, {counts['fallbacks']} fallbacks; "
                f"kernels a step {eager['step_kernels']} → {compiled['step_kernels']}; "
                f"SiLUs {eager['step_silu_alone']} → {compiled['step_silu_with_norm']} with their norm, "
                f"{compiled['step_silu_alone']} alone (timesteps go into {row['timesteps']} blocks); "
                f"seconds {eager['step_s']:.4f} → {compiled['step_s']:.4f}; "
                f"difference {row['difference']:.1e}: {'met' if row['met'] else 'MISSED'}",
                flush=True,
            )
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "families": rows}, indent=2) + "\n", encoding="utf-8")
    return 1 if arguments.check and not all(row["met"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
