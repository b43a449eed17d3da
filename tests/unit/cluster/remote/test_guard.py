"""Whatever a URL says, nothing of this machine, its network or its cloud is asked, and no decoder sees what is none."""

from __future__ import annotations

import contextlib
import gzip
import ipaddress
import ssl
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpcore
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.remote.addresses import AddressKind, kind_of
from cluster.remote.buckets import BucketReader
from cluster.remote.connect import Deadline, FetchLimits, GuardedBackend
from cluster.remote.fetcher import PictureFetcher
from cluster.remote.policy import FetchPolicy, HostRule
from cluster.remote.urls import DEFAULT_PORTS, FetchRefusedError, is_remote, parse_url, redirected, shown
from pipeline.problems import BadInputError
from tests.unit.cluster.remote.hosts import CERTIFICATE, PICTURE, Asked, Host, Names, host

#: Names as a hostile name server answers for them.
NAMES = {
    "inside.test": [["10.0.0.7"]],
    "metadata.google.internal": [["169.254.169.254"]],
    "here.test": [["127.0.0.1"]],
    "here6.test": [["::1"]],
    "mapped.test": [["::ffff:127.0.0.1"]],
    "mixed.test": [["93.184.216.34", "127.0.0.1"]],
    "mixed6.test": [["2606:2800:220:1:248:1893:25c8:1946", "fe80::1"]],
    "mixed-mapped.test": [["93.184.216.34", "::ffff:10.0.0.1"]],
    "scoped.test": [["fe80::1%lo"]],
    "zero.test": [["0.0.0.0"]],
    "none.test": [["::"]],
    "localhost": [["127.0.0.1", "::1"]],
    "xn--bcher-kva.test": [["192.168.0.9"]],
    "169.254.169.254.inside.test": [["169.254.169.254"]],
}

