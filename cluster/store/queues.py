# ruff: noqa: S608 (all statements are made of constants of this module)
"""What may start now: the heads of all queues, found in a time that does not grow with how many jobs wait.

A *queue* is one owner's waiting jobs of one kind and priority (`Job.queue`), in order of age. Two partial indexes hold
the waiting jobs queue after queue (`ix_jobs_queues`, and `ix_jobs_timed` for those with a start time), so the next
queue is one search in an index away, however long the present one is (a *loose index scan*).

A batch that is paused, or that nobody attends, must not be walked through either: it may have a million rows. So the
first column of both indexes is the *lane* of a job: its batch, and empty for the first few rows of a detached one.
Lanes of batches that may not start are left out as a whole. The common lane holds few rows of any one batch, so that a
hundred thousand batches of one clip each are one lane.

What remains to be skipped row by row are jobs of equal content to one that runs.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cluster.fleet.demand import WaitingKind
from cluster.jobs.model import QUEUE_BY, Outcome
from cluster.store.database import Database
from cluster.store.rows import batch_may_start
from cluster.store.schema import attempts, batches, jobs

_FOUND = ("id", *QUEUE_BY, "created_at", "batch_id", "number")
_MAY_START = str(batch_may_start(batches.alias("b"), sa.bindparam("now")))
_NO_EQUAL_RUNS = (
    "(SELECT 1 FROM jobs AS r WHERE r.owner = j.owner AND r.content_key = j.content_key AND r.state = 'running'"
    " LIMIT 1) IS NULL"
)
# PostgreSQL might look for an equal one among all that run, once for each head, as long as its statistics know of none.
# So what runs is read once, into a hash table.
_NO_EQUAL_RUNS_HASHED = (
    "(j.content_key IS NULL OR (j.owner, j.content_key) NOT IN (SELECT r.owner, r.content_key FROM jobs AS r"
    " WHERE r.state = 'running' AND r.content_key IS NOT NULL))"
)
#: Before `statement`, on PostgreSQL, for the rest of the transaction.
WALK_INDEXES = (
    "SELECT set_config('enable_bitmapscan', 'off', true), set_config('enable_sort', 'off', true),"
    " set_config('enable_hashjoin', 'off', true), set_config('enable_mergejoin', 'off', true),"
    " set_config('enable_seqscan', 'off', true), set_config('jit', 'off', true)"
)


@dataclass(frozen=True, kw_only=True)
class WaitingQueue(WaitingKind):
    """How many jobs wait in one queue."""

    owner: str
    priority: int


def heads(database: Database, connection: Connection, now: int, per_queue: int) -> list[str]:
    """Ids of the first `per_queue` jobs of each queue that may start at `now`: by priority, then age."""
    if not database.is_sqlite:
        # Statistics of a table that was just filled say nothing yet, and a sort reads all that a queue has.
        connection.exec_driver_sql(WALK_INDEXES)
    found: list[sa.Row[Any]] = []
    for timed in (False, True):
        # Few rows have a start time, and most farms none at all.
        if timed and not connection.scalar(_any_timed(sqlite=database.is_sqlite)):
            break
        found += connection.execute(_statement(timed=timed, sqlite=database.is_sqlite), {"now": now, "most": per_queue})
    # Each lane gave its first: of a queue that lies in several lanes, these are more than were asked for.
    taken: Counter[tuple[Any, ...]] = Counter()
    ids = []
    for row in sorted(found, key=lambda row: (-row.priority, row.created_at, row.batch_id, row.number)):
        queue = tuple(getattr(row, column) for column in QUEUE_BY)
        taken[queue] += 1
        if taken[queue] <= per_queue:
            ids.append(str(row.id))
    return ids


def counts(database: Database) -> list[WaitingQueue]:
    """How many jobs wait in each queue, those of equal content to one that runs included.

    Reads one index from end to end, a second or more for a million jobs: for plans, not for every decision.
    """
    counted: Counter[tuple[Any, ...]] = Counter()
    sqlite = database.is_sqlite
    with database.read() as c:
        now = {"now": database.now(c)}
        for timed in (False, True):
            for *queue, number in c.execute(sa.text(_counts(timed=timed, sqlite=sqlite)), now):
                counted[tuple(queue)] += number
        for *queue, number in c.execute(sa.text(_COMMON_BUT_HELD), now):
            counted[tuple(queue)] -= number
    return [
        WaitingQueue(
            owner=owner, model=family, resolution_class=size, needs_bytes=needs_bytes, priority=priority, jobs=number
        )
        for (owner, family, size, needs_bytes, priority), number in sorted(counted.items())
        if number > 0
    ]


def _waiting(*, timed: bool, sqlite: bool) -> str:
    """FROM and WHERE of the jobs in one of the two indexes; of timed ones, those to come too."""
    # SQLite has no statistics here and would take the first index that has an equality.
    hint = f" INDEXED BY ix_jobs_{'timed' if timed else 'queues'}" if sqlite else ""
    # Written out, not bound: a partial index is used only where the planner sees its condition in the statement.
    return f"jobs AS j{hint} WHERE j.state = 'queued' AND j.not_before IS {'NOT ' if timed else ''}NULL"


def _lanes(*, timed: bool, sqlite: bool) -> str:
    """CTEs: every lane with a waiting job, and of these the ones that may start."""
    waiting = _waiting(timed=timed, sqlite=sqlite)
    return f"""
    lanes(lane) AS (
        SELECT (SELECT j.lane FROM {waiting} ORDER BY j.lane LIMIT 1)
        UNION ALL
        SELECT (SELECT j.lane FROM {waiting} AND j.lane > lanes.lane ORDER BY j.lane LIMIT 1)
        FROM lanes WHERE lanes.lane IS NOT NULL
    ),
    live(lane) AS (
        SELECT lanes.lane FROM lanes
        WHERE lanes.lane = '' OR (SELECT {_MAY_START} FROM batches AS b WHERE b.id = lanes.lane)
    )"""


@cache
def _statement(*, timed: bool, sqlite: bool) -> sa.TextClause:
    return sa.text(statement(timed=timed, sqlite=sqlite))


@cache
def _any_timed(*, sqlite: bool) -> sa.TextClause:
    # By the order, which only the index of such rows gives: another would look through all that wait.
    return sa.text(f"SELECT 1 FROM {_waiting(timed=True, sqlite=sqlite)} ORDER BY j.lane LIMIT 1")


def statement(*, timed: bool, sqlite: bool) -> str:
    """SQL of the first `:most` jobs of each queue of each lane at `:now`, of one of the two indexes."""
    key = ("not_before", *QUEUE_BY) if timed else QUEUE_BY
    waiting = _waiting(timed=timed, sqlite=sqlite)
    order, due = ", ".join(f"j.{column}" for column in key), " AND j.not_before <= :now" if timed else ""
    # (a, b, c) > (x, y, z), column by column from the last: SQLite finds only the first column of such a comparison
    # in an index.
    following = ",\n".join(
        f"(SELECT j.id FROM {waiting} AND j.lane = h.lane"
        + "".join(f" AND j.{same} = h.{same}" for same in key[:n])
        + f" AND j.{key[n]} > h.{key[n]}{'' if n else due} ORDER BY {', '.join(f'j.{c}' for c in key[n:])} LIMIT 1)"
        for n in reversed(range(len(key)))
    )
    same = " AND ".join(f"j.{column} = q.{column}" for column in key)
    no_equal_runs = _NO_EQUAL_RUNS if sqlite else _NO_EQUAL_RUNS_HASHED
    first = f"""
        SELECT {", ".join(f"j.{column}" for column in (("id",) if sqlite else _FOUND))}
        FROM {waiting} AND j.lane = q.lane AND {same}
        AND (SELECT {_MAY_START} FROM batches AS b WHERE b.id = j.batch_id) AND {no_equal_runs}
        ORDER BY j.created_at, j.number LIMIT :most"""
    found = ", ".join(f"f.{column}" for column in _FOUND)
    # SQLite has no LATERAL, and runs such a list once for each queue; PostgreSQL would run it once for each job.
    firsts = (
        f"SELECT {found} FROM queues CROSS JOIN jobs AS q ON q.id = queues.id CROSS JOIN jobs AS f ON f.id IN ({first})"
        if sqlite
        else f"SELECT {found} FROM queues JOIN jobs AS q ON q.id = queues.id CROSS JOIN LATERAL ({first}) AS f"
    )
    return f"""
    WITH RECURSIVE {_lanes(timed=timed, sqlite=sqlite)},
    queues(id) AS (
        SELECT (SELECT j.id FROM {waiting} AND j.lane = live.lane{due} ORDER BY {order} LIMIT 1) FROM live
        UNION ALL
        SELECT coalesce({following}) FROM queues JOIN jobs AS h ON h.id = queues.id
    )
    {firsts}"""


def _counts(*, timed: bool, sqlite: bool) -> str:
    # Lane by lane, in the order of the index: nothing is sorted, hashed or joined row by row.
    queue = ", ".join(f"j.{column}" for column in QUEUE_BY)
    due = "AND j.not_before <= :now" if timed else ""
    order = f"{'j.not_before, ' if timed else ''}{queue}"
    waiting = _waiting(timed=timed, sqlite=sqlite)
    lanes = f"WITH RECURSIVE {_lanes(timed=timed, sqlite=sqlite)}"
    if sqlite:
        return f"""{lanes} SELECT {queue}, count(*) FROM {waiting} AND j.lane IN (SELECT live.lane FROM live)
        {due} GROUP BY j.lane, {order}"""
    return f"""{lanes} SELECT found.* FROM live CROSS JOIN LATERAL (
        SELECT {queue}, count(*) FROM {waiting} AND j.lane = live.lane {due} GROUP BY {order}) AS found"""


#: Jobs of paused batches in the common lane: found from the batches, which are few.
_COMMON_BUT_HELD = f"""
    SELECT {", ".join(f"j.{column}" for column in QUEUE_BY)}, count(*)
    FROM batches AS b JOIN jobs AS j ON j.batch_id = b.id
    WHERE b.held IS NOT NULL AND j.state = 'queued' AND j.lane = '' AND (j.not_before IS NULL OR j.not_before <= :now)
    GROUP BY {", ".join(f"j.{column}" for column in QUEUE_BY)}"""


#: Finished attempts looked at for the mean: the newest say most of what the next will take.
_NEWEST = 1000


def waiting_kinds(database: Database) -> list[WaitingKind]:
    """Queued jobs by kind; attended batches nobody waits for are left out, for nothing of them will start."""
    kinds: Counter[tuple[str, str, int]] = Counter()
    for queue in counts(database):
        kinds[queue.model, queue.resolution_class, queue.needs_bytes] += queue.jobs
    return [
        WaitingKind(model=model, resolution_class=size, needs_bytes=needs_bytes, jobs=number)
        for (model, size, needs_bytes), number in kinds.items()
    ]


def mean_gpu_seconds(database: Database) -> dict[tuple[str, str], float]:
    """Mean seconds of the newest completed attempts by (model, resolution class), at least half a second."""
    newest = (
        sa.select(attempts.c.job_id, (attempts.c.ended_at - attempts.c.started_at).label("seconds"))
        .where(attempts.c.outcome == Outcome.COMPLETED.value)
        .order_by(attempts.c.id.desc())
        .limit(_NEWEST)
        .subquery()
    )
    query = (
        sa.select(jobs.c.family, jobs.c.resolution_class, sa.func.avg(newest.c.seconds).label("mean"))
        .join(newest, newest.c.job_id == jobs.c.id)
        .group_by(jobs.c.family, jobs.c.resolution_class)
    )
    with database.read() as c:
        return {(row.family, row.resolution_class): max(0.5, float(row.mean)) for row in c.execute(query)}
