"""The sender against real receivers: signed, retried with the same id, and nothing sent by two."""

from __future__ import annotations

import json
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook

from cluster.jobs.transitions import Verb
from cluster.remote.policy import FetchPolicy
from cluster.remote.poster import MessagePoster
from cluster.store import BatchStore, Database
from cluster.store.commands import CommandStore
from cluster.store.webhooks.outbox import LEASE_S
from cluster.store.webhooks.registry import WebhookStore
from cluster.webhooks.model import Delivery, DeliveryState
from serve.dispatcher.webhooks import WebhookSender
from tests.building import draft
from tests.served import served
from tests.unit.cluster.remote.hosts import Asked, Host, host

ME = "local"
PAGE = Path(__file__).parents[4] / "docs" / "webhooks.md"
PATIENCE_S = 30


@pytest.fixture
def hooks(sqlite_database: Database) -> WebhookStore:
    return WebhookStore(sqlite_database)


def sender_for(database: Database, port: int, **options: Any) -> WebhookSender:
    poster = MessagePoster(FetchPolicy(private_hosts=(f"127.0.0.1:{port}",)))
    return WebhookSender(database, poster.post, **options)


def end_a_batch(database: Database) -> str:
    batch_store = BatchStore(database)
    batch_id, _ = batch_store.open_batch(ME, name="catalog")
    batch_store.add(ME, batch_id, [draft(1)])
    batch_store.seal(ME, batch_id)
    CommandStore(database).batch(ME, batch_id, Verb.CANCEL)
    return batch_id


