"""Two ways to speak to a farm: its store on this machine, or its API. Both answer in the API's own shapes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Protocol
from urllib.parse import quote

import httpx

from cluster.farm import Farm
from cluster.few_step import FewStep
from cluster.ingest import IncomingRow
from cluster.jobs import JobState
from cluster.resolve import Defaults
from cluster.store.desk import IdempotencyConflictError
from cluster.store.lookup import AmbiguousIdError, NoSuchBatchError, NoSuchCardError, NoSuchJobError
from cluster.store.scene import why
from cluster.verbs import CardVerb, RefusedError, Verb
from cluster.why import Rules
from pipeline.problems import BadInputError
from serve.said import OfBatch, OfCard, OfJob, TermFields
from serve.views import batch_view, card_view, job_view, order_view, why_view

View = dict[str, Any]


class FarmUnreachableError(RuntimeError):
    """No farm answers at the address."""


class FarmPort(Protocol):
    """What CLI commands need of a farm."""

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
        """Hand in a detached batch; `overrides` are fields of `Defaults` (`model`, `resolution_class`, `tier`, …).

        `terms` are fields of `TermFields`: when the batch is held.
        """
        ...

    def batch(self, batch_id: str) -> View:
        """One batch. Raises `NoSuchBatchError`."""
        ...

    def batches(self) -> list[View]:
        """The newest batches."""
        ...

    def jobs(self, batch_id: str, *, state: str | None = None, name: str | None = None) -> list[View]:
        """Jobs of a batch: all, or those in a state, or of a name."""
        ...

    def job(self, job_id: str) -> View:
        """One job. Raises `NoSuchJobError`."""
        ...

    def find(self, text: str) -> str:
        """The whole id of a batch or job by its beginning."""
        ...

    def say(self, batch_id: str, verb: Verb, **given: Any) -> View:
        """Say `verb` of a batch; `given` are fields of `OfBatch`. Raises `RefusedError`."""
        ...

    def say_of_job(self, job_id: str, verb: Verb, **given: Any) -> View:
        """Say `verb` of a job; `given` are fields of `OfJob`. Raises `RefusedError`."""
        ...

    def say_of_card(self, card: str, verb: CardVerb, **given: Any) -> View:
        """Say `verb` of a card; `given` are fields of `OfCard`. Raises `RefusedError`."""
        ...

    def why(self, job_id: str) -> View:
        """Why a job is where it is, and what would start it. Raises `NoSuchJobError`."""
        ...

    def cards(self) -> list[View]:
        """Cards heard of lately."""
        ...


class LocalPort:
    """The farm of a home folder, through its store."""

    def __init__(
        self,
        farm: Farm,
        default_model: str,
        few_step: Mapping[str, FewStep] | None = None,
        rules: Rules | None = None,
    ) -> None:
        """`rules`: what the farm that runs here says of placement."""
        self.farm = farm
        self._rules = rules or Rules()
        self._default_model = default_model
        self._few_step = few_step or {}

    def put_still(self, data: bytes) -> str:
        """See `FarmPort`."""
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
        """See `FarmPort`."""
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
        """See `FarmPort`."""
        return batch_view(self.farm.batch(batch_id))

    def batches(self) -> list[View]:
        """See `FarmPort`."""
        return [batch_view(b) for b in self.farm.desk.batches(self.farm.owner)]

    def jobs(self, batch_id: str, *, state: str | None = None, name: str | None = None) -> list[View]:
        """See `FarmPort`."""
        wanted = JobState(state) if state else None
        return [job_view(j) for j in self.farm.desk.jobs(self.farm.owner, batch_id, state=wanted, name=name)]

    def job(self, job_id: str) -> View:
        """See `FarmPort`."""
        return job_view(self.farm.desk.job(self.farm.owner, job_id))

    def find(self, text: str) -> str:
        """See `FarmPort`."""
        return self.farm.desk.find(self.farm.owner, text)

    def say(self, batch_id: str, verb: Verb, **given: Any) -> View:
        """See `FarmPort`."""
        said = OfBatch.model_validate(given)
        batch = self.farm.say(
            batch_id, verb, priority=said.priority or 0, cancelled=said.cancelled, limits=said.limits()
        )
        return batch_view(batch)

    def say_of_job(self, job_id: str, verb: Verb, **given: Any) -> View:
        """See `FarmPort`."""
        return job_view(self.farm.say_of_job(job_id, verb, priority=OfJob.model_validate(given).priority or 0))

    def say_of_card(self, card: str, verb: CardVerb, **given: Any) -> View:
        """See `FarmPort`."""
        said = OfCard.model_validate(given)
        whole, order = self.farm.say_of_card(card, verb, reason=said.reason, for_s=said.for_s)
        return {"object": "card", "card": whole, "order": order_view(order)}

    def why(self, job_id: str) -> View:
        """See `FarmPort`."""
        return why_view(why(self.farm.desk.database, self.farm.owner, job_id, self._rules))

    def cards(self) -> list[View]:
        """See `FarmPort`."""
        orders = self.farm.verbs.orders()
        return [card_view(beat, orders.get(beat.card)) for beat in self.farm.desk.cards()]


class RemotePort:
    """A farm by the URL of its gateway."""

    def __init__(self, url: str, timeout_s: float = 60) -> None:
        self.url = url.rstrip("/")
        self._http = httpx.Client(base_url=self.url, timeout=timeout_s)

    def put_still(self, data: bytes) -> str:
        """See `FarmPort`."""
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
        """See `FarmPort`."""
        body = {
            "name": name,
            "source": source,
            "rows": [row.model_dump(mode="json") for row in rows],
            "defaults": overrides,
            **(terms or {}),
        }
        return self._call("POST", "/v1/batches", json=body, headers={"Idempotency-Key": key} if key else {})

    def batch(self, batch_id: str) -> View:
        """See `FarmPort`."""
        return self._call("GET", f"/v1/batches/{batch_id}")

    def batches(self) -> list[View]:
        """See `FarmPort`."""
        return list(self._call("GET", "/v1/batches")["data"])

    def jobs(self, batch_id: str, *, state: str | None = None, name: str | None = None) -> list[View]:
        """See `FarmPort`."""
        found: list[View] = []
        asked = {key: value for key, value in (("state", state), ("name", name)) if value is not None}
        while True:
            after = found[-1]["number"] if found else 0
            page = self._call("GET", f"/v1/batches/{batch_id}/jobs", params=asked | {"after": after, "limit": 1000})
            found += page["data"]
            if not page["has_more"]:
                return found

    def job(self, job_id: str) -> View:
        """See `FarmPort`."""
        return self._call("GET", f"/v1/jobs/{_segment(job_id)}")

    def find(self, text: str) -> str:
        """See `FarmPort`."""
        return str(self._call("GET", "/v1/ids", params={"begins": text})["id"])

    def say(self, batch_id: str, verb: Verb, **given: Any) -> View:
        """See `FarmPort`."""
        return self._call("POST", f"/v1/batches/{_segment(batch_id)}/{verb.value}", json=given)

    def say_of_job(self, job_id: str, verb: Verb, **given: Any) -> View:
        """See `FarmPort`."""
        return self._call("POST", f"/v1/jobs/{_segment(job_id)}/{verb.value}", json=given)

    def say_of_card(self, card: str, verb: CardVerb, **given: Any) -> View:
        """See `FarmPort`."""
        return self._call("POST", f"/v1/cards/{_segment(card)}/{verb.value}", json=given)

    def why(self, job_id: str) -> View:
        """See `FarmPort`."""
        return self._call("GET", f"/v1/jobs/{_segment(job_id)}/why")

    def cards(self) -> list[View]:
        """See `FarmPort`."""
        return list(self._call("GET", "/v1/cards")["data"])

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
            error_body = dict(body["error"])
            code, message = error_body["code"], str(error_body["message"])
        except (ValueError, KeyError, TypeError):
            raise FarmUnreachableError(
                f"{self.url}{path} answered {response.status_code}, not as a farm does"
            ) from None
        if response.status_code >= 500 or code == "no_such_route":
            raise FarmUnreachableError(f"the farm at {self.url} cannot do it now ({response.status_code}): {message}")
        if response.status_code == 404:
            named = {"job_id": NoSuchJobError, "card": NoSuchCardError}
            raise named.get(str(error_body.get("param")), NoSuchBatchError)(message)
        if code == "refused":
            raise RefusedError.told(message)
        if code == "ambiguous_id":
            raise AmbiguousIdError(message)
        if code == "idempotency_conflict":
            raise IdempotencyConflictError(message)
        if problem := error_body.get("clipmill"):
            raise BadInputError(**problem)
        raise BadInputError(error_body.get("param") or "request", message, "Correct the request.")


def _segment(text: str) -> str:
    """As one segment of a path, whatever somebody typed."""
    return quote(text, safe="")


def _fingerprint(rows: list[IncomingRow], defaults: View) -> str:
    content = json.dumps([[row.model_dump(mode="json") for row in rows], defaults], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
