"""Figures that articles about I2VGen-XL claim, beside what the dry run of its network says: `docs/seed-claims.md`.

The claims are of four articles of early 2026 (an RTX 4090, 24 GB); nobody reproduced them here. Beside each stands what
follows from the network alone: bytes at the peak and operations of a step, counted on tensors without data, and the
share of the card's published peak that a claimed time would need. Figures of a card are added once one was measured.

    python benchmarks/seed_claims.py --write     # writes docs/seed-claims.md
    python benchmarks/seed_claims.py --check     # exit 1 where the page is not what this prints

Aim: the page is current.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from report import Aim, Report, parser

from cluster.estimates.published import tflops_of
from pipeline.clips.clip import ClipSpec, ResolutionClass
from pipeline.families import FAMILIES
from pipeline.families.layouts import RESIDENT, Layout
from pipeline.memory.footprint import Footprint, flops_per_step, footprint_of, leanest_of
from pipeline.memory.slowdown import clip_flops
from pipeline.units import GIB

PAGE = Path(__file__).parents[1] / "docs" / "seed-claims.md"
FAMILY = FAMILIES["i2vgen-xl"]
CARD = "NVIDIA GeForce RTX 4090"
LEAN = Layout(evict_encoders=True, split_guidance=True, chunk_feed_forward=8)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Seconds and gigabytes that an article names for one setting; None: it names none."""

    article: int
    side: int
    frames: int = 16
    steps: int = 50
    seconds: float | None = None
    gigabytes: float | None = None
    note: str = ""

    @property
    def pixels(self) -> int:
        """Pixels of a frame."""
        return self.side**2

    @property
    def flops(self) -> float:
        """Operations of its denoising steps, with guidance."""
        return self.steps * flops_per_step(FAMILY, self.pixels, self.frames)

    def share(self) -> float | None:
        """Share of the card's published peak that the claimed time needs, for the denoising steps alone."""
        peak = tflops_of(CARD)
        return None if self.seconds is None or peak is None else self.flops / self.seconds / (peak * 1e12)


CLAIMS = (
    Claim(article=1, side=256, seconds=18, gigabytes=8.2),
    Claim(article=1, side=512, seconds=47, gigabytes=13.6),
    Claim(article=1, side=768, seconds=103, gigabytes=17.8),
    Claim(article=1, side=1024, gigabytes=22.1, note="out of memory"),
    Claim(article=2, side=256, seconds=18.2, gigabytes=9.4),
    Claim(article=2, side=512, seconds=36.5, gigabytes=13.6),
    Claim(article=2, side=768, seconds=67.3, gigabytes=17.9),
    Claim(article=2, side=1024, seconds=112.6, gigabytes=21.3),
    Claim(article=2, side=768, frames=12, seconds=52.1, gigabytes=16.3),
    Claim(article=2, side=768, steps=40, seconds=55.8, gigabytes=17.5),
    Claim(article=2, side=512, seconds=31.2, note="fp16"),
    Claim(article=3, side=512, seconds=58.0, gigabytes=14.2, note="before the seven tricks"),
    Claim(article=3, side=512, seconds=45.2, gigabytes=10.1, note="fp16 and checkpointing"),
    Claim(article=3, side=512, steps=30, seconds=28.7, gigabytes=9.8, note="DDIM, 30 steps"),
    Claim(article=3, side=512, steps=30, seconds=16.3, gigabytes=9.5, note="latent cache, parallel head"),
    Claim(article=3, side=512, steps=30, seconds=11.0, gigabytes=9.3, note="ONNX Runtime; if at 30 steps"),
    Claim(article=3, side=512, seconds=11.0, gigabytes=9.3, note="ONNX Runtime; if at 50 steps"),
    Claim(article=4, side=512, gigabytes=13.5),
    Claim(article=4, side=768, frames=24, steps=80, gigabytes=17.8),
    Claim(article=4, side=1024, frames=32, steps=100, gigabytes=22.0, note="more than"),
)


def gib(found: Footprint) -> str:
    """Peak of tensors and what CUDA is estimated to take besides, in GiB."""
    # What the dry run counted: workspaces are no part of it.
    return f"{max(found.tensors.values()) / GIB:.1f}"


def memory_row(claim: Claim) -> list[str]:
    """A claim of memory beside predictions: everything at once, framewise decoding, and the leanest exact layout."""
    at_once = footprint_of(FAMILY, claim.pixels, claim.frames, Layout(decode_frames=claim.frames))
    return [
        f"{claim.article}",
        f"{claim.side}p × {claim.frames}",
        f"{claim.gigabytes:g}" + (f" ({claim.note})" if claim.note else ""),
        gib(at_once),
        gib(footprint_of(FAMILY, claim.pixels, claim.frames, RESIDENT)),
        gib(footprint_of(FAMILY, claim.pixels, claim.frames, LEAN)),
        gib(leanest_of(FAMILY, claim.pixels, claim.frames)[1]),
    ]


