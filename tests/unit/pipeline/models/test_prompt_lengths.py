"""What will be cut of a prompt, told before networks are loaded: as the models themselves say it, or nothing wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.families import family_named
from pipeline.models import tiny, tiny_wan
from pipeline.models.tokens import PromptLengths, TokenCounter
from pipeline.notes import reading_notes
from pipeline.weights.weights import built_folder
from tests.building import spec

NAMES = ("i2vgen-xl-tiny", "wan2.2-5b-tiny")
#: Of single bytes, so no text has more tokens with another vocabulary.
TOKENIZERS: dict[str, Any] = {"i2vgen-xl-tiny": tiny._tokenizer(), "wan2.2-5b-tiny": tiny_wan._tokenizer()}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home that has the tokenizers and no weights."""
    folder = tmp_path_factory.mktemp("home")
    for name, tokenizer in TOKENIZERS.items():
        tokenizer.save_pretrained(built_folder(family_named(name), folder) / "tokenizer")
    return folder


def texts() -> st.SearchStrategy[str]:
    words = st.lists(st.text("aZ9 ,&;é漢\t", max_size=12), max_size=40).map(" ".join)
    return st.one_of(words, st.integers(60, 90).map("a".__mul__), st.integers(500, 520).map("b".__mul__))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(prompt=texts(), negative=texts())
@example(prompt="a" * 75, negative="b" * 511)
@example(prompt="a" * 76, negative="b" * 510)
def test_a_machine_with_the_tokenizer_says_what_the_renderer_will(
    home: Path, name: str, prompt: str, negative: str
) -> None:
    prompt = prompt or "a"
    made = spec(name, prompt=prompt, negative_prompt=negative)
    counter = TokenCounter(family_named(name).engine, TOKENIZERS[name])
    exact = counter.cut({"prompt": prompt, "negative_prompt": negative})
    assert PromptLengths(home).cut(made) == exact
    # Without it, all that is said is true.
    told = PromptLengths(home / "nowhere").cut(made)
    for text in ("prompt", "negative_prompt"):
        if f"{text}_tokens_cut" in told:
            assert told[f"{text}_at_least"]
            assert told[f"{text}_tokens_cut"] <= exact[f"{text}_tokens_cut"]
            assert exact[f"{text}_cut"].endswith(told[f"{text}_cut"])


def test_words_beyond_any_vocabulary_are_told_without_a_tokenizer(tmp_path: Path) -> None:
    made = spec("i2vgen-xl", prompt=" ".join(f"w{n}" for n in range(80)))
    (note,) = reading_notes(PromptLengths(tmp_path).cut(made))
    assert note.code == "prompt_cut"
    assert "at least 5 tokens longer" in note.message
    assert "'w75 w76 w77 w78 w79'" in note.message
    assert PromptLengths(tmp_path).cut(spec("i2vgen-xl", prompt="a word " * 30)) == {}


@pytest.mark.parametrize("name", ["camera", "svd-xt"])
def test_whoever_cuts_nothing_reads_all(tmp_path: Path, name: str) -> None:
    assert PromptLengths(tmp_path).cut(spec(name, prompt="pan left " * 200)) == {}


def test_weights_that_lie_elsewhere_are_asked_there(home: Path, tmp_path: Path) -> None:
    made = spec("i2vgen-xl", prompt="a" * 100)
    folder = built_folder(family_named("i2vgen-xl-tiny"), home)
    assert PromptLengths(tmp_path, {"i2vgen-xl": folder}).cut(made)["prompt_tokens_cut"] == 25
    assert PromptLengths(tmp_path).cut(made) == {}


def test_a_tokenizer_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    place = built_folder(family_named("i2vgen-xl-tiny"), tmp_path) / "tokenizer"
    place.mkdir(parents=True)
    (place / "tokenizer.json").write_text("{")
    assert PromptLengths(tmp_path).cut(spec("i2vgen-xl-tiny", prompt="a" * 100)) == {}
