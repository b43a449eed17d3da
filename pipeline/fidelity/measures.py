"""What a clip is measured by, frame by frame: differences from its still, and between frames that follow each other.

Where a still is compared with frames, these were laid back onto it (`pipeline.fidelity.tracking`): what belongs to the
camera's move is gone, and what is left is a change.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.clips.inspection.product import Mask, product_area
from pipeline.fidelity.libraries import colours, opencv
from pipeline.fidelity.mask import LEAST_PLAIN_SIDES, ProductMask
from pipeline.fidelity.tracking import Track

Values = NDArray[np.float64]
Pixels8 = NDArray[np.uint8]

#: Sides in pixels of the squares whose mean colours are compared, and of those whose structure is.
CELL_PX, _TILE_PX = 8, 16
#: Share of a square that has to lie on the product, and be shown by the frame, to be compared.
_COVERED = 0.6
#: Side of the window, in pixels, within which structure is compared; spread from which there is any, and what keeps
#: the measure calm where there is none (Wang et al., 2004: C2 of SSIM).
_WINDOW, _SPREAD, _CALM = 9, 6.0, (0.03 * 255) ** 2
#: Share of the squares, the worst ones, that structure is judged by.
_WORST = 0.15
#: Levels (of 255) that a frame of black has at most, but for a hundredth of it.
_BLACK = 18.0
#: Levels by which something beside the product differs from the still; pixels around the product that are left out.
_OTHER_LEVELS, _AROUND = 22, 0.05
#: Spread of levels up to which a background is smooth, and the share of it that has to be for the rest to be judged.
_SMOOTH_LEVELS, _SMOOTH_SHARE = 8.0, 0.85
#: Frames that are looked at for outlines and colours, evenly spread.
_LOOKS = 8
#: Steps beside one that tell of the pace of a clip.
_PACE = 3
#: Frames of one picture differ by this much of what others differ by, at the most.
_STILL_SHARE, _STILL_LEVELS = 0.04, 0.004


@dataclass(frozen=True, kw_only=True)
class LaidClip:
    """A clip beside its still, both small: what the measures look at."""

    #: (height, width, 3): the still as it was prepared for the clip.
    still: Pixels8
    mask: ProductMask
    #: (frames, height, width, 3): as they are, and laid back onto the still.
    frames: Pixels8
    laid: Pixels8
    #: (frames, height, width): where a frame that was laid back shows anything of the still.
    shown: NDArray[np.bool_]
    track: Track
    #: (frames,): all of it is black.
    black: NDArray[np.bool_]

    @property
    def found(self) -> NDArray[np.bool_]:
        """(frames,): the still was found in it."""
        return self.track.found


def black_frames(frames: Pixels8) -> NDArray[np.bool_]:
    """(frames,): which of `frames` (frames, height, width, 3) are black."""
    # Every fourth pixel tells; all of a long clip take a second.
    return np.array([float(np.percentile(frame[::4, ::4].max(axis=2), 99)) < _BLACK for frame in frames], bool)


def still_differences(clip: LaidClip, place: int) -> float:
    """Mean difference of a frame from the still, 0 to 1: of the product or of all of it, whichever is more.

    1 where the frame does not show the still at all.
    """
    if not clip.found[place]:
        return 1.0
    cv2 = opencv()
    shown = clip.shown[place]
    if shown.mean() < 0.1:
        return 1.0
    soft = [cv2.GaussianBlur(one, (0, 0), 1.2).astype(np.float32) for one in (clip.laid[place], clip.still)]
    off = np.abs(soft[0] - soft[1]).mean(axis=2) / 255
    product = shown & clip.mask.pixels
    whole = float(off[shown].mean())
    return max(whole, float(off[product].mean())) if product.sum() > 30 else whole


def colour_drift(clip: LaidClip) -> Values:
    """(frames,): by how much the product's colours are off the still's, in CIEDE2000; NaN where not looked at.

    The median over squares of the product (Sharma, Wu & Dalal, 2005), so a change of all of it; a label alone does not
    count.
    """
    drift = np.full(len(clip.laid), np.nan)
    own, inside = _cells(clip.still, clip.mask.pixels)
    lab = colours().rgb2lab
    for place in _spread_over(clip.found):
        other, there = _cells(clip.laid[place], clip.mask.pixels & clip.shown[place])
        both = inside & there
        if both.sum() < 4:
            continue
        pair = lab(np.stack([own[both], other[both]])[None] / 255)[0]
        drift[place] = float(np.median(colours().deltaE_ciede2000(pair[0], pair[1])))
    return drift


def structure_loss(clip: LaidClip) -> Values:
    """(frames,): how much of the product's structure is gone, 0 to 1; NaN where the frame was not found.

    1 - the contrast-structure term of SSIM (Wang et al., 2004), where the still has structure: label, logo, seams. The
    mean over the worst squares, for a label is a small part of a product.
    """
    cv2 = opencv()
    loss = np.full(len(clip.laid), np.nan)
    own = _soft_grey(clip.still)
    mean, spread = _moments(own)
    # Off the outline, whose other side is background.
    inner = cv2.erode(clip.mask.pixels.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    has = (spread > _SPREAD**2) & inner
    for place in np.flatnonzero(clip.found):
        other = _soft_grey(clip.laid[place])
        other_mean, other_spread = _moments(other)
        together = _box(own * other) - mean * other_mean
        alike = (2 * together + _CALM) / (spread + other_spread + _CALM)
        counted = (has & clip.shown[place]).astype(np.float32)
        weight = _tiles(counted)
        tiles = _tiles(alike * counted)[weight > 0.15] / weight[weight > 0.15]
        if len(tiles):
            worst = np.sort(tiles)[: max(1, round(_WORST * len(tiles)))]
            loss[place] = float(np.clip(1 - worst.mean(), 0, 1))
    return loss


def outline_drift(clip: LaidClip) -> Values:
    """(frames,): 1 - intersection over union of the product found anew and the one that was tracked; NaN: not told.

    Nobody can tell where the frame has no plain background, or the still had none.
    """
    cv2 = opencv()
    drift = np.full(len(clip.frames), np.nan)
    if not (clip.mask.plain and clip.mask.known):
        return drift
    height, width = clip.mask.pixels.shape
    own = clip.mask.pixels.astype(np.uint8) * 255
    for place in _spread_over(clip.found):
        area = product_area(Image.fromarray(clip.frames[place]))
        if sum(area.background.plain) < LEAST_PLAIN_SIDES:
            continue
        tracked = cv2.warpPerspective(own, clip.track.views[place], (width, height), flags=cv2.INTER_LINEAR) > 127
        both, either = (tracked & area.mask).sum(), (tracked | area.mask).sum()
        if tracked.sum() > 50 and either:
            drift[place] = 1 - float(both / either)
    return drift


def flicker(clip: LaidClip) -> Values:
    """(frames,): levels (of 255) by which a frame is brighter or darker than the two beside it; NaN at the ends.

    The median over squares of the picture, laid back onto the still, so that moving things do not count.
    """
    levels = np.full(len(clip.laid), np.nan)
    if len(clip.laid) < 3:
        return levels
    cv2 = opencv()
    cells = np.stack([_tiles(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32)) for frame in clip.laid])
    shown = np.stack([_tiles(shown.astype(np.float32)) for shown in clip.shown]) > 0.95
    good = clip.found & ~clip.black
    for place in range(1, len(clip.laid) - 1):
        three = slice(place - 1, place + 2)
        seen = shown[three].all(axis=0)
        if not good[three].all() or seen.sum() < 4:
            continue
        off = cells[place] - (cells[place - 1] + cells[place + 1]) / 2
        levels[place] = float(np.abs(np.median(off[seen])))
    return levels


def frozen_share(frames: Pixels8) -> tuple[float, int]:
    """(length of the longest stretch of equal frames as a share of the clip, the frame at which it begins)."""
    if len(frames) < 3:
        return 0.0, 0
    small = frames[:, ::2, ::2].astype(np.int16)
    changes = np.array([float(np.abs(small[i + 1] - small[i]).mean()) for i in range(len(small) - 1)])
    moving = changes[changes > _STILL_LEVELS]
    same = changes <= max(_STILL_LEVELS, _STILL_SHARE * float(np.median(moving)) if len(moving) else 0.0)
    longest, begin, run = 0, 0, 0
    for place, equal in enumerate(same):
        run = run + 1 if equal else 0
        if run > longest:
            longest, begin = run, place - run + 1
    return longest / len(same), begin


def cuts(clip: LaidClip) -> Values:
    """(frames,): how far a frame jumps from the one before, as a share of the diagonal, beyond what its neighbours do.

    1 where the still is suddenly gone, or back: frames of something else. Black frames are no cuts.
    """
    jumps = np.zeros(len(clip.frames))
    height, width = clip.mask.pixels.shape
    left, top, right, bottom = _extent(clip.mask.pixels)
    corners = np.array([[left, right, right, left], [top, top, bottom, bottom], [1, 1, 1, 1]], np.float64)
    seen = clip.track.views @ corners
    at = seen[:, :2] / seen[:, 2:]
    steps = np.linalg.norm(np.diff(at, axis=0), axis=1).mean(axis=1) / np.hypot(height, width)
    changes = np.abs(np.diff(clip.frames[:, ::4, ::4].astype(np.int16), axis=0)).mean(axis=(1, 2, 3))
    for place in range(1, len(clip.frames)):
        if clip.black[place - 1 : place + 1].any():
            continue
        near = _beside(steps, place - 1)
        if clip.found[place - 1 : place + 1].all():
            # Two or three frames have no pace that one of them could leave.
            sudden = len(near) >= _PACE and steps[place - 1] > 5 * np.median(near)
            jumps[place] = steps[place - 1] if sudden else 0.0
        elif clip.found[place - 1 : place + 1].any() and place > 1:
            usual = float(np.median(_beside(changes, place - 1)))
            jumps[place] = 1.0 if changes[place - 1] > max(4.0, 4 * usual) else 0.0
    return jumps


def second_products(clip: LaidClip) -> Values:
    """(frames,): area of the largest thing beside the product that the still does not show, as a share of the product.

    NaN where nobody can tell: before a background that is neither plain nor smooth, and in frames that were not found.
    """
    cv2 = opencv()
    found = np.full(len(clip.laid), np.nan)
    if not clip.mask.known:
        return found
    height, width = (side // 2 for side in clip.mask.pixels.shape)
    reach = 2 * max(1, round(_AROUND * max(height, width))) + 1
    product = cv2.resize(clip.mask.pixels.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
    beside = cv2.dilate(product, np.ones((reach, reach), np.uint8)) == 0
    if not clip.mask.plain and not _smooth(cv2.resize(_soft_grey(clip.still), (width, height)), beside):
        return found
    own = cv2.resize(clip.still, (width, height), interpolation=cv2.INTER_AREA).astype(np.int16)
    for place in np.flatnonzero(clip.found):
        shown = cv2.resize(clip.shown[place].astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
        where = beside & (shown > 0)
        if where.sum() < 50:
            continue
        off = cv2.resize(clip.laid[place], (width, height), interpolation=cv2.INTER_AREA).astype(np.int16) - own
        # Light that changes everywhere is no thing.
        off -= np.median(off[where][::5], axis=0).astype(np.int16)
        other = ((np.abs(off).max(axis=2) > _OTHER_LEVELS) & where).astype(np.uint8)
        other = cv2.morphologyEx(other, cv2.MORPH_OPEN, np.ones((2, 2), np.uint8))
        other = cv2.morphologyEx(other, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
        count, _, areas, _ = cv2.connectedComponentsWithStats(other)
        found[place] = float(areas[1:, cv2.CC_STAT_AREA].max()) / max(1, int(product.sum())) if count > 1 else 0.0
    return found


def _smooth(grey: NDArray[np.float32], where: Mask) -> bool:
    """Whether most of what is beside the product has no structure that could move or change."""
    if not where.any():
        return False
    _, spread = _moments(grey)
    return float((spread[where] < _SMOOTH_LEVELS**2).mean()) >= _SMOOTH_SHARE


def _extent(mask: Mask) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of what is in the mask, in pixels."""
    across, down = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return int(across[0]), int(down[0]), int(across[-1]) + 1, int(down[-1]) + 1