def time_row(claim: Claim) -> list[str]:
    """A claim of time beside the operations it stands for."""
    share = claim.share()
    assert share is not None
    return [
        f"{claim.article}",
        f"{claim.side}p × {claim.frames}, {claim.steps} steps",
        f"{claim.seconds:g}" + (f" ({claim.note})" if claim.note else ""),
        f"{flops_per_step(FAMILY, claim.pixels, claim.frames) / 1e12:.1f}",
        f"{claim.flops / 1e12:.0f}",
        f"{share:.0%}" + (" (impossible)" if share > 1 else ""),
    ]


def table(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def growth() -> str:
    """How operations grow with the side of a frame, beside the fourth power that article 1 claims."""
    base = flops_per_step(FAMILY, 512**2, 16)
    rows = [
        [f"{side}p", f"{(side / 512) ** 4:.2f}", f"{(side / 512) ** 2:.2f}", f"{of / base:.2f}"]
        for side in (256, 512, 768, 1024)
        if (of := flops_per_step(FAMILY, side**2, 16))
    ]
    return table(["class", "side⁴", "area", "operations of a step"], rows)


def tricks() -> str:
    """The tricks that the articles name, and what the network says of each."""
    split = footprint_of(FAMILY, 512**2, 16, Layout(split_guidance=True)).tensors["denoise"]
    whole = footprint_of(FAMILY, 512**2, 16, RESIDENT).tensors["denoise"]
    steps = 50 * flops_per_step(FAMILY, 512**2, 16)
    rest = 1 - steps / _whole_clip()
    rows = [
        ["fp16 (−30 % memory)", "here from the start: weights of 4.6 GiB are half of what float32 takes"],
        ["gradient checkpointing (−40 %)", "raises `ValueError` in this network, and does nothing without gradients"],
        ["split guidance", f"{whole / GIB:.1f} → {split / GIB:.1f} GiB while denoising at 512p × 16, the same algebra"],
        ["30 steps instead of 50", "40 % of the steps' operations less; the model's page says DDIM below 50 looks bad"],
        [
            "cache of encodings (faster)",
            f"all but the steps is {rest:.1%} of a 512p clip's operations; worth it for memory",
        ],
        ["a parallel multi-frame head", "there is none to add: all frames are denoised together already"],
        ["ONNX Runtime text encoder (1.4 ×)", "a part of that"],
        ["low resolution first, then upscale", "`motion_class`, marked lossy; see docs/parameters.md"],
        ["frames one after the other", "false: 16 frames are one batch of the network"],
    ]
    return table(["claim", "what the network says"], rows)


def _whole_clip() -> float:
    clip = ClipSpec(
        family=FAMILY.name,
        revision=FAMILY.revision,
        prompt="camera slowly panning left",
        resolution_class=ResolutionClass.P512,
        width=512,
        height=512,
        frames=16,
        fps=8,
        steps=50,
        guidance=FAMILY.guidance,
        seed=7,
    )
    return clip_flops(clip)


def page() -> str:
    """The whole page."""
    memory = [memory_row(claim) for claim in CLAIMS if claim.gigabytes is not None]
    times = [time_row(claim) for claim in CLAIMS if claim.seconds is not None]
    return f"""# What articles claim of I2VGen-XL, and what its network says

Four articles of early 2026 describe I2VGen-XL on an RTX 4090 (24 GB). Their figures are **external claims**, quoted as
such. Beside them stands what follows from the published network without any card: peak bytes from a dry run on tensors
without data (CUDA's own share is an estimate), and operations counted there. **No figure here was measured on a card.**
This page is written by `python benchmarks/seed_claims.py --write`.

## Memory, in GiB

{
        table(
            [
                "article",
                "clip",
                "claimed GB",
                "all frames decoded at once",
                "frame by frame (as here)",
                "lean, exact",
                "leanest",
            ],
            memory,
        )
    }

A claim lies between two columns where a program decodes some frames at once. At 1024p decoding all 16 together would
take more than the card has; frame by frame the same clip fits a 16 GB card.

## Time

The last column is the share of the card's published peak ({tflops_of(CARD):g} TFLOPS) that the denoising steps alone
would need for the claimed time.

{table(["article", "clip", "claimed s", "TFLOP a step", "TFLOP in all", "share of the peak"], times)}

## "Cost grows with the fourth power of the side"

{growth()}

It grows a little faster than the area, because attention over space is a small part of this network.

## Tricks

{tricks()}
"""


def main() -> int:
    """Print or write the page, and compare it with the one that is there."""
    options = parser(__doc__)
    options.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    chosen = options.parse_args()
    made = page()
    if chosen.write:
        PAGE.write_text(made, encoding="utf-8")
    there = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    differs = sum(a != b for a, b in zip(made.splitlines(), there.splitlines(), strict=False))
    differs += abs(len(made.splitlines()) - len(there.splitlines()))
    shares = [share for claim in CLAIMS if (share := claim.share()) is not None]
    figures = {"claims": len(CLAIMS), "claimed times no card could reach": sum(share > 1 for share in shares)}
    return Report(
        name="seed claims", figures=figures, aims=[Aim(name="lines of the page out of date", value=differs, at_most=0)]
    ).finish(chosen)


if __name__ == "__main__":
    sys.exit(main())
