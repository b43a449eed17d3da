"""Emulated cards count what tensors hold, refuse what does not fit, and forget what is gone."""

from __future__ import annotations

import gc
import threading

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from pipeline.devices import cuda as devices
from pipeline.devices.cuda import CudaDevice
from pipeline.devices.emulated import EmulatedDevice, HostDevice
from pipeline.devices.nvml import CardMemory, GpuMemory, Nvml, UnknownMemoryError
from pipeline.devices.transfer import PlacedWeights
from pipeline.memory.admission import Observation
from pipeline.memory.footprint import cuda_model
from tests.doubles.cuda import FakeCuda
from tests.doubles.nvml import FakeNvml, rtx_4090

KIB = 1024


def test_allocations_counted_by_hand() -> None:
    card = HostDevice()
    with card.work():
        a = torch.zeros(256)  # 1 KiB
        assert card.used_bytes() == KIB
        b = a + 1  # 2 KiB live
        c = torch.cat([a, b])  # 4 KiB live
        assert card.used_bytes() == 4 * KIB
        del b
        assert card.used_bytes() == 3 * KIB
        views = [c.view(2, 256), c[:10], c.t(), c.unsqueeze(0).expand(5, -1)]
        a += 1  # in place
        assert card.used_bytes() == 3 * KIB
        del c
        assert card.used_bytes() == 3 * KIB  # its views hold the storage
        del views
        assert card.used_bytes() == KIB
    assert card.peak_bytes() == 4 * KIB
    card.reset_peak()
    assert card.peak_bytes() == KIB
    del a
    assert card.used_bytes() == 0


def test_the_peak_agrees_with_torchs_own_profiler() -> None:
    """The allocator's own record of the same operations, summed up to its highest point."""

    def operations() -> torch.Tensor:
        x = torch.ones(64, 512)
        for _ in range(3):
            y = torch.nn.functional.gelu(x * 2 + 1)
            x = torch.cat([x, y], dim=1)[:, ::2].contiguous()
        return x.softmax(-1).sum(0)

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = operations()
    level = highest = 0
    records = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(records, key=lambda e: e.start_ns()):
        level += event.nbytes()
        highest = max(highest, level)
    del kept

    card = HostDevice()
    with card.work():
        operations()
    assert highest > 200 * KIB
    assert card.peak_bytes() == highest


def test_a_card_refuses_what_does_not_fit_and_is_as_before() -> None:
    card = EmulatedDevice(10 * KIB)
    with card.work():
        kept = torch.zeros(4 * 256)
        with pytest.raises(torch.OutOfMemoryError, match=r"Tried to allocate 0\.01 MiB.*0\.01 MiB is free"):
            torch.zeros(7 * 256)
        gc.collect()
        assert card.used_bytes() == 4 * KIB
        fits = torch.zeros(6 * 256)
        assert card.used_bytes() == 10 * KIB
    assert card.usable_bytes() == 10 * KIB - 512
    del kept, fits
    assert card.used_bytes() == 0


def test_weights_are_counted_once_and_their_views_never() -> None:
    layer = nn.Linear(100, 50)
    expected = (100 * 50 + 50) * 4
    card = HostDevice()
    PlacedWeights(layer, card)
    assert card.used_bytes() == expected
    card.reset_peak()
    with card.work(), torch.no_grad():
        transposed = layer.weight.t()
        assert card.used_bytes() == expected
        out = layer(torch.zeros(1, 100))
        assert card.used_bytes() == expected + 50 * 4
    del transposed, out
    del layer
    assert card.used_bytes() == 0


def test_slices_of_one_mapped_file_count_as_their_own_size() -> None:
    whole = torch.zeros(1000)
    layer = nn.Linear(5, 2, bias=False)
    layer.weight.data = whole[:10].view(2, 5)
    card = HostDevice()
    PlacedWeights(layer, card)
    assert card.used_bytes() == 40


def test_threads_share_one_card() -> None:
    card = EmulatedDevice(100 * KIB)
    held: list[torch.Tensor] = []
    refused: list[Exception] = []
    turn = threading.Barrier(4)

    def work() -> None:
        with card.work():
            tensor = torch.zeros(24 * 256)
            turn.wait()
            held.append(tensor)
            turn.wait()
            try:
                held.append(torch.zeros(5 * 256))
            except torch.OutOfMemoryError as error:
                refused.append(error.with_traceback(None))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 4
    assert card.used_bytes() == 96 * KIB
    held.clear()
    assert card.used_bytes() == 0


