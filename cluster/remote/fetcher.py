"""One picture by https or http, from a host that nobody vouches for."""

from __future__ import annotations

import contextlib
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpcore
import httpx

from cluster.backoff import doubling
from cluster.remote.connect import Deadline, FetchLimits, GuardedBackend, Resolve, system_addresses
from cluster.remote.failures import TRY_AGAIN, LaterError, of_connection, of_look_up, pause_of
from cluster.remote.policy import FetchPolicy
from cluster.remote.remembered import FetchedStill, RememberedStills
from cluster.remote.urls import FetchRefusedError, PictureUrl, parse_url, redirected, shown
from pipeline.clips.refusals import check_begins
from pipeline.problems import BadInputError
from pipeline.units import format_bytes

#: First bytes of a file by which it is told whether it is a picture.
_HEAD_BYTES = 4096
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
#: Answers that may be others in a moment.
_LATER = frozenset({408, 425, 429, 500, 502, 503, 504})
_WORDS = {
    401: ("it asks for a log-in (401)", "Give a URL that needs none, or download it beside the manifest."),
    403: ("access is denied (403)", "Give a URL that anybody may read, or download it beside the manifest."),
    404: ("there is no such picture (404)", "Correct the URL."),
    410: ("the picture is gone (410)", "Correct the URL."),
}


@dataclass
class _Hop:
    """The request that is being made, of those that redirects lead to."""

    url: PictureUrl
    number: int = 0


