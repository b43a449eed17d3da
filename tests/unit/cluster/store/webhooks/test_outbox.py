"""Messages on their way: taken by one, tried again by the schedule, and what that does to their webhook."""

from __future__ import annotations

import random
from collections import defaultdict
from itertools import pairwise

import pytest

from cluster.remote.poster import PostAnswer, PostFailedError
from cluster.store import Database
from cluster.store.gauges import Figures
from cluster.store.webhooks.outbox import AT_ONCE_OF_OWNER, KEPT_DAYS, LEASE_S, MOST_TAKES, Outbox
from cluster.store.webhooks.registry import NoSuchWebhookError, WebhookStore
from cluster.store.webhooks.telling import Receiver, enqueue
from cluster.webhooks.events import EventType, of_test
from cluster.webhooks.model import MOST_WEBHOOKS, DeliveryState
from cluster.webhooks.schedule import JITTER, SCHEDULE_S, DeliveryVerdict
from pipeline.problems import BadInputError
from serve.dispatcher.webhooks import WebhookSender
from tests.building import FLEET, Clock

ME = "ann"
URL = "https://a.example/hook"
OK = DeliveryVerdict(state=DeliveryState.DELIVERED)


@pytest.fixture
def outbox(database) -> Outbox:
    return Outbox(database)


def put(database: Database, url: str = URL, owner: str = ME, webhook_id: str | None = None) -> str:
    """A message in the outbox; its id."""
    with database.write() as c:
        told = EventType.BATCH_COMPLETED, of_test("batch_1")[1]
        (made,) = enqueue(c, database.now(c), owner, told, [Receiver(url, webhook_id)])
    return made


def test_a_message_is_given_to_one_sender(database, clock, hooks, outbox):
    hooks.rotate(ME)
    put(database)
    (taken,) = outbox.take(5)
    assert Outbox(database).take(5) == []
    assert len(taken.secrets) == 1
    assert outbox.record(taken, OK, 204)
    assert outbox.take(5) == []
    (done,) = hooks.deliveries(ME)
    assert (done.state, done.status, done.next_at, done.delivered_at) == ("delivered", 204, None, clock.now)


def test_a_sender_that_died_is_followed_by_another_with_the_same_message(database, clock, hooks, outbox):
    put(database)
    (first,) = outbox.take(5)
    clock.now += LEASE_S - 1
    assert outbox.take(5) == []
    clock.now += 1
    (second,) = outbox.take(5)
    assert second.delivery.event_id == first.delivery.event_id
    assert second.delivery.payload == first.delivery.payload
    # The first was not dead but slow: only whoever has the message says how it went.
    assert not outbox.record(first, OK, 200)
    assert hooks.deliveries(ME)[0].state is DeliveryState.PENDING
    assert outbox.record(second, OK, 200)
    assert hooks.deliveries(ME)[0].attempts == 1


def test_a_message_that_ends_its_senders_is_given_up(database, clock, hooks, outbox):
    put(database)
    for _ in range(MOST_TAKES):
        assert len(outbox.take(5)) == 1
        clock.now += LEASE_S
    assert outbox.take(5) == []
    assert hooks.deliveries(ME)[0].state is DeliveryState.FAILED


def test_a_url_gets_one_message_at_a_time_in_order_and_others_do_not_wait_for_it(database, clock, hooks, outbox):
    first, second = put(database), put(database)
    other = put(database, "https://b.example/")
    taken = outbox.take(10)
    assert {one.delivery.id for one in taken} == {first, other}
    assert outbox.take(10) == []
    for one in taken:
        outbox.record(one, OK, 200)
    assert [one.delivery.id for one in outbox.take(10)] == [second]


def test_whoever_names_many_urls_delays_nobody_else(database, clock, outbox):
    for n in range(40):
        put(database, f"https://slow{n}.example/")
    theirs = put(database, owner="bob")
    taken = outbox.take(100)
    assert sum(one.delivery.owner == ME for one in taken) == AT_ONCE_OF_OWNER
    assert theirs in {one.delivery.id for one in taken}
    assert outbox.take(100) == []
    outbox.record(next(one for one in taken if one.delivery.owner == ME), OK, 200)
    assert [one.delivery.owner for one in outbox.take(100)] == [ME]


def told_of(database: Database) -> dict[str, float]:
    """Messages that ended, and those that wait, as a scrape shows them."""
    figures = Figures(database, FLEET)
    ended = {outcome: value for (outcome,), value in figures.counters()["webhook_messages"].items()}
    return ended | {"waits": figures.gauges().webhook_messages_pending[()]}


