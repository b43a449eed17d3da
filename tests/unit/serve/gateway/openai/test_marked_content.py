"""What the gateway sends of a marked clip: whole, in parts, and by an `ETag` that says who marked it."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi import FastAPI, Request, Response
from fastapi.testclient import TestClient

from cluster.jobs.model import Clip
from cluster.results.marked import MarkedObjects
from cluster.storage import Storage
from pipeline.marks.identity import keep, make_test_identity
from pipeline.marks.marker import WatchedMarker
from pipeline.marks.verdict import MarkState
from pipeline.marks.verify import verify
from serve.gateway.openai.content import Variant, answer_with, file_of
from tests.building import objects
from tests.unit.pipeline.marks.clips import identity, make_files

CLIP = Clip(id="c", owner="o", content_key="k", attempt_id="a", objects=objects("j/a"), created_at=0)


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    """A gateway's answers for one clip, each from objects of its own: any replica answers."""
    storage = Storage(tmp_path / "storage")
    files = make_files(tmp_path)
    storage.put_file(CLIP.objects.video, files["mp4"])
    storage.put_file(CLIP.objects.poster, files["jpg"])
    storage.put_bytes(CLIP.objects.provenance, b'{"content_key": "k", "family": {"name": "wan2.2-5b"}}')
    keep(tmp_path / "marks", identity())
    app = FastAPI()

    @app.get("/{variant}")
    def content(variant: Variant, request: Request) -> Response:
        marked = MarkedObjects(storage, WatchedMarker(tmp_path / "marks"))
        return answer_with(marked, file_of(CLIP, "v", variant, marked.marks), request.headers)

    return TestClient(app)


def test_parts_from_any_replica_are_of_one_file(client: TestClient, tmp_path: Path) -> None:
    whole = client.get("/video")
    assert int(whole.headers["content-length"]) == len(whole.content)
    parts, step = [], 5000
    for first in range(0, len(whole.content), step):
        last = first + step - 1
        answer = client.get("/video", headers={"Range": f"bytes={first}-{last}", "If-Range": whole.headers["etag"]})
        assert answer.status_code == 206
        parts.append(answer.content)
    assert b"".join(parts) == whole.content
    path = tmp_path / "got.mp4"
    path.write_bytes(whole.content)
    assert verify(path).state is MarkState.VALID
    path.write_bytes(client.get("/thumbnail").content)
    assert verify(path).state is MarkState.VALID


def test_who_has_the_file_is_told_of_another_mark_and_provenance_stays(client: TestClient, tmp_path: Path) -> None:
    tags = {name: client.get(f"/{name}").headers["etag"] for name in ("video", "provenance")}
    assert client.get("/video", headers={"If-None-Match": tags["video"]}).status_code == 304
    keep(tmp_path / "marks", make_test_identity("Another"))
    again = client.get("/video", headers={"If-None-Match": tags["video"]})
    assert again.status_code == 200
    assert again.headers["etag"] != tags["video"]
    assert client.get("/provenance").headers["etag"] == tags["provenance"]
