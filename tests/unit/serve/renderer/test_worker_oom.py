"""The real worker on emulated cards that are smaller than they say, or shrink under the clip. Nothing sleeps."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
import torch

from cluster.dispatch.protocol import Assignment, Event, StepDone
from cluster.estimates.memory import MemoryFactors, layout_key
from cluster.jobs.model import Outcome, StoredCheckpoint, Stretch
from cluster.jobs.outcomes import Ended
from cluster.storage import Storage
from pipeline.clips.clip import Sampler
from pipeline.devices.emulated import EmulatedDevice
from pipeline.families import Stage, family_named
from pipeline.families.layouts import RESIDENT, Layout
from pipeline.memory.footprint import footprint, leaner, memory_model, tiled, tiles
from serve.dispatcher.wire import ACCEPTED, event_from_wire
from serve.renderer.active_clip import ActiveClip
from serve.renderer.admission import MemoryWait
from serve.renderer.cards import CardIdentity
from serve.renderer.checkpoints import CheckpointEvery
from serve.renderer.faults import is_out_of_memory, is_sticky
from serve.renderer.warm_model import WeightsPlace
from serve.renderer.worker import CARD_LOCK, Worker
from tests.building import spec, still_png

STEPS = 5
#: Bytes of all networks of the small model on a card, and of those that denoising needs.
MODEL = memory_model(family_named("i2vgen-xl-tiny"))
WEIGHTS = MODEL.weights_bytes
WITHOUT_ENCODERS = WEIGHTS - MODEL.weights[Stage.ENCODE]
#: A step of 4 frames of 64² takes 0.56 MB besides with guidance batched and 0.28 MB split; decoding takes 0.33 MB.
BETWEEN = 450_000
LARGE = 2 * WEIGHTS
CLIP = spec("i2vgen-xl-tiny", width=64, height=64, frames=4, steps=STEPS, guidance=9.0, sampler=Sampler.UNIPC)
SPLIT = Layout(split_guidance=True)
ILLEGAL = "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be reported later."


class Boastful(EmulatedDevice):
    """A card that says everything is usable that it was made with, whatever became of it."""

    def usable_bytes(self) -> int:
        return LARGE

    def leave(self, count: int) -> None:
        """Let a clip have `count` bytes in all from here on."""
        self.foreign_bytes = self.total_bytes - count


class Said(list[Event]):
    """What a clip reported; `when` reacts in the thread that says it."""

    def __init__(self) -> None:
        super().__init__()
        self.when: Callable[[Event], None] = lambda _event: None

    def __call__(self, event: Event) -> None:
        self.append(event)
        self.when(event)

    @property
    def steps(self) -> list[int]:
        return [event.step for event in self if isinstance(event, StepDone)]


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
def storage(tmp_path):
    return Storage(tmp_path / "storage")


@pytest.fixture
def make_worker(home, storage):
    made: list[Worker] = []

    def make(
        device: EmulatedDevice, memory_wait: MemoryWait | None = None, clock: Callable[[], float] = time.monotonic
    ) -> Worker:
        identity = CardIdentity(card="gpu0", card_class="c8", kind="test")
        weights = WeightsPlace(home=home, folders={}, offline=True)
        every = CheckpointEvery(steps=2, seconds=1e9)
        made.append(Worker(identity, device, storage, weights, clock=clock, every=every, memory_wait=memory_wait))
        return made[-1]

    yield make
    for worker in made:
        worker.close()
    assert not CARD_LOCK.locked()


@pytest.fixture
def make_clip(storage):
    still = storage.put_still(still_png())

    def make(attempt: str = "attempt_1", resume: StoredCheckpoint | None = None) -> ActiveClip:
        assignment = Assignment(
            attempt_id=attempt,
            job_id="video_1",
            renderer="r",
            card_class="c8",
            owner="local",
            still=still,
            spec=CLIP,
            content_key="ke" * 32,
            row={"number": 1},
            resume=resume,
            done=(Stretch(step=resume.step, attempt="attempt_1", card="gpu9", card_class="c8"),) if resume else (),
        )
        return ActiveClip(assignment, Said())

    return make


def at_step(step: int, act: Callable[[], object]) -> Callable[[Event], None]:
    """Reacts to the first report of `step` only."""
    left = [step]

    def react(event: Event) -> None:
        if isinstance(event, StepDone) and left == [event.step]:
            left.clear()
            act()

    return react


def provenance(storage: Storage, ended: Ended) -> dict:
    return json.loads(storage.get_bytes(ended.objects.provenance))


@pytest.fixture
def whole(make_worker, make_clip):
    """Frames of the clip on a card with room for it, in any layout."""

    def frames_sha256(layout: Layout) -> str:
        worker = make_worker(EmulatedDevice(2**40))
        worker.admission.plan = lambda clip, usable: (layout, footprint(CLIP, layout), 0)
        ended = worker.run(make_clip("reference"))
        assert (ended.outcome, ended.overflows) == (Outcome.COMPLETED, ())
        return ended.objects.frames_sha256

    return frames_sha256


def test_a_clip_that_overflows_its_card_is_rendered_in_a_leaner_layout(make_worker, make_clip, storage, whole):
    device = Boastful(LARGE)
    worker, made = make_worker(device), make_clip()
    # What prompt and still are encoded to is kept, so that denoising is what takes most.
    assert worker.run(make_clip("attempt_0")).overflows == ()
    device.leave(WEIGHTS + BETWEEN)
    ended = worker.run(made)
    assert (ended.outcome, ended.detail) == (Outcome.COMPLETED, "")
    assert ended.objects.frames_sha256 == whole(SPLIT)
    assert made.emit.steps == [0, 0, 1, 2, 3, 4, 5], "the first step did not fit, all others did"
    (overflow,) = ended.overflows
    assert (overflow.stage, overflow.layout, overflow.step, overflow.card) == ("denoise", str(RESIDENT), 0, "gpu0")
    assert overflow.predicted_bytes == footprint(CLIP).peak_bytes
    assert WEIGHTS < overflow.measured_bytes <= WEIGHTS + BETWEEN
    told = provenance(storage, ended)
    assert [entry["layout"] for entry in told["escalated"]] == [str(RESIDENT)]
    assert told["layout"] == SPLIT.model_dump(mode="json")
    assert told["memory"]["predicted_bytes"] == footprint(CLIP, SPLIT).peak_bytes
    assert [(peak.layout, peak.out_of_memory) for peak in ended.peaks] == [(RESIDENT, True), (SPLIT, False)]


def test_memory_lost_between_two_steps_repeats_the_steps_since_the_last_snapshot(make_worker, make_clip):
    device = Boastful(LARGE)
    made = make_clip()
    made.emit.when = at_step(3, lambda: device.leave(WEIGHTS + BETWEEN))
    ended = make_worker(device).run(made)
    assert ended.outcome is Outcome.COMPLETED
    assert made.emit.steps == [0, 1, 2, 3, 2, 3, 4, 5]
    assert [(o.stage, o.step) for o in ended.overflows] == [("denoise", 3)]


def test_a_decode_that_overflows_repeats_only_the_decode(make_worker, make_clip, storage, whole):
    device = Boastful(LARGE)
    made = make_clip()
    made.emit.when = at_step(STEPS, lambda: device.leave(WEIGHTS + 200_000))
    ended = make_worker(device).run(made)
    assert (ended.outcome, ended.detail) == (Outcome.COMPLETED, "")
    assert made.emit.steps == [0, 1, 2, 3, 4, 5, 5], "no step is done twice"
    assert [(o.stage, o.step) for o in ended.overflows] == [("decode", STEPS)]
    assert ended.objects.frames_sha256 == whole(RESIDENT), "the encoders took no part in it"
    told = provenance(storage, ended)
    assert told["layout"] == Layout(evict_encoders=True).model_dump(mode="json")


def test_where_no_layout_is_left_it_ends_with_its_history_and_a_checkpoint(make_worker, make_clip, storage, whole):
    device = Boastful(LARGE)
    worker, made = make_worker(device), make_clip()
    made.emit.when = at_step(3, lambda: device.leave(WITHOUT_ENCODERS + 150_000))
    ended = worker.run(made)
    assert (ended.outcome, ended.stage, ended.sticky) == (Outcome.OOM, "denoise", False)
    evicted = Layout(split_guidance=True, evict_encoders=True)
    assert [(o.stage, o.step, o.layout) for o in ended.overflows] == [
        ("denoise", 3, str(RESIDENT)),
        # The encoders alone are more than there is.
        ("encode", 2, str(SPLIT)),
        ("denoise", 2, str(evicted)),
    ]
    assert "out of memory in denoise" in ended.detail
    assert ended.checkpoint.step == 2
    # All that the tries took is off the card, and it renders the next clip.
    assert WITHOUT_ENCODERS <= device.used_bytes() < WITHOUT_ENCODERS + 1000
    device.leave(LARGE)
    again = worker.run(make_clip("attempt_2", ended.checkpoint))
    assert (again.outcome, again.overflows) == (Outcome.COMPLETED, ())
    assert again.objects.frames_sha256 == whole(RESIDENT)


def test_after_an_overflow_it_goes_by_what_was_learned(make_worker, make_clip):
    """The next layout fits as predicted, and was seen to take more: the one after it is tried instead."""
    device = Boastful(LARGE)
    worker, made = make_worker(device), make_clip()
    usable = footprint(CLIP, SPLIT).denoise_bytes + 1000
    worker.device.usable_bytes = lambda: usable
    evicted = Layout(split_guidance=True, evict_encoders=True)
    assert worker.fallback.next_layout(made, RESIDENT, "denoise")[0] == SPLIT
    worse = made.assignment.model_copy(update={"lessons": MemoryFactors(factors={layout_key(SPLIT): 1.5})})
    assert worker.fallback.next_layout(ActiveClip(worse, Said()), RESIDENT, "denoise")[0] == evicted
    # What was learned refuses nothing: where no layout fits by it, the leanest that should fit is tried.
    all_worse = MemoryFactors(factors={layout_key(each): 1000.0 for each in (SPLIT, evicted)})
    worst = made.assignment.model_copy(update={"lessons": all_worse})
    assert worker.fallback.next_layout(ActiveClip(worst, Said()), RESIDENT, "denoise")[0] == evicted


def test_a_decode_too_large_for_the_card_is_done_in_tiles(home, storage):
    """The frame is larger than a tile, and the card smaller than its decode: nothing else of the farm's is asked."""
    family = family_named("svd-xt-tiny")
    clip = spec(family.name, width=1024, height=512, frames=2, steps=1, guidance=3.0, fps=7, sampler=Sampler.EULER)
    base = family.layouts[0]
    alone = base.model_copy(update={"evict_encoders": True, "evict_denoiser": True})
    large, small = (tiled(alone, tile) for tile in tiles(family))
    peak = footprint(clip, large).decode_bytes
    assert footprint(clip, alone).decode_bytes > 1.1 * peak > footprint(clip, small).decode_bytes
    device = EmulatedDevice(2**40)
    worker = Worker(
        CardIdentity(card="gpu0", card_class="c8", kind="test"),
        device,
        storage,
        WeightsPlace(home=home, folders={}, offline=True),
        every=CheckpointEvery(steps=1, seconds=1e9),
    )
    assignment = Assignment(
        attempt_id="attempt_1",
        job_id="video_1",
        renderer="r",
        card_class="c8",
        owner="local",
        still=storage.put_still(still_png()),
        spec=clip,
        content_key="ke" * 32,
        row={"number": 1},
        resume=None,
        done=(),
    )
    made = ActiveClip(assignment, Said())
    # The clip is on the card when others take all but what the tiles need.
    made.emit.when = at_step(1, lambda: setattr(device, "foreign_bytes", device.total_bytes - round(1.06 * peak)))
    device.usable_bytes = lambda: device.total_bytes - device.foreign_bytes
    try:
        ended = worker.run(made)
    finally:
        worker.close()
    assert (ended.outcome, ended.detail) == (Outcome.COMPLETED, "")
    assert {o.stage for o in ended.overflows} == {"decode"}
    told = provenance(storage, ended)
    assert told["layout"] == large.model_dump(mode="json")
    assert ended.measured_bytes <= 1.05 * peak


