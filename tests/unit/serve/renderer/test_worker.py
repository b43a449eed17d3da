"""The real worker with the camera model. Threads meet at events; nothing sleeps."""

from __future__ import annotations

import hashlib
import io
import json
import re
import threading
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from cluster.dispatch.protocol import Assignment, CardFree, Event, StepDone
from cluster.jobs.model import Outcome
from cluster.jobs.outcomes import Ended
from cluster.storage import Storage
from pipeline.kernels.kernels import KernelCounts
from pipeline.problems import BadInputError
from pipeline.units import GIB
from pipeline.weights.weights import WeightsError
from serve.renderer import publish, rendering, warm_model
from serve.renderer.active_clip import ActiveClip
from serve.renderer.cards import CardIdentity, LazyDevice
from serve.renderer.faults import is_out_of_memory
from serve.renderer.warm_model import WeightsPlace
from serve.renderer.worker import CARD_LOCK, Worker
from tests.building import spec, still_png
from tests.quota import quota_storage, set_room

PATIENCE_S = 30
IDENTITY = CardIdentity(card="gpu0", card_class="c8", kind="test")


class NeverOpened:
    """Opening the card's torch side costs seconds: the camera must not, not even when it is closed."""

    def __init__(self) -> None:
        self.opened = False

    def __call__(self):
        self.opened = True
        raise AssertionError("the card's torch side was opened")


@pytest.fixture
def storage(tmp_path):
    return Storage(tmp_path / "storage")


@pytest.fixture
def make_worker(tmp_path, storage):
    def make(usable_bytes: int = 7 * GIB) -> Worker:
        device = LazyDevice(8 * GIB, usable_bytes, "cpu", never)
        weights = WeightsPlace(home=tmp_path, folders={}, offline=True)
        return Worker(IDENTITY, device, storage, weights)

    never = NeverOpened()
    yield make
    assert not never.opened


@pytest.fixture
def worker(make_worker):
    worker = make_worker()
    yield worker
    worker.close()
    assert not CARD_LOCK.locked()


