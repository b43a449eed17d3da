"""Clips whose frames are encoded as they come off the card: published as ever, and gone where they end half way.

Real workers, networks and encoders. Where a test must know how far ffmpeg is, it runs one that tells by a named pipe;
nothing sleeps.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import psutil
import pytest
import torch

from cluster.dispatch.protocol import Assignment, CardFree, Event, StepDone
from cluster.jobs.model import Outcome
from cluster.jobs.outcomes import Ended
from cluster.storage import Storage
from pipeline.clips.clip import BaseClip, ClipSpec, ResolutionClass, Sampler, Upscale
from pipeline.clips.encode import encode_mp4
from pipeline.devices.emulated import EmulatedDevice, HostDevice
from pipeline.families import family_named
from pipeline.families.layouts import RESIDENT
from pipeline.models.i2vgen_xl import I2VGenXL
from pipeline.models.loading import load_model
from pipeline.render import render_frames
from pipeline.units import GIB
from serve.renderer.active_clip import ActiveClip
from serve.renderer.cards import CardIdentity, LazyDevice
from serve.renderer.warm_model import WeightsPlace
from serve.renderer.worker import CARD_LOCK, Worker
from serve.settings import SCRATCH_VARIABLE
from tests.building import spec, still_png

PATIENCE_S = 30
SMALL = {"width": 64, "height": 64, "steps": 2, "guidance": 5.0, "sampler": Sampler.UNIPC}
CLIPS = {
    "camera": spec(frames=9),
    "i2vgen-xl-tiny": spec("i2vgen-xl-tiny", frames=4, **SMALL),
    "svd-xt-tiny": spec("svd-xt-tiny", frames=5, **(SMALL | {"sampler": Sampler.EULER})),
    "wan2.2-5b-tiny": spec("wan2.2-5b-tiny", frames=9, **SMALL),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "storage")


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv(SCRATCH_VARIABLE, str(folder))
    return folder


def processes() -> set[int]:
    """Those that this one has started, but for those that open stills, which stay for the next one."""
    return {child.pid for child in psutil.Process().children() if "pipeline.bounded" not in " ".join(child.cmdline())}


@pytest.fixture
def worker(home: Path, storage: Storage, scratch: Path) -> Iterator[Worker]:
    """A worker that must leave neither a process nor a thread nor a file, however its clips end."""
    before = processes()
    device = LazyDevice(8 * GIB, 7 * GIB, "cpu", HostDevice)
    identity = CardIdentity(card="gpu0", card_class="c8", kind="test")
    made = Worker(identity, device, storage, WeightsPlace(home=home, folders={}, offline=True))
    yield made
    assert processes() <= before
    assert not [thread for thread in threading.enumerate() if thread.name == "clipmill-encode"]
    assert list(scratch.iterdir()) == []
    made.close()
    assert not CARD_LOCK.locked()


class Clip(ActiveClip):
    """A clip on its way; `when` reacts to what it reports, in the thread that says it."""

    def __init__(self, storage: Storage, made: ClipSpec, attempt: str = "attempt_1", **row: Any) -> None:
        self.said: list[Event] = []
        self.when: Callable[[Event], None] = lambda _event: None
        assignment = Assignment(
            attempt_id=attempt,
            job_id="video_1",
            renderer="r",
            card_class="c8",
            owner="local",
            still=storage.put_still(still_png()),
            spec=made,
            content_key="ke" * 32,
            row={"number": 1, **row},
        )
        super().__init__(assignment, self.hear)

    def hear(self, event: Event) -> None:
        self.said.append(event)
        self.when(event)


def published(storage: Storage, tmp_path: Path) -> list[str]:
    root = tmp_path / "storage" / "clips"
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()) if root.exists() else []


class Pipes:
    """An ffmpeg that tells of the first frame it has read, and ends only when it may; otherwise the real one."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._read, self._may_end = folder / "read", folder / "may-end"
        os.mkfifo(self._read)
        os.mkfifo(self._may_end)
        path = folder / "ffmpeg"
        path.write_text(
            f"#!{sys.executable}\n"
            "import subprocess, sys\n"
            f"real = subprocess.Popen([{imageio_ffmpeg.get_ffmpeg_exe()!r}, *sys.argv[1:]], stdin=subprocess.PIPE)\n"
            "try:\n"
            "    first = sys.stdin.buffer.read(100)\n"
            "    real.stdin.write(first)\n"
            f"    open({str(self._read)!r}, 'wb').write(b'.')\n"
            "    while part := sys.stdin.buffer.read(65536):\n"
            "        real.stdin.write(part)\n"
            "    real.stdin.close()\n"
            f"    open({str(self._may_end)!r}, 'rb').read()\n"
            "finally:\n"
            "    real.stdin.close()\n"
            "sys.exit(real.wait())\n"
        )
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(path))

    def wait_for_a_frame(self) -> None:
        assert self._read.read_bytes() == b"."

    def let_end(self) -> None:
        self._may_end.write_bytes(b".")


@pytest.fixture
def ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pipes:
    (tmp_path / "ffmpeg").mkdir()
    return Pipes(tmp_path / "ffmpeg", monkeypatch)


