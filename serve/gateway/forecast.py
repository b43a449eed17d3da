"""The route of forecasts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from fastapi.concurrency import run_in_threadpool

from cluster.farm import Farm
from cluster.few_step import FewStep
from cluster.resolve import Defaults
from cluster.store import rates
from serve.forecasting import ForecastBody, answer


def forecast_routes(farm: Farm, default_model: str, few_step: Mapping[str, FewStep]) -> APIRouter:
    """`POST /v1/forecast`, from what this farm has measured."""
    router = APIRouter()

    @router.post("/v1/forecast")
    async def forecast(body: ForecastBody) -> dict[str, Any]:
        given = body.defaults.model_dump()
        defaults = Defaults(**given | {"model": given["model"] or default_model, "few_step": few_step})
        return await run_in_threadpool(lambda: answer(body, defaults, rates.load(farm.desk.database), farm.desk.cards))

    return router