class PictureFetcher:
    """Fetches pictures, each over a connection of its own; safe to use from several threads.

    Nothing is sent but the URL, the host's name and what was remembered of that URL: no credentials, cookies,
    `Authorization` or `Referer`. Proxies and `.netrc` of the environment are not obeyed; `SSL_CERT_FILE` is.
    """

    def __init__(
        self,
        policy: FetchPolicy,
        *,
        limits: FetchLimits | None = None,
        remembered: RememberedStills | None = None,
        resolve: Resolve = system_addresses,
        wait: Callable[[float], object] = time.sleep,
        tls: ssl.SSLContext | None = None,
        begins: Callable[[bytes], object] = check_begins,
        accept: str = "image/*",
    ) -> None:
        """`wait` pauses for so many seconds between two tries; `tls` says which certificates are believed.

        `begins` is given the first bytes of an answer, and raises `BadInputError` where they are not what was asked
        for; `accept` is the header of that name.
        """
        self._policy = policy
        self._limits = limits or FetchLimits()
        self._remembered = remembered
        self._resolve = resolve
        self._wait = wait
        self._tls = tls
        self._making_tls = threading.Lock()
        self._begins, self._accept = begins, accept

    def fetch(self, url: str) -> bytes:
        """The bytes at an http or https URL, which begin as a picture does.

        Raises `BadInputError` on the field `image`, in whose words there is neither query nor password.
        """
        hop: _Hop | None = None
        try:
            hop = _Hop(parse_url(url))
            return self._try(hop)
        except FetchRefusedError as error:
            raise self._problem(url, hop, error.message, error.remedy) from None
        except BadInputError as error:
            raise self._problem(url, hop, error.problem.message, error.problem.remedy) from None

    def _certificates(self) -> ssl.SSLContext:
        """Which certificates are believed, read when the first picture is asked for: most catalogs have no URLs."""
        with self._making_tls:
            if self._tls is None:
                # SSL_CERT_FILE is obeyed: a shop's own network has certificates of its own.
                self._tls = httpx.create_ssl_context()
            return self._tls

    def _problem(self, url: str, hop: _Hop | None, message: str, remedy: str) -> BadInputError:
        leads = f" (leads to {hop.url.shown})" if hop is not None and hop.number else ""
        return BadInputError("image", f"{shown(url)}{leads}: {message}", remedy)

    def _try(self, hop: _Hop) -> bytes:
        first, deadline = hop.url, Deadline(self._limits.total_s)
        pauses = doubling(self._limits.first_pause_s, self._limits.longest_pause_s)
        for tried in range(1, self._limits.tries + 1):
            hop.url, hop.number = first, 0
            try:
                return self._follow(hop, deadline)
            except LaterError as error:
                pause_s = max(next(pauses), error.pause_s)
                if pause_s > min(self._limits.longest_pause_s, deadline.left_s()):
                    raise FetchRefusedError(
                        f"{error.message}, and asks for a pause of {pause_s:.0f} s", TRY_AGAIN
                    ) from error
                if tried == self._limits.tries:
                    raise FetchRefusedError(f"{error.message}, {tried} times", TRY_AGAIN) from error
            self._wait(pause_s)
        raise AssertionError("the last try returns or raises")

    def _follow(self, hop: _Hop, deadline: Deadline) -> bytes:
        while True:
            found = self._ask(hop.url, deadline)
            if isinstance(found, bytes):
                return found
            if hop.number == self._limits.redirects:
                raise FetchRefusedError(f"more than {self._limits.redirects} redirects", "Give the picture's own URL.")
            hop.url, hop.number = found, hop.number + 1

    def _ask(self, url: PictureUrl, deadline: Deadline, *, anew: bool = False) -> bytes | PictureUrl:
        """The picture at `url`, or where that leads; `anew`: as if it had never been fetched."""
        self._policy.check_url(url)
        known = self._remembered.get(url.key) if self._remembered and not anew else None
        origin = httpcore.URL(scheme=url.scheme, host=url.host, port=url.port, target=url.target)
        request = httpcore.Request("GET", origin, headers=_headers(url, known, self._accept))
        backend = GuardedBackend(self._policy, self._limits, deadline, self._resolve)
        tls = self._certificates() if url.scheme == "https" else None
        with httpcore.HTTPConnection(origin.origin, ssl_context=tls, network_backend=backend) as connection:
            try:
                response = connection.handle_request(request)
                if response.status != 304 or known is None:
                    return self._answer(url, response)
            except OSError as error:
                # The name could not be looked up; what a socket says comes as one of httpcore's.
                raise of_look_up(error) from error
            except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError) as error:
                raise of_connection(error) from error
        assert self._remembered is not None
        data = self._remembered.still(known)
        return self._ask(url, deadline, anew=True) if data is None else data

    def _answer(self, url: PictureUrl, response: httpcore.Response) -> bytes | PictureUrl:
        headers = {name.lower(): value.decode("latin-1") for name, value in response.headers}
        status = response.status
        if status in _REDIRECTS:
            location = headers.get(b"location", "")
            if not location:
                raise FetchRefusedError(f"it redirects nowhere ({status})", "Give the URL of the picture itself.")
            # UTF-8 or Latin-1 where it is not ASCII, whatever the standard says.
            with contextlib.suppress(UnicodeDecodeError):
                location = location.encode("latin-1").decode("utf-8")
            return redirected(url, location)
        if status in _LATER:
            raise LaterError(f"the host answers {status}", pause_of(headers.get(b"retry-after", "")))
        if status != 200:
            raise FetchRefusedError(*_WORDS.get(status, (f"the host answers {status}", TRY_AGAIN)))
        data = self._body(response, headers)
        self._remember(url, headers, data)
        return data

    def _body(self, response: httpcore.Response, headers: dict[bytes, str]) -> bytes:
        most = self._limits.most_bytes
        coding = headers.get(b"content-encoding", "identity").strip().lower()
        if coding not in ("", "identity"):
            raise FetchRefusedError(f"it comes packed ({coding[:20]!a}), which was not asked for", TRY_AGAIN)
        length = headers.get(b"content-length", "")
        too_large = FetchRefusedError(f"it is larger than {format_bytes(most)}", "Save it smaller.")
        if length.isdecimal() and int(length) > most:
            raise too_large
        body, looked_at = bytearray(), False
        for part in response.iter_stream():
            body += part
            if len(body) > most:
                raise too_large
            if not looked_at and len(body) >= _HEAD_BYTES:
                # Before the rest is read, whatever the answer says that it is.
                self._begins(bytes(body[:_HEAD_BYTES]))
                looked_at = True
        if not looked_at:
            self._begins(bytes(body))
        return bytes(body)

    def _remember(self, url: PictureUrl, headers: dict[bytes, str], data: bytes) -> None:
        if self._remembered:
            etag, modified = headers.get(b"etag", ""), headers.get(b"last-modified", "")
            self._remembered.put(url.key, data, etag=etag, last_modified=modified)


def _headers(url: PictureUrl, known: FetchedStill | None, accept: str) -> list[tuple[str, str]]:
    headers = [
        ("Host", url.authority),
        ("User-Agent", "clipmill"),
        ("Accept", accept),
        ("Accept-Encoding", "identity"),
        ("Connection", "close"),
    ]
    if known is not None and known.etag:
        headers.append(("If-None-Match", known.etag))
    elif known is not None:
        headers.append(("If-Modified-Since", known.last_modified))
    return headers
