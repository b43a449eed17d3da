"""When a catalog would be done on a fleet, and what it would cost, before anything runs. Pure.

Every row goes where the farm would put it: to cards that its fastest layout fits, or the fastest that fits any card of
the fleet. Times come from `cluster.estimates.times`. The schedule is a list schedule: longest clip first (or by row),
each on the card that would be done with it first; a card renders one clip at a time, loads a family's weights where it
had another, and encodes one clip on the CPU while it renders the next. The interval is of as many such schedules with
times drawn from what was measured (or, where nothing was, from how wrong published speeds usually are).
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property, partial
from statistics import median

from cluster.estimates.published import ClipPart, canonical, rate_of
from cluster.estimates.times import PRIOR_SIGMA, ClipCost, Correction, TimeEstimates
from cluster.fleet.cards import NOMINAL_BYTES, card_class_of
from cluster.fleet.fleet_file import Cards, usable_bytes
from cluster.forecast.schedule import Schedule, Times, schedule
from cluster.scheduling.tail.bound import shortest
from pipeline.clips.clip import ClipSpec
from pipeline.families import family_named
from pipeline.families.layouts import Layout
from pipeline.memory.footprint import footprint, leanest
from pipeline.units import GIB, format_bytes

#: Schedules drawn for the interval, at most and at least; of large catalogs fewer, whose clips average out.
_MOST_DRAWS, _LEAST_DRAWS = 200, 24
#: Placements in all draws together, about: a second of work for each few hundred thousand.
_PLACEMENTS = 400_000
#: The interval goes from this quantile to the one as far from the other end.
TAIL = 0.05
#: A change is sought up to so many times the cards of a group.
_MOST_TIMES = 16


class Order(StrEnum):
    """Which clip is placed first."""

    LONGEST = "longest"
    ROW = "row"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A row that wants to be rendered, or why it cannot be."""

    name: str
    number: int
    spec: ClipSpec | None = None
    #: In words: what is wrong and what to do.
    problem: str = ""
    priority: int = 0


@dataclass(frozen=True, kw_only=True)
class RowForecast:
    """What becomes of one row."""

    name: str
    number: int
    #: Why it cannot be rendered on this fleet; empty where it can.
    why_not: str = ""
    #: The smallest card class and all card kinds that it fits.
    smallest_class: str | None = None
    kinds: tuple[str, ...] = ()
    #: By card kind: the layout it is rendered in, and seconds on the card.
    layouts: Mapping[str, Layout] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def fits(self) -> bool:
        """Whether some card of the fleet renders it."""
        return not self.why_not


@dataclass(frozen=True, kw_only=True)
class KindUse:
    """What the cards of one kind do and cost."""

    kind: str
    cards: int
    clips: int
    #: Card hours of work, and from start to finish of everything, which are paid for.
    busy_hours: float
    paid_hours: float
    #: US dollars for either; None where a price is not known.
    busy_cost: float | None
    paid_cost: float | None


