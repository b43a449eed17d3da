"""What a family cannot take: adjusted with a note, or refused where the batch is strict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from cluster.catalog.cells import MAX_SECONDS
from pipeline.clips.clip import ResolutionClass
from pipeline.families import MAX_ASPECT, Family, FrameRule, parse_aspect
from pipeline.notes import ADJUSTED, NewCell, Note
from pipeline.problems import BadInputError, Problem


@dataclass
class Findings:
    """What is met while one row is resolved."""

    #: Refuse what would be adjusted.
    strict: bool = False
    problems: list[Problem] = field(default_factory=list)
    #: What a person should know of the row; what it asks for and does not get has a code ending in `_adjusted`.
    notes: list[Note] = field(default_factory=list)

    def check(self, valid: bool, field: str, message: str, remedy: str) -> bool:
        """Note a problem unless `valid`; returns `valid`."""
        if not valid:
            self.problems.append(Problem(field=field, message=message, remedy=remedy))
        return valid

    def adjust(self, field: str, value: NewCell, change: str, message: str, remedy: str) -> None:
        """Note `change` (`16 -> 17: why`) of `field` to `value`, or, when strict, the problem that made it needed."""
        if self.check(not self.strict, field, message, remedy):
            self.note(field + ADJUSTED, f"{field} {change}", {field: value})

    def note(self, code: str, message: str, fix: Mapping[str, NewCell] = MappingProxyType({})) -> None:
        """Note what a person should know; `fix`: values with which it would not be noted, its own column first."""
        self.notes.append(Note(code=code, message=message, field=next(iter(fix), ""), fix=dict(fix)))


def nearest_frames(rule: FrameRule, frames: int) -> int:
    """The frame count nearest to `frames` that `rule` allows; the smaller of two as near."""
    least = rule.minimum + (rule.offset - rule.minimum) % rule.multiple
    most = rule.maximum - (rule.maximum - rule.offset) % rule.multiple
    below = frames - (frames - rule.offset) % rule.multiple
    above = below if below == frames else below + rule.multiple
    nearest = below if frames - below <= above - frames else above
    return min(max(nearest, least), most)


def fit_class(family: Family, asked: ResolutionClass, found: Findings) -> ResolutionClass:
    """The family's class nearest to the one asked for, the smaller of two as near."""
    if asked in family.classes:
        return asked
    nearest = min(family.classes, key=lambda c: (abs(c.side - asked.side), c.side))
    there = ", ".join(family.classes)
    message = f"{family.name} does not render {asked}"
    found.adjust(
        "resolution_class",
        nearest,
        f"{asked} -> {nearest}: {family.name} renders {there}",
        message,
        f"Choose one of: {there}.",
    )
    return nearest


def fit_aspect(text: str, found: Findings) -> float:
    """Width ÷ height of an aspect as written, within 3:1."""
    try:
        ratio = parse_aspect(text)
    except BadInputError as error:
        found.problems.append(error.problem)
        return 1.0
    fitted = min(max(ratio, 1 / MAX_ASPECT), MAX_ASPECT)
    if fitted != ratio:
        limit = f"{MAX_ASPECT:g}:1" if ratio > 1 else f"1:{MAX_ASPECT:g}"
        what = "widest" if ratio > 1 else "tallest"
        message = f"{text!r} is not an aspect ratio a clip can have"
        found.adjust(
            "aspect", limit, f"{text} -> {limit}: the {what} a clip can be", message, "Choose one between 1:3 and 3:1."
        )
    return fitted


