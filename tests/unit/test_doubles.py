"""The doubles of driver and card behave as what they stand for, where tests rely on it."""

from __future__ import annotations

import inspect

import pynvml
import pytest
import torch

from tests.doubles import words
from tests.doubles.cuda import MIB, FakeCuda
from tests.doubles.nvml import GIB, FakeNvml, FakeProgram, FakeSlice, h100, rtx_4090, t4


def test_every_function_of_the_driver_is_one_of_the_library_with_its_parameters():
    functions = [name for name in dir(FakeNvml) if name.startswith("nvml") and callable(getattr(FakeNvml, name))]
    assert len(functions) > 12
    for name in functions:
        real, double = getattr(pynvml, name), getattr(FakeNvml, name)
        assert len(inspect.signature(real).parameters) == len(inspect.signature(double).parameters) - 1, name


def test_a_slice_has_a_handle_of_its_own_and_a_lost_card_none():
    part = FakeSlice("MIG-a")
    nvml = FakeNvml([t4(), h100(slices=[part])])
    nvml.nvmlInit()
    handle = nvml.nvmlDeviceGetHandleByUUID("MIG-a")
    assert nvml.nvmlDeviceGetUUID(handle) == "MIG-a"
    assert nvml.nvmlDeviceGetMemoryInfo(handle).total == part.total_bytes
    nvml.lost.add("GPU-t4")
    with pytest.raises(pynvml.NVMLError_GpuIsLost):
        nvml.nvmlDeviceGetHandleByIndex(0)
    with pytest.raises(pynvml.NVMLError_NotFound):
        nvml.nvmlDeviceGetMigDeviceHandleByIndex(nvml.nvmlDeviceGetHandleByIndex(1), 1)


def test_cuda_numbers_the_fastest_first_unless_it_is_told_otherwise(monkeypatch):
    nvml = FakeNvml([t4(), rtx_4090()])
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert [card.uuid for card in FakeCuda(nvml).visible()] == ["GPU-4090"]
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert [card.uuid for card in FakeCuda(nvml).visible()] == ["GPU-t4"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,7,0")
    assert [card.uuid for card in FakeCuda(nvml).visible()] == ["GPU-4090"], "an unknown entry ends the list"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert FakeCuda(nvml).visible() == []


def test_the_allocator_keeps_blocks_until_memory_is_short(monkeypatch):
    nvml = FakeNvml([t4()])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    cuda = FakeCuda(nvml, pid=7).install(monkeypatch)
    cuda.allocate(8 * GIB)
    cuda.release(6 * GIB)
    assert (torch.cuda.memory_allocated(0), torch.cuda.memory_reserved(0)) == (2 * GIB, 8 * GIB)
    assert nvml.gpus[0].programs == [FakeProgram(7, 8 * GIB + 450 * MIB)]
    free, total = torch.cuda.mem_get_info(0)
    assert free == total - 8 * GIB - 450 * MIB
    # The cached blocks are given back for it, though they are too small themselves.
    cuda.allocate(11 * GIB)
    with pytest.raises(torch.OutOfMemoryError):
        cuda.allocate(4 * GIB)
    with pytest.raises(RuntimeError, match="GET was unable"):
        cuda.convolve_without_memory(4 * GIB)
    assert torch.cuda.memory_stats(0)["num_ooms"] == 2
    cuda.dead = words.accelerator_error(700, words.DEAD[700])
    with pytest.raises(torch.AcceleratorError, match="illegal memory access"):
        torch.cuda.memory_reserved(0)
