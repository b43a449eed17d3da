"""What is told of rows before they are handed in: problems, notes, where they fit, when and for how much."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from starlette.datastructures import FormData, UploadFile

from cluster.catalog.advice.templates import typed_template
from cluster.catalog.defaults import Defaults
from cluster.catalog.ingest import IncomingRow, draft
from cluster.catalog.resolve import RowProblems
from cluster.catalog.review.planning import plan
from cluster.catalog.times import read_duration
from cluster.estimates.times import TimeEstimates
from cluster.farm import Farm
from cluster.fleet.fleet_file import Cards
from cluster.forecast.card_notes import card_notes
from cluster.forecast.forecast import Forecast, Wanted, forecast
from cluster.forecast.within import TimeChooser, longest_within
from cluster.jobs.after import judged
from cluster.jobs.model import Draft
from cluster.store.measurements import load_times
from pipeline.clips.clip import ResolutionClass, Tier
from pipeline.families import FAMILIES
from pipeline.notes import Note, as_json, distinct, notes_from
from pipeline.problems import BadInputError, Problem
from serve.gateway.access.gate import OwnersFarm, WhoAsks
from serve.gateway.batches.arriving import ArrivedManifest, of_form, read_form
from serve.gateway.batches.manifests import incoming, picture_name, read_sent
from serve.gateway.batches.submission import BatchSettings
from serve.gateway.door import CHECK_PATH
from serve.gateway.forecasting import wanted_rounds
from serve.gateway.page.cards import card_panels
from serve.gateway.page.fixes import FindingKind, Fixes, fixes_from, kinds_of, with_fixes
from serve.gateway.page.frame import frame
from serve.gateway.page.templating import page

#: Checks at once: others wait.
_AT_ONCE = 2
#: Rows with problems, and rows as they will be rendered, that are shown.
_PROBLEMS_SHOWN, _ROWS_SHOWN = 50, 8
#: Rows of each kind of note that are shown with what would change them.
_NOTED_SHOWN = 30
#: Parts of the form that are for the check alone.
_OWN_PARTS = frozenset({"stills", "fixes", "done_in"})
#: Rows that are planned for a time by which all is to be done; of more, so many stand for all.
_PLANNED = 400


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """What was found out about rows before they are handed in."""

    rows: Sequence[IncomingRow]
    drafts: Sequence[Draft]
    notes: Sequence[tuple[str, tuple[Note, ...]]]
    unknown: str
    forecast: Forecast | None
    #: Seconds that a clip may take whose row does not say; None: as long as it takes.
    within_s: float | None = None
    #: Whether no choice of clips is done by the time that was asked for.
    too_late: bool = False
    #: What a file that is no manifest of its own was taken for; empty: it is a manifest.
    taken_for: str = ""

    @property
    def good(self) -> list[Draft]:
        """Rows that can be rendered."""
        return [one for one in self.drafts if not one.problems]

    @property
    def bad(self) -> list[Draft]:
        """Rows that cannot."""
        return [one for one in self.drafts if one.problems]

    @property
    def misfits(self) -> list[tuple[str, str]]:
        """(id, why) of rows that can be rendered, though on none of the cards that are there now."""
        if self.forecast is None:
            return []
        good = {one.name for one in self.good}
        # Once a row, whose rounds are rows of the forecast each.
        found = {row.name: row.why_not for row in self.forecast.rows if not row.fits and row.name in good}
        return list(found.items())

    @property
    def fits(self) -> list[tuple[str, int]]:
        """How many of the rows fit cards of each kind."""
        kinds: dict[str, set[str]] = {}
        for row in self.forecast.rows if self.forecast else ():
            # A row fits where all its rounds do.
            kinds[row.name] = kinds.get(row.name, set(row.kinds)) & set(row.kinds)
        return Counter(kind for each in kinds.values() for kind in sorted(each)).most_common()

    @property
    def kinds(self) -> list[FindingKind]:
        """What is noted of the rows, by kind."""
        return kinds_of(self.notes)


def add_handing_in(routes: APIRouter, settings: BatchSettings) -> None:
    """Add the page on which rows are handed in, and the check that it asks for."""
    limiter = CapacityLimiter(_AT_ONCE)

    @routes.get("/new")
    def new(farm: OwnersFarm, caller: WhoAsks) -> Response:
        return page(
            "new.html.j2",
            families=[family for family in FAMILIES.values() if _is_offered(family.name, settings.default_model)],
            default_model=settings.default_model,
            classes=[one.value for one in ResolutionClass],
            tiers=[one.value for one in Tier],
            profiles=[farm.deliveries.profiles.named(name) for name in farm.deliveries.profiles.names],
            check=CHECK_PATH,
            **frame(card_panels(farm), caller, farm),
        )

    @routes.post(CHECK_PATH)
    async def check(request: Request, farm: OwnersFarm) -> Response:
        form = await read_form(request)
        try:
            stills = await _stills_of(form)
            asked = _Asked(fixes=fixes_from(await _part(form, "fixes")), done_s=_seconds(form.get("done_in")))
            arrived = await of_form(FormData([item for item in form.multi_items() if item[0] not in _OWN_PARTS]))
            found = await run_sync(_checked, farm, settings, arrived, stills, asked, limiter=limiter)
        finally:
            await form.close()
        report = page(
            "check.html.j2",
            found=found,
            problems_shown=_PROBLEMS_SHOWN,
            rows_shown=_ROWS_SHOWN,
            noted_shown=_NOTED_SHOWN,
        )
        rows = [row.model_dump(mode="json") for row in found.rows]
        answer = {"name": arrived.name, "good": len(found.good), "total": len(found.drafts), "rows": rows}
        answer["within"] = found.within_s
        # With what a program needs to change: a note may say which cells would silence it.
        answer["noted"] = {name: as_json(notes) for name, notes in found.notes if notes}
        return JSONResponse(answer | {"html": bytes(report.body).decode()}, headers={"Cache-Control": "no-store"})


def _is_offered(name: str, default: str) -> bool:
    """Whether a model is for people: small networks are for trying the farm out, where it does nothing else."""
    return FAMILIES[name].repo is not None or not FAMILIES[name].needs_torch or name == default


async def _stills_of(form: FormData) -> Mapping[str, str | Problem]:
    """Pictures that were handed in before, by the names of their files: their SHA-256, or what is wrong with them."""
    try:
        told = json.loads(await _part(form, "stills"))
        return {
            picture_name(name): one if isinstance(one, str) else Problem.model_validate(one)
            for name, one in dict(told).items()
        }
    except (ValueError, TypeError) as error:
        raise BadInputError("stills", "it is no object of pictures", "Load the page again.") from error


async def _part(form: FormData, name: str) -> bytes | str:
    """A part of a form that is JSON, as a file or a field."""
    sent = form.get(name)
    return await sent.read() if isinstance(sent, UploadFile) else (sent or "{}")


def _seconds(sent: object) -> float | None:
    """Seconds until everything is to be done; None where nothing is said of that. Raises `BadInputError`."""
    if not sent or isinstance(sent, UploadFile):
        return None
    return read_duration("done_in", str(sent))


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What a page asks of a check besides its manifest."""

    fixes: Fixes
    #: Seconds until everything is to be done; None: nothing is said of that.
    done_s: float | None