#: URLs that lead nowhere; {port} is that of a host on 127.0.0.1 which has the picture.
NEVER_ASKED = [
    # Metadata of clouds, in every notation that some library reads.
    "http://169.254.169.254/latest/meta-data/",
    "http://169.254.169.254:{port}/a.png",
    "http://2852039166/a.png",
    "http://0xA9FEA9FE/a.png",
    "http://0xA9.0xFE.0xA9.0xFE/a.png",
    "http://0251.0376.0251.0376/a.png",
    "http://025177524776/a.png",
    "http://169.254.43518/a.png",
    "http://169.16689662/a.png",
    "http://169.254.169.254./a.png",
    "http://169.254.169.0xfe/a.png",
    "http://169.254.169.254.:80/a.png",
    "http://[::ffff:169.254.169.254]/a.png",
    "http://[::ffff:a9fe:a9fe]/a.png",
    "http://[0:0:0:0:0:ffff:a9fe:a9fe]/a.png",
    "http://[::a9fe:a9fe]/a.png",
    "http://[64:ff9b::a9fe:a9fe]/a.png",
    "http://[64:ff9b::169.254.169.254]/a.png",
    "http://[64:ff9b:1::a9fe:a9fe]/a.png",
    "http://[2002:a9fe:a9fe::1]/a.png",
    "http://[2001:0:a9fe:a9fe::1]/a.png",
    "http://[2620:0:2d0:200::5efe:a9fe:a9fe]/a.png",
    "http://[fe80::a9fe:a9fe]/a.png",
    "http://[fe80::1%25lo]/a.png",
    "http://[fe80::1%lo]/a.png",
    "http://[fd00:ec2::254]/a.png",
    "http://[fd20:ce::254]/a.png",
    "http://100.100.100.200/a.png",
    "http://168.63.129.16/a.png",
    "http://192.0.0.192/a.png",
    "http://metadata.google.internal/a.png",
    "http://169.254.169.254.inside.test/a.png",
    "http://１６９.２５４.１６９.２５４/a.png",
    "http://169。254。169。254/a.png",
    "http://①⑥⑨.②⑤④.①⑥⑨.②⑤④/a.png",
    "http://[169.254.169.254]/a.png",
    # This machine.
    "http://127.0.0.1:{port}/a.png",
    "http://127.1:{port}/a.png",
    "http://127.0.1:{port}/a.png",
    "http://127.8.9.10:{port}/a.png",
    "http://2130706433:{port}/a.png",
    "http://0x7f000001:{port}/a.png",
    "http://0x7f.1:{port}/a.png",
    "http://017700000001:{port}/a.png",
    "http://0177.0.0.1:{port}/a.png",
    "http://127.0.0.1.:{port}/a.png",
    "http://127.0.0.1..:{port}/a.png",
    "http://0:{port}/a.png",
    "http://0.0.0.0:{port}/a.png",
    "http://[::1]:{port}/a.png",
    "http://[::]:{port}/a.png",
    "http://[::ffff:127.0.0.1]:{port}/a.png",
    "http://[::ffff:7f00:1]:{port}/a.png",
    "http://[::127.0.0.1]:{port}/a.png",
    "http://localhost:{port}/a.png",
    "http://LOCALHOST.:{port}/a.png",
    "http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ:{port}/a.png",
    "http://１２７.0.0.1:{port}/a.png",
    "http://127%2E0.0.1:{port}/a.png",
    "http://%31%32%37.0.0.1:{port}/a.png",
    "http://here.test:{port}/a.png",
    "http://here6.test:{port}/a.png",
    "http://mapped.test:{port}/a.png",
    "http://zero.test:{port}/a.png",
    "http://none.test:{port}/a.png",
    "http://mixed.test:{port}/a.png",
    "http://mixed6.test:{port}/a.png",
    "http://mixed-mapped.test:{port}/a.png",
    "http://scoped.test:{port}/a.png",
    # Its network.
    "http://10.0.0.1/a.png",
    "http://172.31.255.255/a.png",
    "http://192.168.1.1/a.png",
    "http://100.64.0.1/a.png",
    "http://198.18.0.1/a.png",
    "http://[fc00::1]/a.png",
    "http://[fd12:3456::1]/a.png",
    "http://[fec0::1]/a.png",
    "http://[ff02::1]/a.png",
    "http://224.0.0.1/a.png",
    "http://255.255.255.255/a.png",
    "http://inside.test/a.png",
    "http://bücher.test/a.png",
    # Two readers, two hosts.
    "http://shop.example@127.0.0.1:{port}/a.png",
    "http://user:secret@127.0.0.1:{port}/a.png",
    "http://127.0.0.1:{port}\\@shop.example/a.png",
    "http://shop.example\\@127.0.0.1:{port}/a.png",
    "http://127.0.0.1:{port}#@shop.example/a.png",
    "http://127.0.0.1:{port}?@shop.example/a.png",
    "http://shop.example:80@127.0.0.1:{port}/a.png",
    "http://shop.example:80:{port}/a.png",
    "http://[::1:{port}/a.png",
    "http://[::1]127.0.0.1:{port}/a.png",
    "http://127.0.0.1:{port}:80/a.png",
    "http:/127.0.0.1:{port}/a.png",
    "http:127.0.0.1:{port}/a.png",
    "//127.0.0.1:{port}/a.png",
    "http://:{port}/a.png",
    "http:///a.png",
    "http://127.0.0.1 :{port}/a.png",
    # More than one line.
    "http://127.0.0.1:{port}/a.png HTTP/1.1\r\nHost: x\r\n\r\nGET /b",
    "http://127.0.0.1:{port}/\r\n\r\nFLUSHALL\r\n",
    "http://127.0.0.1\t:{port}/a.png",
    "http://127.0.0.1\n.shop.example:{port}/a.png",
    "http://127.0.0.1\x00.shop.example:{port}/a.png",
    "\x01http://127.0.0.1:{port}/a.png",
    # Other schemes and ports.
    "file:///etc/passwd",
    "file://127.0.0.1:{port}/a.png",
    "gopher://127.0.0.1:{port}/_GET%20/a.png",
    "ftp://127.0.0.1:{port}/a.png",
    "dict://127.0.0.1:{port}/a",
    "jar:http://127.0.0.1:{port}!/a.png",
    "ws://127.0.0.1:{port}/a.png",
    "http+unix://%2Fvar%2Frun%2Fdocker.sock/a.png",
    "data:image/png;base64,AAAA",
    "http://93.184.216.34:22/a.png",
    "http://93.184.216.34:6379/a.png",
    "http://93.184.216.34:0/a.png",
    "http://93.184.216.34:65536/a.png",
    "http://93.184.216.34:８０/a.png",
    "http://93.184.216.34:99999999999/a.png",
    "http://93.184.216.34:-1/a.png",
    "http://93.184.216.34/" + "a" * 5000,
    "http://" + "a" * 64 + ".example/a.png",
    "http://" + "a." * 130 + "example/a.png",
]
HURRY = FetchLimits(total_s=5, connect_s=2, idle_s=2, first_pause_s=0.01, longest_pause_s=0.05)


