"""Submitting, claiming, losing, finishing, pausing and cancelling in any order, against a model of what must hold."""

from __future__ import annotations

import contextlib
import tempfile
from collections import Counter
from pathlib import Path

import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from cluster.dispatch.retry import after_attempt
from cluster.jobs.model import FINAL_STATES, MAX_ATTEMPTS, MAX_RELEASES, Outcome
from cluster.jobs.outcomes import Ended, Lost
from cluster.jobs.transitions import RefusedError, Verb
from cluster.maintenance.audit import check
from cluster.store import BatchStore, Claim, Database, DispatchStore, StaleEpochError
from cluster.store.commands import CommandStore
from cluster.store.schema import jobs, metadata
from tests.building import FLEET, Clock, Truth, card, completed, draft, ended_with
from tests.conftest import postgres_url

OWNERS = st.sampled_from(["ann", "bob"])
KEYS = st.sampled_from(["k1", "k2", "k3"])
FAULTS = st.sampled_from([outcome for outcome in Outcome if outcome is not Outcome.COMPLETED])
LEASE_S = 10


class StoreMachine(RuleBasedStateMachine):
    batches = Bundle("batches")
    claims = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self.database = self.empty_store()
        self.clock = Clock().set_on(self.database)
        self.batch_store, self.truth = BatchStore(self.database), Truth(self.database)
        self.verbs = CommandStore(self.database)
        self.cards = 0
        self.order: dict[str, int] = {}
        #: The model: what runs (attempt -> lease's end), what was published, how jobs ended, what was counted.
        self.live: dict[str, tuple[Claim, float]] = {}
        self.published: dict[tuple[str, str], str] = {}
        self.final: dict[str, tuple[str, str | None]] = {}
        self.tallied: Counter[str] = Counter()
        #: Batches that somebody paused.
        self.paused: set[str] = set()

    def empty_store(self) -> Database:
        self.folder = tempfile.TemporaryDirectory()
        database = Database(f"sqlite:///{Path(self.folder.name) / 'store.db'}")
        # Power cuts are not played here, and a flush a commit is most of the time.
        sa.event.listen(database.engine, "connect", lambda c, _: c.execute("PRAGMA synchronous=OFF"))
        database.migrate()
        return database

    def teardown(self) -> None:
        self.database.close()
        self.folder.cleanup()

    @initialize()
    def open(self) -> None:
        self.dispatch_store = DispatchStore(self.database)
        self.dispatch_store.take_office("first")

    # -- what people do -----------------------------------------------------------------------------------------

    @rule(target=batches, owner=OWNERS, keys=st.lists(KEYS, min_size=1, max_size=4))
    def submit(self, owner: str, keys: list[str]) -> tuple[str, str]:
        batch_id, _ = self.batch_store.open_batch(owner, name="catalog")
        self.batch_store.add(owner, batch_id, [draft(n, key) for n, key in enumerate(keys, start=1)])
        self.batch_store.seal(owner, batch_id)
        self.order[batch_id] = len(self.order)
        for job, key in zip(self.batch_store.jobs(owner, batch_id), keys, strict=True):
            known = (owner, key) in self.published
            assert job.state == ("completed" if known else "queued")
            assert job.clip_id == self.published.get((owner, key))
        return owner, batch_id

    @rule(batch=batches)
    def cancel(self, batch: tuple[str, str]) -> None:
        before = {j.id: j for j in self.batch_store.jobs(*batch)}
        self.batch_store.cancel(*batch)
        for job in self.batch_store.jobs(*batch):
            was = before[job.id].state
            assert job.state == ("cancelled" if was in ("queued", "held") else was)
            assert job.cancel_requested == (was == "running" or before[job.id].cancel_requested)

    @rule(batch=batches)
    def pause(self, batch: tuple[str, str]) -> None:
        before = {j.id: j.state for j in self.batch_store.jobs(*batch)}
        try:
            self.verbs.batch(*batch, Verb.PAUSE)
        except RefusedError:
            assert all(state in FINAL_STATES for state in before.values()), "what can start can be paused"
        else:
            if not all(state in FINAL_STATES for state in before.values()):
                self.paused.add(batch[1])

    @rule(batch=batches)
    def resume(self, batch: tuple[str, str]) -> None:
        with contextlib.suppress(RefusedError):
            self.verbs.batch(*batch, Verb.RESUME)
        self.paused.discard(batch[1])

    @rule(batch=batches, priority=st.integers(-2, 2))
    def prioritize(self, batch: tuple[str, str], priority: int) -> None:
        with contextlib.suppress(RefusedError):
            self.verbs.batch(*batch, Verb.PRIORITIZE, priority=priority)

    # -- what the dispatcher does -------------------------------------------------------------------------------

    @rule(target=claims, pick=st.randoms(use_true_random=False), most=st.integers(1, 3))
    def claim(self, pick, most: int):
        # In an order of the test's own, so that a failure can be replayed: ids are random.
        offered = sorted(self.dispatch_store.waiting(1000), key=lambda j: (self.order[j.batch_id], j.number))
        running = {(c.job.owner, c.job.content_key) for c, _ in self.live.values()}
        queued = self.truth.rows(sa.select(jobs).where(jobs.c.state == "queued", jobs.c.batch_id.not_in(self.paused)))
        assert {(j.owner, j.content_key) for j in offered} == {(j.owner, j.content_key) for j in queued} - running
        chosen = pick.sample(offered, min(most, len(offered)))
        starts = []
        for job in chosen:
            self.cards += 1
            starts.append((job, card(f"gpu{self.cards}")))
        claims = self.dispatch_store.start(starts, LEASE_S)
        assert all(c.job.batch_id not in self.paused for c in claims)
        assert len(claims) == len({(j.owner, j.content_key) for j in chosen}), (
            "one of each equal clip, no more, no less"
        )
        for claim in claims:
            assert claim.job.id not in self.final, "a job that ended must never run again"
            self.live[claim.attempt_id] = (claim, self.clock.now + LEASE_S)
        return multiple(*claims)

    @rule(seconds=st.integers(1, 8), deaf=st.randoms(use_true_random=False))
    def renew(self, seconds: int, deaf) -> None:
        self.clock.now += seconds
        heard = [a for a in self.live if deaf.random() < 0.7]
        renewal = self.dispatch_store.renew(dict.fromkeys(heard, (1, 8)), LEASE_S)
        assert renewal.live == set(heard)
        for attempt_id in heard:
            self.live[attempt_id] = (self.live[attempt_id][0], self.clock.now + LEASE_S)

    @rule()
    def expire(self) -> None:
        expired = self.dispatch_store.expired()
        assert {c.attempt_id for c in expired} == {a for a, (_, until) in self.live.items() if until < self.clock.now}
        for claim in expired:
            self.end(self.dispatch_store, claim, Lost())

    @rule(claim=claims)
    def complete(self, claim: Claim) -> None:
        self.end(self.dispatch_store, claim, completed(claim))

    @rule(claim=claims, outcome=FAULTS, usable=st.integers(0, FLEET.largest_bytes))
    def fail(self, claim: Claim, outcome: Outcome, usable: int) -> None:
        self.end(self.dispatch_store, claim, ended_with(outcome, usable_bytes=usable))

    @rule()
    def change_dispatcher(self) -> None:
        old, self.dispatch_store = self.dispatch_store, DispatchStore(self.database)
        inherited = self.dispatch_store.take_office("next")
        assert {c.attempt_id for c in inherited} == set(self.live)
        for claim in inherited:
            try:
                old.finish(claim, completed(claim), after_attempt(claim.job, completed(claim), FLEET))
            except StaleEpochError:
                pass
            else:
                raise AssertionError("a dispatcher out of office wrote")
            self.end(self.dispatch_store, claim, Lost())

    def end(self, dispatch_store: DispatchStore, claim: Claim, ended: Ended) -> None:
        was_live = self.live.pop(claim.attempt_id, None) is not None
        transition = after_attempt(dispatch_store.current_job(claim), ended, FLEET)
        assert dispatch_store.finish(claim, ended, transition) == was_live, "an attempt ends once"
        if was_live and ended.outcome is Outcome.COMPLETED:
            key = (claim.job.owner, str(claim.job.content_key))
            assert key not in self.published, "a clip is published once"
            self.published[key] = next(
                c.id for c in self.truth.clips() if c.attempt_id == claim.attempt_id and (c.owner, c.content_key) == key
            )

    # -- what must hold at all times ----------------------------------------------------------------------------

    @invariant()
    def what_runs_runs_once(self) -> None:
        running = self.truth.rows(sa.select(jobs).where(jobs.c.state == "running"))
        assert sorted(j.id for j in running) == sorted(c.job.id for c, _ in self.live.values())
        assert len({(j.owner, j.content_key) for j in running}) == len(running)
        open_attempts = [a.id for a in self.truth.attempts() if a.outcome is None]
        assert sorted(open_attempts) == sorted(self.live)

    @invariant()
    def what_ended_stays_ended(self) -> None:
        for job in self.truth.rows(sa.select(jobs)):
            ended = (job.state, job.clip_id)
            if job.id in self.final:
                assert self.final[job.id] == ended
            elif job.state in ("completed", "failed", "cancelled"):
                self.final[job.id] = ended
            assert (job.clip_id is not None) == (job.state == "completed")
            if job.clip_id:
                assert job.clip_id == self.published[job.owner, job.content_key]
            if job.state == "queued":
                assert (job.owner, job.content_key) not in self.published, "it waits for a clip that is there"

    @invariant()
    def every_publication_is_there_once(self) -> None:
        found = {(c.owner, c.content_key): c.id for c in self.truth.clips()}
        assert found == self.published
        assert len(self.truth.clips()) == len(found)

    @invariant()
    def the_audit_finds_nothing(self) -> None:
        assert check(self.database) == []

    @invariant()
    def no_job_goes_on_for_ever(self) -> None:
        made = Counter(a.job_id for a in self.truth.attempts())
        assert all(count <= MAX_ATTEMPTS + MAX_RELEASES for count in made.values())

    @invariant()
    def tallies_tell_the_truth_and_never_fall(self) -> None:
        ended = Counter(a.outcome for a in self.truth.attempts() if a.outcome)
        for outcome, number in ended.items():
            assert self.truth.tally("attempts", outcome=outcome) == number
        states = Counter(j.state for j in self.truth.rows(sa.select(jobs.c.state)))
        counted = Counter(
            {o: self.truth.tally("clips", outcome=o) for o in ("completed", "shared", "failed", "cancelled")}
        )
        assert counted["completed"] == len(self.published)
        assert counted["completed"] + counted["shared"] == states["completed"]
        assert (counted["failed"], counted["cancelled"]) == (states["failed"], states["cancelled"])
        assert all(counted[o] >= self.tallied[o] for o in self.tallied)
        self.tallied = counted


class PostgresMachine(StoreMachine):
    """The same on PostgreSQL, in one schema that is emptied before each run."""

    url = ""

    def empty_store(self) -> Database:
        url = sa.make_url(self.url)
        options = f"{url.query['options']} -csynchronous_commit=off"
        database = Database(url.update_query_dict({"options": options}).render_as_string(hide_password=False))
        database.migrate()
        with database.write() as c:
            names = ", ".join(table.name for table in metadata.sorted_tables)
            c.execute(sa.text(f"TRUNCATE {names}"))
        return database

    def teardown(self) -> None:
        self.database.close()


class TestStoreMachine(StoreMachine.TestCase):
    settings = settings(
        max_examples=20, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )


class TestStoreMachineOnPostgres(PostgresMachine.TestCase):
    settings = settings(
        max_examples=12, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )

    @classmethod
    def setUpClass(cls) -> None:
        cls.schema = contextlib.ExitStack()
        PostgresMachine.url = cls.schema.enter_context(postgres_url())

    @classmethod
    def tearDownClass(cls) -> None:
        cls.schema.close()
