"""Checkpoints of the real worker with the small network: saved, gone on from, refused. Nothing sleeps."""

from __future__ import annotations

import json
import threading
from dataclasses import replace

import pytest
import torch

from cluster.dispatch.protocol import Assignment, CardFree, CheckpointFailed, CheckpointSaved, Event, StepDone
from cluster.estimates.kernels import kernels_about, kernels_in_use
from cluster.jobs.model import Outcome, StoredCheckpoint, Stretch, checkpoint_key
from cluster.storage import Storage, StorageShelf
from cluster.store import measurements
from pipeline.clips.clip import Sampler
from pipeline.denoising.checkpoint import dump, parse
from pipeline.devices.emulated import HostDevice
from pipeline.kernels import choosing
from pipeline.kernels.kernels import KernelChoice, KernelCounts
from pipeline.models.i2vgen_xl import I2VGenXL
from pipeline.models.stages.kernels import DenoiserKernels
from pipeline.units import GIB
from serve.dispatcher.wire import event_from_wire, event_to_wire
from serve.renderer.active_clip import ActiveClip
from serve.renderer.cards import CardIdentity, LazyDevice
from serve.renderer.checkpoints import CheckpointEvery, CheckpointWriter
from serve.renderer.observer import NullObserver
from serve.renderer.warm_model import WeightsPlace
from serve.renderer.worker import CARD_LOCK, Worker
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
def make_clip(storage):
    """The small clip on its way; what it reports is kept in its `emit`."""
    still = storage.put_still(still_png())

    def make(attempt: str, resume: StoredCheckpoint | None = None, **changes) -> ActiveClip:
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
        return ActiveClip(assignment, Said())

    return make


class Said(list[Event]):
    """What a clip reported; `when` reacts in the thread that says it."""

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
    def saved(self) -> list[StoredCheckpoint]:
        return [event.checkpoint for event in self if isinstance(event, CheckpointSaved)]


def preempted_at(worker: Worker, clip: ActiveClip, step: int) -> StoredCheckpoint:
    """The checkpoint of a clip that was preempted at `step`."""

    def tell(event: Event) -> None:
        if event == StepDone(step=step, steps=STEPS):
            clip.preempt()

    clip.emit.when = tell
    ended = worker.run(clip)
    assert (ended.outcome, ended.detail) == (Outcome.STOPPED, "told to stop")
    assert ended.checkpoint is not None
    return ended.checkpoint


def frames_of(worker: Worker, clip: ActiveClip) -> str:
    """Hash of the frames of a clip rendered to its end."""
    ended = worker.run(clip)
    assert (ended.outcome, ended.detail) == (Outcome.COMPLETED, "")
    return ended.objects.frames_sha256


def provenance(storage: Storage, clip: ActiveClip) -> dict:
    key = f"clips/{clip.assignment.job_id}/{clip.assignment.attempt_id}/provenance.json"
    return json.loads(storage.get_bytes(key))


# -- the worker ------------------------------------------------------------------------------------------------


