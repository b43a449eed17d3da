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
    #: Nothing in it is bright.
    STILL_DARK = "still_dark"
    #: Nearly all of it is one colour.
    STILL_UNIFORM = "still_uniform"
    #: Values outside of black and white were cut.
    TONES_CLIPPED = "tones_clipped"
