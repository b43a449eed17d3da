"""One clip to the file of one profile: framed, lengthened, laid over, encoded, judged.

1. `read_master` decodes the clip once and follows its product through all frames.
2. `make_file` plans frame and length, draws overlays, encodes, and judges what was written.
3. A file that breaks a rule is removed: nothing that failed is ever delivered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from pipeline.clips.frames import Frames
from pipeline.delivery.brands import Brand
from pipeline.delivery.encoding import ClipUnreadableError, decode_clip, encode_delivery, video_bit_rate
from pipeline.delivery.framing import FramePlan, ProductTrack, plan_frame, reframe, reframed_size, track_product
from pipeline.delivery.judging import judge_file, product_check
from pipeline.delivery.length import Timeline, ends_as_it_begins, plan_time, shown
from pipeline.delivery.overlays import NO_OVERLAY, DrawnOverlay, draw_overlays
from pipeline.delivery.profiles import DeliveryProfile, Lengthening
from pipeline.delivery.verdicts import ProfileVerdict, RuleCheck, refused, verdict_of
from pipeline.problems import BadInputError, Problem

#: Frames on which a logo has to stand out.
_LOOKED_AT = 5
#: Constant bit rates that are tried where quality alone stays below a floor, as multiples of it: encoders begin with a
#: full buffer, of which a short file makes a lower mean.
_ABOVE_FLOOR = (1.05, 1.2, 1.4)
#: Enlargement from which letters and edges look soft; noted, and no rule of any marketplace.
_SOFT = 2.0


@dataclass(frozen=True)
class Master:
    """A decoded clip that files are made of."""

    frames: Frames
    fps: float

    @cached_property
    def track(self) -> ProductTrack:
        """Where the product is, over all frames."""
        return track_product(self.frames)

    @cached_property
    def seamless(self) -> bool:
        """Whether the clip ends as it begins."""
        return ends_as_it_begins(self.frames)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.frames.shape[2], self.frames.shape[1]


def read_master(path: Path) -> Master:
    """The clip at `path`, decoded. Raises `BadInputError` where it is no video."""
    try:
        return Master(*decode_clip(path))
    except ClipUnreadableError as error:
        remedy = "Retry the row: its clip is damaged."
        raise BadInputError("deliver", str(error), remedy) from error


def make_file(
    master: Master,
    profile: DeliveryProfile,
    path: Path,
    brand: Brand | None = None,
    texts: Sequence[str] | None = None,
    lengthening: Lengthening = Lengthening.AUTO,
    *,
    threads: int = 2,
) -> ProfileVerdict:
    """Write the file of `profile` to `path` and judge it; where it breaks a rule, or none can be made, there is none.

    `texts`: what the brand's overlays say (`texts_of`); None: nothing is laid over. Raises `EncodeError` where the
    folder cannot be written.
    """
    try:
        plan = plan_frame(master.track, master.size, profile)
        timeline = plan_time(len(master.frames), master.fps, profile, seamless=master.seamless, wish=lengthening)
        framed = np.stack([reframe(frame, plan) for frame in master.frames])
        overlay = NO_OVERLAY
        if brand is not None and texts is not None:
            some = list(framed[:: max(1, len(framed) // _LOOKED_AT)])
            overlay = draw_overlays(brand, texts, profile, plan.product, some)
    except BadInputError as error:
        return refused(profile.name, error.problem)
    if broken := [check for check in overlay.checks if not check.passed]:
        # Before minutes of encoding.
        return refused(profile.name, _of_overlay(profile, broken))
    size = reframed_size(plan)
    for above_floor in (None, *_ABOVE_FLOOR):
        encode_delivery(
            shown(framed, timeline),
            size,
            timeline,
            profile,
            path,
            overlay=overlay.picture,
            above_floor=above_floor,
            threads=threads,
        )
        if video_bit_rate(path) >= profile.min_bit_rate:
            break
    checks = [*judge_file(path, profile), product_check(plan), *overlay.checks]
    verdict = verdict_of(profile.name, checks, _facts(master, profile, plan, timeline, overlay, path))
    if not verdict.passed:
        path.unlink(missing_ok=True)
    return verdict


def _facts(
    master: Master, profile: DeliveryProfile, plan: FramePlan, timeline: Timeline, overlay: DrawnOverlay, path: Path
) -> dict[str, str | int | float | bool]:
    enlarged = profile.width / plan.width
    crop = f"{plan.width:.0f}×{plan.height:.0f}{plan.left:+.0f}{plan.top:+.0f}"
    facts: dict[str, str | int | float | bool] = {
        "frame": plan.words,
        "crop": f"{crop} of {master.size[0]}×{master.size[1]}",
        "product_found": master.track.found,
        "continued": round(plan.continued, 4),
        "enlarged": round(enlarged, 2),
        "length": timeline.words,
        "lengthening": timeline.lengthening.value if timeline.lengthening else "none",
        "seconds": round(timeline.seconds, 3),
        "fps": timeline.fps,
        "speed": round(timeline.speed, 4),
        "seamless": timeline.seamless,
        "bytes": path.stat().st_size,
    }
    if enlarged > _SOFT:
        facts["soft"] = f"enlarged {enlarged:.1f} times: render it in a larger class for sharp edges"
    if overlay.texts:
        facts["overlays"] = "; ".join(overlay.texts)
    return facts


def _of_overlay(profile: DeliveryProfile, broken: Sequence[RuleCheck]) -> Problem:
    message = f"{profile.name}: the overlays break {len(broken)} rules: {'; '.join(map(str, broken))}"
    return Problem(field="brand", message=message, remedy="Change the brand file: another place, size or logo.")