def sends_picture(asked: Asked) -> None:
    asked.send(200, PICTURE, Content_Type="image/png")


@pytest.fixture(scope="module")
def canary() -> Iterator[Host]:
    with host(sends_picture) as server:
        yield server


def guarded(server: Host, *private: str, limits: FetchLimits = HURRY, names: Names | None = None) -> PictureFetcher:
    """A fetcher that may ask the port of `server` wherever it likes, and no private host but those named."""
    policy = FetchPolicy(ports=(80, 443, server.port), private_hosts=private)
    return PictureFetcher(policy, limits=limits, resolve=names or Names(**NAMES))


def refused(fetcher: PictureFetcher, url: str) -> str:
    with pytest.raises(BadInputError) as caught:
        fetcher.fetch(url)
    problem = caught.value.problem
    assert problem.field == "image"
    assert problem.remedy
    assert "secret" not in str(problem)
    return problem.message


@pytest.mark.parametrize("url", NEVER_ASKED)
def test_nothing_near_is_asked(canary: Host, url: str) -> None:
    before = canary.connections
    refused(guarded(canary), url.replace("{port}", str(canary.port)))
    assert canary.connections == before


def test_the_corpus_is_large_and_the_canary_can_be_reached(canary: Host) -> None:
    assert len(set(NEVER_ASKED)) >= 60
    before = canary.connections
    assert guarded(canary, "127.0.0.0/8").fetch(f"http://127.0.0.1:{canary.port}/a.png") == PICTURE
    assert canary.connections == before + 1


@pytest.mark.parametrize(
    "url", [url for url in NEVER_ASKED if "169.254" in url or "fd00" in url or "100.100" in url or "168.63" in url]
)
def test_metadata_is_asked_by_nobody_whatever_is_allowed(canary: Host, url: str) -> None:
    everything = guarded(canary, "*", "0.0.0.0/0", "::/0", "*.internal", "*.test")
    refused(everything, url.replace("{port}", str(canary.port)))


@pytest.mark.parametrize("rule", ["*", "*.test", "0.0.0.0/0", "::/0", "here.test"])
def test_this_machine_is_meant_only_where_it_is_named(canary: Host, rule: str) -> None:
    before = canary.connections
    for name in ("here.test", "127.0.0.1", "localhost", "[::1]"):
        refused(guarded(canary, rule), f"http://{name}:{canary.port}/a.png")
    assert canary.connections == before


# ---------------------------------------------------------------------------------------------- redirects, look-ups