class Events(list[Event]):
    """What a clip reported, with something to wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.changed = threading.Condition()

    def __call__(self, event: Event) -> None:
        with self.changed:
            self.append(event)
            self.changed.notify_all()

    def wait(self, holds) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: holds(self), PATIENCE_S)


def active_clip(still: str, attempt: str = "attempt_1", **changes) -> ActiveClip:
    assignment = Assignment(
        attempt_id=attempt,
        job_id="video_1",
        renderer="r",
        card_class="c8",
        owner="local",
        still=still,
        spec=changes.pop("made", None) or spec(**changes),
        content_key="ke" * 32,
        row={"number": 1},
    )
    return ActiveClip(assignment, Events())


def test_a_still_that_takes_too_much_to_open_is_opened_in_another_process_alone(worker, storage, monkeypatch):
    """Whoever handed it in, and whatever that version took."""
    monkeypatch.setattr("pipeline.clips.still_check.MEMORY_BYTES", 0)
    monkeypatch.setattr("pipeline.clips.still_check._BASE_BYTES", 2**20)
    ended = worker.run(active_clip(storage.put_still(still_png((3200, 2400)))))
    assert ended.outcome is Outcome.INVALID
    assert re.search(r"takes more than \d+ MiB to open", ended.problem.message)
    monkeypatch.undo()
    assert worker.run(active_clip(storage.put_still(still_png()), "attempt_2")).outcome is Outcome.COMPLETED


def test_an_object_that_stands_where_the_still_was_is_not_taken_into_memory(worker, storage, tmp_path):
    still = storage.put_still(still_png())
    with (Path(storage.url) / storage.still_key(still)).open("r+b") as file:
        file.truncate(2**40)
    ended = worker.run(active_clip(still))
    assert ended.outcome is Outcome.ERROR
    assert "is not what was stored" in ended.problem.message


def test_a_blurred_still_is_noted_with_its_clip(worker, storage):
    out = io.BytesIO()
    with Image.open(io.BytesIO(still_png())) as small:
        small.resize((1024, 1024)).save(out, "PNG")
    ended = worker.run(active_clip(storage.put_still(out.getvalue())))
    assert ended.outcome is Outcome.COMPLETED
    assert [note.code for note in ended.notes if note.code.startswith("still_")] == ["still_blurred"]


def test_a_clip_lies_in_storage_decodable_with_its_provenance(worker, storage, tmp_path):
    still = storage.put_still(still_png())
    made = active_clip(still, frames=6, fps=12)
    ended = worker.run(made)
    assert (ended.outcome, ended.detail) == (Outcome.COMPLETED, "")
    keys = (ended.objects.video, ended.objects.poster, ended.objects.spritesheet, ended.objects.provenance)
    for key in keys:
        # Under the attempt: a zombie overwrites nothing.
        assert key.startswith("clips/video_1/attempt_1/")

    video = tmp_path / "video.mp4"
    storage.get_to(ended.objects.video, video)
    assert ended.objects.video_bytes == video.stat().st_size
    reader = imageio_ffmpeg.read_frames(str(video))
    meta = next(reader)
    frames = list(reader)
    assert (meta["size"], meta["fps"], len(frames)) == ((256, 256), 12, 6)
    assert np.frombuffer(frames[0], np.uint8).std() > 10

    poster = Image.open(io.BytesIO(storage.get_bytes(ended.objects.poster)))
    assert poster.size == (256, 256)
    Image.open(io.BytesIO(storage.get_bytes(ended.objects.spritesheet))).verify()

    provenance = json.loads(storage.get_bytes(ended.objects.provenance))
    assert provenance["spec"] == made.assignment.spec.model_dump(mode="json")
    assert provenance["still_sha256"] == hashlib.sha256(still_png()).hexdigest()
    assert (provenance["content_key"], provenance["attempt"]) == ("ke" * 32, "attempt_1")
    assert provenance["card"]["card"] == "gpu0"
    assert provenance["family"]["name"] == "camera"
    assert provenance["frames_sha256"] == ended.objects.frames_sha256

    steps = [e.step for e in made.emit if isinstance(e, StepDone)]
    assert steps[0] == 0, "the weights are there"
    assert steps[1:] == [1, 2, 3, 4, 5, 6]
    assert isinstance(made.emit[-1], CardFree), "the card is given back before the clip is encoded"


def test_the_same_clip_twice_is_the_same_clip(worker, storage):
    still = storage.put_still(still_png())
    first, second = worker.run(active_clip(still, "attempt_1")), worker.run(active_clip(still, "attempt_2"))
    assert first.objects.frames_sha256 == second.objects.frames_sha256
    assert first.objects.video != second.objects.video
    assert storage.get_bytes(first.objects.video) == storage.get_bytes(second.objects.video)


def test_told_to_stop_it_stops_within_a_step(worker, storage):
    made = active_clip(storage.put_still(still_png()), frames=50)
    said = made.emit

    def stop_at_three(event: Event) -> None:
        said(event)
        if event == StepDone(step=3, steps=50):
            made.stop()

    made.emit = stop_at_three
    ended = worker.run(made)
    assert ended.outcome is Outcome.STOPPED
    assert said[-1] == StepDone(step=3, steps=50)
    assert not CARD_LOCK.locked()
    assert worker.run(active_clip(made.assignment.still)).outcome is Outcome.COMPLETED


def test_told_to_stop_before_it_began_it_never_begins(worker, storage):
    made = active_clip(storage.put_still(still_png()))
    made.stop()
    assert worker.run(made).outcome is Outcome.STOPPED
    assert made.emit == []


def test_told_to_stop_while_waiting_for_the_card_it_stops(worker, storage):
    made = active_clip(storage.put_still(still_png()))
    with CARD_LOCK:
        ended: list[Ended] = []
        thread = threading.Thread(target=lambda: ended.append(worker.run(made)))
        thread.start()
        made.stop()
        thread.join(PATIENCE_S)
    assert ended[0].outcome is Outcome.STOPPED


def test_told_to_stop_while_publishing_it_publishes_nothing(worker, storage):
    made = active_clip(storage.put_still(still_png()))
    said = made.emit

    def stop_when_free(event: Event) -> None:
        said(event)
        if isinstance(event, CardFree):
            made.stop()

    made.emit = stop_when_free
    assert worker.run(made).outcome is Outcome.STOPPED
    assert not storage.exists("clips/video_1/attempt_1/video.mp4")
    assert worker.run(active_clip(made.assignment.still)).outcome is Outcome.COMPLETED


class Watching:
    """An observer, and a clock that goes on by a second more at every look."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, float]] = []
        self.peaks: list[tuple[int, int]] = []
        self.looks = 0

    def clock(self) -> float:
        self.looks += 1
        return self.looks * (self.looks + 1) / 2

    def step(self, spec, seconds: float) -> None:
        self.steps.append((spec.family, seconds))

    def checkpoint(self, spec, nbytes: int) -> None:
        pass

    def kernels(self, spec, counts) -> None:
        assert counts == KernelCounts(), "camera compiles nothing"

    def memory(self, spec, predicted_bytes: int, measured_bytes: int) -> None:
        self.peaks.append((predicted_bytes, measured_bytes))


