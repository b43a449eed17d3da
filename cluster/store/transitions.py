"""The table of `cluster.jobs.transitions` as SQL: one UPDATE does to many jobs what `step` does to one."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cluster.jobs.model import HoldReason, JobState, Pick
from cluster.jobs.transitions import RULES, Event, Guard, Instruction, Rule
from cluster.store.schema import attempts, batches, clips, jobs

_LOST = (JobState.FAILED.value, JobState.CANCELLED.value)


def _before(*states: str) -> sa.Exists:
    first = jobs.alias("first")
    return sa.exists().where(first.c.id == jobs.c.after, first.c.state.in_(states))


def _own_clip() -> sa.ColumnElement[bool]:
    same = sa.and_(clips.c.owner == jobs.c.owner, clips.c.content_key == jobs.c.content_key)
    return sa.and_(same, clips.c.expired_at.is_(None))


def other_picked() -> sa.ColumnElement[bool]:
    """Whether another job of the same row of a manifest was picked."""
    other = jobs.alias("other")
    same = sa.and_(other.c.batch_id == jobs.c.batch_id, other.c.row_number == jobs.c.row_number)
    # Whoever was cancelled after that is chosen no more.
    chosen = sa.and_(other.c.picked.is_(True), other.c.state != JobState.CANCELLED.value, other.c.id != jobs.c.id)
    picked = sa.exists().where(same, other.c.row_number.is_not(None), chosen)
    return sa.and_(jobs.c.row_number.is_not(None), picked)


#: How the store has a `Pick`.
PICKED: dict[Pick, bool | None] = {Pick.OPEN: None, Pick.PICKED: True, Pick.LET_GO: False}

_NO_PROBLEMS = sa.bindparam("no_problems", [], type_=jobs.c.problems.type)


def guard_sql(guard: Guard) -> sa.ColumnElement[bool]:
    """The condition of a row of `jobs`, as `cluster.jobs.transitions.is_met` is of `JobFacts`."""
    match guard:
        case Guard.HAS_CLIP:
            return sa.and_(jobs.c.rounds_left == 0, sa.exists().where(_own_clip()))
        case Guard.HAS_DRAFT:
            return sa.and_(jobs.c.rounds_left > 0, sa.exists().where(_own_clip()))
        case Guard.DRAFT:
            return jobs.c.rounds_left > 0
        case Guard.CANCELLED_DRAFT:
            return sa.and_(jobs.c.rounds_left > 0, jobs.c.cancel_requested.is_(True))
        case Guard.UNDECIDED:
            return sa.and_(
                jobs.c.row_number.is_not(None), sa.func.coalesce(jobs.c.picked, sa.false()).is_(False), ~other_picked()
            )
        case Guard.PICKED:
            return sa.and_(jobs.c.row_number.is_not(None), sa.func.coalesce(jobs.c.picked, sa.false()))
        case Guard.OTHER_PICKED:
            return other_picked()
        case Guard.LET_GO:
            return sa.and_(jobs.c.row_number.is_not(None), sa.func.coalesce(jobs.c.picked, sa.true()).is_(False))
        case Guard.UNRENDERABLE:
            return jobs.c.content_key.is_(None)
        case Guard.BEFORE_COMING:
            # What is not resolved yet is still to come.
            return sa.and_(jobs.c.after.is_not(None), ~_before(JobState.COMPLETED.value, *_LOST))
        case Guard.BEFORE_LOST:
            return _before(*_LOST)
        case Guard.CANCELLING:
            return jobs.c.cancel_requested.is_(True)
        case Guard.PAUSING:
            return sa.func.coalesce(jobs.c.hold_requested == HoldReason.PAUSED.value, sa.false())
        case Guard.HOLDING:
            return sa.func.coalesce(jobs.c.hold_requested == HoldReason.APPROVAL.value, sa.false())
        case Guard.BATCH_HELD:
            return sa.exists().where(batches.c.id == jobs.c.batch_id, batches.c.held.is_not(None))


def _applies(rule: Rule) -> sa.ColumnElement[bool]:
    conditions: list[sa.ColumnElement[bool]] = [jobs.c.state == rule.state.value]
    if rule.reason is not None:
        conditions.append(sa.func.coalesce(jobs.c.reason == str(rule.reason), sa.false()))
    if rule.when is not None:
        conditions.append(guard_sql(rule.when))
    return sa.and_(*conditions)


def number_of_rule(event: Event) -> sa.ColumnElement[int]:
    """Which rule of the event counts for a row of `jobs`: its place in the table, -1 where there is none."""
    return sa.case(*((_applies(rule), n) for n, rule in enumerate(RULES[event])), else_=-1)


def moves(event: Event) -> sa.ColumnElement[bool]:
    """Whether the event changes this row of `jobs`: neither refused nor kept as it is."""
    changing = [n for n, rule in enumerate(RULES[event]) if rule.to is not None and not rule.keeps]
    return number_of_rule(event).in_(changing)


def leads_to(event: Event, state: JobState) -> sa.ColumnElement[bool]:
    """Whether the event takes this row of `jobs` to `state` out of another."""
    rules = enumerate(RULES[event])
    return number_of_rule(event).in_([n for n, r in rules if r.to is state and r.state is not state])


def brings_back(event: Event) -> sa.ColumnElement[bool]:
    """Whether the event takes this row of `jobs` out of the state that it is in, or asks for another clip of it."""
    rules = enumerate(RULES[event])
    leaves = [n for n, r in rules if r.to is not None and not r.keeps and (r.to is not r.state or r.renews)]
    return number_of_rule(event).in_(leaves)


def finds_clip(event: Event) -> sa.ColumnElement[bool]:
    """Whether the event completes this row of `jobs` with a clip that it had not before."""
    rules = enumerate(RULES[event])
    return number_of_rule(event).in_([n for n, r in rules if r.to is JobState.COMPLETED and r.finds_clip])


def goes_on(event: Event) -> sa.ColumnElement[bool]:
    """Whether after the event a draft of this row of `jobs` may come that nobody has looked at."""
    comes = [n for n, rule in enumerate(RULES[event]) if not rule.keeps and _comes_to_a_clip(rule)]
    return sa.and_(jobs.c.rounds_left > 0, number_of_rule(event).in_(comes))


def _comes_to_a_clip(rule: Rule) -> bool:
    waits = rule.to is JobState.QUEUED or rule.because is HoldReason.AFTER
    return waits or (rule.renews and rule.because is HoldReason.REVIEW)


def values_of(
    event: Event, now: int | sa.BindParameter[int], move: tuple[JobState, JobState] | None = None
) -> dict[str, Any]:
    """Values of the UPDATE that takes every row which `moves` to where the table says, by the name of the column.

    Where all rules of the event say the same of a column it is a constant, so a statement can be made once and name the
    states it starts from itself. The reason of a job that failed by itself is the caller's to put in. `move`: where the
    caller knows it, from which state to which the rows go; rules of other moves are left out.
    """
    rules = [
        (n, rule)
        for n, rule in enumerate(RULES[event])
        if rule.to is not None and not rule.keeps and move in (None, (rule.state, rule.to))
    ]
    # The number once, as an operand: as a list of conditions every column would ask every guard again.
    which = number_of_rule(event)

    def by_rule(values: dict[int, Any], otherwise: Any) -> Any:
        if values and len(values) == len(rules) and len(set(values.values())) == 1:
            return next(iter(values.values()))
        return sa.case(values, value=which, else_=otherwise) if values else otherwise

    def where(numbers: list[int], value: Any, otherwise: Any) -> Any:
        return value if len(numbers) == len(rules) else sa.case((which.in_(numbers), value), else_=otherwise)

    # Requests are obeyed by a change of state; a job that stays where it is keeps them.
    changing = {n: rule for n, rule in rules if rule.to is not rule.state}
    obeying = {n: rule for n, rule in changing.items() if not rule.keeps_requests}
    asks: dict[int, Any] = dict.fromkeys(obeying)
    asks |= {n: rule.ask.value for n, rule in rules if rule.ask is not None}
    asks |= {n: None for n, rule in rules if Instruction.GO_ON in rule.does}
    cancels: dict[int, Any] = dict.fromkeys(obeying, False)
    cancels |= {n: True for n, rule in rules if Instruction.STOP in rule.does}
    fresh = [n for n, rule in rules if Instruction.FRESH in rule.does]
    reasons = {n: rule.because.value if rule.because else None for n, rule in rules if rule.because or n in changing}
    values: dict[str, Any] = {
        "state": by_rule({n: rule.to.value for n, rule in rules if rule.to is not None}, jobs.c.state),
        "updated_at": now,
    }
    if reasons:
        values["reason"] = by_rule(reasons, jobs.c.reason)
    if asks:
        values["hold_requested"] = by_rule(asks, jobs.c.hold_requested)
    if cancels:
        values["cancel_requested"] = by_rule(cancels, jobs.c.cancel_requested)
    if fresh:
        for column in (jobs.c.attempts, jobs.c.releases):
            values[column.name] = by_rule(dict.fromkeys(fresh, 0), column)
    # A clip is what completed jobs have and those in review, and no others.
    done = [n for n, rule in rules if rule.finds_clip]
    undone = [n for n, rule in rules if rule.loses_clip]
    if done:
        clip = sa.select(clips.c.id).where(_own_clip())
        values["clip_id"] = where(done, clip.scalar_subquery(), where(undone, None, jobs.c.clip_id))
    elif undone:
        values["clip_id"] = where(undone, None, jobs.c.clip_id)
    picks: dict[int, Any] = {n: PICKED[rule.pick] for n, rule in rules if rule.pick is not None}
    picks |= {n: sa.case((jobs.c.picked.is_(True), sa.true())) for n, rule in rules if rule.takes_back}
    if picks:
        values["picked"] = by_rule(picks, jobs.c.picked)
    if fresh or done:
        values["problems"] = where(sorted({*fresh, *done}), _NO_PROBLEMS, jobs.c.problems)
    return values


_TO_PREEMPT = (
    sa.select(attempts.c.id, jobs.c.cancel_requested, jobs.c.hold_requested)
    .join(jobs, jobs.c.id == attempts.c.job_id)
    .join(batches, batches.c.id == attempts.c.batch_id)
    .where(attempts.c.outcome.is_(None))
    .where(
        sa.or_(
            jobs.c.cancel_requested.is_(True),
            jobs.c.hold_requested.is_not(None),
            # A batch that stopped at a limit lets its clips finish.
            sa.func.coalesce(batches.c.held == HoldReason.PAUSED.value, sa.false()),
        )
    )
)


def to_preempt(c: Connection) -> tuple[frozenset[str], dict[str, str]]:
    """Running attempts (whose job was cancelled; that are to be preempted, and why: `pause` or `hold`)."""
    asked = c.execute(_TO_PREEMPT).all()
    cancelled = frozenset(row.id for row in asked if row.cancel_requested)
    reasons = {row.id: "hold" if row.hold_requested == HoldReason.APPROVAL else "pause" for row in asked}
    return cancelled, {attempt: reason for attempt, reason in reasons.items() if attempt not in cancelled}
