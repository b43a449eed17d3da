"""Two ways to speak to a farm: its store on this machine, or its API. Both answer in the API's own shapes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import httpx

from cluster.farm import Farm
from cluster.few_step import FewStep
from cluster.ingest import IncomingRow
from cluster.resolve import Defaults
from cluster.store.desk import IdempotencyConflictError, NoSuchBatchError
from pipeline.problems import BadInputError
from serve.views import batch_view, card_view, job_view

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
    ) -> View:
        """Hand in a detached batch; `overrides` are fields of `Defaults` (`model`, `resolution_class`, `tier`, …)."""
        ...

    def batch(self, batch_id: str) -> View:
        """One batch. Raises `NoSuchBatchError`."""
        ...

    def batches(self) -> list[View]:
        """The newest batches."""
        ...

    def jobs(self, batch_id: str) -> list[View]:
        """All jobs of a batch."""
        ...

    def cancel(self, batch_id: str) -> View:
        """Cancel what has not ended."""
        ...

    def cards(self) -> list[View]:
        """Cards heard of lately."""
        ...


class LocalPort:
    """The farm of a home folder, through its store."""

    def __init__(self, farm: Farm, default_model: str, few_step: Mapping[str, FewStep] | None = None) -> None:
        self.farm = farm
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
    ) -> View:
        """See `FarmPort`."""
        given = Defaults(**({"model": self._default_model, "few_step": self._few_step} | overrides))
        rows = list(rows)
        fingerprint = _fingerprint(rows, given.model_dump(mode="json", exclude={"few_step"}))
        batch = self.farm.submit(rows, given, name=name, source=source, idempotency_key=key, fingerprint=fingerprint)
        return batch_view(batch)

    def batch(self, batch_id: str) -> View:
        """See `FarmPort`."""
        return batch_view(self.farm.batch(batch_id))

    def batches(self) -> list[View]:
        """See `FarmPort`."""
        return [batch_view(b) for b in self.farm.desk.batches(self.farm.owner)]

    def jobs(self, batch_id: str) -> list[View]:
        """See `FarmPort`."""
        return [job_view(j) for j in self.farm.jobs(batch_id)]

    def cancel(self, batch_id: str) -> View:
        """See `FarmPort`."""
        return batch_view(self.farm.cancel(batch_id))

    def cards(self) -> list[View]:
        """See `FarmPort`."""
        return [card_view(beat) for beat in self.farm.desk.cards()]


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
    ) -> View:
        """See `FarmPort`."""
        body = {
            "name": name,
            "source": source,
            "rows": [row.model_dump(mode="json") for row in rows],
            "defaults": overrides,
        }
        return self._call("POST", "/v1/batches", json=body, headers={"Idempotency-Key": key} if key else {})

    def batch(self, batch_id: str) -> View:
        """See `FarmPort`."""
        return self._call("GET", f"/v1/batches/{batch_id}")

    def batches(self) -> list[View]:
        """See `FarmPort`."""
        return list(self._call("GET", "/v1/batches")["data"])

    def jobs(self, batch_id: str) -> list[View]:
        """See `FarmPort`."""
        found: list[View] = []
        while True:
            after = found[-1]["number"] if found else 0
            page = self._call("GET", f"/v1/batches/{batch_id}/jobs", params={"after": after, "limit": 1000})
            found += page["data"]
            if not page["has_more"]:
                return found

    def cancel(self, batch_id: str) -> View:
        """See `FarmPort`."""
        return self._call("POST", f"/v1/batches/{batch_id}/cancel")

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
            raise NoSuchBatchError(message)
        if code == "idempotency_conflict":
            raise IdempotencyConflictError(message)
        if problem := error_body.get("clipmill"):
            raise BadInputError(**problem)
        raise BadInputError(error_body.get("param") or "request", message, "Correct the request.")


def _fingerprint(rows: list[IncomingRow], defaults: View) -> str:
    content = json.dumps([[row.model_dump(mode="json") for row in rows], defaults], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
