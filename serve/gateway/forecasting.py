"""Forecasts for people and programs: from rows to `cluster.forecast.forecast`, and back as JSON."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from cluster.catalog.cells import JsonNumbers
from cluster.catalog.defaults import Defaults, RowDefaults
from cluster.catalog.ingest import Choose, IncomingRow, draft
from cluster.catalog.manifest import Row
from cluster.estimates.times import TimeEstimates
from cluster.fleet.cards import Beat
from cluster.fleet.fleet_file import Cards, FleetFile, cards_of, cards_of_roster
from cluster.forecast.forecast import FleetChange, Forecast, KindUse, Order, RowForecast, Wanted, forecast
from cluster.forecast.within import TimeChooser
from cluster.jobs.after import judged
from cluster.jobs.fidelity import terms_of
from cluster.jobs.model import Draft
from pipeline.clips.clip import Tier
from pipeline.clips.refusals import MAX_STILL_PIXELS, MIN_STILL_SIDE
from pipeline.clips.still_check import check_still, still_notes
from pipeline.delivery.preflight import StillProduct, still_product
from pipeline.families import FAMILIES, family_named
from pipeline.notes import Note
from pipeline.problems import BadInputError

#: A still's size where nobody says it: a square, as product pictures are.
UNKNOWN_SIZE = (1024, 1024)


class ForecastRow(BaseModel):
    """A row to forecast; its still need not be handed in."""

    model_config = ConfigDict(use_attribute_docstrings=True, frozen=True, extra="forbid")

    row: Row
    """A row as in `POST /v1/batches`."""
    still_size: tuple[int, int] = Field(default=UNKNOWN_SIZE)
    """(width, height) of its upright still in pixels; decides the clip's shape where the row names no aspect."""

    @field_validator("still_size")
    @classmethod
    def _of_a_picture(cls, size: tuple[int, int]) -> tuple[int, int]:
        if min(size) < MIN_STILL_SIDE or size[0] * size[1] > MAX_STILL_PIXELS:
            raise ValueError(f"a still has sides of {MIN_STILL_SIDE} pixels and more, and {MAX_STILL_PIXELS} in all")
        return size


class ForecastDefaults(RowDefaults):
    """What a forecast asks of rows that say nothing themselves."""

    model: str | None = None
    """A family's name; None: the farm's default."""


class ForecastBody(JsonNumbers):
    """Body of `POST /v1/forecast`."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid")

    rows: list[ForecastRow] = Field(min_length=1, max_length=10_000)
    """Each clip to be."""
    fleet: FleetFile | None = None
    """A fleet as in `examples/fleet.yaml`; None: the farm's own cards."""
    defaults: ForecastDefaults = ForecastDefaults()
    """What rows get that say nothing themselves."""
    order: Order = Order.LONGEST
    """Clips placed first: the longest, or as they are given."""
    seed: int = 0
    """Of the draws that the interval is made of."""


class Sizes:
    """Sizes in pixels of stills that are looked at and not kept, by a name for each."""

    def __init__(
        self,
        *,
        notes: bool = False,
        products: bool = False,
        more: Callable[[bytes], Iterable[Note]] = lambda _data: (),
    ) -> None:
        """`notes`: what renderers will note of the stills is found as well; `products`: where they show products.

        `more`: what else is noted of one.
        """
        self._products: dict[str, StillProduct | None] = {}
        self._finding = products
        self._sizes: dict[str, tuple[int, int]] = {}
        self._notes: dict[str, tuple[Note, ...]] = {}
        self._noting, self._more = notes, more

    def put(self, data: bytes) -> str:
        """Remember the size of a still; returns the still's SHA-256. Raises `BadInputError`."""
        name = hashlib.sha256(data).hexdigest()
        if name not in self._sizes:
            self._sizes[name] = check_still(data)
            self._products[name] = still_product(data, self._sizes[name]) if self._finding else None
            noted = still_notes(data, self._sizes[name]) if self._noting else ()
            self._notes[name] = (*noted, *self._more(data))
        return name

    def product(self, sha256: str, size: tuple[int, int]) -> StillProduct | None:
        """Where the still of that name shows its product; None where nobody has looked."""
        return self._products.get(sha256)

    def name_for(self, size: tuple[int, int]) -> str:
        """A name for a still of which only its size, (width, height) in pixels, is known."""
        name = hashlib.sha256(repr(size).encode()).hexdigest()
        self._sizes[name] = size
        return name

    def get(self, sha256: str) -> tuple[int, int] | None:
        """(width, height) in pixels of the still of that name; None for a name that is not known."""
        return self._sizes.get(sha256)

    def notes(self, sha256: str | None) -> tuple[Note, ...]:
        """What is noted of the still of that name; () for one that is not known."""
        return self._notes.get(sha256 or "", ())


def wanted_of(
    rows: Iterable[IncomingRow],
    defaults: Defaults,
    still_size: Callable[[str], tuple[int, int] | None],
    is_job: Callable[[str], bool],
    accepted: Collection[str] = frozenset(FAMILIES),
    choose: Choose | None = None,
) -> list[Wanted]:
    """The rows as a forecast takes them, read as a submission would; licences need not be accepted for that.

    Of a row that is reviewed each round is one of them: drafts cost as well.

    `is_job` tells whether there is a job of an id that a row waits for; `choose` decides on rows that have `within`.
    """
    drafts = judged([draft(row, defaults, still_size, accepted, choose=choose) for row in rows], is_job)
    return wanted_rounds(drafts)


