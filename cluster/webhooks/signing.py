"""Signatures by the Standard Webhooks scheme (https://www.standardwebhooks.com), made by its own library. Pure."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime

from standardwebhooks import Webhook as Signer

#: Bytes of a secret; the scheme asks for 24 to 64.
_SECRET_BYTES = 32
#: What a secret begins with, by which scanners of code find one that was committed.
SECRET_PREFIX = "whsec_"  # noqa: S105 (a prefix, no secret)


def new_secret() -> str:
    """A random secret as receivers are given it: `whsec_` and base64."""
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def signed_headers(valid: Sequence[str], message_id: str, body: bytes, now: float) -> list[tuple[str, str]]:
    """The headers of one attempt to send `body`, signed with each of the secrets `valid`.

    `now` (UTC epoch seconds) is that attempt's own, for receivers refuse what is older than minutes.
    """
    # Whole seconds: they are what is signed.
    at = datetime.fromtimestamp(int(now), UTC)
    signatures = [Signer(secret).sign(message_id, at, body.decode()) for secret in valid]
    return [
        ("webhook-id", message_id),
        ("webhook-timestamp", str(int(now))),
        ("webhook-signature", " ".join(signatures)),
    ]
