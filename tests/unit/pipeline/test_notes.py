"""Notes: one type for what is assumed, cut or judged; told once, and counted over rows."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.clips.clip import ClipSpec
from pipeline.families import FAMILIES
from pipeline.models.tokens import cut_of
from pipeline.notes import Note, Severity, as_json, counted, distinct, notes_from, reading_notes
from pipeline.render import write_clip

_NOTE = st.builds(Note, code=st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True), message=st.text(max_size=20))


@given(st.lists(_NOTE, max_size=6))
def test_notes_come_back_from_json_each_once(notes: list[Note]) -> None:
    assert notes_from(json.loads(json.dumps(as_json(notes)))) == distinct(notes)
    assert len(set(distinct(notes))) == len(distinct(notes))


@pytest.mark.parametrize(
    "value", [None, "text", 3, [None], ["a sentence"], [{"code": "a"}], [{"code": "A B", "message": ""}]]
)
def test_what_another_version_wrote_otherwise_is_left_out(value: object) -> None:
    assert notes_from(value) == ()


@given(st.lists(st.lists(_NOTE, max_size=4), max_size=5))
def test_every_kind_is_told_once_with_all_its_rows(rows: list[list[Note]]) -> None:
    told = counted((f"r{i}", notes) for i, notes in enumerate(rows))
    kinds = {note.code for notes in rows for note in notes}
    assert len(told) == len(kinds)
    having = sorted((sum(any(n.code == code for n in notes) for notes in rows) for code in kinds), reverse=True)
    assert [int(line.split()[0]) for line in told] == having


def test_a_note_is_worth_a_look_unless_it_is_known_to_be_quiet() -> None:
    look = {code: Note(code=code, message="x").worth_a_look for code in ("black", "no_camera_move", "of_tomorrow")}
    assert set(look.values()) == {True}
    assert not any(Note(code=code, message="x").worth_a_look for code in ("frames_adjusted", "unused", "id_made"))


def spec(prompt: str) -> ClipSpec:
    family = FAMILIES["camera"]
    return ClipSpec(
        family="camera", revision=family.revision, prompt=prompt, resolution_class="256p", width=64, height=64,
        frames=4, fps=8, steps=1, guidance=1.0, seed=0,
    )  # fmt: skip


def test_a_clip_says_what_its_review_found_once_and_stillness_only_where_nobody_asked_for_it(tmp_path) -> None:  # type: ignore[no-untyped-def]
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    frames = np.stack([picture] * 4)
    before = Note(code="tones_clipped", message="of the still")
    for prompt, codes in (("pan left", ["tones_clipped", "no_motion"]), ("static camera", ["tones_clipped"])):
        folder = tmp_path / prompt
        folder.mkdir()
        files = write_clip(frames, spec(prompt), folder, {}, [before, before])
        assert [note.code for note in files.notes] == codes
        told = json.loads(files.provenance.read_text())
        assert [note["code"] for note in told["notes"]] == codes
        # The review itself is what it was.
        assert [note["code"] for note in told["review"]] == ["no_motion"]


@given(st.lists(st.text("ab", min_size=1, max_size=9), max_size=12), st.integers(1, 40))
def test_words_beyond_an_encoders_length_are_named(words: list[str], most: int) -> None:
    """Against a count of tokens that anybody can do: one a letter, one a space, two around."""

    def tokens(text: str) -> int:
        return len(text) + 2

    text = " ".join(words)
    cut = cut_of({"prompt": text}, tokens, most)
    if tokens(text) <= most:
        assert cut == {}
        return
    assert cut["prompt_tokens_cut"] == tokens(text) - most
    lost = cut["prompt_cut"].split()
    kept = words[: len(words) - len(lost)]
    assert [*kept, *lost] == words
    assert not kept or tokens(" ".join(kept)) <= most
    assert not lost or tokens(" ".join([*kept, lost[0]])) > most


def test_a_cut_prompt_is_a_note_with_the_words_that_were_lost() -> None:
    (note,) = reading_notes({"prompt_tokens_cut": 25, "prompt_cut": "and then fly away"})
    assert note.code == "prompt_cut"
    assert "25 tokens" in note.message
    assert "'and then fly away'" in note.message
    assert reading_notes({"prompt_used": False}) == []


def test_a_note_carries_the_cells_that_would_silence_it_and_is_as_before_where_it_has_none() -> None:
    plain = Note(code="few_steps", message="5 steps")
    assert as_json([plain]) == [{"code": "few_steps", "message": "5 steps"}]
    fixed = Note(code="few_steps", message="5 steps", field="steps", fix={"steps": 30, "seed": None})
    assert notes_from(json.loads(json.dumps(as_json([fixed, fixed])))) == (fixed,)
    assert distinct([plain, fixed]) == (plain, fixed)
    # Stored by another version, which has more than these.
    assert notes_from([{"code": "few_steps", "message": "5 steps", "fix": {"steps": 30}, "colour": 1}])[0].fix == {
        "steps": 30
    }


def test_what_needs_a_look_or_is_not_rendered_as_asked_is_a_warning() -> None:
    severities = {code: Note(code=code, message="x").severity for code in ("black", "frames_adjusted", "prompt_cut")}
    assert set(severities.values()) == {Severity.WARNING}
    assert Note(code="id_made", message="x").severity is Severity.INFO
