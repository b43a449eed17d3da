"""Which events follow from what becomes of batches, on both stores: each end once, whatever brought it about."""

from __future__ import annotations

import contextlib
import json
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from cluster.dispatch.retry import after_attempt
from cluster.jobs.model import FINAL_STATES, HoldReason, JobState, PlannedRound
from cluster.jobs.outcomes import Invalid
from cluster.jobs.transitions import RULES, Happening, RefusedError, Verb
from cluster.store import BatchStore, Database, DispatchStore
from cluster.store.batch_reader import VIDEO_SOURCE
from cluster.store.batches import Terms
from cluster.store.commands import CommandStore
from cluster.store.deletion import begin_deletion, drop_rows, next_rows
from cluster.store.schema import batches, jobs, webhook_deliveries
from cluster.store.webhooks.registry import WebhookStore
from cluster.store.webhooks.telling import pass_over, tell
from cluster.webhooks.events import EventType
from pipeline.problems import BadInputError, Problem
from tests.building import FLEET, PROBLEM, Clock, Truth, bad_draft, card, claim_one, completed, draft, spec

ME = "ann"
URL = "https://shop.example/hook?key=1"
AT_FAULT = Invalid(problem=Problem(field="image", message="no", remedy="Give another."))


@pytest.fixture
def verbs(database) -> CommandStore:
    return CommandStore(database)


def hand_in(batch_store: BatchStore, *drafts: Any, owner: str = ME, **options: Any) -> str:
    batch_id, _ = batch_store.open_batch(owner, **({"name": "catalog"} | options))
    batch_store.add(owner, batch_id, drafts)
    batch_store.seal(owner, batch_id)
    return batch_id


def render(
    batch_store: BatchStore, dispatch_store: DispatchStore, batch_id: str, number: int, ended: Any = None
) -> Any:
    job = batch_store.jobs(ME, batch_id)[number - 1]
    claim = claim_one(dispatch_store, job)
    ended = ended or completed(claim)
    assert dispatch_store.finish(claim, ended, after_attempt(dispatch_store.current_job(claim), ended, FLEET))
    return job


@pytest.fixture
def told(database, hooks) -> Callable[[], list[str]]:
    """Looks for news until there are none; types of the events that came, the oldest first, each about its subject."""
    seen: set[str] = set()

    def look(owner: str = ME) -> list[str]:
        while tell(database):
            pass
        new = [one for one in reversed(hooks.deliveries(owner, limit=1000)) if one.id not in seen]
        seen.update(one.id for one in new)
        return [one.type.value for one in new]

    return look


def last(hooks: WebhookStore) -> dict[str, Any]:
    return json.loads(hooks.deliveries(ME, limit=1)[0].payload)


def test_an_end_is_told_once(batch_store, dispatch_store, hooks, told):
    hook, _ = hooks.create(ME, URL)
    batch_id = hand_in(batch_store, draft(1), draft(2))
    render(batch_store, dispatch_store, batch_id, 1)
    assert told() == []
    render(batch_store, dispatch_store, batch_id, 2)
    assert told() == ["batch.completed"]
    assert told() == []
    event, delivery = last(hooks), hooks.deliveries(ME)[0]
    assert (event["id"], event["type"]) == (delivery.event_id, "batch.completed")
    assert event["data"]["id"] == delivery.subject == batch_id
    assert event["data"]["counts"] == {
        "queued": 0, "running": 0, "held": 0, "completed": 2, "failed": 0, "cancelled": 0, "total": 2
    }  # fmt: skip
    assert (delivery.webhook_id, delivery.url) == (hook.id, URL)


def test_the_first_failure_is_told_and_the_next_ones_are_not(batch_store, dispatch_store, hooks, told):
    hooks.create(ME, URL)
    batch_id = hand_in(batch_store, *(draft(n) for n in (1, 2, 3)))
    failed = render(batch_store, dispatch_store, batch_id, 2, AT_FAULT)
    assert told() == ["batch.first_failure"]
    assert last(hooks)["data"]["row"]["id"] == failed.id
    assert last(hooks)["data"]["counts"]["queued"] == 2
    render(batch_store, dispatch_store, batch_id, 1, AT_FAULT)
    assert told() == []
    render(batch_store, dispatch_store, batch_id, 3)
    assert told() == ["batch.completed"]
    assert last(hooks)["data"]["status"] == "failed"