def fit_frames(family: Family, frames: int, window: int, overlap: int | None, found: Findings) -> tuple[int, int, int]:
    """(frames, window, overlap) as the family can render them; a window of 0 means all frames at once.

    A window lifts the family's limit of frames. Where all frames fit into one window there is none. `overlap` None is
    a quarter of the window. Windows are cut at latent frames, so an overlap is rounded to whole ones.
    """
    if not found.check(frames >= 1, "frames", f"{frames} frames", "Ask for at least 1, or leave it empty."):
        return 1, 0, 0
    if not found.check(window >= 0, "window", f"{window} frames", "Give the frames of one window, or 0 for none."):
        return frames, 0, 0
    rule, name = family.frame_rule, family.name
    if not window:
        more = f" (up to {family.max_windowed_frames} with a window)" if family.max_windowed_frames else ""
        return _allowed(f"{name} takes {rule}{more}", name, "frames", rule, frames, found), 0, 0
    if not found.check(
        family.max_windowed_frames > 0,
        "window",
        f"{name} does not render in windows",
        f"Leave window empty and ask for at most {rule.maximum} frames.",
    ):
        return frames, 0, 0
    window = _allowed(f"{name} takes {rule} at once", name, "window", rule, window, found)
    long = replace(rule, maximum=max(rule.maximum, family.max_windowed_frames))
    frames = _allowed(f"{name} takes {long} in windows", name, "frames", long, frames, found)
    if frames <= window:
        return frames, 0, 0
    return frames, window, _overlap(family, window, overlap, found)


def fit_seconds(
    family: Family, seconds: float, fps: int, window: int, overlap: int | None, found: Findings
) -> tuple[int, int, int]:
    """(frames, window, overlap) of a clip of about `seconds` at `fps`, as `fit_frames` would have them.

    What the family cannot do is said in seconds: the range that it can, and what it makes instead.
    """
    remedy = f"Give a number above 0, at most {MAX_SECONDS:g}, or leave it empty."
    # Rows of the API have not been through a manifest's reader.
    if not found.check(0 < seconds <= MAX_SECONDS, "seconds", f"a clip of {seconds:g} s", remedy):
        return 1, 0, 0
    asked = max(1, round(seconds * fps))
    within = Findings(strict=False)
    frames, window, overlap = fit_frames(family, asked, window, overlap, within)
    found.problems += within.problems
    found.notes += [note for note in within.notes if note.code != "frames" + ADJUSTED]
    made = frames / fps
    if within.problems or math.isclose(made, seconds, rel_tol=1e-6):
        return frames, window, overlap
    rule = replace(family.frame_rule, maximum=max(family.frame_rule.maximum, family.max_windowed_frames * bool(window)))
    can = f"{family.name} takes {rule}, at {fps} fps {rule.minimum / fps:.3g} to {rule.maximum / fps:.3g} s"
    if frames == asked:
        found.note("seconds_rounded", f"seconds {seconds:g} -> {made:.3g}: {frames} whole frames at {fps} fps")
    else:
        message = f"{family.name} cannot make {seconds:g} s at {fps} fps"
        remedy = f"The nearest it can do is {made:.3g} s. Another fps makes it longer or shorter: {can}."
        found.adjust("seconds", made, f"{seconds:g} -> {made:.3g}: {can}", message, remedy)
    return frames, window, overlap


def _allowed(why: str, name: str, field: str, rule: FrameRule, frames: int, found: Findings) -> int:
    if rule.allows(frames):
        return frames
    nearest = nearest_frames(rule, frames)
    where = " in a window" if field == "window" else ""
    message = f"{name} cannot render {frames} frames{where}: it takes {rule}"
    found.adjust(field, nearest, f"{frames} -> {nearest}: {why}", message, f"The nearest it can do is {nearest}.")
    return nearest


def _overlap(family: Family, window: int, asked: int | None, found: Findings) -> int:
    unit = family.frames_per_latent
    if asked is None:
        return min(max(unit, round(window / 4 / unit) * unit), window - 1)
    remedy = "Leave it empty for a quarter of the window."
    message = f"windows of {window} frames cannot share {asked}"
    if not found.check(0 <= asked < window, "window_overlap", message, remedy):
        return 0
    whole = asked // unit * unit
    if whole != asked:
        why = f"{family.name} cuts windows every {unit} frames"
        remedy = f"The nearest it can do is {whole}."
        found.adjust("window_overlap", whole, f"{asked} -> {whole}: {why}", f"{why}, not at {asked}", remedy)
    return whole
