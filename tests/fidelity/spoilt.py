"""Clips spoilt on purpose, each in one way and three strengths: what measures of fidelity are judged against.

Good ones are camera moves over real product pictures. Every maker takes a `GoodClip`, a strength (0 mild, 1 plain, 2
strong), a seeded `random.Random` and other clips; it gives frames, or None where a clip cannot have that fault. Nothing
here uses what it is to judge.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.clips.clip import ClipSpec, ResolutionClass
from pipeline.families import family_named
from pipeline.families.layouts import RESIDENT
from pipeline.models.camera import CameraModel

Frames = NDArray[np.uint8]
STRENGTHS = ("mild", "plain", "strong")

#: Prompts of good clips, with one that asks for the opposite where there is one.
MOVES: tuple[tuple[str, str | None], ...] = (
    ("camera {speed} zooming in", "camera {speed} zooming out"),
    ("camera {speed} panning left", "camera {speed} panning right"),
    ("camera {speed} tilting up", "camera {speed} tilting down"),
    ("camera {speed} zooming out", "camera {speed} zooming in"),
    ("camera {speed} panning right", "camera {speed} panning left"),
    ("camera {speed} rolling clockwise", "camera {speed} rolling counterclockwise"),
    ("camera {speed} orbiting to the left", "camera {speed} orbiting to the right"),
    ("camera {speed} tilting down", "camera {speed} tilting up"),
    ("{speed} dolly in", "{speed} dolly out"),
    ("camera {speed} orbiting to the right", "camera {speed} orbiting to the left"),
    ("camera {speed} panning left and zooming in", None),
    ("camera {speed} rolling counterclockwise", "camera {speed} rolling clockwise"),
    ("seamless loop, camera {speed} zooming in", None),
    ("static camera", None),
    ("the product on a table, soft light", None),
)
SPEEDS = ("slowly", "", "quickly")


@dataclass(frozen=True, kw_only=True)
class GoodClip:
    """A camera's way over a still, as the farm renders it."""

    name: str
    still: Image.Image
    spec: ClipSpec
    frames: Frames
    #: The share of its move that there was room for.
    room: float
    #: The prompt that asks for the opposite; None where there is none.
    opposite: str | None

    @property
    def progress(self) -> NDArray[np.float64]:
        """(frames,): 0 at the first frame, 1 from two thirds of the clip on."""
        return np.clip(np.linspace(0, 1.5, len(self.frames)), 0, 1)


Maker = Callable[[GoodClip, int, random.Random, Sequence[GoodClip]], Frames | None]


