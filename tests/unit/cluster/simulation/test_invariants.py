"""The checker finds faults: each is put into the record of a good run, and its invariant must be named.

And it finds them where they are made: a dispatcher or a store with one guard switched off breaks a promise in some run.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from cluster.dispatch.deaths import Deaths
from cluster.dispatch.dispatcher import Dispatcher
from cluster.dispatch.protocol import Verdict
from cluster.dispatch.roster import Roster
from cluster.jobs.commands import CardVerb
from cluster.jobs.outcomes import Lost
from cluster.jobs.transitions import Verb
from cluster.simulation.invariants import INVARIANTS, check
from cluster.simulation.journal import JobTruth, JournalEntry, RunRecord, StoreChange, What
from cluster.simulation.play import play
from cluster.simulation.scenario import Fault, PlannedCommand, Scenario, Trouble, draw
from cluster.store import DispatchStore
from cluster.store.commands import Enforced


@pytest.fixture(scope="module")
def good() -> RunRecord:
    """A run in which a node is lost in the middle of clips, and nothing else goes wrong."""
    scenario = draw(6, cards=3, jobs=6, troubles=0, plans=False, people=False)
    node = scenario.cards[0].node
    record = play(replace(scenario, faults=(Fault(at=25.0, what=Trouble.NODE_LOST, target=node, seconds=20.0),)))
    assert check(record) == []
    outcomes = [row["outcome"] for row in record.tables["attempts"]]
    assert "lost" in outcomes
    assert outcomes.count("completed") == len(record.tables["clips"]) > 3
    return record


@pytest.fixture
def record(good: RunRecord) -> RunRecord:
    return copy.deepcopy(good)


def first(found: Any) -> Any:
    return next(iter(found))


def entries(record: RunRecord, what: What) -> list[JournalEntry]:
    return [entry for entry in record.entries if entry.what is what]


def changes(record: RunRecord, what: str) -> list[StoreChange]:
    return [change for change in record.changes if change.what == what]


def put(record: RunRecord, **values: Any) -> None:
    """Another entry, in its place."""
    record.entries.append(JournalEntry(**values))
    record.entries.sort(key=lambda entry: entry.at)


def put_change(record: RunRecord, **values: Any) -> None:
    record.changes.append(StoreChange(**values))
    record.changes.sort(key=lambda change: change.at)


def row(record: RunRecord, table: str, **values: Any) -> dict[str, object]:
    return first(r for r in record.tables[table] if all(r[k] == v for k, v in values.items()))


def completed(record: RunRecord) -> StoreChange:
    """The first attempt that completed, as it ended."""
    return first(c for c in changes(record, "end") if c.after == "completed" and steps_of(record, c.id) > 4)


def steps_of(record: RunRecord, attempt: str) -> int:
    return sum(e.attempt == attempt for e in entries(record, What.STEP))


MUTATIONS: list[tuple[str, Callable[[RunRecord], None]]] = []


def breaks(invariant: str) -> Callable[[Callable[[RunRecord], None]], Callable[[RunRecord], None]]:
    def listed(mutate: Callable[[RunRecord], None]) -> Callable[[RunRecord], None]:
        MUTATIONS.append((invariant, mutate))
        return mutate

    return listed


@breaks("I1")
def a_step_is_left_out(record: RunRecord) -> None:
    attempt = completed(record).id
    record.entries.remove(first(e for e in entries(record, What.STEP) if e.attempt == attempt and e.step == 3))


@breaks("I1")
def a_clip_completes_before_its_last_step(record: RunRecord) -> None:
    attempt = completed(record).id
    record.entries.remove([e for e in entries(record, What.STEP) if e.attempt == attempt][-1])


@breaks("I1")
def a_checkpoint_appears_from_nowhere(record: RunRecord) -> None:
    resumed = first(e for e in entries(record, What.RESUMED) if e.step)
    record.entries = [e for e in record.entries if not (e.what is What.SAVED and e.detail == resumed.detail)]


@breaks("I2")
def a_clip_is_rendered_on_two_cards(record: RunRecord) -> None:
    ended = completed(record)
    steps = [e for e in entries(record, What.STEP) if e.attempt == ended.id]
    claim = first(c for c in changes(record, "attempt") if c.id == ended.id)
    put_change(record, **(vars(claim) | {"id": "attempt_twin", "at": claim.at + 0.1}))
    for step in steps:
        put(record, **(vars(step) | {"attempt": "attempt_twin", "at": step.at + 0.1}))


@breaks("I3")
def two_clips_are_on_one_card(record: RunRecord) -> None:
    on = entries(record, What.ON_CARD)[0]
    put(record, **(vars(on) | {"attempt": "attempt_other", "at": on.at + 0.05}))
    put(record, **(vars(on) | {"what": What.CALLED, "attempt": "attempt_other", "at": on.at + 0.01}))


@breaks("I3")
def a_clip_takes_more_than_its_card_has(record: RunRecord) -> None:
    on = entries(record, What.ON_CARD)[0]
    record.entries[record.entries.index(on)] = replace(on, size=2**50)


@breaks("I3")
def a_clip_waits_behind_another(record: RunRecord) -> None:
    ended = completed(record)
    call = first(e for e in entries(record, What.CALLED) if e.attempt != ended.id and e.at < ended.at)
    claim = first(c for c in changes(record, "attempt") if c.id == ended.id)
    late = max(call.at, claim.at) + 0.01
    record.entries.remove(call)
    put(record, **(vars(call) | {"at": late, "detail": ended.id}))


@breaks("I4")
def a_job_has_two_leases(record: RunRecord) -> None:
    claim = changes(record, "attempt")[0]
    put_change(record, **(vars(claim) | {"id": "attempt_second", "at": claim.at + 0.01}))


@breaks("I4")
def an_attempt_ends_twice(record: RunRecord) -> None:
    ended = completed(record)
    put_change(record, **(vars(ended) | {"before": "completed", "after": "lost", "at": ended.at + 1}))


@breaks("I4")
def a_job_runs_without_a_lease(record: RunRecord) -> None:
    record.changes = [c for c in record.changes if c.what != "attempt"]


@breaks("I5")
def a_job_is_gone(record: RunRecord) -> None:
    record.tables["jobs"].pop()


@breaks("I5")
def a_job_runs_for_ever(record: RunRecord) -> None:
    record.tables["jobs"][0]["state"] = "running"


@breaks("I6")
def a_clip_is_published_twice(record: RunRecord) -> None:
    clip = changes(record, "clip")[0]
    put_change(record, **(vars(clip) | {"id": "clip_again", "at": clip.at + 1}))


@breaks("I6")
def a_clip_names_what_was_never_stored(record: RunRecord) -> None:
    clip = changes(record, "clip")[0]
    record.entries = [e for e in record.entries if not (e.what is What.STORED and e.attempt == clip.job)]


@breaks("I6")
def a_zombie_is_published(record: RunRecord) -> None:
    lost = first(c for c in changes(record, "end") if c.after == "lost")
    clip = changes(record, "clip")[-1]
    put(record, at=clip.at - 0.1, what=What.STORED, attempt=lost.id, job=lost.job)
    record.changes[record.changes.index(clip)] = replace(clip, job=lost.id)


@breaks("I6")
def a_row_is_completed_by_another_ones_clip(record: RunRecord) -> None:
    one, other = itertools.islice(record.tables["jobs"], 2)
    one["clip_id"] = other["clip_id"]


@breaks("I7")
def a_job_never_ends(record: RunRecord) -> None:
    job = completed(record).job
    record.changes = [c for c in record.changes if not (c.id == job and c.after == "completed")]


@breaks("I8")
def a_checkpoint_is_not_gone_on_from(record: RunRecord) -> None:
    resumed = first(c for c in changes(record, "attempt") if c.step)
    record.changes[record.changes.index(resumed)] = replace(resumed, step=0)
    gone = (What.RESUMED, What.STEP)
    record.entries = [e for e in record.entries if e.attempt != resumed.id or e.what not in gone]


@breaks("I9")
def a_clip_is_sent_to_a_card_that_is_too_small(record: RunRecord) -> None:
    claim = changes(record, "attempt")[0]
    record.changes[record.changes.index(claim)] = replace(claim, size=2**50)


@breaks("I10")
def a_cancelled_job_is_started_again(record: RunRecord) -> None:
    claim = changes(record, "attempt")[-1]
    put_change(record, at=claim.at - 1, what="cancel", id=claim.job)


@breaks("I10")
def a_cancelled_job_renders_on(record: RunRecord) -> None:
    ended = max((c for c in changes(record, "end") if c.after == "completed"), key=lambda c: length(record, c))
    put_change(record, at=ended.at - length(record, ended) + 0.5, what="cancel", id=ended.job)


def length(record: RunRecord, ended: StoreChange) -> float:
    return ended.at - first(c.at for c in changes(record, "attempt") if c.id == ended.id)


@breaks("I11")
def a_final_state_changes(record: RunRecord) -> None:
    ended = first(c for c in changes(record, "job") if c.after == "completed")
    put_change(record, at=ended.at + 1, what="job", id=ended.id, before="completed", after="queued")


@breaks("I12")
def a_counter_is_wrong(record: RunRecord) -> None:
    row(record, "tallies", name="clips", outcome="completed")["value"] = 99.0


@breaks("I12")
def a_job_counts_fewer_attempts_than_it_had(record: RunRecord) -> None:
    row(record, "jobs", attempts=1)["attempts"] = 0


@breaks("I13")
def a_lost_attempt_renders_on(record: RunRecord) -> None:
    ended = completed(record)
    last = [e for e in entries(record, What.STEP) if e.attempt == ended.id][-1]
    put(record, **(vars(last) | {"at": ended.at + 100, "step": last.step + 1}))


@breaks("I14")
def a_card_is_idle_beside_a_waiting_job(record: RunRecord) -> None:
    truth = first(record.jobs.values())
    waiting = JobTruth(**(vars(truth) | {"id": "video_x", "content_key": "key_x", "name": "x"}))
    record.jobs["video_x"] = waiting
    put_change(record, at=1.0, what="job", id="video_x", after="queued", size=1)


@breaks("I15")
def a_poisoned_row_completes(record: RunRecord) -> None:
    job = completed(record).job
    record.jobs[job] = replace(record.jobs[job], poison="crash")


@breaks("I15")
def a_job_is_tried_too_often(record: RunRecord) -> None:
    record.tables["jobs"][0]["releases"] = 1000


@breaks("I16")
def a_checkpoint_stays_behind(record: RunRecord) -> None:
    record.objects.append(first(c.after for c in changes(record, "checkpoint") if c.after))


@breaks("I16")
def a_needed_checkpoint_is_deleted(record: RunRecord) -> None:
    claim = changes(record, "attempt")[-1]
    put(record, at=claim.at + 1, what=What.RESUMED, attempt=claim.id, job=claim.job, detail="missing checkpoints/x/y/5")


@breaks("I17")
def an_attempt_runs_on_another_card(record: RunRecord) -> None:
    call = entries(record, What.CALLED)[0]
    record.entries[record.entries.index(call)] = replace(call, card="gpu99")


@breaks("I17")
def an_attempt_runs_that_nobody_claimed(record: RunRecord) -> None:
    call = entries(record, What.CALLED)[0]
    put(record, **(vars(call) | {"attempt": "attempt_wild"}))


@breaks("I18")
def a_dead_renderer_keeps_its_lease(record: RunRecord) -> None:
    lost = first(c for c in changes(record, "end") if c.after == "lost")
    record.changes[record.changes.index(lost)] = replace(lost, at=lost.at + 200)
    record.changes.sort(key=lambda change: change.at)
    record.entries[-1] = replace(record.entries[-1], at=record.entries[-1].at + 300)


@breaks("I19")
def a_job_starts_while_its_batch_is_held(record: RunRecord) -> None:
    claim = changes(record, "attempt")[-1]
    put(record, at=claim.at - 1, what=What.HELD, job=claim.job, detail="batch")
    put(record, at=claim.at + 1, what=What.FREED, job=claim.job, detail="batch")


@breaks("I19")
def a_job_starts_on_a_card_that_is_closed(record: RunRecord) -> None:
    claim = changes(record, "attempt")[-1]
    put(record, at=claim.at - 12, what=What.CLOSED, card=claim.card, detail="lock")


def told_long_before_its_end(record: RunRecord, **values: Any) -> None:
    end = completed(record)
    record.changes[record.changes.index(end)] = replace(end, at=end.at + 300)
    record.changes.sort(key=lambda change: change.at)
    record.entries[-1] = replace(record.entries[-1], at=record.entries[-1].at + 400)
    claim = first(c for c in changes(record, "attempt") if c.id == end.id)
    named = {name: getattr(claim, name) for name in values.pop("of")}
    put(record, at=claim.at + 1, **named, **values)


@breaks("I20")
def a_clip_that_is_held_stays_on_its_card(record: RunRecord) -> None:
    told_long_before_its_end(record, what=What.HELD, of=["job"], detail="row")


@breaks("I20")
def a_clip_stays_on_a_card_that_is_drained(record: RunRecord) -> None:
    told_long_before_its_end(record, what=What.CLOSED, of=["card"], detail="drain")


@breaks("I21")
def a_death_counts_as_a_loss(record: RunRecord) -> None:
    down = first(e for e in entries(record, What.CARD_DOWN) if e.detail == "lost")
    record.entries[record.entries.index(down)] = replace(down, detail="died")
    # Its node lived on.
    for restarted in entries(record, What.NODE_RESTARTED):
        record.entries.remove(restarted)


@breaks("I22")
def a_clip_that_somebody_waits_for_makes_room(record: RunRecord) -> None:
    attempt = completed(record)
    record.jobs[attempt.job] = replace(record.jobs[attempt.job], interactive=True)
    row(record, "attempts", id=attempt.id)["detail"] = "made room for an interactive clip"


@breaks("I22")
def a_clip_makes_room_again_and_again(record: RunRecord) -> None:
    attempt = completed(record)
    record.bounds = replace(record.bounds, most_preemptions=0)
    row(record, "attempts", id=attempt.id)["detail"] = "made room for an interactive clip (told to stop)"


@pytest.mark.parametrize(("invariant", "mutate"), MUTATIONS, ids=[f"{i}-{m.__name__}" for i, m in MUTATIONS])
def test_a_fault_in_the_record_is_found(record, invariant, mutate):
    mutate(record)
    assert invariant in {violation.invariant for violation in check(record)}


def test_every_invariant_has_a_fault_that_it_finds():
    assert {invariant for invariant, _ in MUTATIONS} == set(INVARIANTS)


# -- guards switched off ---------------------------------------------------------------------------------------


class NoRescue(DispatchStore):
    """Leases run out and nobody looks."""

    def expired(self, *args: Any) -> list[Any]:
        return []


class HearsNothing(Dispatcher):
    """Renderers are never told to stop."""

    def beat(self, beat: Any) -> dict[str, Verdict]:
        return dict.fromkeys(super().beat(beat), Verdict.GO_ON)


class BlindRoster(Roster):
    """Every card counts as idle."""

    def _is_foreign(self, seen: Any, attempt_id: str) -> bool:
        return False


class TrustsEveryCard(Dispatcher):
    """It forgets what else its renderers are at."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._roster.__class__ = BlindRoster