def test_a_process_that_keeps_memory_is_replaced(make_worker, make_clip):
    device = Boastful(LARGE)
    worker, made, leak = make_worker(device), make_clip(), []
    made.emit.when = at_step(2, lambda: (leak.append(torch.ones(2**20)), device.leave(WEIGHTS + 2**22 + 100_000)))
    ended = worker.run(made)
    assert (ended.outcome, ended.sticky) == (Outcome.OOM, True)
    kept = re.search(r"; (\d+) bytes of it are not released", ended.detail)
    # The first clip of a process makes some tensors of a few bytes that last as long as it does.
    assert kept is not None
    assert 2**22 <= int(kept[1]) < 2**22 + 1000
    assert len(ended.overflows) == 1, "nothing more is tried in a process that leaks"
    assert ended.checkpoint.step == 2
    assert worker.run(make_clip("attempt_2")).outcome is Outcome.LOST


def test_a_broken_card_is_reported_with_the_snapshot_and_left(make_worker, make_clip, whole):
    def break_card() -> None:
        raise RuntimeError(ILLEGAL)

    worker, made = make_worker(EmulatedDevice(LARGE)), make_clip()
    made.emit.when = at_step(3, break_card)
    ended = worker.run(made)
    assert (ended.outcome, ended.sticky, ended.checkpoint.step) == (Outcome.ERROR, True, 2)
    assert "illegal memory access" in ended.detail
    refused = worker.run(make_clip("attempt_2"))
    assert (refused.outcome, refused.sticky) == (Outcome.LOST, False)

    made = make_clip("attempt_3", ended.checkpoint)
    ended = make_worker(EmulatedDevice(LARGE)).run(made)
    assert made.emit.steps == [2, 3, 4, 5]
    assert ended.objects.frames_sha256 == whole(RESIDENT)


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_clip_waits_for_what_other_programs_took_in_the_middle_of_it(make_worker, make_clip, whole, comes_back):
    device, now = EmulatedDevice(LARGE), [0.0]

    def pause(_clip: ActiveClip, seconds: float) -> None:
        now[0] += seconds
        if comes_back:
            device.foreign_bytes = 0

    wait = MemoryWait(patience_s=3, poll_s=1, pause=pause)
    worker, made = make_worker(device, wait, lambda: now[0]), make_clip()
    made.emit.when = at_step(3, lambda: setattr(device, "foreign_bytes", LARGE - 1000))
    ended = worker.run(made)
    assert [o.step for o in ended.overflows] == [3]
    if comes_back:
        assert ended.outcome is Outcome.COMPLETED
        assert ended.objects.frames_sha256 == whole(RESIDENT)
    else:
        assert (ended.outcome, ended.foreign_bytes, now) == (Outcome.OOM, LARGE - 1000, [3.0])
        assert ended.checkpoint.step == 2


