"""A clip that stops on one renderer goes on with another, and is the clip it would have been."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cluster.jobs.model import Attempt, Clip, Job, JobState, Outcome
from cluster.storage import Storage
from cluster.store import BatchStore, Database
from pipeline.clips.clip import Sampler, content_key
from pipeline.memory.footprint import footprint
from tests.building import draft, spec, still_png

pytestmark = pytest.mark.farm

LIMIT_S = 150
#: Many: a clip must still be under way when a test that saw it at `SEEN` has made itself heard.
STEPS = 150
SEEN = 30
EVERY = 5
CARDS = ("emulated-c8-0", "emulated-c8-1")


class ResumeFarm:
    """The process of `farm_process.py` with two emulated cards, and the farm's store beside it."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.log = folder / "farm.log"
        home = folder / "home"
        self.database = Database.in_folder(home)
        self.batch_store, self.storage = BatchStore(self.database), Storage(home / "storage")
        self.still = self.storage.put_still(still_png())
        table = {"replicas": 2, "num_gpus": 0, "num_cpus": 0, "resources": {"card-c8": 1}, "cards": CARDS}
        args = {
            "card_classes": {"c8": table},
            "emulate": True,
            "home": str(home),
            "gateway": False,
            "checkpoint_steps": EVERY,
            **settings,
        }
        env = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "CLIPMILL_"))}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("farm_process.py")), json.dumps(args)],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log.open("w"),
            text=True,
            start_new_session=True,
        )
        assert self._read() == {"ready": True}
        # A clip that comes before both are heard goes to whichever is.
        self.until(lambda: len({beat.card for beat in self.batch_store.cards()}) == len(CARDS), "both cards")

    def tell(self, line: str) -> dict[str, Any]:
        """One command, one answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        while not (line := self.process.stdout.readline()).startswith("{"):
            assert line, self.log.read_text()[-3000:]
        return json.loads(line)

    def submit(self, owner: str = "local", family: str = "i2vgen-xl-tiny", **changes: Any) -> str:
        """Hand one clip in; returns the batch's id."""
        values = {"width": 256, "height": 256, "frames": 8, "steps": STEPS, "guidance": 9.0, "sampler": Sampler.UNIPC}
        clip = spec(family, **(values | changes))
        row = draft(
            1,
            content_key(self.still, clip),
            still=self.still,
            spec=clip,
            needs_bytes=footprint(clip).peak_bytes,
        )
        batch_id, _ = self.batch_store.open_batch(owner, name="clip")
        self.batch_store.add(owner, batch_id, [row])
        self.batch_store.seal(owner, batch_id)
        return batch_id

    def job(self, batch_id: str, owner: str = "local") -> Job:
        """The batch's one job."""
        [job] = self.batch_store.jobs(owner, batch_id)
        return job

    def attempts(self, batch_id: str) -> list[Attempt]:
        """Its attempts, oldest first."""
        return self.batch_store.attempts_of("local", batch_id)

    def running(self, batch_id: str) -> Attempt:
        """Wait until the clip runs; returns its attempt."""
        self.until(lambda: any(attempt.outcome is None for attempt in self.attempts(batch_id)), "its start")
        return self.attempts(batch_id)[-1]

    def reaches(self, batch_id: str, step: int) -> Attempt:
        """Wait until the running clip was saved at `step` or later; returns its attempt."""
        attempt = self.running(batch_id)
        # The store is told once a second; the object is there at once.
        place = f"checkpoints/{attempt.job_id}/{attempt.id}"
        saved = partial(self.storage.names_under, place)
        self.until(lambda: any(int(name) >= step for name in saved() if name.isdigit()), f"step {step}")
        return attempt

    def clip(self, batch_id: str, owner: str = "local") -> Clip:
        """Wait until it is rendered."""
        self.until(lambda: self.job(batch_id, owner).state.final, f"the end of {batch_id}")
        job = self.job(batch_id, owner)
        assert job.state is JobState.COMPLETED, job
        return self.batch_store.clips_of(owner, batch_id)[str(job.clip_id)]

    def until(self, met: Callable[[], object], what: str) -> None:
        """Wait for something that only the store tells of."""
        deadline = time.monotonic() + LIMIT_S
        while not met():
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < deadline, f"{what} never happened"
            time.sleep(0.02)

    def close(self) -> None:
        """End the farm: its own way first, then by its process group."""
        try:
            self.process.communicate("stop\n", timeout=30)
        except (subprocess.TimeoutExpired, ValueError, OSError):
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.database.close()


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ResumeFarm]:
    """One farm for this module."""
    made = ResumeFarm(tmp_path_factory.mktemp("resume"))
    yield made
    made.close()


def check_resumed(farm: ResumeFarm, batch_id: str, outcome: Outcome) -> None:
    """Another renderer went on from the first one's checkpoint, and the provenance says so."""
    first, second = farm.attempts(batch_id)
    assert first.outcome is outcome
    assert second.outcome is Outcome.COMPLETED
    assert first.renderer != second.renderer
    assert second.resumed_from == first.id
    assert second.resumed_step >= SEEN - EVERY
    objects = farm.clip(batch_id).objects
    provenance = json.loads(farm.storage.get_bytes(objects.provenance))
    [stretch] = provenance["resumed"]
    assert (stretch["attempt"], stretch["step"], stretch["card"]) == (first.id, second.resumed_step, first.card)
    assert stretch["made"]["layout"] == provenance["layout"]
    job_id = farm.job(batch_id).id
    farm.until(lambda: job_id not in farm.storage.names_under("checkpoints"), "deleting its checkpoints")