@pytest.mark.parametrize(
    "location",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://127.0.0.2:{port}/a.png",
        "http://[::ffff:127.0.0.2]:{port}/a.png",
        "http://2130706434:{port}/a.png",
        "//127.0.0.2:{port}/a.png",
        "//here.test:{port}/a.png",
        "http://10.0.0.1/a.png",
        "http://x@127.0.0.1:{port}/a.png",
        "file:///etc/passwd",
        "gopher://127.0.0.1:{port}/_",
        "ftp://127.0.0.1/a.png",
        "s3://bucket/a.png",
        "data:image/png;base64,AAAA",
        "javascript:alert(1)",
        "\\\\127.0.0.2\\a.png",
        "http://127.0.0.1\\@127.0.0.2:{port}/a.png",
        "http://[",
        "",
    ],
)
def test_a_redirect_leads_nowhere_near(canary: Host, location: str) -> None:
    before = canary.connections
    with host(lambda a: a.send(302, Location=location.replace("{port}", str(canary.port)))) as public:
        policy = FetchPolicy(ports=(80, 443, canary.port), private_hosts=(f"127.0.0.1:{public.port}",))
        fetcher = PictureFetcher(policy, limits=HURRY, resolve=Names(**NAMES))
        refused(fetcher, f"http://127.0.0.1:{public.port}/a.png?token=secret")
        assert len(public.requests) == 1
    assert canary.connections == before


def test_a_name_is_looked_up_once_and_every_look_up_is_judged() -> None:
    def answer(asked: Asked) -> None:
        asked.send(200, PICTURE) if asked.path == "/a.png" else asked.send(302, Location="/a.png")

    with host(answer) as server:
        # `*.test` names no host of this machine: the first address is allowed as such, the second is not.
        names = Names(rebind_test=[["127.0.0.1"], ["127.0.0.2"]])
        fetcher = guarded(server, f"127.0.0.1:{server.port}", names=names)
        assert fetcher.fetch(f"http://rebind.test:{server.port}/a.png") == PICTURE
        assert names.asked == ["rebind.test"]
        names = Names(rebind_test=[["127.0.0.1"], ["127.0.0.2"]])
        fetcher = guarded(server, f"127.0.0.1:{server.port}", names=names)
        assert "127.0.0.2" in refused(fetcher, f"http://rebind.test:{server.port}/moved")
        assert names.asked == ["rebind.test"] * 2
        assert server.connections == 2


@pytest.mark.parametrize("path", ["/loop", "/deeper"])
def test_redirects_end(path: str) -> None:
    def answer(asked: Asked) -> None:
        asked.send(301, Location=asked.path if path == "/loop" else asked.path + "x")

    with host(answer) as server:
        assert "redirects" in refused(guarded(server, "127.0.0.1"), f"http://127.0.0.1:{server.port}{path}")
        assert len(server.requests) == 1 + FetchLimits().redirects


def test_https_never_leads_to_http(canary: Host) -> None:
    before = canary.connections
    with host(lambda a: a.send(302, Location=f"http://127.0.0.1:{canary.port}/a.png"), tls=True) as server:
        policy = FetchPolicy(private_hosts=(f"127.0.0.1:{server.port}", f"127.0.0.1:{canary.port}"))
        tls = ssl.create_default_context(cafile=str(CERTIFICATE))
        fetcher = PictureFetcher(policy, limits=HURRY, resolve=Names(right_test=[["127.0.0.1"]]), tls=tls)
        assert "from https to http" in refused(fetcher, f"https://right.test:{server.port}/a.png")
    assert canary.connections == before


class Diverted(httpcore.SyncBackend):
    """A network that leads every connection to another host."""

    def __init__(self, port: int) -> None:
        self.port = port

    def connect_tcp(self, host: str, port: int, *given: Any, **named: Any) -> httpcore.NetworkStream:
        return super().connect_tcp("127.0.0.1", self.port, *given, **named)


def test_the_socket_is_looked_at_once_more_before_anything_is_sent(canary: Host) -> None:
    asked = len(canary.requests)
    backend = GuardedBackend(FetchPolicy(), HURRY, Deadline(5), Names(public_test=[["93.184.216.34"]]))
    backend._sockets = Diverted(canary.port)
    with pytest.raises(FetchRefusedError, match=r"answers from 127\.0\.0\.1"):
        backend.connect_tcp("public.test", 80)
    assert len(canary.requests) == asked


_PIECES = st.sampled_from(
    [
        *"/?#@:.%[]&;=-_",
        "\\",
        "//",
        "http:",
        "127.0.0.1",
        "shop.example",
        "80",
        "0x7f",
        "ß",
        "。",
        "１",
        "%2F",
        "%40",
        "::1",
    ]
)


