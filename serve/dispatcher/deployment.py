"""The dispatcher as a Serve deployment, with the figures it scales by and the sweep of the storage beside it."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import time
from typing import Any

import ray
from ray.serve.handle import DeploymentHandle

from cluster.dispatch.dispatcher import Dispatcher, Timing
from cluster.estimates.times import TimeEstimates
from cluster.fleet.cards import Beat
from cluster.fleet.demand import ClassState, backlog_gpu_seconds, replicas_kept, replicas_wanted
from cluster.maintenance.retention import Sweeper
from cluster.remote.poster import MessagePoster
from cluster.scheduling.tail.planner import Planner
from cluster.storage import Storage
from cluster.store import Database, DispatchStore
from cluster.store.queues import mean_gpu_seconds, waiting_kinds
from cluster.store.unsealed import expire_unsealed
from serve.autoscaling import kept_name, wanted_name
from serve.dispatcher.pool import ServePool
from serve.dispatcher.webhooks import WebhookSender
from serve.loopback import replica_on_loopback
from serve.settings import STORE_PATIENCE_S, CardClassArgs, FarmArgs

log = logging.getLogger("clipmill.dispatcher")

#: How often batches are looked for that nobody hands in any more, in seconds.
_EXPIRE_S = 60.0
#: Candidates for the plan of a batch's tail: each takes about a second of a core.
PLAN_VARIANTS = 2


class DispatcherDeployment:
    """One replica. Renderers call `beat`; the loop runs beside."""

    async def __init__(self, args: dict[str, Any], **handles: DeploymentHandle) -> None:  # type: ignore[misc]  # Serve awaits it
        farm = FarmArgs.model_validate(args)
        farm.set_umask()
        replica_on_loopback()
        self._farm = farm
        self._storage_url = farm.settings().storage_url
        self._database = database = Database.shared(farm.settings().database_url)
        await asyncio.to_thread(database.migrate, patience_s=STORE_PATIENCE_S)
        self._dispatcher = Dispatcher(
            DispatchStore(database),
            ServePool(handles),
            farm.fleet(),
            holder=f"{socket.gethostname()}:{os.getpid()}",
            # One for all replicas of a cluster, however often they are replaced, and for no other cluster's.
            farm=ray.get_runtime_context().get_session_name(),
            clock=time.monotonic,
            timing=Timing(stall_s=farm.stall_s),
            storage=Storage(self._storage_url),
            owners=farm.owners,
            planner=Planner(TimeEstimates(), variants=PLAN_VARIANTS) if farm.plan_tails else None,
            interactive=farm.interactive(),
        )
        self._loop = asyncio.create_task(self._dispatcher.run())
        self._figures: dict[str, float] = {}
        self._closing = threading.Event()
        self._housekeeping = asyncio.create_task(self._sweep())
        self._expiring = asyncio.create_task(self._expire_unsealed())
        # Connections of its own: threads that wait to write how a message went leave the dispatcher's alone.
        outbox = Database.shared(farm.settings().database_url)
        self._webhooks = WebhookSender(outbox, MessagePoster(farm.fetch).post, base=farm.public_url)
        self._sending = threading.Thread(
            target=self._webhooks.run, args=(self._closing,), name="clipmill-webhooks", daemon=True
        )
        self._sending.start()
        self._demand = asyncio.create_task(self._watch_demand()) if farm.autoscales else None

    async def beat(self, beat: dict[str, Any]) -> dict[str, str]:
        """A renderer's heartbeat; the answer has a verdict for each attempt that it names."""
        return {k: v.value for k, v in self._dispatcher.beat(Beat.read(beat)).items()}

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Replicas wanted and kept per card class, as `serve.autoscaling.policy` reads them."""
        return self._figures

    async def _watch_demand(self) -> None:
        fleet = self._farm.fleet()
        while True:
            try:
                # Another farm's dispatcher starts what waits, on its own cards.
                idle = bool(self._dispatcher.stands_by)
                waiting = {} if idle else await asyncio.to_thread(waiting_kinds, self._database)
                means = await asyncio.to_thread(mean_gpu_seconds, self._database) if waiting else {}
                backlog = backlog_gpu_seconds(waiting, means, fleet)
                roster = self._dispatcher.roster()
                figures: dict[str, float] = {}
                for name, table in self._farm.card_classes.items():
                    if table.max_replicas is not None:
                        state = _state_of(table, table.max_replicas, backlog[name], roster.get(name, (0, 0)))
                        figures[wanted_name(name)] = replicas_wanted(state, target_s=self._farm.backlog_target_s)
                        figures[kept_name(name)] = replicas_kept(state)
                self._figures = figures
            except Exception as error:
                # Keep the last figures: a store that stumbles must not scale the farm to nothing.
                log.warning("the backlog could not be read: %s", error)
            await asyncio.sleep(1)

    async def _sweep(self) -> None:
        # By whichever dispatcher is up: a sweep needs no office, and two of them do no harm.
        sweeper = Sweeper(self._database, Storage(self._storage_url), self._farm.keep(), stop=self._closing)
        while True:
            # Not at once: a farm that was just started for one batch has better to do.
            await asyncio.sleep(self._farm.sweep_hours * 3600)
            try:
                log.info("swept: %s", await asyncio.to_thread(sweeper.run))
            except Exception as error:
                log.warning("the storage could not be swept, the next time is in some hours: %s", error)

    async def _expire_unsealed(self) -> None:
        # By whichever dispatcher is up, as the sweep.
        while True:
            try:
                for batch in await asyncio.to_thread(expire_unsealed, self._database):
                    log.warning("batch %s was never handed in whole: it is closed after %d rows", batch.id, batch.rows)
            except Exception as error:
                log.warning("batches that nobody hands in any more were not looked for: %s", error)
            await asyncio.sleep(_EXPIRE_S)

    async def nudge(self) -> None:
        """New work is in the store."""
        self._dispatcher.nudge()

    async def preempt(self, job_id: str) -> bool:
        """Have a running job save a checkpoint and free its card; False where there is nothing to preempt."""
        return self._dispatcher.preempt(job_id)

    async def drain(self, grace_s: float) -> None:
        """Start nothing more; return when running clips have finished, or were preempted after `grace_s`."""
        self._closing.set()
        self._housekeeping.cancel()
        self._expiring.cancel()
        await self._dispatcher.stop(grace_s)
        # What the last clips were the end of: nobody knows when there will be a farm on this store again.
        await asyncio.to_thread(self._finish_sending)

    def _finish_sending(self) -> None:
        try:
            self._webhooks.finish()
        except Exception as error:
            log.warning("webhooks of what ended last are for the next farm: %s", error)

    async def check_health(self) -> None:
        """Raise when the loop has ended although nobody closed it: Serve then replaces this replica.

        By a fault, or because a dispatcher that is on its way out came back into office after this one: with that gone
        nobody would be in office.
        """
        if not self._loop.done() or self._closing.is_set():
            return
        if fault := self._loop.exception():
            raise RuntimeError(f"the dispatcher's loop broke: {fault}") from fault
        raise RuntimeError("another dispatcher took over; a new replica takes the office back")


def _state_of(table: CardClassArgs, maximum: int, backlog: float, roster: tuple[int, int]) -> ClassState:
    present, busy = roster
    return ClassState(backlog_gpu_seconds=backlog, present=present, busy=busy, minimum=table.replicas, maximum=maximum)