class ForgetsCheckpoints(DispatchStore):
    """Checkpoints are told and never written down."""

    def start(self, *args: Any) -> list[Any]:
        return [replace(claim, resume=None, resumed_step=0) for claim in super().start(*args)]


class ForgetsOrders(DispatchStore):
    """What people say of cards is written down and never read."""

    def enforce(self, *args: Any) -> Enforced:
        return replace(super().enforce(*args), orders={})


class AsksNobody(DispatchStore):
    """Clips that people hold are asked nothing."""

    def renew(self, *args: Any) -> Any:
        return replace(super().renew(*args), preempted={})


class SeesNoDeath(Deaths):
    """Whatever cannot be reached is lost."""

    async def fate_of(self, attempt: Any, lost: Any) -> Lost:
        self._roster.drop(attempt.claim.renderer)
        return Lost(detail=str(lost))


class TakesEveryDeathForALoss(Dispatcher):
    """As before it asked anybody what became of a renderer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._attempts.deaths.__class__ = SeesNoDeath


class TrustsEveryRow(Deaths):
    """A row that was there when a renderer died is rendered beside others again."""

    def suspects(self, job: Any) -> bool:
        return False


class SuspectsNobody(Dispatcher):
    """As before rows under suspicion were rendered alone."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._attempts.deaths.__class__ = TrustsEveryRow