def test_both_at_once_are_told_in_their_order(batch_store, hooks, told):
    hooks.create(ME, URL)
    hand_in(batch_store, bad_draft(1))
    assert told() == ["batch.first_failure", "batch.completed"]


def test_after_a_retry_both_are_told_again(batch_store, dispatch_store, hooks, verbs, told):
    hooks.create(ME, URL)
    batch_id = hand_in(batch_store, draft(1), draft(2))
    render(batch_store, dispatch_store, batch_id, 1)
    render(batch_store, dispatch_store, batch_id, 2, AT_FAULT)
    assert told() == ["batch.first_failure", "batch.completed"]
    # It fails again before anybody looks: what was told was the failure before.
    verbs.batch(ME, batch_id, Verb.RETRY)
    render(batch_store, dispatch_store, batch_id, 2, AT_FAULT)
    assert told() == ["batch.first_failure", "batch.completed"]
    verbs.batch(ME, batch_id, Verb.RETRY)
    assert told() == []
    render(batch_store, dispatch_store, batch_id, 2)
    assert told() == ["batch.completed"]
    assert last(hooks)["data"]["status"] == "completed"


def test_a_retry_of_one_row_tells_no_first_failure_while_others_have_failed(
    batch_store, dispatch_store, hooks, verbs, told
):
    hooks.create(ME, URL)
    batch_id = hand_in(batch_store, draft(1), bad_draft(2))
    job = render(batch_store, dispatch_store, batch_id, 1, AT_FAULT)
    assert told() == ["batch.first_failure", "batch.completed"]
    verbs.job(ME, job.id, Verb.RETRY)
    assert told() == []
    render(batch_store, dispatch_store, batch_id, 1, AT_FAULT)
    assert told() == ["batch.completed"]


def test_a_retry_that_moves_nothing_tells_nothing(batch_store, hooks, verbs, told):
    hooks.create(ME, URL)
    batch_id = hand_in(batch_store, bad_draft(1))
    told()
    verbs.batch(ME, batch_id, Verb.RETRY)
    assert told() == []


def test_a_retry_that_is_done_at_once_is_told(batch_store, dispatch_store, hooks, verbs, told):
    hooks.create(ME, URL)
    batch_id = hand_in(batch_store, draft(1, "same"))
    render(batch_store, dispatch_store, batch_id, 1, AT_FAULT)
    other = hand_in(batch_store, draft(1, "same"))
    render(batch_store, dispatch_store, other, 1)
    assert told() == ["batch.first_failure", "batch.completed", "batch.completed"]
    # An equal row's clip is there by now: the batch has ended again before anybody could see that it had not.
    verbs.batch(ME, batch_id, Verb.RETRY)
    assert told() == ["batch.completed"]
    assert (last(hooks)["data"]["id"], last(hooks)["data"]["status"]) == (batch_id, "completed")


def test_a_large_batch_that_is_put_back_in_pieces_is_told_again(batch_store, dispatch_store, hooks, verbs, told):
    hooks.create(ME, URL)
    verbs.rows_at_once = 2
    batch_id = hand_in(batch_store, *(draft(n) for n in range(1, 6)))
    verbs.batch(ME, batch_id, Verb.CANCEL)
    assert told() == ["batch.cancelled"]
    verbs.batch(ME, batch_id, Verb.RETRY, cancelled=True)
    assert told() == []
    verbs.batch(ME, batch_id, Verb.CANCEL)
    assert told() == ["batch.cancelled"]


