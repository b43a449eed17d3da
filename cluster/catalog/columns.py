"""Names of columns: known ones however they are spelt, and which known one was probably meant by another."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Collection, Sequence

from cluster.catalog.cells import COLUMNS

#: What other programs and people call our columns. Not taken for them: only named where somebody writes one.
_ELSEWHERE = {
    "resolution": "resolution_class",
    "res": "resolution_class",
    "class": "resolution_class",
    "aspectratio": "aspect",
    "ratio": "aspect",
    "quality": "tier",
    "numframes": "frames",
    "framecount": "frames",
    "duration": "seconds",
    "durations": "seconds",
    "length": "seconds",
    "sec": "seconds",
    "secs": "seconds",
    "framerate": "fps",
    "framespersecond": "fps",
    "numinferencesteps": "steps",
    "cfg": "guidance",
    "cfgscale": "guidance",
    "guidancescale": "guidance",
    "scheduler": "sampler",
    "neg": "negative_prompt",
    "startat": "not_before",
    "startafter": "not_before",
    "embargo": "not_before",
    "notuntil": "not_before",
    "maxseconds": "within",
    "timelimit": "within",
    "budget": "within",
    "deliverto": "deliver",
    "delivery": "deliver",
    "deliveries": "deliver",
    "channels": "deliver",
}
#: Likeness (of 1) from which a misspelling is taken for likely; `price` and `prompt` have 0.36.
_LIKE = 0.75
#: Letters of a beginning that are enough: `negative` for `negative_prompt`.
_BEGINNING = 5


def letters_of(name: str) -> str:
    """A name by its letters and digits alone: without case, white space, underscores, hyphens, marks."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", name).casefold())


_BY_LETTERS = {letters_of(name): name for name in COLUMNS}


def column_of(name: str) -> str:
    """A known column's own name for whatever way it is spelt; others without white space around them."""
    return _BY_LETTERS.get(letters_of(name), name.strip().strip("\ufeff").strip())


def meant_by(name: str, there: Collection[str]) -> str | None:
    """The known column that was probably meant by the unknown `name`, of those that are not `there`; None: none."""
    letters = letters_of(name)
    free = {short: column for short, column in _BY_LETTERS.items() if column not in there}
    if (other := _ELSEWHERE.get(letters)) and other not in there:
        return other
    begun = [column for short, column in free.items() if len(letters) >= _BEGINNING and short.startswith(letters)]
    if len(begun) == 1:
        return begun[0]
    close = difflib.get_close_matches(letters, free, n=1, cutoff=_LIKE)
    return free[close[0]] if close else None


def told_unknown(unknown: Sequence[str], there: Collection[str]) -> str:
    """All unknown columns in one sentence, each with what was probably meant; empty where there is none."""
    shown = unknown[:_SHOWN]
    names = [f"{name[:40]} ({meant} meant?)" if (meant := meant_by(name, there)) else name[:40] for name in shown]
    more = len(unknown) - len(shown)
    tail = f" and {more} more" if more > 0 else ""
    return f"columns not known, carried along: {', '.join(names)}{tail}" if names else ""


_SHOWN = 30


def with_numbers(names: Sequence[str]) -> list[str]:
    """The names of a header with those of unknown columns made different: `tag`, `tag (2)`; known ones as they are."""
    taken: set[str] = set(names)
    used: set[str] = set()
    found = []
    for name in names:
        own, number = name, 2
        while name not in COLUMNS and (own in used or (own != name and own in taken)):
            own, number = f"{name} ({number})", number + 1
        used.add(own)
        found.append(own)
    return found
