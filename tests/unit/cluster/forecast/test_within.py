"""What a row becomes that says how long its clip may take, against every clip that it could become, counted here."""

from __future__ import annotations

import math
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.catalog.defaults import Defaults
from cluster.catalog.ingest import IncomingRow, draft
from cluster.catalog.manifest import Row
from cluster.catalog.resolve import resolve
from cluster.estimates.times import TimeEstimates
from cluster.fleet.fleet_file import Cards
from cluster.forecast.suggest import MAX_ENLARGEMENT, usable_of
from cluster.forecast.within import TimeChooser, TimedChoice, card_times, longest_within
from pipeline.clips.clip import ResolutionClass, Tier
from pipeline.families import FAMILIES, family_named
from pipeline.memory.footprint import plan
from pipeline.units import format_duration

STILL = (1200, 1200)
L4 = Cards(kind="NVIDIA L4", card_class="c24", usable_bytes=usable_of(22), count=2, price_per_hour=None, startup_s=0.0)
T4 = Cards(kind="Tesla T4", card_class="c16", usable_bytes=usable_of(15), count=1, price_per_hour=None, startup_s=0.0)
SMALL = Cards(kind="Tesla T4", card_class="c8", usable_bytes=usable_of(6), count=1, price_per_hour=None, startup_s=0.0)
ESTIMATES = TimeEstimates()


def row(**said: object) -> Row:
    return Row.model_validate({"number": 1, "id": "A", "image": "a.png", "prompt": "pan left", **said})


def chosen(within_s: float, *fleet: Cards, still: tuple[int, int] = STILL, **said: object) -> TimedChoice:
    defaults = Defaults(model="i2vgen-xl", within=within_s)
    found = TimeChooser(fleet or (L4,), ESTIMATES).choice(row(**said), still, defaults)
    assert found is not None
    return found


@cache
def reference(*fleet: Cards) -> list[tuple[float, dict[str, object]]]:
    """(seconds on the slowest card that may take it, columns) of every clip, the best first, by hand."""
    family = family_named("i2vgen-xl")
    steps = family.tiers[Tier.DRAFT].steps
    classes = [c for c in reversed(ResolutionClass) if c in family.classes and c.side <= family.native_class.side]
    found = []
    for effort in ({}, {"tier": "standard", "steps": steps}, {"tier": "draft"}):
        for one in classes:
            spec = resolve(row(resolution_class=one, **effort), STILL, Defaults(model="i2vgen-xl"), "").spec
            planned = {group: plan(spec, group.usable_bytes) for group in fleet}
            layouts = family_named(spec.family).layouts
            fastest = min((layouts.index(p[0]) for p in planned.values() if p is not None), default=None)
            seconds = [0.0] if fastest is not None else [math.inf]
            for group, plan_there in planned.items():
                if plan_there is not None and layouts.index(plan_there[0]) == fastest:
                    cost = ESTIMATES.cost(spec, group.kind, plan_there[0])
                    seconds.append(cost.gap_s + cost.on_card_s() + cost.publish_s)
            found.append((max(seconds), {"class": one, "frames": spec.frames, "steps": spec.steps}))
    return found


@pytest.mark.parametrize("fleet", [(L4,), (L4, T4), (T4, SMALL)], ids=["one kind", "two kinds", "small ones"])
@given(share=st.floats(0.02, 1.2))
@settings(max_examples=40, deadline=None)
def test_the_best_clip_is_chosen_that_every_card_is_done_with_in_time(fleet: tuple[Cards, ...], share: float) -> None:
    every = reference(*fleet)
    within_s = share * max(seconds for seconds, _ in every if seconds < math.inf)
    in_time = [clip for clip in every if clip[0] <= within_s]
    seconds, expected = in_time[0] if in_time else min(every, key=lambda clip: clip[0])
    found = chosen(within_s, *fleet)
    spec = found.clip.spec
    assert {"class": spec.resolution_class, "frames": spec.frames, "steps": spec.steps} == expected
    assert found.clip.seconds == pytest.approx(seconds)
    assert found.in_time == bool(in_time)
    assert (found.note.code, found.note.reduces) == (("within_chosen", False) if in_time else ("within_missed", True))


def test_the_note_says_what_was_passed_over_and_why() -> None:
    best = reference(L4)[0]
    note = chosen(best[0] * 0.9).note
    assert f"would take {format_duration(best[0])} on NVIDIA L4" in note.message
    assert not note.worth_a_look
    assert "nothing to show in a larger class" in chosen(1e4, still=(400, 400)).note.message
    quickest = chosen(0.5)
    assert quickest.note.fix == {"within": math.ceil(quickest.clip.seconds)}
    assert chosen(math.ceil(quickest.clip.seconds)).in_time
    none = chosen(60, Cards(**{**vars(L4), "usable_bytes": 1}))
    assert none.note.code == "within_missed"
    assert "no card" in none.note.message


