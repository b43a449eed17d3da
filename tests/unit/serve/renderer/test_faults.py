"""What an exception says about the card, in every wording that torch and CUDA have for it."""

from __future__ import annotations

import pytest
import torch

from pipeline.devices.cuda import CudaDevice
from pipeline.devices.nvml import Nvml
from serve.renderer.cards import LazyDevice
from serve.renderer.faults import is_out_of_memory, is_sticky
from tests.doubles import words
from tests.doubles.cuda import FakeCuda
from tests.doubles.nvml import GIB, FakeNvml, FakeProgram, t4


@pytest.fixture
def nvml(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return FakeNvml([t4()]).install(monkeypatch)


@pytest.fixture
def cuda(monkeypatch, nvml):
    return FakeCuda(nvml, pid=7).install(monkeypatch)


@pytest.fixture
def card(cuda):
    device = LazyDevice(15 * GIB, 13 * GIB, "cuda:0", lambda: CudaDevice(uuid="GPU-t4", memory=Nvml(pid=7)))
    device.open()
    device.reset_peak()
    return device


@pytest.mark.parametrize("how", words.OUT_OF_MEMORY)
def test_out_of_memory_in_every_wording(how, card):
    error = words.OUT_OF_MEMORY[how]
    for asked in (None, card):
        assert is_out_of_memory(error, asked)
        assert not is_sticky(error, asked)
    assert not is_out_of_memory(ValueError(str(error)))


@pytest.mark.parametrize("how", words.NO_ENGINE)
def test_no_engine_is_out_of_memory_where_an_allocation_failed(how, card, cuda):
    error = words.NO_ENGINE[how]
    assert not is_out_of_memory(error, card), "nothing ran out: the card cannot do it in that dtype"
    assert not is_sticky(error, card)
    assert not is_out_of_memory(error), "without a card to ask it is an error like any other"
    cuda.allocate(10 * GIB)
    with pytest.raises(RuntimeError):
        cuda.convolve_without_memory(5 * GIB)
    assert is_out_of_memory(error, card)
    # What the last try ran out of says nothing of this one.
    card.reset_peak()
    assert not is_out_of_memory(error, card)


def test_no_engine_where_cudnn_allocates_past_torch(card, cuda, nvml):
    error = words.NO_ENGINE["get"]
    nvml.gpus[0].programs.append(FakeProgram(8, cuda.free_bytes - 2**20))
    assert is_out_of_memory(error, card), "nothing is free, and it convolves in everything"
    cuda.convolves = (torch.float32, torch.float16)
    assert not is_out_of_memory(error, card), "Turing has no bfloat16"


@pytest.mark.parametrize("code", words.DEAD)
def test_a_dead_context_by_number_by_words_and_by_trial(code, card, cuda):
    error = words.accelerator_error(code, words.DEAD[code])
    assert is_sticky(error)
    assert not is_out_of_memory(error)
    # Words alone, of a torch that gives no number and of a CUDA that calls it otherwise: the card is tried.
    for text in (f"CUDA error: {words.DEAD[code]}", "CUDA error: something that nobody knows yet"):
        cuda.dead = error
        assert is_sticky(RuntimeError(text), card), text
        cuda.dead = None


@pytest.mark.parametrize("code", words.HARMLESS)
def test_an_error_of_one_call_costs_the_attempt_and_not_the_process(code, card, cuda):
    error = words.accelerator_error(code, words.HARMLESS[code])
    assert not is_sticky(error, card)
    assert not is_out_of_memory(error, card)
    # The same words, and the card does nothing any more.
    cuda.dead = error
    assert is_sticky(error, card)


def test_what_is_no_error_of_the_card_tries_nothing(card, cuda):
    cuda.dead = words.accelerator_error(700, words.DEAD[700])
    for error in (RuntimeError("the frames are not finite"), ValueError("CUDA error: unknown error"), OSError("disk")):
        assert not is_sticky(error, card)
