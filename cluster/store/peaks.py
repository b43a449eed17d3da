"""Measured peaks in the store: one bounded row for each kind of clip and card."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cluster.lessons import Key, Lesson, Lessons, Peak, better, footprint_version, key_of, observe
from cluster.store.database import Database
from cluster.store.given import Keyed
from cluster.store.schema import peaks
from pipeline.clip import ClipSpec

_TABLE = Keyed(peaks)


def record(database: Database, connection: Connection, spec: ClipSpec, kind: str, seen: Sequence[Peak]) -> None:
    """Learn from the peaks of one attempt on a card of `kind`, within the caller's transaction."""
    record_all(database, connection, database.now(connection), [(spec, kind, seen)])


def record_all(
    database: Database, connection: Connection, now: int, seen: Sequence[tuple[ClipSpec, str, Sequence[Peak]]]
) -> None:
    """The same for several attempts, in their order; each lesson is read and written once."""
    told = [(spec, kind, peak) for spec, kind, peaks_seen in seen for peak in peaks_seen if kind]
    if not told:
        return
    keys = [key_of(spec, peak.layout, kind) for spec, kind, peak in told]
    learned = _find(database, connection, set(keys))
    changed: dict[Key, Lesson] = {}
    for (spec, kind, peak), key in zip(told, keys, strict=True):
        if (lesson := observe(spec, kind, peak, learned.get(key))) is not None:
            learned[key] = changed[key] = lesson
    _put(database, connection, now, changed.values())


def load(database: Database) -> Lessons:
    """All that was learned under the predictions in use."""
    with database.read() as c:
        found = [_lesson(row) for row in c.execute(sa.select(peaks).order_by(*peaks.primary_key))]
    return Lessons(lessons=tuple(one for one in found if one.footprint == footprint_version(one.key.family)))


def merge(database: Database, lessons: Lessons) -> int:
    """Take over what another farm knows better; returns of how many keys that was true."""
    useful = [one for one in lessons.lessons if one.footprint and one.footprint == footprint_version(one.key.family)]
    if not useful:
        return 0
    with database.write() as c:
        known = _find(database, c, {one.key for one in useful})
        taken: dict[Key, Lesson] = {}
        for lesson in useful:
            before = taken.get(lesson.key) or known.get(lesson.key)
            if before is None or better(lesson, before):
                taken[lesson.key] = lesson
        _put(database, c, database.now(c), taken.values())
    return len(taken)


def _find(database: Database, c: Connection, keys: Collection[Key]) -> dict[Key, Lesson]:
    found = map(_lesson, _TABLE.find(c, keys, sqlite=database.is_sqlite))
    return {one.key: one for one in found}


def _put(database: Database, c: Connection, now: int, lessons: Collection[Lesson]) -> None:
    values = [
        {**_TABLE.values(one.key), **one.model_dump(mode="json", exclude={"key"}), "updated_at": now} for one in lessons
    ]
    _TABLE.put(c, values, sqlite=database.is_sqlite)


def _lesson(row: sa.Row[tuple[object, ...]]) -> Lesson:
    values = dict(row._mapping)
    key = Key(**{name: values.pop(name) for name in _TABLE.names})
    del values["updated_at"]
    return Lesson(key=key, **values)