RENDERER = """
import asyncio, json, sys
from pathlib import Path
from cluster.storage import Storage
from serve.renderer.cards import CardIdentity, LazyDevice
from serve.renderer.deployment import Renderer
from serve.renderer.heartbeat import Heartbeat
from serve.renderer.warm_model import WeightsPlace
from serve.renderer.worker import Worker

class Broken(Storage):
    def get_still(self, sha256):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

async def main(home, assignment):
    renderer = Renderer.__new__(Renderer)
    renderer._clips = {}
    device = LazyDevice(2**30, 2**30, "cpu", None)
    weights = WeightsPlace(home=home, folders={}, offline=True)
    identity = CardIdentity(card="gpu0", card_class="c8", kind="test")
    renderer._worker = Worker(identity, device, Broken(home / "storage"), weights)
    renderer._heartbeat = Heartbeat("r", renderer._worker, None, renderer._clips, stall_s=60)
    async for message in renderer.run(assignment, want="r"):
        print(json.dumps(message), flush=True)
    print(renderer._heartbeat._state().value, flush=True)
    await asyncio.Event().wait()

asyncio.run(main(Path(sys.argv[1]), json.loads(sys.argv[2])))
"""


def test_a_renderer_whose_card_is_broken_says_so_and_exits(make_clip, tmp_path):
    assignment = make_clip().assignment.model_dump_json()
    command = [sys.executable, "-c", RENDERER, str(tmp_path), assignment]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    accepted, ended, state = done.stdout.splitlines()
    assert json.loads(accepted) == ACCEPTED
    told = event_from_wire(json.loads(ended))
    assert (told.outcome, told.sticky) == (Outcome.ERROR, True)
    assert (state, done.returncode) == ("draining", 1)