def _checked(
    farm: Farm,
    settings: BatchSettings,
    arrived: ArrivedManifest,
    stills: Mapping[str, str | Problem],
    asked: _Asked,
) -> Preflight:
    options = arrived.options
    given = options.defaults.model_dump()
    defaults = Defaults(**given | {"model": given["model"] or settings.default_model, "few_step": settings.few_step})
    read = read_sent(arrived.data, arrived.kind, defaults, farm, template=typed_template(options.prompt or ""))
    if read.strict:
        what = "lines of OpenAI's batches may each be strict, which a page does not tell apart"
        raise BadInputError("manifest", what, "Hand them in by POST /v1/batches, which takes them as they are.")
    manifest = replace(read.manifest, rows=with_fixes(read.manifest.rows, asked.fixes))
    rows = list(incoming(replace(read, manifest=manifest), farm, settings.remote, arrived.files, stills))
    sizes, noted = farm.known_of_stills(rows)
    fleet, times = farm.cards, load_times(farm.batch_store.database)
    chooser, too_late = TimeChooser(fleet, times), False
    if asked.done_s is not None and fleet:
        within_s = longest_within(asked.done_s, _Finish(rows, sizes, defaults, fleet, times, chooser))
        too_late = within_s is None
        defaults = defaults.model_copy(update={"within": within_s or 1.0})
    accepted, looks = farm.accepted(), farm.delivery_preflight
    asked_of = (sizes.get, accepted, farm.cut_texts, noted.__getitem__, chooser, looks)
    made = [draft(row, defaults, *asked_of) for row in rows]
    drafts = judged(made, farm.has_job)
    largest = max((group.usable_bytes for group in fleet), default=0)
    return Preflight(
        rows=rows,
        drafts=drafts,
        notes=[
            (one.name, distinct([*notes_from(one.row.get("noted")), *card_notes(one.spec, largest)]))
            for one in drafts
            if one.spec is not None and not one.problems
        ],
        unknown=read.manifest.unknown,
        taken_for=read.manifest.taken_for,
        forecast=_forecast(fleet, times, drafts),
        within_s=defaults.within,
        too_late=too_late,
    )


class _Finish:
    """When rows would all be done if each clip may take so many seconds."""

    def __init__(
        self,
        rows: Sequence[IncomingRow],
        sizes: Mapping[str, tuple[int, int]],
        defaults: Defaults,
        fleet: Sequence[Cards],
        times: TimeEstimates,
        chooser: TimeChooser,
    ) -> None:
        known = [(row.row, sizes[row.still]) for row in rows if row.row and row.still and row.still in sizes]
        # Some stand for all of a large batch: nine plans of thousands of rows take seconds.
        self._every = max(1, math.ceil(len(known) / _PLANNED))
        self._rows, self._defaults = known[:: self._every], defaults
        self._fleet, self._times, self._chooser = fleet, times, chooser

    def __call__(self, within_s: float) -> float:
        """Seconds until the last clip is published."""
        defaults = self._defaults.model_copy(update={"within": within_s})
        wanted: list[Wanted] = []
        seen: set[int] = set()
        for number, (row, size) in enumerate(self._rows):
            if (chosen := self._chooser(row, size, defaults)) is None:
                continue
            try:
                rounds = plan(chosen.row, size, defaults, "")
            except RowProblems:
                continue
            # Drafts take time as well; of several clips of a row one goes on after the first round.
            specs = [one.spec for one in (rounds[:1] if row.number in seen else rounds)]
            seen.add(row.number)
            wanted += [Wanted(name=f"{number}-{place}", number=number, spec=of) for place, of in enumerate(specs)]
        planned = forecast(wanted, self._fleet, self._times, changes=False, interval=False)
        return planned.finish_s * self._every


def _forecast(fleet: Sequence[Cards], times: TimeEstimates, drafts: Sequence[Draft]) -> Forecast | None:
    """What is to be expected of the rows on the cards that are there; None where none is, or no row can be rendered."""
    wanted = wanted_rounds((one for one in drafts if one.spec is not None), named=False)
    if not fleet or not wanted:
        return None
    return forecast(wanted, fleet, times, changes=False)
