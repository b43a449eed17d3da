"""Pictures in buckets, by a server that answers as S3 does to HEAD and GET."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.remote.buckets import BucketReader
from cluster.remote.policy import FetchPolicy
from cluster.remote.remembered import RememberedStills
from cluster.storage import Storage
from pipeline.problems import BadInputError
from tests.unit.cluster.remote.hosts import PICTURE, Asked, Host, host

pytest.importorskip("s3fs")

OBJECTS = {
    "/stills/2026/a.png": PICTURE,
    "/stills/page.png": b"<html></html>",
    "/stills/large.png": PICTURE.ljust(50_000, b"\0"),
    "/other/a.png": PICTURE,
}


class _S3(Asked):
    """HEAD beside GET."""

    def do_HEAD(self) -> None:
        self.do_GET()


def answer(asked: Asked) -> None:
    data = OBJECTS.get(asked.path.partition("?")[0])
    if asked.path.startswith("/denied"):
        asked.send(403)
    elif data is None:
        asked.send(404)
    else:
        etag = '"' + hashlib.md5(data).hexdigest() + '"'
        length = str(len(data))
        if asked.command == "HEAD":
            asked.begin(200, Content_Length=length, ETag=etag, Last_Modified="Sat, 28 Nov 2026 10:00:00 GMT")
        elif wanted := asked.headers["Range"]:
            first, last = wanted.removeprefix("bytes=").split("-")
            part = data[int(first) : int(last) + 1]
            asked.send(206, part, ETag=etag, Content_Range=f"bytes {first}-{int(first) + len(part) - 1}/{length}")
        else:
            asked.send(200, data, ETag=etag)


@pytest.fixture
def bucket_host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    with host(answer) as server:
        server.RequestHandlerClass = _S3
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "me")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        yield server
        s3fs.S3FileSystem.clear_instance_cache()


def reader(*buckets: str, remembered: RememberedStills | None = None) -> BucketReader:
    return BucketReader(FetchPolicy(buckets=buckets or None), 20_000, remembered)


def test_an_object_is_read_and_an_unchanged_one_is_not_read_again(bucket_host: Host, tmp_path: Path) -> None:
    storage = Storage(tmp_path / "storage")
    buckets = reader("s3://stills/2026", remembered=RememberedStills(storage))
    storage.put_still(buckets.read("s3://stills/2026/a.png"))
    assert buckets.read("s3://stills/2026/a.png") == PICTURE
    assert [asked.command for asked in bucket_host.requests].count("GET") == 1


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("s3://other/a.png", "this bucket is not read here"),
        ("s3://stills-2/a.png", "this bucket is not read here"),
        ("s3://stills/../other/a.png", "names no object"),
        ("s3://stills", "names no object"),
        ("s3:///a.png", "names no object"),
        ("s3://me:secret@stills/a.png", "names no object"),
        ("s3://stills/a.png::file:///etc/passwd", "names no object"),
        ("s3://stills/a\n.png", "names no object"),
        ("gs://stills/a.png", "this bucket is not read here"),
    ],
)
def test_what_is_not_allowed_is_not_asked(bucket_host: Host, url: str, says: str) -> None:
    with pytest.raises(BadInputError, match=says) as caught:
        reader("s3://stills").read(url)
    assert "secret" not in str(caught.value)
    assert bucket_host.connections == 0
    with pytest.raises(BadInputError, match="not read here"):
        BucketReader(FetchPolicy(), 20_000).read("s3://stills/2026/a.png")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("s3://stills/none.png", "no such object"),
        ("s3://denied/a.png", "access is denied"),
        ("s3://stills/page.png", "web page"),
        ("s3://stills/large.png", "larger than"),
    ],
)
def test_what_cannot_be_read_ends_in_a_sentence(bucket_host: Host, url: str, says: str) -> None:
    with pytest.raises(BadInputError, match=says) as caught:
        reader().read(url)
    assert caught.value.problem.field == "image"
    assert caught.value.problem.message.startswith(url)


@pytest.mark.parametrize("bucket", ["stills", "https://stills", "s3://", "s3://a b", "s3://u@x/y"])
def test_settings_that_name_no_bucket_are_refused(bucket: str) -> None:
    with pytest.raises(ValueError, match="is no bucket"):
        FetchPolicy(buckets=(bucket,))
