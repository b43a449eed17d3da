"""Forecasts against schedules counted by brute force, properties of fleets, fleet files, the command and the API."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient
from typer.testing import CliRunner

from cluster.estimates.published import ClipPart
from cluster.estimates.times import TimeEstimates
from cluster.farm import Farm
from cluster.fleet.fleet_file import EMULATED_SHARE, Cards, cards_of, cards_of_roster, parse_fleet, read_fleet
from cluster.forecast.forecast import Order, Wanted, _fewest, forecast
from cluster.forecast.schedule import Times, schedule
from cluster.storage import Storage
from cluster.store import BatchStore, Database
from pipeline.clips.clip import ClipSpec, ResolutionClass, Sampler
from pipeline.clips.still_check import check_still
from pipeline.families import FAMILIES, family_named
from pipeline.memory.footprint import footprint
from pipeline.problems import BadInputError
from serve.cli.main import app
from serve.gateway.api import create_api
from serve.settings import EMULATED_USABLE_SHARE
from tests.building import beat, spec, still_png
from tests.unit.cluster.estimates.test_times import L4, learned

GIB = 2**30
EXAMPLE = Path(__file__).parents[4] / "examples" / "fleet.yaml"


def cards(kind: str = "L4", count: int = 1, usable_gib: float = 21, price: float | None = 1.0, startup_s: float = 0.0):
    name = "c24" if usable_gib > 14 else "c8"
    return Cards(
        kind=kind, card_class=name, usable_bytes=int(usable_gib * GIB), count=count, price_per_hour=price,
        startup_s=startup_s,
    )  # fmt: skip


def clip(side: int = 512, steps: int = 50, family: str = "i2vgen-xl", **changes) -> ClipSpec:
    values = {"resolution_class": ResolutionClass(f"{side}p"), "width": side, "height": side, "frames": 16}
    return spec(family, **(values | {"steps": steps, "guidance": 9.0, "sampler": Sampler.DDIM} | changes))


def rows(*specs: ClipSpec) -> list[Wanted]:
    return [Wanted(name=f"row{n}", number=n, spec=one) for n, one in enumerate(specs, start=1)]


MIXED = rows(*[clip(512)] * 7, *[clip(768)] * 3, *[clip(256, 30)] * 5, clip(1024, 20))
FLEET = [cards("L4", 2), cards("H100 PCIe", 1, 70, 2.4)]


# -- the schedule -----------------------------------------------------------------------------------------------


def played(fleet: Sequence[Cards], choice: Sequence[tuple[int, int]], clips: Sequence[tuple[str, list[Times | None]]]):
    """When all is published if clip n goes to card `choice[n]`, simulated event by event, one second being 1/64."""
    free = {(g, n): fleet[g].startup_s for g in range(len(fleet)) for n in range(fleet[g].count)}
    loaded: dict[tuple[int, int], str] = {}
    had = {where: set() for where in free}
    out: dict[tuple[int, int], float] = {}
    finish = 0.0
    for (family, times), where in zip(clips, choice, strict=True):
        mine = times[where[0]]
        assert mine is not None
        again = mine.load_s if family in had[where] else mine.first_s
        ready = free[where] + (mine.gap_s if loaded.get(where) == family else again)
        rendered = ready + mine.on_card_s
        # Its frames stay on the card while those of the clip before are still being encoded.
        free[where] = max(rendered, out.get(where, 0.0))
        out[where] = free[where] + mine.publish_s
        loaded[where] = family
        had[where].add(family)
        finish = max(finish, out[where])
    return finish, free


_SECONDS = st.integers(0, 12).map(float)
_TIMES = st.builds(
    Times,
    gap_s=_SECONDS,
    load_s=_SECONDS,
    first_s=_SECONDS,
    on_card_s=st.integers(1, 40).map(float),
    publish_s=_SECONDS,
)


@st.composite
def small_case(draw):
    fleet = [cards(count=draw(st.integers(1, 2)), startup_s=draw(_SECONDS)) for _ in range(draw(st.integers(1, 2)))]
    clips = []
    for _ in range(draw(st.integers(1, 5))):
        times = [draw(st.none() | _TIMES) for _ in fleet]
        if all(one is None for one in times):
            times[0] = draw(_TIMES)
        clips.append((draw(st.sampled_from(["one", "other"])), times))
    return fleet, clips


@settings(deadline=None)
@given(small_case())
def test_the_schedule_is_greedy_by_completion(case):
    """Played back, every choice leaves the clip's card free at the earliest time that any card would be."""
    fleet, clips = case
    everywhere = [(g, n) for g in range(len(fleet)) for n in range(fleet[g].count)]
    chosen: list[tuple[int, int]] = []
    for place in range(len(clips)):
        ends = []
        for where in everywhere:
            if clips[place][1][where[0]] is not None:
                _, free = played(fleet, [*chosen, where], clips[: place + 1])
                ends.append((free[where], where))
        # Between equals any will do here; both must then agree on the end all the same, so ties are broken as there.
        earliest = min(ends)[0]
        tied = [where for end, where in ends if end == earliest]
        chosen.append(tied[0])
        if len({played(fleet, [*chosen[:-1], w], clips[: place + 1])[0] for w in tied}) > 1 or len(tied) > 1:
            # What follows depends on a tie: only what came before is compared.
            assert schedule(fleet, [(f, t.__getitem__) for f, t in clips[:place]]).finish_s == pytest.approx(
                played(fleet, chosen[:-1], clips[:place])[0]
            )
            return
    assert schedule(fleet, [(f, t.__getitem__) for f, t in clips]).finish_s == pytest.approx(
        played(fleet, chosen, clips)[0]
    )


