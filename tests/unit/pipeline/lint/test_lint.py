"""The prompt help finds what it shall find in prompts that it was not built on, and leaves good ones alone."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.families import FAMILIES, Family
from pipeline.lint.lint import PromptTexts, lint_prompt, rewritten, with_fix
from pipeline.lint.readers import READERS, reader_of
from pipeline.lint.vocabulary import MotionKind
from pipeline.notes import Severity, reading_notes

HERE = Path(__file__).parent
CATALOG = Path(__file__).parents[5] / "shared/catalog/catalog.csv"
I2V, WAN, SVD, CAMERA = (FAMILIES[name] for name in ("i2vgen-xl", "wan2.2-5b", "svd-xt", "camera"))
#: Counted by tokenizers, which come with weights: tests of `pipeline.models.tokens`.
COUNTED = "prompt_cut"


def labelled(name: str) -> list[tuple[str, str]]:
    """(code, prompt) of a file; `ok` is the code of good ones."""
    lines = (HERE / name).read_text(encoding="utf-8").splitlines()
    return [(code, prompt) for code, prompt in (line.split("\t") for line in lines) if code != COUNTED]


BUILDING, HELD_OUT = labelled("building.tsv"), labelled("held_out.tsv")
#: Prompts of the article whose complaints this answers, with what is wrong with them.
ARTICLES = {
    "Camera slowly panning left, clouds drifting": [],
    "Flowers blooming in time-lapse, sunlight flickering": [],
    "Person turning head to the right, gentle breeze": [],
    "A person slowly turning head to the right": [],
    "beautiful scene": ["prompt_vague"],
    "amazing motion": ["prompt_vague"],
    "something moving": ["prompt_vague"],
    "a little change": ["prompt_vague"],
    "make it alive": ["prompt_vague"],
    "Make it dynamic": ["prompt_vague"],
    "A nice photo with movement": ["prompt_no_motion"],
    "Zoom in and out simultaneously": ["prompt_contradictory"],
}


def codes(prompt: str, family: Family = I2V, negative_prompt: str = "") -> list[str]:
    return [note.code for note in lint_prompt(family, prompt, negative_prompt)]


@pytest.mark.parametrize(("prompt", "expected"), ARTICLES.items())
def test_prompts_of_the_articles_get_what_the_articles_say_of_them(prompt: str, expected: list[str]) -> None:
    assert codes(prompt) == expected


@pytest.mark.parametrize("name", ["building.tsv", "held_out.tsv"])
def test_few_false_alarms_and_few_misses(name: str) -> None:
    prompts = labelled(name)
    good = [prompt for code, prompt in prompts if code == "ok"]
    bad = [(code, prompt) for code, prompt in prompts if code != "ok"]
    assert len(good) >= 50
    assert len(bad) >= 50
    alarms = [prompt for prompt in good if codes(prompt)]
    missed = [prompt for code, prompt in bad if code not in codes(prompt)]
    assert len(alarms) <= 0.05 * len(good), alarms
    assert len(missed) <= 0.10 * len(bad), missed


def test_the_halves_share_no_prompt() -> None:
    assert not {prompt for _, prompt in BUILDING} & {prompt for _, prompt in HELD_OUT}


def test_a_real_catalogs_prompts_are_left_alone() -> None:
    if not CATALOG.exists():
        pytest.skip("the sample catalog is not here")
    with CATALOG.open(newline="", encoding="utf-8") as lines:
        prompts = [row["prompt"] for row in csv.DictReader(lines)]
    alarms = [prompt for prompt in prompts if codes(prompt)]
    assert len(prompts) > 100
    assert len(alarms) <= 0.05 * len(prompts), alarms


@pytest.mark.parametrize("family", [I2V, WAN, CAMERA], ids=lambda family: family.name)
@pytest.mark.parametrize("prompts", [BUILDING, HELD_OUT], ids=["building", "held_out"])
def test_a_rewrite_cures_what_it_was_made_for_and_rewriting_ends(
    family: Family, prompts: list[tuple[str, str]]
) -> None:
    for _, prompt in prompts:
        texts = PromptTexts(prompt=prompt)
        for note in lint_prompt(family, prompt):
            if note.fix:
                made = with_fix(texts, note.fix)
                assert note.code not in codes(made.prompt, family, made.negative_prompt), (prompt, note)
        once = rewritten(family, texts)
        assert rewritten(family, once) == once
        assert not any(note.fix for note in lint_prompt(family, once.prompt, once.negative_prompt)), (prompt, once)


WORDS = st.sampled_from(
    [
        *(
            "camera",
            "zoom",
            "in",
            "and",
            "out",
            "pan",
            "left",
            "right",
            "static",
            "slow",
            "fast",
            "then",
            ",",
            ".",
            "the",
        ),
        *(
            "no",
            "without",
            "people",
            "{color}",
            "shoe",
            "rotating",
            "simultaneously",
            "beautiful",
            "scene",
            "runs",
            "waves",
        ),
        *(
            "jumps",
            "nan",
            "while",
            "tilt",
            "up",
            "Kamera",
            "langsam",
            "der",
            "镜头",
            "motionless",
            "quickly",
            "%s",
            "over",
        ),
    ]
)


@given(st.lists(WORDS, max_size=14).map(" ".join) | st.text(max_size=60), st.sampled_from([I2V, WAN, CAMERA, SVD]))
@settings(max_examples=300, deadline=None)
def test_any_text_is_judged_and_its_rewrites_hold(prompt: str, family: Family) -> None:
    for note in lint_prompt(family, prompt):
        assert note.field == "prompt"
        if note.fix:
            made = with_fix(PromptTexts(prompt=prompt), note.fix)
            assert made.prompt.strip()
            assert note.code not in codes(made.prompt, family, made.negative_prompt)
    once = rewritten(family, PromptTexts(prompt=prompt))
    assert rewritten(family, once) == once


def test_what_is_denied_goes_into_the_negative_prompt_beside_what_is_there() -> None:
    (note,) = lint_prompt(I2V, "clouds drifting, no people and no birds", "blur, Birds")
    assert note.fix == {"prompt": "clouds drifting", "negative_prompt": "blur, Birds, people"}


def test_a_rewrite_keeps_the_words_that_were_good() -> None:
    fixes = {
        "camera tilts up and tilts down over the jacket": "camera tilts up over the jacket",
        "dolly in, dolly out, soft light": "dolly in, soft light",
        "camera panning left across the {color} jacket": "camera panning left across the jacket",
        "camera zooming in on the , soft studio light": "camera zooming in, soft studio light",
        "a bowl of ramen with egg and scallions": "a bowl of ramen with egg and scallions, steam rising slowly",
        "fixed camera that orbits around the statue": "camera orbits around the statue",
    }
    assert {prompt: rewritten(I2V, PromptTexts(prompt=prompt)).prompt for prompt in fixes} == fixes


def test_each_model_is_judged_by_what_it_reads() -> None:
    chinese, two = "镜头缓慢向左平移，云朵飘动", "camera pans right and then zooms in on the label"
    assert (codes(chinese), codes(chinese, WAN)) == (["prompt_language"], [])
    assert (codes(two), codes(two, WAN)) == (["prompt_many_moves"], [])
    assert codes("red shoe", CAMERA) == ["no_camera_move"]
    assert codes("clouds drifting", CAMERA) == ["no_camera_move"]
    assert codes("zoom in and out", CAMERA) == ["moves_cancelled"]
    assert codes("zoom in on the {color} shoe", CAMERA) == ["prompt_column_empty"]
    for silent in (SVD, FAMILIES["i2vgen-xl-tiny"]):
        assert codes("beautiful scene", silent) == []


def test_a_few_words_and_names_of_products_are_no_foreign_language() -> None:
    for prompt in (
        *("Birkenstock Gizeh", "crème brûlée", "Le Creuset cocotte", "pan left", "El Paso salsa bottle", "Das Auto"),
        *("Lancôme La Vie Est Belle bottle", "Müller Milch", "Château Margaux", "de Buyer Mineral B", "mise en place"),
    ):
        assert "prompt_language" not in codes(prompt), prompt


def test_findings_are_warnings_and_only_an_empty_column_reduces_the_clip() -> None:
    notes = [note for _, prompt in BUILDING for note in lint_prompt(I2V, prompt)]
    assert {note.severity for note in notes} == {Severity.WARNING}
    assert {note.code for note in notes if note.reduces} == {"prompt_column_empty"}


def test_a_text_that_is_cut_has_what_is_read_of_it_as_its_fix() -> None:
    facts = {"prompt_tokens_cut": 3, "prompt_cut": "and fly away"}
    (note,) = reading_notes(facts, {"prompt": "pan left and fly away"})
    assert (note.field, note.fix) == ("prompt", {"prompt": "pan left"})
    assert reading_notes(facts)[0].fix == {}


def test_every_engine_that_reads_prompts_has_a_reader() -> None:
    engines = {family.engine for family in FAMILIES.values() if family.uses_prompt}
    assert engines == set(READERS)
    assert reader_of(SVD) is None
    assert {kind for reader in READERS.values() for kind in reader.answers_to} == set(MotionKind)
