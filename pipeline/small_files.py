"""Files that people write by hand, read whole and within bounds."""

from __future__ import annotations

from pathlib import Path

from pipeline.problems import BadInputError


def read_small_file(path: Path, most_bytes: int, field: str, *, unreadable: str, too_large: str) -> bytes:
    """The content of a file of `most_bytes` at most; no more than that is read.

    Raises `BadInputError` for `field` where it cannot be read, with the remedy `unreadable`, or is larger, with the
    remedy `too_large`.
    """
    try:
        with path.open("rb") as file:
            data = file.read(most_bytes + 1)
    except OSError as error:
        raise BadInputError(field, f"{path} cannot be read: {error.strerror or error}", unreadable) from error
    if len(data) > most_bytes:
        raise BadInputError(field, f"{path} is larger than {most_bytes >> 20} MiB", too_large)
    return data
