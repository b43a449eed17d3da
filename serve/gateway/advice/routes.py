"""The route that judges prompts and rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import APIRouter

from cluster.catalog.defaults import Defaults, FewStep
from serve.gateway.access.gate import OwnersFarm
from serve.gateway.advice.findings import LintBody, lint_answer
from serve.gateway.door import CheckedRoute

#: Requests that are judged at once; others wait.
_AT_ONCE = 2


def lint_routes(default_model: str, few_step: Mapping[str, FewStep]) -> APIRouter:
    """`POST /v1/lint`, for the farm's models and cards."""
    router = APIRouter(route_class=CheckedRoute)
    # A thousand odd prompts take seconds: they take no thread that another request needs.
    at_once = CapacityLimiter(_AT_ONCE)

    @router.post("/v1/lint")
    async def lint(body: LintBody, farm: OwnersFarm) -> dict[str, Any]:
        """What keeps clips from becoming what is meant: prompts without motion, values that seldom give a good clip.

        Nothing is handed in or rendered. Each finding that has a `fix` says which columns to set to what; `fixed` of a
        row are all of them together. They are advice: no row is refused for them.
        """
        given = body.defaults.model_dump()
        defaults = Defaults(**given | {"model": given["model"] or default_model, "few_step": few_step})

        def judged() -> dict[str, Any]:
            largest = max((beat.usable_bytes for beat in farm.batch_store.cards()), default=0)
            return lint_answer(body, defaults, largest, farm.cut_texts)

        return await run_sync(judged, limiter=at_once)

    return router
