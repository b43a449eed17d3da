"""Heads of queues, claims and endings in batches, rescue in pages: the same as one by one, at any size."""

from __future__ import annotations

import multiprocessing
import random
import re
from collections import Counter
from dataclasses import replace

import pytest
import sqlalchemy as sa

from cluster.dispatch.retry import after_attempt
from cluster.fleet.cards import Fleet
from cluster.fleet.demand import WaitingKind, backlog_gpu_seconds
from cluster.jobs.model import QUEUE_BY, JobState, StoredCheckpoint, stored_priority
from cluster.jobs.outcomes import Ended, Errored, Lost, OutOfMemory, Peak, Stopped, Transition
from cluster.store import BatchStore, Completion, Database, DispatchStore, StaleEpochError
from cluster.store.queues import waiting_kinds
from cluster.store.rows import COMMON_ROWS, may_start
from cluster.store.schema import attempts, batches, clips, jobs
from pipeline.memory.footprint import plan
from pipeline.units import GIB
from tests.building import FLEET, Clock, Truth, card, completed, draft, objects, spec

ME = "local"
QUEUE = (jobs.c.owner, jobs.c.family, jobs.c.resolution_class, jobs.c.needs_bytes, jobs.c.priority)


def hand_in(batch_store: BatchStore, *drafts, owner: str = ME, **options) -> str:
    batch_id, _ = batch_store.open_batch(owner, name="catalog", **options)
    batch_store.add(owner, batch_id, drafts)
    batch_store.seal(owner, batch_id)
    return batch_id


def ending(dispatch_store: DispatchStore, claim, ended: Ended) -> Completion:
    return Completion(
        claim=claim, ended=ended, transition=after_attempt(dispatch_store.current_job(claim), ended, FLEET)
    )


def offered_by_plain_query(truth: Truth, now: int, per_queue: int) -> set[str]:
    """What should be offered: all that may start, read and ranked in Python."""
    runs = jobs.alias("runs")
    equal = sa.exists().where(
        runs.c.owner == jobs.c.owner, runs.c.content_key == jobs.c.content_key, runs.c.state == "running"
    )
    query = (
        sa.select(jobs.c.id, jobs.c.batch_id, jobs.c.number, jobs.c.created_at, *QUEUE)
        .join(batches, batches.c.id == jobs.c.batch_id)
        .where(jobs.c.state == "queued", may_start(now), ~equal)
    )
    taken: Counter = Counter()
    found = set()
    for row in sorted(truth.rows(query), key=lambda r: (-r.priority, r.created_at, r.batch_id, r.number)):
        key = tuple(row[4:])
        taken[key] += 1
        if taken[key] <= per_queue:
            found.add(row.id)
    return found


def fill(batch_store: BatchStore, clock: Clock, rng: random.Random) -> None:
    """Batches of every sort: small, large, attended or left, held, with rows for later, of two owners."""
    for n in range(12):
        clock.now += rng.randrange(3)
        owner = rng.choice([ME, "bob"])
        rows = rng.choice([1, 3, COMMON_ROWS, COMMON_ROWS + 1, 60])
        batch_id = hand_in(
            batch_store,
            *(
                draft(
                    number,
                    rng.choice([f"same{rng.randrange(9)}", f"own{n}-{number}"]),
                    spec=spec(rng.choice(["camera", "i2vgen-xl"])),
                    needs_bytes=rng.choice([10, 20, 30]),
                    priority=rng.choice([-1, 0, 5]),
                    not_before=rng.choice([None, None, None, int(clock.now) - 5, int(clock.now) + 20]),
                )
                for number in range(1, rows + 1)
            ),
            owner=owner,
            attended_s=rng.choice([None, None, 5, 40]),
        )
        if rng.random() < 0.25:
            with batch_store.database.write() as c:
                c.execute(sa.update(batches).where(batches.c.id == batch_id).values(held="paused"))