def test_rows_whose_clip_is_lost_are_rendered_and_told_again(batch_store, dispatch_store, hooks, told):
    hooks.create(ME, URL)
    batch_id = hand_in(batch_store, draft(1))
    render(batch_store, dispatch_store, batch_id, 1)
    assert told() == ["batch.completed"]
    (clip_id,) = batch_store.clips_of(ME, batch_id)
    batch_store.forget_clips(ME, [clip_id])
    assert told() == []
    render(batch_store, dispatch_store, batch_id, 1)
    assert told() == ["batch.completed"]


def test_a_batch_whose_row_waits_for_one_of_another_batch_is_told_again_with_it(
    batch_store, dispatch_store, hooks, verbs, told
):
    hooks.create(ME, URL)
    first = hand_in(batch_store, draft(1))
    (job,) = batch_store.jobs(ME, first)
    second = hand_in(batch_store, draft(1, "other", after=job.id))
    render(batch_store, dispatch_store, first, 1, AT_FAULT)
    assert sorted(told()) == ["batch.completed", "batch.completed", "batch.first_failure", "batch.first_failure"]
    verbs.job(ME, job.id, Verb.RETRY)
    assert told() == []
    render(batch_store, dispatch_store, first, 1)
    render(batch_store, dispatch_store, second, 1)
    assert told() == ["batch.completed", "batch.completed"]


def rounds_of(number: int) -> dict[str, Any]:
    """A row that is rendered as a draft first."""
    of = [spec("i2vgen-xl-tiny", sampler="ddim", seed=number, steps=steps) for steps in (2, 4)]
    planned = tuple(PlannedRound(name=name, spec=one) for name, one in zip(("draft", "final"), of, strict=True))
    return {"spec": of[0], "rounds": planned}


def test_that_drafts_wait_is_told_once_for_what_waits(batch_store, dispatch_store, hooks, verbs, told):
    hooks.create(ME, URL)
    batch_id = hand_in(batch_store, draft(1, **rounds_of(1)), draft(2, **rounds_of(2)), draft(3, **rounds_of(3)))
    first, second, third = (job.id for job in batch_store.jobs(ME, batch_id))
    for number in (1, 2):
        render(batch_store, dispatch_store, batch_id, number)
        assert told() == [], "something goes on by itself"
    render(batch_store, dispatch_store, batch_id, 3)
    assert told() == ["batch.needs_review"]
    data = last(hooks)["data"]
    assert (data["id"], data["drafts"], data["counts"]["held"]) == (batch_id, 3, 3)
    assert (data["review_url"], data["page_url"]) == (
        f"/v1/batches/{batch_id}/jobs?review=true",
        f"/batches/{batch_id}/review",
    )
    # Finals bring no draft, and a rejection that is taken back none that nobody has seen.
    verbs.job(ME, first, Verb.APPROVE)
    verbs.job(ME, second, Verb.REJECT)
    verbs.job(ME, second, Verb.RETRY)
    assert told() == []
    render(batch_store, dispatch_store, batch_id, 1)
    assert told() == []
    verbs.job(ME, second, Verb.REROLL)
    assert told() == []
    render(batch_store, dispatch_store, batch_id, 2)
    assert told() == ["batch.needs_review"]
    assert last(hooks)["data"]["drafts"] == 2
    verbs.job(ME, second, Verb.REJECT)
    verbs.job(ME, third, Verb.REJECT)
    assert told() == ["batch.completed"]
    # The last rejection is taken back: the batch goes on, and its end is told again.
    verbs.job(ME, third, Verb.RETRY)
    assert told() == []
    verbs.job(ME, third, Verb.APPROVE)
    render(batch_store, dispatch_store, batch_id, 3)
    assert told() == ["batch.completed"]


def test_drafts_of_rows_that_waited_for_others_are_told_when_they_come(batch_store, dispatch_store, hooks, verbs, told):
    hooks.create(ME, URL)
    batch_id = hand_in(batch_store, draft(1, **rounds_of(1)), draft(2, after="row1", **rounds_of(2)))
    first, _ = batch_store.jobs(ME, batch_id)
    render(batch_store, dispatch_store, batch_id, 1)
    assert told() == ["batch.needs_review"]
    verbs.job(ME, first.id, Verb.APPROVE)
    render(batch_store, dispatch_store, batch_id, 1)
    assert told() == []
    render(batch_store, dispatch_store, batch_id, 2)
    assert told() == ["batch.needs_review"]


