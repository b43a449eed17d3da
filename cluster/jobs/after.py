"""What rows wait for, judged: a row of no such name, circles, and rows whose first row cannot be rendered. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from cluster.jobs.model import Draft
from pipeline.problems import Problem


def problems_of(
    before: Mapping[str, str | None], names: Mapping[str, str], written: Mapping[str, str]
) -> dict[str, Problem]:
    """What is wrong with what jobs wait for, by job: something unknown, or a circle.

    `before`: the job each one waits for, None where there is none of that name. `names`: what the jobs are called;
    `written`: what they say they wait for.
    """
    problems: dict[str, Problem] = {}
    done: set[str] = set()
    for start in before:
        path: dict[str, None] = {}
        at: str | None = start
        while at is not None and at in before and at not in done:
            if at in path:
                on_path = list(path)
                circle = on_path[on_path.index(at) :]
                chain = " → ".join(names[job] for job in [*circle, at])
                for job in circle:
                    problems[job] = Problem(
                        field="after",
                        message=f"rows wait for each other: {chain}",
                        remedy="Let one of them wait for nothing.",
                    )
                break
            path[at] = None
            at = before[at]
        done.update(path)
    for job, first in before.items():
        if first is None:
            problems[job] = Problem(
                field="after",
                message=f"there is no row {written[job]!r} in this batch, and no job of this id",
                remedy="Name the id of another row; of a row with several candidates one of them, such as SKU-001-c1.",
            )
    return problems


def judged(drafts: Sequence[Draft], is_job: Callable[[str], bool]) -> list[Draft]:
    """The rows of a batch as a farm would have them: those that wait for what never comes have that as their problem.

    What a row waits for is a row of the batch by its name, else a job by its id, which `is_job` tells.
    """
    # Names of rows that cannot be rendered need not be unique: a good row's counts.
    by_name = {draft.name: str(draft.number) for draft in sorted(drafts, key=lambda draft: not draft.problems)}
    waiting = {str(draft.number): draft for draft in drafts if draft.after is not None and not draft.problems}
    before: dict[str, str | None] = {}
    for number, draft in waiting.items():
        first = str(draft.after)
        before[number] = by_name.get(first) or (first if is_job(first) else None)
    names = {number: draft.name for number, draft in waiting.items()}
    bad = problems_of(before, names, {number: str(draft.after) for number, draft in waiting.items()})
    lost = {str(draft.number) for draft in drafts if draft.problems} | bad.keys()
    followers: dict[str, list[str]] = {}
    for number, awaited in before.items():
        if awaited is not None:
            followers.setdefault(awaited, []).append(number)
    frontier = list(lost)
    while frontier:
        for number in followers.get(frontier.pop(), ()):
            if number not in lost:
                lost.add(number)
                frontier.append(number)
                bad[number] = Problem(
                    field="after",
                    message=f"row {waiting[number].after!r}, which it waits for, cannot be rendered",
                    remedy="Correct that row.",
                )
    found = ((draft, bad.get(str(draft.number))) for draft in drafts)
    return [
        replace(draft, problems=(problem,), spec=None, content_key=None) if problem else draft
        for draft, problem in found
    ]