def test_a_clip_that_is_preempted_goes_on_where_it_stopped(farm: ResumeFarm) -> None:
    blocker = farm.submit(steps=1000, seed=1)
    farm.until(lambda: farm.attempts(blocker), "the first clip's start")
    assert farm.attempts(blocker)[0].card == CARDS[0]
    batch_id = farm.submit()
    first = farm.reaches(batch_id, EVERY)
    # The other card is made free: of two alike, placement takes the one whose name comes first.
    assert first.card == CARDS[1]
    farm.batch_store.cancel("local", blocker)
    farm.until(lambda: farm.job(blocker).state.final, "the end of the first clip")
    farm.reaches(batch_id, SEEN)
    assert farm.tell(f"preempt {farm.job(batch_id).id}") == {"told": True}
    farm.until(lambda: len(farm.attempts(batch_id)) == 2, "the second attempt")
    reference = farm.submit("reference")
    clip = farm.clip(batch_id)
    check_resumed(farm, batch_id, Outcome.STOPPED)
    # It was saved at the very step it stopped at.
    assert farm.attempts(batch_id)[1].resumed_step >= SEEN
    job = farm.job(batch_id)
    assert (job.attempts, job.releases) == (1, 1)
    assert clip.objects.frames_sha256 == farm.clip(reference, "reference").objects.frames_sha256


def test_a_clip_whose_renderer_is_killed_goes_on_with_another(farm: ResumeFarm) -> None:
    reference = farm.submit("reference", seed=2)
    batch_id = farm.submit(seed=2)
    first = farm.reaches(batch_id, EVERY)
    pid = farm.tell(f"pid c8 {first.renderer}")["pid"]
    farm.reaches(batch_id, SEEN)
    os.kill(pid, signal.SIGKILL)
    clip = farm.clip(batch_id)
    check_resumed(farm, batch_id, Outcome.CRASHED)
    job = farm.job(batch_id)
    assert (job.attempts, job.releases) == (2, 0)
    assert clip.objects.frames_sha256 == farm.clip(reference, "reference").objects.frames_sha256


def test_a_row_that_kills_whatever_renders_it_ends_after_three_deaths(farm: ResumeFarm) -> None:
    """What the row does, the test does for it: whoever renders it gets signal 9 after a few steps."""
    batch_id = farm.submit(steps=20_000, seed=3)
    renderers: list[str] = []

    def died() -> list[Attempt]:
        return [attempt for attempt in farm.attempts(batch_id) if attempt.outcome is Outcome.CRASHED]

    while len(renderers) < 3:
        attempt = farm.running(batch_id)
        farm.reaches(batch_id, attempt.resumed_step + EVERY)
        # As its heartbeat says: whoever looks into the logs finds the process by it.
        [pid] = [beat.pid for beat in farm.batch_store.cards() if beat.renderer == attempt.renderer]
        os.kill(pid, signal.SIGKILL)
        renderers.append(attempt.renderer)
        farm.until(lambda: len(died()) == len(renderers), f"death {len(renderers)}")
    farm.until(lambda: farm.job(batch_id).state.final, "the row's end")
    job = farm.job(batch_id)
    assert (job.state, job.reason, job.attempts, job.releases) == (JobState.FAILED, "crashed", 3, 0)
    assert len(set(renderers)) == 3
    (problem,) = job.problems
    assert "died 3 times" in problem.message
    assert all(f"renderer {renderer} on card" in problem.message for renderer in renderers)
    assert "in denoising, step" in problem.message


def test_a_renderer_whose_thread_never_lets_go_of_its_card_is_replaced(tmp_path: Path) -> None:
    """The still lies on a disk that does not answer: reading it never ends, and no thread can be ended from outside."""
    farm = ResumeFarm(tmp_path, stall_s=10)
    try:
        # While this test holds a lease on the file, whoever opens it waits: up to 45 s, as the kernel is set up.
        held = os.open(tmp_path / "home" / "storage" / Storage.still_key(farm.still), os.O_RDWR)
        # It is told that somebody waits, by a signal that is ignored unless one asks for it.
        fcntl.fcntl(held, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        # A family that is loaded in no time: on a slow machine loading the other takes longer than the patience here.
        batch_id = farm.submit(family="camera", steps=1, guidance=1.0, sampler=None)
        farm.until(lambda: farm.attempts(batch_id), "its start")
        first = farm.attempts(batch_id)[0]
        pid = farm.tell(f"pid c8 {first.renderer}")["pid"]
        farm.until(lambda: farm.attempts(batch_id)[0].outcome, "the end of its patience")
        farm.until(lambda: not Path(f"/proc/{pid}").exists(), "the end of the process")
        # Whoever comes from now on, at the latest a third attempt, finds the file.
        os.close(held)
        farm.clip(batch_id)
        *before, _ = farm.attempts(batch_id)
        assert before[0].outcome is Outcome.CRASHED
        assert "hangs" in before[0].detail
        # The second may have been on its way to the process that was about to end.
        assert {attempt.outcome for attempt in before} <= {Outcome.CRASHED, Outcome.LOST}
        farm.until(lambda: len({beat.card for beat in farm.batch_store.cards()}) == 2, "its successor")
    finally:
        farm.close()