def test_steps_after_the_first_are_timed(make_worker, storage, tmp_path):
    watching, plain = Watching(), make_worker()
    weights = WeightsPlace(home=tmp_path, folders={}, offline=True)
    timed = Worker(IDENTITY, plain.device, storage, weights, watching, watching.clock)
    made = active_clip(storage.put_still(still_png()), frames=5)
    ended = timed.run(made)
    assert ended.outcome is Outcome.COMPLETED
    # Seconds 1, 3, 6, 10, 15: the first look only starts the watch.
    assert watching.steps == [("camera", 2), ("camera", 3), ("camera", 4), ("camera", 5)]
    assert watching.peaks == [(ended.predicted_bytes, ended.measured_bytes)]


def test_a_clip_too_big_for_the_card_is_refused_in_numbers(make_worker, storage):
    small = make_worker(100 * 2**20)
    large_clip = spec("i2vgen-xl", width=1024, height=1024, frames=16)
    made = active_clip(storage.put_still(still_png()), made=large_clip)
    ended = small.run(made)
    assert ended.outcome is Outcome.TOO_BIG
    assert ended.usable_bytes == 100 * 2**20
    # Weights streamed: 0.37 GiB of them at a time, the activations of 16 frames in the leanest: 2.48 GiB, and 40 bytes
    # a pixel and frame for the workspace of its largest convolution.
    assert ended.predicted_bytes == pytest.approx((0.37 + 2.48 + 0.625) * GIB, rel=0.02)
    assert "1024×1024 × 16 frames" in ended.detail
    assert "100 MiB" in ended.detail
    assert made.emit == [], "nothing was loaded"
    assert not CARD_LOCK.locked()


@pytest.mark.parametrize("data", [b"", b"no picture at all", still_png()[:200]])
def test_a_bad_still_is_the_row_s_fault(worker, storage, data):
    ended = worker.run(active_clip(storage.put_still(data)))
    assert ended.outcome is Outcome.INVALID
    assert ended.problem.field == "image"
    assert ended.problem.remedy


def test_a_missing_still_says_what_to_do(worker):
    ended = worker.run(active_clip("ab" * 32))
    assert ended.outcome is Outcome.INVALID
    assert ended.problem.field == "image"
    assert "ab" * 32 in ended.problem.message
    assert "Submit the manifest again" in ended.problem.remedy
    assert "submit" not in ended.problem.message, "what to do is said once"


def test_missing_weights_say_what_to_do(worker, storage, monkeypatch):
    def load_model(*_args, **_options):
        raise WeightsError("The weights are not there", "/models/x", "Fetch them first.")

    monkeypatch.setattr(warm_model, "load_model", load_model)
    ended = worker.run(active_clip(storage.put_still(still_png((3200, 2400)))))
    assert ended.outcome is Outcome.INVALID
    assert (ended.problem.field, ended.problem.remedy) == ("model", "Fetch them first.")
    assert "/models/x" in ended.problem.message
    assert not CARD_LOCK.locked()


@pytest.fixture
def renders(monkeypatch):
    """Every render waits at a gate of its own; how many are inside is counted."""

    class Renders:
        def __init__(self) -> None:
            self.inside, self.most = 0, 0
            self.failing: Exception | None = None
            self.real = rendering.render_frames

        def __call__(self, *args):
            assert not CARD_LOCK.acquire(blocking=False), "it renders without the card"
            self.inside += 1
            self.most = max(self.most, self.inside)
            try:
                if self.failing:
                    raise self.failing
                return self.real(*args)
            finally:
                self.inside -= 1

    renders = Renders()
    monkeypatch.setattr(rendering, "render_frames", renders)
    return renders


def test_one_renders_while_another_is_published_and_never_two(worker, storage, renders, monkeypatch):
    still = storage.put_still(still_png())
    first, second, third = (active_clip(still, f"attempt_{n}") for n in (1, 2, 3))
    publishing, go_on = threading.Event(), threading.Event()
    at_once = {"now": 0, "most": 0}
    real = publish.write_clip

    def write_clip(*args):
        at_once["now"] += 1
        at_once["most"] = max(at_once.values())
        publishing.set()
        assert go_on.wait(PATIENCE_S)
        try:
            return real(*args)
        finally:
            at_once["now"] -= 1

    monkeypatch.setattr(publish, "write_clip", write_clip)
    ended: dict[str, Ended] = {}
    threads = [
        threading.Thread(target=lambda f=f: ended.update({f.assignment.attempt_id: worker.run(f)}))
        for f in (first, second, third)
    ]
    threads[0].start()
    assert publishing.wait(PATIENCE_S)
    threads[1].start()
    # The second renders all its frames while the first is still being encoded.
    second.emit.wait(lambda events: StepDone(step=8, steps=8) in events)
    assert ended == {}
    threads[2].start()
    assert third.emit == [], "the third waits for the card: frames of two clips beside it would fill the memory"
    go_on.set()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert {e.outcome for e in ended.values()} == {Outcome.COMPLETED}
    assert renders.most == 1
    assert at_once["most"] == 1


