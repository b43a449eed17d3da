"""Routes of jobs: a view, why one waits, commands on one; and ids by their beginnings."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Body, Query
from fastapi.concurrency import run_in_threadpool

from cluster.explain.context import why
from cluster.explain.reasons import Rules
from cluster.jobs.transitions import Verb
from serve.gateway.access.gate import OwnersFarm
from serve.gateway.batches.deliveries import add_deliveries
from serve.gateway.door import CheckedRoute
from serve.gateway.requests import JobCommand, priority_of
from serve.gateway.views import job_view, why_view


def job_routes(nudge_dispatcher: Callable[[], Awaitable[None]], rules: Rules) -> APIRouter:
    """The routes of jobs; `nudge_dispatcher` is called after every change, `rules` are what the farm places jobs by."""
    routes = APIRouter(prefix="/v1", route_class=CheckedRoute)

    @routes.get("/ids")
    def find(farm: OwnersFarm, begins: Annotated[str, Query(min_length=1, max_length=64)]) -> dict[str, Any]:
        """The whole id of the batch or job whose id begins so; four characters behind its underscore are enough."""
        return {"object": "id", "id": farm.batch_store.find(farm.owner, begins)}

    @routes.get("/jobs/{job_id}")
    def get_job(job_id: str, farm: OwnersFarm) -> dict[str, Any]:
        """One row of a batch: its state, its problems and notes, the step it is in."""
        return job_view(farm.batch_store.job(farm.owner, job_id))

    @routes.get("/jobs/{job_id}/why")
    def explain_job(job_id: str, farm: OwnersFarm) -> dict[str, Any]:
        """Why a job is where it is, in words, and what would start it."""
        return why_view(why(farm.batch_store.database, farm.owner, job_id, rules))

    add_deliveries(routes)

    @routes.post("/jobs/{job_id}/{verb}")
    async def command_job(
        job_id: str, verb: Verb, farm: OwnersFarm, body: Annotated[JobCommand | None, Body()] = None
    ) -> dict[str, Any]:
        """Command one row: `pause`, `resume`, `cancel`, `retry`, `prioritize`, `hold`, `approve`, `reject`, `reroll`.

        `approve` takes a draft to its next round, and picks one of several clips of a row; `reject` lets it go, or with
        another prompt or guidance makes another in its place; `reroll` makes another, from another seed.
        """
        command = body or JobCommand()
        priority = priority_of(verb, command.priority)
        job = await run_in_threadpool(farm.command_job, job_id, verb, priority=priority, change=command.change())
        await nudge_dispatcher()
        return job_view(job)

    return routes
