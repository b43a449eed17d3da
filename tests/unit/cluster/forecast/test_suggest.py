"""What a card is said to render, against footprints counted by hand and in full."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import resources

import pytest
from PIL import Image
from typer.testing import CliRunner

from cluster.estimates.published import tflops_of
from cluster.forecast.suggest import EFFICIENCY, largest_fit, largest_worth, max_frames, suggest, usable_of
from pipeline.clips.clip import ResolutionClass, Tier
from pipeline.families import FAMILIES, family_named
from pipeline.families.layouts import RESIDENT, Layout
from pipeline.memory.footprint import footprint_of
from serve.cli import suggest as command
from serve.cli.main import app
from serve.cli.show import cards_table
from serve.gateway.views import card_view
from tests.building import beat

GIB = 2**30
I2VGEN = family_named("i2vgen-xl")
TINY = family_named("i2vgen-xl-tiny")
P = ResolutionClass


def option(found, family: str, resolution_class: ResolutionClass):
    return next(o for o in found if (o.family.name, o.resolution_class) == (family, resolution_class))


@pytest.fixture(scope="module")
def table():
    """The coefficients of I2VGen-XL, as they lie in the package."""
    return json.loads((resources.files("pipeline.memory") / "footprints" / "i2vgen-xl.json").read_text())


def test_numbers_counted_by_hand(table):
    """Weights, the denoising step's activations of 16 frames and its workspace: at these sizes the largest stage."""
    # 98.5 % of 12 GiB, less 450 MiB of context and a margin of a twentieth.
    assert usable_of(12) == int(0.985 * 12 * GIB) - 450 * 2**20 - 12 * GIB // 20
    usable = int(11.5 * GIB)
    found = suggest([I2VGEN], usable)
    weights = sum(table["weights"].values())

    def step(switches: str, side: int, frames: int) -> int:
        line, copied = table["denoise"][switches][0], table["convolutions"][switches][0]
        each = line["per_pixel_frame"] + copied["per_pixel_frame"]
        return round(weights + line["fixed"] + side * side * frames * each)

    medium = option(found, "i2vgen-xl", P.P768)
    assert (medium.layout, medium.frames, medium.steps) == (RESIDENT, 16, 50)
    assert medium.predicted.peak_bytes == pytest.approx(step("batched", 768, 16), abs=4)
    assert medium.predicted.peak_bytes <= usable < step("batched", 768, 17)
    assert medium.faster == ()

    large = option(found, "i2vgen-xl", P.P1024)
    assert large.layout == Layout(split_guidance=True)
    assert large.predicted.peak_bytes == pytest.approx(step("split", 1024, 16), abs=4)
    assert [(f.layout, f.needs_bytes) for f in large.faster] == [
        (RESIDENT, pytest.approx(step("batched", 1024, 16), abs=4))
    ]
    assert large.guidance == 9
    assert large.seconds is None


@pytest.mark.parametrize("name", [f.name for f in FAMILIES.values() if f.components])
@pytest.mark.parametrize("vram", [6, 8, 12, 24, 80])
def test_the_most_frames_are_the_most_and_the_layout_the_fastest(name, vram):
    family, usable = family_named(name), usable_of(vram) if family_named(name).repo else usable_of(vram) // 400
    found = {o.resolution_class: o for o in suggest([family], usable)}
    for resolution_class in family.classes:
        shown = found.get(resolution_class)
        pixels = shown.width * shown.height if shown else resolution_class.pixels
        fitting = [
            frames
            for frames in range(family.frame_rule.minimum, family.frame_rule.maximum + 1)
            if family.frame_rule.allows(frames)
            and any(footprint_of(family, pixels, frames, o).peak_bytes <= usable for o in family.layouts)
        ]
        assert max_frames(family, pixels, usable) == (max(fitting) if fitting else None)
        assert (shown is None) == (fitting == [])
        if shown is not None:
            assert shown.max_frames == max(fitting)
            assert shown.frames == min(family.tiers[Tier.STANDARD].frames, max(fitting))
            peaks = [footprint_of(family, pixels, shown.frames, o).peak_bytes for o in family.layouts]
            first = next(n for n, peak in enumerate(peaks) if peak <= usable)
            assert shown.layout == family.layouts[first]
            assert [f.needs_bytes for f in shown.faster] == peaks[:first]
            assert all(f.needs_bytes > usable for f in shown.faster)


def test_a_small_card_gets_nothing_and_no_error():
    assert suggest([I2VGEN], 2**20) == []
    assert largest_fit(I2VGEN, 2**20) is None


def test_one_class_of_each_model_is_the_one_to_start_with():
    found = suggest([I2VGEN, family_named("svd-xt"), family_named("wan2.2-5b")], usable_of(80))
    starts = {o.family.name: o.resolution_class for o in found if o.recommended}
    assert starts == {"i2vgen-xl": P.P512, "svd-xt": P.P768, "wan2.2-5b": P.P1024}
    below = suggest([family_named("wan2.2-5b")], usable_of(80), largest=P.P512)
    assert [o.resolution_class for o in below if o.recommended] == [P.P512]


