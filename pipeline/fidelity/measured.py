"""A clip measured against its still and its prompt: score, parts, and what is said of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.clips.clip import ClipSpec, Fit
from pipeline.clips.frames import Frames
from pipeline.clips.prompts import read_motion
from pipeline.clips.stills import fit_still, resize
from pipeline.families import Family
from pipeline.fidelity import measures
from pipeline.fidelity.bounds import BOUNDS
from pipeline.fidelity.libraries import opencv
from pipeline.fidelity.mask import ProductMask, Segmenter, product_mask
from pipeline.fidelity.measures import LaidClip, Values
from pipeline.fidelity.motion import MotionVerdict, judge_motion, seen_motion
from pipeline.fidelity.score import FidelityPart, FidelityScore
from pipeline.fidelity.tracking import laid_back, track
from pipeline.notes import Note

#: Longest side, in pixels, at which clips are measured, and frames of them that are, evenly spread.
SIDE, MOST_FRAMES = 256, 97
#: Longest side of a still that is kept for it: a camera comes closer than the frame's own pixels.
_KEPT_SIDE = 1024


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One thing that was measured."""

    #: In the unit of its bound (`pipeline.fidelity.bounds`); less is better.
    value: float
    #: The frame of the clip, from 0, at which it is worst; None where it is about all of it.
    frame: int | None = None
    #: What a person reads where it is told, and its code.
    code: str = ""
    words: str = ""


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """How true a clip is to its still and its prompt. What nobody can tell is not among the parts."""

    parts: Mapping[FidelityPart, Measure]
    mask: ProductMask

    @property
    def score(self) -> FidelityScore:
        """The score as it is kept and shown."""
        scores = {part: BOUNDS[part].score(one.value) for part, one in self.parts.items()}
        worst = min(scores, key=scores.__getitem__, default=None)
        return FidelityScore(
            score=round(scores[worst], 3) if worst is not None else 1.0,
            parts={part.value: round(score, 3) for part, score in scores.items()},
            worst_frame=self.parts[worst].frame if worst is not None else None,
        )

    @property
    def told(self) -> tuple[FidelityPart, ...]:
        """Parts that are beyond their bounds, the worst first."""
        beyond = [part for part, one in self.parts.items() if one.value >= BOUNDS[part].told]
        return tuple(sorted(beyond, key=lambda part: BOUNDS[part].score(self.parts[part].value)))

    @property
    def notes(self) -> tuple[Note, ...]:
        """What a person should look at; empty where all is within bounds."""
        found = [self.parts[part] for part in self.told]
        return tuple(Note(code=one.code, message=one.words) for one in found if one.code)

    def to_json(self) -> dict[str, Any]:
        """For provenance: score and parts, the values that they come from, and how the product was told."""
        score = self.score
        parts = {
            part.value: {"score": score.parts[part.value], "value": round(one.value, 4)}
            | ({} if one.frame is None else {"worst_frame": one.frame})
            for part, one in self.parts.items()
        }
        return {
            "score": score.score,
            "worst": score.worst,
            "parts": parts,
            "product": {"by": self.mask.source.value, "share": round(self.mask.share, 3)},
            "reasons": [note.code for note in self.notes],
        }


def reduced(still: Image.Image) -> Image.Image:
    """A copy of a still that is as good for `measure`, of 1024 pixels a side at the most: a large one takes 300 MB."""
    scale = min(1.0, _KEPT_SIDE / max(still.size))
    size = max(1, round(still.width * scale)), max(1, round(still.height * scale))
    return resize(still, size) if scale < 1 else still.copy()


def measurable(family: Family) -> str:
    """Why clips of a family are not measured, in words; empty where they are."""
    if family.needs_torch and family.repo is None:
        return f"{family.name} has random weights: its clips are noise, and show no product"
    return ""


def measure(
    frames: Frames,
    still: Image.Image,
    spec: ClipSpec,
    *,
    flat: bool = False,
    room: float = 1.0,
    segmenter: Segmenter | None = None,
) -> Fidelity:
    """Measure `frames` (frames, height, width, 3) against the still (RGB, mended already) and the prompt of `spec`.

    `flat`, `room`: as `judge_motion` has them. Under a second of one core for 48 frames of 512p. Raises
    `BadInputError` where OpenCV or scikit-image is missing.
    """
    return compare(frames, still, fit=spec.fit, prompt=spec.prompt, flat=flat, room=room, segmenter=segmenter)


def compare(
    frames: Frames,
    still: Image.Image,
    *,
    fit: Fit = Fit.CONTAIN,
    prompt: str = "",
    flat: bool = False,
    room: float = 1.0,
    segmenter: Segmenter | None = None,
) -> Fidelity:
    """`measure` of a clip whose specification is not at hand. Without a prompt its motion is not judged."""
    numbers = _chosen(len(frames))
    clip = _laid_clip(frames, numbers, still, fit, segmenter)
    black = measures.black_frames(frames)
    seen = seen_motion(clip.track, clip.still.shape[1::-1]) if prompt else None
    motion = judge_motion(prompt, seen, flat=flat, room=room) if seen is not None else None
    parts = _of_frames(clip, numbers, black)
    if flat and prompt and not read_motion(prompt).moves:
        # One picture all the time is what was asked for.
        parts.pop(FidelityPart.FROZEN, None)
    if clip.track.followed:
        parts |= _of_product(clip, numbers)
    if motion is not None:
        parts[FidelityPart.MOTION] = _of_motion(motion)
    return Fidelity(parts={part: parts[part] for part in FidelityPart if part in parts}, mask=clip.mask)


