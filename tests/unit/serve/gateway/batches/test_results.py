"""The results of a batch over HTTP: pages, tables, lines and archives, by parameter and by what a client accepts."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from typing import Any

import httpx
import pytest

from cluster.catalog.defaults import Defaults
from cluster.catalog.ingest import IncomingRow
from cluster.catalog.manifest import Row
from serve.gateway.batches.results import accepted_format
from tests.building import still_png
from tests.unit.serve.gateway.openai.conftest import POSTER, VIDEO, cards, farm, nudge, other_owner, url

__all__ = ["cards", "farm", "nudge", "url"]


@pytest.fixture
def batch(farm: Any, cards: Any) -> str:
    """A batch of five rows, of which three have completed and one has failed."""
    still = farm.put_still(still_png())
    rows = [
        IncomingRow(
            position=n,
            name=f"SKU/{n}" if n == 5 else f"SKU-{n}",
            number=n,
            still=still,
            row=Row(number=n, id=f"SKU-{n}", image="a.png", prompt=f"pan {n}"),
        )
        for n in range(1, 6)
    ]
    made = farm.submit(rows, Defaults(model="camera"), name="bags / 2026")
    for job in farm.jobs(made.id)[:3]:
        claim = cards.start(job.id)
        cards.complete(claim)
        farm.storage.put_bytes(f"clips/{job.id}/{claim.attempt_id}/provenance.json", b'{"model": "camera"}')
    return str(made.id)


def get(url: str, batch: str, accept: str = "*/*", **query: Any) -> httpx.Response:
    return httpx.get(f"{url}/v1/batches/{batch}/results", params=query, headers={"Accept": accept}, timeout=60)


@pytest.mark.parametrize("how", [{"format": "zip"}, {"accept": "application/zip"}])
def test_the_files_come_as_a_zip(url, batch, how) -> None:
    answer = get(url, batch, **how)
    assert answer.headers["content-type"] == "application/zip"
    assert answer.headers["content-disposition"] == "attachment; filename*=UTF-8''bags%20_%202026.zip"
    made = zipfile.ZipFile(io.BytesIO(answer.content))
    stems = [f"SKU-{n}" for n in (1, 2, 3)]
    assert made.namelist() == [f"{stem}{suffix}" for stem in stems for suffix in (".mp4", ".jpg", ".json")] + [
        "results.csv"
    ]
    assert (made.read("SKU-2.mp4"), made.read("SKU-3.jpg")) == (VIDEO, POSTER)
    assert json.loads(made.read("SKU-1.json"))["batch"] == {"id": batch, "name": "bags / 2026"}


def test_every_form_has_the_same_rows_and_urls_that_work(url, batch) -> None:
    page = get(url, batch).json()["data"]
    lines = [json.loads(line) for line in get(url, batch, format="jsonl").text.splitlines()]
    assert lines == page
    table = list(csv.DictReader(io.StringIO(get(url, batch, "text/csv").content.decode("utf-8-sig"))))
    assert [(row["job"], row["video_url"]) for row in table] == [
        (one["job"], one["files"].get("video", "")) for one in page
    ]
    assert [one["row"]["state"] for one in page] == ["completed"] * 3 + ["queued", "failed"]
    assert [bool(one["files"]) for one in page] == [True] * 3 + [False] * 2
    assert httpx.get(page[0]["files"]["video"]).content == VIDEO
    assert httpx.get(table[1]["thumbnail_url"]).content == POSTER


def test_pages_and_limits(url, batch, farm) -> None:
    first = get(url, batch, limit=2).json()
    assert ([one["place"] for one in first["data"]], first["has_more"]) == ([1, 2], True)
    last = get(url, batch, limit=3, after=2).json()
    assert ([one["place"] for one in last["data"]], last["has_more"]) == ([3, 4, 5], False)
    assert len(get(url, batch, format="jsonl", after=3).text.splitlines()) == 2
    assert len(get(url, batch, format="jsonl", limit=2).text.splitlines()) == 2
    since = max(job.updated_at for job in farm.jobs(batch)) + 1
    assert get(url, batch, format="jsonl", completed_since=since).content == b""
    full = get(url, batch, format="csv").content.splitlines()
    assert get(url, batch, format="csv", completed_since=since).content.splitlines() == full[:1], "columns, and no row"


@pytest.mark.parametrize("kind", ["json", "csv", "jsonl", "zip"])
def test_another_s_batch_is_a_404_whatever_is_asked(url, farm, kind) -> None:
    other = other_owner(farm)
    theirs = other.submit([], Defaults(model="camera"), name="theirs")
    answer = get(url, theirs.id, format=kind)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("*/*", "json"),
        ("", "json"),
        ("text/html,application/xhtml+xml,*/*;q=0.8", "json"),
        ("application/zip", "zip"),
        ("application/json;q=0.5, text/csv", "csv"),
        ("Application/ZIP; q=0.2, application/x-ndjson;q=0.3", "jsonl"),
        ("application/zip;q=0", "json"),
        ("application/zip;q=x", "json"),
    ],
)
def test_what_a_client_accepts(accept, kind) -> None:
    assert accepted_format(accept) == kind