@pytest.mark.parametrize("family", CLIPS)
def test_what_is_published_is_what_the_finished_frames_encode_to(
    worker: Worker, storage: Storage, home: Path, tmp_path: Path, family: str
) -> None:
    """Video and hash are those of all frames at once, rendered without a worker."""
    made = CLIPS[family]
    ended = worker.run(Clip(storage, made))
    assert (ended.outcome, ended.detail) == (Outcome.COMPLETED, "")
    model = load_model(
        family_named(family), HostDevice(), weights_dir=None, home=home, offline=True, on_load=lambda _text: None
    )
    # SVD's decoder mixes the frames it decodes together: as many as then.
    layout = ended.peaks[-1].layout
    frames = render_frames(model, still_png(), made, layout, lambda _step, _steps, _snapshot: None)
    encode_mp4(frames, made.fps, tmp_path / "whole.mp4")
    assert storage.get_bytes(ended.objects.video) == (tmp_path / "whole.mp4").read_bytes()
    assert ended.objects.frames_sha256 == hashlib.sha256(repr(frames.shape).encode() + frames.tobytes()).hexdigest()
    assert len(published(storage, tmp_path)) == 4


def test_the_card_is_free_before_the_clip_is_encoded(worker: Worker, storage: Storage, ffmpeg: Pipes) -> None:
    made, is_free = Clip(storage, CLIPS["camera"]), threading.Event()

    def look(event: Event) -> None:
        if event == StepDone(step=2, steps=9):
            ffmpeg.wait_for_a_frame()
        if isinstance(event, CardFree):
            assert CARD_LOCK.acquire(blocking=False)
            CARD_LOCK.release()
            is_free.set()

    made.when = look
    ended: list[Ended] = []
    thread = threading.Thread(target=lambda: ended.append(worker.run(made)))
    thread.start()
    free = is_free.wait(PATIENCE_S)
    ffmpeg.let_end()
    thread.join(PATIENCE_S)
    assert free, "the card was held until ffmpeg had ended"
    assert ended[0].outcome is Outcome.COMPLETED


def fail() -> None:
    raise ZeroDivisionError("division by zero")


@pytest.mark.parametrize(
    ("how", "outcome"), [("stop", Outcome.STOPPED), ("preempt", Outcome.STOPPED), ("fail", Outcome.ERROR)]
)
def test_a_clip_that_ends_half_encoded_leaves_nothing(
    worker: Worker, storage: Storage, tmp_path: Path, scratch: Path, ffmpeg: Pipes, how: str, outcome: Outcome
) -> None:
    made = Clip(storage, CLIPS["camera"])
    seen: list[list[Path]] = []

    def end(event: Event) -> None:
        if event == StepDone(step=5, steps=9):
            ffmpeg.wait_for_a_frame()
            seen.append(list(scratch.iterdir()))
            {"stop": made.stop, "preempt": made.preempt, "fail": fail}[how]()

    made.when = end
    ended = worker.run(made)
    assert ended.outcome is outcome
    assert len(seen[0]) == 1, "it was being encoded"
    assert published(storage, tmp_path) == []
    # What the fixture asserts in the end holds as soon as the attempt has ended.
    assert list(scratch.iterdir()) == []
    assert not [thread for thread in threading.enumerate() if thread.name == "clipmill-encode"]


def in_the_middle(monkeypatch: pytest.MonkeyPatch, act: Callable[[torch.Tensor], object]) -> None:
    """When the second frame has been decoded, `act` gets its pixels."""
    real = I2VGenXL.decode_chunks

    def decode_chunks(*arguments: Any) -> Iterator[torch.Tensor]:
        for place, chunk in enumerate(real(*arguments)):
            if place == 1:
                act(chunk)
            yield chunk

    monkeypatch.setattr(I2VGenXL, "decode_chunks", decode_chunks)


