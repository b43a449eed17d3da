"""Weights in pinned memory: the same values, whole pieces, and pageable where that cannot be had."""

from __future__ import annotations

import logging
from itertools import pairwise

import pytest
import torch
from torch import nn

from pipeline.devices import pinning
from pipeline.devices.pinning import HostPinning
from pipeline.devices.transfer import tensors_of
from tests.doubles.streams import FakePinnedMemory


def network() -> nn.Module:
    torch.manual_seed(0)
    sizes = (3, 40, 7, 200, 1, 64)
    layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    return nn.Sequential(*layers, nn.BatchNorm1d(5), nn.Linear(8, 8).half()).requires_grad_(False)


def test_all_weights_are_pinned_and_are_what_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinning, "PIECE_BYTES", 4096)
    memory = FakePinnedMemory(2**20).install(monkeypatch)
    made = network()
    before = [tensor.clone() for tensor in tensors_of(made)]
    pinned = HostPinning("cuda:0")
    pinned.pin(tensors_of(made))
    for tensor, value in zip(tensors_of(made), before, strict=True):
        assert tensor.is_pinned()
        assert torch.equal(tensor, value)
        assert tensor.dtype == value.dtype
    # Nothing lies over anything else.
    spans = sorted((tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes) for tensor in tensors_of(made))
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    pieces = len(memory.taken)
    assert pieces > 2
    pinned.pin(tensors_of(made))
    assert len(memory.taken) == pieces, "pinned twice"


@pytest.mark.parametrize("limit", [0, 8192])
def test_where_memory_cannot_be_pinned_weights_stay_and_it_is_said_once(
    limit: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pinning, "PIECE_BYTES", 4096)
    FakePinnedMemory(limit).install(monkeypatch)
    made = network()
    before = [tensor.clone() for tensor in tensors_of(made)]
    pinned = HostPinning("cuda:0")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            pinned.pin(tensors_of(made))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "pageable" in caplog.text
    assert all(torch.equal(tensor, value) for tensor, value in zip(tensors_of(made), before, strict=True))
    assert any(tensor.is_pinned() for tensor in tensors_of(made)) is (limit > 0)


def test_a_torch_without_cuda_pins_nothing(caplog: pytest.LogCaptureFixture) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a card")
    made = network()
    before = [tensor.data_ptr() for tensor in tensors_of(made)]
    HostPinning("cuda:0").pin(tensors_of(made))
    assert "pageable" in caplog.text
    caplog.clear()
    HostPinning("cpu").pin(tensors_of(made))
    assert not caplog.records
    assert [tensor.data_ptr() for tensor in tensors_of(made)] == before
