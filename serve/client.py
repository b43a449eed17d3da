"""Clients of a farm: through its store on this machine, or through its API. Both answer in the API's shapes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Protocol
from urllib.parse import quote

import httpx

from cluster.catalog.defaults import Defaults, FewStep
from cluster.catalog.ingest import IncomingRow
from cluster.explain.context import why
from cluster.explain.reasons import Rules
from cluster.farm import Farm, whole_card
from cluster.jobs.commands import CardVerb
from cluster.jobs.model import JobState
from cluster.jobs.transitions import Verb
from cluster.store.lookup import NoSuchCardError
from cluster.store.measurements import load_times
from serve.gateway.errors import NO_SUCH_ROUTE, QUOTA_EXCEEDED, AccessRefusedError, error_from
from serve.gateway.requests import BatchCommand, CardCommand, JobCommand, TermFields
from serve.gateway.views import (
    batch_view,
    card_view,
    deletion_view,
    job_view,
    kernels_view,
    order_view,
    why_view,
)
from serve.key_client import KeyClient, LocalKeys, RemoteKeys
from serve.webhook_client import LocalWebhooks, RemoteWebhooks, WebhookClient

View = dict[str, Any]
#: What a farm answers that may answer the same request later: too slow a body, too many at once.
_LATER = frozenset({408, 429})
#: What a farm answers to a key that it does not know, or that may not do this.
_NO_ACCESS = frozenset({401, 403})


class FarmUnreachableError(RuntimeError):
    """No farm answers at the address."""


class FarmClient(Protocol):
    """What commands need of a farm. Every method may raise `FarmUnreachableError`, where it asks a gateway."""

    @property
    def webhooks(self) -> WebhookClient:
        """What commands do with webhooks."""
        ...

    @property
    def keys(self) -> KeyClient:
        """What commands do with keys and quotas."""
        ...

    def put_still(self, data: bytes) -> str:
        """Hand in a still; returns its SHA-256. Raises `BadInputError`."""
        ...

    def submit(
        self,
        rows: Iterable[IncomingRow],
        overrides: View,
        *,
        name: str,
        source: str,
        key: str | None,
        terms: View | None = None,
    ) -> View:
        """Hand in a detached batch; returns its view. Raises `BadInputError` and `IdempotencyConflictError`.

        `overrides` are fields of `Defaults`, `terms` of `TermFields`; the `key` of an earlier call returns its batch.
        """
        ...

    def batch(self, batch_id: str) -> View:
        """The view of a batch. Raises `NoSuchBatchError`."""
        ...

    def batches(self, limit: int = 20, *, everything: bool = False) -> list[View]:
        """Views of the newest batches (up to 100), the newest first; `everything`: see `BatchReader.batches`."""
        ...

    def jobs(self, batch_id: str, *, state: str | None = None, name: str | None = None) -> list[View]:
        """Views of a batch's jobs in its order: all, or those in `state`, or of `name`."""
        ...

    def job(self, job_id: str) -> View:
        """The view of a job. Raises `NoSuchJobError`."""
        ...

    def find(self, text: str) -> str:
        """The whole id of a batch or job by its beginning. Raises `NoSuchJobError` and `AmbiguousIdError`."""
        ...

    def command_batch(self, batch_id: str, verb: Verb, **given: Any) -> View:
        """Carry out `verb` on a batch; returns its view. `given`: fields of `BatchCommand`. Raises `RefusedError`."""
        ...

    def delete_batch(self, batch_id: str, *, dry_run: bool = False) -> View:
        """Delete a batch that is over; returns what went (`dry_run`: what would go).

        Raises `NoSuchBatchError` and `RefusedError`.
        """
        ...

    def command_job(self, job_id: str, verb: Verb, **given: Any) -> View:
        """Carry out `verb` on a job; returns its view. `given`: fields of `JobCommand`. Raises `RefusedError`."""
        ...

    def in_review(self, batch_id: str) -> list[View]:
        """Views of a batch's jobs that somebody has to look at. Raises `NoSuchBatchError`."""
        ...

    def command_card(self, card: str, verb: CardVerb, **given: Any) -> View:
        """Carry out `verb` on a card; returns its id and order. `given`: fields of `CardCommand`.

        Raises `NoSuchCardError`, `AmbiguousIdError` and `RefusedError`.
        """
        ...

    def why(self, job_id: str) -> View:
        """Why a job is where it is, and what would start it. Raises `NoSuchJobError`."""
        ...

    def cards(self) -> list[View]:
        """Views of the cards heard of lately, with the orders that hold for them."""
        ...

    def kernels(self) -> list[View]:
        """What was measured of eager and of compiled kernels, by card kind (`cluster.estimates.kernels`)."""
        ...