class Sleepy(Dispatcher):
    """It looks at the store only when it is time to renew leases, and that seldom."""

    def nudge(self) -> None:
        pass

    async def _round(self) -> None:
        if self._clock() % 200 < 100:
            await self._renew()
        else:
            await super()._round()


def scenario_with(*whats: Trouble, seed: int) -> Scenario:
    """Three cards, a dozen jobs and these troubles on the first card, from the time on when it is at work."""
    scenario = draw(seed, cards=3, jobs=12, troubles=0, plans=not whats, people=False)
    target = {what: scenario.cards[0].node if "node" in what else scenario.cards[0].name for what in Trouble}
    faults = tuple(Fault(at=8.0 + 15 * n, what=what, target=target[what], seconds=25.0) for n, what in enumerate(whats))
    # All there from the start, so that every card has something to do.
    batches = tuple(replace(batch, at=0.0) for batch in scenario.batches)
    timing = replace(scenario.timing, stall_s=30.0) if Trouble.HANG in whats else scenario.timing
    commands: tuple[PlannedCommand, ...] = ()
    if not whats:
        # From then on to the end of the second minute, with clips long enough for it.
        commands = (
            PlannedCommand(at=12.0, verb=CardVerb.LOCK, seconds=100.0, card=scenario.cards[0].name),
            PlannedCommand(at=20.0, verb=Verb.PAUSE, seconds=100.0, batch=0),
        )
    return replace(
        scenario, faults=faults, batches=batches, timing=timing, commands=commands, heal_at=scenario.heal_at + 61
    )