def test_a_clip_that_is_stopped_while_it_is_decoded_stops_there(
    worker: Worker, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Clip(storage, CLIPS["i2vgen-xl-tiny"])
    in_the_middle(monkeypatch, lambda _chunk: made.stop())
    assert worker.run(made).outcome is Outcome.STOPPED
    assert not any(isinstance(event, CardFree) for event in made.said)
    assert published(storage, tmp_path) == []


def test_a_clip_that_is_preempted_while_it_is_decoded_is_published(
    worker: Worker, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = worker.run(Clip(storage, CLIPS["i2vgen-xl-tiny"], "attempt_0")).objects.frames_sha256
    made = Clip(storage, CLIPS["i2vgen-xl-tiny"])
    in_the_middle(monkeypatch, lambda _chunk: made.preempt())
    ended = worker.run(made)
    assert (ended.outcome, ended.objects.frames_sha256) == (Outcome.COMPLETED, expected)


def test_a_frame_that_is_not_finite_ends_the_clip_with_its_place(
    worker: Worker, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_the_middle(monkeypatch, lambda chunk: chunk.fill_(float("nan")))
    ended = worker.run(Clip(storage, CLIPS["i2vgen-xl-tiny"]))
    assert ended.outcome is Outcome.ERROR
    assert "NotFiniteError" in ended.detail
    assert "frame 1 on" in ended.detail
    assert published(storage, tmp_path) == []


def test_a_card_that_fills_up_half_way_starts_the_file_anew(
    worker: Worker, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames of the first try differ, so that one of them in the video would show."""
    expected = worker.run(Clip(storage, CLIPS["i2vgen-xl-tiny"], "attempt_0")).objects
    tries: list[int] = []
    real = I2VGenXL.decode_chunks

    def decode_chunks(*arguments: Any) -> Iterator[torch.Tensor]:
        tries.append(len(tries))
        for place, chunk in enumerate(real(*arguments)):
            if len(tries) > 1:
                yield chunk
                continue
            if place == 2:
                raise torch.OutOfMemoryError("the card is full")
            yield chunk.neg_()

    monkeypatch.setattr(I2VGenXL, "decode_chunks", decode_chunks)
    ended = worker.run(Clip(storage, CLIPS["i2vgen-xl-tiny"]))
    assert (ended.outcome, ended.detail, len(tries)) == (Outcome.COMPLETED, "", 2)
    assert [overflow.stage for overflow in ended.overflows] == ["decode"]
    assert ended.objects.frames_sha256 == expected.frames_sha256
    assert storage.get_bytes(ended.objects.video) == storage.get_bytes(expected.video)


def test_an_encoder_that_fails_fails_the_clip_and_not_the_next(
    worker: Worker, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "no-ffmpeg"
    path.write_text(f"#!{sys.executable}\nimport sys\nprint('No space left on device', file=sys.stderr)\nsys.exit(3)\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(path))
    ended = worker.run(Clip(storage, CLIPS["camera"]))
    assert (ended.outcome, ended.denoised) == (Outcome.ERROR, True)
    assert "EncodeError: cannot write video.mp4: ffmpeg ended with 3: No space left" in ended.detail
    assert published(storage, tmp_path) == []
    monkeypatch.delenv("IMAGEIO_FFMPEG_EXE")
    assert worker.run(Clip(storage, CLIPS["camera"], "attempt_2")).outcome is Outcome.COMPLETED


def test_an_encoder_that_is_told_to_end_costs_the_clip_nothing(
    worker: Worker, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the whole farm is ended: its ffmpeg may hear of it first."""
    path = tmp_path / "ffmpeg"
    path.write_text(f"#!{sys.executable}\nimport os, signal\nos.kill(os.getpid(), signal.SIGTERM)\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(path))
    ended = worker.run(Clip(storage, CLIPS["camera"]))
    assert (ended.outcome, ended.sticky) == (Outcome.LOST, False)
    assert "told to end" in ended.detail


def test_a_strict_clip_whose_prompt_is_cut_is_refused_before_its_first_step(worker: Worker, storage: Storage) -> None:
    """Where the tokenizer was not at hand when it was handed in."""
    made = CLIPS["i2vgen-xl-tiny"].model_copy(update={"prompt": "a red mug " * 30})
    strict = Clip(storage, made, strict=True)
    ended = worker.run(strict)
    assert (ended.outcome, ended.problem.field) == (Outcome.INVALID, "prompt")
    assert "tokens longer than its encoder reads" in ended.problem.message
    assert not [event for event in strict.said if isinstance(event, StepDone)]
    lenient = worker.run(Clip(storage, made, "attempt_2"))
    assert lenient.outcome is Outcome.COMPLETED
    assert "prompt_cut" in [note.code for note in lenient.notes]
    assert worker.run(Clip(storage, CLIPS["i2vgen-xl-tiny"], "attempt_3", strict=True)).outcome is Outcome.COMPLETED


def test_a_base_that_is_enlarged_is_no_part_of_the_clip(home: Path) -> None:
    """Frames of a smaller rendering are decoded on the way; whoever takes the clip's frames hears of those alone."""
    made = spec(
        "i2vgen-xl-tiny",
        **(SMALL | {"frames": 4, "width": 96, "height": 96}),
        base=BaseClip(
            resolution_class=ResolutionClass.P256,
            width=64,
            height=64,
            frames=4,
            fps=8,
            steps=2,
            guidance=5.0,
            seed=3,
            sampler=Sampler.UNIPC,
        ),
        upscale=Upscale.FRAMES,
    )
    model = load_model(
        family_named(made.family),
        EmulatedDevice(2**34),
        weights_dir=None,
        home=home,
        offline=True,
        on_load=lambda _text: None,
    )
    begun: list[np.ndarray] = []
    counts: list[int] = []

    class Sink:
        def begin(self, frames: np.ndarray) -> None:
            begun.append(frames)

        def filled(self, count: int) -> None:
            counts.append(count)

    frames = render_frames(model, still_png(), made, RESIDENT, lambda _step, _steps, _snapshot: None, None, Sink())
    assert [one.shape for one in begun] == [(4, 96, 96, 3)]
    assert begun[0] is frames
    assert counts == [1, 2, 3, 4]
