"""What is told of rows before they are handed in: problems, notes, where they fit, when and for how much."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from starlette.datastructures import FormData, UploadFile

from cluster.catalog.defaults import Defaults
from cluster.catalog.ingest import IncomingRow, draft
from cluster.farm import Farm
from cluster.fleet.fleet_file import cards_of_roster
from cluster.forecast.forecast import Forecast, Wanted, forecast
from cluster.jobs.after import judged
from cluster.jobs.model import Draft
from cluster.store.measurements import load_times
from pipeline.clips.clip import ResolutionClass, Tier
from pipeline.families import FAMILIES
from pipeline.notes import Note, as_json, counted, notes_from
from pipeline.problems import BadInputError, Problem
from serve.gateway.access.gate import OwnersFarm, WhoAsks
from serve.gateway.batches.arriving import ArrivedManifest, of_form, read_form
from serve.gateway.batches.manifests import incoming, picture_name, read_sent
from serve.gateway.batches.submission import BatchSettings
from serve.gateway.door import CHECK_PATH
from serve.gateway.page.cards import card_panels
from serve.gateway.page.frame import frame
from serve.gateway.page.prompt_columns import fill_prompts
from serve.gateway.page.templating import page

#: Checks at once: others wait.
_AT_ONCE = 2
#: Rows with problems, and rows as they will be rendered, that are shown.
_PROBLEMS_SHOWN, _ROWS_SHOWN = 50, 8


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """What was found out about rows before they are handed in."""

    rows: Sequence[IncomingRow]
    drafts: Sequence[Draft]
    notes: Sequence[tuple[str, tuple[Note, ...]]]
    unknown: str
    forecast: Forecast | None

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
        return [(row.name, row.why_not) for row in self.forecast.rows if not row.fits and row.name in good]

    @property
    def fits(self) -> list[tuple[str, int]]:
        """How many of the rows fit cards of each kind."""
        rows = self.forecast.rows if self.forecast else ()
        return Counter(kind for row in rows for kind in row.kinds).most_common()

    @property
    def told(self) -> list[str]:
        """Each kind of note once, with how many rows have it and which."""
        return counted(self.notes)


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
            **frame(card_panels(farm), caller),
        )

    @routes.post(CHECK_PATH)
    async def check(request: Request, farm: OwnersFarm) -> Response:
        form = await read_form(request)
        try:
            stills = await _stills_of(form)
            arrived = await of_form(FormData([item for item in form.multi_items() if item[0] != "stills"]))
            found = await run_sync(_checked, farm, settings, arrived, stills, limiter=limiter)
        finally:
            await form.close()
        report = page("check.html.j2", found=found, problems_shown=_PROBLEMS_SHOWN, rows_shown=_ROWS_SHOWN)
        rows = [row.model_dump(mode="json") for row in found.rows]
        answer = {"name": arrived.name, "good": len(found.good), "total": len(found.drafts), "rows": rows}
        # With what a program needs to change: a note may say which cells would silence it.
        answer["noted"] = {name: as_json(notes) for name, notes in found.notes if notes}
        return JSONResponse(answer | {"html": bytes(report.body).decode()}, headers={"Cache-Control": "no-store"})


def _is_offered(name: str, default: str) -> bool:
    """Whether a model is for people: small networks are for trying the farm out, where it does nothing else."""
    return FAMILIES[name].repo is not None or not FAMILIES[name].needs_torch or name == default


async def _stills_of(form: FormData) -> Mapping[str, str | Problem]:
    """Pictures that were handed in before, by the names of their files: their SHA-256, or what is wrong with them."""
    sent = form.get("stills")
    data = await sent.read() if isinstance(sent, UploadFile) else (sent or "{}")
    try:
        told = json.loads(data)
        return {
            picture_name(name): one if isinstance(one, str) else Problem.model_validate(one)
            for name, one in dict(told).items()
        }
    except (ValueError, TypeError) as error:
        raise BadInputError("stills", "it is no object of pictures", "Load the page again.") from error


def _checked(
    farm: Farm, settings: BatchSettings, arrived: ArrivedManifest, stills: Mapping[str, str | Problem]
) -> Preflight:
    options = arrived.options
    given = options.defaults.model_dump()
    defaults = Defaults(**given | {"model": given["model"] or settings.default_model, "few_step": settings.few_step})
    prompt = (options.prompt or "").strip() or None
    read = read_sent(arrived.data, arrived.kind, defaults, farm, prompt=prompt)
    if read.strict:
        what = "lines of OpenAI's batches may each be strict, which a page does not tell apart"
        raise BadInputError("manifest", what, "Hand them in by POST /v1/batches, which takes them as they are.")
    manifest = fill_prompts(read.manifest, prompt) if prompt else read.manifest
    rows = list(incoming(replace(read, manifest=manifest), farm, settings.remote, arrived.files, stills))
    sizes, noted = farm.known_of_stills(rows)
    accepted, looks = farm.accepted(), farm.delivery_preflight
    made = [draft(row, defaults, sizes.get, accepted, farm.cut_texts, noted.__getitem__, looks) for row in rows]
    drafts = judged(made, farm.has_job)
    return Preflight(
        rows=rows,
        drafts=drafts,
        notes=[(one.name, notes_from(one.row.get("noted"))) for one in drafts if not one.problems],
        unknown=manifest.unknown,
        forecast=_forecast(farm, drafts),
    )


def _forecast(farm: Farm, drafts: Sequence[Draft]) -> Forecast | None:
    """What is to be expected of the rows on the cards that are there; None where none is, or no row can be rendered."""
    fleet = cards_of_roster(farm.batch_store.cards())
    wanted = [
        Wanted(name=one.name, number=one.number, spec=one.spec, priority=one.priority)
        for one in drafts
        if one.spec is not None
    ]
    if not fleet or not wanted:
        return None
    return forecast(wanted, fleet, load_times(farm.batch_store.database), changes=False)