@given(st.integers(16, 4000), st.integers(16, 4000))
@settings(max_examples=60, deadline=None)
def test_a_small_still_is_not_enlarged(width: int, height: int) -> None:
    side = chosen(8e4, still=(width, height)).clip.spec.resolution_class.side
    smallest = min(one.side for one in family_named("i2vgen-xl").classes)
    assert side <= max(smallest, MAX_ENLARGEMENT * math.sqrt(width * height))


@pytest.mark.parametrize(
    "said",
    [
        {"resolution_class": "256p"},
        {"frames": 12},
        {"steps": 44},
        {"tier": "draft"},
        {"seconds": 1.0},
        {"resolution_class": "1024p", "frames": 24, "steps": 60},
    ],
)
def test_what_a_row_says_stays(said: dict[str, object]) -> None:
    """Whatever the time: a column that is filled in is never written over."""
    for within_s in (1, 30, 120, 1e4):
        choice = chosen(within_s, **said)
        assert not said.keys() & choice.clip.cells.keys()
        spec = choice.clip.spec
        for name in ("resolution_class", "frames", "steps"):
            if name in said:
                assert getattr(spec, name) == said[name]


def test_a_batch_of_tier_high_may_get_all_of_it_and_one_of_drafts_no_more() -> None:
    for tier, most in (("high", Tier.HIGH), ("draft", Tier.DRAFT)):
        found = TimeChooser((L4,), ESTIMATES).choice(
            row(), STILL, Defaults(model="i2vgen-xl", within=8e4, tier=Tier(tier))
        )
        assert found is not None
        assert found.clip.spec.steps == FAMILIES["i2vgen-xl"].tiers[most].steps


@pytest.mark.parametrize("model", [name for name, family in FAMILIES.items() if family.repo is None])
def test_every_small_model_has_a_choice(model: str) -> None:
    emulated = Cards(kind="emulated", card_class="c24", usable_bytes=2**30, count=1, price_per_hour=None, startup_s=0.0)
    found = TimeChooser((emulated,), ESTIMATES).choice(row(), STILL, Defaults(model=model, within=8e4))
    assert found is not None
    assert found.in_time
    assert found.clip.on == card_times(found.clip.spec, (emulated,), ESTIMATES)


def incoming(**said: object) -> IncomingRow:
    return IncomingRow(position=1, name="A", row=row(**said), still="0" * 64, number=1)


def test_a_draft_records_the_choice_and_its_reason() -> None:
    made = draft(
        incoming(within=60), Defaults(model="i2vgen-xl"), lambda _: STILL, choose=TimeChooser((L4,), ESTIMATES)
    )
    assert made.spec is not None
    expected = chosen(60)
    assert made.spec.resolution_class == expected.clip.spec.resolution_class
    assert expected.note.message in [note["message"] for note in made.row["noted"]]
    # A row without it is as it always was.
    assert "noted" not in draft(incoming(), Defaults(model="i2vgen-xl"), lambda _: STILL).row


@pytest.mark.parametrize("choose", [None, TimeChooser((), ESTIMATES)])
def test_where_no_card_is_known_that_is_said_and_a_strict_row_refused(choose: TimeChooser | None) -> None:
    defaults = Defaults(model="i2vgen-xl", within=60)
    made = draft(incoming(), defaults, lambda _: STILL, choose=choose)
    assert [note["code"] for note in made.row["noted"]] == ["within_unknown"]
    strict = draft(incoming(), defaults.model_copy(update={"strict": True}), lambda _: STILL, choose=choose)
    assert [problem.field for problem in strict.problems] == ["within"]


def test_a_strict_row_for_which_there_is_too_little_time_is_refused_with_the_time_it_takes() -> None:
    defaults = Defaults(model="i2vgen-xl", strict=True)
    made = draft(incoming(within=0.5), defaults, lambda _: STILL, choose=TimeChooser((L4,), ESTIMATES))
    assert [problem.field for problem in made.problems] == ["within"]
    assert format_duration(chosen(0.5).clip.seconds) in made.problems[0].message


@given(st.floats(1, 1e4), st.floats(0.5, 50), st.floats(1, 200))
@settings(deadline=None)
def test_all_are_done_by_the_time_that_is_given(done_s: float, rows: float, least_s: float) -> None:
    """Of clips that take what they may, `least_s` at the least, and are rendered one after the other."""

    def finish_s(within_s: float) -> float:
        return rows * max(least_s, within_s)

    found = longest_within(done_s, finish_s)
    if found is None:
        assert rows * max(least_s, min(1.0, done_s)) > done_s
    else:
        assert finish_s(found) <= done_s
        assert found == done_s or finish_s(found * 1.05) > done_s * 0.9