def _beside(values: Values, place: int) -> Values:
    """The values of the four before and the four after `place`; a nought where there are none."""
    near = np.concatenate([values[max(0, place - 4) : place], values[place + 1 : place + 5]])
    return near if len(near) else np.zeros(1)


def _spread_over(found: NDArray[np.bool_]) -> list[int]:
    """At most `_LOOKS` of the frames that were found, evenly spread, the first and the last among them."""
    there = np.flatnonzero(found)
    if not len(there):
        return []
    chosen = np.linspace(0, len(there) - 1, min(_LOOKS, len(there))).round().astype(int)
    return [int(there[i]) for i in dict.fromkeys(chosen.tolist())]


def _cells(pixels: Pixels8, mask: Mask) -> tuple[Values, NDArray[np.bool_]]:
    """(mean colours (rows, columns, 3) of squares where the mask is, whether it covers enough of each)."""
    cv2 = opencv()
    height, width = mask.shape
    size = max(1, width // CELL_PX), max(1, height // CELL_PX)
    weight = mask.astype(np.float32)
    covered = cv2.resize(weight, size, interpolation=cv2.INTER_AREA)
    summed = cv2.resize(pixels.astype(np.float32) * weight[..., None], size, interpolation=cv2.INTER_AREA)
    means: Values = summed / np.maximum(covered, 1e-6)[..., None]
    return means, covered >= _COVERED


def _tiles(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Means over squares of `_TILE_PX`."""
    cv2 = opencv()
    size = max(1, values.shape[1] // _TILE_PX), max(1, values.shape[0] // _TILE_PX)
    tiles: NDArray[np.float32] = cv2.resize(values, size, interpolation=cv2.INTER_AREA)
    return tiles


def _soft_grey(pixels: Pixels8) -> NDArray[np.float32]:
    """Grey levels, as soft as sampling between pixels makes a frame that was laid back."""
    cv2 = opencv()
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)
    soft: NDArray[np.float32] = cv2.GaussianBlur(grey, (0, 0), 0.8)
    return soft


def _box(values: NDArray[np.float32]) -> NDArray[np.float32]:
    means: NDArray[np.float32] = opencv().boxFilter(values, -1, (_WINDOW, _WINDOW))
    return means


def _moments(values: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(mean, variance) within the window around each pixel."""
    mean = _box(values)
    return mean, np.maximum(_box(values * values) - mean * mean, 0)
