"""The route of forecasts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from fastapi.concurrency import run_in_threadpool

from cluster.catalog.defaults import Defaults, FewStep
from cluster.store import measurements
from serve.gateway.access.gate import OwnersFarm
from serve.gateway.door import CheckedRoute
from serve.gateway.forecasting import ForecastBody, answer


def forecast_routes(default_model: str, few_step: Mapping[str, FewStep]) -> APIRouter:
    """`POST /v1/forecast`, from what this farm has measured."""
    router = APIRouter(route_class=CheckedRoute)

    @router.post("/v1/forecast")
    async def forecast(body: ForecastBody, farm: OwnersFarm) -> dict[str, Any]:
        """When rows would be done and what they would cost, on the farm's cards or other ones. Nothing is handed in."""
        given = body.defaults.model_dump()
        defaults = Defaults(**given | {"model": given["model"] or default_model, "few_step": few_step})
        return await run_in_threadpool(
            lambda: answer(
                body,
                defaults,
                measurements.load_times(farm.batch_store.database),
                farm.batch_store.cards,
                farm.has_job,
            )
        )

    return router
