"""Buckets: what is compiled together, and what forbids that anything is."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.clips.clip import ClipSpec
from pipeline.families.layouts import Layout
from pipeline.kernels.kernels import KernelChoice


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """Evaluations of equal shapes: compiled once, for exactly these."""

    family: str
    width: int
    height: int
    #: Frames of one evaluation: of the clip, or of one window of it.
    frames: int
    #: Rows of one evaluation: 2 where both halves of guidance are batched.
    rows: int

    def __str__(self) -> str:
        return (
            f"{self.family} {self.width}×{self.height}×{self.frames}, {self.rows} {'row' if self.rows == 1 else 'rows'}"
        )


def bucket_of(spec: ClipSpec, layout: Layout, guides: bool) -> Bucket:
    """The bucket of a clip, or of one of its phases; `guides`: whether it has guidance at all."""
    return Bucket(
        family=spec.family,
        width=spec.width,
        height=spec.height,
        frames=min(spec.window or spec.frames, spec.frames),
        rows=2 if guides and not layout.split_guidance else 1,
    )


def eager_because(choice: KernelChoice, spec: ClipSpec, layout: Layout, *, watched: bool, failed: str = "") -> str:
    """Why a clip's blocks must not be compiled, in words; empty where they may.

    `watched`: every operation is followed one by one, as on emulated cards. `failed`: why compiled kernels of this
    clip's bucket were given up before.
    """
    reasons = {
        "the farm asks for eager kernels": choice is KernelChoice.EAGER,
        "an emulated card follows each operation": watched,
        "streamed weights arrive by hooks, which compiled blocks do not call": layout.stream_weights,
        "feed-forward layers are done in chunks": layout.chunk_feed_forward > 1,
        "an adapter is laid over the weights": spec.adapter is not None,
        "deep layers are reused across steps": spec.step_cache > 1,
        failed: bool(failed),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")