@settings(max_examples=60, deadline=None)
@given(small_case())
def test_no_assignment_beats_the_bound_and_the_best_is_not_worse_than_ours(case):
    fleet, clips = case
    everywhere = [(g, n) for g in range(len(fleet)) for n in range(fleet[g].count)]
    allowed = [[w for w in everywhere if times[w[0]] is not None] for _, times in clips]
    best = min(played(fleet, choice, clips)[0] for choice in itertools.product(*allowed))
    ours = schedule(fleet, [(f, t.__getitem__) for f, t in clips])
    assert ours.finish_s >= best - 1e-9
    assert sum(ours.clips) == len(clips)


def test_a_forecast_by_hand():
    """Two equal cards, three equal clips: one card renders two, and the last is published after them."""
    cost = TimeEstimates().cost(clip(), L4)
    found = forecast(rows(*[clip()] * 3), [cards(count=2, startup_s=10)], TimeEstimates(), changes=False)
    two = cost.first_s + cost.on_card_s() + cost.gap_s + cost.on_card_s() + cost.publish_s
    assert found.finish_s == pytest.approx(10 + two)
    assert found.gpu_hours == pytest.approx((2 * cost.first_s + cost.gap_s + 3 * cost.on_card_s()) / 3600)
    assert found.cost == pytest.approx(2 * found.finish_s / 3600)
    (use,) = found.kinds
    assert (use.kind, use.cards, use.clips) == ("L4", 2, 3)
    assert found.startup_s == 10


def test_bounds_by_hand():
    """Three equal clips shared by two cards; one clip and its publication; two kinds of cards by their speeds."""
    cost, fast = TimeEstimates().cost(clip(), L4), TimeEstimates().cost(clip(), "H100")

    def bound(count: int, *fleet: Cards) -> float:
        return forecast(rows(*[clip()] * count), fleet, TimeEstimates(), changes=False).bound_s

    assert bound(3, cards(count=2, startup_s=10)) == pytest.approx(10 + 1.5 * cost.on_card_s())
    assert bound(1, cards(count=2)) == pytest.approx(cost.on_card_s() + cost.publish_s)
    speeds = 1 / cost.on_card_s() + 1 / fast.on_card_s()
    assert bound(30, cards(), cards("H100", usable_gib=70)) == pytest.approx(30 / speeds)


# -- properties -------------------------------------------------------------------------------------------------