def test_drafts_that_waited_before_anybody_listened_are_no_news(batch_store, dispatch_store, hooks, told):
    batch_id = hand_in(batch_store, draft(1, **rounds_of(1)))
    render(batch_store, dispatch_store, batch_id, 1)
    hooks.create(ME, URL)
    assert told() == []


def test_a_rejected_clip_that_is_taken_back_ends_no_batch_again(batch_store, dispatch_store, hooks, verbs, told):
    hooks.create(ME, URL)
    batch_id = hand_in(batch_store, draft(1, row_number=1), draft(2, row_number=1))
    for number in (1, 2):
        job = render(batch_store, dispatch_store, batch_id, number)
    assert told() == ["batch.completed"]
    verbs.job(ME, job.id, Verb.REJECT)
    verbs.job(ME, job.id, Verb.RETRY)
    assert told() == []


def test_only_what_watches_again_brings_an_ended_row_back():
    # Whoever adds another way out of an end has it told again (`cluster.store.webhooks.again`), and then adds it here.
    brings_back = {
        event
        for event, rules in RULES.items()
        for rule in rules
        if rule.state in FINAL_STATES and rule.to is not None and rule.to is not rule.state
    }
    # What falls short does so in the transaction that completed it, where nobody has been told of an end yet.
    short = {Happening.MADE_AGAIN, Happening.FELL_SHORT}
    assert brings_back == {Verb.RETRY, Verb.REROLL, Happening.CLIP_LOST, Happening.BEFORE_REVIVED, *short}


def test_only_what_watches_drafts_brings_a_waiting_row_to_another_one():
    # Whoever adds another way has what comes of it told (`watch_drafts`), and then adds it here.
    brings = {
        event
        for event, rules in RULES.items()
        for rule in rules
        if rule.state not in (JobState.QUEUED, JobState.RUNNING)
        and not rule.keeps
        and (rule.to is JobState.QUEUED or (rule.renews and rule.because is HoldReason.REVIEW))
    }
    watched = {Verb.APPROVE, Verb.RESUME, Verb.REROLL, Verb.RETRY, Happening.CLIP_LOST, Happening.BEFORE_DONE}
    # Of what is made again it is watched where it falls short (`cluster.store.fidelity.holding`).
    assert brings == {*watched, Happening.MADE_AGAIN}


@pytest.mark.parametrize("ends", ["completed", "failed", "cancelled"])
def test_a_video_by_itself_is_told_as_a_video(batch_store, dispatch_store, hooks, verbs, told, ends):
    hooks.create(ME, URL)
    batch_id = hand_in(batch_store, draft(1), source=VIDEO_SOURCE)
    (job,) = batch_store.jobs(ME, batch_id)
    assert told() == []
    if ends == "cancelled":
        verbs.job(ME, job.id, Verb.CANCEL)
    else:
        render(batch_store, dispatch_store, batch_id, 1, AT_FAULT if ends == "failed" else None)
    assert told() == ["video.completed" if ends == "completed" else "video.failed"]
    assert last(hooks)["data"]["id"] == job.id


def test_a_batch_that_only_calls_itself_a_video_is_a_batch(batch_store, verbs, hooks, told):
    hooks.create(ME, URL)
    verbs.batch(ME, hand_in(batch_store, draft(1), draft(2), source=VIDEO_SOURCE), Verb.CANCEL)
    assert told() == ["batch.cancelled"]


