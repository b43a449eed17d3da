"""Checkpoints that somebody changed and hashed anew: each is refused, or gives the clip's own frames."""

from __future__ import annotations

import hashlib
import json
import random
import struct
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from pipeline.clips.clip import BaseClip
from pipeline.clips.encode import frames_sha256
from pipeline.denoising.checkpoint import CheckpointError, parse
from pipeline.families.layouts import RESIDENT
from tests.unit.pipeline.denoising.test_resume import SMALL, model_of, specs_of, still

Document = dict[str, Any]
Tensors = dict[str, torch.Tensor]
Change = Callable[[Document, Tensors], Any]
STRANGE = [None, True, -1, 2**70, 1e308, float("nan"), "x", "\ud800", [], [[]], {}, {"tensor": "nothing"}, {"array": 3}]


def unpack(data: bytes) -> tuple[Document, Tensors]:
    body = data[40:]
    (size,) = struct.unpack_from("<Q", body)
    return json.loads(json.loads(body[8 : 8 + size])["__metadata__"]["checkpoint"]), load(body)


def pack(document: Any, tensors: Tensors) -> bytes:
    return hashed(save(tensors, metadata={"checkpoint": json.dumps(document)}))


def hashed(body: bytes) -> bytes:
    return b"CLIPMILL" + hashlib.sha256(body).digest() + body


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A small network, a clip by a multistep sampler, its frames, and its checkpoint after two steps."""
    family = next(family for family in SMALL if family.name == "i2vgen-xl-tiny")
    model = model_of(family, tmp_path_factory.mktemp("home"))
    spec = next(spec for spec in specs_of(family) if str(spec.sampler) == "unipc")
    kept: list[bytes] = []
    frames = model.render(still(), spec, RESIDENT, lambda _done, _total, snapshot: kept.append(snapshot()))
    return model, spec, frames_sha256(frames), kept[1]


def resume(clip: Any, data: bytes) -> str:
    model, spec, _, _ = clip
    return frames_sha256(model.render(still(), spec, RESIDENT, lambda *_: None, resume=data))


CHANGES: dict[str, Change] = {
    "goes on at another step": lambda d, _: d.update(step_index=1),
    "says another number of steps": lambda d, _: d.update(done=3),
    "both": lambda d, _: d.update(done=1, step_index=1),
    "stands past its end": lambda d, _: d.update(step_index=99, done=99),
    "a negative step": lambda d, _: d.update(step_index=-2, done=-2),
    "a phase that is no number": lambda d, _: d.update(phase="0"),
    "a sampler that stands elsewhere": lambda d, _: d["scheduler"]["values"].update(_step_index=1),
    "a sampler without a method": lambda d, _: d["scheduler"]["values"].update(step=3),
    "a sampler of another class": lambda d, _: d["scheduler"]["values"].update(__class__="str"),
    "another schedule": lambda d, _: d["scheduler"]["values"].update(timesteps=[1, 2, 3, 4]),
    "another configuration": lambda d, _: d["scheduler"]["values"].update(config={}),
    "a memory that is not there": lambda d, t: [t.pop(n) for n in sorted(t) if n.startswith("scheduler.")],
    "a memory of another shape": lambda _, t: t.update(
        {n: v[..., :1].contiguous() for n, v in t.items() if v.ndim == 5 and n != "latents"}
    ),
    "latents of another shape": lambda _, t: t.update(latents=t["latents"][:, :, :1].contiguous()),
    "two clips": lambda _, t: t.update(latents=torch.cat([t["latents"]] * 2)),
    "latents of integers": lambda _, t: t.update(latents=t["latents"].int()),
    "latents that are not finite": lambda _, t: t.update(latents=t["latents"] * float("nan")),
    "a tensor of something else": lambda _, t: t.update(weights=torch.zeros(3)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_contradicts_itself_is_refused(clip, change):
    document, tensors = unpack(clip[3])
    change(document, tensors)
    with pytest.raises(CheckpointError):
        resume(clip, pack(document, tensors))


def test_what_was_packed_anew_without_a_change_gives_the_clip(clip):
    assert resume(clip, pack(*unpack(clip[3]))) == clip[2]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x01",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 4) + b"null",
        struct.pack("<Q", 200_000) + b"[" * 200_000,
        save({"latents": torch.zeros(1)}, metadata={"checkpoint": "[" * 100_000}),
        save({"latents": torch.zeros(1)}, metadata={"checkpoint": "[1, 2]"}),
        save({"latents": torch.zeros(1)}, metadata={"checkpoint": "null"}),
        save({"latents": torch.zeros(1)}),
    ],
    ids=range(10),
)
def test_bytes_of_another_form_are_an_error_of_ours(body):
    with pytest.raises(CheckpointError):
        parse(hashed(body))


@pytest.mark.parametrize("seed", range(24))
def test_whatever_a_field_is_replaced_by_it_is_refused_or_changes_no_frame(clip, seed):
    rng = random.Random(seed)
    document, tensors = unpack(clip[3])
    places = [(document, name) for name in document] + [(document["scheduler"], name) for name in document["scheduler"]]
    places += [(document["scheduler"]["values"], name) for name in document["scheduler"]["values"]]
    table, name = rng.choice(places)
    if rng.random() < 0.3:
        del table[name]
    else:
        table[name] = rng.choice([value for value in STRANGE if value != table[name]])
    try:
        found = resume(clip, pack(document, tensors))
    except CheckpointError:
        return
    assert found == clip[2], f"{name} became {table.get(name, 'nothing')!r}"


@pytest.mark.parametrize("number", range(2))
def test_a_clip_that_refines_a_smaller_one_goes_on_from_every_step_of_both(clip, number):
    model = clip[0]
    spec = [spec for spec in specs_of(model.family) if str(spec.sampler) in ("unipc", "lcm")][number]
    small = {"width": 64, "height": 64, "steps": 2}
    base = BaseClip(**({name: getattr(spec, name) for name in BaseClip.model_fields} | small))
    spec = spec.model_copy(update={"base": base, "strength": 0.5, "steps": 4})
    kept: list[bytes] = []
    whole = model.render(still(), spec, RESIDENT, lambda _done, _total, snapshot: kept.append(snapshot()))
    assert len(kept) == 4
    for data in kept:
        assert resume((model, spec, None, None), data) == frames_sha256(whole)