_CLIPS = st.lists(
    st.builds(clip, st.sampled_from([256, 512, 768]), st.integers(1, 60)), min_size=1, max_size=14
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(_CLIPS, st.integers(1, 4), st.integers(1, 4), st.integers(0, 1000))
def test_the_interval_holds_the_forecast_and_the_bound_lies_below(specs, small, large, seed):
    fleet = [cards("L4", small), cards("H100", large, 70)]
    found = forecast(rows(*specs), fleet, TimeEstimates(), seed=seed, changes=False)
    assert found.low_s <= found.finish_s <= found.high_s
    assert found.bound_s <= found.finish_s
    # Earliest completion on unrelated cards is never worse than all on one card.
    alone = sum(TimeEstimates().cost(one, "H100").on_card_s() for one in specs)
    assert found.finish_s <= alone + len(specs) * (TimeEstimates().first_seconds("i2vgen-xl", "H100") + 10)


@settings(max_examples=40, deadline=None)
@given(_CLIPS, st.integers(1, 5), st.integers(1, 5))
def test_more_equal_cards_are_never_later(specs, some, more):
    """Of equal cards and longest clips first; without loading, which a further card has to do once more."""
    times = [
        Times(gap_s=0, load_s=0, first_s=0, on_card_s=TimeEstimates().cost(s, L4).on_card_s(), publish_s=0)
        for s in specs
    ]
    times.sort(key=lambda t: -t.on_card_s)
    clips = [("one", lambda _n, t=t: t) for t in times]
    few, many = (schedule([cards(count=n)], clips).finish_s for n in (some, some + more))
    assert many <= few + 1e-9


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 13])
def test_more_cards_of_the_mixed_fleet_are_never_later(count):
    fewer = forecast(MIXED, [cards("L4", count), FLEET[1]], TimeEstimates(), changes=False)
    more = forecast(MIXED, [cards("L4", count + 1), FLEET[1]], TimeEstimates(), changes=False)
    assert more.finish_s <= fewer.finish_s + 1e-9
    assert more.bound_s <= fewer.bound_s + 1e-9


def test_a_faster_kind_is_never_later():
    speeds = ["T4", "L4", "RTX 4090", "A100", "L40S", "H100 PCIe", "H100"]
    finishes = [forecast(MIXED, [cards(kind, 2, 70)], TimeEstimates(), changes=False).finish_s for kind in speeds]
    assert finishes == sorted(finishes, reverse=True)


def test_the_same_question_has_the_same_answer():
    def ask(seed: int):
        return forecast(MIXED, FLEET, learned([1.2, 0.9, 1.1]), seed=seed)

    assert ask(3) == ask(3)
    assert (ask(3).low_s, ask(3).high_s) != (ask(4).low_s, ask(4).high_s)
    assert ask(3).finish_s == ask(4).finish_s


def test_measuring_narrows_the_interval():
    guess = forecast(rows(*[clip()] * 9), [cards()], TimeEstimates(), changes=False)
    known = learned([random.Random(n).uniform(1.95, 2.05) for n in range(12)])
    seen = forecast(rows(*[clip()] * 9), [cards()], known, changes=False)
    assert seen.finish_s == pytest.approx(2 * guess.finish_s, rel=0.1)
    assert (seen.high_s - seen.low_s) / seen.finish_s < 0.3 * (guess.high_s - guess.low_s) / guess.finish_s