@given(st.builds("".join, st.lists(_PIECES, max_size=8)), st.sampled_from(["http://", "https://", "HTTP://"]))
def test_every_reader_finds_the_same_host_in_what_is_asked(rest: str, scheme: str) -> None:
    try:
        url = parse_url(scheme + rest)
    except FetchRefusedError:
        return
    split, other = urlsplit(url.text), httpx.URL(url.text)
    assert (split.hostname, other.raw_host.decode()) == (url.host, url.host)
    assert {split.port or DEFAULT_PORTS[url.scheme], other.port or DEFAULT_PORTS[url.scheme]} == {url.port}
    assert parse_url(url.text) == url
    assert url.target.isascii()
    assert not set(url.target) & set(" \\#\r\n")


@given(st.text(st.characters(), max_size=30), st.sampled_from(["", "http://", "https://a.test/", "s3://", "s3://abc/"]))
def test_whatever_is_written_is_read_or_refused(text: str, begins: str) -> None:
    shown(begins + text)
    is_remote(begins + text)
    for url in (begins + text, f"http://a{text}.test/", f"http://a.test/{text}"):
        with contextlib.suppress(FetchRefusedError):
            parse_url(url).text.encode("ascii")
    with contextlib.suppress(FetchRefusedError):
        redirected(parse_url("https://a.test/b/c?d"), text)
    with pytest.raises(BadInputError):
        BucketReader(FetchPolicy(), 100).read(begins + text)


# ---------------------------------------------------------------------------------------------- answers


def drip(asked: Asked) -> None:
    asked.begin(200, Content_Length="100000")
    while not asked.server.over.wait(0.02):
        asked.wfile.write(PICTURE[:1])


def drip_headers(asked: Asked) -> None:
    asked.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while not asked.server.over.wait(0.02):
        asked.wfile.write(b"x")


def many_headers(asked: Asked) -> None:
    asked.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while not asked.server.over.is_set():
        asked.wfile.write(b"X-More: " + b"x" * 10_000 + b"\r\n")


def not_yet(asked: Asked) -> None:
    while not asked.server.over.is_set():
        asked.wfile.write(b"HTTP/1.1 102 Processing\r\n\r\n" * 100)


def silent(asked: Asked) -> None:
    asked.server.over.wait(20)


def endless(asked: Asked) -> None:
    asked.begin(200, Transfer_Encoding="chunked")
    while not asked.server.over.is_set():
        asked.wfile.write(b"10000\r\n" + PICTURE[:1000].ljust(65536, b"\0") + b"\r\n")


def endless_chunk_names(asked: Asked) -> None:
    asked.begin(200, Transfer_Encoding="chunked")
    while not asked.server.over.is_set():
        asked.wfile.write(b"1;" + b"x" * 1000 + b"\r\nB\r\n")


def endless_until_closed(asked: Asked) -> None:
    asked.begin(200)
    while not asked.server.over.is_set():
        asked.wfile.write(PICTURE.ljust(65536, b"\0"))