def test_preempted_while_out_of_memory_it_ends_with_its_snapshot(make_worker, make_clip):
    device, made = Boastful(LARGE), make_clip()

    made.emit.when = at_step(3, lambda: device.leave(WEIGHTS + BETWEEN))
    worker = make_worker(device)
    found = worker.fallback.next_layout
    # The word arrives while the next layout is looked for.
    worker.fallback.next_layout = lambda *args: (made.preempt(), found(*args))[1]
    ended = worker.run(made)
    assert (ended.outcome, ended.checkpoint.step) == (Outcome.STOPPED, 2)
    assert made.emit.steps == [0, 1, 2, 3]


# -- layouts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["i2vgen-xl", "i2vgen-xl-tiny", "svd-xt", "wan2.2-5b", "camera"])
@pytest.mark.parametrize("stage", list(Stage))
def test_ever_leaner_layouts_change_one_stage_take_less_of_it_and_end(name, stage):
    family = family_named(name)
    other = {
        Stage.ENCODE: {
            "split_guidance",
            "chunk_feed_forward",
            "decode_frames",
            "decode_tile",
            "evict_denoiser",
            "decode_half",
        },
        Stage.DENOISE: {"decode_frames", "decode_tile", "evict_denoiser", "decode_half"},
        Stage.DECODE: {"split_guidance", "chunk_feed_forward", "stream_weights"},
    }[stage]
    frames = 17 if name.startswith("wan") else 16
    # Larger than any tile.
    clip = spec(name, width=1024, height=1024, frames=frames, guidance=5)
    layout, seen = family.layouts[0], []
    while (following := leaner(layout, stage, family)) is not None:
        assert following.model_dump(include=other) == layout.model_dump(include=other)
        assert footprint(clip, following).stages[stage] < footprint(clip, layout).stages[stage]
        seen.append(layout := following)
        assert len(seen) <= 8, "this never ends"
    assert bool(seen) == (name != "camera")


