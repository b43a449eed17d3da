"""Measured peaks in the store: one bounded row for each kind of clip and card."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cluster.lessons import Key, Lesson, Lessons, Peak, better, footprint_version, key_of, observe
from cluster.store.database import Database, insert_into
from cluster.store.given import Given
from cluster.store.schema import peaks
from pipeline.clip import ClipSpec

_KEY = tuple(peaks.primary_key)
_NAMES = tuple(column.name for column in _KEY)
_WANTED = Given(name="wanted", columns={column.name: column.type for column in _KEY})


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
        found = [_lesson(row) for row in c.execute(sa.select(peaks).order_by(*_KEY))]
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


@cache
def _finding(sqlite: bool) -> sa.Select[Any]:
    wanted = _WANTED.table(sqlite=sqlite)
    return sa.select(peaks).join(wanted, sa.and_(*(column == wanted.c[column.name] for column in _KEY)))


@cache
def _putting(sqlite: bool) -> Any:
    insert = insert_into(peaks, sqlite=sqlite)
    changing = {column.name: insert.excluded[column.name] for column in peaks.columns if column.name not in _NAMES}
    return insert.on_conflict_do_update(index_elements=list(_KEY), set_=changing)


def _find(database: Database, c: Connection, keys: Collection[Key]) -> dict[Key, Lesson]:
    sqlite = database.is_sqlite
    rows = [tuple(_values(key).values()) for key in keys]
    found = [_lesson(row) for row in c.execute(_finding(sqlite), _WANTED.bound(rows, sqlite=sqlite))]
    return {one.key: one for one in found}


def _put(database: Database, c: Connection, now: int, lessons: Collection[Lesson]) -> None:
    values = [
        {**_values(one.key), **one.model_dump(mode="json", exclude={"key"}), "updated_at": now} for one in lessons
    ]
    if values:
        c.execute(_putting(database.is_sqlite), values)


def _values(key: Key) -> dict[str, Any]:
    # In the order of the columns. A member of an enumeration is stored as the text that it is.
    found = {name: getattr(key, name) for name in _NAMES}
    return {name: str(value) if isinstance(value, str) else value for name, value in found.items()}


def _lesson(row: sa.Row[tuple[object, ...]]) -> Lesson:
    values = dict(row._mapping)
    key = Key(**{name: values.pop(name) for name in _NAMES})
    del values["updated_at"]
    return Lesson(key=key, **values)
