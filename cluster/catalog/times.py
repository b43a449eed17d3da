"""Times as people write them."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, tzinfo
from typing import Annotated

from pydantic import BeforeValidator, Field

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


#: Units of durations as people write them, in seconds.
_UNITS = {"alone": 1, "h": 3600, "m": 60, "s": 1}
_AMOUNT = r"[0-9]+(?:[.,][0-9]+)?|[.,][0-9]+"
_DURATION = re.compile(
    rf"(?P<alone>{_AMOUNT})|(?:(?P<h>{_AMOUNT}) ?(?:h|hrs?|hours?))? ?"
    rf"(?:(?P<m>{_AMOUNT}) ?(?:m|mins?|minutes?))? ?(?:(?P<s>{_AMOUNT}) ?(?:s|secs?|seconds?))?"
)
#: Longest duration that is read, in seconds: a day.
MAX_DURATION_S = 86_400.0


def read_duration(field: str, text: str) -> float:
    """Seconds of `60`, `90 s`, `2 min`, `1 h 30 min` or `1.5h`; a number alone is seconds.

    Raises `BadInputError` on `field` for anything else, 0, and more than a day.
    """
    match = _DURATION.fullmatch(" ".join(text.lower().split()))
    parts = match.groupdict() if match is not None else {}
    seconds = sum(float(value.replace(",", ".")) * _UNITS[unit] for unit, value in parts.items() if value)
    if not 0 < seconds <= MAX_DURATION_S:
        what = "is no duration" if match is None or not any(parts.values()) else "is not above 0 and at most a day"
        raise BadInputError(field, f"{text[:60]!r} {what}", "Write seconds, or as 90 s, 2 min or 1 h 30 min.")
    return seconds


def _as_seconds(value: object) -> object:
    return read_duration("within", value) if isinstance(value, str) else value


#: Seconds above 0, at most a day; of a text as `read_duration` reads it.
Duration = Annotated[float, BeforeValidator(_as_seconds), Field(gt=0, le=MAX_DURATION_S, allow_inf_nan=False)]


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
