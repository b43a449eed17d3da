"""Emulated cards count what tensors hold, refuse what does not fit, and forget what is gone."""

from __future__ import annotations

import gc
import threading

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from pipeline.models import devices
from pipeline.models.devices import CudaDevice, EmulatedDevice, HostDevice, place

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
    place(layer, card)
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
    place(layer, card)
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


@pytest.mark.parametrize(
    ("total_gib", "free_gib", "reserved_gib", "usable_gib"),
    [(24, 20, 3, 21.8), (8, 7, 0.5, 7.0), (24, 0.1, 0, 0)],
)
def test_a_cuda_cards_usable_share(
    monkeypatch: pytest.MonkeyPatch, total_gib: float, free_gib: float, reserved_gib: float, usable_gib: float
) -> None:
    """Margin: 5 % of 24 GiB is 1.2; of 8 GiB it would be 0.4, less than 512 MiB; never below nothing."""
    gib = 2**30
    monkeypatch.setattr(devices.torch.cuda, "mem_get_info", lambda _i: (int(free_gib * gib), int(total_gib * gib)))
    monkeypatch.setattr(devices.torch.cuda, "memory_reserved", lambda _i: int(reserved_gib * gib))
    card = CudaDevice(0)
    assert card.total_bytes == total_gib * gib
    assert card.usable_bytes() == pytest.approx(usable_gib * gib, abs=16)
