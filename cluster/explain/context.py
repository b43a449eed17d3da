"""What decides about one job, read from the store by whoever asks: no office is taken and nothing is written."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cluster.chunks import chunks
from cluster.estimates.times import TimeEstimates
from cluster.explain.model import Known
from cluster.explain.reasons import Explanation, Rules, explain
from cluster.fleet.cards import Beat, Card, CardState, Fleet, card_faults, every_class, storage_fault
from cluster.jobs.model import Attempt, HoldReason, Job, JobState
from cluster.scheduling.interactive import InteractiveTerms, admitted
from cluster.scheduling.priority import AGEING_S, effective_priority
from cluster.scheduling.snapshot import Running, Snapshot
from cluster.scheduling.tail.planner import Planner, is_worth_planning
from cluster.scheduling.tail.search import MOST_LISTED
from cluster.store import measurements, queues
from cluster.store.batches import BatchStore
from cluster.store.claims import readable
from cluster.store.commands import CommandStore
from cluster.store.database import Database
from cluster.store.lookup import NoSuchJobError
from cluster.store.rows import attempt_from, may_start, select_jobs
from cluster.store.schema import attempts, batches, jobs
from pipeline.devices.emulation_scale import emulated_bytes
from pipeline.families import is_resumable
from pipeline.units import GIB

#: Jobs that are read of each queue, where not more cards are idle.
PER_QUEUE = MOST_LISTED
#: Jobs that go before one are counted up to here.
AHEAD_MOST = 10_001
_MANY = 1000


@dataclass(frozen=True, kw_only=True)
class JobContext:
    """A job and all that `cluster.explain.reasons.explain` asks for."""

    job: Job
    snapshot: Snapshot
    #: The store's clock, UTC epoch seconds.
    now: int
    estimates: TimeEstimates
    known: Known


def why(database: Database, owner: str, job_id: str, rules: Rules) -> Explanation:
    """Why the owner's job is where it is. Raises `NoSuchJobError`."""
    context = context_of(database, owner, job_id, rules)
    return explain(context.job, context.snapshot, context.now, context.estimates, context.known)


def context_of(database: Database, owner: str, job_id: str, rules: Rules) -> JobContext:
    """The present of the farm around a job, as far as the store knows it. Raises `NoSuchJobError`.

    Breakers, and the plan that the dispatcher has, are in its memory only: the first are left out, the second is worked
    out anew.
    """
    batch_store = BatchStore(database)
    job, now = batch_store.job(owner, job_id), batch_store.now()
    beats, orders = batch_store.cards(), CommandStore(database).orders()
    # As many as the dispatcher reads, so that nothing starts here that would not start there.
    per_queue = max(PER_QUEUE, 2 * sum(beat.state is CardState.IDLE for beat in beats))
    with database.read() as c:
        running, renderers = _running(c)
        attempt = _newest(c, job)
    waiting: list[Job] = []
    ahead: int | None = None
    if not job.state.final and job.state is not JobState.RUNNING:
        with database.read() as c:
            waiting = _waiting(database, c, now, per_queue)
            ahead = _ahead(c, job, now)
    known = Known(
        batch=batch_store.batch(owner, job.batch_id),
        after=_after(batch_store, job),
        attempt=attempt,
        beat=next((beat for beat in beats if attempt is not None and beat.renderer == attempt.renderer), None),
        orders=orders,
        ahead=ahead,
        ahead_most=AHEAD_MOST,
        per_queue=per_queue,
        hidden=_is_hidden(job, waiting, per_queue),
        interactive=rules.interactive,
        card_faults=card_faults(beats),
        storage_fault=storage_fault(beats),
    )
    measured = measurements.load_times(database)
    snapshot = Snapshot.of(
        waiting=waiting,
        admitted=_admitted(job, waiting, running, rules.interactive),
        pace=measured,
        cards=[_card(beat, renderers.get(beat.renderer, ())) for beat in beats],
        fleet=rules.fleet or _fleet_of(beats),
        memory=measurements.load_memory(database),
        running=running,
        owners=rules.owners,
        locked=frozenset(orders),
    )
    if rules.plans and job.state is JobState.QUEUED:
        snapshot = _planned(snapshot, now, measured)
    return JobContext(job=job, snapshot=snapshot, now=now, estimates=measured, known=known)


def _admitted(job: Job, waiting: Sequence[Job], running: Iterable[Running], terms: InteractiveTerms) -> frozenset[str]:
    """The interactive jobs that go before batches, were their share not used up: the dispatcher alone knows that."""
    some = [*(one for one in waiting if one.id != job.id), job]
    on_cards = Counter(r.job.owner for r in running if r.job.interactive)
    return admitted(some, on_cards, terms, math.inf, lambda _: 0.0)