def test_every_few_steps_a_checkpoint_is_put_aside_that_the_clip_can_go_on_from(make_worker, make_clip, storage):
    worker = make_worker(CheckpointEvery(steps=2, seconds=1e9))
    made = make_clip("attempt_1")

    def wait_for_the_last(event: Event) -> None:
        # The renderer never waits for storage; the test does, so that none is left out.
        if isinstance(event, StepDone) and event.step % 2:
            made.emit.wait(lambda said: len(said.saved) == event.step // 2)

    made.emit.when = wait_for_the_last
    whole = frames_of(worker, made)
    assert made.emit.saved == [StoredCheckpoint(f"checkpoints/video_1/attempt_1/{step}", step) for step in (2, 4)]
    for checkpoint in made.emit.saved:
        again = make_clip(f"attempt_after_{checkpoint.step}", checkpoint)
        assert frames_of(worker, again) == whole
        assert again.emit.steps == list(range(checkpoint.step, STEPS + 1)), "nothing is done twice"


def test_preempted_it_is_saved_at_that_very_step_and_goes_on_elsewhere(make_worker, make_clip, storage):
    whole = frames_of(make_worker(), make_clip("attempt_0"))
    first = make_clip("attempt_1")
    checkpoint = preempted_at(make_worker(), first, 3)
    assert checkpoint == StoredCheckpoint("checkpoints/video_1/attempt_1/3", 3)
    assert first.emit[-1] == CheckpointSaved(checkpoint)
    assert first.emit.steps == [0, 1, 2, 3], "within the step"
    assert storage.exists(checkpoint.key)

    second = make_clip("attempt_2", checkpoint)
    assert frames_of(make_worker(), second) == whole
    assert second.emit.steps == [3, 4, 5]
    [stretch] = provenance(storage, second)["resumed"]
    assert (stretch["step"], stretch["attempt"], stretch["card"]) == (3, "attempt_1", "gpu9")
    assert stretch["made"]["layout"] == provenance(storage, second)["layout"]
    assert stretch["made"]["kernels"] == provenance(storage, second)["model"]["kernels"]
    assert stretch["equality"] == "bit-equal"
    assert "differs" not in stretch
    assert "resumed" not in provenance(storage, make_clip("attempt_0"))


@pytest.mark.parametrize(
    ("told", "differs"),
    [
        (None, "kernels: not told, then told"),
        ({"mode": "compiled"}, "kernels.mode: compiled, then eager"),
        ({"architecture": "sm90"}, "kernels.architecture: sm90, then "),
        # Another processor beside an equal card.
        (["0123456789abcdef"], "sampler_tables: 0123456789abcdef, then "),
    ],
)
def test_a_clip_that_goes_on_by_other_kernels_is_not_called_bit_equal(make_worker, make_clip, storage, told, differs):
    whole = frames_of(make_worker(), make_clip("attempt_0"))
    checkpoint = preempted_at(make_worker(), make_clip("attempt_1"), 3)
    found = parse(storage.get_bytes(checkpoint.key))
    made = dict(found.made)
    if told is None:
        # As a version before wrote it.
        del made["kernels"]
    elif isinstance(told, list):
        made["sampler_tables"] = told
    else:
        made["kernels"] = {**made["kernels"], **told}
    elsewhere = StoredCheckpoint("checkpoints/video_1/attempt_9/3", 3)
    storage.put_bytes(elsewhere.key, dump(replace(found, made=made)))
    second = make_clip("attempt_2", elsewhere)
    assert frames_of(make_worker(), second) == whole, "it goes on all the same"
    [stretch] = provenance(storage, second)["resumed"]
    assert stretch["equality"] == "equal to rounding"
    assert [text[: len(differs)] for text in stretch["differs"]] == [differs]


class CountedKernels(NullObserver):
    """Keeps what compiling came to, clip by clip."""

    def __init__(self) -> None:
        self.counts: list[KernelCounts] = []

    def kernels(self, spec, counts: KernelCounts) -> None:
        self.counts.append(counts)


def test_what_compiling_came_to_is_told_clip_by_clip(home, storage, make_clip, monkeypatch):
    # Captures graphs and runs them as they are: no compiler is needed.
    monkeypatch.setattr(DenoiserKernels, "backend", "eager")
    observer = CountedKernels()
    worker = Worker(
        IDENTITY,
        LazyDevice(8 * GIB, 7 * GIB, "cpu", lambda: HostDevice(counted=False)),
        storage,
        WeightsPlace(home=home, folders={}, offline=True),
        observer,
        kernels=KernelChoice.COMPILED,
    )
    clips = [make_clip(f"attempt_{number}", family="wan2.2-5b-tiny", frames=5, width=128, steps=3) for number in (1, 2)]
    for clip in clips:
        frames_of(worker, clip)
        assert provenance(storage, clip)["model"]["kernels"]["mode"] == "compiled"
    worker.close()
    first, second = observer.counts
    assert first.compiles > 0
    assert first.compile_seconds > 0
    assert second == KernelCounts(), "what is compiled serves the next clip"


def test_a_farm_that_leaves_it_open_measures_both_ways_and_its_next_renderer_knows(
    home, storage, make_clip, sqlite_database, monkeypatch
):
    """Renderers, store and what is told with a clip, one after the other; graphs run as they were captured."""
    monkeypatch.setattr(DenoiserKernels, "backend", "eager")
    # So short clips would pay for nothing that takes longer.
    monkeypatch.setattr(choosing, "COMPILE_S", 0.0)
    # A machine that does something else meanwhile ends no trial early.
    monkeypatch.setattr(choosing, "FAR_SLOWER", 1e9)
    shape = {"family": "wan2.2-5b-tiny", "frames": 5, "width": 128, "steps": 4}

    def renderer() -> Worker:
        return Worker(
            IDENTITY,
            LazyDevice(8 * GIB, 7 * GIB, "cpu", lambda: HostDevice(counted=False)),
            storage,
            WeightsPlace(home=home, folders={}, offline=True),
            kernels=KernelChoice.AUTO,
        )

    def rendered(worker: Worker, number: int) -> dict:
        """What the clip's provenance says of its kernels; what it measured goes the dispatcher's way."""
        clip = make_clip(f"attempt_{number}", **shape)
        told = kernels_about(measurements.load_times(sqlite_database), clip.spec, IDENTITY.kind)
        clip.assignment = clip.assignment.model_copy(update={"kernels": told})
        ended = event_from_wire(json.loads(json.dumps(event_to_wire(worker.run(clip)))))
        assert ended.outcome is Outcome.COMPLETED
        seen = measurements.observe(clip.spec, IDENTITY.kind, (), None, ended.kernel_runs)
        with sqlite_database.write() as c:
            measurements.record(sqlite_database, c, 0, seen)
        return provenance(storage, clip)["model"]["kernels"]

    first = renderer()
    found = [rendered(first, number) for number in range(5)]
    assert [one["mode"] for one in found[:4]] == ["eager", "eager", "compiled", "compiled"]
    reasons = [one["chosen_because"] for one in found]
    assert "measured first (0 of 2 clips)" in reasons[0]
    assert "compiled clip 1 of 2 to measure" in reasons[2]
    (known,) = kernels_in_use(measurements.load_times(sqlite_database))
    assert (known.kind, known.family, known.frames) == (IDENTITY.kind, shape["family"], 5)
    assert known.eager_clips + known.compiled_clips == 5
    assert f"{known.speedup:.2f}" in rendered(first, 5)["chosen_because"]
    first.close()
    second = renderer()
    assert "times the eager speed in" in rendered(second, 6)["chosen_because"], "it measures nothing of its own"
    second.close()


def test_told_to_stop_it_saves_nothing(make_worker, make_clip, storage):
    made = make_clip("attempt_1")
    made.emit.when = lambda event: made.stop() if event == StepDone(step=3, steps=STEPS) else None
    ended = make_worker().run(made)
    assert (ended.outcome, ended.checkpoint) == (Outcome.STOPPED, None)
    assert made.emit.steps == [0, 1, 2, 3]
    assert storage.names_under("checkpoints") == []


def test_preempted_before_the_first_step_there_is_nothing_to_save(make_worker, make_clip):
    made = make_clip("attempt_1")
    made.preempt()
    ended = make_worker().run(made)
    assert (ended.outcome, ended.checkpoint, list(made.emit)) == (Outcome.STOPPED, None, [])


def test_preempted_when_its_frames_are_there_it_is_published(make_worker, make_clip):
    made = make_clip("attempt_1")
    made.emit.when = lambda event: made.preempt() if isinstance(event, CardFree) else None
    frames_of(make_worker(), made)


def test_preempted_a_clip_that_cannot_be_resumed_just_stops(make_worker, make_clip):
    made = make_clip("attempt_1", family="camera", frames=8, steps=1, guidance=1, sampler=None, width=256, height=256)
    made.emit.when = lambda event: made.preempt() if event == StepDone(step=3, steps=8) else None
    ended = make_worker().run(made)
    assert (ended.outcome, ended.checkpoint) == (Outcome.STOPPED, None)
    assert made.emit.steps == [0, 1, 2, 3]


@pytest.mark.parametrize("fault", ["missing", "damaged", "another clip's"])
def test_a_checkpoint_that_cannot_be_used_is_told_and_the_clip_begins_anew(make_worker, make_clip, storage, fault):
    worker = make_worker()
    whole = frames_of(worker, make_clip("attempt_0"))
    checkpoint = preempted_at(worker, make_clip("attempt_1", seed=1), 3)
    if fault != "another clip's":
        storage.delete(checkpoint.key)
    if fault == "damaged":
        storage.put_bytes(checkpoint.key, b"half of it")
    second = make_clip("attempt_2", checkpoint)
    assert frames_of(worker, second) == whole
    # A missing one is known before the first report.
    assert second.emit.steps == ([] if fault == "missing" else [3]) + list(range(STEPS + 1))
    told = provenance(storage, second)
    assert "resumed" not in told
    expected = {"missing": "is not in", "damaged": "not a checkpoint", "another clip's": "another specification"}
    assert expected[fault] in told["resume_refused"]


def test_storage_that_takes_no_checkpoint_does_not_fail_the_clip(make_worker, make_clip, storage, tmp_path):
    (tmp_path / "storage" / "checkpoints").write_text("a file where the folder should be")
    made = make_clip("attempt_1")
    worker = make_worker(CheckpointEvery(steps=2, seconds=1e9))
    frames_of(worker, made)
    failed = [event for event in made.emit if isinstance(event, CheckpointFailed)]
    assert failed
    assert failed[0].step == 2
    assert "checkpoints/video_1/attempt_1/2" in failed[0].detail

    preempted = make_clip("attempt_2")
    preempted.emit.when = lambda event: preempted.preempt() if event == StepDone(step=1, steps=STEPS) else None
    ended = make_worker().run(preempted)
    assert (ended.outcome, ended.checkpoint) == (Outcome.STOPPED, None)
    assert "the checkpoint is missing" in ended.detail


def test_a_decode_that_overflows_the_card_repeats_only_the_decode(make_worker, make_clip, storage, monkeypatch):
    worker = make_worker()
    whole = frames_of(worker, make_clip("attempt_0"))
    real = I2VGenXL.decode_chunks

    def overflow(*_args):
        raise torch.OutOfMemoryError("the card is full")

    monkeypatch.setattr(I2VGenXL, "decode_chunks", overflow)
    ended = worker.run(make_clip("attempt_1"))
    assert (ended.outcome, ended.stage) == (Outcome.OOM, "decode")
    assert ended.checkpoint == StoredCheckpoint(checkpoint_key("video_1", "attempt_1", STEPS), STEPS)
    monkeypatch.setattr(I2VGenXL, "decode_chunks", real)
    second = make_clip("attempt_2", ended.checkpoint)
    assert frames_of(worker, second) == whole
    assert second.emit.steps == [STEPS]


def test_what_one_clip_encoded_serves_the_next_after_a_swap_and_in_another_process(make_worker, make_clip, storage):
    worker = make_worker()
    whole = frames_of(worker, make_clip("attempt_0"))
    misses = worker.model.cache.misses
    assert misses > 0
    frames_of(worker, make_clip("attempt_1", family="camera", steps=1, guidance=1, sampler=None, width=256, height=256))
    assert worker.family == "camera"
    assert frames_of(worker, make_clip("attempt_2")) == whole
    assert worker.model.cache.misses == misses
    other = make_worker()
    assert frames_of(other, make_clip("attempt_3")) == whole
    assert (other.model.cache.misses, other.model.cache.shelf_hits) == (0, misses)


def test_a_shelf_that_fails_is_a_miss(tmp_path):
    (tmp_path / "storage").mkdir()
    (tmp_path / "storage" / "cache").write_text("a file where the folder should be")
    shelf = StorageShelf(Storage(tmp_path / "storage"))
    shelf.put("text/abc", b"x")
    assert shelf.get("text/abc") is None
    assert shelf.get("no key at all/../x") is None


# -- the writer of checkpoints ----------------------------------------------------------------------------------


class Ticking:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def make_writer(storage, make_clip):
    def make(**every) -> tuple[CheckpointWriter, Said, Ticking]:
        clip, clock = make_clip("attempt_1"), Ticking()
        writer = CheckpointWriter(storage, clip.assignment, clip.emit, replace(NEVER, **every), clock)
        return writer, clip.emit, clock

    return make


def test_a_slow_step_is_saved_by_time(make_writer):
    writer, said, clock = make_writer(seconds=30)
    for step in range(1, 10):
        writer.after_step(step, 100, lambda: b"x")
        writer.close()
        clock.now += 12
    # From the end of the first step on: loading the model is nothing that could be lost.
    assert [checkpoint.step for checkpoint in said.saved] == [4, 7]


def test_steps_and_seconds_whichever_comes_first(make_writer):
    writer, said, clock = make_writer(seconds=30, steps=4)
    for step, seconds in enumerate([1, 1, 1, 1, 40, 1, 1, 1, 1], start=1):
        clock.now += seconds
        writer.after_step(step, 100, lambda: b"x")
        writer.close()
    assert [checkpoint.step for checkpoint in said.saved] == [4, 5, 9]


def test_while_one_is_being_written_none_is_taken(make_writer):
    writer, said, _ = make_writer(steps=1)
    go_on, taken = threading.Event(), []

    def take() -> bytes:
        taken.append(True)
        return b"x"

    # Said by the thread that writes, which stays at it until the test lets it go.
    said.when = lambda _event: go_on.wait(PATIENCE_S)
    writer.after_step(1, 100, take)
    said.wait(lambda events: events.saved)
    writer.after_step(2, 100, take)
    assert len(taken) == 1
    go_on.set()
    writer.close()
    writer.after_step(3, 100, take)
    writer.close()
    assert [checkpoint.step for checkpoint in said.saved] == [1, 3]


def test_a_snapshot_that_cannot_be_taken_is_told(make_writer):
    writer, said, _ = make_writer(steps=1)
    writer.after_step(1, 100, lambda: 1 // 0)
    writer.close()
    assert said == [CheckpointFailed(step=1, detail="ZeroDivisionError: integer division or modulo by zero")]
    writer.after_step(2, 100, None)
    writer.close()
    assert len(said) == 1
