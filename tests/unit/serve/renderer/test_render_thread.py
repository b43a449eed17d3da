"""All work on the card is done by one thread of the process, whichever threads clips come in."""

from __future__ import annotations

import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from cluster.jobs.model import Outcome
from cluster.storage import Storage
from pipeline.units import GIB
from serve.renderer import rendering, warm_model
from serve.renderer.cards import CardIdentity, LazyDevice
from serve.renderer.heartbeat import Heartbeat
from serve.renderer.warm_model import WeightsPlace
from serve.renderer.worker import RENDER_THREAD, Worker
from tests.building import still_png
from tests.doubles import words
from tests.unit.serve.renderer.test_worker import active_clip

PATIENCE_S = 30


class Seen:
    """Which thread did what."""

    def __init__(self) -> None:
        self.by: dict[str, set[int]] = {}

    def __call__(self, what: str) -> None:
        self.by.setdefault(what, set()).add(threading.get_ident())


class FakeModel:
    """Runs out of memory in its first render, fails in its last, and notes who calls it."""

    def __init__(self, seen: Seen, fails: list[Exception | None]) -> None:
        self._seen, self._fails = seen, fails

    def render(self, still, spec, layout, on_step, resume=None, sink=None):
        self._seen("denoise")
        on_step(1, 1, None)
        if error := self._fails.pop(0):
            raise error
        self._seen("decode")
        frames = np.zeros((spec.frames, spec.height, spec.width, 3), np.uint8)
        sink.begin(frames)
        sink.filled(len(frames))
        return frames

    def describe(self):
        return {}

    def notes(self, spec):
        return {}

    def unload(self):
        self._seen("unload")


class Card(LazyDevice):
    """A card that notes who tries it; nothing works on it after an error."""

    def __init__(self, seen: Seen) -> None:
        super().__init__(8 * GIB, 7 * GIB, "cpu", lambda: pytest.fail("opened"))
        self._seen = seen

    def computes(self) -> bool:
        self._seen("try")
        return False


@pytest.fixture
def seen():
    return Seen()


@pytest.fixture
def worker(tmp_path, seen, monkeypatch):
    fails = [torch.OutOfMemoryError("full"), None, None, None, words.accelerator_error(1, "CUDA error: unheard of")]

    def load_model(*_args, **_options):
        seen("load")
        return FakeModel(seen, fails)

    monkeypatch.setattr(warm_model, "load_model", load_model)
    identity = CardIdentity(card="gpu0", card_class="c8", kind="test")
    weights = WeightsPlace(home=tmp_path, folders={}, offline=True)
    return Worker(identity, Card(seen), Storage(tmp_path / "storage"), weights)


@pytest.mark.timeout(PATIENCE_S)
def test_one_thread_loads_denoises_decodes_tries_and_unloads(worker, seen):
    still = worker.storage.put_still(still_png())
    with ThreadPoolExecutor(4) as pool:
        ended = list(pool.map(lambda n: worker.run(active_clip(still, f"attempt_{n}", seed=n)), range(4)))
    outcomes = sorted(one.outcome for one in ended)
    assert outcomes.count(Outcome.COMPLETED) == 3, ended
    last = worker.run(active_clip(still, "attempt_9", seed=9))
    assert last.sticky
    worker.close()
    here = RENDER_THREAD.run(threading.get_ident)
    assert seen.by == {what: {here} for what in ("load", "denoise", "decode", "try", "unload")}


@pytest.mark.timeout(PATIENCE_S)
def test_who_waits_for_the_thread_gets_what_its_work_gave_or_raised():
    who = contextvars.ContextVar("who", default="nobody")
    who.set("me")
    assert RENDER_THREAD.run(who.get) == "me"

    def fail():
        raise KeyError("lost")

    with pytest.raises(KeyError, match="lost"):
        RENDER_THREAD.run(fail)


@pytest.mark.timeout(PATIENCE_S)
def test_a_thread_that_hangs_ends_the_process(worker, monkeypatch):
    began, release = threading.Event(), threading.Event()

    def hang(*_args):
        began.set()
        assert release.wait(PATIENCE_S)

    monkeypatch.setattr(rendering, "render_frames", hang)
    clip = active_clip(worker.storage.put_still(still_png()))
    heartbeat = Heartbeat.__new__(Heartbeat)
    ended = []
    heartbeat._clips, heartbeat._stall_s, heartbeat.broken = {clip.attempt_id: clip}, 0.0, False
    monkeypatch.setattr(heartbeat, "exit_soon", lambda: ended.append("process"))
    thread = threading.Thread(target=worker.run, args=(clip,))
    thread.start()
    try:
        assert began.wait(PATIENCE_S)
        heartbeat._exit_if_stuck()
        assert not ended, "nobody asked it to end yet"
        clip.stop()
        heartbeat._exit_if_stuck()
        assert ended == ["process"]
        assert heartbeat.broken
    finally:
        release.set()
        thread.join(PATIENCE_S)
