"""Words in a picture are read where they were drawn."""

from __future__ import annotations

import pytest
from PIL import Image, ImageDraw, ImageFont

from pipeline.clips.inspection import words
from pipeline.clips.inspection.words import MANY_WORDS, Word, read_words, text_note, text_share
from pipeline.problems import BadInputError

LINES = ("SUMMER SALE", "free shipping", "size 42")


def lettered() -> tuple[Image.Image, dict[str, tuple[float, ...]]]:
    """A picture of some lines of letters, and the box of each line as shares of its sides."""
    image = Image.new("RGB", (800, 600), (240, 240, 236))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(56)
    boxes = {}
    for number, line in enumerate(LINES):
        place = (60 + 40 * number, 80 + 160 * number)
        draw.text(place, line, (20, 30, 60), font=font)
        left, top, right, bottom = draw.textbbox(place, line, font=font)
        boxes[line] = (left / 800, top / 600, right / 800, bottom / 600)
    return image, boxes


@pytest.mark.skipif(not words.can_read(), reason="RapidOCR is not installed")
def test_words_are_read_with_the_boxes_in_which_they_were_drawn() -> None:
    image, boxes = lettered()
    found = read_words(image)
    assert " ".join(word.text for word in found).split() == " ".join(LINES).split()
    for word in found:
        line = next(line for line in LINES if word.text in line.split())
        left, top, right, bottom = boxes[line]
        # Readers leave some room around letters.
        assert left - 0.03 <= word.box[0] < word.box[2] <= right + 0.03
        assert top - 0.04 <= word.box[1] < word.box[3] <= bottom + 0.04
    assert read_words(Image.new("RGB", (300, 200), "white")) == ()


def made(count: int, side: float) -> tuple[Word, ...]:
    return tuple(Word(text=f"w{n}", score=1.0, box=(0.0, 0.0, side, side)) for n in range(count))


@pytest.mark.parametrize(
    ("found", "is_much"),
    [((), False), (made(MANY_WORDS - 1, 0.05), False), (made(MANY_WORDS, 0.05), True), (made(1, 0.5), True)],
)
def test_many_words_or_large_ones_are_much_text(found: tuple[Word, ...], is_much: bool) -> None:
    note = text_note(found)
    assert (note is not None) == is_much
    if note is not None:
        assert (note.code, note.worth_a_look, note.reduces) == ("still_much_text", True, False)
        assert f"{len(found)} words" in note.message
        assert f"{text_share(found):.0%}" in note.message


def test_without_the_extra_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    words._reader.cache_clear()
    monkeypatch.setattr(words, "find_spec", lambda _name: None)
    with pytest.raises(BadInputError) as caught:
        read_words(Image.new("RGB", (30, 30)))
    assert "clipmill[text]" in caught.value.problem.remedy