class LocalClient:
    """A client of the farm of a home folder, through its store."""

    def __init__(
        self,
        farm: Farm,
        default_model: str,
        few_step: Mapping[str, FewStep] | None = None,
        rules: Rules | None = None,
    ) -> None:
        """`default_model` is for batches that name none, `few_step` says what tier `fast` means, by family.

        `rules` are those that the farm which runs here places jobs by.
        """
        self.farm = farm
        self.webhooks = LocalWebhooks(farm)
        self.keys = LocalKeys(farm.batch_store.database)
        self._rules = rules or Rules()
        self._default_model = default_model
        self._few_step = few_step or {}

    def put_still(self, data: bytes) -> str:
        """Hand in a still; returns its SHA-256. Raises `BadInputError`."""
        return self.farm.put_still(data)

    def submit(
        self,
        rows: Iterable[IncomingRow],
        overrides: View,
        *,
        name: str,
        source: str,
        key: str | None,
        terms: View | None = None,
    ) -> View:
        """Hand in a detached batch; returns its view. Raises `BadInputError` and `IdempotencyConflictError`.

        `overrides` are fields of `Defaults`, `terms` of `TermFields`; the `key` of an earlier call returns its batch.
        """
        given = Defaults(**({"model": self._default_model, "few_step": self._few_step} | overrides))
        rows = list(rows)
        held = TermFields.model_validate(terms or {})
        facts = given.model_dump(mode="json", exclude={"few_step"}) | held.model_dump(exclude_defaults=True)
        batch = self.farm.submit(
            rows,
            given,
            name=name,
            source=source,
            idempotency_key=key,
            fingerprint=_fingerprint(rows, facts),
            terms=held.terms(),
        )
        return batch_view(batch)

    def batch(self, batch_id: str) -> View:
        """The view of a batch. Raises `NoSuchBatchError`."""
        return batch_view(self.farm.batch(batch_id))

    def batches(self, limit: int = 20, *, everything: bool = False) -> list[View]:
        """Views of the newest batches (up to 100), the newest first; `everything`: see `BatchReader.batches`."""
        return [batch_view(b) for b in self.farm.batch_store.batches(self.farm.owner, limit, everything=everything)]

    def jobs(self, batch_id: str, *, state: str | None = None, name: str | None = None) -> list[View]:
        """Views of a batch's jobs in its order: all, or those in `state`, or of `name`."""
        wanted = JobState(state) if state else None
        return [job_view(j) for j in self.farm.batch_store.jobs(self.farm.owner, batch_id, state=wanted, name=name)]

    def job(self, job_id: str) -> View:
        """The view of a job. Raises `NoSuchJobError`."""
        return job_view(self.farm.batch_store.job(self.farm.owner, job_id))

    def find(self, text: str) -> str:
        """The whole id of a batch or job by its beginning. Raises `NoSuchJobError` and `AmbiguousIdError`."""
        return self.farm.batch_store.find(self.farm.owner, text)

    def command_batch(self, batch_id: str, verb: Verb, **given: Any) -> View:
        """Carry out `verb` on a batch; returns its view. `given`: fields of `BatchCommand`. Raises `RefusedError`."""
        command = BatchCommand.model_validate(given)
        batch = self.farm.command_batch(
            batch_id, verb, priority=command.priority or 0, cancelled=command.cancelled, limits=command.limits()
        )
        return batch_view(batch)

    def delete_batch(self, batch_id: str, *, dry_run: bool = False) -> View:
        """Delete a batch that is over; returns what went (`dry_run`: what would go).

        Raises `NoSuchBatchError` and `RefusedError`.
        """
        return deletion_view(self.farm.delete_batch(batch_id, dry_run=dry_run))

    def command_job(self, job_id: str, verb: Verb, **given: Any) -> View:
        """Carry out `verb` on a job; returns its view. `given`: fields of `JobCommand`. Raises `RefusedError`."""
        command = JobCommand.model_validate(given)
        return job_view(self.farm.command_job(job_id, verb, priority=command.priority or 0, change=command.change()))

    def in_review(self, batch_id: str) -> list[View]:
        """Views of a batch's jobs that somebody has to look at. Raises `NoSuchBatchError`."""
        return [job_view(job) for job in self.farm.batch_store.in_review(self.farm.owner, batch_id)]

    def command_card(self, card: str, verb: CardVerb, **given: Any) -> View:
        """Carry out `verb` on a card; returns its id and order. `given`: fields of `CardCommand`.

        Raises `NoSuchCardError`, `AmbiguousIdError` and `RefusedError`.
        """
        command = CardCommand.model_validate(given)
        whole, order = self.farm.command_card(card, verb, reason=command.reason, for_s=command.for_s)
        return {"object": "card", "card": whole, "order": order_view(order)}

    def why(self, job_id: str) -> View:
        """Why a job is where it is, and what would start it. Raises `NoSuchJobError`."""
        return why_view(why(self.farm.batch_store.database, self.farm.owner, job_id, self._rules))

    def cards(self) -> list[View]:
        """Views of the cards heard of lately, with the orders that hold for them."""
        orders = self.farm.commands.orders()
        return [card_view(beat, orders.get(beat.card)) for beat in self.farm.batch_store.cards()]

    def kernels(self) -> list[View]:
        """What was measured of eager and of compiled kernels, by card kind."""
        return kernels_view(load_times(self.farm.batch_store.database))