@pytest.mark.parametrize(
    ("broken", "troubles", "expected"),
    [
        ({"make_dispatch_store": NoRescue}, (Trouble.NODE_SILENT, Trouble.NODE_SILENT), "I18"),
        ({"make_dispatcher": HearsNothing}, (Trouble.DISPATCHER_KILLED, Trouble.DISPATCHER_KILLED), "I13"),
        ({"make_dispatcher": TrustsEveryCard}, (Trouble.HANG, Trouble.HANG), "I3"),
        ({"make_dispatch_store": ForgetsCheckpoints}, (Trouble.NODE_LOST, Trouble.NODE_LOST), "I8"),
        ({"make_dispatcher": Sleepy}, (), "I14"),
        ({"make_dispatcher": TakesEveryDeathForALoss}, (Trouble.CRASH, Trouble.CRASH), "I21"),
        ({"make_dispatch_store": ForgetsOrders}, (), "I19"),
        ({"make_dispatch_store": AsksNobody}, (), "I20"),
    ],
)
def test_a_guard_switched_off_breaks_a_promise(broken, troubles, expected):
    found: set[str] = set()
    for seed in (2, 0, 1, 3, 4, 5, 6, 7):
        scenario = scenario_with(*troubles, seed=seed)
        found |= {violation.invariant for violation in check(play(scenario, **broken))}
        if expected in found:
            assert check(play(scenario)) == [], "it is the guard that makes the difference"
            return
    pytest.fail(f"no {expected} in 8 runs, but {sorted(found)}")


