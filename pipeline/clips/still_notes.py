"""Codes of the notes on what opening a still decided on its own, and on stills that seldom give a good clip."""

from __future__ import annotations

from enum import StrEnum


class StillNoteCode(StrEnum):
    """Short stable names of notes on stills, for counting and filtering."""

    #: Transparent parts were laid over white.
    ALPHA_FLATTENED = "alpha_flattened"
    #: CMYK inks were converted to sRGB.
    CMYK_CONVERTED = "cmyk_converted"
    #: Colours of another RGB, grey or Lab space were converted to sRGB.
    COLOURS_CONVERTED = "colours_converted"
    #: The file lacks its end marker, and nothing else.
    END_MISSING = "end_missing"
    #: The first of several frames, or the one declared as primary, was taken.
    FIRST_FRAME = "first_frame"
    #: The first full one of several pages was taken.
    FIRST_PAGE = "first_page"
    #: The file does not say what its numbers mean; the message says what was assumed.
    PROFILE_ASSUMED = "profile_assumed"
    #: The colour description is damaged or of another kind of picture, and was left out.
    PROFILE_IGNORED = "profile_ignored"
    #: Even the sharpest edges are soft.
    STILL_BLURRED = "still_blurred"
    #: Bars of one colour at two sides or all around.
    STILL_BORDERED = "still_bordered"
    #: Something else than a smooth background is behind the product.
    STILL_BUSY_BACKGROUND = "still_busy_background"
    #: The frame cuts the product.
    STILL_CUT_OFF = "still_cut_off"
    #: Nothing in it is bright.
    STILL_DARK = "still_dark"
    #: Something of it was mended, as the row asks for.
    STILL_FIXED = "still_fixed"
    #: Levels that lie close together.
    STILL_LOW_CONTRAST = "still_low_contrast"
    #: Many words, or large ones.
    STILL_MUCH_TEXT = "still_much_text"
    #: Grain that will flicker.
    STILL_NOISY = "still_noisy"
    #: Parts of the product are cut at white.
    STILL_OVEREXPOSED = "still_overexposed"
    #: Several things that do not hang together.
    STILL_SEVERAL_PRODUCTS = "still_several_products"
    #: Nearly all of it is one colour.
    STILL_UNIFORM = "still_uniform"
    #: Letters of one contrast on the background.
    STILL_WATERMARKED = "still_watermarked"
    #: Values outside of black and white were cut.
    TONES_CLIPPED = "tones_clipped"