@dataclass(frozen=True, kw_only=True)
class FleetChange:
    """A change of fleet or catalog, and when everything would be done with it."""

    #: In words, such as `4 more L4`.
    text: str
    finish_s: float
    #: US dollars an hour more; None where a price is not known.
    extra_per_hour: float | None
    #: The pictures are not the same.
    changes_clips: bool = False


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What is to be expected of a catalog on a fleet."""

    rows: tuple[RowForecast, ...]
    kinds: tuple[KindUse, ...]
    #: Seconds from the start until the last clip is published; 0 where nothing fits.
    finish_s: float
    #: 90 of 100 farms would be done between these.
    low_s: float
    high_s: float
    #: No schedule of these times is done sooner.
    bound_s: float
    #: The part of `finish_s` that no card spends on a clip: the fleet's start.
    startup_s: float
    #: What would halve it, the smallest first.
    halving: tuple[FleetChange, ...] = ()
    #: What the figures rest on, in words.
    notes: tuple[str, ...] = ()

    @property
    def cost(self) -> float | None:
        """US dollars of all cards from start to finish; None where a price is not known."""
        costs = [use.paid_cost for use in self.kinds]
        known = [cost for cost in costs if cost is not None]
        return sum(known) if len(known) == len(costs) else None

    @property
    def gpu_hours(self) -> float:
        """Card hours of work."""
        return sum(use.busy_hours for use in self.kinds)


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """Clips that take the same everywhere: what one costs on each group of cards, None where it does not fit."""

    family: str
    costs: tuple[ClipCost | None, ...]

    @cached_property
    def fastest_s(self) -> float:
        return min(cost.on_card_s() for cost in self.costs if cost is not None)


def forecast(
    wanted: Sequence[Wanted],
    fleet: Sequence[Cards],
    estimates: TimeEstimates,
    *,
    order: Order = Order.LONGEST,
    drafts: Sequence[Wanted] | None = None,
    seed: int = 0,
    changes: bool = True,
    interval: bool = True,
) -> Forecast:
    """What is to be expected of `wanted` on `fleet`.

    `drafts`: the same rows at tier draft, tried among the changes that would halve the time; without `changes` none
    are sought. Without `interval` nothing is drawn, which is most of the work: `low_s` and `high_s` are `finish_s`. The
    same arguments give the same answer.
    """
    shaped = _shaped(wanted)
    plan = _Plan(shaped, fleet, estimates, order)
    done = plan.run()
    low_s, high_s = plan.interval(done.finish_s, seed) if interval else (done.finish_s, done.finish_s)
    startup_s = min((group.startup_s for group in fleet), default=0.0)
    return Forecast(
        rows=plan.rows(),
        kinds=_used(fleet, done),
        finish_s=done.finish_s,
        low_s=low_s,
        high_s=high_s,
        bound_s=plan.bound(),
        startup_s=startup_s,
        halving=_halving(shaped, fleet, estimates, order, drafts, done.finish_s) if changes and done.finish_s else (),
        notes=_notes(plan, fleet, estimates),
    )


@dataclass(frozen=True, kw_only=True)
class _Shaped:
    """A row and what is the same for all rows that take the same; None: it cannot be rendered."""

    row: Wanted
    shape: ClipSpec | None


def _shaped(wanted: Sequence[Wanted]) -> list[_Shaped]:
    # Most rows of a catalog are of a few kinds; equal shapes become one object, so that they are told apart by `is`.
    known: dict[ClipSpec, ClipSpec] = {}
    found = []
    for row in wanted:
        shape = row.spec.model_copy(update=_ANY) if row.spec else None
        found.append(_Shaped(row=row, shape=known.setdefault(shape, shape) if shape else None))
    return found


class _Plan:
    """Rows on a fleet: where each fits, what it takes there, and in which order they are placed."""

    def __init__(
        self, shaped: Sequence[_Shaped], fleet: Sequence[Cards], estimates: TimeEstimates, order: Order
    ) -> None:
        self._shaped, self.fleet = shaped, fleet
        shapes = {id(one.shape): one.shape for one in shaped if one.shape is not None}
        #: By the shape's id, or why not.
        self._kinds = {key: _kind_of(shape, fleet, estimates) for key, shape in shapes.items()}
        placed = [(one.row, kind) for one in shaped if isinstance(kind := self._kinds.get(id(one.shape)), _Kind)]
        longest = order is Order.LONGEST
        placed.sort(key=lambda pair: (-pair[0].priority, -pair[1].fastest_s if longest else 0.0, pair[0].number))
        self.clips = [kind for _, kind in placed]

    def rows(self) -> tuple[RowForecast, ...]:
        """What becomes of each row."""
        return tuple(
            _row(one.row, one.row.problem if one.shape is None else self._kinds[id(one.shape)], self.fleet)
            for one in self._shaped
        )

    def run(self) -> Schedule:
        """The schedule of expected times."""
        times = {id(kind): [_times(cost) for cost in kind.costs] for kind in self.clips}
        return schedule(self.fleet, [(kind.family, times[id(kind)].__getitem__) for kind in self.clips])

    def bound(self) -> float:
        """Seconds that no schedule of these times beats, clips stopped and moved at no cost included."""
        if not self.clips:
            return 0.0
        counted = Counter(map(id, self.clips))
        kinds = {id(kind): kind for kind in self.clips}
        seconds = [[math.inf if cost is None else cost.on_card_s() for cost in kinds[key].costs] for key in counted]
        fluid_s, _ = shortest(seconds, [group.count for group in self.fleet], list(counted.values()))
        last_s = max(
            min(cost.on_card_s() + cost.publish_s for cost in kind.costs if cost is not None) for kind in kinds.values()
        )
        return min(group.startup_s for group in self.fleet) + max(fluid_s, last_s)

    def speeds(self) -> list[float]:
        """How fast a card of each group is beside each clip's fastest, on average over the clips: 1 is as fast."""
        if not self.clips:
            return [0.0] * len(self.fleet)
        total = [0.0] * len(self.fleet)
        for kind in self.clips:
            for number, cost in enumerate(kind.costs):
                total[number] += 0.0 if cost is None else kind.fastest_s / cost.on_card_s()
        return [each / len(self.clips) for each in total]

    def interval(self, middle_s: float, seed: int) -> tuple[float, float]:
        """Between which seconds 90 of 100 schedules of drawn times end; `middle_s` is always between them."""
        if not self.clips:
            return middle_s, middle_s
        effort = len(self.clips) * len(self.fleet) + sum(group.count for group in self.fleet)
        draws = max(_LEAST_DRAWS, min(_MOST_DRAWS, _PLACEMENTS // effort))
        rng = random.Random(seed)  # noqa: S311 - nothing secret is drawn
        finishes = sorted(self._drawn(rng) for _ in range(draws))
        edge = int(TAIL * draws)
        return min(middle_s, finishes[edge]), max(middle_s, finishes[-1 - edge])

    def _drawn(self, rng: random.Random) -> float:
        # What is not known is the same for all clips of a kind; how they differ among themselves is drawn for each.
        systematic: dict[object, float] = {}

        def factor(cost: ClipCost, part: ClipPart) -> float:
            correction = cost.corrections[part]
            # Clips err together where they are judged by the same ratios, or by none.
            key = (part, cost.kind, correction.ratios)
            if key not in systematic:
                systematic[key] = draw_factor(correction, rng)
            return systematic[key]

        def usual(cost: ClipCost) -> Times:
            return Times(
                gap_s=cost.gap_s * factor(cost, ClipPart.GAP),
                load_s=cost.load_s * factor(cost, ClipPart.LOAD),
                first_s=cost.first_s * factor(cost, ClipPart.FIRST),
                on_card_s=cost.encode_s * factor(cost, ClipPart.ENCODE)
                + cost.steps_s() * factor(cost, ClipPart.STEP)
                + cost.decode_s * factor(cost, ClipPart.DECODE),
                publish_s=cost.publish_s * factor(cost, ClipPart.PUBLISH),
            )

        usuals = {
            id(kind): [None if cost is None else (usual(cost), _residuals(cost)) for cost in kind.costs]
            for kind in {id(kind): kind for kind in self.clips}.values()
        }

        def one(
            known: list[tuple[Times, tuple[tuple[float, ...], tuple[float, ...]]] | None], group: int
        ) -> Times | None:
            if (found := known[group]) is None:
                return None
            times, (steps, publishing) = found
            if not steps and not publishing:
                return times
            return Times(
                gap_s=times.gap_s,
                load_s=times.load_s,
                first_s=times.first_s,
                on_card_s=times.on_card_s * (rng.choice(steps) if steps else 1.0),
                publish_s=times.publish_s * (rng.choice(publishing) if publishing else 1.0),
            )

        clips = [(kind.family, partial(one, usuals[id(kind)])) for kind in self.clips]
        return schedule(self.fleet, clips).finish_s


_Residuals = tuple[tuple[float, ...], tuple[float, ...]]


def _residuals(cost: ClipCost) -> _Residuals:
    # How clips of one kind differ, on the card and on the CPU; the steps are most of the one.
    return cost.corrections[ClipPart.STEP].residuals, cost.corrections[ClipPart.PUBLISH].residuals


def draw_factor(correction: Correction, rng: random.Random) -> float:
    """How wrong the expectation may be for all clips that share `correction`, as a factor on it.

    Of a shape that was measured: the median of its ratios drawn anew with replacement. Of a shape that was not: that of
    another shape of its family, drawn. Of other families' ratios and of published speeds: lognormal.
    """
    if not correction.ratios:
        return rng.lognormvariate(0.0, PRIOR_SIGMA)
    ratios = rng.choice(correction.ratios)
    found = median(rng.choices(ratios, k=len(ratios))) / correction.factor
    if correction.source == "kind":
        return found * rng.lognormvariate(0.0, PRIOR_SIGMA)
    # One shape alone says little about others.
    if correction.source == "family" and len(correction.ratios) == 1:
        return found * rng.lognormvariate(0.0, PRIOR_SIGMA / 3)
    return found


#: Parts of a specification that change neither memory nor time, at one value.
_ANY = {"prompt": "-", "negative_prompt": "", "seed": 0, "fps": 1}


def _kind_of(spec: ClipSpec, fleet: Sequence[Cards], estimates: TimeEstimates) -> _Kind | str:
    """What such clips take on each group, or why they fit none."""
    needed = _needed_bytes(spec, fleet)
    if needed is None:
        return _no_card(spec, fleet)
    costs = [
        estimates.cost_within(spec, group.kind, group.usable_bytes) if group.usable_bytes >= needed else None
        for group in fleet
    ]
    return _Kind(family=spec.family, costs=tuple(costs))


def _needed_bytes(spec: ClipSpec, fleet: Sequence[Cards]) -> int | None:
    """What a card must have: the peak of the fastest layout that fits some card of the fleet."""
    largest = max((group.usable_bytes for group in fleet), default=0)
    peaks = (footprint(spec, layout).peak_bytes for layout in family_named(spec.family).layouts)
    return next((peak for peak in peaks if peak <= largest), None)


def _no_card(spec: ClipSpec, fleet: Sequence[Cards]) -> str:
    layout, least = leanest(spec)
    largest = max(fleet, key=lambda group: group.usable_bytes)
    if not largest.usable_bytes:
        return "no card of this farm can be used. `clipmill cards` says why, and what to do."
    needed = f"{format_bytes(least.peak_bytes)} even in its leanest layout ({layout})"
    has = f"the largest card, {largest.kind} ({largest.card_class}), has {format_bytes(largest.usable_bytes)} usable"
    fitting = [
        name for name, nominal in NOMINAL_BYTES.items() if usable_bytes(largest.kind, nominal) >= least.peak_bytes
    ]
    remedy = f"Add a {fitting[0]} card, or choose" if fitting else "Choose"
    return f"needs {needed}; {has}. {remedy} a smaller class or fewer frames."


def _row(row: Wanted, kind: _Kind | str, fleet: Sequence[Cards]) -> RowForecast:
    if isinstance(kind, str):
        return RowForecast(name=row.name, number=row.number, why_not=kind)
    there = [(group, cost) for group, cost in zip(fleet, kind.costs, strict=True) if cost is not None]
    by_kind: dict[str, ClipCost] = {}
    for group, cost in there:
        best = by_kind.get(group.kind)
        if best is None or cost.on_card_s() < best.on_card_s():
            by_kind[group.kind] = cost
    return RowForecast(
        name=row.name,
        number=row.number,
        smallest_class=min(there, key=lambda pair: pair[0].usable_bytes)[0].card_class,
        kinds=tuple(by_kind),
        layouts={name: cost.layout for name, cost in by_kind.items()},
        seconds={name: cost.on_card_s() for name, cost in by_kind.items()},
    )


def _times(cost: ClipCost | None) -> Times | None:
    if cost is None:
        return None
    return Times(
        gap_s=cost.gap_s,
        load_s=cost.load_s,
        first_s=cost.first_s,
        on_card_s=cost.on_card_s(),
        publish_s=cost.publish_s,
    )


def _used(fleet: Sequence[Cards], done: Schedule) -> tuple[KindUse, ...]:
    found: dict[str, KindUse] = {}
    for group, busy_s, clips in zip(fleet, done.busy_s, done.clips, strict=True):
        busy, paid_hours = busy_s / 3600, group.count * done.finish_s / 3600
        price = group.price_per_hour
        use = KindUse(
            kind=group.kind,
            cards=group.count,
            clips=clips,
            busy_hours=busy,
            paid_hours=paid_hours,
            busy_cost=None if price is None else busy * price,
            paid_cost=None if price is None else paid_hours * price,
        )
        found[group.kind] = _sum(found[group.kind], use) if group.kind in found else use
    return tuple(found.values())


def _sum(one: KindUse, other: KindUse) -> KindUse:
    def both(a: float | None, b: float | None) -> float | None:
        return None if a is None or b is None else a + b

    return KindUse(
        kind=one.kind,
        cards=one.cards + other.cards,
        clips=one.clips + other.clips,
        busy_hours=one.busy_hours + other.busy_hours,
        paid_hours=one.paid_hours + other.paid_hours,
        busy_cost=both(one.busy_cost, other.busy_cost),
        paid_cost=both(one.paid_cost, other.paid_cost),
    )


def _halving(
    shaped: Sequence[_Shaped],
    fleet: Sequence[Cards],
    estimates: TimeEstimates,
    order: Order,
    drafts: Sequence[Wanted] | None,
    finish_s: float,
) -> tuple[FleetChange, ...]:
    """Changes with which everything is done in half the time, the cheapest an hour first."""

    def finish_with(rows: Sequence[_Shaped], cards: Sequence[Cards]) -> float:
        return _Plan(rows, cards, estimates, order).run().finish_s

    half = finish_s / 2
    found: list[FleetChange] = []
    offers = [(group, number) for number, group in enumerate(fleet)]
    offers += [(group, len(fleet)) for group in _offered(fleet)]
    for group, number in offers:
        # The same cards once more, or others: with as many as have the speed of the whole fleet it takes about half.
        speeds = _Plan(shaped, [*fleet, replace(group, count=1)], estimates, order).speeds()
        if not speeds[-1]:
            continue
        guess = math.ceil(sum(speeds[n] * other.count for n, other in enumerate(fleet)) / speeds[-1])

        def finish_of(more: int, group: Cards = group, number: int = number) -> float:
            with_more = [replace(o, count=o.count + more) if n == number else o for n, o in enumerate(fleet)]
            return finish_with(shaped, with_more if number < len(fleet) else [*fleet, replace(group, count=more)])

        if more := _fewest(finish_of, half, guess, _MOST_TIMES * sum(other.count for other in fleet)):
            kind = f"more {_short(group.kind)} ({group.card_class})" if number < len(fleet) else f"{group.kind} besides"
            price = None if group.price_per_hour is None else more * group.price_per_hour
            found.append(FleetChange(text=f"{more} {kind}", finish_s=finish_of(more), extra_per_hour=price))
    found.sort(key=lambda change: (change.extra_per_hour is None, change.extra_per_hour or 0.0, change.finish_s))
    if drafts is not None and (drafted := finish_with(_shaped(drafts), fleet)) <= half:
        # Costs nothing, but it is another picture: listed after what keeps the clips.
        found.append(FleetChange(text="tier draft", finish_s=drafted, extra_per_hour=0.0, changes_clips=True))
    return tuple(found)


#: Kinds that are offered besides those of a fleet.
_FAST = ("L4", "L40S", "H100")


def _offered(fleet: Sequence[Cards]) -> list[Cards]:
    """Cards that a fleet does not have; none where it is emulated."""
    if any(rate_of(group.kind)[0].emulated for group in fleet):
        return []
    have = {canonical(group.kind) for group in fleet}
    startup_s = max(group.startup_s for group in fleet)
    offered = []
    for kind in _FAST:
        rate = rate_of(kind)[0]
        name = card_class_of(int(rate.memory_gb * GIB))
        if kind not in have and name is not None:
            nominal = NOMINAL_BYTES[name]
            offered.append(
                Cards(
                    kind=kind,
                    card_class=name,
                    usable_bytes=usable_bytes(kind, nominal),
                    count=1,
                    price_per_hour=rate.price_per_hour,
                    startup_s=startup_s,
                )
            )
    return offered


def _fewest(finish_of: Callable[[int], float], half: float, guess: int, most: int) -> int:
    """The fewest more cards with which all is done by `half`, looking near `guess`; 0 where `most` are not enough.

    Of more than a hundred it may be one in fifty too many: each look is a whole schedule.
    """
    step = 1
    low = high = max(1, min(guess, most))
    if finish_of(most) > half:
        return 0
    if finish_of(high) <= half:
        low = high - step
        while low > 0 and finish_of(low) <= half:
            high, step = low, 2 * step
            low = max(0, high - step)
    else:
        while True:
            high, step = min(most, low + step), 2 * step
            if finish_of(high) <= half:
                break
            low = high
    while high - low > max(1, high // 50):
        middle = (low + high) // 2
        low, high = (low, middle) if finish_of(middle) <= half else (middle, high)
    return high


def _short(kind: str) -> str:
    return kind.removeprefix("NVIDIA ").removeprefix("GeForce ")


def _notes(plan: _Plan, fleet: Sequence[Cards], estimates: TimeEstimates) -> tuple[str, ...]:
    notes = []
    sources: dict[str, Counter[str]] = defaultdict(Counter)
    for kind in plan.clips:
        for cost in kind.costs:
            if cost is not None:
                sources[cost.kind][cost.corrections[ClipPart.STEP].source] += 1
    for kind_name, counted in sources.items():
        if not estimates.knows(kind_name):
            rate = rate_of(kind_name)[0]
            notes.append(f"{kind_name}: its speed is not known, {rate.tflops:g} TFLOPS are assumed: good for nothing")
        elif set(counted) == {"published"}:
            notes.append(f"{kind_name}: nothing measured, times follow from published TFLOPS, good to a factor of 1.6")
        elif counted["published"] or counted["kind"]:
            notes.append(f"{kind_name}: some models were never measured on it")
    if any(group.price_per_hour is None for group in fleet):
        notes.append("a price is missing: give `price_per_hour` in the fleet file")
    elif any(group.price_per_hour for group in fleet):
        notes.append("prices are those of the fleet file, else estimates of clouds' hourly prices in US dollars")
    return tuple(notes)
