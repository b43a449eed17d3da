"""Connections to hosts that strangers name: looked up once, every address judged, and the socket looked at again."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import httpcore

from cluster.remote.policy import FetchPolicy
from cluster.remote.urls import FetchRefusedError
from pipeline.units import MIB, format_bytes

#: Addresses of one name that are tried.
_MOST_TRIED = 4

#: Gives the addresses of a host, as text. Raises `OSError`.
Resolve = Callable[[str, int], Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class FetchLimits:
    """How much of time and bytes a picture may take."""

    #: Bytes of a picture: as many as a still that is uploaded may have.
    most_bytes: int = 200 * MIB
    #: Seconds for all of it: redirects, tries and pauses included.
    total_s: float = 180
    #: Seconds for a connection, for looking its host up, and for silence.
    connect_s: float = 10
    idle_s: float = 15
    #: Bytes a second that have to come on average, once so many seconds have gone.
    least_bytes_s: float = 1024
    grace_s: float = 15
    tries: int = 4
    first_pause_s: float = 0.5
    #: Longest pause between two tries, also where the host asks for a longer one.
    longest_pause_s: float = 30
    redirects: int = 5


class Deadline:
    """When a picture has to be there."""

    def __init__(self, after_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._after_s = after_s
        self._end = clock() + after_s

    def left_s(self) -> float:
        """Seconds that are left. Raises `FetchRefusedError` where none are."""
        left = self._end - self._clock()
        if left <= 0:
            raise FetchRefusedError(f"it took longer than {self._after_s:g} seconds", "Try again, or download it.")
        return left


def system_addresses(host: str, port: int) -> list[str]:
    """Addresses of a host as the system looks them up. Raises `OSError`."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(place[4][0]) for place in found))


class GuardedBackend(httpcore.NetworkBackend):
    """Connects for one picture, to hosts and addresses that a policy lets it ask.

    A name is looked up once for a connection, and the connection is made to one of the addresses that were judged, so
    that nobody can give another answer in between.
    """

    def __init__(
        self, policy: FetchPolicy, limits: FetchLimits, deadline: Deadline, resolve: Resolve = system_addresses
    ) -> None:
        self._policy, self._limits, self._deadline, self._resolve = policy, limits, deadline, resolve
        self._sockets = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """A connection to `host`. Raises `FetchRefusedError`, and `httpcore.ConnectError` and its like."""
        addresses = self._addresses(host, port)
        # All of them, before any is asked: a name of which one is ours is not to be trusted with the others.
        for address in addresses:
            self._policy.check_address(host, port, address)
        error: Exception | None = None
        for address in addresses[:_MOST_TRIED]:
            try:
                wait_s = min(self._limits.connect_s, self._deadline.left_s())
                stream = self._sockets.connect_tcp(str(address), port, wait_s, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as failed:
                error = failed
                continue
            try:
                self._check_peer(stream, host, port, address)
            except BaseException:
                stream.close()
                raise
            return _BoundedStream(stream, self._limits, self._deadline)
        raise error or httpcore.ConnectError(f"{host} has no address")

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.NetworkStream:
        """Nothing: pictures lie behind no socket of this machine. Raises `FetchRefusedError`."""
        raise FetchRefusedError("it is a socket of this machine", "Give a URL.")

    def sleep(self, seconds: float) -> None:
        """Wait; connections are made once, so nothing here does."""
        time.sleep(seconds)

    def _addresses(self, host: str, port: int) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
        try:
            return [ipaddress.ip_address(host)]
        except ValueError:
            pass
        texts = _within(min(self._limits.connect_s, self._deadline.left_s()), lambda: self._resolve(host, port))
        return [ipaddress.ip_address(text) for text in texts]

    def _check_peer(
        self,
        stream: httpcore.NetworkStream,
        host: str,
        port: int,
        address: ipaddress.IPv4Address | ipaddress.IPv6Address,
    ) -> None:
        peer = ipaddress.ip_address(stream.get_extra_info("server_addr")[0])
        if peer != address:
            raise FetchRefusedError(f"{host} answers from {peer}, not from {address}", "Check the network's proxies.")
        self._policy.check_address(host, port, peer)


def _within(limit_s: float, look_up: Callable[[], Sequence[str]]) -> Sequence[str]:
    """What `look_up` returns; a name server that does not answer is left to itself after `limit_s` seconds."""
    answer: list[Sequence[str]] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            answer.append(look_up())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="clipmill-look-up", daemon=True)
    thread.start()
    thread.join(limit_s)
    if failed:
        raise failed[0]
    if not answer:
        raise httpcore.ConnectTimeout("the name was not looked up in time")
    return answer[0]


class _BoundedStream(httpcore.NetworkStream):
    """A connection that may be neither slow nor endless, whatever comes through it."""

    def __init__(self, stream: httpcore.NetworkStream, limits: FetchLimits, deadline: Deadline) -> None:
        self._stream, self._limits, self._deadline = stream, limits, deadline
        self._began = time.monotonic()
        self._read = 0

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Up to `max_bytes` bytes. Raises `FetchRefusedError` beyond the limits, and `httpcore.ReadTimeout`."""
        limits = self._limits
        data = self._stream.read(max_bytes, min(limits.idle_s, self._deadline.left_s()))
        self._read += len(data)
        # Headers and chunk sizes are bytes as well: one more mebibyte is plenty.
        if self._read > limits.most_bytes + MIB:
            raise FetchRefusedError(f"it is larger than {format_bytes(limits.most_bytes)}", "Save it smaller.")
        gone_s = time.monotonic() - self._began
        if data and gone_s > limits.grace_s and self._read < limits.least_bytes_s * gone_s:
            message = f"it comes at less than {limits.least_bytes_s:,.0f} bytes a second"
            raise FetchRefusedError(message, "Try again, or download it beside the manifest.")
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send bytes. Raises `httpcore.WriteTimeout`."""
        self._stream.write(buffer, min(self._limits.idle_s, self._deadline.left_s()))

    def close(self) -> None:
        """End the connection."""
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        """The connection encrypted, its certificate that of `server_hostname`. Raises `httpcore.ConnectError`."""
        wait_s = min(self._limits.connect_s, self._deadline.left_s())
        self._stream = self._stream.start_tls(ssl_context, server_hostname, wait_s)
        return self

    def get_extra_info(self, info: str) -> Any:
        """What the connection beneath says of itself."""
        return self._stream.get_extra_info(info)
