"""How many replicas of each card class the backlog calls for. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cluster.fleet.cards import Fleet

#: GPU-seconds assumed for a clip of a kind that was never finished here.
UNKNOWN_CLIP_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class WaitingKind:
    """So many waiting jobs of one kind."""

    model: str
    resolution_class: str
    #: Bytes that a card must have usable.
    needs_bytes: int
    jobs: int


@dataclass(frozen=True, kw_only=True)
class ClassState:
    """One card class as the dispatcher sees it, and the bounds its configuration sets."""

    backlog_gpu_seconds: float
    #: Renderers heard of.
    present: int
    #: Renderers with a clip on the card or being published.
    busy: int
    minimum: int
    maximum: int


def backlog_gpu_seconds(
    waiting: Iterable[WaitingKind], mean_seconds: Mapping[tuple[str, str], float], fleet: Fleet
) -> dict[str, float]:
    """GPU-seconds of waiting work per card class of the fleet; each kind counts for the smallest class that it fits.

    `mean_seconds` is what finished clips of a (model, resolution class) took on the card; a kind not in it counts
    `UNKNOWN_CLIP_SECONDS` a clip. Kinds that fit no class are left out.
    """
    backlog = dict.fromkeys(fleet.usable_bytes, 0.0)
    for kind in waiting:
        card_class = fleet.smallest_class_for(kind.needs_bytes)
        if card_class is not None:
            mean = mean_seconds.get((kind.model, kind.resolution_class), UNKNOWN_CLIP_SECONDS)
            backlog[card_class] += kind.jobs * mean
    return backlog


def replicas_wanted(state: ClassState, *, target_s: float) -> int:
    """Replicas that work the backlog off in about `target_s` seconds, within the class's bounds."""
    # However little waits, somebody has to do it: of the least float the quotient is zero.
    least = 1 if state.backlog_gpu_seconds > 0 else 0
    return min(max(math.ceil(state.backlog_gpu_seconds / target_s), least, state.minimum), state.maximum)


def replicas_kept(state: ClassState) -> int:
    """Replicas that may not be taken: all that are present while the class has any work.

    Serve chooses its victims by node and age, so the idle renderer of several cannot be named, and a busy one must not
    be taken. A class goes down when its last clip has ended and none waits.
    """
    return state.present if state.busy or state.backlog_gpu_seconds > 0 else 0
