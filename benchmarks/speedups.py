"""What each exact speed-up of denoising saves, on full-size networks without data: operations, peak bytes, host waits.

    python benchmarks/speedups.py [--family FAMILY …] [--json FILE] [--check]

Of each family one step of a standard clip is run twice on torch's `meta` device: as diffusers' own network does it, and
as it is done here. A step is one that is not the first, so that what is computed once a clip is there already. Peak
bytes are besides the weights. Host waits are operations at which the host waits for a card: values read back, and
tensors copied between them; the wait at the end of a step, which tells its time, is not counted. Times are not
measured: that needs a card (`benchmarks/gpu_clip.py`).

What would be computed once a clip and is not, since it saves less than 0.3 % of a step: Wan's keys and values of the
prompt (printed: operations they save and bytes they take) and its rotation tables; I2VGen-XL's tower over the picture's
latents; SVD's embeddings of frame numbers and of three numbers.

Aims: Wan 1280×704×81 takes 2.70 GiB batched and 1.36 split instead of 6.93 and 3.47; SVD 1024×576×25 does 3.7 % less,
I2VGen-XL 640×384×16 0.6 %; no step waits.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from PIL import Image
from report import Aim, Report, parser

from pipeline.clips.clip import Sampler
from pipeline.dryrun.run import DryModel, clip_of
from pipeline.dryrun.table import dtype_of
from pipeline.families import FAMILIES, Stage
from pipeline.families.layouts import Layout
from pipeline.models.hooks.streaming import AHEAD, streamed_bytes
from pipeline.units import GIB, MIB

#: Width, height and frames of each family's clip.
CLIPS = {"i2vgen-xl": (640, 384, 16), "svd-xt": (1024, 576, 25), "wan2.2-5b": (1280, 704, 81)}
LAYOUTS = {"batched": Layout(), "split": Layout(split_guidance=True)}
#: Peak bytes before and after, in GiB, and the share of operations saved, as the algebra says.
KNOWN_GIB = {("wan2.2-5b", "batched"): (6.93, 2.70), ("wan2.2-5b", "split"): (3.47, 1.36)}
KNOWN_SAVED = {"svd-xt": 0.037, "i2vgen-xl": 0.006}


@dataclass(frozen=True, kw_only=True)
class StepFigures:
    """One step."""

    flops: int
    peak_bytes: int
    waits: int


def measure(model: DryModel, layout: Layout) -> StepFigures:
    """The second of two steps."""
    family = model.family
    # Of those that remember no step, so that peaks are the network's.
    sampler = Sampler.EULER if Sampler.EULER in family.samplers else family.samplers[0]
    spec = clip_of(family, *CLIPS[family.name]).model_copy(update={"steps": 2, "sampler": sampler})
    card, after = model.device, []
    with card.work(), torch.no_grad():
        halves = model.engine.condition(Image.new("RGB", spec.size), spec)
        card.reset_peak()
        model.engine.denoise(halves, spec, layout, lambda *_: after.append((card.flops, card.waits)))
    (flops_1, waits_1), (flops_2, waits_2) = after
    peak = card.peak_bytes() - sum(model.weights.values())
    return StepFigures(flops=flops_2 - flops_1, peak_bytes=peak, waits=waits_2 - waits_1)


def as_in_diffusers(engine: Any) -> None:
    """Let `engine` compute as the stock pipeline does: nothing once a clip, the timestep from the host."""
    here = _wan_by_tokens if engine.family.engine == "wan" else type(engine).evaluate
    engine.hoisting = lambda **_: nullcontext()
    engine.evaluate = lambda latents, timestep, conditions: here(
        engine, latents, torch.zeros((), dtype=timestep.dtype), conditions
    )


def _wan_by_tokens(engine: Any, latents: torch.Tensor, timestep: torch.Tensor, conditions: Any) -> torch.Tensor:
    """One evaluation that is told a timestep for each token, as `WanImageToVideoPipeline` does it."""
    network = engine.parts.transformer
    _, high, wide = network.config.patch_size
    rows, _, frames, height, width = latents.shape
    times = timestep.to(latents.device).expand(rows, frames * (height // high) * (width // wide))
    found: torch.Tensor = network(
        hidden_states=latents.to(engine.dtype),
        timestep=times,
        encoder_hidden_states=conditions["encoder_hidden_states"],
        return_dict=False,
    )[0]
    return found


def left_alone(model: DryModel, step: StepFigures) -> dict[str, Any]:
    """What keeping Wan's keys and values of the prompt would save and take."""
    config = model.engine.parts.transformer.config
    inner = config.num_attention_heads * config.attention_head_dim
    rows, tokens = 2, 512
    multiplied = 2 * rows * tokens * inner * inner * 2 * config.num_layers
    return {
        "wan2.2-5b: keys and values of the prompt, not kept: share of a step": f"{multiplied / step.flops:.2%}",
        "wan2.2-5b: … and MiB they would take": round(rows * tokens * inner * 2 * config.num_layers * 2 / MIB),
    }


def main() -> int:
    """Run; returns the exit status."""
    options = parser(__doc__)
    options.add_argument("--family", nargs="+", choices=list(CLIPS), default=list(CLIPS))
    chosen = options.parse_args()
    figures: dict[str, Any] = {}
    aims: list[Aim] = []
    for name in chosen.family:
        model = DryModel(FAMILIES[name], dtype_of(FAMILIES[name]))
        engine: Any = model.engine
        for switch, layout in LAYOUTS.items():
            as_in_diffusers(engine)
            before = measure(model, layout)
            del engine.hoisting, engine.evaluate
            now = measure(model, layout)
            at = f"{name} {'×'.join(map(str, CLIPS[name]))} {switch}"
            figures[f"{at}: TFLOP a step"] = f"{before.flops / 1e12:.2f} → {now.flops / 1e12:.2f}"
            figures[f"{at}: GiB besides weights"] = f"{before.peak_bytes / GIB:.3f} → {now.peak_bytes / GIB:.3f}"
            figures[f"{at}: host waits a step"] = f"{before.waits} → {now.waits}"
            for line in list(figures.items())[-3:]:
                print(*line, flush=True)
            aims.append(Aim(name=f"{at}: host waits", value=now.waits, at_most=0))
            for found, known in zip((before, now), KNOWN_GIB.get((name, switch), ()), strict=False):
                off = abs(found.peak_bytes / GIB / known - 1)
                aims.append(Aim(name=f"{at}: off {known} GiB", value=off, at_most=0.01))
            if name in KNOWN_SAVED:
                off = KNOWN_SAVED[name] - (1 - now.flops / before.flops)
                aims.append(Aim(name=f"{at}: short of {KNOWN_SAVED[name]:.1%} saved", value=off, at_most=0.0005))
        if name == "wan2.2-5b":
            figures |= left_alone(model, now)
        for stage in (Stage.ENCODE, Stage.DENOISE):
            alone, ahead = (
                sum(streamed_bytes(network, count) for network in engine.parts.of(stage)) / MIB for count in (0, AHEAD)
            )
            figures[f"{name} {stage.value}: MiB of streamed weights on the card"] = f"{alone:.0f} → {ahead:.0f}"
    return Report(name="exact speed-ups", figures=figures, aims=aims).finish(chosen)


if __name__ == "__main__":
    sys.exit(main())
