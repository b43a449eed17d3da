"""Catalogs whose pictures lie elsewhere: each URL once, several at once, and a bad one costs its row alone."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from threading import Barrier

import pytest

from cluster.catalog.defaults import Defaults
from cluster.catalog.ingest import IncomingRow, draft, gather
from cluster.catalog.manifest import read_manifest
from cluster.farm import Farm
from cluster.remote.fetcher import PictureFetcher
from cluster.remote.policy import FetchPolicy
from cluster.remote.stills import AT_ONCE, AT_ONCE_OF_HOST, ReadAhead, RemoteStills
from cluster.storage import Storage
from cluster.store import BatchStore
from pipeline.problems import BadInputError
from tests.unit.cluster.remote.hosts import PICTURE, Asked, Host, Names, host, picture


def remote_of(*hosts: Host, storage: Storage | None = None, **names: list[list[str]]) -> RemoteStills:
    policy = FetchPolicy(private_hosts=tuple(f"127.0.0.1:{one.port}" for one in hosts))
    return RemoteStills(policy, fetcher=PictureFetcher(policy, resolve=Names(**names), wait=lambda _s: None))


def rows_of(folder: Path, *images: str, remote: RemoteStills | None, storage: Storage) -> list[IncomingRow]:
    path = folder / "catalog.csv"
    path.write_text("image,prompt\n" + "".join(f'"{image}",turns\n' for image in images), encoding="utf-8")
    return list(gather(read_manifest(path), storage.put_still, remote))


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "storage")


def test_a_catalog_of_urls_and_paths(tmp_path: Path, storage: Storage) -> None:
    pictures = {"/a.png": picture("red"), "/b.jpg": picture("blue", "JPEG")}

    def answer(asked: Asked) -> None:
        data = pictures.get(asked.path.partition("?")[0])
        asked.send(200 if data else 404, data or b"")

    (tmp_path / "here.png").write_bytes(PICTURE)
    with host(answer) as shop:
        at = f"http://127.0.0.1:{shop.port}"
        images = [
            f"{at}/a.png?sig=secret",
            "here.png",
            f"{at}/gone.png?sig=secret",
            f"{at}/a.png?sig=secret",
            "http://10.0.0.1/b.png",
            f"{at}/b.jpg",
            "ftp://127.0.0.1/a.png",
            "not-here.png",
        ]
        rows = rows_of(tmp_path, *images, remote=remote_of(shop), storage=storage)
        asked = Counter(one.path for one in shop.requests)
    assert asked == {"/a.png?sig=secret": 1, "/gone.png?sig=secret": 1, "/b.jpg": 1}
    stills = [storage.get_still(row.still) if row.still else None for row in rows]
    assert stills == [pictures["/a.png"], PICTURE, None, pictures["/a.png"], None, pictures["/b.jpg"], None, None]
    problems = [row.problems[0] for row in rows if row.problems]
    assert {problem.field for problem in problems} == {"image"}
    assert [problem.message.split(": ", 1) for problem in problems[:2]] == [
        [f"{at}/gone.png?…", "there is no such picture (404)"],
        ["http://10.0.0.1/b.png", "10.0.0.1 has the address 10.0.0.1, which is not public"],
    ]
    assert [row.name for row in rows][:3] == ["a", "here", "gone"]
    # What is kept of a row, for results and provenance, has no signature in it.
    drafts = [draft(row, Defaults(model="camera"), lambda _sha256: (64, 64)) for row in rows]
    assert drafts[0].row["image"] == f"{at}/a.png?…"
    assert all("secret" not in f"{one.row}{one.problems}" for one in drafts)


def test_a_farm_takes_pictures_from_several_threads(tmp_path: Path, storage: Storage, sqlite_database) -> None:
    farm = Farm(BatchStore(sqlite_database), storage)
    pictures = {f"/{n}.png": picture(f"#{n * 7:06x}") for n in range(24)}
    path = tmp_path / "catalog.csv"
    with host(lambda asked: asked.send(200, pictures[asked.path])) as shop:
        lines = [f"http://127.0.0.1:{shop.port}{name},turns" for name in pictures]
        path.write_text("\n".join(["image,prompt", *lines, ""]))
        batch = farm.submit(
            gather(read_manifest(path), farm.put_still, remote_of(shop)), Defaults(model="camera"), name="c"
        )
    found = [storage.get_still(job.still) for job in farm.jobs(batch.id) if job.still]
    assert found == list(pictures.values())


def test_without_leave_nothing_is_fetched(tmp_path: Path, storage: Storage) -> None:
    with host(lambda a: a.send(200, PICTURE)) as shop:
        rows = rows_of(tmp_path, f"http://127.0.0.1:{shop.port}/a.png", remote=None, storage=storage)
        assert "not fetched here" in rows[0].problems[0].message
        assert shop.connections == 0


def test_so_many_are_fetched_at_once_and_so_many_of_a_host() -> None:
    first, second = [f"http://one.test/{n}" for n in range(12)], [f"http://two.test/{n}" for n in range(12)]
    lock, busy, most = threading.Lock(), Counter[str](), Counter[str]()
    # All threads stand here together, or the test ends in its time-out: that many are at work at once.
    together = Barrier(AT_ONCE)

    def read(url: str) -> bytes:
        name = url.split("/")[2]
        with lock:
            busy[name] += 1
            busy["all"] += 1
            for key in (name, "all"):
                most[key] = max(most[key], busy[key])
        together.wait(30)
        with lock:
            busy[name] -= 1
            busy["all"] -= 1
        return url.encode()

    with ReadAhead(read, bytes.decode, [*first, *second]) as ahead:
        assert [ahead.result(url) for url in [*second, *first]] == [*second, *first]
    assert most == {"one.test": AT_ONCE_OF_HOST, "two.test": AT_ONCE_OF_HOST, "all": AT_ONCE}


def test_what_goes_wrong_comes_out_where_the_picture_is_wanted_and_the_end_begins_nothing() -> None:
    begun: list[str] = []

    def read(url: str) -> bytes:
        begun.append(url)
        if url.endswith("bad"):
            raise BadInputError("image", "bad", "Other.")
        return b""

    def use(data: bytes) -> int:
        raise OSError("storage is away")

    with ReadAhead(read, use, ["http://a.test/bad", "http://a.test/good"]) as ahead:
        with pytest.raises(BadInputError):
            ahead.result("http://a.test/bad")
        with pytest.raises(OSError, match="storage is away"):
            ahead.result("http://a.test/good")
    held = threading.Event()
    urls = [f"http://a.test/{n}" for n in range(50)]
    begun.clear()

    def slow(url: str) -> bytes:
        begun.append(url)
        held.wait(30)
        return b""

    ahead = ReadAhead(slow, len, urls)
    with ahead:
        pass
    held.set()
    for thread in ahead._threads:
        thread.join(30)
    assert len(begun) <= AT_ONCE_OF_HOST
