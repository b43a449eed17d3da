"""The request router of renderers: a call goes to the renderer it names, or waits for nobody."""

from __future__ import annotations

from typing import Any

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica


class PinnedRouter(RequestRouter):
    """Routes by the keyword argument `want`, the unique id of a replica.

    There is no FIFO and no balancing: the dispatcher has already chosen the card. A call whose renderer is gone
    finds no candidate; the caller bounds how long it waits.
    """

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The one replica whose unique id the request wants."""
        want: Any = pending_request.kwargs.get("want") if pending_request else None
        return [[r for r in candidate_replicas if want is None or r.replica_id.unique_id == want]]
