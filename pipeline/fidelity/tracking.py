"""Where each frame of a clip shows what the still shows: one homography a frame, from the still's pixels to its own.

A flat picture before a moving camera is one homography (Hartley & Zisserman, Multiple View Geometry, 2nd ed., section
8.1); a rigid product that turns a little comes close to one. Points of the still are followed by pyramidal
Lucas-Kanade flow from the still itself, laid where the frame before had it, so that errors do not add up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.clips.inspection.product import Mask
from pipeline.fidelity.libraries import opencv

Grey = NDArray[np.uint8]
Homography = NDArray[np.float64]

#: Points that are followed at most, their least quality as a share of the best one's, and pixels between two.
_POINTS, _QUALITY, _APART_PX = 240, 0.008, 4
#: Points of the product that are enough to leave those of the background out.
_ENOUGH = 40
#: Points that have to agree, in number and as a share of those that the frame can show, for a frame to be found.
_LEAST_POINTS, _LEAST_SHARE = 9, 0.3
#: Share of the points that agree to a homography which an affine map has to keep, to be taken instead.
_AFFINE_SHARE = 0.95
#: Pixels by which a point may miss its place: there and back by flow, and under the homography.
_RETURN_PX, _AGREE_PX = 0.8, 1.0
#: Pixels by which a view may be off what it was begun with, to be as exact as it gets.
_NEAR_PX = 2.0
#: Windows of the flow in pixels, and levels of its pyramid.
_WINDOW, _LEVELS = (15, 15), 3
#: By how much a frame may be larger or smaller than the still, in area.
_LEAST_AREA, _MOST_AREA = 0.15, 7.0


@dataclass(frozen=True, kw_only=True)
class Track:
    """Where the frames of a clip show the still."""

    #: (frames, 3, 3), from the still's pixels to the frame's; that of the frame before where it was not found.
    views: Homography
    #: (frames,): whether the frame shows what the still shows.
    found: NDArray[np.bool_]
    #: Whether the still has enough structure for anything to be followed.
    followed: bool

    @property
    def share(self) -> float:
        """Share of the frames that were found."""
        return float(self.found.mean()) if len(self.found) else 0.0


def track(still: Grey, frames: NDArray[np.uint8], mask: Mask, skip: NDArray[np.bool_]) -> Track:
    """Find `still` (height, width) in `frames` (frames, height, width), both grey and of one size.

    `mask`: where the product is, whose points are followed where it has enough. `skip`: (frames,), those that are not
    looked at, being black.
    """
    views = np.repeat(np.eye(3)[None], len(frames), axis=0)
    found = np.zeros(len(frames), bool)
    follower = _Follower(still, mask)
    if not follower.usable:
        return Track(views=views, found=found, followed=False)
    known: list[Homography] = []
    for place, frame in enumerate(frames):
        view = None if skip[place] else follower.find(frame, known)
        if view is not None:
            known = [*known[-1:], view]
            found[place] = True
        if known:
            views[place] = known[-1]
    return Track(views=views, found=found, followed=True)


def laid_back(frames: NDArray[np.uint8], found: Track) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """(frames (frames, height, width, channels) laid onto the still, where each of them shows anything of it)."""
    cv2 = opencv()
    height, width = frames.shape[1:3]
    laid = np.empty_like(frames)
    shown = np.empty(frames.shape[:3], bool)
    whole = np.full((height, width), 255, np.uint8)
    # Two pixels off the end of a frame, for whatever samples across it.
    whole[:2] = whole[-2:] = whole[:, :2] = whole[:, -2:] = 0
    for place, (frame, view) in enumerate(zip(frames, found.views, strict=True)):
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        laid[place] = cv2.warpPerspective(frame, view, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)
        shown[place] = cv2.warpPerspective(whole, view, (width, height), flags=flags) > 250
    return laid, shown


class _Follower:
    """Points of one still, and how they are found in a frame."""

    def __init__(self, still: Grey, mask: Mask) -> None:
        cv2 = opencv()
        self._still = still
        around = cv2.dilate(mask.astype(np.uint8), np.ones((7, 7), np.uint8))
        points = self._corners(around)
        self._points = points if len(points) >= _ENOUGH else self._corners(None)
        self._orb = cv2.ORB_create(nfeatures=500, fastThreshold=7)
        self._landmarks: tuple[Any, Any] | None = None

    @property
    def usable(self) -> bool:
        """Whether there is enough to follow."""
        return len(self._points) >= _LEAST_POINTS + 3

    def find(self, frame: Grey, known: list[Homography]) -> Homography | None:
        """Where `frame` shows the still, tried from where the frames before had it; None where it does not."""
        for guess in self._guesses(frame, known):
            view = self._refined(frame, guess)
            if view is None:
                continue
            if _apart(view, guess, frame.shape) > _NEAR_PX:
                # Flow over a long way is coarse: once more, from where it led.
                again = self._refined(frame, view)
                return view if again is None else again
            return view
        return None

    def _guesses(self, frame: Grey, known: list[Homography]) -> Iterator[Homography]:
        if len(known) == 2:
            # As it went on from the one before to the last.
            yield known[1] @ np.linalg.inv(known[0]) @ known[1]
        yield known[-1] if known else np.eye(3)
        matched = self._matched(frame)
        if matched is not None:
            yield matched
        if known:
            yield np.eye(3)

    def _corners(self, where: Grey | None) -> NDArray[np.float32]:
        found = opencv().goodFeaturesToTrack(self._still, _POINTS, _QUALITY, _APART_PX, mask=where)
        return np.empty((0, 1, 2), np.float32) if found is None else found

    def _refined(self, frame: Grey, guess: Homography) -> Homography | None:
        """The view near `guess` under which most points of the still lie on what the frame shows."""
        cv2 = opencv()
        height, width = frame.shape
        begun = cv2.perspectiveTransform(self._points, guess)
        x, y = begun[:, 0, 0], begun[:, 0, 1]
        inside = (x >= 2) & (y >= 2) & (x < width - 2) & (y < height - 2)
        if inside.sum() < _LEAST_POINTS:
            return None
        laid = cv2.warpPerspective(self._still, guess, (width, height), borderMode=cv2.BORDER_REPLICATE)
        even = _like(frame, laid)
        begun = np.ascontiguousarray(begun[inside], np.float32)
        options = {"winSize": _WINDOW, "maxLevel": _LEVELS}
        moved, there, _ = cv2.calcOpticalFlowPyrLK(laid, even, begun, None, **options)
        again, back, _ = cv2.calcOpticalFlowPyrLK(even, laid, moved, None, **options)
        missed = np.linalg.norm((again - begun)[:, 0], axis=1)
        good = (there[:, 0] > 0) & (back[:, 0] > 0) & (missed < _RETURN_PX)
        if good.sum() < _LEAST_POINTS:
            return None
        view, agree = cv2.findHomography(
            self._points[inside][good], moved[good], cv2.USAC_MAGSAC, _AGREE_PX, maxIters=600, confidence=0.995
        )
        if view is None or agree is None or not _sane(view, (width, height)):
            return None
        count = int(agree.sum())
        if count < _LEAST_POINTS or count < _LEAST_SHARE * inside.sum():
            return None
        return _simplest(view, self._points[inside][good], moved[good], count)

    def _matched(self, frame: Grey) -> Homography | None:
        """The view by landmarks that look alike, however far they went."""
        cv2 = opencv()
        if self._landmarks is None:
            self._landmarks = self._orb.detectAndCompute(self._still, None)
        own, looks = self._landmarks
        other, seen = self._orb.detectAndCompute(frame, None)
        if looks is None or seen is None or min(len(own), len(other)) < _LEAST_POINTS:
            return None
        pairs = cv2.BFMatcher(cv2.NORM_HAMMING, crossCheck=True).match(looks, seen)
        if len(pairs) < _LEAST_POINTS:
            return None
        begun = np.array([own[pair.queryIdx].pt for pair in pairs], np.float32)
        ended = np.array([other[pair.trainIdx].pt for pair in pairs], np.float32)
        view, agree = cv2.findHomography(begun, ended, cv2.USAC_MAGSAC, 3.0, maxIters=2000, confidence=0.995)
        if view is None or agree is None or agree.sum() < _LEAST_POINTS or not _sane(view, frame.shape[::-1]):
            return None
        found: Homography = view
        return found


def _simplest(view: Homography, begun: NDArray[np.float32], ended: NDArray[np.float32], agree: int) -> Homography:
    """An affine map in place of `view` where nearly as many points agree to it: a homography of few points is shaky."""
    cv2 = opencv()
    affine, kept = cv2.estimateAffine2D(
        begun, ended, method=cv2.RANSAC, ransacReprojThreshold=_AGREE_PX, maxIters=400, confidence=0.995
    )
    if affine is None or kept is None or kept.sum() < _AFFINE_SHARE * agree:
        return view
    found: Homography = np.vstack([affine, [0.0, 0.0, 1.0]])
    return found


def _like(frame: Grey, other: Grey) -> Grey:
    """`frame` with the mean and the contrast of `other`: flow follows brightness, and a clip may flicker."""
    mean, spread = float(frame.mean()), float(frame.std())
    if spread < 1:
        return frame
    made = (frame.astype(np.float32) - mean) * (float(other.std()) / spread) + float(other.mean())
    evened: Grey = np.clip(np.rint(made), 0, 255).astype(np.uint8)
    return evened


def _apart(one: Homography, other: Homography, shape: tuple[int, ...]) -> float:
    """Mean distance in pixels of the corners of the still under two views."""
    height, width = shape[:2]
    corners = np.array([[0, width, width, 0], [0, 0, height, height], [1, 1, 1, 1]], np.float64)
    at = [view @ corners for view in (one, other)]
    return float(np.linalg.norm(at[0][:2] / at[0][2] - at[1][:2] / at[1][2], axis=0).mean())


def _sane(view: Homography, size: tuple[int, ...]) -> bool:
    """Whether a frame could be seen so: not mirrored, not folded, not many times larger or smaller."""
    width, height = size[:2]
    corners = np.array([[0, width, width, 0], [0, 0, height, height], [1, 1, 1, 1]], np.float64)
    x, y, w = view @ corners
    if not np.isfinite(view).all() or (w <= 0.2).any():
        return False
    x, y = x / w, y / w
    area = 0.5 * float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)) / (width * height)
    return _LEAST_AREA <= area <= _MOST_AREA