def test_intervals_cover_what_they_say():
    """Worlds drawn from a known spread: calibrated on 12 clips, 24 more end within the interval about 9 of 10 times."""
    inside, worlds = 0, 60
    for world in range(worlds):
        rng = random.Random(world)
        of = {side: clip(side) for side in (256, 512)}
        estimates = TimeEstimates()
        for _ in range(6):
            for one in of.values():
                estimates = learned([rng.lognormvariate(0.3, 0.25)], one, estimates=estimates)
        todo = [of[256], of[512]] * 12
        found = forecast(rows(*todo), [cards(count=2)], estimates, changes=False, seed=world)
        real = []
        for one in todo:
            cost, by = TimeEstimates().cost(one, L4), rng.lognormvariate(0.3, 0.25)
            real.append(
                Times(
                    gap_s=cost.gap_s,
                    load_s=cost.load_s,
                    first_s=cost.first_s,
                    on_card_s=by * cost.on_card_s(),
                    publish_s=by * cost.publish_s,
                )
            )
        real.sort(key=lambda t: -t.on_card_s)
        done = schedule([cards(count=2)], [("one", lambda _n, t=t: t) for t in real]).finish_s
        inside += found.low_s <= done <= found.high_s
    assert 0.75 * worlds <= inside <= worlds


# -- what fits, what it costs, what would halve it ---------------------------------------------------------------


def test_a_clip_goes_where_the_farm_would_put_it():
    """To cards that its fastest layout fits; leaner ones only where that fits no card of the fleet."""
    large = clip(1024)
    resident, split = (footprint(large, layout).peak_bytes for layout in family_named("i2vgen-xl").layouts[:2])
    small, big = cards("L4", usable_gib=split / GIB + 0.1), cards("H100", usable_gib=resident / GIB + 0.1)
    (both,) = forecast(rows(large), [small, big], TimeEstimates(), changes=False).rows
    assert both.kinds == ("H100",)
    assert both.layouts["H100"] == family_named("i2vgen-xl").layouts[0]
    (alone,) = forecast(rows(large), [small], TimeEstimates(), changes=False).rows
    assert alone.kinds == ("L4",)
    assert alone.layouts["L4"] == family_named("i2vgen-xl").layouts[1]


def test_why_not_says_what_is_missing():
    bad = Wanted(name="bad", number=1, problem="prompt: the prompt is empty. Say what moves.")
    found = forecast([bad, *rows(clip(1024))], [cards("L4", usable_gib=1)], TimeEstimates())
    empty, large = found.rows
    assert empty.why_not == bad.problem
    assert "leanest layout" in large.why_not
    assert "L4" in large.why_not
    assert "Add a c6 card" in large.why_not
    assert not any(row.fits for row in found.rows)
    assert (found.finish_s, found.low_s, found.high_s, found.halving) == (0.0, 0.0, 0.0, ())


def test_what_halves_it_halves_it():
    found = forecast(MIXED * 4, FLEET, TimeEstimates(), drafts=rows(*[clip(256, 10)] * 10))
    assert found.halving
    for change in found.halving:
        assert change.finish_s <= found.finish_s / 2
    kept = [change.extra_per_hour for change in found.halving if not change.changes_clips]
    assert kept == sorted(kept)
    assert found.halving[-1].text == "tier draft"
    # One card fewer would not do: asked of the fleet itself.
    more = next(change for change in found.halving if "more L4" in change.text)
    count = int(more.text.split()[0])
    again = forecast(MIXED * 4, [cards("L4", 2 + count - 1), FLEET[1]], TimeEstimates(), changes=False)
    assert again.finish_s > found.finish_s / 2
    as_said = forecast(MIXED * 4, [cards("L4", 2 + count), FLEET[1]], TimeEstimates(), changes=False)
    assert as_said.finish_s == pytest.approx(more.finish_s)


def test_nothing_halves_a_single_clip_but_faster_cards():
    found = forecast(rows(clip()), [cards("H100", usable_gib=70)], TimeEstimates())
    assert found.halving == ()


def test_an_unknown_card_is_named():
    found = forecast(rows(clip()), [cards("Radeon Pro W7900", price=None)], TimeEstimates(), changes=False)
    assert any("Radeon Pro W7900" in note and "not known" in note for note in found.notes)
    assert found.cost is None


