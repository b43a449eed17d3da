"""Mending a still before its clip is made: only what was asked for, and only where a judgement finds the fault."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from pipeline.clips.clip import Autofix
from pipeline.clips.inspection import framing, judge, tones
from pipeline.clips.inspection.view import StillView
from pipeline.clips.refusals import MIN_STILL_SIDE
from pipeline.clips.still_notes import StillNoteCode
from pipeline.notes import Note

#: Level to which the brightest parts of a dark still are brought, and levels between which a pale one is stretched.
_BRIGHT_LEVEL, _STRETCHED = 235.0, (8.0, 247.0)
#: How far below their limits softness and noise are brought, so that a second look finds nothing.
_WELL_BELOW = 0.95
#: Unsharp masking, in percent, the least that is enough.
_SHARPENING = range(50, 501, 50)
#: Guided filtering: radius in pixels of a picture of `JUDGED_SIDE`, and strengths in sigmas of the noise.
_SMOOTHING_RADIUS, _SMOOTHING = 2.0, (1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True, kw_only=True)
class FixedStill:
    """A still with what was mended of it."""

    #: RGB, upright; the very picture that was given where nothing was mended.
    image: Image.Image
    #: One `still_fixed` for each thing that was mended.
    notes: tuple[Note, ...] = ()


def fix_still(still: Image.Image, wanted: Collection[Autofix]) -> FixedStill:
    """`still` (RGB, upright) with what is `wanted` mended where `judge_still` would note it; else as it is.

    Bars are cut off first, then noise, levels and edges are mended, in the order of `Autofix`. What cannot be mended
    (a strong blur, a black picture, highlights that are cut) stays, and is noted by `judge_still`.
    """
    notes: list[Note] = []
    for fix in Autofix:
        if fix in wanted and (mended := _MENDERS[fix](still)) is not None:
            still, what = mended
            notes.append(Note(code=StillNoteCode.STILL_FIXED, message=f"{what} (autofix {fix})", field="autofix"))
    return FixedStill(image=still, notes=tuple(notes))


def with_autofix(notes: Iterable[Note], wanted: Collection[Autofix]) -> list[Note]:
    """`notes` as a row reads them whose still is mended already: their fixes name what is `wanted` as well."""
    return [
        note.model_copy(update={"fix": {**note.fix, "autofix": _named([*wanted, str(note.fix["autofix"])])}})
        if wanted and "autofix" in note.fix
        else note
        for note in notes
    ]


def still_amiss(notes: Iterable[Note], wanted: Collection[Autofix]) -> list[Note]:
    """Notes on a still that are true once what is `wanted` has been mended, as `with_autofix` has them.

    What was mended is noted by `fix_still`, when it is done.
    """
    left = [note for note in notes if note.fix.get("autofix") not in wanted]
    return with_autofix(left, wanted)


def _named(fixes: Collection[str]) -> str:
    return ", ".join(fix for fix in Autofix if fix in fixes)


_Mended = tuple[Image.Image, str] | None


def _cropped(still: Image.Image) -> _Mended:
    view = StillView(still)
    if min(view.image.size) < judge.LEAST_FRAMED_SIDE or not (bars := framing.bars(view.image)):
        return None
    scale = still.width / view.image.width
    # Where the picture was reduced a pixel at the line is half of either: one more of these is cut.
    more = 0 if scale == 1 else 1
    left, top, right, bottom = (
        math.ceil((depth + more) * scale) if depth else 0 for depth in (bars.left, bars.top, bars.right, bars.bottom)
    )
    width, height = still.width - left - right, still.height - top - bottom
    if min(width, height) < MIN_STILL_SIDE:
        return None
    mended = still.crop((left, top, left + width, top + height))
    return mended, f"bars were cut off: {still.width}×{still.height} -> {width}×{height} pixels"


def _smoothed(still: Image.Image) -> _Mended:
    noise = tones.noise_sigma(StillView(still).grey)
    if noise < judge.NOISE_LEVELS:
        return None
    pixels = np.asarray(still, np.float32)
    radius = max(1, round(_SMOOTHING_RADIUS * max(1.0, max(still.size) / 512)))
    for strength in _SMOOTHING:
        smooth = guided_filter(pixels, radius, (strength * noise) ** 2)
        mended = Image.fromarray(np.rint(np.clip(smooth, 0, 255)).astype(np.uint8))
        left = tones.noise_sigma(StillView(mended).grey)
        if left < _WELL_BELOW * judge.NOISE_LEVELS:
            return mended, f"grain of {noise:.0f} levels was smoothed to {left:.0f}"
    return None


def guided_filter(pixels: NDArray[np.float32], radius: int, epsilon: float) -> NDArray[np.float32]:
    """`pixels` (height, width, 3) smoothed where they vary by less than `epsilon` (levels²) within `radius` pixels.

    The guided filter with the picture as its own guide, each channel alone (He, Sun & Tang, 2010).
    """
    size = (2 * radius + 1, 2 * radius + 1, 1)
    mean = scipy.ndimage.uniform_filter(pixels, size, mode="nearest")
    variance = np.maximum(scipy.ndimage.uniform_filter(pixels * pixels, size, mode="nearest") - mean * mean, 0)
    share = variance / (variance + np.float32(epsilon))
    offset = scipy.ndimage.uniform_filter(mean - share * mean, size, mode="nearest")
    smooth: NDArray[np.float32] = scipy.ndimage.uniform_filter(share, size, mode="nearest") * pixels + offset
    return smooth


def _brightened(still: Image.Image) -> _Mended:
    brightest = tones.brightest_level(StillView(still))
    if not judge.BLACK_LEVEL <= brightest < judge.DARK_LEVEL:
        return None
    gain = _light(_BRIGHT_LEVEL) / _light(brightest)
    table = [round(_level(min(1.0, gain * _light(level)))) for level in range(256)]
    stops = math.log2(gain)
    return still.point(table * 3), f"the picture was brightened by {stops:.1f} stops"


def _stretched(still: Image.Image) -> _Mended:
    view = StillView(still)
    levels = tones.level_range(view)
    # A dark picture needs light, not contrast.
    if tones.brightest_level(view) < judge.DARK_LEVEL or not 1 < levels.contrast < judge.LOW_CONTRAST_LEVELS:
        return None
    low, high = _STRETCHED
    gain = (high - low) / levels.contrast
    table = [round(min(255.0, max(0.0, low + gain * (level - levels.darkest)))) for level in range(256)]
    return still.point(table * 3), f"levels from {levels.darkest:.0f} to {levels.brightest:.0f} were stretched"


def _sharpened(still: Image.Image) -> _Mended:
    if max(still.size) < judge.LEAST_SHARP_SIDE:
        return None
    softness = tones.edge_softness(StillView(still).grey)
    if not judge.BLUR_SIGMA < softness <= tones.MENDABLE_SIGMA:
        return None
    radius = softness * max(1.0, max(still.size) / 512)
    for percent in _SHARPENING:
        mended = still.filter(ImageFilter.UnsharpMask(radius, percent, 0))
        left = tones.edge_softness(StillView(mended).grey)
        if left <= _WELL_BELOW * judge.BLUR_SIGMA:
            return mended, f"edges were sharpened by {percent} %"
    return None


def _light(level: float) -> float:
    """Light, 0 to 1, of an sRGB level of 255 (IEC 61966-2-1)."""
    value = level / 255
    return value / 12.92 if value <= 0.04045 else float(((value + 0.055) / 1.055) ** 2.4)


def _level(light: float) -> float:
    """The sRGB level of 255 that shows so much light."""
    return 255 * (light * 12.92 if light <= 0.0031308 else 1.055 * light ** (1 / 2.4) - 0.055)


_MENDERS: dict[Autofix, Callable[[Image.Image], _Mended]] = {
    Autofix.CROP: _cropped,
    Autofix.DENOISE: _smoothed,
    Autofix.EXPOSURE: _brightened,
    Autofix.CONTRAST: _stretched,
    Autofix.SHARPEN: _sharpened,
}
