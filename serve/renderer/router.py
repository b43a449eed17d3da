"""The request router of renderers: a call goes to the renderer it names, or fails."""

from __future__ import annotations

import time
from typing import Any

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

#: How long a call may wait for a renderer that this handle does not know (yet): news of a replica travels slower than
#: the replica's own first heartbeat.
UNKNOWN_S = 8.0


class PinnedRouter(RequestRouter):
    """Routes by the keyword argument `want`, the unique id of a replica.

    There is no FIFO and no balancing: the dispatcher has already chosen the card. A call whose renderer is gone is
    failed here. Left alone it would keep one of the few routing tasks (two per replica) for ever, and after two such
    calls no other could be routed.
    """

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The one replica whose unique id the request wants."""
        if pending_request is None:
            return [candidate_replicas]
        want: Any = pending_request.kwargs.get("want")
        wanted = [r for r in candidate_replicas if r.replica_id.unique_id == want]
        if not wanted and not pending_request.future.done() and time.time() - pending_request.created_at > UNKNOWN_S:
            # A built-in: this class travels by value, so an exception of ours would be another one where it is caught.
            pending_request.future.set_exception(ConnectionError(f"there is no renderer {want}"))
        if pending_request.future.done():
            # Anything but nothing: only then does Serve look whether the request is over, and end its routing task.
            return [candidate_replicas]
        # Without it Serve asks again at once and for ever, and no news of replicas is read meanwhile.
        pending_request.routing_context.should_backoff = not wanted
        return [wanted]
