"""Routes of the page, for browsers: batches, clips and cards, and the files that their pages load."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from cluster.access.scopes import Scope
from cluster.explain.reasons import Rules
from cluster.farm import Farm
from cluster.results.rows import results_of
from serve.gateway.access.gate import OwnersFarm, WhoAsks
from serve.gateway.batches.deliveries import deliveries_of
from serve.gateway.batches.submission import BatchSettings
from serve.gateway.door import CheckedRoute
from serve.gateway.errors import ERRORS, answer_of, error_body
from serve.gateway.page.cards import card_panels
from serve.gateway.page.frame import frame
from serve.gateway.page.handing_in import add_handing_in
from serve.gateway.page.login import add_login
from serve.gateway.page.progress import ProgressReader
from serve.gateway.page.review import review_rows
from serve.gateway.page.story import outcome_text, story_of
from serve.gateway.page.templating import page, static_answer
from serve.gateway.page.verbs import batch_verbs, card_verbs, job_verbs
from serve.gateway.page.wall import PAGE_ROWS, tile, tiles
from serve.gateway.requests import MAX_ROW_NUMBER

log = logging.getLogger("clipmill.gateway")

#: Rows of a wall that a browser without scripts gets at once.
_PLAIN_ROWS = 48


class PageRoute(CheckedRoute):
    """A route whose errors are pages, in the words that the API has for them."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler of every route, which here answers what a farm raises with a page."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await handler(request)
            except Exception as error:
                kind = next((kind for kind in ERRORS if isinstance(error, kind.raised)), None)
                # Scripts are answered as programs are.
                if kind is None or "text/html" not in request.headers.get("accept", ""):
                    raise
                if kind.status >= 500:
                    log.error("%s", error)
                return page("error.html.j2", status=kind.status, status_code=kind.status, **answer_of(kind, error))

        return handle


def page_routes(farm: Farm, rules: Rules, settings: BatchSettings) -> APIRouter:
    """The routes of the page; `rules` are what the farm places jobs by, `settings` are for batches that are silent."""
    routes = APIRouter(route_class=PageRoute, include_in_schema=False)
    _add_static(routes)
    _add_batches(routes, ProgressReader(farm, rules))
    _add_clips(routes, rules)
    _add_cards(routes)
    add_handing_in(routes, settings)
    add_login(routes)
    return routes


def _add_static(routes: APIRouter) -> None:
    @routes.get("/static/{version}/{name}")
    async def static(version: str, name: str) -> Response:
        found = static_answer(version, name)
        if found is None:
            return JSONResponse(error_body(404, "there is no such file", "not_found", "name"), status_code=404)
        return found


def _add_batches(routes: APIRouter, progress: ProgressReader) -> None:
    @routes.get("/")
    def batches(
        farm: OwnersFarm,
        caller: WhoAsks,
        limit: Annotated[int, Query(ge=1, le=500)] = 25,
        everything: bool = False,
    ) -> Response:
        found = farm.batch_store.batches(farm.owner, limit + 1, everything=everything)
        panels = card_panels(farm)
        return page(
            "batches.html.j2",
            batches=[progress.of(batch) for batch in found[:limit]],
            has_more=len(found) > limit,
            limit=limit,
            everything=everything,
            **frame(panels, caller, farm),
        )

    @routes.get("/batches/{batch_id}")
    def batch(batch_id: str, farm: OwnersFarm, caller: WhoAsks, after: Annotated[int, Query(ge=-1)] = -1) -> Response:
        found = progress.of(farm.batch(batch_id))
        rows = results_of(
            farm.batch_store,
            farm.owner,
            batch_id,
            after=min(after, MAX_ROW_NUMBER),
            limit=_PLAIN_ROWS + 1,
            everything=True,
        )
        return page(
            "batch.html.j2",
            batch=found.batch,
            progress=found,
            verbs=batch_verbs(found.batch) if Scope.SUBMIT in caller.scopes else [],
            to_review=bool(farm.batch_store.in_review(farm.owner, batch_id, limit=1)),
            tiles=[tile(row) for row in rows[:_PLAIN_ROWS]],
            next_after=rows[_PLAIN_ROWS - 1].number if len(rows) > _PLAIN_ROWS else None,
            delivers=any(farm.deliveries.wanted(one.row) for one in rows),
            after=after,
            now=farm.batch_store.now(),
            **frame(card_panels(farm), caller, farm),
        )

    @routes.get("/batches/{batch_id}/review")
    def review(batch_id: str, farm: OwnersFarm, caller: WhoAsks) -> Response:
        # The clock before the rows: what comes in between is told by the events.
        now = farm.batch_store.now()
        found, more = review_rows(farm, batch_id)
        return page(
            "review.html.j2",
            batch=farm.batch(batch_id),
            rows=found,
            more=more,
            may=Scope.SUBMIT in caller.scopes,
            now=now,
            **frame(card_panels(farm), caller, farm),
        )

    @routes.get("/batches/{batch_id}/rows")
    def rows(
        batch_id: str,
        farm: OwnersFarm,
        after: Annotated[int, Query(ge=-1)] = -1,
        since: Annotated[int | None, Query(ge=0)] = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = PAGE_ROWS,
    ) -> Response:
        since = None if since is None else min(since, 2**62)
        found = tiles(farm, batch_id, after=min(after, MAX_ROW_NUMBER), since=since, limit=limit)
        return JSONResponse(found, headers={"Cache-Control": "no-store"})


def _add_clips(routes: APIRouter, rules: Rules) -> None:
    @routes.get("/clips/{job_id}")
    def clip(job_id: str, farm: OwnersFarm, caller: WhoAsks) -> Response:
        story = story_of(farm, job_id, rules)
        batch = farm.batch(story.job.batch_id)
        return page(
            "clip.html.j2",
            story=story,
            job=story.job,
            batch=batch,
            verbs=job_verbs(story.job, batch, other_picked=story.other_picked) if Scope.SUBMIT in caller.scopes else [],
            outcome_text=outcome_text,
            deliveries=deliveries_of(farm, job_id, story.row, ""),
            **frame(card_panels(farm), caller, farm),
        )


def _add_cards(routes: APIRouter) -> None:
    @routes.get("/cards")
    def cards(farm: OwnersFarm, caller: WhoAsks) -> Response:
        panels = card_panels(farm)
        return page("cards.html.j2", panels=panels, card_verbs=card_verbs, **frame(panels, caller, farm))
