"""Pictures by URL, several at once and each URL once."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Generic, Self, TypeVar

from cluster.remote.buckets import BucketReader
from cluster.remote.connect import FetchLimits
from cluster.remote.fetcher import PictureFetcher
from cluster.remote.policy import FetchPolicy
from cluster.remote.remembered import RememberedStills
from cluster.remote.urls import BUCKET_SCHEMES, FetchRefusedError, parse_url, scheme_of
from cluster.storage import Storage

#: Pictures that are fetched at once, and of one host.
AT_ONCE = 8
AT_ONCE_OF_HOST = 4

_Used = TypeVar("_Used")


class RemoteStills:
    """Reads pictures by the URLs that a policy lets it; safe to use from several threads."""

    def __init__(
        self, policy: FetchPolicy, *, storage: Storage | None = None, fetcher: PictureFetcher | None = None
    ) -> None:
        """`storage` is where unchanged pictures are found again; without one each is fetched whenever it is read."""
        limits = FetchLimits()
        remembered = RememberedStills(storage) if storage is not None else None
        self._fetcher = fetcher or PictureFetcher(policy, limits=limits, remembered=remembered)
        self._buckets = BucketReader(policy, limits.most_bytes, remembered)

    def read(self, url: str) -> bytes:
        """The bytes of the picture at a URL. Raises `BadInputError` on the field `image`."""
        if scheme_of(url) in BUCKET_SCHEMES:
            return self._buckets.read(url)
        return self._fetcher.fetch(url)


class ReadAhead(Generic[_Used]):
    """Reads pictures in their order in threads, `AT_ONCE` and of one host `AT_ONCE_OF_HOST`, and uses each at once.

    A context manager: at its end nothing more is begun.
    """

    def __init__(self, read: Callable[[str], bytes], use: Callable[[bytes], _Used], urls: Iterable[str]) -> None:
        """`use` is called with the bytes in one of the threads, so that not many lie about."""
        self._read, self._use = read, use
        self._changed = threading.Condition()
        self._waiting: dict[str, deque[str]] = {}
        for url in dict.fromkeys(urls):
            self._waiting.setdefault(_host_of(url), deque()).append(url)
        self._busy: Counter[str] = Counter()
        self._done: dict[str, _Used | BaseException] = {}
        self._closed = False
        # Daemons: whoever ends the program waits for no host.
        count = min(AT_ONCE, sum(map(len, self._waiting.values())))
        self._threads = [threading.Thread(target=self._work, name="clipmill-fetch", daemon=True) for _ in range(count)]

    def result(self, url: str) -> _Used:
        """What `use` returned for a URL, once it is there. Raises what reading or using it raised."""
        with self._changed:
            self._changed.wait_for(lambda: url in self._done)
            found = self._done[url]
        if isinstance(found, BaseException):
            raise found
        return found

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            host, url = taken
            found: _Used | BaseException
            try:
                found = self._use(self._read(url))
            except BaseException as error:
                found = error
            with self._changed:
                self._busy[host] -= 1
                self._done[url] = found
                self._changed.notify_all()

    def _take(self) -> tuple[str, str] | None:
        """The next URL and its host, once one's host is free; None where none is left."""
        with self._changed:
            while not self._closed and self._waiting:
                for host, urls in self._waiting.items():
                    if self._busy[host] < AT_ONCE_OF_HOST:
                        self._busy[host] += 1
                        url = urls.popleft()
                        if not urls:
                            del self._waiting[host]
                        return host, url
                self._changed.wait()
            return None


def _host_of(url: str) -> str:
    try:
        return parse_url(url).host
    except FetchRefusedError:
        return url.split("/", 3)[2][:300] if url.count("/") > 2 else ""