def test_a_monitoring_system_sees_how_messages_end(database, clock, hooks, outbox):
    assert told_of(database) == {"delivered": 0, "failed": 0, "waits": 0}
    hook, _ = hooks.create(ME, URL)
    for _ in range(3):
        put(database, webhook_id=hook.id)
    put(database, owner="bob")
    mine, bobs = sorted(outbox.take(5), key=lambda one: one.delivery.owner)
    outbox.record(bobs, OK, 200)
    outbox.record(mine, DeliveryVerdict(state=DeliveryState.PENDING, pause_s=5, error="no"), None)
    assert told_of(database) == {"delivered": 1, "failed": 0, "waits": 3}
    # One that took too long says nothing of a message that another has.
    clock.now += 5
    (late,) = outbox.take(1)
    clock.now += LEASE_S + 1
    (mine,) = outbox.take(1)
    assert not outbox.record(late, OK, 200)
    outbox.record(mine, DeliveryVerdict(state=DeliveryState.FAILED, gone=True, error="it answers 410"), 410)
    assert told_of(database) == {"delivered": 1, "failed": 3, "waits": 0}
    assert Figures(database, FLEET).gauges().webhooks_disabled == {(): 1}


def test_a_receiver_that_is_gone_is_disabled_and_hears_nothing_more(database, clock, hooks, outbox):
    hook, _ = hooks.create(ME, URL)
    put(database, webhook_id=hook.id)
    put(database, webhook_id=hook.id)
    (taken,) = outbox.take(5)
    outbox.record(taken, DeliveryVerdict(state=DeliveryState.FAILED, gone=True, error="it answers 410"), 410)
    assert {one.state for one in hooks.deliveries(ME)} == {DeliveryState.FAILED}
    found = hooks.one(ME, hook.id)
    assert (found.disabled_at, found.disabled_why) == (clock.now, "it answers 410")
    assert hooks.enable(ME, hook.id).disabled_at is None


def test_a_url_of_a_batch_that_is_gone_is_not_asked_about_its_other_messages(database, clock, hooks, outbox):
    put(database)
    put(database)
    theirs = put(database, owner="bob")
    taken = next(one for one in outbox.take(5) if one.delivery.owner == ME)
    outbox.record(taken, DeliveryVerdict(state=DeliveryState.FAILED, gone=True, error="it answers 410"), 410)
    assert {one.state for one in hooks.deliveries(ME)} == {DeliveryState.FAILED}
    assert [(one.id, one.state) for one in hooks.deliveries("bob")] == [(theirs, DeliveryState.PENDING)]


@pytest.mark.parametrize("takes_others", [True, False])
def test_one_that_took_nothing_for_three_days_is_disabled(database, clock, hooks, outbox, takes_others):
    hook, _ = hooks.create(ME, URL)
    put(database, webhook_id=hook.id)
    (old,) = outbox.take(1)
    clock.now += LEASE_S
    if takes_others:
        put(database, webhook_id=hook.id)
        again, new = outbox.take(1)[0], None
        outbox.record(again, DeliveryVerdict(state=DeliveryState.PENDING, pause_s=1000, error="no"), None)
        (new,) = outbox.take(1)
        outbox.record(new, OK, 200)
        clock.now += 1000
    (old,) = outbox.take(1)
    outbox.record(old, DeliveryVerdict(state=DeliveryState.FAILED, exhausted=True, error="no"), None)
    assert (hooks.one(ME, hook.id).disabled_at is None) is takes_others


def test_a_deleted_webhook_gets_nothing_more(database, clock, hooks, outbox):
    hook, _ = hooks.create(ME, URL)
    put(database, webhook_id=hook.id)
    (taken,) = outbox.take(1)
    hooks.delete(ME, hook.id)
    assert not outbox.record(taken, DeliveryVerdict(state=DeliveryState.PENDING, pause_s=5, error="no"), None)
    assert hooks.deliveries(ME)[0].state is DeliveryState.FAILED
    with pytest.raises(NoSuchWebhookError):
        hooks.delete(ME, hook.id)


def test_what_is_over_is_forgotten_after_a_month(database, clock, hooks, outbox):
    put(database)
    outbox.record(outbox.take(1)[0], OK, 200)
    waits = put(database)
    clock.now += KEPT_DAYS * 86_400
    assert outbox.tidy() == 0
    clock.now += 1
    assert outbox.tidy() == 1
    assert [one.id for one in hooks.deliveries(ME)] == [waits]


def test_webhooks_are_their_owner_s(database, hooks):
    hook, secret = hooks.create(ME, URL)
    assert secret is not None
    assert hooks.create(ME, "https://b.example/")[1] is None, "one secret for all, shown once"
    for call in (hooks.one, hooks.delete, hooks.test, hooks.enable):
        with pytest.raises(NoSuchWebhookError):
            call("bob", hook.id)
    assert hooks.all("bob") == []


