"""All changes that start a waiting job, in the order of what they cost. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from cluster.explain.model import Remedy
from cluster.explain.remedies import cards, clip, turns, waiting
from cluster.explain.trial import Trial


def changes(trial: Trial) -> Iterator[Remedy]:
    """Changes that start the job, one of each kind at most, from the cheapest to the dearest.

    Of a kind those that start it at once come before those that do later.
    """
    waits = waiting.until_it_starts(trial)
    until = waits.at if waits is not None and waits.at is not None else math.inf
    steps: Sequence[Callable[[], Remedy | None]] = (
        lambda: cards.release(trial, until), lambda: clip.leaner(trial, until),
        lambda: turns.raise_priority(trial), lambda: turns.lower_priority(trial), lambda: waits,
        lambda: turns.owner_limit(trial), lambda: cards.add(trial), lambda: clip.fewer_frames(trial),
        lambda: clip.smaller_class(trial),
    )  # fmt: skip
    for step in steps:
        if (change := step()) is not None:
            yield change
