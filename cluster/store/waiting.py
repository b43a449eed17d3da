"""The jobs that wait, as a dispatcher reads them at every look: whole, in the order of placement."""

from __future__ import annotations

import time
from collections import Counter

from cluster.jobs.model import Job
from cluster.store.claims import readable
from cluster.store.database import Database
from cluster.store.queues import WaitingQueue, counts, heads
from cluster.store.rows import JOBS_BY_ID

#: Waiting jobs of which a share that starts meanwhile changes no plan.
_MANY_WAIT = 50_000
#: Rows that cannot be read and are looked behind, at most.
_MOST_UNREADABLE = 1000


class WaitingJobs:
    """Reads the heads of the queues and counts them; remembers how much there was, so that the next look is short."""

    def __init__(self, database: Database) -> None:
        self._db = database
        #: Waiting rows at the heads of queues that could not be read.
        self._unreadable = 0
        #: What waited, when so much waited, and until when that is good enough.
        self._counted: tuple[float, list[WaitingQueue]] | None = None

    def first(self, per_queue: int) -> list[Job]:
        """Jobs that may start now: the first `per_queue` of each queue, in the order of placement.

        A queue is an owner's waiting jobs of one family, class, size and priority, so that a thousand large clips
        waiting for a large card cannot hide a small one. Left out: jobs whose clip another job is rendering, whose time
        has not come, and of batches that are paused or attended by nobody. Takes as long for a thousand waiting jobs as
        for a million.
        """
        while True:
            with self._db.read() as c:
                ids = heads(self._db, c, self._db.now(c), per_queue + self._unreadable)
                rows = c.execute(JOBS_BY_ID, {"ids": ids}) if ids else ()
                found = {job.id: job for row in rows if (job := readable(row)) is not None}
            # As many more are read as there are rows that cannot be: or they would hide what waits behind them.
            unreadable = min(len(ids) - len(found), _MOST_UNREADABLE)
            enough, self._unreadable = unreadable <= self._unreadable, unreadable
            if enough:
                break
        in_order = sorted(found.values(), key=lambda job: (-job.priority, job.created_at, job.batch_id, job.number))
        if not self._unreadable:
            return in_order
        taken: Counter[tuple[object, ...]] = Counter()
        first = []
        for job in in_order:
            taken[job.queue] += 1
            if taken[job.queue] <= per_queue:
                first.append(job)
        return first

    def counts(self) -> list[WaitingQueue]:
        """How many jobs wait in each queue: for plans, see `cluster.store.queues.counts`.

        Of very many jobs the answer is given again for twenty times as long as it took to count them.
        """
        if self._counted is not None and time.monotonic() < self._counted[0]:
            return self._counted[1]
        begun = time.monotonic()
        found = counts(self._db)
        ended = time.monotonic()
        many = sum(queue.jobs for queue in found) >= _MANY_WAIT
        self._counted = (ended + 20 * (ended - begun), found) if many else None
        return found
