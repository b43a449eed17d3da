"""From manifest rows to jobs: stills into storage on the submitting side, specs and drafts on the farm's side."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ConfigDict, Field

from cluster.catalog.advice.deliveries import NOTHING_FORESEEN, DeliveryPreflight
from cluster.catalog.cells import JsonNumbers
from cluster.catalog.defaults import Defaults, RowDefaults
from cluster.catalog.manifest import BadRow, Manifest, Row, id_fault, read_image_bytes
from cluster.catalog.resolve import RowProblems
from cluster.catalog.review.planning import plan
from cluster.jobs.model import Draft, stored_priority
from cluster.jobs.strict import refusals
from cluster.remote.stills import ReadAhead, RemoteStills
from cluster.remote.urls import is_remote, shown
from pipeline.clips.clip import ClipSpec, content_key
from pipeline.clips.inspection.autofix import still_amiss
from pipeline.families import family_named
from pipeline.families.licences import licence_problem
from pipeline.memory.footprint import footprint
from pipeline.notes import Note, as_json, distinct, reading_notes
from pipeline.problems import BadInputError, Problem
from pipeline.units import format_duration

#: Rows committed in one transaction; the first ones are fewer, for `clipmill render` starts its farm by the first row
#: that is in, and 64 pictures take seconds to look at.
CHUNK_ROWS, FIRST_ROWS = 64, 4


class IncomingRow(JsonNumbers):
    """A row on its way to the farm: its still handed in already, or what is wrong with it."""

    model_config = ConfigDict(use_attribute_docstrings=True, frozen=True, extra="forbid")

    position: int = Field(ge=1, lt=2**31)
    """Place in the batch, from 1."""
    name: str
    """The row's id: a file name for its results."""
    row: Row | None = None
    """What the row asks for; None where it could not be read."""
    still: str | None = None
    """SHA-256 (hex) of its still, as `PUT /v1/stills` answers it."""
    number: int
    """Number of the manifest's row, for messages."""
    line: int | None = None
    """Line of the manifest on which it begins, for messages."""
    problems: tuple[Problem, ...] = ()
    """Why it cannot be rendered; it is then kept as failed."""


