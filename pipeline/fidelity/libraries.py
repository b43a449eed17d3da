"""OpenCV and scikit-image, which measure clips, where they are installed (extra `fidelity`)."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

from pipeline.problems import BadInputError

#: What to type where they are missing.
REMEDY = "pip install 'clipmill[fidelity]'"


@cache
def why_not() -> str:
    """Why clips cannot be measured here, in words; empty where they can."""
    for name, title in (("cv2", "OpenCV"), ("skimage", "scikit-image")):
        try:
            import_module(name)
        except ImportError as error:
            # OpenCV's other wheel wants libraries of a desktop, and says so only when it is imported.
            absent = isinstance(error, ModuleNotFoundError) and error.name == name
            return f"{title} {'is not installed' if absent else f'cannot be loaded: {error}'}"
    return ""


@cache
def opencv() -> Any:
    """OpenCV on one thread: the machine's other cores encode and render. Raises `BadInputError` without it."""
    _refuse_without()
    cv2 = import_module("cv2")
    cv2.setNumThreads(1)
    return cv2


@cache
def colours() -> Any:
    """scikit-image's colour spaces and differences. Raises `BadInputError` without it."""
    _refuse_without()
    return import_module("skimage.color")


def _refuse_without() -> None:
    if why := why_not():
        raise BadInputError("fidelity", f"clips cannot be measured here: {why}", REMEDY)
