"""Who asks: a key's owner with the key's scopes, looked up in the store once in a few seconds."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from anyio import CapacityLimiter
from anyio.to_thread import run_sync

from cluster.access.keys import AccessKey, KeyState, read_key_text
from cluster.access.quotas import NO_QUOTA, OwnerQuota
from cluster.access.scopes import Scope
from cluster.store.access.keys import KeyStore
from cluster.store.access.quotas import QuotaStore
from cluster.store.access.sessions import SessionStore
from cluster.store.database import Database

log = logging.getLogger("clipmill.gateway")

#: A look-up holds for so many seconds: a key that was revoked, or a quota that was changed, on another replica or by
#: the command line is known here after as many.
LOOKUP_S = 3.0
#: Look-ups that are remembered; the oldest go first.
_REMEMBERED = 10_000
#: Threads in which the store is asked, beside those of requests that are answered.
_THREADS = 2


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who asks, and what they may."""

    #: Whose work is seen, changed and handed in.
    owner: str
    scopes: frozenset[Scope]
    #: None: nobody was asked for a key.
    key: AccessKey | None = None
    quota: OwnerQuota = NO_QUOTA

    @property
    def operates(self) -> bool:
        """Whether they may act for every owner."""
        return Scope.OPERATE in self.scopes

    def acting_for(self, owner: str) -> Caller:
        """Whoever asks, with another owner's work before them."""
        return replace(self, owner=owner)


@dataclass(frozen=True, kw_only=True)
class Credential:
    """What a request shows of who sends it: the text of a key, or a session's secret."""

    secret: str
    is_session: bool = False

    def __repr__(self) -> str:
        return f"Credential({'session' if self.is_session else 'key'})"


@dataclass(frozen=True, kw_only=True)
class RefusedCredential:
    """A credential that opens nothing, and why."""

    message: str


class CallerLookup:
    """Callers by their credentials. Of one event loop.

    Requests that come with one credential at once look together; a text that is no key costs the store nothing.
    """

    def __init__(
        self, database: Database, *, kept_s: float = LOOKUP_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`clock` in seconds, for how old a look-up is."""
        self._keys, self._sessions, self._quotas = KeyStore(database), SessionStore(database), QuotaStore(database)
        #: A look-up holds for so many seconds of this clock.
        self.kept_s, self.clock = kept_s, clock
        self._threads = CapacityLimiter(_THREADS)
        self._known: dict[Credential, tuple[float, asyncio.Task[Caller | RefusedCredential]]] = {}
        self._any: tuple[float, asyncio.Task[bool]] | None = None
        self._needs_key = False

    async def needs_key(self) -> bool:
        """Whether a key was ever made on this farm. Once it was, the answer stays.

        Raises `sqlalchemy.exc.SQLAlchemyError` where the store cannot be asked.
        """
        if not self._needs_key:
            now = self.clock()
            if self._any is None or now - self._any[0] >= self.kept_s or _has_failed(self._any[1]):
                self._any = now, asyncio.create_task(run_sync(self._keys.any, limiter=self._threads))
            self._needs_key = await asyncio.shield(self._any[1])
        return self._needs_key

    async def find(self, credential: Credential) -> Caller | RefusedCredential:
        """Who has this credential. Raises `sqlalchemy.exc.SQLAlchemyError` where the store cannot be asked."""
        now = self.clock()
        at, task = self._known.get(credential, (float("-inf"), None))
        if task is None or now - at >= self.kept_s or _has_failed(task):
            task = asyncio.create_task(run_sync(self._look, credential, limiter=self._threads))
            self._known.pop(credential, None)
            if len(self._known) >= _REMEMBERED:
                self._known.pop(next(iter(self._known)))
            self._known[credential] = now, task
        # One request that ends must not end the look-up of the others.
        return await asyncio.shield(task)

    def forget(self) -> None:
        """Look everything up anew from here on: a key, a session or a quota was changed here."""
        self._known.clear()
        self._any = None

    def _look(self, credential: Credential) -> Caller | RefusedCredential:
        if credential.is_session:
            key, now = self._sessions.key_of(credential.secret)
            unknown = "the session is over"
        else:
            text = read_key_text(credential.secret)
            if text is None:
                return RefusedCredential(message="that is no key, or a mistyped one")
            key, now = self._keys.by_text(text)
            unknown = "there is no such key"
        if key is None:
            return RefusedCredential(message=unknown)
        if (state := key.state(now)) is not KeyState.ACTIVE:
            return RefusedCredential(message=f"the key {key.id} is {state.value}")
        try:
            # Once an hour, and by a look-up, not by a request: whoever polls writes nothing.
            self._keys.note_use(key, now)
        except Exception as error:
            log.warning("the use of %s was not written: %r", key.id, error)
        return Caller(owner=key.owner, scopes=key.all_scopes, key=key, quota=self._quotas.quota(key.owner))


def _has_failed(task: asyncio.Task[Any]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)