class Received:
    """What came, with its headers."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.came: list[tuple[dict[str, str], bytes]] = []

    def __call__(self, asked: Asked) -> None:
        body = asked.rfile.read(int(asked.headers["Content-Length"]))
        self.came.append((dict(asked.headers), body))
        asked.send(self.statuses.pop(0) if self.statuses else 204)


def url_of(server: Host) -> str:
    return f"http://127.0.0.1:{server.port}/hook"


def test_a_receiver_verifies_what_it_gets_by_the_library(sqlite_database, hooks):
    received = Received()
    with host(received) as server:
        _, secret = hooks.create(ME, url_of(server))
        batch_id = end_a_batch(sqlite_database)
        sender_for(sqlite_database, server.port, base="https://farm.example").finish(PATIENCE_S)
    ((headers, body),) = received.came
    event = Webhook(secret).verify(body, headers)
    assert event["data"]["id"] == batch_id
    assert event["data"]["url"] == f"https://farm.example/v1/batches/{batch_id}"
    assert headers["webhook-id"] == event["id"]
    assert hooks.deliveries(ME)[0].state is DeliveryState.DELIVERED


def test_after_a_rotation_both_secrets_verify(sqlite_database, hooks):
    received = Received()
    with host(received) as server:
        _, old = hooks.create(ME, url_of(server))
        new = hooks.rotate(ME).secret
        end_a_batch(sqlite_database)
        sender_for(sqlite_database, server.port).finish(PATIENCE_S)
    ((headers, body),) = received.came
    assert len(headers["webhook-signature"].split(" ")) == 2
    for secret in (old, new):
        assert Webhook(secret).verify(body, headers)


class Killed(BaseException):
    """The process ends: nothing of it is cleaned up."""


def test_a_sender_that_is_killed_before_it_wrote_how_it_went_is_followed_by_one_that_sends_it_again(
    sqlite_database, hooks
):
    received = Received()
    with host(received) as server:
        hooks.create(ME, url_of(server))
        end_a_batch(sqlite_database)
        first = sender_for(sqlite_database, server.port, start=lambda work: work())

        def killed(*_: Any) -> None:
            raise Killed

        first._outbox.record = killed
        with pytest.raises(Killed):
            first.step()
        # The message arrived, and nobody knows.
        assert (len(received.came), hooks.deliveries(ME)[0].state) == (1, DeliveryState.PENDING)
        began = time.time()
        sqlite_database.now = lambda _connection: int(began) + LEASE_S + 1
        sender_for(sqlite_database, server.port).finish(PATIENCE_S)
    (first_headers, first_body), (second_headers, second_body) = received.came
    assert first_headers["webhook-id"] == second_headers["webhook-id"]
    assert first_body == second_body
    assert hooks.deliveries(ME)[0].state is DeliveryState.DELIVERED


def test_a_failure_is_shown_and_tried_again_after_five_seconds(sqlite_database, hooks):
    received = Received(500)
    with host(received) as server:
        hooks.create(ME, url_of(server))
        end_a_batch(sqlite_database)
        sender_for(sqlite_database, server.port).finish(PATIENCE_S)
        (waits,) = hooks.deliveries(ME)
        assert (waits.state, waits.attempts, waits.status) == (DeliveryState.PENDING, 1, 500)
        assert waits.error == "it answers 500"
        assert 5 <= waits.next_at - waits.last_at <= 7
        sqlite_database.now = lambda _connection: waits.next_at
        sender_for(sqlite_database, server.port).finish(PATIENCE_S)
    assert hooks.deliveries(ME)[0].state is DeliveryState.DELIVERED
    assert received.came[0][0]["webhook-id"] == received.came[1][0]["webhook-id"]


def test_what_nobody_thought_of_is_an_attempt_that_failed(sqlite_database, hooks):
    def broken(*_: Any) -> Any:
        raise UnicodeError("label too long")

    hooks.create(ME, "https://shop.example/")
    end_a_batch(sqlite_database)
    WebhookSender(sqlite_database, broken).finish(PATIENCE_S)
    (waits,) = hooks.deliveries(ME)
    assert (waits.state, waits.attempts) == (DeliveryState.PENDING, 1)
    assert waits.error == "it could not be sent (UnicodeError)"


def test_a_private_receiver_that_nobody_allowed_gets_nothing_and_the_error_says_what_to_do(sqlite_database, hooks):
    received = Received()
    with host(received) as server:
        hooks.create(ME, url_of(server))
        end_a_batch(sqlite_database)
        WebhookSender(sqlite_database, MessagePoster(FetchPolicy()).post).finish(PATIENCE_S)
    assert received.came == []
    assert server.connections == 0
    assert hooks.deliveries(ME)[0].error


def test_two_senders_at_once_send_each_message_once(sqlite_database, hooks):
    received = Received()
    with host(received) as server:
        hooks.create(ME, url_of(server))
        for n in range(12):
            hook, _ = hooks.create(ME, f"{url_of(server)}?n={n}")
            hooks.test(ME, hook.id)
        stop = threading.Event()
        threads = [
            threading.Thread(target=sender_for(sqlite_database, server.port).run, args=(stop,)) for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        wait_until(lambda: all(one.state is not DeliveryState.PENDING for one in hooks.deliveries(ME)))
        stop.set()
        for thread in threads:
            thread.join(PATIENCE_S)
    assert len(received.came) == 12
    assert {one.attempts for one in hooks.deliveries(ME)} == {1}


def test_a_test_goes_to_a_disabled_webhook_too_and_is_sent_once(sqlite_database, hooks):
    received = Received(410, 500)
    with host(received) as server:
        hook, _ = hooks.create(ME, url_of(server))
        for _ in range(2):
            hooks.test(ME, hook.id)
            sender_for(sqlite_database, server.port).finish(PATIENCE_S)
    assert [json.loads(body)["type"] for _, body in received.came] == ["webhook.test"] * 2
    assert hooks.one(ME, hook.id).disabled_why == "it answers 410"
    assert {one.state for one in hooks.deliveries(ME)} == {DeliveryState.FAILED}


def wait_until(true: Any) -> None:
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


# -- docs/webhooks.md ----------------------------------------------------------------------------------------------


def receiver_of_the_page(secret: str) -> tuple[Any, list[str]]:
    """The receiver that the page shows, with this secret; and what it prints."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    printed: list[str] = []
    names: dict[str, Any] = {"print": lambda *words: printed.append(" ".join(map(str, words)))}
    exec(re.sub(r"whsec_[^\"]+", secret, code), names)
    return names["app"], printed


@pytest.mark.parametrize("right", [True, False])
def test_the_receiver_of_the_page_takes_what_is_signed_and_nothing_else(sqlite_database, hooks, right):
    secret = hooks.rotate(ME).secret
    app, printed = receiver_of_the_page(secret)
    if not right:
        hooks.rotate(ME, 0)
    with served(app) as port:
        hooks.create(ME, f"http://127.0.0.1:{port}/clipmill")
        batch_id = end_a_batch(sqlite_database)
        sender_for(sqlite_database, port).finish(PATIENCE_S)
    found: Delivery = hooks.deliveries(ME)[0]
    assert found.status == (200 if right else 401)
    assert printed == ([f"batch.cancelled {batch_id}"] if right else [])