@pytest.mark.parametrize("seed", range(6))
def test_heads_are_what_a_plain_query_finds(batch_store, dispatch_store, clock, truth, seed):
    rng = random.Random(seed)
    fill(batch_store, clock, rng)
    for moment in (0, 10, 30):
        clock.now += moment
        for per_queue in (1, 3, 1000):
            offered = dispatch_store.waiting(per_queue)
            assert {job.id for job in offered} == offered_by_plain_query(truth, int(clock.now), per_queue)
            order = [(-job.priority, job.created_at, job.batch_id, job.number) for job in offered]
            assert order == sorted(order)
        if offered:
            # Equal clips of what starts now are offered no more.
            dispatch_store.start([(job, card(job.id)) for job in rng.sample(offered, min(5, len(offered)))], 10)


@pytest.mark.parametrize("seed", range(3))
def test_counts_are_those_of_a_plain_query(database, batch_store, dispatch_store, clock, truth, seed):
    fill(batch_store, clock, random.Random(seed))
    for moment in (0, 30):
        clock.now += moment
        query = (
            sa.select(*QUEUE, sa.func.count())
            .join(batches, batches.c.id == jobs.c.batch_id)
            .where(jobs.c.state == "queued", may_start(int(clock.now)))
            .group_by(*QUEUE)
        )
        counted = dispatch_store.counts()
        assert {(q.owner, q.model, q.resolution_class, q.needs_bytes, q.priority, q.jobs) for q in counted} == {
            tuple(row) for row in truth.rows(query)
        }
        # Whoever asks by kind, or for seconds of work, gets the same sums.
        kinds = waiting_kinds(database)
        assert all(type(kind) is WaitingKind for kind in kinds)
        assert sum(kind.jobs for kind in kinds) == sum(queue.jobs for queue in counted)
        fleet = Fleet(usable_bytes={"c8": 15, "c24": 100})
        assert backlog_gpu_seconds(kinds, {}, fleet) == backlog_gpu_seconds(counted, {}, fleet)


def steps_of(database: Database, call) -> int:
    """Instructions of SQLite's machine that a call takes, in tens: a cost that no other process changes."""
    steps = 0

    def tick() -> int:
        nonlocal steps
        steps += 1
        return 0

    database.engine.dispose()
    listen = lambda c, _record: c.set_progress_handler(tick, 10)  # noqa: E731
    sa.event.listen(database.engine, "connect", listen)
    call()
    sa.event.remove(database.engine, "connect", listen)
    database.engine.dispose()
    return steps


def copy_rows(database: Database, batch_id: str, times: int) -> None:
    """Give a batch many more rows like its last one."""
    with database.write() as c:
        columns = [column.name for column in jobs.c if column.name not in {"id", "number", "content_key"}]
        listed = ", ".join(f'"{name}"' for name in columns)
        c.execute(
            sa.text(
                f"INSERT INTO jobs (id, number, content_key, {listed}) "
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :times) "
                f"SELECT id || '-' || i, number + i, content_key || '-' || i, {listed} FROM jobs, n "
                "WHERE batch_id = :batch AND number = (SELECT max(number) FROM jobs WHERE batch_id = :batch)"
            ),
            {"times": times, "batch": batch_id},
        )


@pytest.mark.parametrize("case", ["live", "abandoned", "paused", "later", "due"])
def test_a_hundred_times_as_many_waiting_jobs_cost_no_more(sqlite_database, case):
    database = sqlite_database
    clock, batch_store, dispatch_store = Clock().set_on(database), BatchStore(database), DispatchStore(database)
    dispatch_store.take_office("first")
    when = {"later": int(clock.now) + 100, "due": int(clock.now) - 100}.get(case)
    options = {"attended_s": 5} if case == "abandoned" else {}
    rows = [draft(n, f"big{n}", needs_bytes=1, not_before=when) for n in range(1, COMMON_ROWS + 3)]
    batch_id = hand_in(batch_store, *rows, **options)
    hand_in(batch_store, draft(1, "small", needs_bytes=2))
    if case == "paused":
        with database.write() as c:
            c.execute(sa.update(batches).where(batches.c.id == batch_id).values(held="paused"))
    clock.now += 10
    copy_rows(database, batch_id, 200)
    few = steps_of(database, lambda: dispatch_store.waiting(4))
    copy_rows(database, batch_id, 20_000)
    many = steps_of(database, lambda: dispatch_store.waiting(4))
    assert many <= 1.2 * few
    offered = dispatch_store.waiting(4)
    assert "small" in [job.content_key for job in offered]
    assert len(offered) == (5 if case in {"live", "due"} else 1)


