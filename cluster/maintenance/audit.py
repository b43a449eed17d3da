# ruff: noqa: S608 (all statements are made of constants of this module)
"""Numbered invariants of a store: what is broken, what that means, and what can be put right."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cluster.chunks import chunks
from cluster.jobs.model import FINAL_STATES, JobState, Outcome
from cluster.jobs.transitions import Happening
from cluster.storage import MissingObjectError, Storage
from cluster.store.batches import BatchStore
from cluster.store.counters import Counts
from cluster.store.database import Database
from cluster.store.dependencies import follow
from cluster.store.rows import CLASS_OF_ATTEMPT, COMMON_ROWS, clip_from, job_from, select_jobs
from cluster.store.schema import attempts, clips, jobs, metadata, tallies
from cluster.store.transitions import moves, values_of
from cluster.store.unsealed import given_up

#: Ids in one statement: SQLite takes 32,766 parameters, PostgreSQL 65,535.
_MANY = 1000
#: The invariant without which nothing else can be looked at.
DAMAGED = 1
#: Findings of one invariant that are listed.
MOST_LISTED = 20


@dataclass(frozen=True)
class AuditFinding:
    """One place where an invariant does not hold."""

    #: Id of the job, attempt, clip or batch, or name of the counter or index.
    subject: str
    detail: str
    #: What the repair of the invariant needs to know of this place.
    facts: Any = field(default=None, compare=False)


Find = Callable[[Database, Connection], Sequence[AuditFinding]]
Repair = Callable[[Database, Connection, int, Sequence[AuditFinding]], None]


@dataclass(frozen=True, kw_only=True)
class Invariant:
    """Something that must hold whenever no transaction is under way."""

    number: int
    says: str
    #: What a repair does, or what a person has to do where there is none.
    remedy: str
    find: Find
    repair: Repair | None = None


@dataclass(frozen=True, kw_only=True)
class Broken:
    """An invariant that does not hold, with the places where."""

    number: int
    says: str
    #: What a repair does, or what a person has to do where there is none.
    remedy: str
    findings: tuple[AuditFinding, ...]
    repairable: bool
    repaired: bool = False


def check(database: Database, storage: Storage | None = None, *, repair: bool = False) -> list[Broken]:
    """All invariants that do not hold, of tables and (with a `storage`) of the objects they name.

    Reads one moment of the store, so a farm may run meanwhile. With `repair`, what can be is put right, each invariant
    in a transaction of its own that looks again before it writes.
    """
    broken = _repair(database) if repair else _read(database)
    if any(one.number == DAMAGED for one in broken):
        return broken
    if storage is not None:
        broken += _check_objects(database, storage, repair=repair)
    return sorted(broken, key=lambda one: one.number)


def _read(database: Database) -> list[Broken]:
    broken = []
    with database.read() as c:
        for invariant in INVARIANTS:
            if findings := invariant.find(database, c):
                broken.append(_broken(invariant, findings))
                if invariant.number == DAMAGED:
                    # What cannot be read contradicts everything else.
                    break
    return broken


def _repair(database: Database) -> list[Broken]:
    broken = []
    for invariant in INVARIANTS:
        with database.write() as c:
            findings = invariant.find(database, c)
            repaired = False
            if findings and invariant.repair is not None:
                try:
                    with c.begin_nested():
                        invariant.repair(database, c, database.now(c), findings)
                    repaired = True
                except sa.exc.IntegrityError:
                    # Other rows contradict it, which break an invariant of their own.
                    repaired = False
        if findings:
            broken.append(_broken(invariant, findings, repaired=repaired))
            if invariant.number == DAMAGED:
                break
    return broken


def _broken(invariant: Invariant, findings: Sequence[AuditFinding], *, repaired: bool = False) -> Broken:
    return Broken(
        number=invariant.number,
        says=invariant.says,
        remedy=invariant.remedy,
        findings=tuple(findings),
        repairable=invariant.repair is not None,
        repaired=repaired,
    )


def _by_sql(query: str, detail: str) -> Find:
    """Findings of a query: its first column is the subject; `detail` is formatted with all of them."""

    def find(_database: Database, c: Connection) -> list[AuditFinding]:
        return [
            AuditFinding(str(row[0]), detail.format(**row._mapping), dict(row._mapping))
            for row in c.execute(sa.text(query))
        ]

    return find


# -- what is not plain SQL ---------------------------------------------------------------------------------------


def _indexes(database: Database, c: Connection) -> list[AuditFinding]:
    inspector = sa.inspect(c)
    found = []
    for table in metadata.sorted_tables:
        there = {index["name"] for index in inspector.get_indexes(table.name)}
        found += [
            AuditFinding(str(index.name), f"it is not on table {table.name}", index)
            for index in sorted(table.indexes, key=lambda index: str(index.name))
            if index.name not in there
        ]
    return found


def _make_indexes(_database: Database, c: Connection, _now: int, findings: Sequence[AuditFinding]) -> None:
    for finding in findings:
        finding.facts.create(c)


def _unreadable(_database: Database, c: Connection) -> list[AuditFinding]:
    live = jobs.c.state.not_in([state.value for state in FINAL_STATES])
    found = []
    for row in c.execution_options(yield_per=_MANY).execute(select_jobs().where(live).order_by(jobs.c.id)):
        try:
            job_from(row)
        except (ValueError, TypeError) as error:
            found.append(AuditFinding(row.id, f"it cannot be read: {str(error).splitlines()[0]}"))
    c.execution_options(yield_per=None)
    return found


def _tallies(_database: Database, c: Connection) -> list[AuditFinding]:
    counted = {
        (row.name, row.model, row.resolution_class, row.card_class, row.outcome): row.value
        for row in c.execute(sa.select(tallies))
    }
    found = []
    for key, least, exactly in _recounted(c, counted):
        value = counted.get(key, 0.0)
        if value < least or (exactly and value != least):
            name = " ".join(part for part in key if part)
            found.append(AuditFinding(name, f"it says {value:g}, the tables say {least:g}", (key, least - value)))
    return found


def _recounted(
    c: Connection, counted: dict[tuple[str, str, str, str, str], float]
) -> Iterator[tuple[tuple[str, str, str, str, str], float, bool]]:
    """(counter, what the tables say, whether it must be exactly that) where a recount is possible."""
    kinds = (jobs.c.family, CLASS_OF_ATTEMPT, attempts.c.card_class, attempts.c.outcome)
    ended = {
        ("attempts", *kind): float(number)
        for *kind, number in c.execute(
            sa.select(*kinds, sa.func.count())
            .join(attempts, attempts.c.job_id == jobs.c.id)
            .where(attempts.c.outcome.is_not(None))
            .group_by(*kinds)
        )
    }
    for key in ended.keys() | {key for key in counted if key[0] == "attempts"}:
        # Those that went with their batch were counted again as they went.
        yield key, ended.get(key, 0.0) + counted.get(("attempts_deleted", *key[1:]), 0.0), True
    # A job that failed and is retried was counted, and will be again: the rows can only be fewer.
    rows = c.execute(
        sa.select(
            jobs.c.family,
            jobs.c.resolution_class,
            jobs.c.state,
            (jobs.c.reason == "invalid").label("invalid"),
            sa.func.count().label("number"),
        )
        .where(jobs.c.state.in_([state.value for state in FINAL_STATES]))
        .group_by(jobs.c.family, jobs.c.resolution_class, jobs.c.state, sa.text("4"))
    ).all()
    for row in rows:
        outcome = "invalid" if row.state == JobState.FAILED and row.invalid else str(row.state)
        key = ("clips", row.family, row.resolution_class, "", outcome)
        also = 0.0
        if outcome == "completed":
            # Rows that share a clip were counted apart.
            also = counted.get(("clips", row.family, row.resolution_class, "", "shared"), 0.0)
        elif outcome == "invalid":
            # A clip that its renderer found invalid was counted as failed.
            also = counted.get(("clips", row.family, row.resolution_class, "", "failed"), 0.0)
        yield key, max(0.0, float(row.number) - also), False


def _raise_tallies(database: Database, c: Connection, _now: int, findings: Sequence[AuditFinding]) -> None:
    counts = Counts()
    for finding in findings:
        (name, model, resolution_class, card_class, outcome), missing = finding.facts
        # A counter never falls: monitoring would take it for a restart.
        if missing > 0:
            labels = {"model": model, "resolution_class": resolution_class, "card_class": card_class}
            counts.add(name, outcome=outcome, by=missing, **labels)
    counts.write(database, c)


def _damaged_file(database: Database, c: Connection) -> list[AuditFinding]:
    if not database.is_sqlite:
        return []
    lines = c.execute(sa.text("PRAGMA quick_check")).scalars().all()
    return [AuditFinding(str(database.engine.url.database), str(line)) for line in lines if line != "ok"]


# -- repairs -----------------------------------------------------------------------------------------------------


def _end_attempts(database: Database, c: Connection, now: int, findings: Sequence[AuditFinding]) -> None:
    counts = Counts()
    for finding in findings:
        row = c.execute(
            sa.update(attempts)
            .where(attempts.c.id == finding.facts["id"], attempts.c.outcome.is_(None))
            .values(outcome=Outcome.LOST.value, ended_at=now, detail="ended by `clipmill store check --repair`")
            .returning(attempts.c.job_id, attempts.c.card_class)
        ).one_or_none()
        if row is not None:
            job = c.execute(
                sa.select(jobs.c.family, jobs.c.resolution_class).where(jobs.c.id == row.job_id)
            ).one_or_none()
            counts.add(
                "attempts",
                model=job.family if job else "",
                resolution_class=job.resolution_class if job else "",
                card_class=row.card_class,
                outcome=Outcome.LOST,
            )
    counts.write(database, c)


def _by_table(event: Happening) -> Repair:
    """The repair that lets `event` happen to the jobs that were found, as the table of transitions has it."""

    def repair(database: Database, c: Connection, now: int, findings: Sequence[AuditFinding]) -> None:
        counts = Counts()
        for some in chunks((finding.subject for finding in findings), _MANY):
            moved = c.execute(
                sa.update(jobs)
                .where(jobs.c.id.in_(some), moves(event))
                .values(values_of(event, now))
                .returning(jobs.c.family, jobs.c.resolution_class, jobs.c.state)
            )
            for row in moved:
                if outcome := _COUNTED_AS.get(row.state):
                    counts.add("clips", model=row.family, resolution_class=row.resolution_class, outcome=outcome)
            follow(database, c, now, some)
        counts.write(database, c)

    return repair


#: Condition on a job: it has a clip, finished or a draft that is looked at.
_SHOWS = "state = 'completed' OR state = 'held' AND reason = 'review'"
#: What the tally of clips calls a job that a repair ended.
_COUNTED_AS = {JobState.COMPLETED.value: "shared", JobState.CANCELLED.value: "cancelled"}


def _forget_clip(_database: Database, c: Connection, _now: int, findings: Sequence[AuditFinding]) -> None:
    for some in chunks((finding.subject for finding in findings), _MANY):
        c.execute(sa.update(jobs).where(jobs.c.id.in_(some)).values(clip_id=None))


def _raise_fences(_database: Database, c: Connection, _now: int, findings: Sequence[AuditFinding]) -> None:
    for finding in findings:
        c.execute(sa.update(jobs).where(jobs.c.id == finding.subject).values(fence=finding.facts["highest"]))


def _set_lanes(_database: Database, c: Connection, _now: int, _findings: Sequence[AuditFinding]) -> None:
    c.execute(sa.text(f"UPDATE jobs SET lane = {_LANE} WHERE lane <> {_LANE}"))


_LANE = (
    f"CASE WHEN number > {COMMON_ROWS} OR EXISTS (SELECT 1 FROM batches AS b WHERE b.id = jobs.batch_id"
    " AND b.attended_until IS NOT NULL) THEN batch_id ELSE '' END"
)


def _unsealed(database: Database, c: Connection) -> list[AuditFinding]:
    return [
        AuditFinding(batch.id, f"{batch.rows} rows came, by the key {batch.key!r}, and nothing since")
        if batch.key
        else AuditFinding(batch.id, f"{batch.rows} rows came, and nothing since")
        for batch in given_up(database, c)
    ]


def _unpublished(database: Database, c: Connection) -> list[AuditFinding]:
    query = (
        sa.select(clips.c.id, clips.c.attempt_id, clips.c.objects, attempts.c.id.label("known"))
        .outerjoin(attempts, attempts.c.id == clips.c.attempt_id)
        .where(sa.or_(attempts.c.id.is_(None), attempts.c.outcome.is_(None), attempts.c.outcome != "completed"))
        .order_by(clips.c.id)
    )
    found = c.execute(query).all()
    # An attempt goes with its job when a batch is deleted; the clip's row stays, and its objects still name both.
    deleted: dict[str, str] = {}
    for row in found:
        key = row.objects["video"].split("/")
        if row.known is None and key[2] == row.attempt_id:
            deleted[row.id] = key[1]
    there: set[str] = set()
    for some in chunks(sorted(set(deleted.values())), _MANY):
        there.update(c.scalars(sa.select(jobs.c.id).where(jobs.c.id.in_(some))))
    broken = [row for row in found if row.id not in deleted or deleted[row.id] in there]
    return [AuditFinding(row.id, f"{row.attempt_id} did not") for row in broken]


INVARIANTS: tuple[Invariant, ...] = (
    Invariant(
        number=DAMAGED,
        says="the database file is whole",
        remedy="Stop the farm, copy the file away, and restore a backup; `sqlite3 FILE .recover` reads what is left.",
        find=_damaged_file,
    ),
    Invariant(
        number=2,
        says="every index is there (two of them keep clips from being rendered twice)",
        remedy="It is made anew; where two rows contradict it, the invariant that they break says which.",
        find=_indexes,
        repair=_make_indexes,
    ),
    Invariant(
        number=3,
        says="every row belongs to what it names",
        remedy="Rows were deleted by hand: restore a backup.",
        find=_by_sql(
            "SELECT j.id, 'batch ' || j.batch_id AS named FROM jobs AS j LEFT JOIN batches AS b ON b.id = j.batch_id"
            " WHERE b.id IS NULL UNION ALL "
            "SELECT a.id, 'job ' || a.job_id FROM attempts AS a LEFT JOIN jobs AS j ON j.id = a.job_id"
            " WHERE j.id IS NULL",
            "its {named} is not there",
        ),
    ),
    Invariant(
        number=4,
        says="a job has one live attempt at most, and no two attempts of one fence",
        remedy="All live attempts but the newest are ended as lost; their renderers stop at their next beat.",
        find=_by_sql(
            "SELECT a.job_id AS job, a.id AS id, a.fence AS fence FROM attempts AS a JOIN attempts AS o"
            " ON o.job_id = a.job_id AND o.id <> a.id AND ((a.outcome IS NULL AND o.outcome IS NULL AND (o.fence >"
            " a.fence OR (o.fence = a.fence AND o.id > a.id))) OR (o.fence = a.fence AND a.id < o.id)) ORDER BY a.id",
            "attempt {id} under fence {fence} has a rival",
        ),
        repair=_end_attempts,
    ),
    Invariant(
        number=5,
        says="the job of a live attempt runs under its fence",
        remedy="The attempt is ended as lost; its renderer stops at its next beat.",
        find=_by_sql(
            "SELECT a.id AS id, a.job_id AS job, a.fence AS fence, j.state AS state, j.fence AS now FROM attempts AS a"
            " JOIN jobs AS j ON j.id = a.job_id WHERE a.outcome IS NULL AND (j.state <> 'running'"
            " OR j.fence <> a.fence) ORDER BY a.id",
            "job {job} is {state} under fence {now}, the attempt has fence {fence}",
        ),
        repair=_end_attempts,
    ),
    Invariant(
        number=6,
        says="a running job has a live attempt",
        remedy="The job is queued again, or held or cancelled where that was asked.",
        find=_by_sql(
            "SELECT j.id, j.fence AS fence FROM jobs AS j WHERE j.state = 'running' AND NOT EXISTS (SELECT 1 FROM"
            " attempts AS a WHERE a.job_id = j.id AND a.fence = j.fence AND a.outcome IS NULL) ORDER BY j.id",
            "none under its fence {fence}",
        ),
        repair=_by_table(Happening.REQUEUED),
    ),
    Invariant(
        number=7,
        says="no attempt has a fence above its job's",
        remedy="The job's fence is raised, so that its next attempt gets a new one.",
        find=_by_sql(
            "SELECT j.id, j.fence AS fence, max(a.fence) AS highest FROM jobs AS j JOIN attempts AS a ON a.job_id ="
            " j.id GROUP BY j.id, j.fence HAVING max(a.fence) > j.fence ORDER BY j.id",
            "its fence is {fence}, an attempt has {highest}",
        ),
        repair=_raise_fences,
    ),
    Invariant(
        number=8,
        says="no two running jobs are equal",
        remedy="Restart the dispatcher: it ends all attempts of its predecessor. Then make the index (2) anew.",
        find=_by_sql(
            "SELECT j.id, o.id AS other FROM jobs AS j JOIN jobs AS o ON o.owner = j.owner AND o.content_key ="
            " j.content_key AND o.id < j.id WHERE j.state = 'running' AND o.state = 'running' ORDER BY j.id",
            "so is {other}, for the same clip",
        ),
    ),
    Invariant(
        number=9,
        says="a completed job, and one whose draft is reviewed, has its clip",
        remedy="The job is queued again.",
        find=_by_sql(
            "SELECT j.id FROM jobs AS j LEFT JOIN clips AS c ON c.id = j.clip_id AND c.owner = j.owner AND"
            f" c.content_key = j.content_key WHERE ({_SHOWS}) AND c.id IS NULL ORDER BY j.id",
            "it names none, or another job's",
        ),
        repair=_by_table(Happening.CLIP_LOST),
    ),
    Invariant(
        number=10,
        says="a job that is neither completed nor in review has no clip",
        remedy="It is taken from the job.",
        find=_by_sql(
            f"SELECT id, state, clip_id FROM jobs WHERE clip_id IS NOT NULL AND NOT ({_SHOWS}) ORDER BY id",
            "it is {state} and names {clip_id}",
        ),
        repair=_forget_clip,
    ),
    Invariant(
        number=11,
        says="no job waits for a clip that is there",
        remedy="It is completed with that clip.",
        find=_by_sql(
            "SELECT j.id, c.id AS clip_id FROM jobs AS j JOIN clips AS c ON c.owner = j.owner AND c.content_key ="
            " j.content_key WHERE j.state IN ('queued', 'held') AND c.expired_at IS NULL"
            " AND (j.reason IS NULL OR j.reason <> 'review') ORDER BY j.id",
            "clip {clip_id} has its content",
        ),
        repair=_by_table(Happening.PUBLISHED),
    ),
    Invariant(
        number=12,
        says="a clip was published by an attempt that completed",
        remedy="Read the attempts of the job; delete the clip's row if they say that it never ended.",
        find=_unpublished,
    ),
    Invariant(
        number=13,
        says="a batch that was handed in whole has all its rows",
        remedy="Rows were deleted by hand: submit the same manifest again, finished clips are shared.",
        find=_by_sql(
            "SELECT b.id, b.rows_sealed AS sealed, count(j.id) AS found FROM batches AS b LEFT JOIN jobs AS j ON"
            " j.batch_id = b.id WHERE b.rows_sealed IS NOT NULL GROUP BY b.id, b.rows_sealed"
            " HAVING count(j.id) < b.rows_sealed ORDER BY b.id",
            "{found} of {sealed} are there",
        ),
    ),
    Invariant(
        number=14,
        says="every job waits in the lane of its batch",
        remedy="The lane is set: in a wrong one a job may be offered late, or never.",
        find=_by_sql(
            f"SELECT id, lane FROM jobs WHERE lane <> {_LANE} ORDER BY id",
            "it is in {lane!r}",
        ),
        repair=_set_lanes,
    ),
    Invariant(
        number=15,
        says="jobs that have not ended can be read",
        remedy="They are passed over. Cancel their batch and submit it again; a newer clipmill may have written them.",
        find=_unreadable,
    ),
    Invariant(
        number=16,
        says="counters are what the tables say, as far as these can tell",
        remedy="Those that are too low are raised; a counter never falls.",
        find=_tallies,
        repair=_raise_tallies,
    ),
    Invariant(
        number=17,
        says="a batch is whole, or somebody is handing it in",
        remedy="Hand it in again with the same key: that goes on where it broke off. A farm that runs closes it.",
        find=_unsealed,
    ),
)


# -- objects -----------------------------------------------------------------------------------------------------

_OBJECTS = {
    20: ("the objects of a clip are in storage", "The clip is forgotten and its jobs are rendered again."),
    21: ("a waiting job's checkpoint is in storage", "The job begins anew."),
}


def _check_objects(database: Database, storage: Storage, *, repair: bool) -> list[Broken]:
    found = {20: list(_lost_objects(database, storage)), 21: list(_lost_checkpoints(database, storage))}
    if repair:
        batch_store = BatchStore(database)
        for finding in found[20]:
            batch_store.forget_clips(finding.facts.owner, [finding.subject])
        with database.write() as c:
            for finding in found[21]:
                c.execute(
                    sa.update(jobs)
                    .where(jobs.c.id == finding.subject, jobs.c.checkpoint_key == finding.facts)
                    .values(checkpoint_key=None, checkpoint_step=None)
                )
    return [
        Broken(number=n, says=says, remedy=remedy, findings=tuple(found[n]), repairable=True, repaired=repair)
        for n, (says, remedy) in _OBJECTS.items()
        if found[n]
    ]


def _lost_objects(database: Database, storage: Storage) -> Iterator[AuditFinding]:
    for row in _pages(database, sa.select(clips).where(clips.c.expired_at.is_(None)), clips.c.id):
        clip = clip_from(row)
        made = clip.objects
        fault = ""
        for key in (made.video, made.poster, made.spritesheet, made.provenance):
            try:
                size = storage.size(key)
            except MissingObjectError:
                fault = f"{key!r} is not there"
            else:
                if key == made.video and size != made.video_bytes:
                    fault = f"{key!r} has {size} bytes, not {made.video_bytes}"
            if fault:
                break
        if fault and _is_still(database, sa.select(clips.c.expired_at).where(clips.c.id == clip.id), None):
            yield AuditFinding(clip.id, fault, clip)


def _lost_checkpoints(database: Database, storage: Storage) -> Iterator[AuditFinding]:
    live = jobs.c.state.not_in([state.value for state in FINAL_STATES])
    query = sa.select(jobs.c.id, jobs.c.checkpoint_key).where(live, jobs.c.checkpoint_key.is_not(None))
    for row in _pages(database, query, jobs.c.id):
        key = row.checkpoint_key
        now = sa.select(jobs.c.checkpoint_key).where(jobs.c.id == row.id, live)
        if not storage.exists(key) and _is_still(database, now, key):
            yield AuditFinding(row.id, f"{key!r} is not there", key)


def _pages(database: Database, query: sa.Select[Any], by: sa.Column[str]) -> Iterator[Any]:
    # Page by page: a look at a million objects must hold no transaction open.
    last = ""
    while True:
        with database.read() as c:
            rows = c.execute(query.where(by > last).order_by(by).limit(_MANY)).all()
        yield from rows
        if len(rows) < _MANY:
            return
        last = rows[-1].id


def _is_still(database: Database, query: sa.Select[Any], value: object) -> bool:
    """Whether the row that was read before the storage still says so: a farm runs meanwhile."""
    with database.read() as c:
        found = c.execute(query).one_or_none()
    return found is not None and found[0] == value


def finding_lines(findings: Sequence[AuditFinding]) -> list[str]:
    """The first `MOST_LISTED` findings as lines of text, and a line that says how many more there are."""
    lines = [f"{finding.subject}: {finding.detail}" for finding in findings[:MOST_LISTED]]
    return lines if len(findings) <= MOST_LISTED else [*lines, f"… and {len(findings) - MOST_LISTED} more"]
