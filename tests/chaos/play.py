"""One seeded run: work, faults one after the other, and a verdict on what the farm made of them."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.jobs.model import Attempt, Job, JobState, Outcome
from cluster.maintenance.audit import check, finding_lines
from pipeline.clips.clip import ResolutionClass
from tests.chaos.farm import EVERY, OWNER, PATIENCE_S, POISON_FPS, FarmUnderFire
from tests.chaos.faults import FAULTS, MANIFEST_ROWS, Fault

#: Room on the disks of home and storage, in MiB: logs of some farms, and a few hundred small clips.
HOME_MIB, STORAGE_MIB = 512, 128
#: Work is handed in while fewer rows than this have not ended.
LEAST_OPEN = 8
#: So many deaths end a row that kills its renderers.
DEATHS = 3
#: What may be done again after a fault: since the last checkpoint that was written, and while one is being written.
MOST_REPEATED = 2 * EVERY


@dataclass
class FaultDone:
    """One kind of fault of a run, and what came of it."""

    times: int = 0
    seconds: float = 0.0
    #: Rows lost or published twice that ran last while it was done, and steps that were done again after it.
    lost: int = 0
    twice: int = 0
    repeated: int = 0


@dataclass
class Verdict:
    """What has to hold after a run, with the places where it does not."""

    seed: int
    store: str
    most_repeated: int = MOST_REPEATED
    #: By name.
    faults: dict[str, FaultDone] = field(default_factory=dict)
    rows: int = 0
    attempts: dict[str, int] = field(default_factory=dict)
    restarts: int = 0
    #: Steps done, and steps done again.
    steps: int = 0
    repeated: int = 0
    seconds: float = 0.0
    #: What does not hold, a line each.
    broken: list[str] = field(default_factory=list)
    #: When each fault began, in seconds since the epoch, and its name.
    history: list[tuple[float, str]] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many faults were done."""
        return sum(done.times for done in self.faults.values())

    def note(self, name: str, began: float, seconds: float) -> None:
        """A fault was done."""
        done = self.faults.setdefault(name, FaultDone())
        done.times, done.seconds = done.times + 1, done.seconds + seconds
        self.history.append((began, name))

    def after(self, at: float | None) -> FaultDone:
        """The fault that something at that time, in seconds since the epoch, came of: the last that had begun."""
        name = next((name for began, name in reversed(self.history) if at is not None and int(began) <= at), "none")
        return self.faults.setdefault(name, FaultDone())

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        shown = {k: v for k, v in vars(self).items() if k != "history"}
        return {**shown, "faults": {name: vars(done) for name, done in sorted(self.faults.items())}}


class PoisonRows(threading.Thread):
    """What a poison row does to whatever renders it, done for it: signal 9 once its first step is through."""

    def __init__(self, farm: FarmUnderFire, batch_id: str) -> None:
        super().__init__(name="poison", daemon=True)
        self._farm, self._batch_id = farm, batch_id
        self._over = threading.Event()

    def run(self) -> None:
        """Until `stop`."""
        killed: set[str] = set()
        while not self._over.wait(0.2):
            with contextlib.suppress(Exception):
                for attempt in self._farm.running(self._batch_id):
                    if attempt.id in killed or attempt.step <= attempt.resumed_step:
                        continue
                    if pid := self._farm.pid_of(attempt.renderer):
                        killed.add(attempt.id)
                        os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        """Let the rows be."""
        self._over.set()
        self.join()


