"""The route that judges prompts and rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from fastapi.concurrency import run_in_threadpool

from cluster.catalog.defaults import Defaults, FewStep
from cluster.farm import Farm
from serve.gateway.advice.findings import LintBody, lint_answer
from serve.gateway.door import CheckedRoute


def lint_routes(farm: Farm, default_model: str, few_step: Mapping[str, FewStep]) -> APIRouter:
    """`POST /v1/lint`, for this farm's models and cards."""
    router = APIRouter(route_class=CheckedRoute)

    @router.post("/v1/lint")
    async def lint(body: LintBody) -> dict[str, Any]:
        """What keeps clips from becoming what is meant: prompts without motion, values that seldom give a good clip.

        Nothing is handed in or rendered. Each finding that has a `fix` says which columns to set to what; `fixed` of a
        row are all of them together. They are advice: no row is refused for them.
        """
        given = body.defaults.model_dump()
        defaults = Defaults(**given | {"model": given["model"] or default_model, "few_step": few_step})
        return await run_in_threadpool(
            lambda: lint_answer(
                body,
                defaults,
                max((beat.usable_bytes for beat in farm.batch_store.cards()), default=0),
                farm.cut_texts,
            )
        )

    return router