HTML = b"<!DOCTYPE html><html><body>Please log in</body></html>"
SMALL = FetchLimits(
    most_bytes=300_000, total_s=1.5, idle_s=0.5, grace_s=0.4, tries=2, first_pause_s=0.01, longest_pause_s=0.05
)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (drip, "bytes a second"),
        (drip_headers, "bytes a second"),
        (many_headers, "no HTTP"),
        (not_yet, "longer than|larger than"),
        (silent, "in time"),
        (endless, "larger than"),
        (endless_chunk_names, "larger than|not a picture"),
        (endless_until_closed, "larger than"),
        (lambda a: a.send(200, PICTURE, Content_Length="100000000000000"), "larger than"),
        (lambda a: a.send(200, PICTURE, Content_Length=str(len(PICTURE) + 5)), "broke off|in time"),
        (lambda a: a.send(200, PICTURE, Content_Length="-5"), "no HTTP"),
        (lambda a: a.send(200, PICTURE, Content_Length="5, 6"), "no HTTP"),
        (lambda a: a.send(200, gzip.compress(b"\0" * 3_000_000), Content_Encoding="gzip"), "packed"),
        (lambda a: a.send(200, PICTURE, Content_Encoding="br"), "packed"),
        (lambda a: a.send(200, PICTURE, Content_Encoding="identity, gzip"), "packed"),
        (lambda a: a.send(200, gzip.compress(b"\0" * 3_000_000)), "not a picture"),
        (lambda a: a.send(200, PICTURE, Transfer_Encoding="gzip, chunked"), "no HTTP"),
        (lambda a: a.send(200, HTML, Content_Type="image/png"), "web page"),
        (lambda a: a.send(200, b"\n <html>", Content_Type="image/png"), "web page"),
        (lambda a: a.send(200, b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "SVG"),
        (lambda a: a.send(200, b'{"AccessKeyId": "x"}', Content_Type="image/png"), "not a picture"),
        (lambda a: a.send(200, b"root:x:0:0:root:/root:/bin/sh\n", Content_Type="image/png"), "not a picture"),
        (lambda a: a.send(200, b"%PDF-1.7"), "PDF"),
        (lambda a: a.send(200), "empty"),
        (lambda a: a.send(204), "answers 204"),
        (lambda a: a.send(206, PICTURE, Content_Range="bytes 0-5/100"), "answers 206"),
        (lambda a: a.send(304), "answers 304"),
        (lambda a: a.send(300, PICTURE), "answers 300"),
        (lambda a: a.send(401, PICTURE, WWW_Authenticate="Basic"), "log-in"),
        (lambda a: a.send(403, PICTURE), "denied"),
        (lambda a: a.send(404, PICTURE), "no such picture"),
        (lambda a: a.send(407, PICTURE), "answers 407"),
        (lambda a: a.send(500, PICTURE), "answers 500, 2 times"),
        (lambda a: a.send(503, PICTURE, Retry_After="86400"), "pause of 86400 s"),
        (lambda a: a.send(429, PICTURE, Retry_After="Fri, 01 Jan 2100 00:00:00 GMT"), "pause of"),
        (lambda a: a.send(101, Upgrade="websocket"), "answers 101|no HTTP"),
        (lambda a: a.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n"), "no HTTP"),
        (lambda a: a.wfile.write(b"+OK redis\r\n"), "no HTTP"),
        (lambda a: None, "broke off"),
    ],
)
def test_what_is_no_picture_ends_in_a_sentence(answer, says: str) -> None:
    with host(answer) as server:
        message = refused(guarded(server, "127.0.0.1", limits=SMALL), f"http://127.0.0.1:{server.port}/a.png?k=secret")
        assert any(part in message for part in says.split("|")), message
        assert message.startswith(f"http://127.0.0.1:{server.port}/a.png?…: ")


@pytest.mark.parametrize("name", ["wrong.test", "127.0.0.1"])
def test_a_certificate_of_another_name_is_not_believed(name: str) -> None:
    with host(sends_picture, tls=True) as server:
        policy = FetchPolicy(private_hosts=(f"127.0.0.1:{server.port}",))
        names = Names(right_test=[["127.0.0.1"]], wrong_test=[["127.0.0.1"]])
        tls = ssl.create_default_context(cafile=str(CERTIFICATE))
        fetcher = PictureFetcher(policy, limits=HURRY, resolve=names, tls=tls)
        assert fetcher.fetch(f"https://right.test:{server.port}/a.png") == PICTURE
        assert "certificate" in refused(fetcher, f"https://{name}:{server.port}/a.png")
        # Nor one that nobody vouches for.
        fetcher = PictureFetcher(policy, limits=HURRY, resolve=names)
        assert "certificate" in refused(fetcher, f"https://right.test:{server.port}/a.png")
        assert len(server.requests) == 1


