"""Times as people write them."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

from pipeline.problems import BadInputError

_CLOCK = re.compile(r"([01]?[0-9]|2[0-3]):([0-5][0-9])")


def parse_time(field: str, text: str, now: datetime | None = None) -> int:
    """UTC epoch seconds of `2026-11-21T22:00`, `2026-11-21T22:00:00+01:00`, or `22:00` (the next time it is that).

    Without an offset it is meant in the zone of `now`, by default this machine's. Raises `BadInputError` on `field`.
    """
    now = now or datetime.now().astimezone()
    text = text.strip()
    if match := _CLOCK.fullmatch(text):
        found = now.replace(hour=int(match[1]), minute=int(match[2]), second=0, microsecond=0)
        # Of a calendar day, not 24 hours on: clocks change in between.
        return int((found if found > now else found + timedelta(days=1)).timestamp())
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        remedy = "Write it as 2026-11-21T22:00 (local time), 2026-11-21T22:00+01:00, or 22:00."
        raise BadInputError(field, f"{text[:60]!r} is no time", remedy) from None
    if found.tzinfo is None:
        found = found.replace(tzinfo=now.tzinfo)
    try:
        seconds = int(found.timestamp())
    except (OverflowError, ValueError):
        seconds = -1
    if not 0 <= seconds < 2**40:
        raise BadInputError(field, f"{text[:60]!r} is too far away", "Give a time within the next years.")
    return seconds
