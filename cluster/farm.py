"""What one owner can do with a farm, on its store and storage; CLI and gateway both go through it."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache

from cluster.catalog.advice.deliveries import DeliveryPreflight
from cluster.catalog.defaults import Defaults
from cluster.catalog.ingest import CHUNK_ROWS, FIRST_ROWS, Choose, CutTexts, IncomingRow, draft
from cluster.chunks import chunks
from cluster.fleet.fleet_file import Cards, cards_of_roster
from cluster.forecast.within import TimeChooser
from cluster.jobs.commands import CardOrder, CardVerb
from cluster.jobs.ids import beginning
from cluster.jobs.model import Batch, Clip, Draft, HoldReason, Job, JobState, Limits
from cluster.jobs.review import ReviewChange
from cluster.jobs.still_notes import StillNotes
from cluster.jobs.still_products import StillProducts
from cluster.jobs.transitions import RefusedError, Verb
from cluster.maintenance import deletion
from cluster.maintenance.deletion import Deletion
from cluster.results.deliveries import PLAIN_TERMS, DeliveryTerms
from cluster.results.marked import MarkedObjects
from cluster.storage import Storage
from cluster.store import BatchStore
from cluster.store.access.quotas import QuotaStore
from cluster.store.batches import Terms
from cluster.store.commands import CommandStore
from cluster.store.lookup import AmbiguousIdError, NoSuchCardError, NoSuchJobError
from cluster.store.measurements import load_times
from pipeline.clips.still_check import check_still
from pipeline.notes import Note
from pipeline.problems import BadInputError, Problem

#: Seconds an attended batch lives on after the last sign of whoever waits for it.
ATTENDED_SECONDS = 15


def whole_card(begins: str, known: Collection[str]) -> str:
    """The one card of `known` whose id begins so. Raises `NoSuchCardError` and `AmbiguousIdError`."""
    found = beginning(begins, known)
    if not found:
        raise NoSuchCardError(f"no card {begins!r} was heard of lately: `clipmill cards` lists those that were")
    if len(found) > 1:
        raise AmbiguousIdError(f"several cards begin with {begins!r}: {', '.join(found)}")
    return found[0]


@dataclass(frozen=True)
class Farm:
    """One owner's view of a farm."""

    batch_store: BatchStore
    storage: Storage
    owner: str = "local"
    #: Families whose licence is accepted, asked at every submission.
    accepted: Callable[[], Collection[str]] = frozenset
    #: What of strict rows' texts will be cut; None: renderers find out.
    cut_texts: CutTexts | None = None
    #: What rows may be delivered for, and what is laid over them.
    deliveries: DeliveryTerms = PLAIN_TERMS
    #: Cards that will be there, where none is heard of yet: times are counted with them.
    planned_cards: Callable[[], Sequence[Cards]] = tuple
    #: Files of clips as they leave the farm, with their marks; None: they leave as they are in storage.
    marked: MarkedObjects | None = None

    @property
    def outgoing(self) -> MarkedObjects | Storage:
        """Where files of clips come from that leave the farm."""
        return self.marked or self.storage

    @property
    def marks(self) -> str:
        """Names who marks files, and changes with them; empty where nobody does."""
        return self.marked.marks if self.marked else ""

    def of(self, owner: str) -> Farm:
        """Make the view that another owner has of this farm."""
        return self if owner == self.owner else replace(self, owner=owner)

    def put_still(self, data: bytes) -> str:
        """Check a still, store it under its SHA-256 and return that. Raises `BadInputError`."""
        sha256 = hashlib.sha256(data).hexdigest()
        # A still this owner handed in before was checked then; only its presence is looked at again.
        known = self.batch_store.still_size(self.owner, sha256)
        if known and self.storage.exists(Storage.still_key(sha256)):
            self.batch_store.keep_still(self.owner, sha256)
            self.still_notes.learn(sha256, data, known)
            return sha256
        size = check_still(data)
        self.still_notes.learn(sha256, data, size)
        self.storage.put_still(data)
        self.batch_store.record_still(self.owner, sha256, size)
        return sha256

    def check(self, row: IncomingRow, defaults: Defaults) -> tuple[Problem, ...]:
        """What is wrong with a row whose still was handed in, before anything is made of it; () where nothing is."""
        [made] = self._drafts([row], defaults, self.choose_in_time())
        return made.problems

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
        strict: Collection[str] = (),
        count: int = 1,
        on_open: Callable[[str], None] = lambda _batch_id: None,
    ) -> Batch:
        """Hand in a batch; jobs can start while later rows are still being read.

        The same `idempotency_key` again returns the first batch and reads nothing, or hands in what is missing where
        the first call broke off. An attended batch is rendered while `attend` is called every few seconds, and
        replaces what was left of an earlier run of its `source`.
        `terms` say when it is held. `strict`: names of rows that are strict even where `defaults` are not.
        `on_open` is called with the batch's id before the first row is read. Raises `QuotaExceededError`, before a row
        is in, where the owner may hand in no more, or not `count` rows.
        """
        batch_id, is_new = self.batch_store.open_batch(
            self.owner,
            name=name,
            source=source,
            attended_s=ATTENDED_SECONDS if attended else None,
            idempotency_key=idempotency_key,
            fingerprint=fingerprint,
            terms=terms,
        )
        on_open(batch_id)
        if not is_new and (known := self.batch_store.batch(self.owner, batch_id)).sealed:
            return known
        try:
            QuotaStore(self.batch_store.database).check(self.owner, count)
            self._add(batch_id, rows, defaults, strict=strict, attended=attended)
        except Exception:
            if is_new:
                # Nothing of it is in: whoever mends what was wrong may use the same key.
                with contextlib.suppress(Exception):
                    self.batch_store.withdraw(self.owner, batch_id)
            raise
        if attended and source:
            # Only once their heirs are there: a clip that was left half way goes on from where it stands.
            self.batch_store.supersede(self.owner, source, batch_id)
        self.batch_store.seal(self.owner, batch_id)
        self.batch_store.kept_counts.forget()
        return self.batch_store.batch(self.owner, batch_id)

    def _add(
        self,
        batch_id: str,
        rows: Iterable[IncomingRow],
        defaults: Defaults,
        *,
        strict: Collection[str],
        attended: bool,
    ) -> None:
        choose = self.choose_in_time()
        for chunk in chunks(rows, CHUNK_ROWS, first=FIRST_ROWS):
            drafts = self._drafts(chunk, defaults, choose, strict)
            self._forget_lost_clips([d.content_key for d in drafts if d.content_key])
            self.batch_store.add(self.owner, batch_id, drafts)
            if attended:
                self.attend(batch_id)

    def attend(self, batch_id: str) -> None:
        """Renew an attended batch for `ATTENDED_SECONDS`: somebody still waits for it."""
        self.batch_store.attend(self.owner, batch_id, ATTENDED_SECONDS)

    def batch(self, batch_id: str) -> Batch:
        """The batch of this id. Raises `NoSuchBatchError`."""
        return self.batch_store.batch(self.owner, batch_id)

    def jobs(self, batch_id: str) -> list[Job]:
        """All jobs of a batch in the manifest's order."""
        return self.batch_store.jobs(self.owner, batch_id)

    def has_job(self, job_id: str) -> bool:
        """Whether the owner has a job of this whole id."""
        try:
            self.batch_store.job(self.owner, job_id)
        except NoSuchJobError:
            return False
        return True

    def clips(self, batch_id: str) -> dict[str, Clip]:
        """The finished clips of a batch by clip id."""
        return self.batch_store.clips_of(self.owner, batch_id)

    def command_batch(
        self,
        batch_id: str,
        verb: Verb,
        *,
        priority: int = 0,
        cancelled: bool = False,
        limits: Limits | None = None,
    ) -> Batch:
        """Carry out `verb` on a batch; returns the batch as it then is. Raises `NoSuchBatchError` and `RefusedError`.

        `priority` is for `PRIORITIZE`, `limits` for `RESUME`, `cancelled` (cancelled rows too) for `RETRY`. Every draft
        that waits for a review is approved, rejected or made again; of several candidates none is approved.
        """
        self.commands.batch(
            self.owner,
            batch_id,
            verb,
            priority=priority,
            cancelled=cancelled,
            limits=limits,
        )
        if verb in (Verb.APPROVE, Verb.REJECT, Verb.REROLL):
            self._review_all(batch_id, verb)
        self.batch_store.kept_counts.forget()
        return self.batch(batch_id)

    def _review_all(self, batch_id: str, verb: Verb) -> None:
        # One transaction each: others write in between, and what somebody else decides meanwhile stands.
        for job in self.batch_store.jobs(self.owner, batch_id, state=JobState.HELD):
            one_of_several = job.row_number is not None and verb is Verb.APPROVE
            if job.reason == HoldReason.REVIEW and not one_of_several:
                with contextlib.suppress(RefusedError, NoSuchJobError, BadInputError):
                    self.commands.job(self.owner, job.id, verb)

    def delete_batch(self, batch_id: str, *, dry_run: bool = False) -> Deletion:
        """Delete a batch that is over; `dry_run`: only say what would go.

        Raises `NoSuchBatchError`, `RefusedError` where it is not over, and `StorageError`.
        """
        database = self.batch_store.database
        if dry_run:
            return deletion.plan(database, self.owner, batch_id)
        return deletion.delete_batch(database, self.storage, self.owner, batch_id)

    def command_job(self, job_id: str, verb: Verb, *, priority: int = 0, change: ReviewChange | None = None) -> Job:
        """Carry out `verb` on a job; returns the job as it then is. Raises `NoSuchJobError` and `RefusedError`.

        `priority` is for `PRIORITIZE`, `change` for `REROLL`, and for `REJECT` where another clip is to take its place.
        Raises `BadInputError` for a change that the model does not take.
        """
        self.commands.job(self.owner, job_id, verb, priority=priority, change=change)
        self.batch_store.kept_counts.forget()
        return self.batch_store.job(self.owner, job_id)

    def command_card(
        self,
        card: str,
        verb: CardVerb,
        *,
        reason: str = "",
        by: str = "",
        for_s: int | None = None,
        whole: bool = False,
    ) -> tuple[str, CardOrder | None]:
        """Carry out `verb` on the card whose id begins with `card`; returns its id and the order that then holds.

        `by` gives the order (default: the owner), which ends by itself after `for_s` seconds (None: it stands). With
        `whole`, `card` is the id itself. Raises `NoSuchCardError`, `AmbiguousIdError` and `RefusedError`.
        """
        known = {beat.card for beat in self.batch_store.cards()} | set(self.commands.orders())
        if whole and card not in known:
            raise NoSuchCardError(
                f"no card {card!r} was heard of lately: give a whole id, as `GET /v1/cards` lists them"
            )
        found = whole_card(card, known)
        self.commands.order(found, verb, reason=reason, by=by or self.owner, for_s=for_s)
        return found, self.commands.orders().get(found)

    def known_of_stills(
        self, rows: Iterable[IncomingRow]
    ) -> tuple[dict[str, tuple[int, int]], dict[str, tuple[Note, ...]]]:
        """Sizes of the rows' stills that were handed in, and what is noted of all of them, by SHA-256."""
        stills = {row.still for row in rows if row.still is not None}
        return self.batch_store.still_sizes(self.owner, stills), {one: self.still_notes.of(one) for one in stills}

    @property
    def still_notes(self) -> StillNotes:
        """What is noted of stills that were handed in."""
        return StillNotes.shared(self.storage.url)

    @property
    def delivery_preflight(self) -> DeliveryPreflight:
        """What looks at rows that ask to be delivered."""
        return DeliveryPreflight(
            profiles=self.deliveries.profiles, product_of=StillProducts.shared(self.storage.url).of
        )

    @property
    def commands(self) -> CommandStore:
        """Commands on batches, jobs and cards, in the store."""
        return CommandStore(self.batch_store.database)

    @property
    def cards(self) -> Sequence[Cards]:
        """Groups of the cards that are heard of, else of those that will be there; empty where neither is known."""
        return cards_of_roster(self.batch_store.cards()) or tuple(self.planned_cards())

    def choose_in_time(self) -> Choose:
        """What decides on rows that have `within`: by the cards that there are, and what was measured on them.

        Neither is looked up before a row asks for it.
        """
        chooser = cache(lambda: TimeChooser(self.cards, load_times(self.batch_store.database)))
        return lambda row, still_size, defaults: chooser()(row, still_size, defaults)

    def _drafts(
        self, rows: Sequence[IncomingRow], defaults: Defaults, choose: Choose, strict: Collection[str] = ()
    ) -> list[Draft]:
        # One look for all of them: at a look a row, most of a large batch's time went there.
        sizes, noted = self.known_of_stills(rows)
        accepted, strictly = self.accepted(), defaults.model_copy(update={"strict": True})
        drafts, deliveries = [], self.delivery_preflight
        for row in rows:
            asked = strictly if row.name in strict else defaults
            # A tokenizer takes seconds to load: for a note alone renderers count soon enough.
            cut_texts = self.cut_texts if asked.strict else None
            noticed = noted.__getitem__
            drafts.append(draft(row, asked, sizes.get, accepted, cut_texts, noticed, choose, deliveries))
        return drafts

    def _forget_lost_clips(self, content_keys: list[str]) -> None:
        # A clip counts as done only while its video can be had; after a cleaned storage it is rendered again. Before
        # the rows are added: whoever waits for them fetches a completed row's clip at once.
        lost = [
            clip.id
            for clip in self.batch_store.clips_of_keys(self.owner, content_keys)
            if not self.storage.exists(clip.objects.video)
        ]
        if lost:
            self.batch_store.forget_clips(self.owner, lost)