def test_what_cannot_be_registered_is_refused(hooks):
    hooks.create(ME, URL)
    for url, events in ((URL, []), ("file:///etc/passwd", []), ("https://b.example", [EventType.WEBHOOK_TEST])):
        with pytest.raises(BadInputError):
            hooks.create(ME, url, events=events)
    for n in range(MOST_WEBHOOKS - 1):
        hooks.create(ME, f"https://a.example/{n}")
    with pytest.raises(BadInputError, match="already"):
        hooks.create(ME, "https://one.more/")


def test_a_secret_is_replaced_with_a_grace_time_or_at_once(clock, hooks):
    first = hooks.rotate(ME)
    assert (first.previous, first.previous_until) == (None, None)
    second = hooks.rotate(ME, 60)
    assert second.valid_at(int(clock.now) + 59) == (second.secret, first.secret)
    assert second.valid_at(int(clock.now) + 60) == (second.secret,)
    assert hooks.rotate(ME, 0).previous is None


class Killed(BaseException):
    """The process ends: nothing of it is cleaned up."""


class World:
    """Receivers of a simulated network, some of which are away, and senders that die between sending and recording."""

    def __init__(self, clock: Clock, seed: int) -> None:
        self.clock, self.rng = clock, random.Random(seed)
        self.away_until = {f"https://r{n}.example/": clock.now + self.rng.choice([0, 60, 9000, 1e7]) for n in range(4)}
        #: (time, URL, id, body) of everything that came, whether it was answered or not.
        self.came: list[tuple[float, str, str, bytes]] = []
        self.killed: set[tuple[float, str]] = set()
        self.taken: set[tuple[str, str]] = set()

    def post(self, url: str, body: bytes, headers) -> PostAnswer:
        message_id = dict(headers)["webhook-id"]
        self.came.append((self.clock.now, url, message_id, body))
        if self.clock.now < self.away_until[url]:
            if self.rng.random() < 0.5:
                raise PostFailedError("the host takes no connection")
            return PostAnswer(status=self.rng.choice([302, 404, 500, 503]))
        if self.rng.random() < 0.2:
            self.killed.add((self.clock.now, message_id))
            raise Killed
        self.taken.add((url, message_id))
        return PostAnswer(status=204)


@pytest.mark.parametrize("seed", range(3))
def test_in_days_of_failures_nothing_is_lost_hurried_or_changed(sqlite_database, seed):
    clock = Clock().set_on(sqlite_database)
    hooks, world = WebhookStore(sqlite_database), World(clock, seed)
    hooks.rotate(ME)
    urls = list(world.away_until)
    sent = {put(sqlite_database, urls[n % 4]) for n in range(12)}

    def run(work) -> None:
        work()

    def sender() -> WebhookSender:
        return WebhookSender(sqlite_database, world.post, start=run, clock=clock, rng=world.rng)

    now = sender()
    while pending := [one for one in hooks.deliveries(ME, limit=100) if one.state is DeliveryState.PENDING]:
        try:
            while now.step():
                pass
        except Killed:
            now = sender()
        due = [one.next_at for one in hooks.deliveries(ME, limit=100) if one.next_at is not None]
        clock.now = max(clock.now + 1, min(due, default=0))
        assert len(world.came) < 12 * len(SCHEDULE_S), len(pending)

    found = hooks.deliveries(ME, limit=100)
    assert {one.id for one in found} == sent
    began: dict[str, list[float]] = defaultdict(list)
    for at, _, message_id, body in world.came:
        began[message_id].append(at)
        assert body == next(one.payload for one in found if one.event_id == message_id).encode()
    for one in found:
        times = began[one.event_id]
        # Those whose sender died were not counted; not each that was counted as taken was sent.
        assert one.attempts <= min(len(times), len(SCHEDULE_S))
        assert (one.state is DeliveryState.DELIVERED) == ((one.url, one.event_id) in world.taken)
        attempt = 0
        for before, after in pairwise(times):
            died = (before, one.event_id) in world.killed
            attempt += not died
            least, most = (LEASE_S, LEASE_S) if died else (SCHEDULE_S[attempt], SCHEDULE_S[attempt] * (1 + JITTER))
            # A second of the clock, and messages to the same URL, or of the same sender that died, before it.
            assert least <= after - before <= most + LEASE_S * 12 + 1
        if one.state is DeliveryState.FAILED:
            assert one.attempts == len(SCHEDULE_S)
            assert times[-1] - times[0] >= sum(SCHEDULE_S[1:])
