"""Checkpoints: what went in comes out; what is damaged, or another clip's, is refused with both sides named."""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from pipeline.denoising.checkpoint import Checkpoint, CheckpointError, check, dump, parse
from pipeline.denoising.samplers import SchedulerState

IDENTITY = {"family": "i2vgen-xl-tiny", "shape": [4, 3, 8, 8], "revision": "random-1"}


def some(**changes: Any) -> Checkpoint:
    values: dict[str, Any] = {
        "identity": IDENTITY,
        "phase": 1,
        "step_index": 4,
        "done": 34,
        "latents": torch.linspace(-3, 3, 48).reshape(1, 4, 3, 2, 2),
        "scheduler": SchedulerState(
            kind="UniPCMultistepScheduler",
            schedule="a" * 64,
            tensors={"model_outputs.0": torch.ones(2), "last_sample": torch.tensor(0.1)},
            values={"_step_index": 4, "model_outputs": [{"tensor": "model_outputs.0"}, None]},
            on_cpu=("last_sample",),
        ),
        "conditions": "c" * 64,
        "made": {"dtype": "float32"},
    }
    return Checkpoint(**(values | changes))


def body_of(document: dict[str, Any], tensors: dict[str, torch.Tensor]) -> bytes:
    body = save(tensors, metadata={"checkpoint": json.dumps(document)})
    return b"CLIPMILL" + hashlib.sha256(body).digest() + body


def test_what_went_in_comes_out() -> None:
    before, after = some(), parse(dump(some()))
    assert torch.equal(after.latents, before.latents)
    assert after.scheduler.tensors.keys() == before.scheduler.tensors.keys()
    for name, tensor in before.scheduler.tensors.items():
        assert torch.equal(after.scheduler.tensors[name], tensor)
    assert (after.scheduler.values, after.scheduler.on_cpu) == (before.scheduler.values, before.scheduler.on_cpu)
    for name in ("identity", "phase", "step_index", "done", "conditions", "made"):
        assert getattr(after, name) == getattr(before, name)


def test_equal_checkpoints_are_equal_bytes() -> None:
    assert dump(some()) == dump(some())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_precision_survives(dtype: torch.dtype) -> None:
    latents = torch.rand(1, 4, 2, 3, 3, dtype=torch.float64).to(dtype)
    after = parse(dump(some(latents=latents))).latents
    assert after.dtype == dtype
    assert torch.equal(after, latents)


@given(st.data())
def test_any_damage_is_found(data: st.DataObject) -> None:
    whole = dump(some())
    if data.draw(st.booleans()):
        damaged = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        at, flip = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(1, 255))
        damaged = whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :]
    with pytest.raises(CheckpointError):
        parse(damaged)


def test_another_version_is_refused_with_both_sides() -> None:
    with pytest.raises(CheckpointError, match="the checkpoint has version 99, this clip needs 1"):
        parse(body_of({"version": 99}, {"latents": torch.zeros(1)}))


def test_a_document_that_lacks_something_says_what() -> None:
    with pytest.raises(CheckpointError, match="lacks 'scheduler'"):
        parse(body_of({"version": 1}, {"latents": torch.zeros(1)}))


def test_a_header_that_is_no_safetensors_is_an_error_of_ours() -> None:
    for body in (b"", struct.pack("<Q", 2**40), struct.pack("<Q", 2) + b"{}"):
        with pytest.raises(CheckpointError, match="cannot be read"):
            parse(b"CLIPMILL" + hashlib.sha256(body).digest() + body)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"family": "svd-xt"}, "another family: the checkpoint has i2vgen-xl-tiny, this clip needs svd-xt"),
        (
            {"shape": [4, 3, 8, 16]},
            r"another shape: the checkpoint has \[4, 3, 8, 8\], this clip needs \[4, 3, 8, 16\]",
        ),
        ({"revision": "2"}, "another revision: the checkpoint has random-1, this clip needs 2"),
        ({"sampler": "unipc"}, "another sampler: the checkpoint has None, this clip needs unipc"),
    ],
)
def test_another_clip_s_is_refused_with_both_sides(change: dict[str, Any], message: str) -> None:
    check(some(), IDENTITY)
    with pytest.raises(CheckpointError, match=message):
        check(some(), IDENTITY | change)


def test_the_error_crosses_processes() -> None:
    error = CheckpointError("a checkpoint of another family", "a", "b")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