def wanted_rounds(drafts: Iterable[Draft], *, named: bool = True) -> list[Wanted]:
    """What is rendered of each row: one clip, or each of its rounds, which are `named` in brackets.

    Of several clips of a manifest's row one alone goes on after the first round.
    """
    found: list[Wanted] = []
    seen: set[int] = set()
    for one in drafts:
        found += _rerolls(one, named=named)
        problem = " ".join(map(str, one.problems)) or ""
        plain = Wanted(name=one.name, number=one.number, spec=one.spec, problem=problem, priority=one.priority)
        if not one.rounds:
            found.append(plain)
            continue
        rounds = one.rounds[:1] if one.row_number in seen else one.rounds
        if one.row_number is not None:
            seen.add(one.row_number)
        found += [
            replace(plain, name=f"{one.name} ({each.name})" if named else one.name, spec=each.spec) for each in rounds
        ]
    return found


def _rerolls(draft: Draft, *, named: bool) -> list[Wanted]:
    """Clips that a row may have besides its last one, for the fidelity that it asks for: all that it allows.

    How many of them it takes nobody knows before; whoever pays for them should.
    """
    terms, spec = terms_of(draft.row), draft.rounds[-1].spec if draft.rounds else draft.spec
    if terms is None or spec is None or draft.problems or not family_named(spec.family).uses_seed:
        return []
    named_so = (f"{draft.name} (again {n})" if named else draft.name for n in range(1, terms.rerolls + 1))
    return [Wanted(name=name, number=draft.number, spec=spec, priority=draft.priority) for name in named_so]


def as_drafts(rows: Sequence[IncomingRow]) -> list[IncomingRow]:
    """A copy of `rows` in which each asks for tier draft."""
    return [
        row.model_copy(update={"row": row.row.model_copy(update={"tier": Tier.DRAFT})}) if row.row else row
        for row in rows
    ]


def answer(
    body: ForecastBody,
    defaults: Defaults,
    estimates: TimeEstimates,
    roster: Callable[[], Sequence[Beat]],
    is_job: Callable[[str], bool],
) -> dict[str, Any]:
    """What `POST /v1/forecast` answers. Raises `BadInputError` where there are no cards."""
    sizes = Sizes()
    rows = [
        IncomingRow(
            position=number,
            name=one.row.id,
            row=one.row,
            still=sizes.name_for(one.still_size),
            number=one.row.number,
            line=one.row.line,
        )
        for number, one in enumerate(body.rows, start=1)
    ]
    fleet = cards_of(body.fleet) if body.fleet else cards_of_roster(roster())
    choose = TimeChooser(fleet, estimates)
    return forecast_view(
        forecast(
            wanted_of(rows, defaults, sizes.get, is_job, choose=choose),
            with_cards(fleet),
            estimates,
            order=body.order,
            drafts=wanted_of(as_drafts(rows), defaults, sizes.get, is_job, choose=choose),
            seed=body.seed,
        ),
        fleet,
        model=defaults.model,
    )


def with_cards(fleet: tuple[Cards, ...]) -> tuple[Cards, ...]:
    """`fleet` itself. Raises `BadInputError` where it has no card."""
    if not fleet:
        remedy = "Give a fleet as in examples/fleet.yaml, or start a farm."
        raise BadInputError("fleet", "no farm runs whose cards could be counted, and no fleet was given", remedy)
    return fleet


def forecast_view(found: Forecast, fleet: Sequence[Cards], *, model: str) -> dict[str, Any]:
    """A forecast as the API and `--json` show it; `model` is the one of rows that name none."""
    return {
        "object": "forecast",
        "default_model": model,
        "finish_seconds": _rounded(found.finish_s),
        "interval_seconds": [_rounded(found.low_s), _rounded(found.high_s)],
        "bound_seconds": _rounded(found.bound_s),
        "startup_seconds": _rounded(found.startup_s),
        "gpu_hours": _rounded(found.gpu_hours, 4),
        "cost_usd": None if found.cost is None else _rounded(found.cost, 4),
        "rows_fit": sum(row.fits for row in found.rows),
        "rows": [row_view(row) for row in found.rows],
        "kinds": [_use_view(use) for use in found.kinds],
        "halving": [_change_view(change) for change in found.halving],
        "fleet": [
            {
                "kind": group.kind,
                "class": group.card_class,
                "count": group.count,
                "usable_bytes": group.usable_bytes,
                "price_per_hour": group.price_per_hour,
            }
            for group in fleet
        ],
        "notes": list(found.notes),
    }


def row_view(row: RowForecast) -> dict[str, Any]:
    """One row of a forecast, as the API and `--json` show it."""
    return {
        "id": row.name,
        "number": row.number,
        "fits": row.fits,
        "why_not": row.why_not or None,
        "smallest_class": row.smallest_class,
        "on": {
            kind: {
                "layout": str(row.layouts[kind]),
                "switches": row.layouts[kind].model_dump(mode="json"),
                "seconds": _rounded(row.seconds[kind], 3),
            }
            for kind in row.kinds
        },
    }


def _use_view(use: KindUse) -> dict[str, Any]:
    return {
        "kind": use.kind,
        "cards": use.cards,
        "clips": use.clips,
        "gpu_hours": _rounded(use.busy_hours, 4),
        "held_hours": _rounded(use.paid_hours, 4),
        "cost_usd": None if use.paid_cost is None else _rounded(use.paid_cost, 4),
        "busy_cost_usd": None if use.busy_cost is None else _rounded(use.busy_cost, 4),
    }


def _change_view(change: FleetChange) -> dict[str, Any]:
    return {
        "change": change.text,
        "finish_seconds": _rounded(change.finish_s),
        "extra_usd_per_hour": change.extra_per_hour,
        "changes_clips": change.changes_clips,
    }


def _rounded(value: float, digits: int = 1) -> float:
    return round(value, digits)
