"""A gateway behind a real server, and a farm whose clips are made by the test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from cluster.dispatch.retry import after_attempt
from cluster.farm import Farm
from cluster.jobs.model import Outcome
from cluster.jobs.outcomes import Completed, Ended
from cluster.remote.stills import RemoteStills
from cluster.storage import Storage
from cluster.store import BatchStore, Claim, DispatchStore
from serve.gateway.api import create_api, protect
from tests.building import FLEET, claim_one, ended_with, objects
from tests.served import served as serving

VIDEO, POSTER, SHEET = bytes(range(256)) * 9000, b"\xff\xd8poster", b"\xff\xd8sheet"


class Cards:
    """What dispatcher and renderers do, when the test says so."""

    def __init__(self, farm: Farm) -> None:
        self.farm = farm
        self.store = DispatchStore(farm.batch_store.database)
        self.store.take_office("test")

    def start(self, video_id: str) -> Claim:
        return claim_one(self.store, self.farm.batch_store.job(self.farm.owner, video_id))

    def complete(self, claim: Claim) -> None:
        # As renderers name them: by job and attempt.
        ended = Completed(objects=objects(f"{claim.job.id}/{claim.attempt_id}"))
        for key, data in zip(
            (ended.objects.video, ended.objects.poster, ended.objects.spritesheet), (VIDEO, POSTER, SHEET), strict=True
        ):
            self.farm.storage.put_bytes(key, data)
        self.end(claim, ended)

    def fail(self, claim: Claim, outcome: Outcome, **facts: object) -> None:
        self.end(claim, ended_with(outcome, **facts))

    def end(self, claim: Claim, ended: Ended) -> None:
        self.store.finish(claim, ended, after_attempt(self.store.current_job(claim), ended, FLEET))

    def finish(self, video_id: str) -> None:
        self.complete(self.start(video_id))


class Nobody:
    """Stands where the dispatcher's handle is, and counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    async def __call__(self) -> None:
        self.calls += 1


@contextmanager
def served(farm: Farm, nudge: Nobody, remote: RemoteStills | None = None) -> Iterator[str]:
    """The gateway's application behind a server; yields its URL."""
    api = protect(create_api(farm, default_model="camera", nudge=nudge, keep_days=7, remote=remote))
    with serving(api) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def farm(sqlite_database, tmp_path) -> Farm:
    return Farm(BatchStore(sqlite_database), Storage(tmp_path / "storage"))


@pytest.fixture
def cards(farm) -> Cards:
    return Cards(farm)


@pytest.fixture
def nudge() -> Nobody:
    return Nobody()


@pytest.fixture
def url(farm, nudge) -> Iterator[str]:
    with served(farm, nudge) as found:
        yield found


def other_owner(farm: Farm) -> Farm:
    """The same farm as somebody else sees it."""
    return replace(farm, owner="somebody-else")