def test_a_batch_tells_the_url_that_came_with_it_and_no_url_twice(batch_store, verbs, hooks, told):
    with pytest.raises(BadInputError) as refused:
        hand_in(batch_store, draft(1), terms=Terms(webhook_url=URL))
    assert refused.value.problem.field == "webhook_url"
    assert batch_store.batches(ME, everything=True) == [], "nothing was made"
    hooks.rotate(ME)
    verbs.batch(ME, hand_in(batch_store, draft(1), terms=Terms(webhook_url=URL)), Verb.CANCEL)
    assert told() == ["batch.cancelled"]
    assert [(one.webhook_id, one.url) for one in hooks.deliveries(ME)] == [(None, URL)]
    hooks.create(ME, URL, events=[EventType.BATCH_COMPLETED])
    verbs.batch(ME, hand_in(batch_store, draft(2), terms=Terms(webhook_url=URL)), Verb.CANCEL)
    assert told() == ["batch.cancelled"]


def test_each_webhook_hears_what_it_is_for_and_strangers_hear_nothing(batch_store, verbs, hooks, told):
    mine, _ = hooks.create(ME, URL, events=[EventType.BATCH_CANCELLED])
    hooks.create(ME, "https://b.example/", events=[EventType.VIDEO_FAILED])
    hooks.create("bob", "https://c.example/")
    batch_id = hand_in(batch_store, draft(1), bad_draft(2))
    verbs.batch(ME, batch_id, Verb.CANCEL)
    assert told() == ["batch.cancelled"]
    assert hooks.deliveries(ME)[0].webhook_id == mine.id
    assert hooks.deliveries("bob") == []


def test_messages_of_one_event_have_one_id_and_one_text(batch_store, verbs, hooks, told):
    hooks.create(ME, URL)
    hooks.create(ME, "https://b.example/")
    verbs.batch(ME, hand_in(batch_store, draft(1)), Verb.CANCEL)
    told()
    first, second = hooks.deliveries(ME)
    assert (first.event_id, first.payload) == (second.event_id, second.payload)
    assert first.id != second.id


def test_what_was_over_is_no_news_to_a_webhook_that_is_registered_later(database, batch_store, verbs, hooks, told):
    old = hand_in(batch_store, draft(1))
    verbs.batch(ME, old, Verb.CANCEL)
    going_on = hand_in(batch_store, draft(2), bad_draft(3))
    assert told() == []
    hooks.create(ME, URL)
    assert told() == []
    verbs.batch(ME, going_on, Verb.CANCEL)
    assert told() == ["batch.cancelled"], "that it has failed rows was known before"


def test_what_happens_while_nobody_listens_is_passed_over_now_and_then(database, batch_store, verbs, truth):
    verbs.batch(ME, hand_in(batch_store, draft(1)), Verb.CANCEL)
    going_on = hand_in(batch_store, draft(2))
    with database.write() as c:
        pass_over(c, database.now(c))
    untold = truth.rows(sa.select(batches.c.id).where(batches.c.end_told_at.is_(None)))
    assert [row.id for row in untold] == [going_on]


def test_a_batch_that_is_deleted_at_once_is_told_with_all_its_rows(database, batch_store, verbs, hooks, told):
    hooks.create(ME, URL)
    batch_id = hand_in(batch_store, draft(1), draft(2))
    verbs.batch(ME, batch_id, Verb.CANCEL)
    begin_deletion(database, ME, batch_id)
    rows = next_rows(database, ME, batch_id, limit=1)
    drop_rows(database, ME, batch_id, rows)
    assert told() == ["batch.cancelled"]
    assert last(hooks)["data"]["counts"]["total"] == 2


def test_a_batch_without_rows_tells_nothing(batch_store, hooks, told):
    hooks.create(ME, URL)
    hand_in(batch_store)
    assert told() == []


def test_a_look_without_news_writes_nothing(database, batch_store, hooks, truth):
    hooks.create(ME, URL)
    hand_in(batch_store, draft(1))
    before = truth.everything()
    assert tell(database) == 0
    assert truth.everything() == before


