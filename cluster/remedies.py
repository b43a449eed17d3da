"""What would start a waiting job: every small change to the farm is tried on placement itself. Pure."""

from __future__ import annotations

import heapq
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import count
from typing import Any

from cluster.breaker import Route
from cluster.cards import GIB, Beat, Card
from cluster.jobs import Attempt, Batch, Job
from cluster.lessons import ELSEWHERE
from cluster.manifest import MAX_PRIORITY
from cluster.owners import DEFAULT_SHARE
from cluster.placement import Running, Snapshot, Start, effective_priority, expected_bytes, place, work_kind
from cluster.rates import Rates, rate_of
from cluster.speeds import steps_of
from cluster.verbs import CardOrder
from pipeline.clip import ClipSpec
from pipeline.families import FAMILIES, family_named, size_for
from pipeline.footprint import footprint, plan
from pipeline.layouts import Layout
from pipeline.slowdown import slowdown

#: Ends of running clips that are looked ahead to, and a bound on the jobs and cards looked at meanwhile.
_MOST_EVENTS = 200
_MOST_LOOKED_AT = 200_000
#: Cards of one class that are tried to be added.
_MOST_CARDS = 64
#: Locked cards, and batches of a higher priority, that are tried.
_MOST_TRIED = 10
#: A clip that takes less than so many times as long is said to take the same time.
_NOTABLE = 1.05


class ChangeKind(StrEnum):
    """What can be done about a waiting job, from the cheapest to the dearest."""

    APPROVE = "approve"
    RESUME = "resume"
    RETRY = "retry"
    RELEASE = "release_card"
    LEANER = "leaner_layout"
    RAISE = "raise_priority"
    LOWER = "lower_priority"
    WAIT = "wait"
    LIMIT = "owner_limit"
    ADD = "add_cards"
    FEWER = "fewer_frames"
    SMALLER = "smaller_class"


@dataclass(frozen=True, kw_only=True)
class Change:
    """One change, and all that has to be known to make it."""

    kind: ChangeKind
    #: In words.
    text: str
    #: The command that makes it; empty where none does.
    command: str = ""
    #: When the job starts then, in UTC epoch seconds; None: at once.
    at: float | None = None
    #: It starts then; False: this comes first, and something else keeps it waiting after that.
    starts: bool = True
    #: The card it starts on, or that is released.
    card: str = ""
    card_class: str = ""
    #: Cards to be added, or clips that its owner may have on cards.
    number: int | None = None
    batch: str = ""
    #: Of the job, or of all that waits of the batch.
    priority: int | None = None
    #: Of a leaner layout, or of fewer frames.
    needs_bytes: int | None = None
    layout: str = ""
    #: Times as long as in the layout it waits for.
    slowdown: float | None = None
    frames: int | None = None
    resolution_class: str = ""


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of a job and its farm besides the snapshot; all of it may be missing."""

    batch: Batch | None = None
    #: The job it waits for.
    after: Job | None = None
    #: Its newest attempt, and what the renderer says that has it.
    attempt: Attempt | None = None
    beat: Beat | None = None
    #: By card.
    orders: Mapping[str, CardOrder] = field(default_factory=dict)
    #: Until when breakers stay open, in UTC epoch seconds.
    closed_until: Mapping[Route, float] = field(default_factory=dict)
    #: Jobs that go before it; counted up to `ahead_most`.
    ahead: int | None = None
    ahead_most: int | None = None
    #: How many jobs of each queue the snapshot has at most; None: it has all.
    per_queue: int | None = None
    #: Whether jobs of its own queue that go before it are not in the snapshot.
    hidden: bool = False


def size_text(count_bytes: float) -> str:
    """`9.3 GiB`, `143 MiB`, `30 bytes`."""
    if count_bytes >= GIB:
        return f"{count_bytes / GIB:.1f} GiB"
    return f"{count_bytes / 2**20:.0f} MiB" if count_bytes >= 2**20 else f"{count_bytes:.0f} bytes"


def hour_text(at: float, now: float) -> str:
    """`14:05 UTC` in this machine's zone; with the date where that is another day."""
    then = time.localtime(at)
    same_day = then[:3] == time.localtime(now)[:3]
    return time.strftime("%H:%M %Z" if same_day else "%Y-%m-%d %H:%M %Z", then)