def test_outside_work_nothing_is_counted_and_entering_twice_is_once() -> None:
    card = HostDevice()
    outside = torch.zeros(100)
    with card.work():
        with card.work():
            inner = torch.zeros(256)
        still_inside = torch.zeros(256)
    after = torch.zeros(256)
    assert card.used_bytes() == 2 * KIB
    del outside, inner, still_inside, after


def test_a_storage_that_grows_is_counted_at_its_new_size() -> None:
    card = HostDevice()
    with card.work():
        tensor = torch.zeros(256)
        tensor.resize_(1024)
        assert card.used_bytes() == 4 * KIB
    del tensor
    assert card.used_bytes() == 0


class Shared:
    """What NVML would say of one card."""

    def __init__(self, used: float, own: float | None, total: float = 24) -> None:
        self.used, self.own, self.total = used, own, total

    def memory(self, uuid: str) -> CardMemory:
        assert uuid == "GPU-1"
        own = None if self.own is None else int(self.own * GIB)
        return CardMemory(total_bytes=int(self.total * GIB), used_bytes=int(self.used * GIB), own_bytes=own)


class Untold:
    def memory(self, uuid: str) -> CardMemory:
        raise UnknownMemoryError("no driver")


GIB = 2**30
CONTEXT = 0.45
"""GiB that a process's context is counted with."""


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch):
    """A CUDA card as torch reports it: total, free and reserved GiB, and the share that torch may have."""

    def card(memory: GpuMemory, *, total: float = 24, free: float = 0, reserved: float = 0, fraction: float = 1):
        answers = {
            "mem_get_info": lambda _i: (int(free * GIB), int(total * GIB)),
            "memory_reserved": lambda _i: int(reserved * GIB),
            "get_per_process_memory_fraction": lambda _i: fraction,
        }
        for name, answer in answers.items():
            monkeypatch.setattr(devices.torch.cuda, name, answer)
        return CudaDevice(0, uuid="GPU-1", memory=memory)

    assert cuda_model().context_bytes == pytest.approx(CONTEXT * GIB, rel=0.03), "the figures below count on it"
    return card


def gib(count: int) -> float:
    return count / GIB


@pytest.mark.parametrize(
    ("used", "own", "reserved", "foreign", "usable"),
    [
        pytest.param(0.5, 0.5, 0, 0, 24 - 0.5 - 1.2, id="alone: the context that is there, and the margin"),
        pytest.param(0.2, 0.2, 0, 0, 24 - CONTEXT - 1.2, id="a context that has yet to grow"),
        pytest.param(8.5, 8.5, 8, 0, 24 - 0.5 - 1.2, id="what is our own is ours to use"),
        pytest.param(18.5, 8.5, 8, 10, 14 - 0.5 - 1.2, id="others hold 10 GiB"),
        pytest.param(18.5, None, 8, 10.5 - CONTEXT, 24 - 10.5 - 1.2, id="in a container: our own is not told"),
        pytest.param(18.5, 0.1, 8, 10.5 - CONTEXT, 24 - 10.5 - 1.2, id="less than torch has is not our own"),
        pytest.param(23.9, 0.5, 0, 23.4, 0, id="never below nothing"),
    ],
)
def test_what_others_hold_is_not_usable(cuda, used, own, reserved, foreign, usable) -> None:
    card = cuda(Shared(used, own), reserved=reserved, free=24)
    assert gib(card.foreign_bytes) == pytest.approx(foreign, abs=0.02)
    assert gib(card.usable_bytes()) == pytest.approx(usable, abs=0.02)


def test_memory_for_a_recorded_graph_is_kept_from_clips_until_it_is_there(cuda) -> None:
    plain = cuda(Shared(0.2, 0.2), free=24)
    kept = CudaDevice(0, uuid="GPU-1", memory=Shared(0.2, 0.2), graphs=True)
    assert plain.usable_bytes() - kept.usable_bytes() == cuda_model().graph_bytes
    # What is there is counted as it is, and not a second time.
    there = CudaDevice(0, uuid="GPU-1", memory=Shared(1.0, 1.0), graphs=True)
    assert there.usable_bytes() == cuda(Shared(1.0, 1.0), free=24).usable_bytes()


def test_without_nvml_the_whole_cards_free_memory_decides(cuda) -> None:
    card = cuda(Untold(), free=20, reserved=3)
    assert gib(card.foreign_bytes) == pytest.approx(24 - 20 - 3 - CONTEXT, abs=0.02)
    assert gib(card.usable_bytes()) == pytest.approx(20 + 3 - 1.2, abs=0.02)


def test_a_share_torch_was_given_is_not_exceeded(cuda) -> None:
    card = cuda(Shared(0.5, 0.5), fraction=1 / 3)
    assert gib(card.usable_bytes()) == pytest.approx(8 - 1.2, abs=0.02)