def test_a_render_that_raises_is_an_error_with_its_place(worker, storage, renders):
    renders.failing = ZeroDivisionError("division by zero")
    ended = worker.run(active_clip(storage.put_still(still_png())))
    assert ended.outcome is Outcome.ERROR
    assert "ZeroDivisionError: division by zero (test_worker.py:" in ended.detail
    renders.failing = BadInputError("prompt", "too long", "Shorten it.")
    assert worker.run(active_clip(storage.put_still(still_png()))).problem.remedy == "Shorten it."
    renders.failing = None
    assert worker.run(active_clip(storage.put_still(still_png()))).outcome is Outcome.COMPLETED


class OutOfMemoryError(RuntimeError):
    """Named as torch's: it is known by its name, so that torch need not be loaded to look for it."""


@pytest.mark.parametrize("error", [OutOfMemoryError("8 GiB"), RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")])
def test_out_of_memory_is_told_with_stage_and_numbers(worker, storage, renders, error):
    renders.failing = error
    ended = worker.run(active_clip(storage.put_still(still_png())))
    assert (ended.outcome, ended.stage, ended.usable_bytes) == (Outcome.OOM, "encode", 7 * GIB)
    assert "gpu0" in ended.detail
    renders.failing = None
    assert worker.run(active_clip(storage.put_still(still_png()))).outcome is Outcome.COMPLETED


def test_what_is_out_of_memory_and_what_is_not():
    assert not is_out_of_memory(ValueError("CUBLAS_STATUS_ALLOC_FAILED"))
    assert not is_out_of_memory(RuntimeError("CUBLAS_STATUS_NOT_INITIALIZED"))
    assert not is_out_of_memory(MemoryError())


# -- storage that cannot be written ------------------------------------------------------------------------------


@pytest.fixture
def quota(make_worker, tmp_path):
    """A worker whose storage has a quota, and that storage."""
    made = make_worker()
    full = quota_storage()
    worker = Worker(IDENTITY, made.device, full, made.model._weights)
    yield worker, full
    set_room(2**40)
    worker.close()


def test_finished_frames_wait_for_storage_and_are_published_by_the_same_attempt(quota):
    worker, storage = quota
    made = active_clip(storage.put_still(still_png()))
    asked = threading.Event()
    failed = worker.storage_health.failed

    def told(error):
        failed(error)
        asked.set()

    worker.storage_health.failed = told
    set_room(0)
    found: list[Ended] = []
    thread = threading.Thread(target=lambda: found.append(worker.run(made)))
    thread.start()
    assert asked.wait(PATIENCE_S)
    assert "no space is left" in worker.storage_health.fault
    assert any(isinstance(event, CardFree) for event in made.emit), "the card takes the next clip meanwhile"
    set_room(2**40)
    thread.join(PATIENCE_S)
    assert found[0].outcome is Outcome.COMPLETED
    assert storage.exists(found[0].objects.video)
    worker.storage_health._probing and worker.storage_health._probing.join(PATIENCE_S)
    assert (worker.storage_health.fault, worker.waiting_for) == ("", "")


def test_a_clip_that_is_preempted_while_it_waits_for_storage_lays_it_to_that(quota):
    worker, storage = quota
    made = active_clip(storage.put_still(still_png()))
    worker.storage_health.failed = lambda _error: made.preempt()
    set_room(0)
    ended = worker.run(made)
    assert (ended.outcome, ended.storage) == (Outcome.ERROR, True)
    assert ended.problem.field == "storage"


def test_what_is_judged_of_a_clip_goes_with_its_completion(worker, storage):
    white = io.BytesIO()
    Image.new("RGB", (160, 120), "white").save(white, "PNG")
    ended = worker.run(active_clip(storage.put_still(white.getvalue())))
    assert [note.code for note in ended.notes] == ["still_uniform", "uniform", "no_motion"]
    told = json.loads(storage.get_bytes(ended.objects.provenance))
    assert [note["code"] for note in told["notes"]] == ["still_uniform", "uniform", "no_motion"]
    # It has detail up to its edges, none of which the camera may cut; of its frames nothing is judged.
    busy = worker.run(active_clip(storage.put_still(still_png())))
    assert [note.code for note in busy.notes] == ["move_shortened"]