def layout_text(layout: Layout) -> str:
    """What a layout does, for people who know of no layouts."""
    words = [
        "weights streamed to the card" if layout.stream_weights else "",
        "encoders off the card" if layout.evict_encoders else "",
        "guidance in two halves" if layout.split_guidance else "",
        "chunked feed-forward" if layout.chunk_feed_forward > 1 else "",
        "denoiser off the card while decoding" if layout.evict_denoiser else "",
        "decoding in tiles, which may change tones slightly" if layout.decode_tile else "",
    ]
    return ", ".join(filter(None, words)) or "everything at once"


def start_of(job: Job, snapshot: Snapshot, now: float) -> Card | None:
    """The card that placement starts `job` on; None where it does not."""
    for decision in place(snapshot, now):
        if isinstance(decision, Start) and decision.job.id == job.id:
            return decision.card
    return None


def with_job(snapshot: Snapshot, job: Job) -> Snapshot:
    """`snapshot` with `job` waiting as it is now, once."""
    others = [other for other in snapshot.waiting if other.id != job.id]
    return replace(snapshot, waiting=[*others, job])


def opened(snapshot: Snapshot) -> Snapshot:
    """The same with cards and locks as lists, which can be changed one by one, and without a plan for what is."""
    standing = snapshot.standing
    cards = snapshot.cards or (list(standing.cards.values()) if standing else ())
    locked = snapshot.locked or (standing.locked if standing else frozenset())
    return replace(snapshot, cards=cards, locked=locked, standing=None, plan=None)


# -- looking ahead ----------------------------------------------------------------------------------------------


def left_s(running: Running, card: Card | None, rates: Rates) -> float:
    """Seconds until a running clip is off its card; infinite where that is not known."""
    spec = running.job.spec
    if spec is None or spec.family not in FAMILIES or card is None:
        return math.inf
    cost = rates.cost_within(spec, card.kind, card.usable_bytes)
    if running.step_s is None:
        seconds = cost.on_card_s(running.step)
    else:
        seconds = running.step_s * max(0, steps_of(spec) - running.step) + cost.decode_s
    return max(0.0, seconds - running.since_step_s)


def _start_s(job: Job, card: Card, rates: Rates) -> float:
    if job.spec is None or job.spec.family not in FAMILIES:
        return math.inf
    begin = rates.gap_seconds if card.family == job.spec.family else rates.load_seconds
    on_card_s = rates.clip_seconds(job.spec, card.kind, usable_bytes=card.usable_bytes, from_step=job.step)
    return begin(job.spec.family, card.kind) + on_card_s