def test_a_job_that_cannot_be_read_hides_no_other(batch_store, dispatch_store, database):
    hand_in(batch_store, draft(1), draft(2))
    bad, good = dispatch_store.waiting(10)
    with database.write() as c:
        c.execute(sa.update(jobs).where(jobs.c.id == bad.id).values(spec={"family": "gone"}))
    assert [job.id for job in dispatch_store.waiting(10)] == [good.id]


# -- several at once -------------------------------------------------------------------------------------------


def statements_of(database: Database, call) -> int:
    found = []
    listen = lambda *args: found.append(args[2])  # noqa: E731
    sa.event.listen(database.engine, "before_cursor_execute", listen)
    call()
    sa.event.remove(database.engine, "before_cursor_execute", listen)
    return len(found)


def test_a_batch_of_claims_renewals_and_endings_takes_as_many_statements_as_one(database, batch_store, dispatch_store):
    clip = spec("i2vgen-xl-tiny", steps=50)
    taken = []
    for size in (1, 200):
        hand_in(batch_store, *(draft(n, f"{size}-{n}", spec=clip) for n in range(1, size + 1)))
        offered = dispatch_store.waiting(1000)
        claims = []
        begun = statements_of(
            database, lambda o=offered, c=claims: c.extend(dispatch_store.start([(job, card(job.id)) for job in o], 10))
        )
        assert len(claims) == size
        steps = {claim.attempt_id: (3, 50) for claim in claims}
        kept = {c.attempt_id: StoredCheckpoint(f"checkpoints/{c.job.id}/{c.attempt_id}/3", 3) for c in claims}
        renewed = statements_of(database, lambda s=steps, k=kept: dispatch_store.renew(s, 10, k))
        endings = [ending(dispatch_store, claim, completed(claim)) for claim in claims]
        ended = statements_of(database, lambda e=endings: dispatch_store.finish_many(e))
        taken.append((begun, renewed, ended))
    assert taken[0] == taken[1]


def world(database: Database) -> dict:
    """All tables, with ids named by when they first appear, so that two runs can be compared."""
    truth, names, read = Truth(database), {}, {}
    for table, order in (
        (batches, lambda row: row.id),
        (jobs, lambda row: row.number),
        (attempts, lambda row: (names[row.job_id], row.fence)),
        (clips, lambda row: row.content_key),
    ):
        read[table.name] = sorted(truth.rows(sa.select(table)), key=order)
        names.update({row.id: f"{table.name}{n:03}" for n, row in enumerate(read[table.name])})

    def plain(value):
        return re.sub(r"[a-z]+_[0-9a-f]{32}", lambda found: names[found[0]], repr(value))

    told = {name: [tuple(map(plain, row)) for row in rows] for name, rows in read.items()}
    told["counters"] = {k: v for k, v in truth.everything().items() if k in {"tallies", "peaks"}}
    return told


SPECS = (spec("camera"), spec("i2vgen-xl-tiny", steps=50), spec("i2vgen-xl-tiny", steps=30))


