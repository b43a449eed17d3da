"""One client cannot have the whole gateway: streams nobody reads, bodies that stall, on real sockets."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import httpx
import pytest

from cluster.farm import Farm
from cluster.storage import Storage
from cluster.store import BatchStore, Database
from serve.gateway.api import create_api, protect
from serve.gateway.limits import GATEWAY_REQUESTS, Limiter, RequestLimits, Share
from tests.building import draft, still_png
from tests.served import served as serving

#: `/healthz` answers within this, in seconds, whatever others do; or within so many times what it takes without them,
#: where the machine is busy.
HEALTHY_S, HEALTHY_TIMES = 0.25, 4
PATIENCE_S = 20
#: Room for a few, and little patience: a test shall not take long.
NARROW = RequestLimits(
    streams=Share(total=5, per_client=3),
    bodies=Share(total=5, per_client=3),
    answers=Share(total=50, per_client=40),
    silent_s=1.5,
    slow_s=1.5,
    give_way_s=0.3,
)


async def nobody() -> None:
    """Nobody is nudged."""


@pytest.fixture(scope="module")
def farm(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    database = Database.in_folder(home)
    yield Farm(BatchStore(database), Storage(home / "storage"))
    database.close()


@pytest.fixture(scope="module")
def batch_id(farm) -> str:
    store = farm.batch_store
    batch_id, _ = store.open_batch("local", name="catalog")
    store.add("local", batch_id, [draft(1)])
    store.seal("local", batch_id)
    return batch_id


@contextmanager
def served(farm: Farm, limits: RequestLimits) -> Iterator[int]:
    """The gateway's application behind a server; yields its port."""
    api = protect(create_api(farm, default_model="camera", nudge=nobody), limits=limits)
    with serving(api) as port:
        yield port


def wait_for(met) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not met():
        assert time.monotonic() < deadline, "the awaited condition never came"
        time.sleep(0.01)


def connect(stack: ExitStack, port: int, request: bytes) -> socket.socket:
    opened = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S))
    opened.sendall(request)
    return opened


def stream(stack: ExitStack, port: int, batch_id: str) -> socket.socket:
    return connect(stack, port, f"GET /v1/batches/{batch_id}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())


def upload(stack: ExitStack, port: int, *, length: int = 1000, sent: bytes = b"x") -> socket.socket:
    head = f"PUT /v1/stills HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n".encode()
    return connect(stack, port, head + sent)


def status(opened: socket.socket) -> int:
    """Status of the answer, once it comes."""
    line = b""
    while b"\r\n" not in line:
        more = opened.recv(1 << 16)
        assert more, "closed without an answer"
        line += more
    return int(line.split()[1])


def answer(opened: socket.socket) -> tuple[int, dict]:
    """Status and body of an answer after which the connection is closed."""
    whole = b""
    while more := opened.recv(1 << 16):
        whole += more
    head, _, body = whole.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def health_s(port: int) -> float:
    began = time.monotonic()
    assert httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=PATIENCE_S).json()["status"] == "ok"
    return time.monotonic() - began


def middle_health_s(port: int) -> float:
    """The slowest of many on a busy machine says nothing of the gateway; the middle one does."""
    return sorted(health_s(port) for _ in range(15))[7]


def test_all_limits_together_stay_below_what_serve_lets_in():
    """What waits at Serve's bound is not even refused, and `/healthz` waits with it."""
    limits = RequestLimits()
    assert limits.streams.total + limits.bodies.total + limits.answers.total <= GATEWAY_REQUESTS - 100


@pytest.mark.timeout(120)
def test_health_is_told_beside_a_hundred_unread_streams_and_as_many_stalled_uploads(farm, batch_id):
    with served(farm, RequestLimits()) as port, ExitStack() as stack:
        limit_s = max(HEALTHY_S, HEALTHY_TIMES * middle_health_s(port))
        for _ in range(100):
            stream(stack, port, batch_id)
        for _ in range(110):
            upload(stack, port)
        assert middle_health_s(port) < limit_s
        assert httpx.get(f"http://localhost:{port}/v1/batches/{batch_id}", timeout=PATIENCE_S).is_success
        # As soon as the others have been silent for a second.
        wait_for(lambda: httpx.put(f"http://localhost:{port}/v1/stills", content=still_png()).is_success)


