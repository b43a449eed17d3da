"""Forecasts for people and programs: from rows to `cluster.forecast`, and back as JSON."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from cluster.cards import Beat
from cluster.fleet_file import Cards, FleetFile, cards_of, cards_of_roster
from cluster.forecast import Change, Forecast, KindUse, Order, RowForecast, Wanted, forecast
from cluster.ingest import IncomingRow, draft
from cluster.manifest import Row
from cluster.rates import Rates
from cluster.resolve import Defaults, RowDefaults
from pipeline.clip import Tier
from pipeline.families import FAMILIES
from pipeline.problems import BadInputError
from pipeline.stills import open_still

#: A still's size where nobody says it: a square, as product pictures are.
UNKNOWN_SIZE = (1024, 1024)


class ForecastRow(BaseModel):
    """A row whose still need not be handed in."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    row: Row
    #: (width, height) of its upright still in pixels; decides the clip's shape where the row names no aspect.
    still_size: tuple[int, int] = Field(default=UNKNOWN_SIZE)


class ForecastDefaults(RowDefaults):
    """What holds for rows that are silent."""

    #: Default: the farm's.
    model: str | None = None


class ForecastBody(BaseModel):
    """Body of `POST /v1/forecast`."""

    model_config = ConfigDict(extra="forbid")

    rows: list[ForecastRow] = Field(min_length=1, max_length=10_000)
    #: As in `fleet.yaml`; default: the farm's own cards.
    fleet: FleetFile | None = None
    defaults: ForecastDefaults = ForecastDefaults()
    order: Order = Order.LONGEST
    seed: int = 0


class Sizes:
    """Sizes of stills that are looked at and not kept."""

    def __init__(self) -> None:
        self._sizes: dict[str, tuple[int, int]] = {}

    def put(self, data: bytes) -> str:
        """The SHA-256 of a still whose size is known from here on. Raises `BadInputError`."""
        name = hashlib.sha256(data).hexdigest()
        if name not in self._sizes:
            self._sizes[name] = open_still(data).size
        return name

    def say(self, size: tuple[int, int]) -> str:
        """A name for a still of which only the size is known."""
        name = hashlib.sha256(repr(size).encode()).hexdigest()
        self._sizes[name] = size
        return name

    def get(self, sha256: str) -> tuple[int, int] | None:
        """(width, height) of a still."""
        return self._sizes.get(sha256)


def wanted_of(
    rows: Iterable[IncomingRow],
    defaults: Defaults,
    still_size: Callable[[str], tuple[int, int] | None],
    accepted: Collection[str] = frozenset(FAMILIES),
) -> list[Wanted]:
    """The rows as a forecast takes them, read as a submission would; licences need not be accepted for that."""
    drafts = (draft(row, defaults, still_size, accepted) for row in rows)
    return [
        Wanted(
            name=one.name,
            number=one.number,
            spec=one.spec,
            problem=" ".join(map(str, one.problems)) or "",
            priority=one.priority,
        )
        for one in drafts
    ]


def as_drafts(rows: Sequence[IncomingRow]) -> list[IncomingRow]:
    """The same rows at tier draft."""
    return [
        row.model_copy(update={"row": row.row.model_copy(update={"tier": Tier.DRAFT})}) if row.row else row
        for row in rows
    ]


def answer(
    body: ForecastBody, defaults: Defaults, rates: Rates, roster: Callable[[], Sequence[Beat]]
) -> dict[str, Any]:
    """What `POST /v1/forecast` answers. Raises `BadInputError` where there are no cards."""
    sizes = Sizes()
    rows = [
        IncomingRow(
            position=number,
            name=one.row.id,
            row=one.row,
            still=sizes.say(one.still_size),
            number=one.row.number,
            line=one.row.line,
        )
        for number, one in enumerate(body.rows, start=1)
    ]
    fleet = cards_of(body.fleet) if body.fleet else cards_of_roster(roster())
    return forecast_view(
        forecast(
            wanted_of(rows, defaults, sizes.get),
            with_cards(fleet),
            rates,
            order=body.order,
            drafts=wanted_of(as_drafts(rows), defaults, sizes.get),
            seed=body.seed,
        ),
        fleet,
    )


def with_cards(fleet: tuple[Cards, ...]) -> tuple[Cards, ...]:
    """`fleet`, which must have a card. Raises `BadInputError`."""
    if not fleet:
        remedy = "Give a fleet as in examples/fleet.yaml, or start a farm."
        raise BadInputError("fleet", "no farm runs whose cards could be counted, and no fleet was given", remedy)
    return fleet


def forecast_view(found: Forecast, fleet: Sequence[Cards]) -> dict[str, Any]:
    """A forecast as the API and `--json` show it."""
    return {
        "object": "forecast",
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
    """One row of it."""
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
        "held_hours": _rounded(use.held_hours, 4),
        "cost_usd": None if use.held_cost is None else _rounded(use.held_cost, 4),
        "busy_cost_usd": None if use.busy_cost is None else _rounded(use.busy_cost, 4),
    }


def _change_view(change: Change) -> dict[str, Any]:
    return {
        "change": change.text,
        "finish_seconds": _rounded(change.finish_s),
        "extra_usd_per_hour": change.extra_per_hour,
        "changes_clips": change.changes_clips,
    }


def _rounded(value: float, digits: int = 1) -> float:
    return round(value, digits)