def play(database: Database, seed: int, *, together: bool) -> dict:
    """A run of claims and endings, in batches or each in a transaction of its own."""
    rng, clock = random.Random(seed), Clock().set_on(database)
    batch_store, dispatch_store = BatchStore(database), DispatchStore(database)
    dispatch_store.take_office("first")
    rows = [
        draft(n, f"key{rng.randrange(14)}", spec=rng.choice(SPECS), priority=rng.randrange(2)) for n in range(1, 31)
    ]
    hand_in(batch_store, *rows)
    used = 0
    for _ in range(6):
        clock.now += 1
        offered = dispatch_store.waiting(1000)
        # A job that waits no more, and equal ones beside each other.
        chosen = rng.sample(offered, min(8, len(offered)))
        starts = []
        for job in chosen + chosen[:1]:
            used += 1
            starts.append((job, card(f"gpu{used}")))
        if together:
            claims = dispatch_store.start(starts, 10)
        else:
            claims = [claim for start in starts for claim in dispatch_store.start([start], 10)]
        kept = {
            c.attempt_id: StoredCheckpoint(f"checkpoints/{c.job.id}/{c.attempt_id}/7", 7)
            for c in claims
            if rng.random() < 0.5
        }
        dispatch_store.renew({claim.attempt_id: (5, 50) for claim in claims}, 10, kept)
        clock.now += rng.choice([1, 30])
        endings = []
        for claim in claims:
            ended = rng.choice(
                [
                    completed(claim),
                    Lost(resumed_step=claim.resumed_step),
                    Errored(checkpoint=kept.get(claim.attempt_id)),
                    OutOfMemory(stage="decode", usable_bytes=GIB),
                    Stopped(cause="preempt", resumed_step=claim.resumed_step),
                ]
            )
            if claim.job.spec.family != "camera":
                layout, predicted = plan(claim.job.spec, 100 * GIB)
                took = int(predicted.peak_bytes * rng.uniform(0.8, 1.3))
                peak = Peak(layout=layout, predicted_bytes=predicted.peak_bytes, measured_bytes=took)
                ended = replace(ended, peaks=(peak,))
            endings.append(ending(dispatch_store, claim, ended))
        endings += endings[:2]
        if together:
            written = dispatch_store.finish_many(endings)
        else:
            written = [dispatch_store.finish(e.claim, e.ended, e.transition) for e in endings]
        assert written == [n < len(claims) for n in range(len(endings))]
    return world(database)


@pytest.mark.parametrize("seed", range(4))
def test_a_batch_does_what_one_by_one_does(store_url, tmp_path, seed):
    together = Database(store_url)
    together.migrate()
    alone = Database.in_folder(tmp_path / "alone")
    # Cards of SQLite and PostgreSQL, in batches and alone: four runs, one outcome.
    assert play(together, seed, together=True) == play(alone, seed, together=False)
    together.close()
    alone.close()


def test_an_ending_that_cannot_be_written_stops_no_other(database, batch_store, dispatch_store, truth):
    hand_in(batch_store, *(draft(n) for n in range(1, 8)))
    claims = dispatch_store.start([(job, card(job.id)) for job in dispatch_store.waiting(10)], 10)
    endings = [ending(dispatch_store, claim, completed(claim)) for claim in claims]
    with database.write() as c:
        c.execute(sa.update(jobs).where(jobs.c.id == claims[3].job.id).values(fence=7))
    before = truth.everything()
    with pytest.raises(RuntimeError, match=claims[3].job.id):
        dispatch_store.finish_many(endings)
    assert truth.everything() == before, "all or nothing"
    written = dispatch_store.finish_each(endings)
    assert [one for n, one in enumerate(written) if n != 3] == [True] * 6
    assert isinstance(written[3], RuntimeError)
    assert {a.job_id for a in truth.attempts() if a.outcome is None} == {claims[3].job.id}
    DispatchStore(database).take_office("next")
    with pytest.raises(StaleEpochError):
        dispatch_store.finish_each(endings)