def test_a_client_has_so_many_streams_and_gets_one_again_when_one_ends(farm, batch_id):
    with served(farm, NARROW) as port, ExitStack() as stack:
        with ExitStack() as first:
            opened = [stream(first, port, batch_id) for _ in range(3)]
            assert [status(one) for one in opened] == [200, 200, 200]
            code, body = answer(stream(stack, port, batch_id))
            assert code == 429
            assert body["error"]["code"] == "too_many_requests"
            assert body["error"]["clipmill"]["remedy"] in body["error"]["message"]
            # Other requests are another matter.
            assert httpx.get(f"http://localhost:{port}/v1/batches").is_success

        def again() -> bool:
            with ExitStack() as later:
                return status(stream(later, port, batch_id)) == 200

        wait_for(again)


def test_a_body_that_is_silent_ends_and_says_why(farm):
    with served(farm, NARROW) as port, ExitStack() as stack:
        began = time.monotonic()
        code, body = answer(upload(stack, port))
        assert code == 408
        assert body["error"]["code"] == "slow_body"
        assert "1 bytes" in body["error"]["message"]
        assert NARROW.silent_s <= time.monotonic() - began < NARROW.silent_s + PATIENCE_S / 2


def test_a_body_that_trickles_ends_too(farm):
    """A byte now and then keeps a connection from being silent, and would last for ever."""
    limits = replace(NARROW, silent_s=PATIENCE_S)
    with served(farm, limits) as port, ExitStack() as stack:
        opened = upload(stack, port, length=10**6)
        opened.settimeout(0.1)
        began, answered = time.monotonic(), b""
        while not answered:
            assert time.monotonic() - began < PATIENCE_S
            try:
                opened.sendall(b"x")
                answered = opened.recv(100)
            except TimeoutError:
                continue
        assert answered.split()[1] == b"408"


def test_a_body_that_comes_in_time_is_taken_however_long_it_takes(farm):
    picture = still_png((640, 480), 3)
    limits = replace(NARROW, bytes_per_s=len(picture) / 20)
    with served(farm, limits) as port, ExitStack() as stack:
        opened = upload(stack, port, length=len(picture), sent=b"")
        began = time.monotonic()
        for at in range(0, len(picture), -(-len(picture) // 10)):
            opened.sendall(picture[at : at + -(-len(picture) // 10)])
            time.sleep(0.3)
        assert time.monotonic() - began > limits.slow_s
        assert status(opened) == 200


def test_silent_bodies_give_way_to_one_that_comes(farm):
    with served(farm, replace(NARROW, silent_s=60, slow_s=60)) as port, ExitStack() as stack:
        stalled = [upload(stack, port) for _ in range(3)]
        # All three are places of this client, and all are taken.
        wait_for(lambda: httpx.put(f"http://localhost:{port}/v1/stills", content=still_png()).is_success)
        codes = []
        for one in stalled:
            one.settimeout(0.5)
            try:
                codes.append(status(one))
            except TimeoutError:
                codes.append(0)
        assert 408 in codes
        # Those that had not to go still may.
        assert codes.count(0) >= 1


def test_what_everybody_has_is_bounded_too():
    """Clients of many addresses, and an application that never answers."""
    told: dict[int, int] = {}

    async def run() -> None:
        end = asyncio.Event()

        async def app(scope, receive, send) -> None:
            await end.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        limiter = Limiter(app, replace(NARROW, answers=Share(total=4, per_client=2)))

        async def ask(i: int, address: str) -> None:
            scope = {"type": "http", "method": "GET", "path": "/v1/cards", "headers": [], "client": (address, i)}

            async def send(message) -> None:
                if message["type"] == "http.response.start":
                    told[i] = message["status"]

            async def receive():
                return {"type": "http.request", "body": b"", "more_body": False}

            await limiter(scope, receive, send)

        addresses = ["a", "a", "a", "b", "b", "c"]
        tasks = [asyncio.create_task(ask(i, address)) for i, address in enumerate(addresses)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        end.set()
        await asyncio.gather(*tasks)
        # All places are given back.
        await ask(6, "a")

    asyncio.run(run())
    assert told == {0: 200, 1: 200, 2: 429, 3: 200, 4: 200, 5: 503, 6: 200}
