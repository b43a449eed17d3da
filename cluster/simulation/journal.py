"""What really happened in a simulated farm, as plain data: the checker reads this and nothing of the scheduler."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from enum import StrEnum


class What(StrEnum):
    """What an entry of the journal says."""

    # -- people
    SUBMITTED = "submitted"
    CANCELLED = "cancelled"
    #: A job is held, by itself (`row`) or with its batch (`batch`), or let go; a card is closed, and by what, or opened
    #: again.
    HELD = "held"
    FREED = "freed"
    CLOSED = "closed"
    OPENED = "opened"
    # -- cards and the renderers on them
    CARD_UP = "card_up"
    CARD_DOWN = "card_down"
    #: The node of a card went away, with whatever ran there, and is started anew.
    NODE_RESTARTED = "node_restarted"
    #: A card cannot be reached by the dispatcher, or can again; its renderer works on.
    CUT_OFF = "cut_off"
    REACHED = "reached"
    #: A renderer stopped hearing the farm and stops its clips.
    ALONE = "alone"
    HANGS = "hangs"
    USABLE = "usable"
    # -- an attempt on a card
    CALLED = "called"
    WAITS = "waits"
    ON_CARD = "on_card"
    RESUMED = "resumed"
    STEP = "step"
    OVERFLOW = "overflow"
    #: The card's bytes are taken off it.
    OFF_CARD = "off_card"
    SAVED = "saved"
    UNSAVED = "unsaved"
    #: The dispatcher has heard of the checkpoint.
    TOLD = "told"
    STORED = "stored"
    STOPS = "stops"
    LEFT = "left"
    # -- dispatchers
    OFFICE_OPEN = "office_open"
    OFFICE_DEAD = "office_dead"
    OFFICE_LEFT = "office_left"
    STORE_OUT = "store_out"
    STORE_BACK = "store_back"
    #: No faults from here on: every card is back for good.
    HEALED = "healed"
    END = "end"


@dataclass(frozen=True, kw_only=True)
class JournalEntry:
    """One thing that happened at `at` (virtual seconds since the start); what does not apply is empty."""

    at: float
    what: What
    job: str = ""
    attempt: str = ""
    card: str = ""
    renderer: str = ""
    step: int = 0
    size: int = 0
    detail: str = ""

    def line(self) -> str:
        """The entry as one line of JSON, without what is empty."""
        return json.dumps({k: v for k, v in asdict(self).items() if v != "" and (v != 0 or k == "at")})


@dataclass(frozen=True, kw_only=True)
class StoreChange:
    """One committed change of the store, as its triggers saw it: of a job, an attempt or a clip."""

    at: float
    #: `job`, `cancel`, `attempt`, `end`, `clip` or `checkpoint`.
    what: str
    id: str
    before: str = ""
    after: str = ""
    job: str = ""
    renderer: str = ""
    card: str = ""
    #: Bytes that an attempt needs by the store's numbers, and the step it goes on from.
    size: int = 0
    step: int = 0


@dataclass(frozen=True, kw_only=True)
class JobTruth:
    """A job as it was handed in, and what is true of it."""

    id: str
    owner: str
    content_key: str
    name: str
    steps: int
    #: Whether its family can go on from a checkpoint.
    resumable: bool
    #: Virtual seconds its whole clip takes on the slowest card.
    longest_s: float
    #: The longest that one step takes there.
    longest_step_s: float
    #: Least bytes a card must have by prediction, in its leanest layout.
    least_bytes: int
    #: Why the job can never be rendered (its row kills, breaks or is wrong); empty where it can.
    poison: str = ""
    #: Somebody waits for it.
    interactive: bool = False


@dataclass(frozen=True, kw_only=True)
class CardTruth:
    """A card as it is."""

    name: str
    card_class: str
    usable_bytes: int


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What the farm was configured for, in seconds unless it says otherwise; the invariants are about these."""

    checkpoint_steps: int
    checkpoint_write_s: float
    beat_s: float
    renew_s: float
    lease_s: float
    silent_s: float
    #: A renderer that heard no dispatcher for this long stops by itself.
    alone_s: float
    #: An attempt that got nowhere for this long is taken from its renderer, and a breaker rests so long.
    stall_s: float
    preempt_s: float
    rest_s: float
    #: A card that could take a waiting job may be idle for at most this long, nothing being out of order.
    patience_s: float
    #: So long after something was out of order the farm may take to be itself again.
    settle_s: float
    #: The least that a clip takes of a card beside its prediction, and what a card must have beside it to be sure.
    least_factor: float
    spare: float
    max_attempts: int
    max_releases: int
    #: The tails of batches are planned: a job may wait for a faster card beside an idle one.
    planned: bool
    #: Card seconds that interactive clips may have in any window of so many seconds while others wait, and how often a
    #: clip makes room for them while one dispatcher knows it.
    interactive_card_s: float
    interactive_window_s: float
    most_preemptions: int


@dataclass(kw_only=True)
class RunRecord:
    """All that a run left behind."""

    seed: int
    bounds: Bounds
    cards: list[CardTruth]
    jobs: dict[str, JobTruth] = field(default_factory=dict)
    entries: list[JournalEntry] = field(default_factory=list)
    changes: list[StoreChange] = field(default_factory=list)
    #: The tables at the end, as dictionaries by column.
    tables: dict[str, list[dict[str, object]]] = field(default_factory=dict)
    #: Keys left in storage at the end.
    objects: list[str] = field(default_factory=list)

    def of(self, *what: What) -> Iterator[JournalEntry]:
        """Entries that say one of `what`, in order."""
        return (entry for entry in self.entries if entry.what in what)

    def lines(self) -> Iterator[str]:
        """The journal and the store's history merged by time, one line each; equal for equal seeds."""
        lines = [(e.at, 0, n, e.line()) for n, e in enumerate(self.entries)]
        lines += [
            (c.at, 1, n, json.dumps({"store": c.what} | {k: v for k, v in asdict(c).items() if v not in ("", 0)}))
            for n, c in enumerate(self.changes)
        ]
        return (line for *_, line in sorted(lines))