def look_ahead(
    job: Job, snapshot: Snapshot, now: float, rates: Rates, known: Known, *, by: float = math.inf
) -> tuple[float, Card] | None:
    """(when, on which card) `job` starts if nobody does anything; None where that cannot be told, or not before `by`.

    Clips end as `rates` expects, and placement decides at each end; orders on cards and breakers run out, and start
    times come. It cannot be told beyond the last job that is seen of a queue which is longer.
    """
    seen = Counter(_queue(other) for other in snapshot.waiting if other.id != job.id)
    longer = {queue: number for queue, number in seen.items() if known.per_queue and number >= known.per_queue}
    cards = {card.renderer: card for card in snapshot.cards}
    by_card = {card.card: card for card in snapshot.cards}
    order = count()
    events: list[tuple[float, int, str, Any]] = []

    def expect(at: float, kind: str, what: Any) -> None:
        if now <= at < math.inf:
            heapq.heappush(events, (at, next(order), kind, what))

    for one in snapshot.running:
        expect(now + left_s(one, by_card.get(one.card), rates), "end", one)
    for name, said in known.orders.items():
        if said.until is not None and name in snapshot.locked:
            expect(said.until, "free", name)
    for route, until in known.closed_until.items():
        if route in snapshot.closed:
            expect(until, "open", route)
    for other in snapshot.waiting:
        if other.not_before is not None and other.not_before > now:
            expect(other.not_before, "time", None)
    most = min(_MOST_EVENTS, max(10, _MOST_LOOKED_AT // (len(cards) + len(snapshot.waiting) + 1)))
    at = now
    for _ in range(most):
        snapshot = replace(snapshot, cards=list(cards.values()))
        for decision in place(snapshot, at):
            if not isinstance(decision, Start):
                continue
            if decision.job.id == job.id:
                return at, decision.card
            card = decision.card.model_copy(update={"idle": False})
            if decision.job.spec is not None:
                card = card.model_copy(update={"family": decision.job.spec.family})
            cards[card.renderer] = card
            if (queue := _queue(decision.job)) in longer:
                longer[queue] -= 1
            began = Running(job=decision.job, card=card.card, step=decision.job.step)
            waiting = [other for other in snapshot.waiting if other.id != decision.job.id]
            snapshot = replace(snapshot, waiting=waiting, running=[*snapshot.running, began])
            expect(at + _start_s(decision.job, decision.card, rates), "end", began)
        if not events or events[0][0] >= by or not all(longer.values()):
            return None
        at = events[0][0]
        while events and events[0][0] <= at:
            _, _, kind, what = heapq.heappop(events)
            if kind == "end":
                snapshot = replace(snapshot, running=[one for one in snapshot.running if one.job.id != what.job.id])
                # One that is being published has left its card to another.
                if all(one.card != what.card for one in snapshot.running):
                    for card in [card for card in cards.values() if card.card == what.card]:
                        cards[card.renderer] = card.model_copy(update={"idle": True})
            elif kind == "free":
                snapshot = replace(snapshot, locked=snapshot.locked - {what})
            elif kind == "open":
                snapshot = replace(snapshot, closed=snapshot.closed - {what})
    return None


# -- changes ----------------------------------------------------------------------------------------------------


class Search:
    """Changes that start `job`, which waits in `snapshot`."""

    def __init__(self, job: Job, snapshot: Snapshot, now: float, rates: Rates, known: Known) -> None:
        self._job, self._now, self._rates, self._known = job, now, rates, known
        self._snapshot = with_job(opened(snapshot), job)
        self._idle = [card for card in self._snapshot.cards if card.idle and card.card not in self._snapshot.locked]

    def changes(self) -> Iterator[Change]:
        """One of each kind at most, from the cheapest to the dearest; of a kind at once before later ones."""
        waits = self.wait()
        until = waits.at if waits is not None and waits.at is not None else math.inf
        steps: Sequence[Callable[[], Change | None]] = (
            lambda: self._release(until), lambda: self._leaner(until), self._raise, self._lower, lambda: waits,
            self._limit, self._add, self._fewer, self._smaller,
        )  # fmt: skip
        for step in steps:
            if (change := step()) is not None:
                yield change

    def _start(self, snapshot: Snapshot, job: Job | None = None) -> Card | None:
        return start_of(job or self._job, snapshot if job is None else with_job(snapshot, job), self._now)

    def _ahead(self, snapshot: Snapshot, job: Job | None = None, by: float = math.inf) -> tuple[float, Card] | None:
        job = job or self._job
        return look_ahead(job, with_job(snapshot, job), self._now, self._rates, self._known, by=by)

    def _on(self, at: float, card: Card) -> str:
        return f"on {card.card} ({card.card_class}) from about {hour_text(at, self._now)}"

    def _release(self, until: float) -> Change | None:
        snapshot = self._snapshot
        names = sorted({card.card for card in snapshot.cards if card.card in snapshot.locked})
        later: list[tuple[float, Card]] = []
        for name in names[:_MOST_TRIED]:
            freed = replace(snapshot, locked=snapshot.locked - {name})
            if (card := self._start(freed)) is not None:
                return self._released(name, card, None)
            # One that was locked while it works starts nothing before that has ended.
            if (found := self._ahead(freed, by=until)) is not None and found[1].card == name:
                later.append(found)
        if not later:
            return None
        at, card = min(later, key=lambda one: (one[0], one[1].card))
        return self._released(card.card, card, at)

    def _released(self, name: str, card: Card, at: float | None) -> Change:
        when = "" if at is None else f", which is then free at about {hour_text(at, self._now)}"
        return Change(
            kind=ChangeKind.RELEASE,
            text=f"release card {name}{when}",
            command=f"clipmill cards release {name}",
            card=name,
            card_class=card.card_class,
            at=at,
        )

    def _leaner(self, until: float) -> Change | None:
        spec = self._job.spec
        if spec is None or spec.family not in FAMILIES:
            return None
        taken = plan(spec, self._job.needs_bytes)
        # One that was raised after an attempt failed is no prediction, and leaner layouts were tried then.
        if taken is None or taken[1].peak_bytes != self._job.needs_bytes:
            return None
        found: list[tuple[float, Layout, int, Card]] = []
        seen: set[int] = set()
        for layout in family_named(spec.family).layouts:
            needs = footprint(spec, layout).peak_bytes
            if needs >= self._job.needs_bytes or needs in seen:
                continue
            seen.add(needs)
            leaner = replace(self._job, needs_bytes=needs)
            # On a card that holds it as it is, another layout would gain nothing.
            if (card := self._start(self._snapshot, leaner)) is not None and not self._holds(card):
                return self._in_layout(taken[0], layout, needs, card, None)
            later = None if found or card else self._ahead(self._snapshot, leaner, by=until)
            if later is not None and not self._holds(later[1]):
                found.append((later[0], layout, needs, later[1]))
        return self._in_layout(taken[0], *found[0][1:], found[0][0]) if found else None

    def _holds(self, card: Card) -> bool:
        return card.usable_bytes >= expected_bytes(self._job, card.kind, self._snapshot.lessons)

    def _in_layout(self, taken: Layout, layout: Layout, needs: int, card: Card, at: float | None) -> Change:
        spec, rate = self._job.spec, rate_of(card.kind)[0]
        assert spec is not None
        reached = rate.tflops * rate.efficiency
        times = max(1.0, slowdown(spec, layout, tflops=reached) / slowdown(spec, taken, tflops=reached))
        slower = f"about {times:.1f} times as long" if times >= _NOTABLE else "in about the same time"
        where = f"on {card.card} ({card.card_class})" if at is None else self._on(at, card)
        return Change(
            kind=ChangeKind.LEANER,
            text=f"{layout_text(layout)}: {size_text(needs)}, {where}, {slower}",
            card=card.card,
            card_class=card.card_class,
            needs_bytes=needs,
            layout=str(layout),
            slowdown=times,
            at=at,
        )

    def _raise(self) -> Change | None:
        job, snapshot = self._job, self._snapshot
        bonus = effective_priority(job, self._now) - job.priority
        others = [one for one in snapshot.waiting if one.id != job.id]
        levels = {effective_priority(one, self._now) for one in (*others, *(r.job for r in snapshot.running))}
        tried = sorted({level - bonus + more for level in levels for more in (0, 1)})
        for priority in tried:
            if not job.priority < priority <= MAX_PRIORITY:
                continue
            if (card := self._start(snapshot, replace(job, priority=priority))) is not None:
                return Change(
                    kind=ChangeKind.RAISE,
                    text=f"raise its priority from {job.priority} to {priority}",
                    command=f"clipmill prioritize {job.id} {_number(priority)}",
                    priority=priority,
                    card=card.card,
                    card_class=card.card_class,
                )
        return None

    def _lower(self) -> Change | None:
        job, snapshot = self._job, self._snapshot
        mine = effective_priority(job, self._now)
        batches: dict[str, list[Job]] = defaultdict(list)
        for other in snapshot.waiting:
            # What other owners hand in is not for this one to lower.
            if other.owner == job.owner and other.batch_id != job.batch_id:
                batches[other.batch_id].append(other)
        for batch, waiting in list(batches.items())[:_MOST_TRIED]:
            if self._is_cut(waiting):
                continue
            bonus = max(effective_priority(one, self._now) - one.priority for one in waiting)
            for priority in (mine - bonus, mine - bonus - 1):
                if priority < -MAX_PRIORITY or all(one.priority <= priority for one in waiting):
                    continue
                lowered = [
                    replace(one, priority=min(one.priority, priority)) if one.batch_id == batch else one
                    for one in snapshot.waiting
                ]
                if (card := self._start(replace(snapshot, waiting=lowered))) is not None:
                    return Change(
                        kind=ChangeKind.LOWER,
                        text=f"lower the priority of batch {batch} to {priority}",
                        command=f"clipmill prioritize {batch} {_number(priority)}",
                        batch=batch,
                        priority=priority,
                        card=card.card,
                        card_class=card.card_class,
                    )
        return None

    def _is_cut(self, waiting: Sequence[Job]) -> bool:
        """Whether behind these jobs others may wait that are not seen, and would come up in their place."""
        most = self._known.per_queue
        if most is None:
            return False
        seen: dict[object, int] = defaultdict(int)
        for job in self._snapshot.waiting:
            seen[_queue(job)] += 1
        return any(seen[_queue(job)] >= most for job in waiting)

    def wait(self) -> Change | None:
        """Wait until it starts by itself."""
        if self._known.hidden:
            return self._wait_for_many()
        found = self._ahead(self._snapshot)
        if found is None:
            return None
        at, card = found
        why = f", when {card.card} ({card.card_class}) is expected to be free for it"
        if self._job.not_before is not None and at <= self._job.not_before:
            why = f", and it starts on {card.card} ({card.card_class})"
        text = f"wait until about {hour_text(at, self._now)}{why}"
        return Change(kind=ChangeKind.WAIT, text=text, at=at, card=card.card, card_class=card.card_class)

    def _wait_for_many(self) -> Change | None:
        """An estimate from how many are before it, as if all were like it."""
        snapshot, job, ahead = self._snapshot, self._job, self._known.ahead
        holding = [card for card in snapshot.cards if card.card not in snapshot.locked and self._holds(card)]
        if not ahead or not holding or self._is_above(ahead):
            return None
        rate = sum(1 / seconds for card in holding if 0 < (seconds := _start_s(job, card, self._rates)) < math.inf)
        if not rate:
            return None
        at = self._now + ahead / rate
        text = f"wait until about {hour_text(at, self._now)}, if the {ahead} jobs before it take as long as it does"
        return Change(kind=ChangeKind.WAIT, text=text, at=at)

    def _is_above(self, ahead: int) -> bool:
        return self._known.ahead_most is not None and ahead >= self._known.ahead_most

    def _limit(self) -> Change | None:
        owner, snapshot = self._job.owner, self._snapshot
        share = snapshot.owners.get(owner, DEFAULT_SHARE)
        if share.max_running is None:
            return None
        have = sum(running.job.owner == owner for running in snapshot.running)
        least = max(share.max_running, have) + 1
        for more in range(least, least + min(_MOST_TRIED, len(snapshot.waiting))):
            wider = {**snapshot.owners, owner: share.model_copy(update={"max_running": more})}
            if (card := self._start(replace(snapshot, owners=wider))) is not None:
                return Change(
                    kind=ChangeKind.LIMIT,
                    text=f"let {owner} have {more} clips on cards at once (`owners` in the farm's configuration)",
                    number=more,
                    card=card.card,
                    card_class=card.card_class,
                )
        return None

    def _add(self) -> Change | None:
        classes = sorted(self._snapshot.fleet.usable_bytes.items(), key=lambda one: one[1])
        most = min(_MOST_CARDS, len(self._snapshot.waiting))
        if self._known.per_queue is not None:
            # With more idle cards than jobs that are seen of a queue, one would seem to be left for this job.
            most = min(most, self._known.per_queue - len(self._idle) - 1)
        for name, usable in classes:
            if usable < expected_bytes(self._job, ELSEWHERE, self._snapshot.lessons):
                continue
            low, high = 0, 1
            while high < most and not self._starts_with(name, usable, high):
                low, high = high, min(2 * high, most)
            if high > most or not self._starts_with(name, usable, high):
                continue
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (low, middle) if self._starts_with(name, usable, middle) else (middle, high)
            text = f"one more {name} card" if high == 1 else f"{high} more {name} cards"
            if not any(card.card_class == name for card in self._snapshot.cards):
                text = f"one {name} card" if high == 1 else f"{high} {name} cards"
            return Change(kind=ChangeKind.ADD, text=text, card_class=name, number=high)
        return None

    def _starts_with(self, name: str, usable: int, number: int) -> bool:
        kinds = sorted({card.kind for card in self._snapshot.cards if card.card_class == name})
        more = [
            Card(
                renderer=f"+{i}",
                card=f"+{i}",
                card_class=name,
                kind=kinds[0] if kinds else ELSEWHERE,
                usable_bytes=usable,
                idle=True,
            )
            for i in range(number)
        ]
        return self._start(replace(self._snapshot, cards=[*self._snapshot.cards, *more])) is not None

    def _fewer(self) -> Change | None:
        spec = self._plain()
        if spec is None:
            return None
        rule = family_named(spec.family).frame_rule
        best, before = None, self._idle_that_hold(self._job.needs_bytes)
        for frames in range(spec.frames - 1, rule.minimum - 1, -1):
            if not rule.allows(frames) or not self._may_fit(fewer := spec.model_copy(update={"frames": frames})):
                continue
            # Without another card that holds it, fewer frames make no difference to placement.
            holding = self._idle_that_hold(first_needs(fewer, self._snapshot.fleet.largest_bytes) or 0)
            if holding != before and (found := self._other(fewer)) is not None:
                best = frames, found
                break
            before = holding
        if best is None:
            return None
        frames, (needs, card) = best
        return Change(
            kind=ChangeKind.FEWER,
            text=f"hand it in with {frames} frames instead of {spec.frames}: {size_text(needs)}, on {card.card}",
            frames=frames,
            needs_bytes=needs,
            card=card.card,
            card_class=card.card_class,
        )

    def _smaller(self) -> Change | None:
        spec = self._plain()
        if spec is None:
            return None
        family = family_named(spec.family)
        classes = [c for c in family.classes if c.side < spec.resolution_class.side]
        for smaller in sorted(classes, key=lambda c: -c.side):
            width, height = size_for(smaller, spec.width / spec.height, family.stride, family.native_sizes)
            changed = spec.model_copy(update={"resolution_class": smaller, "width": width, "height": height})
            if self._may_fit(changed) and (found := self._other(changed)) is not None:
                needs, card = found
                return Change(
                    kind=ChangeKind.SMALLER,
                    text=f"hand it in as {smaller} instead of {spec.resolution_class}: {size_text(needs)}, "
                    f"on {card.card}",
                    resolution_class=str(smaller),
                    needs_bytes=needs,
                    card=card.card,
                    card_class=card.card_class,
                )
        return None

    def _plain(self) -> ClipSpec | None:
        """Its specification, where fewer frames or pixels take less memory and nothing else depends on them."""
        spec = self._job.spec
        if spec is None or spec.family not in FAMILIES or spec.window or spec.base is not None:
            return None
        return spec if footprint(spec).peak_bytes else None

    def _idle_that_hold(self, needs: int) -> int:
        return sum(card.usable_bytes >= needs for card in self._idle)

    def _may_fit(self, spec: ClipSpec) -> bool:
        """Whether it takes less memory than the job, and no more than an idle card has by prediction."""
        needs = first_needs(spec, self._snapshot.fleet.largest_bytes)
        return needs is not None and needs < self._job.needs_bytes and needs <= self._largest_idle

    @property
    def _largest_idle(self) -> int:
        return max((card.usable_bytes for card in self._idle), default=0)

    def _other(self, spec: ClipSpec) -> tuple[int, Card] | None:
        """(bytes, card) of a clip that starts in place of the job; None where it does not."""
        needs = first_needs(spec, self._snapshot.fleet.largest_bytes)
        if needs is None or needs >= self._job.needs_bytes:
            return None
        other = replace(
            self._job, spec=spec, needs_bytes=needs, content_key=f"{self._job.id} changed", step=0, checkpoint=None
        )
        card = self._start(self._snapshot, other)
        return None if card is None else (needs, card)


def first_needs(spec: ClipSpec, largest_bytes: int) -> int | None:
    """Bytes of the first layout that a card of `largest_bytes` holds, as the dispatcher lets clips have it."""
    peaks = (footprint(spec, layout).peak_bytes for layout in family_named(spec.family).layouts)
    return next((peak for peak in peaks if peak <= largest_bytes), None)


def _queue(job: Job) -> object:
    return job.owner, work_kind(job), job.priority


def _number(priority: int) -> str:
    return str(priority) if priority >= 0 else f"-- {priority}"