#: Hands a still to the farm and returns its SHA-256. Raises `BadInputError` for one that cannot be used.
PutStill = Callable[[bytes], str]
#: Says what of a clip's texts will be cut, as `pipeline.models.tokens` does, as far as it can be known here.
CutTexts = Callable[[ClipSpec], Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class ChosenRow:
    """A row of which columns were decided that it leaves empty, and the note that says which and why."""

    row: Row
    note: Note


#: Decides what a row becomes that says how long its clip may take, given the size of its still; None: it cannot.
Choose = Callable[[Row, tuple[int, int], Defaults], ChosenRow | None]


def gather(
    manifest: Manifest,
    put_still: PutStill,
    remote: RemoteStills | None = None,
    *,
    find: Callable[[Row], str] | None = None,
) -> Iterator[IncomingRow]:
    """The manifest's rows with their stills handed in, one by one; a bad still becomes that row's problem.

    Pictures that lie elsewhere are read by `remote`, each URL once, several ahead of the rows and in threads: so
    `put_still` has to be safe to call from them. Without `remote` they are refused. `find` hands in the picture of a
    row that is no URL and returns its SHA-256, or raises `BadInputError`; None: it is a file beside the manifest.
    """
    found = find or (lambda row: put_still(read_image_bytes(manifest, row)))
    if remote is None:
        yield from _gather(manifest, found)
        return
    urls = [row.image for row in manifest.good if is_remote(row.image)]
    with ReadAhead(remote.read, put_still, urls) as ahead:
        yield from _gather(
            manifest,
            lambda row: ahead.result(row.image) if is_remote(row.image) else found(row),
        )


def _gather(manifest: Manifest, hand_in: Callable[[Row], str]) -> Iterator[IncomingRow]:
    known: dict[str, str | Problem] = {}
    for position, entry in enumerate(manifest.rows, start=1):
        if isinstance(entry, BadRow):
            yield IncomingRow(
                position=position, name=entry.id, number=entry.number, line=entry.line, problems=entry.problems
            )
            continue
        if entry.image not in known:
            known[entry.image] = _handed_in(entry, hand_in)
        found = known[entry.image]
        problem = found if isinstance(found, Problem) else None
        yield IncomingRow(
            position=position,
            name=entry.id,
            row=entry,
            still=None if problem else str(found),
            number=entry.number,
            line=entry.line,
            problems=(problem,) if problem else (),
        )


def _handed_in(row: Row, hand_in: Callable[[Row], str]) -> str | Problem:
    try:
        return hand_in(row)
    except BadInputError as error:
        return error.problem


def draft(
    incoming: IncomingRow,
    defaults: Defaults,
    still_size: Callable[[str], tuple[int, int] | None],
    accepted: Collection[str] = (),
    cut_texts: CutTexts | None = None,
    still_notes: Callable[[str], Iterable[Note]] = lambda _sha256: (),
    choose: Choose | None = None,
    deliveries: DeliveryPreflight | None = None,
) -> Draft:
    """The job a row becomes. `still_size` gives the upright size of a still handed in before, by its SHA-256.

    `accepted`: families whose licence is accepted, of those that ask for it. `cut_texts`: notes are made of what it
    says; without it they are made when the clip is rendered. `still_notes`: what is noted of a still, by its SHA-256.
    `choose`: decides what rows become that have `within`; without it the time is not known, which is noted.
    `deliveries` looks at rows that ask to be delivered; without it nothing is said of that. Where `defaults.strict`, a
    row of which something is noted that `Note.reduces` fails.
    """
    if incoming.problems or incoming.row is None or incoming.still is None:
        return _failed(incoming, incoming.problems)
    # Rows of the API have not been through a manifest's reader.
    if fault := id_fault(incoming.name):
        remedy = "Give an id that can be a file name, such as SKU-001."
        return _failed(incoming, (Problem(field="id", message=f"{incoming.name!r} {fault}", remedy=remedy),))
    if incoming.row.after is not None and (fault := id_fault(incoming.row.after)):
        remedy = "Give the id of another row of the manifest, or leave it empty."
        message = f"{incoming.row.after[:60]!r} {fault}"
        return _failed(incoming, (Problem(field="after", message=message, remedy=remedy),))
    size = still_size(incoming.still)
    if size is None:
        missing = Problem(
            field="image", message=f"still {incoming.still[:12]} was never handed in", remedy="Upload it first."
        )
        return _failed(incoming, (missing,))
    row, chosen = _in_time(incoming.row, size, defaults, choose)
    try:
        planned = plan(row, size, defaults, incoming.still)
    except RowProblems as error:
        return _failed(incoming, error.problems)
    spec = planned[0].spec
    if problem := licence_problem(family_named(spec.family), accepted):
        return _failed(incoming, (problem,))
    wanted = defaults.deliver if incoming.row.deliver is None else incoming.row.deliver
    # Of what goes out in the end: drafts are delivered to nobody.
    last = planned[-1].spec
    foreseen = deliveries.look(wanted, last, incoming.still, size) if deliveries is not None else NOTHING_FORESEEN
    if foreseen.problems:
        return _failed(incoming, foreseen.problems)
    texts = {"prompt": spec.prompt, "negative_prompt": spec.negative_prompt}
    cut = reading_notes(cut_texts(spec), texts) if cut_texts is not None else []
    amiss = still_amiss(still_notes(incoming.still), spec.autofix)
    before, after = (*incoming.row.notes, *chosen), (*amiss, *cut, *foreseen.notes)
    rounds = tuple(replace(one, noted=distinct([*before, *one.noted, *after])) for one in planned)
    noted = rounds[0].noted
    if defaults.strict and (problems := refusals(noted)):
        return _failed(incoming, problems)
    # The typed ones, and their sentences apart as renderers and readers of before know them.
    changes = {
        "adjusted": [note.message for note in noted if note.adjusted],
        "notes": [note.message for note in noted if not note.adjusted],
        "noted": as_json(noted),
    }
    # Of the row, not of the clip: another list of profiles is the same clip.
    asked = _fidelity_asked(incoming.row, defaults) | ({"strict": True} if defaults.strict else {})
    asked |= {"deliver": list(wanted)} if wanted or incoming.row.deliver is not None else {}
    return Draft(
        number=incoming.position,
        name=incoming.name,
        # Texts that could not be counted here are, before the first step, where they are read.
        row=_facts(incoming) | asked | {k: v for k, v in changes.items() if v},
        still=incoming.still,
        spec=spec,
        content_key=content_key(incoming.still, spec),
        needs_bytes=footprint(spec).peak_bytes,
        priority=stored_priority(incoming.row.priority or 0, interactive=is_interactive(incoming.row, defaults)),
        not_before=incoming.row.not_before if incoming.row.not_before is not None else defaults.not_before,
        after=incoming.row.after,
        rounds=rounds if len(rounds) > 1 else (),
        row_number=incoming.number if incoming.row.candidates * incoming.row.prompts > 1 else None,
    )


def _fidelity_asked(row: Row, defaults: RowDefaults) -> dict[str, Any]:
    """What a row says of fidelity, or its batch for it: of the row, not of the clip."""
    least = defaults.min_fidelity if row.min_fidelity is None else row.min_fidelity
    if least is None:
        return {}
    return {"min_fidelity": least, "rerolls": defaults.rerolls if row.rerolls is None else row.rerolls}


def _in_time(
    row: Row, size: tuple[int, int], defaults: Defaults, choose: Choose | None
) -> tuple[Row, tuple[Note, ...]]:
    """The row with what `within` decides of it, and what is to be said of that."""
    within_s = defaults.within if row.within is None else row.within
    if within_s is None:
        return row, ()
    if (found := choose(row, size, defaults) if choose is not None else None) is not None:
        return found.row, (found.note,)
    what = f"within {format_duration(within_s)}: no card was heard of, so that times are not known"
    message = f"{what}, and the clip is made as if nothing was said of it. Hand it in while the farm runs"
    return row, (Note(code="within_unknown", message=message, field="within"),)


def is_interactive(row: Row, defaults: RowDefaults) -> bool:
    """Whether somebody waits for the clip of `row`: as it says, else as `defaults` do."""
    return defaults.interactive if row.interactive is None else row.interactive


def _failed(incoming: IncomingRow, problems: tuple[Problem, ...]) -> Draft:
    return Draft(number=incoming.position, name=incoming.name, row=_facts(incoming), problems=problems)


def _facts(incoming: IncomingRow) -> dict[str, Any]:
    """What the person wrote, for results and provenance; `draft` adds what became of it."""
    row = incoming.row
    facts: dict[str, Any] = {"number": incoming.number, "line": incoming.line}
    if row is not None:
        # A signed URL would let whoever sees the results read what it was signed for.
        facts |= {"image": shown(row.image), "prompt": row.prompt, "extra": row.extra}
        facts |= {"after": row.after} if row.after is not None else {}
    return facts
