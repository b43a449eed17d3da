"""A running farm as others on its machine see it: ports, files, and an API that one client cannot take."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import stat
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import psutil
import pytest

from tests.acceptance.conftest import Terminal, write_catalog
from tests.acceptance.test_farm import free_port

pytestmark = pytest.mark.farm

#: `/healthz` answers within this, in seconds, whatever others do; or within so many times what it takes without them,
#: where the machine is busy.
HEALTHY_S, HEALTHY_TIMES = 0.25, 4
#: What hangs, hangs for ten minutes.
LET_IN_S = 90


def listening(pid: int) -> list[tuple[str, str, int]]:
    """(process, address, port) of every TCP port that the process or one below it listens on."""
    root = psutil.Process(pid)
    found = []
    for process in [root, *root.children(recursive=True)]:
        try:
            name = process.name()
            found += [
                (name, c.laddr.ip, c.laddr.port)
                for c in process.net_connections("inet")
                if c.status == psutil.CONN_LISTEN
            ]
        except psutil.NoSuchProcess:
            continue
    return found


def is_loopback(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    mapped = getattr(ip, "ipv4_mapped", None)
    return (mapped or ip).is_loopback


def says_without_token(port: int) -> str:
    """What the port answers to HTTP without a token: the status, `grpc` where it speaks HTTP/2 only, else `nothing`."""
    # Ray's jobs: what runs commands for whoever is let in.
    for path in ("/api/job_agent/jobs/", "/api/jobs/"):
        try:
            answer = httpx.get(f"http://127.0.0.1:{port}{path}", timeout=3)
        except httpx.RemoteProtocolError:
            return "grpc"
        except httpx.HTTPError:
            return "nothing"
        if answer.status_code != 404:
            return str(answer.status_code)
    return "404"


def grpc_refuses(port: int) -> bool:
    """Whether a call of Ray's own kind without a token is refused, or there is no such service."""
    import grpc

    channel = grpc.insecure_channel(f"127.0.0.1:{port}")
    refused = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNIMPLEMENTED}
    for method in (
        "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
        "/ray.rpc.CoreWorkerService/PushTask",
        "/ray.rpc.NodeManagerService/RequestWorkerLease",
        "/ray.rpc.ObjectManagerService/FreeObjects",
    ):
        call = channel.unary_unary(method, request_serializer=bytes, response_deserializer=bytes)
        try:
            call(b"", timeout=3)
        except grpc.RpcError as error:
            if error.code() not in refused:
                return False
        else:
            return False
    return True


@pytest.fixture
def farm(terminal: Terminal):
    """`clipmill up` in the environment of somebody who once turned tokens off: its process and its gateway's port."""
    terminal.home.mkdir(mode=0o755)
    port = free_port()
    old = os.umask(0o022)
    try:
        words = ("up", "--cards", "c8", "--port", str(port))
        process = terminal.start(*words, RAY_AUTH_MODE="disabled", RAY_AUTH_TOKEN="guessed", HOME=str(terminal.folder))
    finally:
        os.umask(old)

    def ready() -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=5).json().get("cards") == 1
        except (httpx.HTTPError, ValueError):
            return False

    terminal.until(ready, process)
    yield process.pid, port
    process.send_signal(signal.SIGINT)
    ended = terminal.finish(process)
    assert ended.code == 0, ended.err
    assert "other users could enter" in ended.err, "the home was open, and nobody was told"


def test_a_farm_as_others_see_it(terminal: Terminal, farm: tuple[int, int]) -> None:
    pid, port = farm
    catalog = write_catalog(terminal.folder / "shop", [{"prompt": "zoom in"}])
    done = terminal.run("submit", str(catalog), "--model", "camera", "--wait", "--json")
    assert done.code == 0, done.err
    ports(pid, port)
    files(terminal, pid)
    # Held, so that its events do not end.
    catalog = write_catalog(terminal.folder / "shop", [{"prompt": "pan left"}], "held.jsonl")
    held = terminal.run("submit", str(catalog), "--model", "camera", "--hold", "--json")
    assert held.code == 0, held.err
    (batch_id,) = terminal.rows("SELECT id FROM batches WHERE needs_approval")[0]
    one_client_cannot_have_all(port, batch_id)


def ports(pid: int, gateway: int, *, everywhere: bool = False) -> None:
    """Whatever the farm listens on is refused without a key or token; `everywhere`: others reach the gateway alone."""
    found = listening(pid)
    assert gateway in {port for *_, port in found}
    reached = {port for _, address, port in found if not is_loopback(address)}
    assert reached == ({gateway} if everywhere else set()), found
    told = {(name, port): says_without_token(port) for name, _, port in found if port != gateway}
    # An HTTP port refuses, and nobody asked for metrics or a dashboard, so there is no agent.
    assert {said for said in told.values() if said != "grpc"} <= {"401", "403"}, told
    assert not [name for name, _ in told if "DashboardAgent" in name]
    spoken = [port for (_, port), said in told.items() if said == "grpc"]
    assert spoken, "none of Ray's own ports was found"
    assert [port for port in spoken if not grpc_refuses(port)] == []


def files(terminal: Terminal, pid: int) -> None:
    home = terminal.home
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    modes = {}
    for path in [home, *home.rglob("*")]:
        found = path.lstat()
        modes[str(path.relative_to(home))] = stat.S_IMODE(found.st_mode)
        assert not stat.S_ISLNK(found.st_mode), path
    assert {"clipmill.db", "farm.lock", "ray-token", "storage"} <= set(modes)
    # `submit` itself writes stills and what is noted of them, by its user's own umask, within a home that nobody else
    # may enter.
    stills = {name for name in modes if name.startswith(("storage/stills", "storage/cache")) or name == "storage"}
    assert {name: oct(mode) for name, mode in modes.items() if mode & 0o077 and name not in stills} == {}
    assert any(name.endswith("video.mp4") for name in modes)
    temp = list(Path("/tmp").glob(f"clipmill-{pid}-*"))
    assert [oct(stat.S_IMODE(folder.stat().st_mode)) for folder in temp] == [oct(0o700)]
    assert not (terminal.folder / ".ray").exists(), "Ray wrote a token of its own"


def one_client_cannot_have_all(port: int, batch_id: str) -> None:
    limit_s = max(HEALTHY_S, HEALTHY_TIMES * middle_health_s(port))
    with ExitStack() as stack:

        def send(request: str) -> None:
            opened = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            opened.sendall(request.encode())

        for _ in range(100):
            send(f"GET /v1/batches/{batch_id}/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        for _ in range(110):
            send("PUT /v1/stills HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nx")
        # Two hundred at once take a while to be let in or refused; those that are in stay.
        health_s(port)
        assert middle_health_s(port) < limit_s
    foreign = httpx.get(f"http://127.0.0.1:{port}/v1/batches", headers={"Host": "evil.example"})
    assert foreign.status_code == 421


def health_s(port: int) -> float:
    began = time.monotonic()
    assert httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=LET_IN_S).json()["status"] == "ok"
    return time.monotonic() - began


def middle_health_s(port: int) -> float:
    """The slowest of many on a busy machine says nothing of the gateway; the middle one does."""
    return sorted(health_s(port) for _ in range(15))[7]
