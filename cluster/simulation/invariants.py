"""Whether a farm kept its promises, from what happened on its cards and what its store says. Knows no scheduler.

Each promise is an invariant with a number, listed in `INVARIANTS` and told in docs/simulator.md.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from cluster.simulation.facts import AttemptSeen, RunFacts
from cluster.simulation.journal import RunRecord, StoreChange, What

#: Small differences between the journal's clock and the store's, in seconds.
_SLACK_S = 0.5
_FINAL = frozenset({"completed", "failed", "cancelled"})
#: Outcomes after which a checkpoint that was gone on from is not trusted again.
_SUSPECT = frozenset({"error", "crashed"})


@dataclass(frozen=True)
class Violation:
    """A promise that was broken: which, when (seconds since the start) and how."""

    invariant: str
    at: float
    text: str

    def __str__(self) -> str:
        return f"{self.invariant} at {self.at:.2f} s: {self.text}"


Check = Callable[[RunFacts], Iterator[Violation]]


def _i1_work_conserved(facts: RunFacts) -> Iterator[Violation]:
    saved = {key: (step, a.job) for a in facts.attempts.values() for _, step, key in a.saved}
    jobs = facts.record.jobs
    for a in facts.attempts.values():
        if not a.job:
            continue
        expected = a.begin
        for at, step in a.steps:
            expected += 1
            if step != expected:
                yield Violation("I1", at, f"{a.id} did step {step} where {expected} was next")
                break
        if a.begin:
            source = saved.get(a.resumed_from)
            if source is None or source[0] != a.begin:
                yield Violation("I1", a.claimed_at, f"{a.id} went on at step {a.begin} that nobody had saved")
            elif jobs[source[1]].content_key != jobs[a.job].content_key:
                yield Violation("I1", a.claimed_at, f"{a.id} went on from another clip's checkpoint")
        if a.outcome == "completed" and a.last_step != jobs[a.job].steps:
            yield Violation("I1", a.ended_at, f"{a.id} completed after {a.last_step} of {jobs[a.job].steps} steps")


def _i2_one_place(facts: RunFacts) -> Iterator[Violation]:
    by_content: dict[tuple[str, str], list[AttemptSeen]] = defaultdict(list)
    for a in facts.attempts.values():
        if a.job and a.steps:
            job = facts.record.jobs[a.job]
            by_content[job.owner, job.content_key].append(a)
    for together in by_content.values():
        together.sort(key=lambda a: a.claimed_at)
        for n, earlier in enumerate(together):
            for later in together[n + 1 :]:
                if earlier.steps[-1][0] <= later.steps[0][0]:
                    continue
                # Both made steps at one time: the earlier must be a zombie that counts for nothing.
                if earlier.ended_at > later.claimed_at or earlier.outcome == "completed":
                    text = f"{earlier.id} on {earlier.card} and {later.id} on {later.card} rendered one clip at a time"
                    yield Violation("I2", later.steps[0][0], text)


def _i3_no_overcommit(facts: RunFacts) -> Iterator[Violation]:
    spans: dict[str, list[tuple[float, float, int, str]]] = defaultdict(list)
    for a in facts.attempts.values():
        for begin, end, size in a.on_card:
            spans[a.ran_on].append((begin, end, size, a.id))
    downs: dict[str, list[float]] = defaultdict(list)
    for e in facts.record.of(What.CARD_DOWN):
        downs[e.card].append(e.at)
    for card, on_it in spans.items():
        on_it.sort()
        for n, (begin, end, size, attempt) in enumerate(on_it):
            if size > facts.usable(card, begin, facts.record.bounds.beat_s):
                yield Violation("I3", begin, f"{attempt} took {size} bytes of {card}, more than it has")
            gone = next((down for down in downs[card] if down >= begin), math.inf)
            for other_begin, *_, other in on_it[n + 1 :]:
                if other_begin < min(end, gone) - 1e-6:
                    yield Violation("I3", other_begin, f"{other} came on {card} while {attempt} was on it")
    # The card's own lock keeps two clips apart, but nothing may wait for it.
    beats = 2 * facts.record.bounds.beat_s + _SLACK_S
    for a in facts.attempts.values():
        before = facts.attempts.get(a.behind)
        if a.called_at is None or before is None:
            continue
        free_at = max((end for _, end, _ in before.on_card), default=0.0)
        if before.ended_at > a.called_at:
            yield Violation("I3", a.called_at, f"{a.id} was sent to {a.card} while {before.id} held it")
        elif free_at - before.ended_at > beats and facts.in_order(before.ended_at - beats, a.called_at):
            yield Violation("I3", a.called_at, f"{a.id} was sent to {a.card}, whose beats named {before.id}")


def _i4_one_lease(facts: RunFacts) -> Iterator[Violation]:
    open_by_job: dict[str, set[str]] = defaultdict(set)
    state: dict[str, str] = {}
    changes = facts.record.changes
    for n, c in enumerate(changes):
        if c.what == "attempt":
            open_by_job[c.job].add(c.id)
            if len(open_by_job[c.job]) > 1:
                yield Violation("I4", c.at, f"job {c.job} has {len(open_by_job[c.job])} live leases")
        elif c.what == "end":
            if c.before:
                yield Violation("I4", c.at, f"{c.id} ended twice: {c.before}, then {c.after}")
            open_by_job[c.job].discard(c.id)
        elif c.what == "job":
            state[c.id] = c.after
        if n + 1 == len(changes) or changes[n + 1].at > c.at:
            for job in {c.id if c.what == "job" else c.job} & state.keys():
                if (state[job] == "running") != bool(open_by_job[job]):
                    text = f"job {job} is {state[job]} with {len(open_by_job[job])} live leases"
                    yield Violation("I4", c.at, text)


def _i5_none_lost(facts: RunFacts) -> Iterator[Violation]:
    rows = {str(row["id"]): row for row in facts.record.tables["jobs"]}
    for job in facts.record.jobs:
        row = rows.get(job)
        if row is None:
            yield Violation("I5", facts.end, f"job {job} was accepted and is gone")
        elif row["state"] == "running" and not any(a.ended_at == math.inf for a in facts.by_job[job]):
            yield Violation("I5", facts.end, f"job {job} is running and nobody renders it")
        elif row["state"] == "failed" and not row["reason"]:
            yield Violation("I5", facts.end, f"job {job} failed for no reason")


def _i6_one_publication(facts: RunFacts) -> Iterator[Violation]:
    published: dict[tuple[str, str], StoreChange] = {}
    for c in facts.record.changes:
        if c.what != "clip":
            continue
        if (c.before, c.after) in published:
            yield Violation("I6", c.at, f"{c.after} of {c.before} was published twice")
        published[c.before, c.after] = c
        made = facts.attempts.get(c.job)
        if made is None or made.stored_at is None or made.stored_at > c.at + _SLACK_S:
            yield Violation("I6", c.at, f"clip {c.id} names objects that {c.job or 'nobody'} never stored")
        elif made.outcome != "completed":
            yield Violation("I6", c.at, f"clip {c.id} is of {c.job}, which ended as {made.outcome or 'nothing'}")
    known = {str(row["id"]): (row["owner"], row["content_key"]) for row in facts.record.tables["clips"]}
    for row in facts.record.tables["jobs"]:
        if row["state"] == "completed" and known.get(str(row["clip_id"])) != (row["owner"], row["content_key"]):
            yield Violation("I6", facts.end, f"job {row['id']} is completed without its clip")


def _i7_none_starves(facts: RunFacts) -> Iterator[Violation]:
    # All that had not ended by then, one after the other on the slowest card, each as often as it may be tried.
    bounds, jobs = facts.record.bounds, facts.record.jobs
    ended = {
        job: next((at for at, _, after in reversed(moves) if after in _FINAL), math.inf)
        for job, moves in facts.states.items()
    }
    left = [jobs[job] for job, at in ended.items() if at > facts.healed_at and job in jobs]
    tries = {True: bounds.max_attempts, False: 2}
    bound = sum(job.longest_s * tries[bool(job.poison)] for job in left)
    bound += sum(bounds.max_attempts * (2 * bounds.stall_s + 60) for job in left if job.poison == "hang")
    bound += 3 * bounds.rest_s + 2 * bounds.lease_s + bounds.stall_s + 120
    for job in left:
        if min(ended[job.id], facts.end) > facts.healed_at + bound:
            yield Violation("I7", facts.healed_at + bound, f"job {job.id} waits although all work could be done by now")
        elif ended[job.id] == math.inf and facts.end < facts.healed_at + bound:
            yield Violation("I7", facts.end, f"job {job.id} had not ended when the run was over")


def _i8_lost_steps(facts: RunFacts) -> Iterator[Violation]:
    bounds = facts.record.bounds
    for job, made in facts.by_job.items():
        if not facts.record.jobs[job].resumable:
            continue
        for lost, following in pairwise(made):
            if lost.outcome in _SUSPECT and (lost.claimed_step or lost.begin):
                continue
            # Steps of a zombie are nobody's loss, and what was saved under no dispatcher was heard by none.
            done = max((step for at, step in lost.steps if at <= lost.ended_at), default=lost.begin)
            last = max((at for at, _ in lost.steps if at <= lost.ended_at), default=lost.claimed_at)
            if not facts.in_order(lost.claimed_at, lost.ended_at):
                continue
            if not facts.reachable(lost.card, lost.claimed_at, last):
                continue
            # What it did counts, not what it was told to do.
            went_on = following.begin if following.steps and not following.refused else following.claimed_step
            heard = max((step for at, step in lost.heard if at <= lost.ended_at - _SLACK_S), default=0)
            if went_on < heard:
                text = f"{following.id} goes on at {went_on}, its dispatcher had heard of {heard}"
                yield Violation("I8", following.claimed_at, text)
            # Beside a checkpoint that is being written the next steps are done.
            beside = sum(1 for at, _ in lost.steps if last - bounds.checkpoint_write_s - _SLACK_S < at <= last)
            most = bounds.checkpoint_steps * (1 + lost.unsaved) + beside
            if done - max(went_on, lost.begin) > most:
                text = f"{lost.id} lost {done - went_on} steps, {most} at most"
                yield Violation("I8", lost.ended_at, text)


def _i9_fits(facts: RunFacts) -> Iterator[Violation]:
    bounds = facts.record.bounds
    for a in facts.attempts.values():
        if a.claimed_at < math.inf:
            usable = facts.usable(a.card, a.claimed_at, bounds.silent_s + bounds.beat_s)
            if a.needs * bounds.least_factor > usable:
                yield Violation("I9", a.claimed_at, f"{a.id} needs {a.needs} bytes, {a.card} has {usable}")


def _i10_cancelled(facts: RunFacts) -> Iterator[Violation]:
    bounds = facts.record.bounds
    soon = 3 * bounds.renew_s + bounds.beat_s + 2.0
    for c in facts.record.changes:
        if c.what != "cancel":
            continue
        for a in facts.by_job[c.id]:
            if a.claimed_at > c.at:
                yield Violation("I10", a.claimed_at, f"job {c.id} was started again after it was cancelled")
        ended = next((at for at, _, after in facts.states[c.id] if at >= c.at and after in _FINAL), math.inf)
        if ended > c.at + soon and facts.end > c.at + soon and facts.in_order(c.at, c.at + soon, bounds.renew_s):
            yield Violation("I10", c.at + soon, f"job {c.id} had not ended {soon:.0f} s after it was cancelled")


def _i11_final_stays(facts: RunFacts) -> Iterator[Violation]:
    for job, moves in facts.states.items():
        for at, before, after in moves:
            if before in _FINAL:
                yield Violation("I11", at, f"job {job} was {before} and became {after}")


def _i12_counters(facts: RunFacts) -> Iterator[Violation]:
    tables = facts.record.tables
    counted: Counter[tuple[str, str]] = Counter()
    for row in tables["tallies"]:
        counted[str(row["name"]), str(row["outcome"])] += round(float(str(row["value"])))
    own = {row["job_id"] for row in tables["attempts"] if row["outcome"] == "completed"}
    truth: Counter[tuple[str, str]] = Counter()
    for row in tables["attempts"]:
        if row["outcome"]:
            truth["attempts", str(row["outcome"])] += 1
    for row in tables["jobs"]:
        if row["state"] in _FINAL:
            shared = row["state"] == "completed" and row["id"] not in own
            truth["clips", "shared" if shared else str(row["state"])] += 1
    for key in sorted({key for key in {*truth, *counted} if key[0] in ("attempts", "clips")}):
        if truth[key] != counted[key]:
            yield Violation("I12", facts.end, f"{key[0]}{{{key[1]}}} says {counted[key]}, there are {truth[key]}")
    ended = Counter(row["job_id"] for row in tables["attempts"] if row["outcome"])
    for row in tables["jobs"]:
        tried = int(str(row["attempts"])) + int(str(row["releases"]))
        # What people asked for costs their jobs nothing.
        its = facts.by_job[str(row["id"])]
        free = sum(a.outcome == "stopped" and (bool(facts.asked(a)) or a.id in facts.made_room) for a in its)
        # Nor does the death of a renderer that was not theirs.
        free += sum(a.outcome == "lost" and a.renderer in facts.died for a in its)
        if not ended[row["id"]] - free <= tried <= ended[row["id"]]:
            yield Violation("I12", facts.end, f"job {row['id']} counts {tried} attempts of {ended[row['id']]}")


def _i13_leaves_card(facts: RunFacts) -> Iterator[Violation]:
    bounds = facts.record.bounds
    for a in facts.attempts.values():
        if not a.steps or not a.job or a.hangs_at is not None:
            continue
        last = a.steps[-1][0]
        # It hears of its end with a beat and stops after a step.
        soon = 2 * bounds.beat_s + 2 * facts.record.jobs[a.job].longest_step_s + _SLACK_S
        if last > a.ended_at + soon and last > facts.settled(a.card, a.ended_at, soon):
            yield Violation("I13", last, f"{a.id} ended at {a.ended_at:.1f} s and was still on {a.card}")


def _i14_no_idle_card(facts: RunFacts) -> Iterator[Violation]:
    bounds = facts.record.bounds
    busy: dict[str, list[tuple[float, float]]] = defaultdict(list)
    blamed: dict[str, set[str]] = defaultdict(set)
    for a in facts.attempts.values():
        if a.job:
            # From the claim to what the card or the store says last of it.
            last = max([a.ended_at if a.ended_at < math.inf else 0.0, *(at for at, _ in a.steps)], default=0.0)
            last = max([last, *(end for _, end, _ in a.on_card if end < math.inf)])
            busy[a.card].append((a.claimed_at, last if a.ended_at < math.inf else math.inf))
        if a.outcome in ("crashed", "error", "oom"):
            blamed[a.card].add(a.job)
    hanging = {a.card for a in facts.attempts.values() if a.hangs_at is not None}
    running: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for a in facts.attempts.values():
        if a.job:
            its = facts.record.jobs[a.job]
            running[its.owner, its.content_key].append((a.claimed_at, a.ended_at))
    for job_id, moves in facts.states.items():
        if (job := facts.record.jobs.get(job_id)) is None:
            continue
        for n, (since, _, state) in enumerate(moves):
            until = moves[n + 1][0] if n + 1 < len(moves) else facts.end
            # A plan may keep it for a faster card, but not for longer than it takes on any.
            patience_s = bounds.patience_s + (job.longest_s if bounds.planned else 0.0)
            if state != "queued" or until - since <= patience_s:
                continue
            needs = max(
                (c.size for c in facts.record.changes if c.id == job_id and c.size and c.at <= until), default=0
            )
            for card in facts.record.cards:
                if card.name in hanging or len(blamed[card.name]) >= 3 or card.usable_bytes < bounds.spare * needs:
                    continue
                blocked = [(begin, end + bounds.settle_s) for begin, end in facts.unreachable[card.name]]
                blocked += [(begin, end + bounds.settle_s) for begin, end in facts.out_of_order]
                blocked += busy[card.name]
                ordered = [*facts.held[job_id], *facts.closed[card.name]]
                blocked += [(begin, end + bounds.settle_s) for begin, end, _ in ordered]
                blocked += [span for span in running[job.owner, job.content_key] if span[0] < until]
                if (idle := _gap(since, until, blocked, patience_s)) is not None:
                    text = f"job {job_id} waits, {card.name} has been idle since {idle:.1f} s and holds it"
                    yield Violation("I14", idle + patience_s, text)
                    break


def _gap(since: float, until: float, blocked: list[tuple[float, float]], longest_s: float) -> float | None:
    """Where between `since` and `until` more than `longest_s` lie outside every span."""
    free = since
    for begin, end in sorted(blocked):
        if begin - free > longest_s:
            break
        free = max(free, end)
    else:
        begin = until
    return free if min(begin, until) - free > longest_s else None


def _i15_attempts_end(facts: RunFacts) -> Iterator[Violation]:
    bounds = facts.record.bounds
    for row in facts.record.tables["jobs"]:
        attempts, releases = int(str(row["attempts"])), int(str(row["releases"]))
        if attempts > bounds.max_attempts or releases > bounds.max_releases:
            yield Violation("I15", facts.end, f"job {row['id']} took {attempts} attempts and {releases} releases")
        job = facts.record.jobs.get(str(row["id"]))
        if job and job.poison and row["state"] == "completed":
            yield Violation("I15", facts.end, f"job {job.id} is poison ({job.poison}) and completed")


def _i16_checkpoints(facts: RunFacts) -> Iterator[Violation]:
    for e in facts.record.of(What.RESUMED):
        if e.detail.startswith("missing"):
            yield Violation("I16", e.at, f"{e.attempt} was to go on from a checkpoint that was deleted: {e.detail}")
    final = {str(row["id"]): row["state"] in _FINAL for row in facts.record.tables["jobs"]}
    alive = {(row["owner"], row["content_key"]) for row in facts.record.tables["jobs"] if row["state"] not in _FINAL}
    for key in facts.record.objects:
        job = facts.record.jobs.get(key.split("/")[1])
        recorded = [c for c in facts.record.changes if c.what == "checkpoint" and c.after == key]
        # What a zombie wrote and no dispatcher heard of goes with the next one's thorough sweep.
        if job and final.get(job.id) and recorded and (job.owner, job.content_key) not in alive:
            yield Violation("I16", facts.end, f"{key} is left of a job that has ended")


def _i18_rescued(facts: RunFacts) -> Iterator[Violation]:
    bounds = facts.record.bounds
    downs = {e.renderer: e.at for e in facts.record.of(What.CARD_DOWN)}
    # A silent renderer's lease has to run out, and its end has to be seen and written.
    soon = bounds.silent_s + bounds.lease_s + 4 * bounds.renew_s + 5.0
    for a in facts.attempts.values():
        gone_at = downs.get(a.renderer, math.inf)
        if a.ended_at <= gone_at + soon or a.claimed_at > gone_at:
            continue
        since, until = gone_at, gone_at + soon
        for begin, end in sorted(facts.out_of_order):
            if begin <= until:
                since = max(since, end)
                until = since + soon
        if min(a.ended_at, facts.end) > until:
            yield Violation("I18", until, f"{a.id} runs on in the store, {a.renderer} died at {gone_at:.1f} s")


def _i17_as_claimed(facts: RunFacts) -> Iterator[Violation]:
    for a in facts.attempts.values():
        at = a.called_at if a.called_at is not None else facts.end
        if a.called_at is not None and a.claimed_at > a.called_at + 1e-6:
            yield Violation("I17", at, f"{a.id} was started and not claimed")
        elif a.ran_on and a.ran_on != a.card:
            yield Violation("I17", at, f"{a.id} was claimed for {a.card} and ran on {a.ran_on}")
        if a.called_at is None and a.steps:
            yield Violation("I17", a.steps[0][0], f"{a.id} made steps and was never called")


#: Number, promise and check of every invariant.
def _i19_people(facts: RunFacts) -> Iterator[Violation]:
    bounds = facts.record.bounds
    for job, spans in facts.held.items():
        for begin, end, how in spans:
            for a in facts.by_job[job]:
                # A row that ran is preempted; while its attempt ends, another may begin and be preempted too.
                ran = next((after for at, _, after in reversed(facts.states[job]) if at <= begin), "") == "running"
                if begin < a.claimed_at < end and not (how == "row" and ran):
                    yield Violation("I19", a.claimed_at, f"job {job} was started while its {how} was held")
    for card, spans in facts.closed.items():
        for begin, end, how in spans:
            for a in facts.attempts.values():
                late = a.card == card and begin + 2 * bounds.renew_s + _SLACK_S < a.claimed_at < end
                if late and facts.in_order(begin, a.claimed_at, bounds.renew_s):
                    yield Violation("I19", a.claimed_at, f"{a.id} was started on {card}, closed by {how}")


def _i20_leaves(facts: RunFacts) -> Iterator[Violation]:
    bounds = facts.record.bounds
    for a in facts.attempts.values():
        if not a.job or a.hangs_at is not None or not facts.record.jobs[a.job].resumable:
            continue
        # It is asked with the next look, and stopped where it has not left when patience is at its end.
        soon = 3 * bounds.renew_s + bounds.preempt_s + 2 * bounds.beat_s + 2.0
        for begin, end, how in facts.asked(a):
            last = facts.settled(a.card, max(begin, a.claimed_at), soon)
            if a.claimed_at < end and last < min(end, a.ended_at, facts.end):
                yield Violation("I20", last, f"{a.id} is still on {a.card}, told to leave it by {how} at {begin:.1f} s")


def _i21_deaths(facts: RunFacts) -> Iterator[Violation]:
    paid: Counter[str] = Counter()
    for a in facts.attempts.values():
        died_at = facts.died.get(a.renderer, math.inf)
        if not a.claimed_at <= died_at < a.ended_at < math.inf:
            continue
        there = [b for b in facts.attempts.values() if b.renderer == a.renderer and b.id != a.id]
        was_on = _is_on_card(a, died_at)
        # A dispatcher that came after the death knows nothing of it; and once the node was started anew, nothing tells
        # any more whether the process had ended before.
        told = facts.in_order(a.claimed_at, a.ended_at) and not facts.restarted(a.card, died_at, a.ended_at)
        # One that was on its way off the card when it died has been given up already.
        told = told and facts.stopped.get(a.id, math.inf) > died_at
        if was_on and a.outcome == "lost" and told:
            yield Violation("I21", a.ended_at, f"{a.id} was on {a.card} when {a.renderer} died, and counts as lost")
        elif not was_on and a.outcome == "crashed" and any(_is_on_card(b, died_at) for b in there):
            yield Violation("I21", a.ended_at, f"{a.id} stood beside when {a.renderer} died, and counts as crashed")
        if a.outcome == "crashed" and any(_kills_while_encoded(facts, b, died_at) for b in there):
            paid[a.job] += 1
            if paid[a.job] > 1:
                text = f"job {a.job} paid again for a row that kills its renderer while it is encoded"
                yield Violation("I21", a.ended_at, text)


def _i22_interactive(facts: RunFacts) -> Iterator[Violation]:
    bounds, jobs = facts.record.bounds, facts.record.jobs
    opened = [0.0, *(e.at for e in facts.record.of(What.OFFICE_OPEN))]
    theirs = [a for a in facts.attempts.values() if a.job and jobs[a.job].interactive]
    waits = facts.queued([job for job, truth in jobs.items() if not truth.interactive])
    often: Counter[str] = Counter()
    for a in (facts.attempts[one] for one in sorted(facts.made_room)):
        often[a.job] += 1
        if jobs[a.job].interactive:
            yield Violation("I22", a.ended_at, f"{a.id} is interactive and made room for another")
        if often[a.job] > bounds.most_preemptions * len(opened):
            yield Violation("I22", a.ended_at, f"job {a.job} made room {often[a.job]} times")
        # It was told so at some moment of the last seconds: others had less than their share then.
        leave_s = max(bounds.preempt_s, 10 * jobs[a.job].longest_step_s) + bounds.patience_s
        began = max(at for at in opened if at <= a.ended_at)
        moments = [a.ended_at - n for n in range(int(leave_s) + 1)]
        had = min(
            sum(
                _overlap_s(max(began, at - bounds.interactive_window_s), at, (b.claimed_at, b.ended_at), waits)
                for b in theirs
            )
            for at in moments
        )
        if had > bounds.interactive_card_s + bounds.patience_s:
            text = f"{a.id} made room though interactive clips had {had:.0f} card seconds"
            yield Violation("I22", a.ended_at, text)


def _overlap_s(since: float, until: float, span: tuple[float, float], of: list[tuple[float, float]]) -> float:
    """Seconds of `span` between `since` and `until` that lie in one at least of the spans `of`."""
    since, until = max(since, span[0]), min(until, span[1])
    seconds, reached = 0.0, since
    for begin, end in sorted(of):
        begin, end = max(begin, reached), min(end, until)
        seconds += max(0.0, end - begin)
        reached = max(reached, end)
    return seconds


def _kills_while_encoded(facts: RunFacts, a: AttemptSeen, at: float) -> bool:
    poison = facts.record.jobs[a.job].poison if a.job in facts.record.jobs else ""
    return poison == "encode" and a.claimed_at <= at <= a.ended_at and not _is_on_card(a, at)


def _is_on_card(a: AttemptSeen, at: float) -> bool:
    return any(begin <= at <= end for begin, end, _ in a.on_card)


INVARIANTS: Mapping[str, tuple[str, Check]] = {
    "I1": ("Work is conserved: every step of a clip follows from the one before, across attempts.", _i1_work_conserved),
    "I2": ("No clip is rendered in two places at once, but by a zombie whose result counts nothing.", _i2_one_place),
    "I3": ("No card holds two clips, nor more bytes than it has.", _i3_no_overcommit),
    "I4": ("A job has one live lease while it runs and none otherwise; an attempt ends once.", _i4_one_lease),
    "I5": ("No accepted job is lost.", _i5_none_lost),
    "I6": ("A clip is published once, of objects that are there.", _i6_one_publication),
    "I7": ("Nobody starves: what is left when faults end is done within the work ahead.", _i7_none_starves),
    "I8": ("A loss costs at most the steps between two checkpoints.", _i8_lost_steps),
    "I9": ("No clip goes to a card that cannot hold it by the farm's own numbers.", _i9_fits),
    "I10": ("A cancelled job ends soon and is never started again.", _i10_cancelled),
    "I11": ("What has ended stays as it ended.", _i11_final_stays),
    "I12": ("Counters agree with the rows.", _i12_counters),
    "I13": ("An attempt that has ended leaves its card within a beat and a step.", _i13_leaves_card),
    "I14": ("No card stays idle beside a waiting job that it holds.", _i14_no_idle_card),
    "I15": ("Attempts are bounded; poison ends.", _i15_attempts_end),
    "I16": ("No checkpoint is deleted that a job goes on from, and none is left of jobs that ended.", _i16_checkpoints),
    "I17": ("An attempt runs where the store says, and only after it says so.", _i17_as_claimed),
    "I18": ("An attempt whose renderer is gone ends when its lease does.", _i18_rescued),
    "I19": ("Nothing starts of a batch that people hold, nor on a card that they closed.", _i19_people),
    "I20": ("A clip that people hold, or whose card they drain, leaves it soon.", _i20_leaves),
    "I21": ("A renderer's death is laid to the clip on its card, and to no row twice for another.", _i21_deaths),
    "I22": ("Interactive clips keep to their share, and nobody makes room for them for ever.", _i22_interactive),
}


def check(record: RunRecord) -> list[Violation]:
    """Every broken promise, by time."""
    facts = RunFacts(record)
    found = [violation for _, one in INVARIANTS.values() for violation in one(facts)]
    return sorted(found, key=lambda v: (v.at, v.invariant, v.text))
