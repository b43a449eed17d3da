"""Signatures: as receivers check them, and as the scheme is written down."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from cluster.webhooks.model import SigningSecret
from cluster.webhooks.signing import new_secret, signed_headers


def by_hand(secret: str, message_id: str, timestamp: str, body: bytes) -> str:
    """The signature as https://www.standardwebhooks.com has it, made without the library."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = message_id.encode() + b"." + timestamp.encode() + b"." + body
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


def test_the_example_of_the_scheme_is_signed_as_it_says() -> None:
    secret, body = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", b'{"test": 2432232314}'
    headers = dict(signed_headers([secret], "msg_p5jXN8AQM9LWM0D4loKWxJek", body, 1614265330))
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


@given(st.text(max_size=200), st.floats(min_value=0, max_value=4e9))
def test_a_signature_is_that_of_the_bytes_that_are_sent(text: str, now: float) -> None:
    secret, body = new_secret(), text.encode("utf-8", "replace")
    headers = dict(signed_headers([secret], "evt_1", body, now))
    assert headers["webhook-signature"] == by_hand(secret, "evt_1", str(int(now)), body)


def test_each_secret_is_new_and_has_256_bits() -> None:
    made = {new_secret() for _ in range(50)}
    assert len(made) == 50
    assert all(len(base64.b64decode(one.removeprefix("whsec_"))) == 32 for one in made)


def test_during_the_grace_time_a_receiver_with_either_secret_believes_it() -> None:
    old, new = new_secret(), new_secret()
    secret = SigningSecret(secret=new, created_at=100, previous=old, previous_until=200)
    body = b'{"type":"batch.completed"}'
    during = dict(signed_headers(secret.valid_at(199), "evt_1", body, time.time()))
    after = dict(signed_headers(secret.valid_at(200), "evt_1", body, time.time()))
    for receiver in (old, new):
        assert Webhook(receiver).verify(body, during) == {"type": "batch.completed"}
    assert Webhook(new).verify(body, after)
    with pytest.raises(WebhookVerificationError):
        Webhook(old).verify(body, after)


@pytest.mark.parametrize("changed", ["webhook-id", "webhook-timestamp", "body"])
def test_nothing_can_be_changed_on_the_way(changed: str) -> None:
    secret, body, now = new_secret(), b'{"a":1}', time.time()
    headers = dict(signed_headers([secret], "evt_1", body, now))
    if changed == "body":
        body = b'{"a":2}'
    else:
        headers[changed] = "evt_2" if changed == "webhook-id" else str(int(now) - 1)
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(body, headers)