class RemoteClient:
    """A client of a farm by the URL of its gateway; a request waits `timeout_s` seconds for its answer.

    Every method may raise `AccessRefusedError`.
    """

    def __init__(self, url: str, timeout_s: float = 60, *, key: str | None = None) -> None:
        """`key`: shown with every request; None: none is. Redirects are not followed, so nobody else gets it."""
        # An address as people write it.
        self.url = (url if "://" in url else f"http://{url}").rstrip("/")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(base_url=self.url, timeout=timeout_s, headers=headers)
        self.webhooks = RemoteWebhooks(self._call)
        self.keys = RemoteKeys(self._call)

    def put_still(self, data: bytes) -> str:
        """Hand in a still; returns its SHA-256. Raises `BadInputError`."""
        return str(self._call("PUT", "/v1/stills", content=data)["sha256"])

    def submit(
        self,
        rows: Iterable[IncomingRow],
        overrides: View,
        *,
        name: str,
        source: str,
        key: str | None,
        terms: View | None = None,
    ) -> View:
        """Hand in a detached batch; returns its view. Raises `BadInputError` and `IdempotencyConflictError`.

        `overrides` are fields of `Defaults`, `terms` of `TermFields`; the `key` of an earlier call returns its batch.
        """
        body = {
            "name": name,
            "source": source,
            "rows": [row.model_dump(mode="json") for row in rows],
            "defaults": overrides,
            **(terms or {}),
        }
        view = self._call("POST", "/v1/batches", json=body, headers={"Idempotency-Key": key} if key else {})
        # Told again, with the rest, by whoever lists the batch's rows.
        view.pop("refused", None)
        return view

    def batch(self, batch_id: str) -> View:
        """The view of a batch. Raises `NoSuchBatchError`."""
        return self._call("GET", f"/v1/batches/{batch_id}")

    def batches(self, limit: int = 20, *, everything: bool = False) -> list[View]:
        """Views of the newest batches (up to 100), the newest first; `everything`: see `BatchReader.batches`."""
        return list(self._call("GET", "/v1/batches", params={"limit": limit, "everything": everything})["data"])

    def jobs(self, batch_id: str, *, state: str | None = None, name: str | None = None) -> list[View]:
        """Views of a batch's jobs in its order: all, or those in `state`, or of `name`."""
        return self._jobs(batch_id, {k: value for k, value in (("state", state), ("name", name)) if value is not None})

    def in_review(self, batch_id: str) -> list[View]:
        """Views of a batch's jobs that somebody has to look at. Raises `NoSuchBatchError`."""
        return self._jobs(batch_id, {"review": True})

    def _jobs(self, batch_id: str, asked: Mapping[str, Any]) -> list[View]:
        found: list[View] = []
        while True:
            after = found[-1]["number"] if found else 0
            page = self._call("GET", f"/v1/batches/{batch_id}/jobs", params={**asked, "after": after, "limit": 1000})
            found += page["data"]
            if not page["has_more"]:
                return found

    def job(self, job_id: str) -> View:
        """The view of a job. Raises `NoSuchJobError`."""
        return self._call("GET", f"/v1/jobs/{_segment(job_id)}")

    def find(self, text: str) -> str:
        """The whole id of a batch or job by its beginning. Raises `NoSuchJobError` and `AmbiguousIdError`."""
        return str(self._call("GET", "/v1/ids", params={"begins": text})["id"])

    def command_batch(self, batch_id: str, verb: Verb, **given: Any) -> View:
        """Carry out `verb` on a batch; returns its view. `given`: fields of `BatchCommand`. Raises `RefusedError`."""
        return self._call("POST", f"/v1/batches/{_segment(batch_id)}/{verb.value}", json=given)

    def delete_batch(self, batch_id: str, *, dry_run: bool = False) -> View:
        """Delete a batch that is over; returns what went (`dry_run`: what would go).

        Raises `NoSuchBatchError` and `RefusedError`.
        """
        return self._call("DELETE", f"/v1/batches/{_segment(batch_id)}", params={"dry_run": dry_run})

    def command_job(self, job_id: str, verb: Verb, **given: Any) -> View:
        """Carry out `verb` on a job; returns its view. `given`: fields of `JobCommand`. Raises `RefusedError`."""
        return self._call("POST", f"/v1/jobs/{_segment(job_id)}/{verb.value}", json=given)

    def command_card(self, card: str, verb: CardVerb, **given: Any) -> View:
        """Carry out `verb` on a card; returns its id and order. `given`: fields of `CardCommand`.

        Raises `NoSuchCardError`, `AmbiguousIdError` and `RefusedError`.
        """
        # The route takes whole ids. A card that is silent and under an order is not listed, and is named whole.
        with suppress(NoSuchCardError):
            card = whole_card(card, {str(view["card"]) for view in self.cards()})
        return self._call("POST", f"/v1/cards/{_segment(card)}/{verb.value}", json=given)

    def why(self, job_id: str) -> View:
        """Why a job is where it is, and what would start it. Raises `NoSuchJobError`."""
        return self._call("GET", f"/v1/jobs/{_segment(job_id)}/why")

    def cards(self) -> list[View]:
        """Views of the cards heard of lately, with the orders that hold for them."""
        return list(self._call("GET", "/v1/cards")["data"])

    def whoami(self) -> View:
        """Whose work this client sees and hands in, and what it may do."""
        return self._call("GET", "/v1/session")

    def results(self, batch_id: str, *, completed_since: int | None, page: int) -> Iterator[View]:
        """A batch's results as the API shows them, in its order; asked for `page` at a time."""
        after = -1
        since = {} if completed_since is None else {"completed_since": completed_since}
        while True:
            asked = since | {"after": after, "limit": page}
            found = self._call("GET", f"/v1/batches/{_segment(batch_id)}/results", params=asked)
            # How files are marked, which is one for all rows; a farm of before does not tell.
            yield from (one | {"marks": found.get("marks", "")} for one in found["data"])
            if not found["has_more"]:
                return
            after = found["data"][-1]["place"]

    @contextmanager
    def content(self, video_id: str, variant: str) -> Iterator[Iterator[bytes] | None]:
        """A file of a video, part by part as it comes; None where it is gone. Raises `FarmUnreachableError`."""
        path = f"/v1/videos/{_segment(video_id)}/content"
        try:
            with self._http.stream("GET", path, params={"variant": variant}) as response:
                if response.status_code == 404:
                    yield None
                elif response.is_success:
                    yield response.iter_bytes()
                elif response.status_code in _NO_ACCESS:
                    raise AccessRefusedError(f"the file of {video_id} is not for this key. {self._log_in()}")
                else:
                    raise FarmUnreachableError(f"{self.url}{path} answered {response.status_code}")
        except httpx.HTTPError as error:
            raise FarmUnreachableError(f"the file of {video_id} broke off ({type(error).__name__})") from error

    def still(self, sha256: str) -> bytes | None:
        """A still that was handed in; None where it is gone. Raises `FarmUnreachableError`."""
        try:
            response = self._http.get(f"/v1/files/file-{_segment(sha256)}/content")
        except httpx.HTTPError as error:
            raise FarmUnreachableError(f"the still {sha256} broke off ({type(error).__name__})") from error
        return response.content if response.is_success else None

    def kernels(self) -> list[View]:
        """What was measured of eager and of compiled kernels, by card kind; nothing by a farm of before."""
        return list(self._call("GET", "/v1/cards").get("kernels", ()))

    def _call(self, method: str, path: str, **kwargs: Any) -> View:
        try:
            response = self._http.request(method, path, **kwargs)
        except httpx.HTTPError as error:
            raise FarmUnreachableError(
                f"no farm answers at {self.url} ({type(error).__name__}). Start one with `clipmill up`, "
                "or give another address by --url or CLIPMILL_URL."
            ) from error
        try:
            body = dict(response.json())
            if response.is_success:
                return body
            failure = dict(body["error"])
            code, message = failure["code"], str(failure["message"])
        except (ValueError, KeyError, TypeError):
            raise FarmUnreachableError(
                f"{self.url}{path} answered {response.status_code}, not as a farm does"
            ) from None
        refusal = error_from(failure)
        if isinstance(refusal, AccessRefusedError):
            raise AccessRefusedError(f"{refusal} {self._log_in()}")
        if code != QUOTA_EXCEEDED and (
            response.status_code >= 500 or response.status_code in _LATER or code == NO_SUCH_ROUTE
        ):
            raise FarmUnreachableError(f"the farm at {self.url} cannot do it now ({response.status_code}): {message}")
        raise refusal

    def _log_in(self) -> str:
        return f"`clipmill login {self.url}` keeps a key for this farm; CLIPMILL_KEY gives one."


def _segment(text: str) -> str:
    """`text` escaped, so that it is one segment of a path whatever somebody typed."""
    return quote(text, safe="")


def _fingerprint(rows: list[IncomingRow], defaults: View) -> str:
    # Not what was noted: another version may say the same of the same rows in other words.
    sent = [row.model_dump(mode="json", exclude={"row": {"notes"}}) for row in rows]
    content = json.dumps([sent, defaults], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
