"""Whether the farm of this machine can run what is handed in, told before a row waits for it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from importlib.util import find_spec

from cluster.catalog.defaults import Defaults
from cluster.catalog.manifest import Row
from cluster.catalog.resolve import RowProblems, resolve
from cluster.dispatch.retry import no_card_fits
from cluster.fleet.cards import Fleet
from pipeline.clips.clip import ClipSpec
from pipeline.families import FAMILIES, Family
from pipeline.memory.footprint import leanest, memory_model
from pipeline.notes import rows_text
from pipeline.problems import BadInputError
from pipeline.units import format_bytes
from pipeline.weights.weights import Here, weights_presence
from serve.renderer.cards import INSTALL_TORCH
from serve.settings import Settings

#: Size of a still that stands for all: a class has about the same pixels in every shape, up to this factor in memory.
_ANY_STILL, _ASPECT_SHARE = (1024, 1024), 1.15


def check_runnable(rows: Mapping[str, int], settings: Settings, own_weights: Collection[str] = ()) -> list[str]:
    """Notes on what the first clips will do first; raises `BadInputError` where clips cannot be rendered at all.

    `rows`: how many ask for each model, 0 where none has yet; `own_weights`: models whose weights the farm has from
    elsewhere.
    """
    notes = []
    for name, count in rows.items():
        family = FAMILIES.get(name)
        if family is None:
            continue
        whose = {0: f"{name} is asked for", 1: f"1 row asks for {name}"}.get(count, f"{count} rows ask for {name}")
        if family.needs_torch and find_spec("torch") is None:
            raise BadInputError("model", f"{whose}, which needs torch, and it is not installed here", INSTALL_TORCH)
        if name not in own_weights and (note := _weights_note(family, whose, settings)):
            notes.append(note)
    return notes


def check_fits(rows: Sequence[Row], defaults: Defaults, fleet: Fleet) -> list[str]:
    """Notes on rows that no card of `fleet` can hold, in any layout; raises `BadInputError` where that is all of them.

    Told from what the rows ask for, before their stills are opened: a row that the shape of its still decides is left
    to the farm, and so is one that cannot be resolved.
    """
    too_large: dict[str, ClipSpec] = {}
    for row in rows:
        # Equal rows are resolved once and again, which takes next to nothing.
        try:
            spec = resolve(row, _ANY_STILL, defaults, "").spec
        except RowProblems:
            continue
        if leanest(spec)[1].peak_bytes > fleet.largest_bytes * _ASPECT_SHARE:
            too_large[row.id] = spec
    if not too_large:
        return []
    spec = next(iter(too_large.values()))
    problem = no_card_fits(spec, leanest(spec)[1].peak_bytes, fleet)
    if len(too_large) == len(rows):
        raise BadInputError(problem.field, problem.message, problem.remedy)
    return [f"{rows_text(list(too_large))} will fail: {problem.message}. {problem.remedy}"]


def _weights_note(family: Family, whose: str, settings: Settings) -> str | None:
    presence = weights_presence(family, settings.home)
    if presence.here in (Here.NOT_NEEDED, Here.PRESENT, Here.VERIFIED):
        return None
    pull = f"clipmill models pull {family.name}"
    if presence.here is Here.DAMAGED:
        raise BadInputError("model", f"{whose}, whose weights are damaged here: {presence.problem}", f"Run `{pull}`.")
    if settings.offline:
        raise BadInputError(
            "model", f"{whose}, whose weights are not here, and the farm is offline", f"Where there is a net: `{pull}`."
        )
    memory = memory_model(family)
    whole = presence.bytes_total or (memory.weights_bytes if memory else 0)
    left = format_bytes(whole - presence.bytes_here)
    return f"{whose}, whose weights are not here: its first clip fetches {left} (`{pull}` does it now)"