def test_a_clip_that_is_there_already_is_not_published_twice(batch_store, dispatch_store, truth, database):
    """As when its row was completed by hand or by a repair while an attempt ran."""
    hand_in(batch_store, draft(1, "same"))
    (claim,) = dispatch_store.start([(dispatch_store.waiting(1)[0], card())], 10)
    with database.write() as c:
        values = {"id": "clip_x", "owner": ME, "content_key": "same", "attempt_id": "a", "created_at": 1}
        c.execute(sa.insert(clips).values(objects={**vars(objects())}, **values))
    assert dispatch_store.finish(claim, completed(claim), Transition(state=JobState.COMPLETED))
    assert [clip.id for clip in truth.clips()] == ["clip_x"]
    assert truth.job(claim.job.id).clip_id == "clip_x"


# -- rescue ----------------------------------------------------------------------------------------------------


def test_leases_that_ran_out_come_in_pages_and_none_hides_another(batch_store, dispatch_store, clock):
    hand_in(batch_store, *(draft(n) for n in range(1, 26)))
    for job in dispatch_store.waiting(100):
        dispatch_store.start([(job, card(job.id))], 10)
        clock.now += job.number % 2
    clock.now += 60
    pages = [dispatch_store.expired(limit=10) for _ in range(3)]
    assert [len(page) for page in pages] == [10, 10, 5]
    assert len({claim.attempt_id for page in pages for claim in page}) == 25
    again = dispatch_store.expired(limit=10)
    assert [c.attempt_id for c in again] == [c.attempt_id for c in pages[0]], "after the last page it begins anew"


def test_attempts_that_cannot_be_ended_do_not_keep_others_from_being_rescued(
    database, batch_store, dispatch_store, clock, truth
):
    """A full page of the oldest ones is broken: no ending of them can be written."""
    hand_in(batch_store, *(draft(n) for n in range(1, 9)))
    claims = []
    for job in dispatch_store.waiting(100):
        claims += dispatch_store.start([(job, card(job.id))], 10)
        clock.now += 1
    poisoned = {claim.job.id for claim in claims[:3]}
    with database.write() as c:
        c.execute(sa.update(jobs).where(jobs.c.id.in_(poisoned)).values(fence=99))
        # And one whose job cannot even be read.
        c.execute(sa.update(jobs).where(jobs.c.id == claims[3].job.id).values(spec={"family": 3}))
    poisoned.add(claims[3].job.id)
    clock.now += 60
    for _ in range(5):
        page = dispatch_store.expired(limit=3)
        for written in dispatch_store.finish_each([ending(dispatch_store, claim, Lost()) for claim in page]):
            assert written is True or isinstance(written, RuntimeError)
    assert {a.job_id for a in truth.attempts() if a.outcome is None} == poisoned


# -- two dispatchers at once ------------------------------------------------------------------------------------


def _dispatch(url: str, name: str, barrier, results) -> None:
    """A dispatcher that takes office again and again, and starts and ends all that it can."""
    database = Database(url)
    batch_store, dispatch_store = BatchStore(database), DispatchStore(database)
    started = []
    barrier.wait()
    for turn in range(12):
        try:
            for claim in dispatch_store.take_office(name):
                lost = Stopped()
                dispatch_store.finish(claim, lost, after_attempt(dispatch_store.current_job(claim), lost, FLEET))
            claims = dispatch_store.start([(job, card(f"{name}-{job.id}")) for job in dispatch_store.waiting(20)], 10)
            started += [claim.attempt_id for claim in claims]
            ends = [completed(claim) if turn % 2 else Stopped() for claim in claims]
            dispatch_store.finish_many([ending(dispatch_store, c, e) for c, e in zip(claims, ends, strict=True)])
        except StaleEpochError:
            continue
    assert batch_store is not None
    results.put(started)
    database.close()


