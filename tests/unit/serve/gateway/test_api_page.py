"""What the API says of itself: routes and bodies described, and a walk by hand that works as it stands."""

from __future__ import annotations

import re
import shutil
import subprocess
import zipfile
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from cluster.dispatch.retry import after_attempt
from cluster.farm import Farm
from cluster.jobs.outcomes import Completed
from cluster.storage import Storage
from cluster.store import BatchStore, DispatchStore
from serve.gateway.api import create_api, protect
from serve.gateway.api_page import WALK, api_page
from tests.building import FLEET, card, objects, still_png
from tests.served import served

DOCS = Path(__file__).parents[4] / "docs" / "http.md"


@pytest.fixture
def api(sqlite_database, tmp_path) -> Any:
    farm = Farm(BatchStore(sqlite_database), Storage(tmp_path / "storage"))
    office = DispatchStore(sqlite_database)
    office.take_office("test")

    async def render() -> None:
        """A farm that is done at once, as far as store and storage see of it."""
        for job in office.waiting(100):
            for claim in office.start([(job, card(job.id))], 10):
                made = objects(claim.attempt_id)
                farm.storage.put_bytes(made.video, b"the clip of " + job.name.encode())
                farm.storage.put_bytes(made.poster, b"poster")
                farm.storage.put_bytes(made.provenance, b"{}")
                ended = Completed(objects=made)
                assert office.finish(claim, ended, after_attempt(job, ended, FLEET))

    return protect(create_api(farm, default_model="camera", nudge=render))


def test_every_route_and_every_field_of_a_body_says_what_it_is(api) -> None:
    document = api.openapi()
    silent = [
        f"{method} {path}"
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if not operation.get("description")
    ]
    assert silent == []
    schemas = document["components"]["schemas"]
    fields = [
        f"{name}.{field}"
        for name, schema in schemas.items()
        if name not in ("HTTPValidationError", "ValidationError")
        for field, one in schema.get("properties", {}).items()
        if not one.get("description")
    ]
    assert fields == []
    assert "requestBody" in document["paths"]["/v1/stills"]["put"]


def test_the_page_shows_routes_bodies_and_the_walk_and_loads_nothing(api) -> None:
    page = api_page(api)
    assert unescape(page.split("<pre>")[1].split("</pre>")[0]) == WALK
    assert "Hand in a picture" in page
    assert "<code>needs_approval</code>" in page
    assert "a body: NewBatch" in page
    assert "a body: BatchCommand" in page, "a body that may be left out"
    assert not re.search(r"<script|<link|src=|https?://(?!127\.0\.0\.1)", page)


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("jq")), reason="the walk takes curl and jq")
def test_the_walk_of_the_documentation_works_as_it_stands(api, tmp_path) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks[1] == WALK
    (tmp_path / "bag.png").write_bytes(still_png())
    with served(api) as port:
        # What cannot be done to a batch that has ended is refused; the rest has to work.
        ended = "\n".join(line for line in blocks[2].splitlines() if not line.startswith("curl -sf -X POST"))
        script = "\n".join(["set -euo pipefail", f"U=http://127.0.0.1:{port}", WALK, ended, 'echo; echo "$batch"'])
        done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "BAG-1.mp4").read_bytes() == b"the clip of BAG-1"
    assert '"name": "BAG-1"' in done.stdout
    assert done.stdout.splitlines()[-1].startswith("batch_")


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("jq")), reason="the walk takes curl and jq")
def test_manifests_and_results_go_by_hand_as_the_documentation_says(api, tmp_path) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    for name in ("bag-1.png", "bag-2.png"):
        (tmp_path / name).write_bytes(still_png())
    (tmp_path / "catalog.csv").write_text("id,image,prompt\nA,bag-1.png,pan left\nB,bag-2.png,zoom in\n")
    with served(api) as port:
        # The shop's own host is not asked here.
        sent = [line for line in blocks[3].splitlines() if "shop.example" not in line]
        assert len(sent) == 4
        script = ["set -euo pipefail", f"U=http://127.0.0.1:{port}", *sent[1:], "batch=$(" + sent[0] + " | jq -r .id)"]
        script.append(blocks[4])
        done = subprocess.run(
            ["bash", "-c", "\n".join(script)], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"object":"batch"') == 2
    with zipfile.ZipFile(tmp_path / "results.zip") as made:
        assert made.read("A.mp4") == b"the clip of A"
        assert made.namelist()[-1] == "results.csv"
    assert "/content" in (tmp_path / "results.csv").read_text(encoding="utf-8-sig")