@contextlib.contextmanager
def small_disk(folder: Path, mib: int) -> Iterator[bool]:
    """A disk of its own at `folder`, which can be full or read-only; False where only root could make it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=0700", "tmpfs", str(folder)]
    made = os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield made
    finally:
        if made:
            subprocess.run(["umount", "-l", str(folder)], capture_output=True)


def play(
    folder: Path,
    *,
    seed: int,
    count: int,
    database_url: str | None = None,
    kinds: Sequence[str] | None = None,
    most_repeated: int = MOST_REPEATED,
    say: Any = print,
) -> Verdict:
    """Do `count` faults drawn by `seed` to a farm in `folder`; `say` gets a line for each.

    `kinds`: those, in this order, instead. `most_repeated`: steps that may be done again after one end of an attempt.
    """
    rng = random.Random(seed)
    store = "postgresql" if database_url else "sqlite"
    verdict = Verdict(seed=seed, store=store, most_repeated=most_repeated)
    began = time.monotonic()
    home = folder / "home"
    with small_disk(home, HOME_MIB) as mounted, small_disk(home / "storage", STORAGE_MIB):
        fitting = [
            fault
            for fault in FAULTS
            if fault.sqlite in (None, database_url is None) and (mounted or not fault.needs_mount)
        ]
        farm = FarmUnderFire(folder, database_url)
        try:
            chosen = [fault for name in kinds for fault in fitting if fault.name == name] if kinds else None
            _under_fire(farm, rng, chosen or draw(fitting, rng, count), fitting, verdict, say)
        finally:
            farm.close()
            verdict.seconds, verdict.restarts = round(time.monotonic() - began, 1), farm.starts - 1
            if verdict.broken:
                # What tells why is on a disk that goes with this process.
                subprocess.run(["cp", "-r", str(home), str(folder / "kept-home")], capture_output=True)
    return verdict


def draw(fitting: Sequence[Fault], rng: random.Random, count: int) -> list[Fault]:
    """`count` faults in the order to do them: every kind once where there is room, the rest by their weights."""
    middle = [fault for fault in fitting if fault.middle]
    drawn = [fault for fault in fitting if not fault.middle]
    room = max(0, count - len(middle))
    rng.shuffle(drawn)
    chosen = drawn[:room]
    chosen += rng.choices(drawn, [fault.weight for fault in drawn], k=room - len(chosen))
    rng.shuffle(chosen)
    return [*chosen[: len(chosen) // 2], *middle[:count], *chosen[len(chosen) // 2 :]]


def _under_fire(
    farm: FarmUnderFire, rng: random.Random, faults: list[Fault], fitting: list[Fault], verdict: Verdict, say: Any
) -> None:
    farm.start()
    poisoned = {
        # Of kinds of their own: breakers that they open keep no innocent row from a card.
        "after a step": farm.submit(
            "poison", 1, first_seed=1_000_000, steps=20_000, resolution_class=ResolutionClass.P512
        ),
        "while encoded": farm.submit(
            "poison while encoded",
            2,
            first_seed=1_100_000,
            steps=5,
            fps=POISON_FPS,
            resolution_class=ResolutionClass.P768,
        ),
    }
    poison = PoisonRows(farm, poisoned["after a step"])
    poison.start()
    for number, drawn in enumerate(faults, 1):
        fault = drawn
        _see_to_work(farm, rng, list(poisoned.values()))
        while not _done(farm, fault, rng, number, verdict, say):
            say(f"{number:3} {fault.name}: nothing to do it to")
            farm.revive()
            others = [other for other in fitting if not other.middle and other.weight > 1]
            fault = rng.choices(others, [other.weight for other in others])[0]
    _settle(farm, [*farm.batches, *farm.manifests, *farm.doomed, *poisoned.values()], verdict)
    poison.stop()
    verdict.broken += farm.broken
    _judge(farm, verdict)
    _judge_batches_apart(farm, poisoned, verdict)


def _done(farm: FarmUnderFire, fault: Fault, rng: random.Random, number: int, verdict: Verdict, say: Any) -> bool:
    time.sleep(rng.uniform(0.1, 2))
    at, began = time.time(), time.monotonic()
    try:
        if not fault.do(farm, rng):
            return False
        again = farm.revive()
    except Exception as error:
        # The rest of the run tells more than its end would.
        verdict.broken.append(f"{fault.name}: {type(error).__name__}: {error}")
        again = farm.revive()
    seconds = time.monotonic() - began
    verdict.note(fault.name, at, seconds)
    say(f"{number:3} {fault.name} ({seconds:.1f} s{', started again' if again else ''})")
    return True


def _see_to_work(farm: FarmUnderFire, rng: random.Random, poisoned: list[str]) -> None:
    """There is work, and some of it runs: what is done to a farm at rest shows little."""
    farm.revive()
    left = sum(1 for batch_id in farm.batches for job in farm.jobs(batch_id) if not job.state.final)
    if left < LEAST_OPEN:
        family, steps = rng.choice([("i2vgen-xl-tiny", 40), ("i2vgen-xl-tiny", 8), ("camera", 1)])
        seed = 1000 * (len(farm.batches) + 1)
        farm.batches.append(farm.submit(f"{family} × {steps}", 10, first_seed=seed, steps=steps, family=family))
    farm.until(lambda: farm.revive() or farm.running(*farm.batches, *poisoned), "a row that runs")
    # Renderers that die faster than clips are done open breakers, and then nothing runs for a quarter of an hour.
    farm.until(lambda: farm.revive() or farm.deaths_in_a_row() < 2, "a success between deaths")


def _settle(farm: FarmUnderFire, batches: list[str], verdict: Verdict) -> None:
    """Wait until everything has ended, all faults being over; for as long as anything gets on."""
    seen: object = None
    deadline = 0.0
    while time.monotonic() < deadline or seen is None:
        farm.revive()
        if all(farm.batch(batch_id).done for batch_id in batches):
            return
        now = [(one.id, one.step, one.outcome) for batch_id in batches for one in farm.attempts(batch_id)]
        if now != seen:
            seen, deadline = now, time.monotonic() + PATIENCE_S
        time.sleep(0.5)
    for batch_id in batches:
        states = Counter(job.state.value for job in farm.jobs(batch_id) if not job.state.final)
        if states:
            verdict.broken.append(f"{PATIENCE_S:.0f} s nothing got on without faults, {batch_id} has {dict(states)}")


def _judge(farm: FarmUnderFire, verdict: Verdict) -> None:
    """The innocent rows, and the audit of the whole store."""
    seen: Counter[str] = Counter()
    for batch_id in farm.batches:
        attempts: dict[str, list[Attempt]] = defaultdict(list)
        for attempt in farm.attempts(batch_id):
            attempts[attempt.job_id].append(attempt)
            seen[attempt.outcome.value if attempt.outcome else "open"] += 1
        clips = farm.batch_store.clips_of(OWNER, batch_id)
        for job in farm.jobs(batch_id):
            verdict.rows += 1
            _judge_row(farm, job, attempts[job.id], clips, verdict)
            _judge_steps(farm, job, attempts[job.id], verdict)
    verdict.attempts = dict(sorted(seen.items()))
    if seen["open"]:
        verdict.broken.append(f"{seen['open']} attempts never ended")
    for invariant in check(farm.database, farm.storage):
        verdict.broken.append(f"{invariant.says}: {'; '.join(finding_lines(invariant.findings))}")


def _judge_row(farm: FarmUnderFire, job: Job, attempts: list[Attempt], clips: dict[str, Any], verdict: Verdict) -> None:
    where = f"row {job.id} ({job.state.value})"
    came_of = verdict.after(max((one.ended_at or 0 for one in attempts), default=None))
    clip = clips.get(str(job.clip_id))
    if job.state is not JobState.COMPLETED:
        came_of.lost += 1
        story = [problem.message for problem in job.problems]
        verdict.broken.append(f"{where}: innocent, and {job.reason}: {story}")
    elif clip is None or not farm.storage.exists(clip.objects.video):
        came_of.lost += 1
        verdict.broken.append(f"{where} is lost: its clip is not there")
    published = sum(attempt.outcome is Outcome.COMPLETED for attempt in attempts)
    if published > 1:
        came_of.twice += 1
        verdict.broken.append(f"{where} was published {published} times")


def _judge_steps(farm: FarmUnderFire, job: Job, attempts: list[Attempt], verdict: Verdict) -> None:
    """Steps that the attempts did, and those that each of them did again, as far as was told of them."""
    verdict.steps += sum(max(0, one.step - one.resumed_step) for one in attempts)
    reached, ended_at = 0, None
    for attempt in attempts:
        again = max(0, reached - attempt.resumed_step)
        if again:
            verdict.repeated += again
            verdict.after(ended_at).repeated += again
        if again > verdict.most_repeated and job.id not in farm.damaged:
            verdict.broken.append(f"row {job.id}: {again} steps were done again by {attempt.id}")
        reached, ended_at = max(reached, attempt.step), attempt.ended_at


def _judge_batches_apart(farm: FarmUnderFire, poisoned: dict[str, str], verdict: Verdict) -> None:
    """Rows that kill their renderers, rows whose still is gone, and manifests of one content."""
    for when, batch_id in poisoned.items():
        attempts = farm.attempts(batch_id)
        for job in farm.jobs(batch_id):
            own = Counter(one.outcome for one in attempts if one.job_id == job.id)
            # An encoder that a fault killed costs an attempt as well.
            deaths, failed = own[Outcome.CRASHED], own[Outcome.CRASHED] + own[Outcome.ERROR]
            story = " ".join(problem.message for problem in job.problems)
            if (job.state, job.reason, failed) != (JobState.FAILED, "crashed", DEATHS):
                verdict.broken.append(
                    f"row {job.id}, poison {when}, is {job.state.value} ({job.reason}) after {deaths} deaths"
                )
            elif f"died {deaths} times" not in story:
                verdict.broken.append(f"row {job.id}, poison {when}, does not tell its story: {story}")
    for batch_id in farm.doomed:
        for job in farm.jobs(batch_id):
            if job.state is not JobState.FAILED or not job.problems:
                verdict.broken.append(f"row {job.id}, whose still is gone, is {job.state.value}: {job.problems}")
    for batch_id in farm.manifests:
        states = Counter(job.state for job in farm.jobs(batch_id))
        if states != {JobState.COMPLETED: MANIFEST_ROWS}:
            verdict.broken.append(f"of {MANIFEST_ROWS} rows of manifest {batch_id} are {dict(states)}")
