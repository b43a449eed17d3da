"""A gateway that asks for keys, two owners with work on it, and a key of every kind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from cluster.access.scopes import Scope
from cluster.farm import Farm
from cluster.fleet.cards import Fleet
from cluster.storage import Storage
from cluster.store import BatchStore, Database
from cluster.store.access.keys import KeyStore
from cluster.store.gauges import Figures
from serve.gateway.access.callers import CallerLookup
from serve.gateway.access.gate import AccessTerms
from serve.gateway.api import create_api, protect
from serve.gateway.metrics import store_registry
from tests.building import still_png

#: A look-up of the gateway under test holds for so long by the gateway's own clock, which tests set on.
KEPT_S = 3.0


class Ticks:
    """The gateway's own clock, which stands still."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def nobody() -> None:
    """Nobody is nudged."""


@dataclass
class Gated:
    """A gateway, its store, and what opens it."""

    http: TestClient
    database: Database
    farm: Farm
    ticks: Ticks
    lookup: CallerLookup
    api: Any
    #: Texts of keys by owner and scopes.
    texts: dict[str, str] = field(default_factory=dict)

    @property
    def keys(self) -> KeyStore:
        return KeyStore(self.database)

    def key(self, owner: str, *scopes: Scope) -> str:
        """The text of a key of `owner` with these scopes (none: the usual ones), made when first asked for."""
        name = f"{owner} {sorted(scopes)}"
        if name not in self.texts:
            made = self.keys.create(owner, scopes or (Scope.SUBMIT, Scope.READ))
            self.texts[name] = made[1].text
        return self.texts[name]

    def ask(self, method: str, path: str, key: str | None = None, **kwargs: Any) -> Any:
        headers = dict(kwargs.pop("headers", {}))
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        return self.http.request(method, path, headers=headers, **kwargs)

    def refused(self, answer: Any, status: int, code: str) -> dict[str, Any]:
        """The error of a refusal, in OpenAI's form and with a remedy."""
        assert answer.status_code == status, answer.text
        error = answer.json()["error"]
        assert error["code"] == code, error
        assert error["type"] == "invalid_request_error"
        assert error["message"]
        assert error["remedy"]
        return dict(error)


def gated(database: Database, storage: Path, *, required: bool = True) -> tuple[Any, Farm, Ticks, CallerLookup]:
    """A protected application over the store that asks for keys, and its parts."""
    farm = Farm(BatchStore(database), Storage(storage))
    ticks = Ticks()
    lookup = CallerLookup(database, kept_s=KEPT_S, clock=ticks)
    registry = store_registry(Figures(database, Fleet(usable_bytes={})))
    api = create_api(
        farm,
        default_model="camera",
        nudge=nobody,
        registry=registry,
        access=AccessTerms(lookup=lookup, required=required),
    )
    return protect(api), farm, ticks, lookup


@contextmanager
def opened(database: Database, storage: Path) -> Iterator[Gated]:
    """A gateway that answers, with what opens it."""
    api, farm, ticks, lookup = gated(database, storage)
    with TestClient(api, base_url="http://localhost", raise_server_exceptions=False) as http:
        yield Gated(http=http, database=database, farm=farm, ticks=ticks, lookup=lookup, api=api)


@pytest.fixture
def gate(sqlite_database: Database, tmp_path: Path) -> Iterator[Gated]:
    with opened(sqlite_database, tmp_path / "storage") as found:
        yield found


@dataclass(frozen=True)
class Work:
    """What one owner handed in over HTTP."""

    batch: str
    job: str
    video: str
    file: str
    manifest: str

    def ids(self) -> dict[str, list[str]]:
        """Values of the parameters of paths."""
        return {
            "batch_id": [self.batch],
            "job_id": [self.job, self.video],
            "video_id": [self.job, self.video],
            "file_id": [self.file, self.manifest],
        }


def hand_in(gate: Gated, key: str, seed: int) -> Work:
    """A batch, a video, a picture and a manifest of the key's owner."""
    file = gate.ask("POST", "/v1/files", key, files={"file": ("a.png", still_png(seed=seed))}).json()["id"]
    sha256 = file.removeprefix("file-")
    row = {"still": sha256, "name": "A", "prompt": f"pan left {seed}"}
    batch = gate.ask("POST", "/v1/batches", key, json={"name": f"of {seed}", "rows": [row]}).json()["id"]
    job = gate.ask("GET", f"/v1/batches/{batch}/jobs", key).json()["data"][0]["id"]
    asked = {"prompt": f"zoom in {seed}", "input_reference": {"file_id": file}, "model": "camera"}
    video = gate.ask("POST", "/v1/videos", key, json=asked).json()["id"]
    data = {"file": (f"catalog{seed}.csv", b"id,image\nA,a.png\n" + b"#" * seed, "text/csv")}
    manifest = gate.ask("POST", "/v1/files", key, files=data, data={"purpose": "batch"}).json()["id"]
    return Work(batch=batch, job=job, video=video, file=file, manifest=manifest)