def _chosen(count: int) -> list[int]:
    """Numbers of the frames that are measured: all of them, or `MOST_FRAMES`."""
    return list(dict.fromkeys(np.linspace(0, count - 1, min(count, MOST_FRAMES)).round().astype(int).tolist()))


def _laid_clip(
    frames: Frames, numbers: list[int], still: Image.Image, fit: Fit, segmenter: Segmenter | None
) -> LaidClip:
    cv2 = opencv()
    height, width = frames.shape[1:3]
    scale = min(1.0, SIDE / max(height, width))
    size = max(16, round(width * scale)), max(16, round(height * scale))
    prepared = fit_still(still.convert("RGB"), size, fit)
    small = np.stack([cv2.resize(frames[i], size, interpolation=cv2.INTER_AREA) for i in numbers])
    own = np.asarray(prepared)
    mask = product_mask(prepared, segmenter)
    black = measures.black_frames(small)
    grey = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in small])
    found = track(cv2.cvtColor(own, cv2.COLOR_RGB2GRAY), grey, mask.pixels, black)
    laid, shown = laid_back(small, found)
    return LaidClip(still=own, mask=mask, frames=small, laid=laid, shown=shown, track=found, black=black)


def _of_frames(clip: LaidClip, numbers: list[int], black: NDArray[np.bool_]) -> dict[FidelityPart, Measure]:
    """What is told of the frames themselves, whatever they show."""
    parts: dict[FidelityPart, Measure] = {}
    # A still that is black itself, or nearly so, is shown as it is.
    if not measures.black_frames(clip.still[None])[0]:
        share, first = float(black.mean()), int(np.argmax(black))
        words = f"{int(black.sum())} of {len(black)} frames are black, the first of them {first}"
        # Where all of them are, the review has said so.
        code = "" if black.all() else "black_frames"
        parts[FidelityPart.BLACK] = Measure(value=share, frame=first if black.any() else None, code=code, words=words)
    share, first = measures.frozen_share(clip.frames)
    words = f"{share:.0%} of the clip is one picture, from frame {numbers[first]} on"
    parts[FidelityPart.FROZEN] = Measure(
        value=share, frame=numbers[first], code="" if share == 1 else "frozen", words=words
    )
    return parts


def _of_product(clip: LaidClip, numbers: list[int]) -> dict[FidelityPart, Measure]:
    """What is told of the product by what the frames show of the still."""
    parts: dict[FidelityPart, Measure] = {}
    lit = np.flatnonzero(~clip.black)
    if not len(lit):
        return parts
    off = measures.still_differences(clip, int(lit[0]))
    what = f"differs by {off:.0%} from the still" if clip.found[lit[0]] else "does not show the still"
    parts[FidelityPart.FIRST_FRAME] = Measure(
        value=off, frame=numbers[lit[0]], code="first_frame_off", words=f"the first frame {what}"
    )
    lost = lit[~clip.found[lit]]
    if len(lost):
        words = f"the product cannot be found again in {len(lost)} of {len(lit)} frames, from frame {numbers[lost[0]]}"
        frame: int | None = numbers[lost[0]]
    else:
        words, frame = "", None
    parts[FidelityPart.TRACK] = Measure(value=len(lost) / len(lit), frame=frame, code="product_lost", words=words)
    jumps = measures.cuts(clip)
    at = int(np.argmax(jumps))
    parts[FidelityPart.CUT] = Measure(
        value=float(jumps[at]), frame=numbers[at], code="cut", words=f"the picture jumps at frame {numbers[at]}: a cut"
    )
    for part, values, (code, words) in (
        (FidelityPart.COLOUR, measures.colour_drift(clip), _COLOUR),
        (FidelityPart.STRUCTURE, measures.structure_loss(clip), _STRUCTURE),
        (FidelityPart.OUTLINE, measures.outline_drift(clip), _OUTLINE),
        (FidelityPart.SECOND_PRODUCT, measures.second_products(clip), _SECOND),
        (FidelityPart.FLICKER, measures.flicker(clip), _FLICKER),
    ):
        worst = _worst(part, values)
        if worst is not None:
            value, place = worst
            text = words.format(value=value, frame=numbers[place])
            parts[part] = Measure(value=value, frame=numbers[place], code=code, words=text)
    return parts


_COLOUR = "colour_drift", "the product's colours are off by {value:.1f} (CIEDE2000) at frame {frame}"
_STRUCTURE = "structure_lost", "label and details have lost {value:.0%} of their structure at frame {frame}"
_OUTLINE = "outline_drift", "{value:.0%} of the product's area is not where its outline was, at frame {frame}"
_SECOND = "second_product", "frame {frame} shows something that the still does not, {value:.0%} as large as the product"
_FLICKER = "flicker", "brightness changes by {value:.1f} of 255 from frame to frame, most at frame {frame}"


def _worst(part: FidelityPart, values: Values) -> tuple[float, int] | None:
    """(how bad a part is, the place where it is worst) of its values by frame; None where nobody can tell.

    One frame that was measured badly is no fault: of flicker the mean of the worst quarter counts, of the others the
    second worst frame.
    """
    told = np.flatnonzero(~np.isnan(values))
    if not len(told):
        return None
    order = told[np.argsort(values[told])[::-1]]
    if part is FidelityPart.FLICKER:
        return float(values[order[: max(1, len(order) // 4)]].mean()), int(order[0])
    return float(values[order[min(1, len(order) - 1)]]), int(order[0])


def _of_motion(verdict: MotionVerdict) -> Measure:
    return Measure(value=verdict.off, code=verdict.code, words=verdict.words)
