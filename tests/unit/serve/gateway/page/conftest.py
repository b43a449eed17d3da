"""One gateway over a store with every kind of batch, for all tests that only look."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from starlette.testclient import TestClient

from serve.gateway.api import create_api, protect
from tests.page_store import PageFarm, fill, nobody, page_farm


@dataclass(frozen=True)
class Shown:
    """The gateway, its store, and the batches in it by what they are."""

    http: TestClient
    it: PageFarm
    ids: dict[str, str]

    def job(self, batch: str, number: int = 0) -> str:
        return self.it.jobs(self.ids[batch])[number].id

    def page(self, path: str, status: int = 200) -> str:
        """The page at `path`, as a browser asks for it."""
        answer = self.http.get(path, headers={"Accept": "text/html,*/*"})
        assert answer.status_code == status, answer.text[:500]
        assert answer.headers["content-type"].startswith("text/html")
        return answer.text

    def paths(self) -> list[str]:
        """Every page that there is."""
        batches = [f"/batches/{batch}" for batch in self.ids.values()]
        jobs = [f"/clips/{job.id}" for batch in self.ids.values() for job in self.it.jobs(batch)]
        return ["/", "/?everything=true", "/cards", "/new", *batches, *jobs]


def client_of(it: PageFarm) -> TestClient:
    """The application over a store, as a client on its own machine sees it."""
    api = protect(create_api(it.farm, default_model="camera", nudge=nobody))
    return TestClient(api, base_url="http://localhost", raise_server_exceptions=False)


@pytest.fixture(scope="session")
def shown(tmp_path_factory: Any) -> Iterator[Shown]:
    with page_farm(tmp_path_factory.mktemp("page"), films=False) as it:
        ids = fill(it)
        # Cards are shown while they are heard: here nothing beats, so the store's clock stands still.
        now = it.farm.batch_store.now()
        it.database.now = lambda _connection: now  # type: ignore[method-assign]
        yield Shown(client_of(it), it, ids)


@pytest.fixture
def empty(tmp_path: Any) -> Iterator[PageFarm]:
    with page_farm(tmp_path, films=False) as it:
        yield it
