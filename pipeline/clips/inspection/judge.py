"""What of a still gives a bad clip, as notes that say what to do about it."""

from __future__ import annotations

from collections.abc import Iterator

from PIL import Image

from pipeline.clips.clip import Autofix
from pipeline.clips.inspection import framing, tones
from pipeline.clips.inspection.overlay import letters_laid_over
from pipeline.clips.inspection.view import JUDGED_SIDE, StillView
from pipeline.clips.still_notes import StillNoteCode
from pipeline.notes import Note

#: Raised whenever the same picture may get other notes: those of another version are made anew.
JUDGE_VERSION = 2

#: A still of one colour: all but this percentage of it lies within so many levels (of 255) of the most common one.
PLAIN_PERCENT, PLAIN_LEVELS = 0.1, 10
#: A dark still: but for half a percent of it, nothing is brighter than this level.
DARK_LEVEL = 120
#: Nothing is to be brought out of one whose brightest parts are darker than this.
BLACK_LEVEL = 8
#: A pale still: but for half a percent at either end, its levels lie closer together than this.
LOW_CONTRAST_LEVELS = 110
#: A burnt out still: this share of its product is cut at white, and so much of all; else so much of the product alone:
#: lamps and glass shine in pictures that are exposed well.
BURNT_SHARE, WHITE_SHARE, SHINING_SHARE = 0.03, 0.2, 0.12
#: A blurred still: its sharpest edges, a quarter of a percent of it, are as soft as a Gaussian of so many pixels makes
#: them. Of pictures smaller than these it cannot be told, and how far they are enlarged is noted anyway.
BLUR_SIGMA, LEAST_SHARP_SIDE = 0.75, 256
#: A noisy still: grain of so many levels.
NOISE_LEVELS = 4.0
#: A product that the frame cuts: it goes on beyond this share of a side.
CUT_SHARE = 0.036
#: A busy background: more than this share of three sides at least is no smooth background.
UNRULY_SHARE = 0.38
#: Letters over it: so many marks of one contrast on the background.
LETTERS = 8
#: Frame and product of smaller pictures are not judged: how far they are enlarged is noted anyway.
LEAST_FRAMED_SIDE = 192


def judge_still(still: Image.Image) -> list[Note]:
    """What of `still` (RGB, upright) gives a bad clip: a note for each thing that was found; empty where nothing was.

    Judged at 512 pixels a side, or at its own size where that is smaller, and within its bars where it has some. In a
    dark picture and in one of a single colour nothing else is looked for, nor is the product where grain, a blur or low
    contrast hide its outline, or before a busy background. All are rules of thumb; docs/stills.md says what they find
    and what they miss.
    """
    view = StillView(still)
    found: list[Note] = []
    framed = min(view.image.size) >= LEAST_FRAMED_SIDE
    if framed and (bars := framing.bars(view.image)):
        found.append(_bordered(bars, view))
        width, height = view.image.size
        view = StillView(view.image.crop((bars.left, bars.top, width - bars.right, height - bars.bottom)))
    if unusable := _dark_or_uniform(view):
        return [*found, unusable]
    found += _tones(view)
    unclear = {StillNoteCode.STILL_NOISY, StillNoteCode.STILL_BLURRED, StillNoteCode.STILL_LOW_CONTRAST}
    clear = not any(note.code in unclear for note in found)
    if framed and clear:
        # Of pictures beside each other, which may be a low strip, each has a frame of its own.
        if framing.is_collage(view.pixels):
            text = "the still is put together of several pictures: models mix up what they show. Cut it to one"
            found.append(_note(StillNoteCode.STILL_SEVERAL_PRODUCTS, text))
        elif min(view.image.size) >= LEAST_FRAMED_SIDE:
            found += _framing(view)
    return found