def good_clip(name: str, still: Image.Image, place: int, *, side: int = 256, frames: int = 16) -> GoodClip:
    """The clip of a still, whose move and speed are those of its `place` in a list."""
    prompt, opposite = MOVES[place % len(MOVES)]
    # Not in step with the moves, so that each is made at every speed.
    speed = SPEEDS[(place // len(MOVES) + place) % 3]
    spec = ClipSpec(
        family="camera",
        revision=family_named("camera").revision,
        prompt=" ".join(prompt.format(speed=speed).split()),
        resolution_class=ResolutionClass.P256,
        width=side,
        height=side,
        frames=frames,
        fps=12,
        steps=1,
        guidance=1,
        seed=0,
    )
    made, room = rendered(still, spec)
    other = None if opposite is None else " ".join(opposite.format(speed="{speed}").split())
    return GoodClip(name=name, still=still, spec=spec, frames=made, room=room, opposite=other)


def rendered(still: Image.Image, spec: ClipSpec) -> tuple[Frames, float]:
    """(frames, the share of the camera's move that there was room for)."""
    model = CameraModel()
    made = model.render(still, spec, RESIDENT, lambda *_: None)
    return made, float(model.notes(spec).get("move_share", 1.0))


# ------------------------------------------------------------------------------------------------- makers


def melted(clip: GoodClip, strength: int, rng: random.Random, others: Sequence[GoodClip]) -> Frames | None:
    """What is in the middle of the product runs: points of it move by up to 2, 4 or 7 percent of the frame."""
    box = _box(clip)
    if box is None:
        return None
    height, width = clip.frames.shape[1:3]
    left, top, right, bottom = box
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    middle = ((left + right) / 2, (top + bottom) / 2)
    reach = ((right - left) * 0.32, (bottom - top) * 0.32)
    inside = np.clip(1.4 - np.hypot((x - middle[0]) / reach[0], (y - middle[1]) / reach[1]), 0, 1)
    # Where there is nothing that could run, nobody sees it run.
    grey = cv2.cvtColor(clip.frames[0], cv2.COLOR_RGB2GRAY).astype(np.float32)
    edges = np.hypot(cv2.Sobel(grey, -1, 1, 0) / 8, cv2.Sobel(grey, -1, 0, 1) / 8)
    if float((edges[inside > 0.5] > 8).mean() if (inside > 0.5).any() else 0) < 0.06:
        return None
    noise = np.random.default_rng(rng.randrange(2**32)).normal(size=(2, height, width)).astype(np.float32)
    fields = [cv2.GaussianBlur(one, (0, 0), 0.03 * width) for one in noise]
    size = np.array((0.02, 0.04, 0.07))[strength] * width
    fields = [inside * one / np.abs(one).max() * size for one in fields]
    return _bent(clip, fields)


def warped(clip: GoodClip, strength: int, rng: random.Random, others: Sequence[GoodClip]) -> Frames | None:
    """The product's outline swings: by 3, 6 or 10 percent of its width."""
    box = _box(clip)
    if box is None:
        return None
    height, width = clip.frames.shape[1:3]
    _, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    size = (0.03, 0.06, 0.1)[strength] * (box[2] - box[0])
    waves = rng.uniform(1.0, 2.0)
    bend = size * np.sin(2 * np.pi * waves * y / (box[3] - box[1]) + rng.uniform(0, 6))
    return _bent(clip, [bend.astype(np.float32), np.zeros_like(bend, dtype=np.float32)])


def recoloured(clip: GoodClip, strength: int, rng: random.Random, others: Sequence[GoodClip]) -> Frames | None:
    """The product takes on a colour that it has not: 10, 20 or 35 percent of it."""
    shown = _shown(clip)
    if shown is None:
        return None
    share = (0.1, 0.2, 0.35)[strength]
    colour = np.array(rng.choice([(220, 40, 40), (40, 90, 220), (230, 180, 30), (40, 170, 80)]), np.float32)
    made = clip.frames.astype(np.float32)
    for frame, where, grown in zip(made, shown, clip.progress, strict=True):
        soft = cv2.GaussianBlur(where.astype(np.float32), (0, 0), 1.5)[..., None] * share * grown
        frame += soft * (colour - frame)
    return _levels(made)


def swapped_first(clip: GoodClip, strength: int, rng: random.Random, others: Sequence[GoodClip]) -> Frames | None:
    """The first frame shows another product, by 40, 70 or 100 percent."""
    share = (0.4, 0.7, 1.0)[strength]
    made = clip.frames.copy()
    mixed = (1 - share) * made[0].astype(np.float32) + share * rng.choice(others).frames[0]
    made[0] = _levels(mixed)
    return made


def swapped(clip: GoodClip, strength: int, rng: random.Random, others: Sequence[GoodClip]) -> Frames | None:
    """The product becomes another one on the way: by 40, 70 or 100 percent."""
    share = (0.4, 0.7, 1.0)[strength] * clip.progress[:, None, None, None]
    return _levels((1 - share) * clip.frames + share * rng.choice(others).frames)


def flickering(clip: GoodClip, strength: int, rng: random.Random, others: Sequence[GoodClip]) -> Frames | None:
    """Brightness changes from frame to frame, by up to 3, 7 or 14 percent."""
    size = (0.03, 0.07, 0.14)[strength]
    gains = np.array([1 - size * rng.random() for _ in clip.frames], np.float32)
    return _levels(clip.frames * gains[:, None, None, None])


def frozen(clip: GoodClip, strength: int, rng: random.Random, others: Sequence[GoodClip]) -> Frames | None:
    """The last 35, 50 or 90 percent of the clip stand still."""
    if "static" in clip.spec.prompt:
        return None
    begin = round((1 - (0.35, 0.5, 0.9)[strength]) * (len(clip.frames) - 1))
    made = clip.frames.copy()
    made[begin:] = made[begin]
    return made


def blackened(clip: GoodClip, strength: int, rng: random.Random, others: Sequence[GoodClip]) -> Frames | None:
    """One, three or eight frames are black."""
    count = (1, 3, 8)[strength]
    begin = rng.randrange(len(clip.frames) - count + 1)
    made = clip.frames.copy()
    made[begin : begin + count] = 0
    return made


def cut(clip: GoodClip, strength: int, rng: random.Random, others: Sequence[GoodClip]) -> Frames | None:
    """In the middle the picture jumps: 1.1, 1.3 or 1.8 times as large, and aside."""
    height, width = clip.frames.shape[1:3]
    scale, aside = (1.1, 1.3, 1.8)[strength], (0.03, 0.06, 0.1)[strength] * width * rng.choice((-1, 1))
    begin = rng.randrange(len(clip.frames) // 3, 2 * len(clip.frames) // 3)
    view = np.array([[scale, 0, (1 - scale) * width / 2 + aside], [0, scale, (1 - scale) * height / 2]])
    made = clip.frames.copy()
    for place in range(begin, len(made)):
        made[place] = cv2.warpAffine(made[place], view, (width, height), borderMode=cv2.BORDER_REPLICATE)
    return made


def doubled(clip: GoodClip, strength: int, rng: random.Random, others: Sequence[GoodClip]) -> Frames | None:
    """A second one comes up beside the product, 30, 45 or 60 percent of its size."""
    shown, box = _shown(clip), _box(clip)
    if shown is None or box is None:
        return None
    left, top, right, bottom = (round(edge) for edge in box)
    height, width = clip.frames.shape[1:3]
    scale = (0.3, 0.45, 0.6)[strength]
    size = max(4, round((right - left) * scale)), max(4, round((bottom - top) * scale))
    piece = cv2.resize(clip.frames[0][top:bottom, left:right], size, interpolation=cv2.INTER_AREA).astype(np.float32)
    alpha = cv2.resize(shown[0][top:bottom, left:right].astype(np.float32), size, interpolation=cv2.INTER_AREA)
    corners = [(x, y) for x in (2, width - size[0] - 2) for y in (2, height - size[1] - 2) if x > 0 and y > 0]
    # Where most of it covers the product there is no second one.
    free = [(x, y) for x, y in corners if shown[:, y : y + size[1], x : x + size[0]].max(axis=0).mean() < 0.5]
    if not free:
        return None
    x, y = rng.choice(free)
    made = clip.frames.astype(np.float32)
    for frame, grown in zip(made, clip.progress, strict=True):
        part = frame[y : y + size[1], x : x + size[0]]
        part += (alpha * grown)[..., None] * (piece - part)
    return _levels(made)


def moved_wrongly(clip: GoodClip, strength: int, rng: random.Random, others: Sequence[GoodClip]) -> Frames | None:
    """The camera does the opposite of what is asked for: slowly, as usual or quickly."""
    if clip.opposite is None or clip.room < 0.6:
        return None
    prompt = " ".join(clip.opposite.format(speed=SPEEDS[strength]).split())
    made, room = rendered(clip.still, clip.spec.model_copy(update={"prompt": prompt}))
    # Where the product leaves no room, nothing of the move is seen.
    return made if room >= 0.6 else None


#: Makers by the fault, and codes of which one at least is to be told of it.
FAULTS: Mapping[str, tuple[Maker, frozenset[str]]] = {
    "melted label": (melted, frozenset({"structure_lost"})),
    "warped outline": (warped, frozenset({"outline_drift", "structure_lost"})),
    "colour shift": (recoloured, frozenset({"colour_drift"})),
    "swapped first frame": (swapped_first, frozenset({"first_frame_off"})),
    "another product": (swapped, frozenset({"structure_lost", "product_lost", "colour_drift", "second_product"})),
    "flicker": (flickering, frozenset({"flicker"})),
    "frozen": (frozen, frozenset({"frozen"})),
    "black frames": (blackened, frozenset({"black_frames"})),
    "cut": (cut, frozenset({"cut"})),
    "second product": (doubled, frozenset({"second_product"})),
    "wrong camera move": (moved_wrongly, frozenset({"motion_opposite"})),
}


# ------------------------------------------------------------------------------------------------- parts


def _shown(clip: GoodClip) -> NDArray[np.bool_] | None:
    """(frames, height, width): where each frame differs from the colour of its corners; None: nobody can tell."""
    corners = np.median(clip.frames[:, [2, 2, -3, -3], [2, -3, 2, -3]].reshape(-1, 3), axis=0)
    if np.abs(clip.frames[:, [2, 2, -3, -3], [2, -3, 2, -3]] - corners).max() > 40:
        return None
    away = np.abs(clip.frames.astype(np.float32) - corners.astype(np.float32)).max(axis=3) > 24
    solid = np.stack(
        [cv2.morphologyEx(one.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((9, 9), np.uint8)) for one in away]
    )
    share = float(solid[0].mean())
    return solid > 0 if 0.03 < share < 0.85 else None


def _box(clip: GoodClip) -> tuple[float, float, float, float] | None:
    """Left, top, right, bottom in pixels of what the first frame shows; None where nobody can tell."""
    shown = _shown(clip)
    if shown is None:
        return None
    across, down = np.flatnonzero(shown[0].sum(axis=0) > 3), np.flatnonzero(shown[0].sum(axis=1) > 3)
    return float(across[0]), float(down[0]), float(across[-1] + 1), float(down[-1] + 1)


def _bent(clip: GoodClip, fields: Sequence[NDArray[np.float32]]) -> Frames:
    """Frames whose points moved by `fields` (x, y in pixels), more and more."""
    height, width = clip.frames.shape[1:3]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return np.stack(
        [
            cv2.remap(
                frame,
                (x + grown * fields[0]).astype(np.float32),
                (y + grown * fields[1]).astype(np.float32),
                cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_REPLICATE,
            )
            for frame, grown in zip(clip.frames, clip.progress, strict=True)
        ]
    )


def _levels(values: NDArray[np.floating]) -> Frames:
    return np.rint(np.clip(values, 0, 255)).astype(np.uint8)
