"""Does a clip that starts from its draft move like it? Against the same clip started from its seed alone.

    python benchmarks/from_draft.py [--model i2vgen-xl-tiny] [--rounds 3] [--check] [--json FILE]

Renders a draft, then the larger clip from that draft at several strengths, and from noise with the same seed. Prints
how each moves in relation to the draft (`motion_correlation`) and how near its frames are (PSNR at the draft's size).
With random weights this shows that the mechanism carries the motion over, and nothing about how a clip looks.

Aim: with latents enlarged, at strength 0.5 and below, the motion is nearer to the draft's than that of the clip from
the seed. Enlarging frames is shown without an aim: it needs an encoder that undoes the decoder, which random weights
do not give.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from PIL import Image
from report import Aim, Report, parser
from similarity import motion_correlation, psnr

from pipeline.clips.clip import BaseClip, ClipSpec, ResolutionClass, Tier, Upscale
from pipeline.clips.frames import Frames
from pipeline.devices.emulated import HostDevice
from pipeline.families import family_named
from pipeline.families.layouts import RESIDENT
from pipeline.models.loading import load_model

STRENGTHS = (0.25, 0.5, 0.75)


def ignore_step(_done: int, _total: int, _snapshot: object) -> None:
    """Progress nobody reads."""


def at_size_of(clip: Frames, other: Frames) -> Frames:
    """`clip` at the other's frame size and count."""
    chosen = np.linspace(0, len(clip) - 1, len(other)).round().astype(int)
    size = (other.shape[2], other.shape[1])
    return np.stack([np.asarray(Image.fromarray(clip[i]).resize(size, Image.Resampling.BOX)) for i in chosen])


def main() -> int:
    """Render, compare, print."""
    options = parser(__doc__)
    options.add_argument("--model", default="i2vgen-xl-tiny")
    options.add_argument("--rounds", type=int, default=3, help="seeds")
    chosen = options.parse_args()
    family = family_named(chosen.model)
    draft_tier, final_tier = family.tiers[Tier.DRAFT], family.tiers[Tier.STANDARD]
    model = load_model(
        family,
        HostDevice(),
        weights_dir=None,
        home=Path(tempfile.mkdtemp(prefix="clipmill-from-draft-")),
        offline=True,
        on_load=lambda _text: None,
    )
    still = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)).resize((256, 256))
    found: dict[str, list[tuple[float, float]]] = {}
    for seed in range(chosen.rounds):
        draft = ClipSpec(
            family=family.name,
            revision=family.revision,
            prompt="camera slowly panning left",
            resolution_class=ResolutionClass.P256,
            width=256,
            height=256,
            frames=draft_tier.frames,
            fps=draft_tier.fps,
            steps=draft_tier.steps,
            guidance=family.guidance,
            seed=seed,
            sampler=family.samplers[0],
        )
        large: dict[str, Any] = {
            "resolution_class": ResolutionClass.P512,
            "width": 512,
            "height": 512,
            "frames": final_tier.frames,
            "steps": final_tier.steps,
        }
        base = BaseClip(**{name: getattr(draft, name) for name in BaseClip.model_fields})
        specs = {"from seed": draft.model_copy(update=large)}
        for upscale in Upscale:
            for strength in STRENGTHS:
                changes = large | {"base": base, "strength": strength, "upscale": upscale}
                specs[f"from draft, {upscale}, strength {strength}"] = draft.model_copy(update=changes)
        drafted = model.render(still, draft, RESIDENT, ignore_step)
        for name, spec in specs.items():
            frames = model.render(still, spec, RESIDENT, ignore_step)
            likeness = motion_correlation(drafted, frames), psnr(drafted, at_size_of(frames, drafted))
            found.setdefault(name, []).append(likeness)
    figures: dict[str, Any] = {"model": family.name, "seeds": chosen.rounds}
    for name, pairs in found.items():
        motion, near = (mean(values) for values in zip(*pairs, strict=True))
        figures[name] = f"motion correlation {motion:.3f}, PSNR {near:.1f} dB"
    from_seed = mean(motion for motion, _ in found["from seed"])
    aims = [
        Aim(name=f"from seed less {name}", value=from_seed - mean(m for m, _ in pairs), at_most=0.0)
        for name, pairs in found.items()
        if name.startswith(f"from draft, {Upscale.LATENTS}") and not name.endswith("0.75")
    ]
    return Report(name="from_draft", figures=figures, aims=aims).finish(chosen)


if __name__ == "__main__":
    sys.exit(main())
