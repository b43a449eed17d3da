"""Publication in a folder, and in S3 as a real server speaks it; what it says is asked over plain HTTP."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import fsspec
import httpx
import pytest

from cluster.feeds.publishing import RECORD, Publication, WantedFile, check_names, feed_file
from cluster.storage import Storage
from pipeline.problems import BadInputError
from tests.s3 import ENVIRONMENT, s3_server

#: An outsider whom the server lets in; it takes whatever is said.
ASKING = httpx.Client(headers={"Authorization": "AWS test:test"}, timeout=30)


@dataclass
class Place:
    """A place of publication, and how an outsider looks at it."""

    url: str
    #: Where an outsider finds what is there: a URL, or a folder.
    base: str

    def read(self, name: str) -> bytes:
        if self.base.startswith("http"):
            answer = ASKING.get(f"{self.base}/{name}")
            answer.raise_for_status()
            return answer.content
        return (Path(self.base) / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        if self.base.startswith("http"):
            ASKING.put(f"{self.base}/{name}", content=content).raise_for_status()
        else:
            path = Path(self.base) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def names(self) -> set[str]:
        if self.base.startswith("http"):
            bucket, _, prefix = self.base.removeprefix("http://").partition("/")[2].partition("/")
            root = self.base.removesuffix(f"/{bucket}/{prefix}")
            listed = ET.fromstring(ASKING.get(f"{root}/{bucket}?list-type=2&prefix={prefix}/").content)
            keys = [one.text or "" for one in listed.iter("{http://s3.amazonaws.com/doc/2006-03-01/}Key")]
            return {key.removeprefix(f"{prefix}/") for key in keys}
        return {str(path.relative_to(self.base)) for path in Path(self.base).rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3_server(tmp_path_factory.mktemp("s3")) as url:
        yield url


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    if request.param == "folder":
        yield Place(f"file://{tmp_path}/public", str(tmp_path / "public"))
        return
    server = request.getfixturevalue("server")
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": server}.items():
        monkeypatch.setenv(name, value)
    fsspec.filesystem("s3").clear_instance_cache()
    bucket = f"shop-{abs(hash(tmp_path.name)) % 10**9}"
    ASKING.put(f"{server}/{bucket}").raise_for_status()
    yield Place(f"s3://{bucket}/spring/clips", f"{server}/{bucket}/spring/clips")


def wanted(**sources: str) -> list[WantedFile]:
    """Files named `a/<name>.mp4`, each with what it is made of."""
    return [WantedFile(name=f"a/{name}.mp4", source=source) for name, source in sources.items()]


def run(
    place: Place,
    tmp_path: Path,
    files: list[WantedFile],
    *,
    catalog: str = "feed.xml",
    cache: str = "",
    prune: bool = False,
) -> Publication:
    """One run, whose files hold what they are made of, with a feed that names them."""
    publication = Publication(Storage(place.url), catalog, cache)
    for one in publication.plan(files):
        path = tmp_path / "file"
        path.write_bytes(one.source.encode() * 1000)
        publication.send(one, path)
    publication.settle()
    feed = tmp_path / "feed"
    feed.write_bytes(" ".join(sorted(publication.current)).encode())
    for one in publication.plan([feed_file(catalog, feed)]):
        publication.send(one, feed)
        publication.settle()
    if prune:
        publication.prune()
    return publication


def test_only_what_changed_is_sent_again(place: Place, tmp_path: Path) -> None:
    first = run(place, tmp_path, wanted(one="x1", two="y1"))
    assert (first.count.uploaded, first.count.unchanged) == (3, 0)
    assert place.read("a/one.mp4") == b"x1" * 1000
    assert place.read("feed.xml") == b"a/one.mp4 a/two.mp4"
    again = run(place, tmp_path, wanted(one="x1", two="y1"))
    assert (again.count.uploaded, again.count.unchanged, again.count.refused) == (0, 3, {})
    changed = run(place, tmp_path, wanted(one="x1", two="y2"))
    assert (changed.count.uploaded, changed.count.unchanged) == (1, 2)
    assert place.read("a/two.mp4") == b"y2" * 1000


def test_what_is_gone_is_sent_again(place: Place, tmp_path: Path) -> None:
    run(place, tmp_path, wanted(one="x1"))
    Storage(place.url).delete("a/one.mp4")
    assert run(place, tmp_path, wanted(one="x1")).count.uploaded == 1
    assert place.read("a/one.mp4") == b"x1" * 1000


def test_nothing_of_somebody_else_is_replaced_or_deleted(place: Place, tmp_path: Path) -> None:
    place.write("a/one.mp4", b"theirs")
    place.write("a/other.txt", b"theirs too")
    found = run(place, tmp_path, wanted(one="x1", two="y1"), prune=True)
    assert set(found.count.refused) == {"a/one.mp4"}
    assert "clipmill did not put it" in found.count.refused["a/one.mp4"].message
    assert place.read("a/one.mp4") == b"theirs"
    assert found.current == {"a/two.mp4", "feed.xml"}
    # One of ours that somebody has replaced since is theirs.
    place.write("a/two.mp4", b"edited")
    found = run(place, tmp_path, wanted(two="y2"), prune=True)
    assert "changed by somebody else" in found.count.refused["a/two.mp4"].message
    assert place.read("a/two.mp4") == b"edited"
    assert place.read("a/other.txt") == b"theirs too"


def test_pruning_takes_what_was_published_for_the_same_feed_alone(place: Place, tmp_path: Path) -> None:
    run(place, tmp_path, wanted(one="x1", two="y1"))
    run(place, tmp_path, wanted(three="z1"), catalog="other.xml")
    place.write("a/theirs.mp4", b"theirs")
    kept = run(place, tmp_path, wanted(two="y1"))
    assert kept.count.removed == 0
    found = run(place, tmp_path, wanted(two="y1"), prune=True)
    assert (found.count.uploaded, found.count.removed) == (0, 1)
    assert place.names() == {"a/two.mp4", "a/three.mp4", "a/theirs.mp4", "feed.xml", "other.xml", RECORD}


def test_two_feeds_do_not_take_each_others_names(place: Place, tmp_path: Path) -> None:
    run(place, tmp_path, wanted(one="x1"))
    found = run(place, tmp_path, wanted(one="other"), catalog="other.xml")
    assert "for 'feed.xml'" in found.count.refused["a/one.mp4"].message
    assert place.read("a/one.mp4") == b"x1" * 1000


def test_a_run_that_was_killed_leaves_only_what_the_next_one_knows(place: Place, tmp_path: Path) -> None:
    killed = Publication(Storage(place.url), "feed.xml")
    [one, _] = killed.plan(wanted(one="x1", two="y1"))
    (tmp_path / "file").write_bytes(b"half")
    killed.send(one, tmp_path / "file")
    # No more of it was done. Its file is ours, and is sent again, for nobody knows whether it is whole.
    found = run(place, tmp_path, wanted(one="x1", two="y1"))
    assert (found.count.uploaded, found.count.refused) == (3, {})
    assert place.read("a/one.mp4") == b"x1" * 1000


def test_in_a_bucket_files_say_what_they_are_and_how_long_they_keep(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": server}.items():
        monkeypatch.setenv(name, value)
    fsspec.filesystem("s3").clear_instance_cache()
    ASKING.put(f"{server}/headers").raise_for_status()
    place = Place("s3://headers/x", f"{server}/headers/x")
    run(place, tmp_path, wanted(one="x1"), cache="public, max-age=600")
    headers = ASKING.head(f"{place.base}/a/one.mp4").headers
    assert (headers["content-type"], headers["cache-control"]) == ("video/mp4", "public, max-age=600")
    assert ASKING.head(f"{place.base}/feed.xml").headers["content-type"] == "application/xml"
    assert run(place, tmp_path, wanted(one="x1"), cache="public, max-age=600").count.uploaded == 0
    assert run(place, tmp_path, wanted(one="x1"), cache="no-cache").count.uploaded == 2
    assert ASKING.head(f"{place.base}/a/one.mp4").headers["cache-control"] == "no-cache"


def test_a_file_in_parts_is_known_again(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": server}.items():
        monkeypatch.setenv(name, value)
    fsspec.filesystem("s3").clear_instance_cache()
    ASKING.put(f"{server}/parts").raise_for_status()
    # The smallest parts that S3 takes.
    monkeypatch.setattr("s3fs.core.calculate_chunksize", lambda *_args, **_named: 5 * 2**20)
    path = tmp_path / "large"
    path.write_bytes(bytes(11 * 2**20))
    for uploaded in (1, 0):
        publication = Publication(Storage("s3://parts/x"), "feed.xml")
        for one in publication.plan(wanted(large="x")):
            publication.send(one, path)
        publication.settle()
        assert publication.count.uploaded == uploaded
    assert "-" in ASKING.head(f"{server}/parts/x/a/large.mp4").headers["etag"], "it was sent in parts"


def test_a_record_that_is_none_and_its_own_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / RECORD).write_text("[]")
    with pytest.raises(BadInputError, match="is no record"):
        Publication(Storage(tmp_path), "feed.xml")
    with pytest.raises(BadInputError, match="our own record"):
        check_names([RECORD])
