"""What of a text its encoder does not see."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping
from typing import Any


def cut_of(texts: Mapping[str, str], tokens_of: Callable[[str], int], most: int) -> dict[str, Any]:
    """By `<name>_tokens_cut` and `<name>_cut`, how many tokens of each text are beyond `most`, and which words.

    `tokens_of` counts a text's tokens, those that mark its begin and end included. The first of the words may be cut
    within.
    """
    cut: dict[str, Any] = {}
    for name, text in texts.items():
        beyond = tokens_of(text) - most
        if beyond <= 0:
            continue
        words = text.split()
        # A beginning of a text never has more tokens than all of it.
        seen = bisect_right(range(1, len(words) + 1), most, key=lambda count: tokens_of(" ".join(words[:count])))
        cut |= {f"{name}_tokens_cut": beyond, f"{name}_cut": " ".join(words[seen:])}
    return cut
