"""Routes of cards: a list of them with the orders that hold, and commands on one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Body
from fastapi.concurrency import run_in_threadpool

from cluster.jobs.commands import CardVerb
from cluster.store.measurements import load_times
from serve.gateway.access.gate import OwnersFarm
from serve.gateway.door import CheckedRoute
from serve.gateway.requests import CardCommand
from serve.gateway.views import card_view, kernels_view, order_view


def card_routes(nudge_dispatcher: Callable[[], Awaitable[None]]) -> APIRouter:
    """The routes of cards; `nudge_dispatcher` is called after every change."""
    routes = APIRouter(prefix="/v1", route_class=CheckedRoute)

    @routes.get("/cards")
    def cards(farm: OwnersFarm) -> dict[str, Any]:
        """The cards heard of lately: memory, what they do, the largest clips that fit, the orders that hold."""
        orders = farm.commands.orders()
        return {
            "object": "list",
            "data": [card_view(beat, orders.get(beat.card)) for beat in farm.batch_store.cards()],
            "kernels": kernels_view(load_times(farm.batch_store.database)),
        }

    @routes.post("/cards/{card:path}/{verb}")
    async def command_card(
        card: str, verb: CardVerb, farm: OwnersFarm, body: Annotated[CardCommand | None, Body()] = None
    ) -> dict[str, Any]:
        """Command a card by its whole id: `lock`, `drain`, `quarantine`, `release`. Answers with its order."""
        command = body or CardCommand()
        # By its whole id: a beginning, "e" say, would let a guess stop every card one after the other.
        _, order = await run_in_threadpool(
            farm.command_card, card, verb, reason=command.reason, for_s=command.for_s, whole=True
        )
        await nudge_dispatcher()
        return {"object": "card", "card": card, "order": order_view(order)}

    return routes
