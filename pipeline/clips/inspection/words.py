"""Words that can be read in a picture, by RapidOCR, where it is installed (extra `text`)."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
from PIL import Image

from pipeline.clips.inspection.product import Box
from pipeline.clips.still_notes import StillNoteCode
from pipeline.notes import Note
from pipeline.problems import BadInputError

#: Longest side, in pixels, at which a picture is read: letters that are smaller then are none that a clip shows.
READ_SIDE = 960
#: A word is believed in from this score, of 1.
SURE = 0.6
#: Much text: so many words, or such a share of the picture within their boxes. A name on a product is neither.
MANY_WORDS, TEXT_SHARE = 16, 0.12
#: The models of RapidOCR keep state while they run.
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Word:
    """A word that a picture shows, or a line of them where a writing sets none apart."""

    text: str
    #: How sure the reader is, 0 to 1.
    score: float
    #: Around the word, level, as shares of the picture's sides: left, top, right, bottom.
    box: Box


def can_read() -> bool:
    """Whether words can be read here: RapidOCR and what it runs on are installed."""
    return all(find_spec(name) is not None for name in ("rapidocr", "onnxruntime"))


def read_words(image: Image.Image, *, sure: float = SURE) -> tuple[Word, ...]:
    """The words of `image` (RGB, upright) from the top down, those of a score of `sure` (0 to 1) or more.

    Read at `READ_SIDE` pixels a side, on one thread; a second or two a picture, and once some seconds for the models,
    which come with the package. Raises `BadInputError` on `text` where RapidOCR is not installed.
    """
    scale = min(1.0, READ_SIDE / max(image.size))
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    small = image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)
    # RapidOCR takes arrays as OpenCV has them: blue, green, red.
    pixels = np.ascontiguousarray(np.asarray(small)[:, :, ::-1])
    with _ONE_AT_A_TIME:
        found = _reader()(pixels, return_word_box=True)
    words = [
        Word(text=text.strip(), score=float(score), box=_box(corners, size))
        for line in found.word_results or ()
        for text, score, corners in (line if isinstance(line[0], (list, tuple)) else (line,))
        if corners is not None and text.strip() and float(score) >= sure
    ]
    return tuple(sorted(words, key=lambda word: (round(word.box[1], 2), word.box[0])))


def text_share(words: tuple[Word, ...]) -> float:
    """Share of the picture that lies within the boxes of its words, each part counted as often as it is covered."""
    return sum((right - left) * (bottom - top) for left, top, right, bottom in (word.box for word in words))


def text_note(words: tuple[Word, ...]) -> Note | None:
    """What is to be said of a still that shows these words; None where they are few and small."""
    share = text_share(words)
    if len(words) < MANY_WORDS and share < TEXT_SHARE:
        return None
    first = " ".join(word.text for word in words)
    shown = first[:60] + ("…" if len(first) > 60 else "")
    what = f"the still shows much text ({len(words)} words on {share:.0%} of it: {shown!r})"
    message = f"{what}, and letters swim in clips. Take a picture without"
    return Note(code=StillNoteCode.STILL_MUCH_TEXT, message=message, field="image")


@cache
def _reader() -> Any:
    if not can_read():
        raise BadInputError(
            "text", "words cannot be read here: RapidOCR is not installed", "pip install 'clipmill[text]'"
        )
    engine = "EngineConfig.onnxruntime"
    options = {
        "Global.log_level": "error",
        f"{engine}.intra_op_num_threads": 1,
        f"{engine}.inter_op_num_threads": 1,
    }
    return import_module("rapidocr").RapidOCR(params=options)


def _box(corners: Any, size: tuple[int, int]) -> Box:
    """The level box around four corners in pixels, as shares of the picture's sides."""
    across, down = zip(*corners, strict=True)
    left, right = (min(1.0, max(0.0, float(value) / size[0])) for value in (min(across), max(across)))
    top, bottom = (min(1.0, max(0.0, float(value) / size[1])) for value in (min(down), max(down)))
    return left, top, right, bottom
