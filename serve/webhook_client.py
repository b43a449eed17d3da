"""Webhooks of a farm for commands: through its store on this machine, or through its API."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol
from urllib.parse import quote

from cluster.farm import Farm
from cluster.jobs.ids import beginning
from cluster.store.lookup import AmbiguousIdError
from cluster.store.webhooks.registry import NoSuchWebhookError, WebhookStore
from cluster.webhooks.events import EventType
from serve.gateway.webhooks.bodies import NewWebhook, NewWebhookSecret
from serve.gateway.webhooks.views import delivery_view, secret_view, webhook_view

View = dict[str, Any]


class WebhookClient(Protocol):
    """What commands do with webhooks. Methods that name one take whole ids, and raise `NoSuchWebhookError`."""

    def create(self, url: str, events: Sequence[EventType], description: str) -> View:
        """Register a URL; the view has the `secret` where it was made now. Raises `BadInputError`."""
        ...

    def all(self) -> list[View]:
        """Views of the webhooks, the oldest first."""
        ...

    def delete(self, webhook_id: str) -> None:
        """Send nothing to a webhook any more."""
        ...

    def enable(self, webhook_id: str) -> View:
        """Send to a webhook again that was disabled; returns its view."""
        ...

    def test(self, webhook_id: str) -> View:
        """Send a test; returns the view of the message."""
        ...

    def rotate(self, grace_s: int) -> View:
        """Make a new secret, with which the one before signs for so many seconds; returns the view that shows it."""
        ...

    def deliveries(self, webhook_id: str | None, limit: int) -> list[View]:
        """Views of messages (up to 100), the newest first: of a webhook, or (None) to every URL."""
        ...


class LocalWebhooks:
    """Webhooks of the farm of a home folder, through its store."""

    def __init__(self, farm: Farm) -> None:
        self._owner = farm.owner
        self._store = WebhookStore(farm.batch_store.database)

    def create(self, url: str, events: Sequence[EventType], description: str) -> View:
        """Register a URL; the view has the `secret` where it was made now. Raises `BadInputError`."""
        asked = NewWebhook(url=url, events=list(events), description=description)
        made, secret = self._store.create(self._owner, asked.url, events=asked.events, description=asked.description)
        return webhook_view(made, secret)

    def all(self) -> list[View]:
        """Views of the webhooks, the oldest first."""
        return [webhook_view(one) for one in self._store.all(self._owner)]

    def delete(self, webhook_id: str) -> None:
        """Send nothing to a webhook any more."""
        self._store.delete(self._owner, webhook_id)

    def enable(self, webhook_id: str) -> View:
        """Send to a webhook again that was disabled; returns its view."""
        return webhook_view(self._store.enable(self._owner, webhook_id))

    def test(self, webhook_id: str) -> View:
        """Send a test; returns the view of the message."""
        return delivery_view(self._store.test(self._owner, webhook_id))

    def rotate(self, grace_s: int) -> View:
        """Make a new secret, with which the one before signs for so many seconds; returns the view that shows it."""
        return secret_view(self._store.rotate(self._owner, NewWebhookSecret(grace_s=grace_s).grace_s))

    def deliveries(self, webhook_id: str | None, limit: int) -> list[View]:
        """Views of messages (up to 100), the newest first: of a webhook, or (None) to every URL."""
        return [delivery_view(one) for one in self._store.deliveries(self._owner, webhook_id=webhook_id, limit=limit)]


class RemoteWebhooks:
    """Webhooks of a farm by its API."""

    def __init__(self, call: Callable[..., View]) -> None:
        """`call` asks the farm: method, path, and arguments as httpx takes them."""
        self._call = call

    def create(self, url: str, events: Sequence[EventType], description: str) -> View:
        """Register a URL; the view has the `secret` where it was made now. Raises `BadInputError`."""
        body = {"url": url, "events": [event.value for event in events], "description": description}
        return self._call("POST", "/v1/webhooks", json=body)

    def all(self) -> list[View]:
        """Views of the webhooks, the oldest first."""
        return list(self._call("GET", "/v1/webhooks")["data"])

    def delete(self, webhook_id: str) -> None:
        """Send nothing to a webhook any more."""
        self._call("DELETE", _path(webhook_id))

    def enable(self, webhook_id: str) -> View:
        """Send to a webhook again that was disabled; returns its view."""
        return self._call("POST", f"{_path(webhook_id)}/enable")

    def test(self, webhook_id: str) -> View:
        """Send a test; returns the view of the message."""
        return self._call("POST", f"{_path(webhook_id)}/test")

    def rotate(self, grace_s: int) -> View:
        """Make a new secret, with which the one before signs for so many seconds; returns the view that shows it."""
        return self._call("POST", "/v1/webhooks/rotate", json={"grace_s": grace_s})

    def deliveries(self, webhook_id: str | None, limit: int) -> list[View]:
        """Views of messages (up to 100), the newest first: of a webhook, or (None) to every URL."""
        asked = {"limit": limit} | ({"webhook": webhook_id} if webhook_id else {})
        return list(self._call("GET", "/v1/webhooks/deliveries", params=asked)["data"])


def whole_webhook(begins: str, known: Sequence[View]) -> str:
    """The id of the one webhook among `known` whose id begins so, with or without its prefix.

    Raises `NoSuchWebhookError` and `AmbiguousIdError`.
    """
    found = beginning(begins, [str(view["id"]) for view in known], "webhook_")
    if len(found) == 1:
        return found[0]
    if found:
        raise AmbiguousIdError(f"{len(found)} webhooks begin with {begins!r}: write more of it")
    raise NoSuchWebhookError(f"there is no webhook {begins!r}; `clipmill webhooks list` lists those there are")


def _path(webhook_id: str) -> str:
    return f"/v1/webhooks/{quote(webhook_id, safe='')}"
