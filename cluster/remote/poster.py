"""One message sent to a host that nobody vouches for, behind the guard that pictures are fetched behind."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import httpcore
import httpx

from cluster.remote.connect import Deadline, FetchLimits, GuardedBackend, Resolve, system_addresses
from cluster.remote.failures import LaterError, of_connection, of_look_up, pause_of
from cluster.remote.policy import FetchPolicy
from cluster.remote.urls import FetchRefusedError, PictureUrl, parse_url

#: Time and bytes of one message: receivers are asked to answer first and to work later.
POST_LIMITS = FetchLimits(most_bytes=4096, total_s=20, connect_s=10, idle_s=20, grace_s=20)


@dataclass(frozen=True, kw_only=True)
class PostAnswer:
    """What a host said to a message: the status, and for how many seconds it asks not to be asked again."""

    status: int
    retry_after_s: float = 0


class PostFailedError(Exception):
    """No answer came, or the host may not be asked; says why."""


class MessagePoster:
    """Sends messages, each over a connection of its own; safe to use from several threads.

    Redirects are not followed, and of the answer nothing is read but its head: what a host behind the guard says is
    nobody's to read. Proxies and `.netrc` of the environment are not obeyed; `SSL_CERT_FILE` is.
    """

    def __init__(
        self,
        policy: FetchPolicy,
        *,
        limits: FetchLimits = POST_LIMITS,
        resolve: Resolve = system_addresses,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`tls` says which certificates are believed; None: as pictures have it."""
        self._policy, self._limits, self._resolve = policy, limits, resolve
        self._tls = tls
        self._making_tls = threading.Lock()

    def post(self, url: str, body: bytes, headers: Sequence[tuple[str, str]]) -> PostAnswer:
        """Send JSON to an http or https URL. Raises `PostFailedError`."""
        try:
            return self._post(parse_url(url), body, headers)
        except FetchRefusedError as error:
            raise PostFailedError(_words_of(error)) from error
        except LaterError as error:
            raise PostFailedError(error.message) from error

    def _post(self, url: PictureUrl, body: bytes, headers: Sequence[tuple[str, str]]) -> PostAnswer:
        self._policy.check_url(url)
        origin = httpcore.URL(scheme=url.scheme, host=url.host, port=url.port, target=url.target)
        given = [
            ("Host", url.authority),
            ("User-Agent", "clipmill"),
            ("Accept", "*/*"),
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            ("Connection", "close"),
            *headers,
        ]
        request = httpcore.Request("POST", origin, headers=given, content=body)
        backend = GuardedBackend(self._policy, self._limits, Deadline(self._limits.total_s), self._resolve)
        tls = self._certificates() if url.scheme == "https" else None
        with httpcore.HTTPConnection(origin.origin, ssl_context=tls, network_backend=backend) as connection:
            try:
                response = connection.handle_request(request)
            except OSError as error:
                # The name could not be looked up; what a socket says comes as one of httpcore's.
                raise of_look_up(error) from error
            except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError) as error:
                raise of_connection(error) from error
        found = {name.lower(): value.decode("latin-1") for name, value in response.headers}
        return PostAnswer(status=response.status, retry_after_s=pause_of(found.get(b"retry-after", "")))

    def _certificates(self) -> ssl.SSLContext:
        with self._making_tls:
            if self._tls is None:
                self._tls = httpx.create_ssl_context()
            return self._tls


def _words_of(error: FetchRefusedError) -> str:
    """The words of pictures' rules, as they are said of a message."""
    if error.message == "pictures are not fetched here":
        return "the farm asks no other hosts (fetch.enabled)"
    words = error.message.replace("it took", "the answer took").replace("pictures are", "webhooks are")
    return f"{words}. {error.remedy}" if "fetch.private_hosts" in error.remedy else words