@pytest.mark.parametrize(
    ("kind", "tflops"),
    [
        ("RTX 4090", 165),
        ("NVIDIA GeForce RTX 4090", 165),
        ("rtx 4090", 165),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA RTX 6000 Ada Generation", 364),
        ("emulated", None),
        ("GTX 1080", None),
        ("", None),
    ],
)
def test_a_card_s_speed_by_its_name(kind, tflops):
    assert tflops_of(kind) == tflops


def test_expected_time_is_arithmetic_over_speed(table):
    """512p × 16 frames, 50 steps: 41.9 TFLOP a step with guidance and 40 to decode, as counted of the stock network."""
    small = option(suggest([I2VGEN], usable_of(24), tflops=165), "i2vgen-xl", P.P512)
    assert small.seconds == pytest.approx((41.9e12 * 50 + 40e12) / (165e12 * EFFICIENCY), rel=0.01)
    assert (small.layout, small.slowdown, small.faster) == (RESIDENT, 1, ())


def test_a_leaner_layout_is_expected_to_take_longer():
    """On 6 GB 1024p is streamed: two copies of 1.42 G weights of two bytes a step, at 12 GB/s."""
    large = option(suggest([I2VGEN], usable_of(6), tflops=165), "i2vgen-xl", P.P1024)
    assert large.layout.stream_weights
    assert large.layout.split_guidance
    alone = (large.flops_per_step * 50) / (165e12 * EFFICIENCY)
    assert large.seconds > alone + 50 * 2 * 1.4205e9 * 2 / 12e9
    assert large.slowdown == pytest.approx(large.seconds / alone, rel=0.05)
    first = large.faster[0]
    assert (first.layout, first.stage) == (RESIDENT, "denoise")
    assert first.missing_bytes == first.needs_bytes - usable_of(6) > 0
    assert first.saves == pytest.approx(1 - 1 / large.slowdown, abs=0.01)


@pytest.mark.parametrize("within", [1, 10, 30, 60, 300])
def test_within_a_time_nothing_is_shown_that_takes_longer(within):
    families = [f for f in FAMILIES.values() if f.repo]
    every = {(o.family.name, o.resolution_class): o for o in suggest(families, usable_of(24), tflops=165)}
    found = {
        (o.family.name, o.resolution_class): o for o in suggest(families, usable_of(24), tflops=165, within_s=within)
    }
    assert found.keys() <= every.keys()
    for key, shown in found.items():
        assert shown.seconds <= within
        assert shown.frames <= shown.max_frames <= every[key].max_frames
        if every[key].seconds <= within:
            assert (shown.tier, shown.frames) == (Tier.STANDARD, every[key].frames)
        else:
            assert shown.tier is Tier.DRAFT or shown.frames < every[key].frames
    if within == 300:
        assert any(o.tier is Tier.STANDARD for o in found.values())
    if within == 60:
        assert found["i2vgen-xl", P.P768].tier is Tier.DRAFT
        assert found["i2vgen-xl", P.P768].frames == I2VGEN.tiers[Tier.DRAFT].frames


@pytest.mark.parametrize(
    ("size", "largest"),
    [
        ((64, 64), P.P256),
        ((600, 600), P.P512),
        ((615, 614), P.P768),
        ((819, 819), P.P768),
        ((820, 820), P.P1024),
        ((1600, 450), P.P1024),
        ((6000, 4000), P.P1024),
    ],
)
def test_a_small_still_is_not_worth_a_large_class(size, largest):
    assert largest_worth(*size) is largest


# ---------------------------------------------------------------------------------------------- the command


def run(*words: str):
    done = CliRunner().invoke(app, ["suggest", *words])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout) if "--json" in words else done.output


def test_the_command_in_json(tmp_path):
    still = tmp_path / "still.png"
    Image.new("RGB", (720, 480), "red").save(still)
    answer = run("--vram", "12", "--image", str(still), "--card", "RTX 4090", "--json")
    assert answer["usable_bytes"] == usable_of(12)
    assert answer["image"] == {"size": "720x480", "largest_class": "512p"}
    assert {o["model"] for o in answer["options"]} == {f.name for f in FAMILIES.values() if f.repo}
    assert {o["class"] for o in answer["options"]} == {"256p", "512p"}
    small = next(o for o in answer["options"] if (o["model"], o["class"]) == ("i2vgen-xl", "512p"))
    # What comes nearest to 3:2 in multiples of 64 pixels, and fills the class's area.
    assert small["size"] == "640x384"
    assert (small["frames"], small["steps"], small["max_guidance"]) == (16, 50, 9.0)
    assert small["stage_bytes"]["denoise"] < small["total_bytes"] < 12 * GIB
    assert small["seconds"] > 0
    assert any("costs nothing in memory" in note for note in answer["notes"])
    assert any("factor of two" in note for note in answer["notes"])


