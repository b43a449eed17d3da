"""Checkpoints of the real worker with the small network: saved, gone on from, refused. Nothing sleeps."""

from __future__ import annotations

import json
import threading
from dataclasses import replace

import pytest
import torch

from cluster.cards import GIB
from cluster.jobs import Checkpoint, Outcome, checkpoint_key
from cluster.renderers import Assignment, CardFree, CheckpointFailed, CheckpointSaved, Event, StepDone
from cluster.storage import Storage, StorageShelf
from cluster.store import Stretch
from pipeline.clip import Sampler
from pipeline.models.devices import HostDevice
from pipeline.models.i2vgen_xl import I2VGenXL
from serve.cards import LazyDevice
from serve.checkpoints import CheckpointEvery, Keeper
from serve.flight import CardIdentity, Flight, WeightsPlace
from serve.worker import CARD_LOCK, Worker
from tests.building import spec, still_png

PATIENCE_S = 30
STEPS = 5
IDENTITY = CardIdentity(card="gpu0", card_class="c8", kind="test")
NEVER = CheckpointEvery(steps=10**6, seconds=1e9)


@pytest.fixture
def storage(tmp_path):
    return Storage(tmp_path / "storage")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small tensors gain nothing from more, and waiting threads take cores from other tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Where the small network's weights are made, once."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def make_worker(home, storage):
    made: list[Worker] = []

    def make(every: CheckpointEvery = NEVER) -> Worker:
        device = LazyDevice(8 * GIB, 7 * GIB, "cpu", HostDevice)
        weights = WeightsPlace(home=home, folders={}, offline=True)
        made.append(Worker(IDENTITY, device, storage, weights, every=every))
        return made[-1]

    yield make
    for worker in made:
        worker.close()
    assert not CARD_LOCK.locked()


@pytest.fixture
def fly(storage):
    """A flight of the small clip; what it says is kept in `said`."""
    still = storage.put_still(still_png())

    def make(attempt: str, resume: Checkpoint | None = None, **changes) -> Flight:
        values = {"width": 64, "height": 64, "frames": 2, "steps": STEPS, "guidance": 9.0, "sampler": Sampler.UNIPC}
        assignment = Assignment(
            attempt_id=attempt,
            job_id="video_1",
            renderer="r",
            card_class="c8",
            owner="local",
            still=still,
            spec=spec(changes.pop("family", "i2vgen-xl-tiny"), **(values | changes)),
            content_key="ke" * 32,
            row={"number": 1},
            resume=resume,
            done=(Stretch(step=resume.step, attempt="attempt_1", card="gpu9", card_class="c8"),) if resume else (),
        )
        return Flight(assignment, Said())

    return make


class Said(list[Event]):
    """What a flight said; `when` reacts in the thread that says it."""

    def __init__(self) -> None:
        super().__init__()
        self.changed = threading.Condition()
        self.when = lambda _event: None

    def __call__(self, event: Event) -> None:
        with self.changed:
            self.append(event)
            self.changed.notify_all()
        self.when(event)

    def wait(self, holds) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: holds(self), PATIENCE_S)

    @property
    def steps(self) -> list[int]:
        return [event.step for event in self if isinstance(event, StepDone)]

    @property
    def saved(self) -> list[Checkpoint]:
        return [event.checkpoint for event in self if isinstance(event, CheckpointSaved)]


def stopped_at(worker: Worker, flight: Flight, step: int) -> Checkpoint:
    """The checkpoint of a clip that was told to leave at `step`."""

    def tell(event: Event) -> None:
        if event == StepDone(step=step, steps=STEPS):
            flight.stop(checkpoint=True)

    flight.emit.when = tell
    ended = worker.run(flight)
    assert (ended.outcome, ended.detail) == (Outcome.STOPPED, "told to stop")
    assert ended.checkpoint is not None
    return ended.checkpoint


def frames_of(worker: Worker, flight: Flight) -> str:
    """Hash of the frames of a clip rendered to its end."""
    ended = worker.run(flight)
    assert (ended.outcome, ended.detail) == (Outcome.COMPLETED, "")
    return ended.objects.frames_sha256


def provenance(storage: Storage, flight: Flight) -> dict:
    key = f"clips/{flight.assignment.job_id}/{flight.assignment.attempt_id}/provenance.json"
    return json.loads(storage.get_bytes(key))


# -- the worker ------------------------------------------------------------------------------------------------


