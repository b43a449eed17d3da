"""Whether the words that a still shows can still be read in its clip, by RapidOCR (extra `text`): seconds a clip."""

from __future__ import annotations

import difflib

import numpy as np
from PIL import Image

from pipeline.clips.clip import Fit
from pipeline.clips.frames import Frames
from pipeline.clips.inspection.words import read_words
from pipeline.clips.stills import fit_still
from pipeline.fidelity.measured import Measure

#: Frames that are read, evenly spread, the first and the last among them.
_READ = 4
#: Letters of a word that is looked for, and how alike what is read has to be (0 to 1, `difflib`) to be that word.
_LEAST_LETTERS, _ALIKE = 3, 0.75


def words_lost(frames: Frames, still: Image.Image, fit: Fit = Fit.CONTAIN) -> Measure | None:
    """The share of the still's words that the worst of some frames does not show; None where the still has none.

    What counts as a word of the still is read at the frames' own size: nobody asks for letters that cannot be shown.
    Raises `BadInputError` where RapidOCR is not installed.
    """
    height, width = frames.shape[1:3]
    own = [word.text.lower() for word in read_words(fit_still(still.convert("RGB"), (width, height), fit))]
    own = [word for word in own if sum(letter.isalnum() for letter in word) >= _LEAST_LETTERS]
    if not own:
        return None
    worst, frame, missing = 0.0, 0, ""
    for place in dict.fromkeys(np.linspace(0, len(frames) - 1, _READ).round().astype(int).tolist()):
        seen = [word.text.lower() for word in read_words(Image.fromarray(frames[place]))]
        lost = [word for word in own if not _is_among(word, seen)]
        if len(lost) / len(own) > worst:
            worst, frame, missing = len(lost) / len(own), place, lost[0]
    words = f"{worst:.0%} of the words on the product cannot be read at frame {frame}, such as {missing!r}"
    return Measure(value=worst, frame=frame, code="words_lost", words=words)


def _is_among(word: str, seen: list[str]) -> bool:
    return any(difflib.SequenceMatcher(None, word, other).ratio() >= _ALIKE for other in seen)