def test_one_model_alone_and_nothing_that_fits():
    assert {o["model"] for o in run("--vram", "8", "--model", "svd-xt", "--json")["options"]} == {"svd-xt"}
    shown = " ".join(run("--vram", "1", "--model", "wan2.2-5b").split())
    assert shown.endswith("None of wan2.2-5b fits; `--model camera` needs no card.")


def test_the_table_says_what_the_fastest_layout_needs():
    shown = " ".join(run("--vram", "12", "--model", "i2vgen-xl").split())
    assert "guidance=split" in shown
    assert "not faster because" in shown
    assert "denoise lacks" in shown
    assert "estimate" in shown
    assert run("--vram", "12", "--model", "i2vgen-xl", "--json")["options"][-1]["faster"][0]["missing_bytes"] > 0


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (["--within", "60", "--vram", "12"], "within"),
        (["--vram", "12", "--card", "Voodoo 2"], "card"),
        (["--vram", "12", "--model", "nothing"], "model"),
        ([], "vram"),
    ],
)
def test_what_cannot_be_answered_says_what_to_do(words, field, monkeypatch):
    monkeypatch.setattr(command, "find_gpus", list)
    done = CliRunner().invoke(app, ["suggest", *words])
    assert done.exit_code == 2
    assert f"{field}: " in done.output
    assert "--" in done.output or "Choose" in done.output or "Known" in done.output


def test_it_needs_no_torch():
    code = (
        "import sys\nfrom serve.cli.main import app\n"
        "try: app(['suggest', '--vram', '24', '--json'])\n"
        "except SystemExit as ended: assert not ended.code\n"
        "sys.exit(sorted({'torch', 'diffusers', 'transformers', 'ray'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["options"]


# ---------------------------------------------------------------------------------------------- cards


def test_a_card_says_what_fits_it_now():
    whole = card_view(beat(usable_bytes=usable_of(12)))
    taken = card_view(beat(usable_bytes=usable_of(12) - 7 * GIB, foreign_bytes=7 * GIB))
    assert whole["largest"]["i2vgen-xl"] == {
        "class": "1024p",
        "frames": max_frames(I2VGEN, 1024**2, usable_of(12)),
    }
    assert whole["largest"].keys() == {f.name for f in FAMILIES.values() if f.repo}
    assert taken["largest"]["wan2.2-5b"] != whole["largest"]["wan2.2-5b"]
    assert card_view(beat(usable_bytes=0))["largest"]["i2vgen-xl"] is None


def test_emulated_cards_are_for_small_networks():
    view = card_view(beat(kind="emulated", usable_bytes=2**27))
    assert view["largest"].keys() == {f.name for f in FAMILIES.values() if f.components and f.repo is None}
    found = largest_fit(TINY, 2**27)
    assert view["largest"]["i2vgen-xl-tiny"] == {"class": found[0].value, "frames": found[1]}


def test_the_largest_class_is_one_that_holds_a_draft():
    """A card may have room for two frames of a class; that is no clip."""
    draft = I2VGEN.tiers[Tier.DRAFT].frames
    for usable in range(3 * GIB, 9 * GIB, GIB // 8):
        found = largest_fit(I2VGEN, usable)
        fitting = [c for c in P if (max_frames(I2VGEN, c.pixels, usable) or 0) >= draft]
        assert (found and found[0]) == (fitting[-1] if fitting else None) or (found and not fitting)


@pytest.mark.parametrize(
    ("used", "foreign", "warning"),
    [
        (4.0, 0.0, ""),
        (6.4, 0.0, ""),
        (6.6, 0.0, "82% of 8.0 GiB in use"),
        (1.0, 6.0, "88% of 8.0 GiB in use, 6.0 GiB of it by other programs"),
    ],
)
def test_above_80_percent_it_warns(used, foreign, warning):
    view = card_view(beat(used_bytes=int(used * GIB), foreign_bytes=int(foreign * GIB)))
    assert view["warning"] == warning
    assert view["used_share"] == pytest.approx((used + foreign) / 8, abs=0.001)


def test_the_terminal_shows_warnings_and_waiting_clips():
    views = [card_view(beat(used_bytes=7 * GIB, waiting_for="needs 3.0 GiB, 1.0 GiB usable"))]
    shown = cards_table(views)
    assert "gpu0: 88% of 8.0 GiB in use" in str(shown.caption)
    assert "gpu0: a clip has not begun: it needs 3.0 GiB" in str(shown.caption)
    # A farm of another version says less.
    assert cards_table([beat().model_dump(mode="json")]).caption is None
