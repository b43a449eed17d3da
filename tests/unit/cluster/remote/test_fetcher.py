"""Pictures that are fetched: what is sent for them, what is tried again, and what is not sent a second time."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from cluster.remote.connect import FetchLimits
from cluster.remote.fetcher import PictureFetcher
from cluster.remote.policy import FetchPolicy
from cluster.remote.remembered import RememberedStills
from cluster.remote.urls import is_remote, parse_url, shown
from cluster.storage import Storage
from pipeline.problems import BadInputError
from tests.unit.cluster.remote.hosts import PICTURE, Asked, Host, Names, host, picture

LIMITS = FetchLimits(total_s=20, connect_s=5, idle_s=5)


def fetcher_of(
    *hosts: Host, remembered: RememberedStills | None = None, pauses: list[float] | None = None
) -> PictureFetcher:
    policy = FetchPolicy(private_hosts=tuple(f"127.0.0.1:{one.port}" for one in hosts))
    paused = pauses if pauses is not None else []
    return PictureFetcher(policy, limits=LIMITS, remembered=remembered, resolve=Names(), wait=paused.append)


def url_of(server: Host, path: str = "/a.png") -> str:
    return f"http://127.0.0.1:{server.port}{path}"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF"])
def test_pictures_of_every_kind_come_whatever_they_are_called(kind: str) -> None:
    data = picture("blue", kind)
    with host(lambda a: a.send(200, data, Content_Type="text/plain; charset=utf-8")) as server:
        assert fetcher_of(server).fetch(url_of(server)) == data


def test_nothing_is_sent_that_was_not_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    proxy = "http://127.0.0.1:9"
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, proxy)
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))

    def answer(asked: Asked) -> None:
        if asked.path == "/a.png":
            asked.send(302, Location="/b c.png?sig=1%2F2&x=ü", Set_Cookie="session=1")
        else:
            asked.send(200, PICTURE)

    with host(answer) as server:
        assert fetcher_of(server).fetch(url_of(server)) == PICTURE
        first, second = server.requests
        assert second.path == "/b%20c.png?sig=1%2F2&x=%C3%BC"
        for asked in (first, second):
            assert {name.lower() for name in asked.headers} == {
                "host",
                "user-agent",
                "accept",
                "accept-encoding",
                "connection",
            }
            assert asked.headers["Host"] == f"127.0.0.1:{server.port}"
            assert asked.headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again_after_longer_and_longer_pauses(status: int) -> None:
    answers = [status, status, 200]

    def answer(asked: Asked) -> None:
        asked.send(answers.pop(0), PICTURE)

    pauses: list[float] = []
    with host(answer) as server:
        assert fetcher_of(server, pauses=pauses).fetch(url_of(server)) == PICTURE
    assert pauses == [0.5, 1.0]


def test_the_host_says_how_long_the_pause_is() -> None:
    answers = [503, 200]

    def answer(asked: Asked) -> None:
        asked.send(answers.pop(0), PICTURE, Retry_After="7")

    pauses: list[float] = []
    with host(answer) as server:
        assert fetcher_of(server, pauses=pauses).fetch(url_of(server)) == PICTURE
    assert pauses == [7.0]


def test_an_answer_that_broke_off_is_asked_for_again() -> None:
    def answer(asked: Asked) -> None:
        whole = len(asked.server.requests) > 1
        asked.begin(200, Content_Length=str(len(PICTURE)))
        asked.wfile.write(PICTURE if whole else PICTURE[:50])

    with host(answer) as server:
        assert fetcher_of(server).fetch(url_of(server)) == PICTURE


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 501])
def test_what_will_not_pass_is_asked_for_once(status: int) -> None:
    with host(lambda a: a.send(status)) as server:
        with pytest.raises(BadInputError):
            fetcher_of(server).fetch(url_of(server))
        assert len(server.requests) == 1


# ---------------------------------------------------------------------------------------------- unchanged pictures


class Shop:
    """A host that knows states of its picture."""

    def __init__(self, **validators: str) -> None:
        self.picture, self.validators = PICTURE, validators
        self.sent = 0

    def __call__(self, asked: Asked) -> None:
        etag, modified = self.validators.get("ETag"), self.validators.get("Last_Modified")
        same = etag and asked.headers["If-None-Match"] == etag
        if same or (not etag and modified and asked.headers["If-Modified-Since"] == modified):
            asked.send(304)
        else:
            self.sent += 1
            asked.send(200, self.picture, **self.validators)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "storage")


@pytest.mark.parametrize(
    "validators",
    [{"ETag": '"1"'}, {"ETag": 'W/"1"'}, {"Last_Modified": "Sat, 28 Nov 2026 10:00:00 GMT"}],
)
def test_an_unchanged_picture_is_not_sent_again(storage: Storage, validators: dict[str, str]) -> None:
    shop = Shop(**validators)
    with host(shop) as server:
        fetcher = fetcher_of(server, remembered=RememberedStills(storage))
        storage.put_still(fetcher.fetch(url_of(server, "/a.png?sig=secret")))
        assert fetcher.fetch(url_of(server, "/a.png?sig=secret")) == PICTURE
        assert (shop.sent, len(server.requests)) == (1, 2)
        # Another state is another picture, and is remembered in place of the first.
        shop.picture, shop.validators = picture("green"), {"ETag": '"2"'}
        for _ in range(2):
            assert fetcher.fetch(url_of(server, "/a.png?sig=secret")) == shop.picture
            storage.put_still(shop.picture)
        assert shop.sent == 2
    kept = [entry.key for entry in storage.entries("cache")]
    assert kept == ["cache/remote/" + hashlib.sha256(url_of(server, "/a.png?sig=secret").encode()).hexdigest()]
    assert b"secret" not in storage.get_bytes(kept[0])


@pytest.mark.parametrize("how", ["lost", "damaged", "record"])
def test_a_still_that_is_no_longer_whole_is_fetched_anew(storage: Storage, tmp_path: Path, how: str) -> None:
    shop = Shop(ETag='"1"')
    with host(shop) as server:
        fetcher = fetcher_of(server, remembered=RememberedStills(storage))
        key = Storage.still_key(storage.put_still(fetcher.fetch(url_of(server))))
        if how == "lost":
            storage.delete(key)
        elif how == "damaged":
            (tmp_path / "storage" / key).write_bytes(b"\0" * len(PICTURE))
        else:
            (entry,) = storage.entries("cache")
            storage.put_bytes(entry.key, b'{"etag": 5', replace=True)
        assert fetcher.fetch(url_of(server)) == PICTURE
        assert shop.sent == 2


def test_a_redirect_is_remembered_by_where_it_leads(storage: Storage) -> None:
    shop, other = Shop(ETag='"1"'), Shop(ETag='"1"')
    other.picture = picture("green")
    leads = ""
    with host(shop) as first, host(other) as second, host(lambda a: a.send(302, Location=leads)) as front:
        fetcher = fetcher_of(first, second, front, remembered=RememberedStills(storage))
        for server, wanted in ((first, shop.picture), (second, other.picture)):
            leads = url_of(server)
            found = fetcher.fetch(url_of(front))
            storage.put_still(found)
            assert found == wanted, "two hosts call their pictures by one ETag"


@pytest.mark.parametrize("etag", ['"é"', '"' + "x" * 400 + '"', '"\x9b31m"', ""])
def test_a_validator_that_cannot_be_sent_again_is_none(storage: Storage, etag: str) -> None:
    shop = Shop(ETag=etag)
    with host(shop) as server:
        fetcher = fetcher_of(server, remembered=RememberedStills(storage))
        for _ in range(2):
            storage.put_still(fetcher.fetch(url_of(server)))
    assert shop.sent == 2
    assert storage.entries("cache") == []


def test_a_storage_that_fails_remembers_nothing(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "storage").write_text("no folder")
    shop = Shop(ETag='"1"')
    with host(shop) as server:
        fetcher = fetcher_of(server, remembered=RememberedStills(storage))
        assert [fetcher.fetch(url_of(server)) for _ in range(2)] == [PICTURE] * 2
    assert shop.sent == 2


# ---------------------------------------------------------------------------------------------- URLs


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("https://shop.example/a.png", ("https", "shop.example", 443, "/a.png")),
        ("HTTPS://Shop.Example.:8443/A.png?x=1&y=%20#top", ("https", "shop.example", 8443, "/A.png?x=1&y=%20")),
        ("http://shop.example", ("http", "shop.example", 80, "/")),
        ("http://shop.example?x", ("http", "shop.example", 80, "/?x")),
        ("http://shop.example:/a", ("http", "shop.example", 80, "/a")),
        ("https://bücher.example/grün 1.png", ("https", "xn--bcher-kva.example", 443, "/gr%C3%BCn%201.png")),
        ("https://[2606:2800:220:1::1]:444/a", ("https", "2606:2800:220:1::1", 444, "/a")),
        ("https://my_bucket.s3.example/a@2x.png", ("https", "my_bucket.s3.example", 443, "/a@2x.png")),
    ],
)
def test_urls_are_read_once(text: str, parts: tuple[str, str, int, str]) -> None:
    url = parse_url(text)
    assert (url.scheme, url.host, url.port, url.target) == parts
    assert parse_url(url.text) == url


def test_what_is_shown_of_a_url_has_no_secrets() -> None:
    assert shown("https://u:secret@shop.example/a.png?sig=secret#secret") == "https://shop.example/a.png?…"
    assert shown("https://u:p@secret@shop.example?secret") == "https://shop.example?…"
    assert shown("s3://bucket/a.png?versionId=secret") == "s3://bucket/a.png?…"
    assert shown("pics/what?.png") == "pics/what?.png"
    assert not is_remote("pics/a.png")
    assert not is_remote("file:///a.png")
    assert is_remote("GS://bucket/a.png")
