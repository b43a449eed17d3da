"""What a beat tells of the card, and that it asks torch nothing, whose allocator may be locked for long."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from cluster.storage import Storage
from pipeline.devices.cuda import CudaDevice
from pipeline.devices.nvml import Nvml
from serve.renderer.cards import CardIdentity, LazyDevice
from serve.renderer.heartbeat import Heartbeat
from serve.renderer.observer import NullObserver
from serve.renderer.rendering import LayoutRender
from serve.renderer.warm_model import WeightsPlace
from serve.renderer.worker import Worker
from tests.building import spec
from tests.doubles import words
from tests.doubles.cuda import MIB, FakeCuda
from tests.doubles.nvml import GIB, FakeNvml, FakeProgram, rtx_4090


@pytest.fixture
def nvml(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return FakeNvml([rtx_4090()]).install(monkeypatch)


@pytest.fixture
def cuda(monkeypatch, nvml):
    return FakeCuda(nvml, pid=7).install(monkeypatch)


@pytest.fixture
def device(cuda):
    made = LazyDevice(24 * GIB, 22 * GIB, "cuda:0", lambda: CudaDevice(uuid="GPU-4090", memory=Nvml(pid=7)))
    made.open()
    return made


@pytest.fixture
def heartbeat(device, tmp_path):
    identity = CardIdentity(card="GPU-4090", card_class="c24", kind="NVIDIA GeForce RTX 4090")
    made = Heartbeat.__new__(Heartbeat)
    weights = WeightsPlace(home=tmp_path, folders={}, offline=True)
    made._uid, made._clips, made.broken = "r", {}, False
    made._worker = Worker(identity, device, Storage(str(tmp_path)), weights)
    return made


def test_a_beat_asks_torch_nothing(heartbeat, device, cuda, monkeypatch):
    cuda.allocate(3 * GIB)
    device.publish()
    cuda.called.clear()
    for name in dir(torch.cuda):
        if callable(getattr(torch.cuda, name)) and not name.startswith("_") and name[0].islower():
            monkeypatch.setattr(torch.cuda, name, lambda *_, name=name: pytest.fail(f"a beat called torch.cuda.{name}"))
    beat = heartbeat._beat()
    assert (beat["used_bytes"], beat["foreign_bytes"]) == (3 * GIB, 0)
    assert cuda.called == []


def test_a_beat_hears_of_other_programs_between_two_steps(heartbeat, device, cuda, nvml):
    device.publish()
    before = heartbeat._beat()
    cuda.dead = words.accelerator_error(700, words.DEAD[700])
    nvml.gpus[0].programs.append(FakeProgram(8, 5 * GIB))
    after = heartbeat._beat()
    assert after["foreign_bytes"] == 5 * GIB
    assert before["usable_bytes"] - after["usable_bytes"] == 5 * GIB


def test_where_the_driver_is_silent_the_last_figures_hold(heartbeat, device, cuda, nvml):
    cuda.allocate(GIB)
    device.publish()
    before = heartbeat._beat()
    nvml.lost.add("GPU-4090")
    cuda.dead = words.accelerator_error(700, words.DEAD[700])
    assert heartbeat._beat() == before


def test_the_thread_on_the_card_publishes_after_each_step(device, cuda):
    clip = SimpleNamespace(spec=spec(), report=lambda *_: None, check=lambda: None, preempting=False)
    given = SimpleNamespace(clip=clip, checkpoints=SimpleNamespace(after_step=lambda *_: None))
    on_step = LayoutRender(device, None, NullObserver(), lambda: 0.0)._on_step(given)
    for step in range(3):
        cuda.allocate(GIB)
        on_step(step, 3, None)
        assert device.figures().used_bytes == (step + 1) * GIB


def test_figures_are_those_that_the_thread_on_the_card_reads(device, cuda, nvml):
    cuda.context_bytes = 600 * MIB
    nvml.gpus[0].programs.append(FakeProgram(8, GIB))
    for count in (GIB, 4 * GIB):
        cuda.allocate(count)
        read = device.usable_bytes(), device.used_bytes(), device.foreign_bytes
        told = device.figures()
        assert (told.usable_bytes, told.used_bytes, told.foreign_bytes) == read


def test_a_renderer_that_tries_again_ends_its_clips_first(heartbeat, monkeypatch):
    ended = []
    monkeypatch.setattr(heartbeat, "exit_soon", lambda: ended.append("process"))
    heartbeat._clips["attempt_1"] = SimpleNamespace(loading="", steps=(1, 2), on_card=True)
    heartbeat.retire()
    assert not ended
    assert heartbeat._beat()["state"] == "draining"
    heartbeat._clips.clear()
    heartbeat.retire()
    assert ended == ["process"]