def _bordered(bars: framing.Bars, view: StillView) -> Note:
    width, height = view.image.size
    sides = [
        f"{depth / side:.0%} at the {name}"
        for name, depth, side in (
            ("left", bars.left, width),
            ("top", bars.top, height),
            ("right", bars.right, width),
            ("bottom", bars.bottom, height),
        )
        if depth
    ]
    text = f"the still has bars of one colour ({', '.join(sides)}), which the clip shows. Cut them off"
    return _note(StillNoteCode.STILL_BORDERED, text, Autofix.CROP)


def _dark_or_uniform(view: StillView) -> Note | None:
    brightest = tones.brightest_level(view)
    if brightest < DARK_LEVEL:
        text = f"the still is dark: its brightest parts have {brightest:.0f} of 255. Brighten it"
        # Of a picture that is black nothing is brought out.
        return _note(StillNoteCode.STILL_DARK, text, Autofix.EXPOSURE if brightest >= BLACK_LEVEL else None)
    if tones.unlike_share(view, PLAIN_LEVELS) * 100 < PLAIN_PERCENT:
        text = (
            "the still is nearly one colour, and nothing else is to be seen in it: check that it is the right picture"
        )
        return _note(StillNoteCode.STILL_UNIFORM, text)
    return None


def _tones(view: StillView) -> Iterator[Note]:
    levels = tones.level_range(view)
    if levels.contrast < LOW_CONTRAST_LEVELS:
        text = f"the still is pale: its levels lie within {levels.contrast:.0f} of 255. Stretch them"
        yield _note(StillNoteCode.STILL_LOW_CONTRAST, text, Autofix.CONTRAST)
    noise = tones.noise_sigma(view.grey)
    if noise >= NOISE_LEVELS:
        text = f"the still is noisy: its grain has {noise:.0f} of 255 levels, and it will flicker. Smooth it"
        yield _note(StillNoteCode.STILL_NOISY, text, Autofix.DENOISE)
    softness = tones.edge_softness(view.grey)
    if max(view.image.size) >= LEAST_SHARP_SIDE and softness > BLUR_SIGMA:
        text = f"the still is blurred: even its sharpest edges are soft at {JUDGED_SIDE} pixels. Give a sharper one"
        yield _note(StillNoteCode.STILL_BLURRED, text, Autofix.SHARPEN if softness <= tones.MENDABLE_SIGMA else None)


def _framing(view: StillView) -> Iterator[Note]:
    unruly = framing.unruly_share(view.area)
    if unruly > UNRULY_SHARE:
        text = "the background is busy: motion there draws the eye from the product. Take a picture before a plain one"
        yield _note(StillNoteCode.STILL_BUSY_BACKGROUND, text)
        return
    burnt = tones.burnt_share(view)
    if burnt >= (BURNT_SHARE if tones.cut_white_share(view) >= WHITE_SHARE else SHINING_SHARE):
        text = f"the still is burnt out: {burnt:.0%} of the product are plain white, and nothing brings them back"
        yield _note(StillNoteCode.STILL_OVEREXPOSED, f"{text}. Take it with less light")
    cut = framing.cut_share(view.area)
    if cut >= CUT_SHARE:
        text = f"the frame cuts the product along {min(1.0, cut):.0%} of a side: what is missing will be invented"
        yield _note(StillNoteCode.STILL_CUT_OFF, f"{text}. Take a picture that shows all of it")
    if (count := framing.products(view.area)) > 1:
        text = f"the still shows {count} things apart from each other: if they are several products, models mix them up"
        yield _note(StillNoteCode.STILL_SEVERAL_PRODUCTS, f"{text}. Cut it to one")
    if letters_laid_over(view.area) >= LETTERS:
        text = "letters or a mark seem to be laid over the still, and they will swim: take the picture without"
        yield _note(StillNoteCode.STILL_WATERMARKED, text)


def _note(code: StillNoteCode, message: str, fix: Autofix | None = None) -> Note:
    if fix is None:
        return Note(code=code, message=message, field="image")
    return Note(code=code, message=f"{message}, or set autofix to {fix}", field="image", fix={"autofix": str(fix)})
