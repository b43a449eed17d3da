"""Whether a picture that somebody handed in can be used, found out within bounds of memory and time.

The bounds grow with what its header declares, and are checked in two steps: the header first, which takes next to
nothing, then all of it. Honest pictures of 100 megapixels pass on a machine that is busy, and what takes many times
more than its size explains is ended.
"""

from __future__ import annotations

from collections.abc import Callable

from pipeline.bounded import MEMORY_BYTES, MOST_MEMORY_BYTES, ExhaustedError, RaisedError, WorkBounds, run_bounded
from pipeline.clips.inspection.judge import judge_still
from pipeline.clips.stills import DeclaredSize, declared_size, decode_still, open_still, still_size
from pipeline.notes import Note, as_json, notes_from
from pipeline.problems import BadInputError, Problem

#: CPU time that a header may take, and any still beyond what its size explains, in seconds; SciPy is loaded within it.
_CPU_S = 6.0
#: CPU time for each megapixel and each megabyte of the file, in seconds: eight times what was measured of any
#: format, for CPU time grows, too, where a machine is busy: caches and cores are shared.
_CPU_S_PER_MEGAPIXEL, _CPU_S_PER_MEGABYTE = 0.4, 0.2
#: Memory for each pixel: a decoded picture takes 4 bytes, with the coefficients of a progressive JPEG 12 at most, an
#: AVIF 10, and a WebP, the most of all, 17.4.
_BYTES_PER_PIXEL = 24
#: Memory beside pixels, and how many times a file is there while it is received and decoded.
_BASE_BYTES, _FILE_TIMES = 300 * 2**20, 3


def still_bounds(declared: DeclaredSize, file_bytes: int) -> WorkBounds:
    """What opening a still of a file of `file_bytes` bytes may take; its header says `declared`."""
    pixels = declared.width * declared.height
    memory = _BASE_BYTES + _BYTES_PER_PIXEL * pixels + _FILE_TIMES * file_bytes
    return WorkBounds(
        cpu_s=_CPU_S + _CPU_S_PER_MEGAPIXEL * pixels / 1e6 + _CPU_S_PER_MEGABYTE * file_bytes / 1e6,
        memory_bytes=min(max(MEMORY_BYTES, memory), MOST_MEMORY_BYTES),
    )


def check_still(data: bytes) -> tuple[int, int]:
    """(width, height) in pixels of the still in `data`, upright, decoded as by `open_still` in another process.

    Everything that takes pictures from people calls this first: the gateway, commands that read a catalog, checks.

    Raises `BadInputError` for field `image` where the data is no still that can be used, or one that takes more memory
    or time to open than its size explains.
    """
    if not data:
        # Nothing to decode, and the same words.
        open_still(data)
    width, height = _within("declared_size_of", data, still_bounds(DeclaredSize(width=0, height=0), len(data)))
    width, height = _within("size_of", data, still_bounds(DeclaredSize(width=width, height=height), len(data)))
    return width, height


def still_notes(data: bytes, size: tuple[int, int]) -> tuple[Note, ...]:
    """What a renderer will note of the still in `data`, of `size` as `check_still` has it, decoded in another process.

    () where that takes more than its size explains, which a conversion of many deep colours may: it is told later then.
    """
    bounds = still_bounds(DeclaredSize(width=size[0], height=size[1]), len(data))
    name = "pipeline.clips.still_check:notes_of"
    try:
        found = run_bounded(name, data, cpu_s=bounds.cpu_s, memory_bytes=bounds.memory_bytes)
    except (ExhaustedError, RaisedError):
        return ()
    return notes_from(found)


def _within(function: str, data: bytes, bounds: WorkBounds) -> tuple[int, int]:
    try:
        answer = run_bounded(
            f"pipeline.clips.still_check:{function}", data, cpu_s=bounds.cpu_s, memory_bytes=bounds.memory_bytes
        )
    except ExhaustedError as error:
        raise BadInputError(
            "image",
            f"the picture ({len(data):,} bytes) takes {error} to open",
            "Export it again as a plain PNG or JPEG; 4096 px are plenty.",
        ) from None
    except RaisedError as error:
        raise BadInputError(
            "image", f"the picture cannot be opened ({error.kind})", "Export it again as PNG or JPEG."
        ) from error
    if problem := answer.get("problem"):
        found = Problem.model_validate(problem)
        raise BadInputError(found.field, found.message, found.remedy)
    width, height = answer["size"]
    return int(width), int(height)


def declared_size_of(data: bytes) -> dict[str, object]:
    """What `check_still` asks of the other process first: the size that the header says, or what is wrong."""

    def of_header(data: bytes) -> tuple[int, int]:
        declared = declared_size(data)
        return declared.width, declared.height

    return _or_problem(of_header, data)


def size_of(data: bytes) -> dict[str, object]:
    """What `check_still` asks of the other process then: the size, or what is wrong."""
    return _or_problem(still_size, data)


def notes_of(data: bytes) -> list[dict[str, object]]:
    """What `still_notes` asks of the other process: notes of the whole still, as JSON."""
    still = decode_still(data)
    return as_json([*still.notes, *judge_still(still.image)])


def _or_problem(size: Callable[[bytes], tuple[int, int]], data: bytes) -> dict[str, object]:
    try:
        return {"size": size(data)}
    except BadInputError as error:
        return {"problem": error.problem.model_dump()}