def test_every_few_steps_a_checkpoint_is_put_aside_that_the_clip_can_go_on_from(make_worker, fly, storage):
    worker = make_worker(CheckpointEvery(steps=2, seconds=1e9))
    made = fly("attempt_1")

    def wait_for_the_last(event: Event) -> None:
        # The renderer never waits for storage; the test does, so that none is left out.
        if isinstance(event, StepDone) and event.step % 2:
            made.emit.wait(lambda said: len(said.saved) == event.step // 2)

    made.emit.when = wait_for_the_last
    whole = frames_of(worker, made)
    assert made.emit.saved == [Checkpoint(f"checkpoints/video_1/attempt_1/{step}", step) for step in (2, 4)]
    for checkpoint in made.emit.saved:
        again = fly(f"attempt_after_{checkpoint.step}", checkpoint)
        assert frames_of(worker, again) == whole
        assert again.emit.steps == list(range(checkpoint.step, STEPS + 1)), "nothing is done twice"


def test_told_to_leave_it_is_saved_at_that_very_step_and_goes_on_elsewhere(make_worker, fly, storage):
    whole = frames_of(make_worker(), fly("attempt_0"))
    first = fly("attempt_1")
    checkpoint = stopped_at(make_worker(), first, 3)
    assert checkpoint == Checkpoint("checkpoints/video_1/attempt_1/3", 3)
    assert first.emit[-1] == CheckpointSaved(checkpoint)
    assert first.emit.steps == [0, 1, 2, 3], "within the step"
    assert storage.exists(checkpoint.key)

    second = fly("attempt_2", checkpoint)
    assert frames_of(make_worker(), second) == whole
    assert second.emit.steps == [3, 4, 5]
    [stretch] = provenance(storage, second)["resumed"]
    assert (stretch["step"], stretch["attempt"], stretch["card"]) == (3, "attempt_1", "gpu9")
    assert stretch["made"]["layout"] == provenance(storage, second)["layout"]
    assert "resumed" not in provenance(storage, fly("attempt_0"))


def test_told_to_stop_it_saves_nothing(make_worker, fly, storage):
    made = fly("attempt_1")
    made.emit.when = lambda event: made.stop() if event == StepDone(step=3, steps=STEPS) else None
    ended = make_worker().run(made)
    assert (ended.outcome, ended.checkpoint) == (Outcome.STOPPED, None)
    assert made.emit.steps == [0, 1, 2, 3]
    assert storage.names_under("checkpoints") == []


def test_told_to_leave_before_the_first_step_there_is_nothing_to_save(make_worker, fly):
    made = fly("attempt_1")
    made.stop(checkpoint=True)
    ended = make_worker().run(made)
    assert (ended.outcome, ended.checkpoint, list(made.emit)) == (Outcome.STOPPED, None, [])


def test_told_to_leave_when_its_frames_are_there_it_is_published(make_worker, fly):
    made = fly("attempt_1")
    made.emit.when = lambda event: made.stop(checkpoint=True) if isinstance(event, CardFree) else None
    frames_of(make_worker(), made)


def test_told_to_leave_a_clip_that_cannot_be_resumed_just_stops(make_worker, fly):
    made = fly("attempt_1", family="camera", frames=8, steps=1, guidance=1, sampler=None, width=256, height=256)
    made.emit.when = lambda event: made.stop(checkpoint=True) if event == StepDone(step=3, steps=8) else None
    ended = make_worker().run(made)
    assert (ended.outcome, ended.checkpoint) == (Outcome.STOPPED, None)
    assert made.emit.steps == [0, 1, 2, 3]


@pytest.mark.parametrize("fault", ["missing", "damaged", "another clip's"])
def test_a_checkpoint_that_cannot_be_used_is_told_and_the_clip_begins_anew(make_worker, fly, storage, fault):
    worker = make_worker()
    whole = frames_of(worker, fly("attempt_0"))
    checkpoint = stopped_at(worker, fly("attempt_1", seed=1), 3)
    if fault != "another clip's":
        storage.delete(checkpoint.key)
    if fault == "damaged":
        storage.put_bytes(checkpoint.key, b"half of it")
    second = fly("attempt_2", checkpoint)
    assert frames_of(worker, second) == whole
    # A missing one is known before the first report.
    assert second.emit.steps == ([] if fault == "missing" else [3]) + list(range(STEPS + 1))
    told = provenance(storage, second)
    assert "resumed" not in told
    expected = {"missing": "is not in", "damaged": "not a checkpoint", "another clip's": "another specification"}
    assert expected[fault] in told["resume_refused"]


def test_storage_that_takes_no_checkpoint_does_not_fail_the_clip(make_worker, fly, storage, tmp_path):
    (tmp_path / "storage" / "checkpoints").write_text("a file where the folder should be")
    made = fly("attempt_1")
    worker = make_worker(CheckpointEvery(steps=2, seconds=1e9))
    frames_of(worker, made)
    failed = [event for event in made.emit if isinstance(event, CheckpointFailed)]
    assert failed
    assert failed[0].step == 2
    assert "checkpoints/video_1/attempt_1/2" in failed[0].detail

    leaving = fly("attempt_2")
    leaving.emit.when = lambda event: leaving.stop(checkpoint=True) if event == StepDone(step=1, steps=STEPS) else None
    ended = make_worker().run(leaving)
    assert (ended.outcome, ended.checkpoint) == (Outcome.STOPPED, None)
    assert "the checkpoint is missing" in ended.detail


def test_a_decode_that_overflows_the_card_repeats_only_the_decode(make_worker, fly, storage, monkeypatch):
    worker = make_worker()
    whole = frames_of(worker, fly("attempt_0"))
    real = I2VGenXL.decode_chunks

    def overflow(*_args):
        raise torch.OutOfMemoryError("the card is full")

    monkeypatch.setattr(I2VGenXL, "decode_chunks", overflow)
    ended = worker.run(fly("attempt_1"))
    assert (ended.outcome, ended.stage) == (Outcome.OOM, "decode")
    assert ended.checkpoint == Checkpoint(checkpoint_key("video_1", "attempt_1", STEPS), STEPS)
    monkeypatch.setattr(I2VGenXL, "decode_chunks", real)
    second = fly("attempt_2", ended.checkpoint)
    assert frames_of(worker, second) == whole
    assert second.emit.steps == [STEPS]


def test_what_one_clip_encoded_serves_the_next_after_a_swap_and_in_another_process(make_worker, fly, storage):
    worker = make_worker()
    whole = frames_of(worker, fly("attempt_0"))
    misses = worker._cache.misses
    assert misses > 0
    frames_of(worker, fly("attempt_1", family="camera", steps=1, guidance=1, sampler=None, width=256, height=256))
    assert worker.family == "camera"
    assert frames_of(worker, fly("attempt_2")) == whole
    assert worker._cache.misses == misses
    other = make_worker()
    assert frames_of(other, fly("attempt_3")) == whole
    assert (other._cache.misses, other._cache.shelf_hits) == (0, misses)


def test_a_shelf_that_fails_is_a_miss(tmp_path):
    (tmp_path / "storage").mkdir()
    (tmp_path / "storage" / "cache").write_text("a file where the folder should be")
    shelf = StorageShelf(Storage(tmp_path / "storage"))
    shelf.put("text/abc", b"x")
    assert shelf.get("text/abc") is None
    assert shelf.get("no key at all/../x") is None


# -- the keeper ------------------------------------------------------------------------------------------------


class Ticking:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def keep(storage, fly):
    def make(**every) -> tuple[Keeper, Said, Ticking]:
        flight, clock = fly("attempt_1"), Ticking()
        keeper = Keeper(storage, flight.assignment, flight.emit, replace(NEVER, **every), clock)
        return keeper, flight.emit, clock

    return make


def test_a_slow_step_is_saved_by_time(keep):
    keeper, said, clock = keep(seconds=30)
    for step in range(1, 10):
        keeper.after_step(step, 100, lambda: b"x")
        keeper.close()
        clock.now += 12
    # From the end of the first step on: loading the model is nothing that could be lost.
    assert [checkpoint.step for checkpoint in said.saved] == [4, 7]


def test_steps_and_seconds_whichever_comes_first(keep):
    keeper, said, clock = keep(seconds=30, steps=4)
    for step, seconds in enumerate([1, 1, 1, 1, 40, 1, 1, 1, 1], start=1):
        clock.now += seconds
        keeper.after_step(step, 100, lambda: b"x")
        keeper.close()
    assert [checkpoint.step for checkpoint in said.saved] == [4, 5, 9]


def test_while_one_is_being_written_none_is_taken(keep):
    keeper, said, _ = keep(steps=1)
    go_on, taken = threading.Event(), []

    def take() -> bytes:
        taken.append(True)
        return b"x"

    # Said by the thread that writes, which stays at it until the test lets it go.
    said.when = lambda _event: go_on.wait(PATIENCE_S)
    keeper.after_step(1, 100, take)
    said.wait(lambda events: events.saved)
    keeper.after_step(2, 100, take)
    assert len(taken) == 1
    go_on.set()
    keeper.close()
    keeper.after_step(3, 100, take)
    keeper.close()
    assert [checkpoint.step for checkpoint in said.saved] == [1, 3]


def test_a_snapshot_that_cannot_be_taken_is_told(keep):
    keeper, said, _ = keep(steps=1)
    keeper.after_step(1, 100, lambda: 1 // 0)
    keeper.close()
    assert said == [CheckpointFailed(step=1, detail="ZeroDivisionError: integer division or modulo by zero")]
    keeper.after_step(2, 100, None)
    keeper.close()
    assert len(said) == 1
