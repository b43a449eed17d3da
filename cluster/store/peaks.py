"""Measured peaks in the store: one bounded row for each kind of clip and card."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cluster.lessons import Key, Lesson, Lessons, Peak, better, footprint_version, key_of, observe
from cluster.store.database import Database
from cluster.store.schema import peaks
from pipeline.clip import ClipSpec

_KEY = tuple(peaks.primary_key)


def record(database: Database, connection: Connection, spec: ClipSpec, kind: str, seen: Sequence[Peak]) -> None:
    """Learn from the peaks of one attempt on a card of `kind`, within the caller's transaction."""
    for peak in seen:
        known = _find(connection, key_of(spec, peak.layout, kind)) if kind else None
        if (lesson := observe(spec, kind, peak, known)) is not None:
            _put(database, connection, lesson)


def load(database: Database) -> Lessons:
    """All that was learned under the predictions in use."""
    with database.read() as c:
        found = [_lesson(row) for row in c.execute(sa.select(peaks).order_by(*_KEY))]
    return Lessons(lessons=tuple(one for one in found if one.footprint == footprint_version(one.key.family)))


def merge(database: Database, lessons: Lessons) -> int:
    """Take over what another farm knows better; returns of how many keys that was true."""
    taken = 0
    with database.write() as c:
        for lesson in lessons.lessons:
            known = _find(c, lesson.key)
            useful = bool(lesson.footprint) and lesson.footprint == footprint_version(lesson.key.family)
            if useful and (known is None or better(lesson, known)):
                _put(database, c, lesson)
                taken += 1
    return taken


def _find(c: Connection, key: Key) -> Lesson | None:
    values = key.model_dump(mode="json")
    row = c.execute(sa.select(peaks).where(*(column == values[column.name] for column in _KEY))).one_or_none()
    return _lesson(row) if row is not None else None


def _put(database: Database, c: Connection, lesson: Lesson) -> None:
    values = {**lesson.model_dump(mode="json", exclude={"key"}), "updated_at": database.now(c)}
    insert = database.insert(peaks).values(**lesson.key.model_dump(mode="json"), **values)
    c.execute(insert.on_conflict_do_update(index_elements=list(_KEY), set_=values))


def _lesson(row: sa.Row[tuple[object, ...]]) -> Lesson:
    values = dict(row._mapping)
    key = Key(**{column.name: values.pop(column.name) for column in _KEY})
    del values["updated_at"]
    return Lesson(key=key, **values)