def test_two_dispatchers_at_once_start_and_publish_nothing_twice(store_url):
    database = Database(store_url)
    database.migrate()
    batch_store, truth = BatchStore(database), Truth(database)
    batch_id = hand_in(batch_store, *(draft(n, f"key{n % 40}") for n in range(1, 61)))
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(3), context.Queue()
    others = [context.Process(target=_dispatch, args=(store_url, f"d{n}", barrier, results)) for n in range(3)]
    for process in others:
        process.start()
    started = [results.get(timeout=120) for _ in others]
    for process in others:
        process.join(30)
        assert process.exitcode == 0
    made = truth.attempts()
    everything = [attempt for found in started for attempt in found]
    assert len(set(everything)) == len(everything)
    assert set(everything) <= {a.id for a in made}
    # One after the other: the next attempt of a job begins under the next fence, once the one before has ended.
    by_job: dict[str, list] = {}
    for attempt in made:
        by_job.setdefault(attempt.job_id, []).append(attempt)
    for own in by_job.values():
        assert [a.fence for a in own] == list(range(1, len(own) + 1))
        assert all(a.outcome is not None for a in own[:-1])
    published = Counter(a.job_id for a in made if a.outcome == "completed")
    assert set(published.values()) <= {1}
    assert len({(c.owner, c.content_key) for c in truth.clips()}) == len(truth.clips())
    # Whoever comes next finds the rest and finishes it.
    dispatch_store = DispatchStore(database)
    for claim in dispatch_store.take_office("last"):
        stopped = Stopped()
        dispatch_store.finish(claim, stopped, after_attempt(dispatch_store.current_job(claim), stopped, FLEET))
    while offered := dispatch_store.waiting(100):
        claims = dispatch_store.start([(job, card(job.id)) for job in offered], 10)
        dispatch_store.finish_many([ending(dispatch_store, claim, completed(claim)) for claim in claims])
    assert {job.state.value for job in batch_store.jobs(ME, batch_id)} == {"completed"}
    assert len(truth.clips()) == 40
    database.close()


@pytest.mark.parametrize("broken", [1, 4, 7])
def test_rows_that_cannot_be_read_hide_none_behind_them(batch_store, dispatch_store, database, broken):
    """Four at the head of a queue would be all that is ever seen of it."""
    hand_in(batch_store, *(draft(n, f"urgent{n}", priority=5) for n in range(1, 31)))
    hand_in(batch_store, *(draft(n, f"other{n}") for n in range(1, 31)))
    with database.write() as c:
        first = sa.and_(jobs.c.priority == 5, jobs.c.number <= broken)
        c.execute(sa.update(jobs).where(first).values(spec={"family": "gone"}))
    for _ in range(2):
        seen = dispatch_store.waiting(4)
        assert [(job.priority, job.number) for job in seen] == [
            *((5, broken + n) for n in range(1, 5)), *((0, n) for n in range(1, 5)),
        ]  # fmt: skip


def test_the_columns_of_a_queue_are_what_a_job_calls_its_queue(batch_store, dispatch_store, truth):
    small = spec("i2vgen-xl-tiny")
    hand_in(batch_store, draft(1, spec=small, priority=3, needs_bytes=7), draft(2))
    offered = dispatch_store.waiting(10)
    assert len({job.queue for job in offered}) == 2
    for job in offered:
        row = truth.job(job.id)._mapping
        assert job.queue == tuple(row[column] for column in QUEUE_BY)
    counted = {(q.owner, q.model, q.resolution_class, q.needs_bytes, q.priority) for q in dispatch_store.counts()}
    assert counted == {job.queue for job in offered}


def test_an_interactive_job_is_a_queue_of_its_own_however_many_are_before_it(batch_store, dispatch_store, truth):
    """Found by the index, be it row 1 of its own batch or the last of a long one of the same kind."""
    rows = [draft(n, f"key{n}") for n in range(1, 3 * COMMON_ROWS)]
    waits = {"priority": stored_priority(2, interactive=True)}
    hand_in(batch_store, *rows, draft(3 * COMMON_ROWS, "key", **waits))
    hand_in(batch_store, draft(1, "other", **waits))
    found = dispatch_store.waiting(2)
    assert [(job.content_key, job.interactive, job.own_priority) for job in found] == [
        ("key", True, 2),
        ("other", True, 2),
        ("key1", False, 0),
        ("key2", False, 0),
    ]
    assert {job.id for job in found} == offered_by_plain_query(truth, batch_store.now(), 2)
