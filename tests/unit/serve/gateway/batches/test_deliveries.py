"""A row's deliveries over HTTP: told without making any, made when first asked for, refused in words."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.catalog.defaults import Defaults
from cluster.catalog.ingest import IncomingRow
from cluster.catalog.manifest import Row
from cluster.farm import Farm
from cluster.results.deliveries import DeliveryTerms
from cluster.storage import Storage
from cluster.store import BatchStore, Database
from pipeline.clips.encode import encode_mp4
from pipeline.delivery.profiles import DeliveryProfiles
from tests.building import still_png
from tests.unit.pipeline.delivery.clips import product_clip, profile
from tests.unit.serve.gateway.openai.conftest import cards, nudge, other_owner, url

__all__ = ["cards", "nudge", "url"]

SMALL = profile(width=128, height=72)
STRICT = profile(name="strict", width=128, height=72, backgrounds=())
ROW = Row(number=1, id="X", image="a.png", prompt="pan", deliver=("small",))
TERMS = DeliveryTerms(profiles=DeliveryProfiles([SMALL, STRICT]))


@pytest.fixture
def farm(sqlite_database: Database, tmp_path: Path) -> Farm:
    return Farm(BatchStore(sqlite_database), Storage(tmp_path / "storage"), deliveries=TERMS)


@pytest.fixture
def jobs(farm: Any, cards: Any, tmp_path: Path) -> list[str]:
    """Two rows: one completed with a clip that is one, and one that waits."""
    encode_mp4(product_clip((96, 96), (30, 15, 66, 80), frames=6), 24, tmp_path / "clip.mp4")
    still = farm.put_still(still_png())
    rows = [
        IncomingRow(
            position=n,
            name=f"SKU-{n}",
            number=n,
            still=still,
            row=Row(number=n, id=f"SKU-{n}", image="a.png", prompt=f"pan {n}", deliver="small"),
        )
        for n in (1, 2)
    ]
    made = farm.submit(rows, Defaults(model="camera"), name="bags")
    ids = [job.id for job in farm.jobs(made.id)]
    claim = cards.start(ids[0])
    cards.complete(claim)
    key = f"clips/{ids[0]}/{claim.attempt_id}/video.mp4"
    farm.storage.delete(key)
    farm.storage.put_file(key, tmp_path / "clip.mp4")
    return [made.id, *ids]


def test_a_file_is_made_when_it_is_asked_for_and_told_of_then(url: str, jobs: list[str]) -> None:
    batch, done, waiting = jobs
    [told] = httpx.get(f"{url}/v1/jobs/{done}/deliveries").json()["data"]
    assert (told["profile"], told["state"], told["verdict"]) == ("small", "not_made", None)
    answer = httpx.get(told["url"], timeout=120)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "video/mp4"
    assert answer.content[4:8] == b"ftyp"
    assert answer.headers["content-disposition"] == "inline; filename*=UTF-8''SKU-1-small.mp4"
    content = httpx.get(f"{url}/v1/videos/{done}/content")
    assert content.headers["content-disposition"] == "inline; filename*=UTF-8''SKU-1.mp4"
    assert httpx.get(told["url"], headers={"Range": "bytes=0-7"}).content == answer.content[:8]
    assert httpx.get(told["url"], headers={"If-None-Match": answer.headers["etag"]}).status_code == 304
    [told] = httpx.get(f"{url}/v1/jobs/{done}/deliveries").json()["data"]
    assert told["state"] == "delivered"
    assert all(check["passed"] for check in told["verdict"]["checks"])
    page = httpx.get(f"{url}/v1/batches/{batch}/results").json()["data"]
    assert [[one["state"] for one in row["deliveries"]] for row in page] == [["delivered"], ["not_made"]]
    assert httpx.get(f"{url}/v1/jobs/{waiting}/deliveries/small").status_code == 400


def test_what_cannot_be_delivered_is_a_400_that_says_why(url: str, jobs: list[str]) -> None:
    answer = httpx.get(f"{url}/v1/jobs/{jobs[1]}/deliveries/strict", timeout=120)
    assert answer.status_code == 400
    assert "would cut the product" in answer.json()["error"]["message"]
    nobody = httpx.get(f"{url}/v1/jobs/{jobs[1]}/deliveries/nobody").json()["error"]
    assert "no delivery profile" in nobody["message"]
    assert httpx.get(f"{url}/v1/jobs/{jobs[1]}/deliveries/UP").status_code == 400
    assert httpx.get(f"{url}/v1/jobs/job_none/deliveries").status_code == 404


def test_rows_of_others_are_not_there(url: str, jobs: list[str], farm: Farm) -> None:
    theirs = other_owner(farm)
    row = IncomingRow(position=1, name="X", number=1, still=theirs.put_still(still_png()), row=ROW)
    batch = theirs.submit([row], Defaults(model="camera"), name="theirs")
    job = theirs.jobs(batch.id)[0].id
    assert httpx.get(f"{url}/v1/jobs/{job}/deliveries").status_code == 404
    assert httpx.get(f"{url}/v1/jobs/{job}/deliveries/small").status_code == 404


def test_a_zip_brings_the_files_along_and_says_which_could_not_be_made(url: str, jobs: list[str]) -> None:
    results = f"{url}/v1/batches/{jobs[0]}/results"

    def zipped(**query: str) -> zipfile.ZipFile:
        answer = httpx.get(results, params={"format": "zip"} | query, timeout=120)
        assert answer.status_code == 200, answer.text
        return zipfile.ZipFile(io.BytesIO(answer.content))

    plain = set(zipped().namelist())
    assert "small/SKU-1.mp4" not in plain
    # Made meanwhile; the row that waits has no clip, and so no file.
    with zipped(deliver="asked") as made:
        assert set(made.namelist()) == plain | {"small/SKU-1.mp4"}
        file = httpx.get(f"{url}/v1/jobs/{jobs[1]}/deliveries/small", timeout=120).content
        assert made.read("small/SKU-1.mp4") == file
    with zipped(deliver="strict, small") as made:
        assert set(made.namelist()) == plain | {"small/SKU-1.mp4", "missing.txt"}
        assert "strict/SKU-1.mp4: " in made.read("missing.txt").decode()
        assert "would cut the product" in made.read("missing.txt").decode()
    for query in ({"format": "zip", "deliver": "nobody"}, {"format": "csv", "deliver": "small"}):
        assert httpx.get(results, params=query).status_code == 400
