"""Places in a text which columns fill: `{column}`, and `{column|instead}` for what stands there where it is empty.

A column is spelt as columns may be; braces that are meant are doubled.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from cluster.catalog.columns import letters_of

#: A place, with the groups `column` and `instead` (None: nothing stands instead), or a doubled brace without either.
PLACE = re.compile(r"\{\{|\}\}|\{(?P<column>[^{}|]*)(?:\|(?P<instead>[^{}]*))?\}")


def needed_columns(*texts: str) -> tuple[str, ...]:
    """Columns without which a place of these texts is empty, each once: those that have nothing instead."""
    found = [place for text in texts for place in PLACE.finditer(text)]
    return tuple(
        dict.fromkeys(place["column"].strip() for place in found if place["column"] and place["instead"] is None)
    )


def not_among(needed: Sequence[str], columns: Iterable[str]) -> list[str]:
    """Columns of `needed` that are not among `columns`, however either is spelt."""
    known = {letters_of(name) for name in columns}
    return [name for name in needed if letters_of(name) not in known]


def fault_of_places(text: str) -> str:
    """What is wrong with the places of a text, as what it has; empty where nothing is."""
    if re.search(r"[{}]", PLACE.sub("", text)):
        return "a brace without its other one"
    if any(place["column"] is not None and not place["column"].strip() for place in PLACE.finditer(text)):
        return "a place without a column's name"
    return ""