def test_priority_goes_before_length_and_rows_before_both_where_asked():
    """On one card the last clip's publication shows which was last."""
    short, long = clip(256, 10), clip(768)
    by_length = forecast(rows(short, long), [cards()], TimeEstimates(), changes=False).finish_s
    by_row = forecast(rows(short, long), [cards()], TimeEstimates(), order=Order.ROW, changes=False).finish_s
    urgent = [Wanted(name="short", number=1, spec=short, priority=5), Wanted(name="long", number=2, spec=long)]
    by_priority = forecast(urgent, [cards()], TimeEstimates(), changes=False).finish_s
    published = [TimeEstimates().cost(one, L4).publish_s for one in (short, long)]
    assert by_row == by_priority
    assert by_row - by_length == pytest.approx(published[1] - published[0])


def test_ten_thousand_rows_take_seconds_not_minutes():
    """Cost is by kind of clip: 10,000 rows of four kinds ask for times a handful of times."""
    many = rows(*[clip(side, steps) for side in (256, 512) for steps in (20, 50)] * 2500)
    estimates = TimeEstimates()
    found = forecast(many, [cards("L4", 40), cards("H100", 8, 70)], estimates, changes=False)
    assert len(found.rows) == 10_000
    assert len(estimates._costs) <= 16


# -- the fleet file ---------------------------------------------------------------------------------------------


