"""Times as people write them."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, tzinfo

from pipeline.notes import Note
from pipeline.problems import BadInputError

_CLOCK = re.compile(r"([01]?[0-9]|2[0-3]):([0-5][0-9])(?::([0-5][0-9]))?")
_REMEDY = "Write it as 2026-11-21T22:00 (local time), 2026-11-21T22:00+01:00, or 22:00."


def parse_time(field: str, text: str, now: datetime | None = None) -> int:
    """UTC epoch seconds of a time as `read_time` reads it. Raises `BadInputError` on `field`."""
    return read_time(field, text, now)[0]


def read_time(field: str, text: str, now: datetime | None = None) -> tuple[int, Note | None]:
    """UTC epoch seconds of `2026-11-21T22:00`, `2026-11-21T22:00:00+01:00`, or `22:00` (the next time it is that).

    Without an offset it is meant in the zone of `now`, by default this machine's, with the offset of its own date. An
    hour that clocks leave out or strike twice is taken for the later moment, with a note: nothing starts too early.
    Raises `BadInputError` on `field`.
    """
    zone = now.tzinfo if now is not None else None
    # In this machine's zone without a `tzinfo`: only so is each date given the offset it has.
    here = now if now is not None else datetime.now()
    text = text.strip()
    if match := _CLOCK.fullmatch(text):
        hour, minute, second = int(match[1]), int(match[2]), int(match[3] or 0)
        found = here.replace(hour=hour, minute=minute, second=second, microsecond=0, fold=0)
        # Of a calendar day, not 24 hours on: clocks change in between.
        later = found if found.replace(fold=1).timestamp() > here.timestamp() else found + timedelta(days=1)
        return _moment(field, text, later, zone)
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise BadInputError(field, f"{text[:60]!r} is no time", _REMEDY) from None
    return _moment(field, text, found, zone if found.tzinfo is None else found.tzinfo)


def _moment(field: str, text: str, when: datetime, zone: tzinfo | None) -> tuple[int, Note | None]:
    note = None
    try:
        # PEP 495: the two differ only in an hour that is struck twice, or not at all.
        first, second = (int(when.replace(tzinfo=zone, fold=fold).timestamp()) for fold in (0, 1))
    except (OverflowError, ValueError, OSError):
        first = second = -1
    seconds = max(first, second)
    if not 0 <= seconds < 2**40:
        raise BadInputError(field, f"{text[:60]!r} is too far away", "Give a time within the next years.")
    if first != second:
        what = "is struck twice" if first < second else "is left out"
        taken = datetime.fromtimestamp(seconds, zone).astimezone(zone)
        message = (
            f"{field} {text}: clocks change then and that hour {what}; taken as {taken.isoformat(timespec='minutes')}. "
            "Write an offset, such as +01:00, to be sure"
        )
        note = Note(code="time_read", message=message)
    return seconds, note