def test_two_that_look_at_once_tell_it_once(database, batch_store, verbs, hooks, truth):
    """The second finds in its transaction that it was told; the look before that is of any age."""
    from cluster.store.webhooks.telling import tell_batch

    hooks.create(ME, URL)
    batch_id = hand_in(batch_store, draft(1))
    verbs.batch(ME, batch_id, Verb.CANCEL)
    for expected in (True, False):
        with database.write() as c:
            assert tell_batch(database, c, database.now(c), batch_id) is expected
    assert truth.rows(sa.select(sa.func.count()).select_from(webhook_deliveries))[0][0] == 1


def test_a_payload_tells_no_secret_and_no_prompt(batch_store, dispatch_store, hooks, told):
    _, secret = hooks.create(ME, URL)
    batch_id = hand_in(batch_store, draft(1), bad_draft(2))
    render(batch_store, dispatch_store, batch_id, 1)
    told()
    for one in hooks.deliveries(ME):
        assert len(one.payload) < 2000
        for kept_back in (secret, "key=1", "pan left", PROBLEM.message):
            assert kept_back not in one.payload


@pytest.mark.parametrize("seed", range(2))
def test_whatever_people_and_cards_do_each_end_is_told_once(seed):
    """Beside a model that reads the rows before and after every action, and knows nothing of marks."""
    database = Database("sqlite://")
    database.migrate()
    clock, rng = Clock().set_on(database), random.Random(seed)
    batch_store, verbs, hooks = BatchStore(database), CommandStore(database), WebhookStore(database)
    office, truth = DispatchStore(database), Truth(database)
    office.take_office("test")
    hooks.create(ME, URL, events=[EventType.BATCH_COMPLETED, EventType.BATCH_CANCELLED])
    #: Batches whose end, should they have ended, was not told yet; and how many ends are told by now.
    untold: set[str] = set()
    expected: Counter[str] = Counter()

    def rows() -> dict[str, Any]:
        return {row.id: row for row in truth.rows(sa.select(jobs))}

    def hand_some_in() -> None:
        keys = rng.sample(["a", "b", "c", "d"], 2)
        untold.add(hand_in(batch_store, draft(1, keys[0]), draft(2, keys[1]), rng.choice([bad_draft, draft])(3)))

    def end_one(ended: Any = None) -> None:
        waiting = office.waiting(5)
        if waiting:
            (claim,) = office.start([(rng.choice(waiting), card("gpu0"))], 10) or [None]
            if claim is not None:
                how = ended or completed(claim)
                office.finish(claim, how, after_attempt(office.current_job(claim), how, FLEET))

    def command() -> None:
        verb, cancelled = rng.choice([(Verb.CANCEL, False), (Verb.RETRY, False), (Verb.RETRY, True)])
        with contextlib.suppress(RefusedError):
            if rng.random() < 0.5:
                verbs.batch(ME, rng.choice(sorted(untold | set(expected))), verb, cancelled=cancelled)
            else:
                verbs.job(ME, rng.choice(sorted(rows())), verb)

    def lose_a_clip() -> None:
        found = [row.id for row in truth.clips()]
        if found:
            batch_store.forget_clips(ME, [rng.choice(found)])

    actions = [hand_some_in, end_one, end_one, end_one, lambda: end_one(AT_FAULT), command, command, lose_a_clip]
    hand_some_in()
    for _ in range(100):
        before = rows()
        clock.now += 1
        rng.choice(actions)()
        after = rows()
        # A row that had ended and was touched is one that was brought back, wherever it is now.
        untold |= {
            row.batch_id
            for row in after.values()
            if row.id in before and JobState(before[row.id].state).final and row.updated_at != before[row.id].updated_at
        }
        if rng.random() < 0.4:
            while tell(database):
                pass
            ended = {
                batch
                for batch in untold
                if all(JobState(row.state).final for row in after.values() if row.batch_id == batch)
            }
            expected.update(ended)
            untold -= ended
            assert Counter(one.subject for one in hooks.deliveries(ME, limit=10_000)) == expected
    assert sum(expected.values()) > 10
    assert max(expected.values()) > 1
    database.close()