def test_the_example_can_be_read():
    found = cards_of(read_fleet(EXAMPLE))
    assert [(group.kind, group.card_class, group.count) for group in found] == [
        ("L4", "c24", 8),
        ("NVIDIA GeForce RTX 4090", "c24", 2),
        ("A100 80GB", "c80", 1),
    ]
    assert [group.price_per_hour for group in found[:2]] == [0.71, 0.40]
    assert [group.startup_s for group in found] == [90, 15, 90]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no table but nothing"),
        ("- kind: L4", "holds no table but a list"),
        ("cards: [", "no YAML at line 1"),
        ("cards: []", "cards:"),
        ("cards:\n  - count: 2", "cards.0.kind"),
        ("cards:\n  - kind: L4\n    count: 0", "cards.0.count"),
        ("cards:\n  - kind: L4\n    count: many", "not 'many'"),
        ("cards:\n  - kind: L4\n    class: c25", "cards.0.class"),
        ("cards:\n  - kind: L4\n    price: 1", "cards.0.price"),
        ("cards:\n  - kind: L4\n    price_per_hour: -1", "cards.0.price_per_hour"),
        ("cards:\n  - kind: L4\n    price_per_hour: .nan", "cards.0.price_per_hour"),
        ("cards:\n  - kind: emulated", "class: c24"),
        ("cards:\n  - {kind: L4, count: 99999}\n  - {kind: T4, count: 99999}", "more than 100000"),
        ("startup_seconds: 5", "cards"),
        ("cards: &a [*a]", "cards.0"),
    ],
)
def test_a_bad_fleet_file_is_told_exactly(tmp_path, text, message):
    path = tmp_path / "fleet.yaml"
    path.write_text(text)
    with pytest.raises(BadInputError) as caught:
        read_fleet(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "examples/fleet.yaml" in caught.value.problem.remedy


def test_emulated_cards_have_what_the_farm_gives_them():
    assert EMULATED_SHARE == EMULATED_USABLE_SHARE
    from pipeline.devices.emulation_scale import emulated_bytes

    (group,) = cards_of(parse_fleet({"cards": [{"kind": "emulated", "class": "c8"}]}, "here"))
    assert group.usable_bytes == int(emulated_bytes(8 * GIB) * EMULATED_USABLE_SHARE)


def test_a_roster_is_a_fleet():
    found = cards_of_roster([beat("a", kind="NVIDIA L4"), beat("b", kind="NVIDIA L4"), beat("c", kind="Tesla T4")])
    assert [(group.kind, group.count) for group in found] == [("NVIDIA L4", 2), ("Tesla T4", 1)]
    assert all(group.startup_s == 0 for group in found)


# -- the command ------------------------------------------------------------------------------------------------

runner = CliRunner(env={"COLUMNS": "200"})


@pytest.fixture
def catalog(tmp_path):
    folder = tmp_path / "catalog"
    folder.mkdir()
    for name in ("mug", "lamp"):
        (folder / f"{name}.png").write_bytes(still_png())
    path = folder / "catalog.csv"
    path.write_text(
        "id,image,prompt,resolution_class,tier\n"
        "MUG,mug.png,camera panning left,512p,standard\n"
        "LAMP,lamp.png,camera panning left,768p,draft\n"
    )
    return path


def run(*words: object):
    return runner.invoke(app, ["forecast", *map(str, words)])


def test_the_command_says_when_and_for_how_much(catalog, tmp_path):
    result = run(catalog, "--fleet", EXAMPLE, "--home", tmp_path / "home")
    assert result.exit_code == 0, result.output
    printed = result.stderr
    assert "2 rows" in printed
    assert "done in about" in printed
    assert "9 of 10 times" in printed
    assert "nothing measured" in printed
    assert not (tmp_path / "home").exists()


def test_the_command_in_json(catalog, tmp_path):
    result = run(catalog, "--fleet", EXAMPLE, "--home", tmp_path / "home", "--json", "--tier", "draft")
    found = json.loads(result.stdout)
    assert result.exit_code == 0
    assert found["rows_fit"] == 2
    assert [row["id"] for row in found["rows"]] == ["MUG", "LAMP"]
    low, high = found["interval_seconds"]
    assert low <= found["finish_seconds"] <= high
    assert {kind["kind"] for kind in found["kinds"]} == {"L4", "NVIDIA GeForce RTX 4090", "A100 80GB"}
    cost = TimeEstimates().cost(clip(512).model_copy(update={"width": 576, "height": 448}), "L4")
    assert found["rows"][0]["on"]["L4"]["seconds"] == pytest.approx(cost.on_card_s(), rel=0.05)


def test_rows_that_fit_nowhere_are_exit_1(catalog, tmp_path):
    fleet = tmp_path / "small.yaml"
    fleet.write_text("cards:\n  - kind: RTX 3060\n    class: c6\n")
    result = run(catalog, "--fleet", fleet, "--home", tmp_path / "home", "--model", "wan2.2-5b")
    assert result.exit_code == 1
    assert "row 1 MUG" in result.stderr


@pytest.mark.parametrize("words", [["--fleet", "absent.yaml"], ["--fleet", "bad.yaml"], []])
def test_a_bad_or_missing_fleet_is_exit_2(catalog, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    Path("bad.yaml").write_text("cards: [{kind: L4, count: some}]")
    result = run(catalog, *words, "--home", tmp_path / "home")
    assert result.exit_code == 2
    assert "fleet" in result.stderr or "absent.yaml" in result.stderr
    assert "Traceback" not in result.output


def test_nothing_heavy_is_imported(catalog, tmp_path):
    """No torch, diffusers or Ray for a question that needs no GPU."""
    code = (
        "import sys\n"
        "from serve.cli.main import app\n"
        f"words = ['forecast', {str(catalog)!r}, '--fleet', {str(EXAMPLE)!r}, '--home', {str(tmp_path / 'h')!r}]\n"
        "try:\n    app(words)\nexcept SystemExit as end:\n    assert end.code == 0, end.code\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'ray'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr


def test_the_command_uses_what_the_home_has_measured(catalog, tmp_path):
    home = tmp_path / "home"
    before = json.loads(run(catalog, "--fleet", EXAMPLE, "--home", home, "--json").stdout)
    database = Database.in_folder(home)
    try:
        from cluster.store import measurements
        from tests.unit.cluster.estimates.test_times import timed

        with database.write() as c:
            for _ in range(5):
                measurements.record(database, c, 0, measurements.observe(clip(), "NVIDIA L4", (), timed(3.0)))
    finally:
        database.close()
    after = json.loads(run(catalog, "--fleet", EXAMPLE, "--home", home, "--json").stdout)
    slower = after["rows"][0]["on"]["L4"]["seconds"] / before["rows"][0]["on"]["L4"]["seconds"]
    assert slower == pytest.approx(3.0, rel=0.05)
    assert any(note.startswith("L4: nothing measured") for note in before["notes"])
    assert not any(note.startswith("L4: nothing measured") for note in after["notes"])


# -- the API ----------------------------------------------------------------------------------------------------


@pytest.fixture
def client(sqlite_database, tmp_path):
    async def nudge() -> None:
        pass

    farm = Farm(BatchStore(sqlite_database), Storage(f"file://{tmp_path / 'storage'}"))
    with TestClient(create_api(farm, default_model="i2vgen-xl", nudge=nudge)) as client:
        yield client


def body(**changes):
    row = {"number": 1, "line": 2, "id": "MUG", "image": "mug.png", "prompt": "camera panning left"}
    return {"rows": [{"row": row, "still_size": [800, 800]}], "fleet": {"cards": [{"kind": "L4"}]}} | changes


def test_the_api_answers_as_the_command(client):
    answer = client.post("/v1/forecast", json=body())
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["object"] == "forecast"
    assert found["rows"][0]["on"]["L4"]["seconds"] == pytest.approx(
        TimeEstimates().cost(clip(), "L4").on_card_s(), abs=0.01
    )


def test_the_api_refuses_what_is_wrong(client):
    no_cards = client.post("/v1/forecast", json=body(fleet=None))
    assert no_cards.status_code == 400
    assert no_cards.json()["error"]["param"] == "fleet"
    bad = client.post("/v1/forecast", json=body(fleet={"cards": [{"kind": "L4", "count": 0}]}))
    assert bad.status_code == 422
    assert "count" in bad.json()["error"]["message"]


def test_stills_are_looked_at_once_and_not_kept(catalog, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr("serve.gateway.forecasting.check_still", lambda data: opened.append(1) or check_still(data))
    assert run(catalog, "--fleet", EXAMPLE, "--home", tmp_path / "home").exit_code == 0
    # Both stills are the same picture.
    assert len(opened) == 1


def test_every_family_can_be_forecast():
    for name, family in FAMILIES.items():
        frames = family.tiers["draft"].frames
        of = spec(name, frames=frames, steps=1 if not family.samplers else 4, guidance=max(1.0, family.guidance))
        found = forecast(rows(of), [cards("H100", usable_gib=70)], TimeEstimates(), changes=False)
        assert found.finish_s > 0, name
        assert found.rows[0].seconds["H100"] == pytest.approx(
            TimeEstimates().clip_seconds(of, "H100", usable_bytes=70 * GIB)
        )
        assert set(TimeEstimates().cost(of, "H100").corrections) == set(ClipPart)


def test_cards_that_no_clip_would_use_cost_nothing_and_change_nothing():
    def groups(count: int) -> list[Cards]:
        made = {"usable_bytes": 20 * GIB, "count": count, "price_per_hour": None}
        return [
            Cards(kind="a", card_class="c24", startup_s=3.0, **made),
            Cards(kind="b", card_class="c24", startup_s=0.0, **made),
        ]

    rng = random.Random(3)
    times = [
        [
            Times(gap_s=0.1, load_s=rng.random(), first_s=1.0, on_card_s=rng.uniform(1, 9), publish_s=rng.random())
            for _ in range(2)
        ]
        for _ in range(30)
    ]
    clips = [(rng.choice(["x", "y"]), of.__getitem__) for of in times]
    tracemalloc.start()
    many = schedule(groups(100_000), clips)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert many == schedule(groups(30), clips)
    assert peak < 2**20, "as much as there are clips, not cards"


def test_the_fewest_more_cards_are_found_in_few_looks():
    for needed, guess in ((1, 1), (7, 3), (99, 100), (12_345, 5), (900_000, 1_600_000)):
        looks = []

        def finish_of(more: int, needed: int = needed, looks: list[int] = looks) -> float:
            looks.append(more)
            return needed / more

        found = _fewest(finish_of, 1.0, guess, 1_600_000)
        assert needed <= found <= needed + needed // 49
        assert len(looks) < 60
    looks = []
    assert _fewest(lambda more: looks.append(more) or 2.0, 1.0, 7, 1_600_000) == 0
    assert looks == [1_600_000], "where no number is enough, one look says so"
