"""Rows of a batch as tiles of its wall, in the words of the contact sheet."""

from __future__ import annotations

from typing import Any

from cluster.farm import Farm
from cluster.results.contact_sheet import looks_of, why_no_clip
from cluster.results.rows import JobResult, results_of
from pipeline.units import format_duration

#: Rows of one page of a wall.
PAGE_ROWS = 500
#: Characters of a prompt and of a message that a tile has; the clip's own page has the whole.
_MOST_CHARACTERS = 300


def tiles(farm: Farm, batch_id: str, *, after: int = -1, since: int | None = None, limit: int) -> dict[str, Any]:
    """A page of a batch's rows behind the place `after`, for scripts. Raises `NoSuchBatchError`.

    `since`: only rows that changed at or after this time, in UTC epoch seconds; `now` is the time to ask from the next
    time.
    """
    # The clock before the rows: what changes in between is sent again rather than missed.
    now = farm.batch_store.now()
    found = results_of(
        farm.batch_store, farm.owner, batch_id, updated_since=since, after=after, limit=limit + 1, everything=True
    )
    return {"now": now, "has_more": len(found) > limit, "rows": [tile(one) for one in found[:limit]]}


def tile(result: JobResult) -> dict[str, Any]:
    """One row for scripts; what says nothing is left out."""
    row = result.row
    playable = row.shows_clip
    looks = looks_of(row)
    facts = {
        "job": result.job_id,
        "place": result.number,
        "id": row.id,
        "number": row.number,
        "state": row.state,
        "prompt": row.prompt[:_MOST_CHARACTERS],
        "class": row.resolution_class,
        "plays": playable,
        "poster": playable and bool(row.poster_key),
        "aspect": round(row.width / row.height, 3) if row.width and row.height else 0,
        "length": format_duration(row.seconds) if row.seconds else "",
        "size": f"{row.width} × {row.height}" if row.width and row.height else "",
        "field": row.problem.field if row.problem else "",
        "message": (row.problem.message if row.problem else why_no_clip(row))[:_MOST_CHARACTERS],
        "remedy": row.problem.remedy[:_MOST_CHARACTERS] if row.problem else "",
        "look": [note.title for note in looks],
        "round": row.review.get("round", "") if row.review.get("rounds_left") or row.state != "completed" else "",
        "picked": row.review.get("picked") is True and "candidates_of" in row.review,
        "columns": " ".join(str(value) for value in row.extra.values() if value is not None)[:_MOST_CHARACTERS],
    }
    return {name: value for name, value in facts.items() if value not in ("", 0, False, [])}
