"""Pictures that requests name by URL: fetched by the gateway, from hosts that the farm's settings let it ask."""

from __future__ import annotations

import httpx
import pytest

from cluster.remote.policy import FetchPolicy
from cluster.remote.stills import RemoteStills
from cluster.store.batches import BatchStore
from serve.settings import FarmArgs
from tests.building import still_png
from tests.unit.cluster.remote.hosts import Asked, Host, host
from tests.unit.serve.gateway.openai.conftest import served


def shop(asked: Asked) -> None:
    if asked.path.startswith("/a.png"):
        asked.send(200, still_png(), ETag='"1"')
    else:
        asked.send(302, Location="http://169.254.169.254/latest/meta-data/")


def ask(url: str, picture: str, seed: int = 1) -> httpx.Response:
    body = {"prompt": "zoom in", "seed": seed, "image_reference": {"image_url": picture}}
    return httpx.post(f"{url}/v1/videos", json=body, timeout=60)


def allowed(server: Host) -> FetchPolicy:
    return FetchPolicy(private_hosts=(f"127.0.0.1:{server.port}",))


def test_a_picture_is_fetched_for_a_video_and_once_only_while_it_is_unchanged(farm, nudge) -> None:
    with host(shop) as server:
        remote = RemoteStills(allowed(server), storage=farm.storage)
        with served(farm, nudge, remote) as url:
            picture = f"http://127.0.0.1:{server.port}/a.png?sig=secret"
            answers = [ask(url, picture, seed) for seed in (1, 2)]
        assert [answer.status_code for answer in answers] == [200, 200]
        assert server.requests[1].headers["If-None-Match"] == '"1"'
    for answer in answers:
        job = farm.batch_store.job(farm.owner, answer.json()["id"])
        assert farm.storage.get_still(job.still) == still_png()
        assert "secret" not in str(job.row)


@pytest.mark.parametrize(
    "picture",
    [
        "http://127.0.0.1:{port}/a.png?sig=secret",
        "http://169.254.169.254/latest/meta-data/?sig=secret",
        "https://user:secret@127.0.0.1:{port}/a.png",
        "s3://bucket/a.png?versionId=secret",
        "gopher://127.0.0.1:{port}/_",
        "file:///etc/passwd",
    ],
)
def test_by_default_nothing_near_is_asked_and_nothing_is_made(farm, nudge, picture: str) -> None:
    args = FarmArgs(card_classes={"c8": {}})
    with host(shop) as server, served(farm, nudge, RemoteStills(args.fetch, storage=farm.storage)) as url:
        answer = ask(url, picture.replace("{port}", str(server.port)))
        assert answer.status_code in (400, 422)
        assert "secret" not in answer.text
        assert answer.json()["error"]["param"].startswith("image_reference") or "input_reference" in answer.text
        assert server.connections == 0
    assert batches(farm.batch_store, farm.owner) == []


def test_what_a_picture_leads_to_is_judged_too(farm, nudge) -> None:
    with host(shop) as server, served(farm, nudge, RemoteStills(allowed(server))) as url:
        answer = ask(url, f"http://127.0.0.1:{server.port}/moved.png")
        assert "169.254.169.254, which is never asked" in answer.json()["error"]["message"]


def test_a_gateway_without_leave_fetches_nothing(farm, nudge) -> None:
    with host(shop) as server:
        for remote in (None, RemoteStills(FetchPolicy(enabled=False))):
            with served(farm, nudge, remote) as url:
                answer = ask(url, f"http://127.0.0.1:{server.port}/a.png")
                assert "pictures are not fetched here" in answer.json()["error"]["message"]
        assert server.connections == 0


def batches(store: BatchStore, owner: str) -> list[str]:
    return [batch.id for batch in store.batches(owner, 20, everything=True)]
