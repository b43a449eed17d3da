"""Messages to hosts that mean no good: bounded in time and bytes, and never sent to where nobody may be asked."""

from __future__ import annotations

import socket

import pytest

from cluster.remote.connect import FetchLimits
from cluster.remote.policy import FetchPolicy
from cluster.remote.poster import POST_LIMITS, MessagePoster, PostFailedError
from tests.unit.cluster.remote.hosts import Answer, Asked, Host, Names, host

LIMITS = FetchLimits(most_bytes=4096, total_s=1.5, connect_s=1, idle_s=1, grace_s=1)


def poster_of(server: Host, **options) -> MessagePoster:
    return MessagePoster(FetchPolicy(private_hosts=(f"127.0.0.1:{server.port}",)), limits=LIMITS, **options)


def post(server: Host, path: str = "/hook"):
    return poster_of(server).post(f"http://127.0.0.1:{server.port}{path}", b'{"a":1}', [("webhook-id", "evt_1")])


def test_a_message_arrives_with_its_headers_and_nothing_else(monkeypatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    bodies = []

    def answer(asked: Asked) -> None:
        bodies.append(asked.rfile.read(int(asked.headers["Content-Length"])))
        asked.send(204)

    with host(answer) as server:
        assert post(server, "/hook?x=1&y=ü").status == 204
        (asked,) = server.requests
    assert (asked.command, asked.path, bodies) == ("POST", "/hook?x=1&y=%C3%BC", [b'{"a":1}'])
    assert {name.lower() for name in asked.headers} == {
        "host", "user-agent", "accept", "content-type", "content-length", "connection", "webhook-id"
    }  # fmt: skip


def test_a_receiver_says_how_long_it_wants_to_be_left_alone() -> None:
    with host(lambda asked: asked.send(503, Retry_After="120")) as server:
        answer = post(server)
    assert (answer.status, answer.retry_after_s) == (503, 120)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_an_answer_and_is_not_followed(status: int) -> None:
    with (
        host(lambda asked: asked.send(200)) as inner,
        host(lambda asked: asked.send(status, Location=f"http://127.0.0.1:{inner.port}/")) as server,
    ):
        assert post(server).status == status
        assert inner.connections == 0


def hangs(asked: Asked) -> None:
    asked.server.over.wait(30)


def drips(asked: Asked) -> None:
    asked.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while not asked.server.over.wait(0.05):
        asked.wfile.write(b"x")


def informs_for_ever(asked: Asked) -> None:
    while not asked.server.over.is_set():
        asked.wfile.write(b"HTTP/1.1 102 Processing\r\n\r\n")


def endless_header(asked: Asked) -> None:
    asked.wfile.write(b"HTTP/1.1 200 OK\r\nx: ")
    while not asked.server.over.is_set():
        asked.wfile.write(b"y" * 4096)


def no_http(asked: Asked) -> None:
    asked.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n")


def hangs_up(asked: Asked) -> None:
    asked.connection.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("answer", [hangs, drips, informs_for_ever, endless_header, no_http, hangs_up])
def test_what_is_no_answer_ends_in_time_and_says_so(answer: Answer) -> None:
    with host(answer) as server, pytest.raises(PostFailedError) as failed:
        post(server)
    assert "picture" not in str(failed.value)


def test_of_an_endless_body_nothing_is_read() -> None:
    sent = 0

    def endless(asked: Asked) -> None:
        nonlocal sent
        asked.begin(200, Content_Length=str(10**12))
        while True:
            sent += asked.connection.send(b"z" * 65536)

    with host(endless) as server:
        assert post(server).status == 200
    # What the system's buffers take before the connection is closed, not what a slow reader would be sent.
    assert sent < 64 * 2**20


@pytest.mark.parametrize(
    ("url", "addresses"),
    [
        ("http://127.0.0.1/", None),
        ("http://localhost/", ["127.0.0.1"]),
        ("http://[::1]/", None),
        ("http://[::ffff:127.0.0.1]/", None),
        ("http://10.0.0.5/", None),
        ("http://169.254.169.254/latest/meta-data", None),
        ("https://inner.shop.example/", ["93.184.216.34", "10.0.0.5"]),
        ("http://2130706433/", None),
        ("http://0x7f.1/", None),
        ("https://shop.example:6379/", ["93.184.216.34"]),
    ],
)
def test_nobody_s_private_host_is_asked(url: str, addresses: list[str] | None) -> None:
    names = Names(localhost=[addresses], inner_shop_example=[addresses], shop_example=[addresses])
    with pytest.raises(PostFailedError):
        MessagePoster(FetchPolicy(), limits=LIMITS, resolve=names).post(url, b"{}", [])


def test_a_name_is_looked_up_once_and_what_it_says_later_does_not_count() -> None:
    with host(lambda asked: asked.send(200)) as server:
        names = Names(hook_test=[["127.0.0.1"], ["10.0.0.5"]])
        policy = FetchPolicy(private_hosts=(f"127.0.0.0/8:{server.port}",))
        poster = MessagePoster(policy, limits=LIMITS, resolve=names)
        assert poster.post(f"http://hook.test:{server.port}/", b"{}", []).status == 200
        assert names.asked == ["hook.test"]
        with pytest.raises(PostFailedError, match=r"10\.0\.0\.5"):
            poster.post(f"http://hook.test:{server.port}/", b"{}", [])


def test_a_farm_that_asks_nobody_sends_nothing() -> None:
    with pytest.raises(PostFailedError, match=r"fetch\.enabled"):
        MessagePoster(FetchPolicy(enabled=False)).post("https://shop.example/", b"{}", [])
    with pytest.raises(PostFailedError, match="none of the hosts"):
        MessagePoster(FetchPolicy(hosts=("a.example",))).post("https://shop.example/", b"{}", [])


def test_a_receiver_has_so_long_to_answer_as_the_scheme_says() -> None:
    assert 15 <= POST_LIMITS.total_s <= 30