def test_the_cheapest_switches_come_first():
    family, layout, seen = family_named("i2vgen-xl"), RESIDENT, []
    while (layout := leaner(layout, Stage.DENOISE, family)) is not None:
        seen.append(layout)
    assert seen[:3] == [
        Layout(split_guidance=True),
        Layout(split_guidance=True, chunk_feed_forward=8),
        Layout(split_guidance=True, chunk_feed_forward=8, evict_encoders=True),
    ]
    svd, layout, seen = family_named("svd-xt"), family_named("svd-xt").layouts[0], []
    while (layout := leaner(layout, Stage.DECODE, svd)) is not None:
        seen.append((layout.evict_encoders, layout.evict_denoiser, layout.decode_tile, layout.decode_frames))
    # Its decoder mixes the frames of a chunk, so other chunks are another picture, more so than tiles.
    assert seen == [
        (True, False, 0, 8),
        (True, True, 0, 8),
        (True, True, 64, 8),
        (True, True, 32, 8),
        (True, True, 32, 4),
        (True, True, 32, 2),
        (True, True, 32, 1),
    ]


# -- what exceptions say ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.65 GiB",
        "CUDA error: out of memory",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasSetWorkspace(handle, ...)`",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    ],
)
def test_failed_allocations_by_their_texts(text):
    assert is_out_of_memory(RuntimeError(text))
    assert not is_sticky(RuntimeError(text))
    assert not is_out_of_memory(ValueError(text))


@pytest.mark.parametrize(
    "text",
    [
        ILLEGAL,
        "CUDA error: device-side assert triggered",
        "CUDA error: unspecified launch failure",
        "CUDA error: uncorrectable ECC error encountered",
        "CUDA error: unknown error",
        "CUDA error: misaligned address",
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx( ... )`",
        "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    ],
)
def test_errors_after_which_a_process_is_lost_by_their_texts(text):
    assert is_sticky(RuntimeError(text))
    assert not is_out_of_memory(RuntimeError(text))


@pytest.mark.parametrize("text", ["CUDA error: invalid argument", "unknown error", "CUBLAS_STATUS_NOT_INITIALIZED"])
def test_errors_of_one_clip_say_nothing_of_the_card(text):
    assert not is_sticky(RuntimeError(text))
    assert not is_out_of_memory(RuntimeError(text))
