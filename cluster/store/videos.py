"""Jobs as videos: each with its clip and its newest attempt, by one indexed read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from cluster.jobs.model import Clip, Job
from cluster.store.database import Database
from cluster.store.lookup import NoSuchJobError
from cluster.store.rows import CLIP_JUDGEMENTS, JOB_COLUMNS, as_shown, clip_from, job_from
from cluster.store.schema import attempts, batches, clips, jobs


@dataclass(frozen=True, kw_only=True)
class Video:
    """A job with what whoever asked for one clip wants to know of it."""

    job: Job
    #: Where the job's batch came from.
    source: str
    #: None until it has completed.
    clip: Clip | None = None
    #: When its newest attempt began and ended, and where; None where it made none, as where the clip was there before.
    started_at: int | None = None
    ended_at: int | None = None
    card: str | None = None
    measured_bytes: int = 0


def video(database: Database, owner: str, job_id: str) -> Video:
    """One job of the owner's as a video. Raises `NoSuchJobError`."""
    with database.read() as c:
        row = c.execute(_select().where(jobs.c.owner == owner, jobs.c.id == job_id)).one_or_none()
    if row is None:
        raise NoSuchJobError(f"there is no video {job_id!r}; `GET /v1/videos` lists those there are")
    return _video_from(row)


def videos(
    database: Database, owner: str, *, after: str | None = None, limit: int = 20, newest_first: bool = True
) -> list[Video]:
    """The owner's jobs by the time at which they were handed in, those behind the id `after`.

    Ids sort by time, so a page is a range of the primary key however many there are.
    """
    query = _select().where(jobs.c.owner == owner)
    if after is not None:
        query = query.where(jobs.c.id < after if newest_first else jobs.c.id > after)
    order = jobs.c.id.desc() if newest_first else jobs.c.id
    with database.read() as c:
        return [_video_from(row) for row in c.execute(query.order_by(order).limit(limit))]


#: Before the names of the clip's columns, some of which a job has too.
_PREFIX = "of_clip_"


def _select() -> sa.Select[Any]:
    newest = sa.and_(attempts.c.job_id == jobs.c.id, attempts.c.fence == jobs.c.fence)
    joined = jobs.outerjoin(attempts, newest).join(batches, batches.c.id == jobs.c.batch_id)
    joined = joined.outerjoin(clips, clips.c.id == jobs.c.clip_id)
    attempt = (attempts.c.started_at, attempts.c.ended_at, attempts.c.card, attempts.c.measured_bytes)
    batch = (batches.c.source, batches.c.held.label("batch_held"))
    clip = (column.label(_PREFIX + column.name) for column in clips.c)
    return sa.select(*JOB_COLUMNS, *attempt, *batch, *clip, *CLIP_JUDGEMENTS).select_from(joined)


class _ClipColumns:
    """The columns of a row that are its clip's, by their own names."""

    def __init__(self, row: Any) -> None:
        self._row = row

    def __getattr__(self, name: str) -> Any:
        return getattr(self._row, _PREFIX + name)


def _video_from(row: Any) -> Video:
    job = as_shown(job_from(row), row.batch_held)
    return Video(
        job=job,
        source=row.source,
        clip=clip_from(_ClipColumns(row)) if job.clip_id else None,
        started_at=row.started_at,
        ended_at=row.ended_at,
        card=row.card,
        measured_bytes=row.measured_bytes or 0,
    )