def test_a_name_server_that_is_silent_is_not_waited_for() -> None:
    over = threading.Event()

    def never(_name: str, _port: int) -> list[str]:
        over.wait(30)
        return ["127.0.0.1"]

    limits = FetchLimits(total_s=1, connect_s=0.1, tries=2, first_pause_s=0.01)
    with pytest.raises(BadInputError, match="does not answer in time"):
        PictureFetcher(FetchPolicy(), limits=limits, resolve=never).fetch("http://slow.test/a.png")
    over.set()


# ---------------------------------------------------------------------------------------------- addresses and rules


@given(st.ip_addresses(v=4))
def test_of_version_4_only_global_addresses_are_public(address: ipaddress.IPv4Address) -> None:
    if kind_of(address) is AddressKind.PUBLIC:
        assert address.is_global
        assert not address.is_multicast
    for prefix in ("::ffff:0:0", "64:ff9b::"):
        assert kind_of(ipaddress.IPv6Address(int(ipaddress.IPv6Address(prefix)) + int(address))) is kind_of(address)


@given(st.ip_addresses(v=6))
def test_of_version_6_only_global_unicast_is_public(address: ipaddress.IPv6Address) -> None:
    if kind_of(address) is AddressKind.PUBLIC and address.ipv4_mapped is None and str(address)[:9] != "64:ff9b::":
        assert address.is_global
        assert address in ipaddress.ip_network("2000::/3")


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "1.1.1.1", "2606:2800:220:1:248:1893:25c8:1946", "64:ff9b::101:101"]
)
def test_the_internet_is_public(address: str) -> None:
    assert kind_of(ipaddress.ip_address(address)) is AddressKind.PUBLIC


def test_a_rule_is_about_its_host_and_port_alone() -> None:
    policy = FetchPolicy(private_hosts=("files.lan:8080", "10.1.0.0/16", "[fd12::1]:8443", "*.shop.lan"))
    for host_, port, address in [
        ("files.lan", 8080, "10.9.9.9"),
        ("anything", 443, "10.1.2.3"),
        ("fd12::1", 8443, "fd12::1"),
        ("a.shop.lan", 80, "192.168.0.1"),
        ("shop.example", 443, "93.184.216.34"),
        ("files.lan", 8080, "93.184.216.34"),
    ]:
        policy.check_address(host_, port, ipaddress.ip_address(address))
    for host_, port, address in [
        ("files.lan", 443, "10.9.9.9"),
        ("other.lan", 8080, "10.9.9.9"),
        ("anything", 8080, "10.1.2.3"),
        ("anything", 443, "10.2.0.1"),
        ("fd12::2", 8443, "fd12::2"),
        ("shop.lan", 80, "192.168.0.1"),
        ("evilshop.lan", 80, "192.168.0.1"),
        ("files.lan", 8080, "127.0.0.1"),
        ("shop.example", 8080, "93.184.216.34"),
    ]:
        with pytest.raises(Exception, match=r"is not public|is not asked"):
            policy.check_address(host_, port, ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "rule", ["", "http://x", "a b", "x:0", "x:99999", "1.2.3", "1.2.3.4/40", "*.*", "user@x", "::1::"]
)
def test_rules_that_cannot_be_read_are_refused(rule: str) -> None:
    with pytest.raises(ValueError, match=r"is no host|no port"):
        HostRule.parse(rule)


def test_only_hosts_that_are_listed_are_asked(canary: Host) -> None:
    policy = FetchPolicy(hosts=("*.shop.example",), private_hosts=("127.0.0.1",), ports=(canary.port,))
    fetcher = PictureFetcher(policy, limits=HURRY, resolve=Names(img_shop_example=[["127.0.0.1"]]))
    assert fetcher.fetch(f"http://img.shop.example:{canary.port}/a.png") == PICTURE
    assert "none of the hosts" in refused(fetcher, f"http://127.0.0.1:{canary.port}/a.png")
    off = PictureFetcher(FetchPolicy(enabled=False), resolve=Names())
    assert "not fetched here" in refused(off, "https://shop.example/a.png")