def _fleet_of(beats: Sequence[Beat]) -> Fleet:
    """Classes that a farm may have which tells nothing of itself: all there are, those on the roster as they are."""
    emulated = bool(beats) and all(beat.kind == "emulated" for beat in beats)
    usable = dict(every_class(emulated_bytes(GIB) / GIB if emulated else 1.0).usable_bytes)
    # A card that cannot be used has nothing now, and its class is what it was.
    sound = [beat for beat in beats if not beat.fault]
    for name in {beat.card_class for beat in sound}:
        usable[name] = min(beat.usable_bytes for beat in sound if beat.card_class == name)
    return Fleet(usable_bytes=usable)


def _waiting(database: Database, c: Connection, now: int, per_queue: int) -> list[Job]:
    found = [
        job
        for some in chunks(queues.heads(database, c, now, per_queue), _MANY)
        for row in c.execute(select_jobs().where(jobs.c.id.in_(some)))
        if (job := readable(row)) is not None
    ]
    return sorted(found, key=lambda job: (-job.priority, job.created_at, job.batch_id, job.number))


def _is_hidden(job: Job, waiting: Iterable[Job], per_queue: int) -> bool:
    """Whether the queue of `job` is longer than what was read of it, and `job` stands behind that."""
    of_queue: Counter[object] = Counter()
    for other in waiting:
        if other.id == job.id:
            return False
        of_queue[other.queue] += 1
    return of_queue[job.queue] >= per_queue


def _ahead(c: Connection, job: Job, now: int) -> int:
    """How many jobs that may start go before `job`, counted up to `AHEAD_MOST`."""
    # As `effective_priority` has it; the store's clock may be behind whoever wrote the row.
    waited = sa.case((jobs.c.created_at < now, now - jobs.c.created_at), else_=0)
    priority = jobs.c.priority + waited // AGEING_S
    # Interactive ones first, by the priority that the store keeps.
    mine = effective_priority(job, now) + job.priority - job.own_priority
    row = sa.tuple_(jobs.c.created_at, jobs.c.batch_id, jobs.c.number)
    older = row < sa.tuple_(sa.literal(job.created_at), sa.literal(job.batch_id), sa.literal(job.number))
    first = sa.or_(priority > mine, sa.and_(priority == mine, older))
    found = (
        sa.select(sa.literal(1).label("one"))
        .select_from(jobs.join(batches, batches.c.id == jobs.c.batch_id))
        .where(jobs.c.state == JobState.QUEUED.value, may_start(now), jobs.c.id != job.id, first)
        .limit(AHEAD_MOST)
        .subquery()
    )
    return c.scalar(sa.select(sa.func.count()).select_from(found)) or 0


def _running(c: Connection) -> tuple[list[Running], dict[str, list[Attempt]]]:
    """The jobs that run, and the attempts that each renderer has."""
    made = [attempt_from(row) for row in c.execute(sa.select(attempts).where(attempts.c.outcome.is_(None)))]
    found: dict[str, Job] = {}
    for some in chunks((one.job_id for one in made), _MANY):
        for row in c.execute(select_jobs().where(jobs.c.id.in_(some))):
            if (job := readable(row)) is not None:
                found[job.id] = job
    running: list[Running] = []
    renderers: dict[str, list[Attempt]] = {}
    for one in made:
        if (job := found.get(one.job_id)) is not None:
            movable = is_resumable(job.spec.family if job.spec else None)
            running.append(Running(job=job, card=one.card, step=one.step, movable=movable))
            renderers.setdefault(one.renderer, []).append(one)
    return running, renderers


def _card(beat: Beat, has: Iterable[Attempt]) -> Card:
    """The card as placement sees it, about: the dispatcher knows a second earlier what begins and ends there."""
    # A clip whose steps are done is being published, beside the next one.
    working = any(not one.steps or one.step < one.steps for one in has)
    return Card.of(beat, idle=beat.state is CardState.IDLE and not working and not beat.storage_fault)


def _newest(c: Connection, job: Job) -> Attempt | None:
    query = sa.select(attempts).where(attempts.c.job_id == job.id).order_by(attempts.c.fence.desc()).limit(1)
    row = c.execute(query).one_or_none()
    return None if row is None else attempt_from(row)


def _after(batch_store: BatchStore, job: Job) -> Job | None:
    if job.after is None or job.reason != HoldReason.AFTER:
        return None
    try:
        return batch_store.job(job.owner, job.after)
    except NoSuchJobError:
        # Until its batch is sealed it is a name.
        return None


def _planned(snapshot: Snapshot, now: int, measured: TimeEstimates) -> Snapshot:
    """`snapshot` with the plan that the dispatcher is likely to have, where it has any."""
    if len(snapshot.waiting) + len(snapshot.running) > MOST_LISTED or not is_worth_planning(snapshot, measured):
        return snapshot
    plan = Planner(measured, variants=1).update(snapshot, now)
    return snapshot if plan is None else replace(snapshot, plan=plan)
