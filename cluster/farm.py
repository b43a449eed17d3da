"""What an owner can ask of a farm, on its store and storage. CLI and gateway both speak through it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from cluster.chunks import chunks
from cluster.ingest import CHUNK_ROWS, IncomingRow, draft
from cluster.jobs import Batch, Clip, Job, Limits
from cluster.resolve import Defaults
from cluster.storage import Storage
from cluster.store import Desk
from cluster.store.desk import Terms
from cluster.store.lookup import AmbiguousIdError, NoSuchCardError
from cluster.store.verbs import Verbs
from cluster.verbs import CardOrder, CardVerb, Verb
from pipeline.stills import open_still

#: Seconds an attended batch lives on after the last sign of whoever waits for it.
ATTENDED_SECONDS = 15


@dataclass(frozen=True)
class Farm:
    """One owner's view of a farm."""

    desk: Desk
    storage: Storage
    owner: str = "local"
    #: Families whose licence is accepted, asked at every submission.
    accepted: Callable[[], Collection[str]] = frozenset

    def put_still(self, data: bytes) -> str:
        """Check a still, store it under its SHA-256 and return that. Raises `BadInputError`."""
        sha256 = hashlib.sha256(data).hexdigest()
        # A still this owner handed in before was checked then; only its presence is looked at again.
        if self.desk.still_size(self.owner, sha256) and self.storage.exists(Storage.still_key(sha256)):
            self.desk.keep_still(self.owner, sha256)
            return sha256
        image = open_still(data)
        self.storage.put_still(data)
        self.desk.record_still(self.owner, sha256, image.size)
        return sha256

    def submit(
        self,
        rows: Iterable[IncomingRow],
        defaults: Defaults,
        *,
        name: str,
        source: str = "",
        attended: bool = False,
        idempotency_key: str | None = None,
        fingerprint: str = "",
        terms: Terms | None = None,
        on_open: Callable[[str], None] = lambda _batch_id: None,
    ) -> Batch:
        """Hand in a batch; jobs can start while later rows are still being read.

        The same `idempotency_key` again returns the first batch and reads nothing, or hands in what is missing where
        the first call broke off. An attended batch is rendered
        while `attend` is called every few seconds, and replaces what was left of an earlier run of its `source`.
        `terms` say when it is held. `on_open` is told the batch's id before the first row is read.
        """
        batch_id, is_new = self.desk.open_batch(
            self.owner,
            name=name,
            source=source,
            attended_s=ATTENDED_SECONDS if attended else None,
            idempotency_key=idempotency_key,
            fingerprint=fingerprint,
            terms=terms,
        )
        on_open(batch_id)
        if not is_new and (known := self.desk.batch(self.owner, batch_id)).sealed:
            return known
        accepted = self.accepted()
        for chunk in chunks(rows, CHUNK_ROWS):
            drafts = [draft(row, defaults, self._still_size, accepted) for row in chunk]
            self._forget_lost_clips([d.content_key for d in drafts if d.content_key])
            self.desk.add(self.owner, batch_id, drafts)
            if attended:
                self.attend(batch_id)
        if attended and source:
            # Only once their heirs are there: a clip that was left half way goes on from where it stands.
            self.desk.supersede(self.owner, source, batch_id)
        self.desk.seal(self.owner, batch_id)
        return self.desk.batch(self.owner, batch_id)

    def attend(self, batch_id: str) -> None:
        """Say that somebody still waits for this batch."""
        self.desk.attend(self.owner, batch_id, ATTENDED_SECONDS)

    def batch(self, batch_id: str) -> Batch:
        """One batch. Raises `NoSuchBatchError`."""
        return self.desk.batch(self.owner, batch_id)

    def jobs(self, batch_id: str) -> list[Job]:
        """All jobs of a batch in the manifest's order."""
        return self.desk.jobs(self.owner, batch_id)

    def clips(self, batch_id: str) -> dict[str, Clip]:
        """The finished clips of a batch by clip id."""
        return self.desk.clips_of(self.owner, batch_id)

    def cancel(self, batch_id: str) -> Batch:
        """Cancel what has not ended."""
        return self.desk.cancel(self.owner, batch_id)

    def say(
        self,
        batch_id: str,
        verb: Verb,
        *,
        priority: int = 0,
        cancelled: bool = False,
        limits: Limits | None = None,
    ) -> Batch:
        """Say `verb` of a batch, as `Verbs.batch` does; returns it. Raises `NoSuchBatchError` and `RefusedError`."""
        self.verbs.batch(
            self.owner,
            batch_id,
            verb,
            priority=priority,
            cancelled=cancelled,
            limits=limits,
        )
        return self.batch(batch_id)

    def say_of_job(self, job_id: str, verb: Verb, *, priority: int = 0) -> Job:
        """Say `verb` of one job; returns it. Raises `NoSuchJobError` and `RefusedError`."""
        self.verbs.job(self.owner, job_id, verb, priority=priority)
        return self.desk.job(self.owner, job_id)

    def say_of_card(
        self, card: str, verb: CardVerb, *, reason: str = "", by: str = "", for_s: int | None = None
    ) -> tuple[str, CardOrder | None]:
        """Say `verb` of a card, which may be abbreviated; returns its whole id and what holds for it from now on.

        Raises `NoSuchCardError`, `AmbiguousIdError` and `RefusedError`.
        """
        known = {beat.card for beat in self.desk.cards()} | set(self.verbs.orders())
        found = [card] if card in known else sorted(name for name in known if name.startswith(card))
        if not found:
            raise NoSuchCardError(f"no card {card!r} was heard of lately: `clipmill cards` lists those that were")
        if len(found) > 1:
            raise AmbiguousIdError(f"several cards begin with {card!r}: {', '.join(found)}")
        self.verbs.order(found[0], verb, reason=reason, by=by or self.owner, for_s=for_s)
        return found[0], self.verbs.orders().get(found[0])

    @property
    def verbs(self) -> Verbs:
        """What may be said of batches, jobs and cards."""
        return Verbs(self.desk.database)

    def _still_size(self, sha256: str) -> tuple[int, int] | None:
        return self.desk.still_size(self.owner, sha256)

    def _forget_lost_clips(self, content_keys: list[str]) -> None:
        # A clip counts as done only while its video can be had; after a cleaned storage it is rendered again. Before
        # the rows are added: whoever waits for them fetches a completed row's clip at once.
        lost = [
            clip.id
            for clip in self.desk.clips_of_keys(self.owner, content_keys)
            if not self.storage.exists(clip.objects.video)
        ]
        if lost:
            self.desk.forget_clips(self.owner, lost)