def test_a_card_that_keeps_its_word_keeps_less_back(cuda) -> None:
    card = cuda(Shared(0.5, 0.5))
    before = card.usable_bytes()
    for _ in range(5):
        card.observe(Observation(predicted_bytes=100, measured_bytes=99))
    assert gib(card.usable_bytes() - before) == pytest.approx(0.3, abs=0.001)
    card.observe(Observation(predicted_bytes=100, measured_bytes=50, out_of_memory=True))
    assert card.usable_bytes() == before


def test_what_others_take_of_an_emulated_card_is_refused_and_comes_back() -> None:
    card = EmulatedDevice(100 * KIB)
    with card.work():
        kept = torch.zeros(60 * 256)
        card.foreign_bytes = 30 * KIB
        assert card.usable_bytes() == 65 * KIB
        with pytest.raises(torch.OutOfMemoryError, match=r"of which 0\.01 MiB is free"):
            torch.zeros(11 * 256)
        beside = torch.zeros(10 * 256)
        card.foreign_bytes = 50 * KIB
        # What was there stays, and what is smaller than before may come.
        with pytest.raises(torch.OutOfMemoryError, match=r"of which 0\.00 MiB is free"):
            torch.zeros(1)
        beside.resize_(256)
        del beside, kept
        card.foreign_bytes = 0
        whole = torch.zeros(100 * 256)
    del whole
    assert card.usable_bytes() == 95 * KIB


# -- the margin, by what the process takes beside its tensors ------------------------------------------------------


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch):
    """(an RTX 4090, its CUDA): the card as a renderer has it, over a double of driver and allocator."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    fake = FakeCuda(FakeNvml([rtx_4090()]).install(monkeypatch), pid=7).install(monkeypatch)
    return CudaDevice(uuid="GPU-4090", memory=Nvml(pid=7)), fake


def render_one(card: CudaDevice, fake: FakeCuda, predicted: float, tensors: float, rests: float = 0) -> None:
    """One clip: so many GiB of tensors, and blocks cached beside them that nothing else fits."""
    card.reset_peak()
    fake.allocate(int((tensors + rests) * GIB))
    # What the allocator cannot use is reserved, and no tensor's.
    fake.allocated -= int(rests * GIB)
    fake.peak_allocated = fake.allocated
    card.observe(Observation(predicted_bytes=int(predicted * GIB), measured_bytes=card.peak_bytes()))
    fake.release(int(tensors * GIB))
    card.free_cached()


def kept_back(card: CudaDevice) -> float:
    return gib(card.total_bytes - card.usable_bytes()) - CONTEXT


def test_clips_that_take_little_beside_their_tensors_earn_a_smaller_margin(real) -> None:
    card, fake = real
    for _ in range(20):
        render_one(card, fake, predicted=10, tensors=9.9)
    assert kept_back(card) == pytest.approx((128 + 0.02 * 23.64 * 1024) / 1024, abs=0.02)


def test_what_the_allocator_cannot_use_keeps_the_margin_up_though_no_tensor_is_too_large(real) -> None:
    card, fake = real
    for _ in range(20):
        render_one(card, fake, predicted=10, tensors=9.9, rests=0.9)
    assert kept_back(card) == pytest.approx(1.25 * 0.8, abs=0.02)
    render_one(card, fake, predicted=10, tensors=9.9, rests=3)
    assert kept_back(card) == pytest.approx(0.05 * 23.64, abs=0.02), "more than the margin: all of it comes back"


def test_kernels_loaded_in_the_middle_of_a_clip_are_taken_from_the_margin(real) -> None:
    card, fake = real
    card.reset_peak()
    fake.allocate(5 * GIB)
    fake.context_bytes += int(0.9 * GIB)
    fake.allocate(4 * GIB)
    for _ in range(20):
        card.observe(Observation(predicted_bytes=9 * GIB, measured_bytes=9 * GIB))
    total, foreign = card.total_bytes, card.foreign_bytes
    context = fake.context_bytes
    assert foreign == 0
    assert gib(total - context - card.usable_bytes()) == pytest.approx(1.25 * 0.9, abs=0.02)


def test_blocks_cached_by_a_larger_clip_before_are_not_this_one_s(real) -> None:
    card, fake = real
    fake.allocate(15 * GIB)
    fake.release(15 * GIB)
    for _ in range(20):
        card.reset_peak()
        fake.allocate(2 * GIB)
        card.observe(Observation(predicted_bytes=2 * GIB, measured_bytes=2 * GIB))
        fake.release(2 * GIB)
    assert kept_back(card) < 0.7