class SpendsWithoutEnd(Dispatcher):
    """Counts nothing of what interactive clips have."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._interactive._budget.charge = lambda now, card_s: None


def with_a_stream_of_interactive_clips() -> Scenario:
    """Four cards full of a batch, and somebody who asks for a clip every eleven seconds."""
    scenario = draw(4, cards=4, jobs=6, troubles=0, plans=False, people=False, interactive=False)
    job = next(j for batch in scenario.batches for j in batch.jobs if j.spec.family != "camera")
    job = replace(job, needs_bytes=2**20, priority=0, spec=job.spec.model_copy(update={"steps": 12}))
    cards = tuple(replace(card, speed=1.0) for card in scenario.cards)
    rows = tuple(replace(job, key=f"b{n}", step_s=5.0) for n in range(20))
    first = replace(scenario.batches[0], jobs=rows, at=0.0, cancelled_at=None, nudges=True)
    waits = tuple(
        replace(first, at=20.0 + 11 * n, interactive=True, jobs=(replace(job, key=f"i{n}", step_s=1.2),))
        for n in range(20)
    )
    return replace(scenario, cards=cards, batches=(first, *waits))


def test_a_budget_that_counts_nothing_breaks_a_promise():
    scenario = with_a_stream_of_interactive_clips()
    good = play(scenario)
    assert check(good) == []
    assert any(row["outcome"] == "interactive" for row in good.tables["tallies"]), "the share is there to be used"
    assert {str(row["state"]) for row in good.tables["jobs"]} == {"completed"}
    assert "I22" in {violation.invariant for violation in check(play(scenario, make_dispatcher=SpendsWithoutEnd))}


def test_without_suspicion_a_row_pays_again_and_again_for_one_that_kills_while_it_is_encoded():
    scenario = draw(2, cards=1, jobs=8, troubles=0, plans=False, people=False)
    jobs = [job for batch in scenario.batches for job in batch.jobs]
    shortest = min(jobs, key=lambda job: job.step_s)
    rows = tuple(replace(shortest, key=f"k{n}", poison="encode" if n == 0 else "", priority=0) for n in range(4))
    scenario = replace(scenario, batches=(replace(scenario.batches[0], jobs=rows, at=0.0, cancelled_at=None),))
    assert check(play(scenario)) == []
    assert "I21" in {violation.invariant for violation in check(play(scenario, make_dispatcher=SuspectsNobody))}
