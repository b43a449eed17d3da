"""Whole clips of all full-size families on a card that has devices and types and no data, weights still on the host.

On a CPU every tensor is on the one device there is, so what is left on the host, in another type, or waited for within
a step shows nowhere else without a GPU. Networks have their full width and every kind of block, but few blocks of each.
"""

from __future__ import annotations

import os
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.clips.clip import BaseClip, ClipSpec, ResolutionClass, Sampler, Upscale
from pipeline.devices.transfer import tensors_of
from pipeline.dryrun.run import clip_of
from pipeline.families import Stage, family_named
from pipeline.families.layouts import Layout
from pipeline.models.diffusion import DiffusionModel
from tests.doubles.fake_card import FakeCard

FULL_SIZE = ("i2vgen-xl", "svd-xt", "wan2.2-5b")
slow = pytest.mark.skipif("CLIPMILL_SLOW_TESTS" not in os.environ, reason="takes ten seconds: `make slow` runs it")
#: The family's own, and those that wait within a step; others are alike.
SAMPLERS = [
    pytest.param(
        name,
        sampler,
        marks=() if place == 0 or (sampler in (Sampler.UNIPC, Sampler.LCM) and name == "i2vgen-xl") else slow,
    )
    for name in FULL_SIZE
    for place, sampler in enumerate(family_named(name).samplers)
]
#: Shapes matter to no device and no type: small ones take a fraction of the time.
SIZE, FRAMES, STEPS = (128, 64), 9, 2
#: diffusers' UniPC builds its coefficients on the card, number by number, and solves a system of two there.
OF_UNIPC = 6
#: LCM's noise comes from a counter on the host; what diffusers draws beside it, and is thrown away, does so here alone.
OF_LCM = 2

_models: dict[str, DiffusionModel] = {}


def model_of(name: str, monkeypatch: pytest.MonkeyPatch) -> DiffusionModel:
    if name not in _models:
        _models[name] = FakeCard().model(family_named(name), shallow=True, on_host=True)
    card_of(_models[name]).install(monkeypatch)
    return _models[name]


def card_of(model: DiffusionModel) -> FakeCard:
    card = model.device
    assert isinstance(card, FakeCard)
    return card


def clip(name: str, **changes: Any) -> ClipSpec:
    return clip_of(family_named(name), *SIZE, FRAMES).model_copy(update={"steps": STEPS, **changes})


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8))


def rendered(model: DiffusionModel, spec: ClipSpec, layout: Layout, resume: bytes | None = None) -> list[int]:
    """Render a clip; waits of each step but the first, which comes after encoding and computes what all share."""
    card, waits, snapshots = card_of(model), [], []

    def on_step(_done: int, _total: int, snapshot: Any) -> None:
        waits.append(card.waits)
        snapshots.append(snapshot)

    synchronized = card.synchronized
    frames = model.render(picture(), spec, layout, on_step, resume)
    assert frames.shape == (spec.frames, spec.height, spec.width, 3)
    assert card.synchronized - synchronized == len(waits), "a step counts when the card has finished it"
    return [later - earlier for earlier, later in pairwise(waits)]


def where(model: DiffusionModel, stage: Stage) -> set[tuple[str, str]]:
    """(device, type) of the weights of one stage."""
    return {
        (tensor.device.type, str(tensor.dtype).removeprefix("torch."))
        for network in model.parts.of(stage)
        for tensor in tensors_of(network)
        if tensor.is_floating_point()
    }


def kinds(name: str) -> list[Layout]:
    """A layout of each kind that the family has; those in tiles have a test of their own."""
    found = {o.model_copy(update={"decode_tile": 0, "decode_overlap": 0}): None for o in family_named(name).layouts}
    return list(found)


LAYOUTS = [
    pytest.param(name, layout, marks=() if place in (0, len(kinds(name)) - 1) or layout.decode_half else slow)
    for name in FULL_SIZE
    for place, layout in enumerate(kinds(name))
]


@pytest.mark.parametrize(("name", "layout"), LAYOUTS, ids=str)
def test_a_clip_in_every_layout(name: str, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(name, monkeypatch)
    spec = clip(name)
    assert max(rendered(model, spec, layout)) <= (OF_UNIPC if spec.sampler is Sampler.UNIPC else 0)
    half = model.family.half
    decoder = {("cuda", half if layout.decode_half else str(model.parts.vae.dtype).removeprefix("torch."))}
    assert where(model, Stage.DECODE) == decoder
    there = {stage: {device for device, _ in where(model, stage)} for stage in Stage}
    if not layout.stream_weights:
        gone = layout.evict_denoiser
        assert there[Stage.DENOISE] == ({"cpu"} if gone else {"cuda"})
        assert there[Stage.ENCODE] == ({"cpu"} if layout.evict_encoders else {"cuda"})
    else:
        # Some stay, such as norms between groups; between evaluations no group is there.
        assert "cpu" in there[Stage.DENOISE] or layout.evict_denoiser
    # A next clip begins with the still, by the whole network.
    with model.device.work(), model.residency.encoders():
        assert ("cuda", "float32" if name == "wan2.2-5b" else half) in where(model, Stage.DECODE)


@pytest.mark.parametrize(("name", "sampler"), SAMPLERS, ids=str)
def test_every_sampler(name: str, sampler: Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is waited for within a step but what is named above; it can be left and gone on from at any step."""
    model = model_of(name, monkeypatch)
    layout = family_named(name).layouts[0]
    spec, taken = clip(name, sampler=sampler, steps=4), {}
    most = {Sampler.UNIPC: OF_UNIPC, Sampler.LCM: OF_LCM}.get(sampler, 0)
    assert max(rendered(model, spec, layout)) <= most

    def keep(done: int, _total: int, snapshot: Any) -> None:
        taken[done] = snapshot()

    model.render(picture(), spec, layout, keep)
    assert len(rendered(model, spec, layout, taken[2])) == 1
    assert max(rendered(model, spec, layout, taken[1])) <= most


@pytest.mark.parametrize("split", [pytest.param(False, marks=slow), True])
@pytest.mark.parametrize("name", FULL_SIZE)
def test_what_a_row_may_ask_for(name: str, split: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(name, monkeypatch)
    family = family_named(name)
    layout = family.layouts[0].model_copy(update={"split_guidance": split})
    plain = next(each for each in family.samplers if each not in (Sampler.UNIPC, Sampler.LCM))
    frames = 13 if family.frames_per_latent > 1 else 12
    asked: list[dict[str, Any]] = [
        {"guidance": 1.0},
        {"frames": frames, "window": 9, "window_overlap": 4},
    ]
    if family.step_cacheable:
        asked.append({"step_cache": 2})
    for changes in asked:
        assert max(rendered(model, clip(name, sampler=plain, **changes), layout)) == 0, changes


@pytest.mark.parametrize("upscale", list(Upscale))
@pytest.mark.parametrize("name", FULL_SIZE)
def test_motion_from_a_smaller_clip(name: str, upscale: Upscale, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoded, enlarged and encoded again, or enlarged as latents; decoded in half precision where that is a layout."""
    model = model_of(name, monkeypatch)
    family = family_named(name)
    base = BaseClip(
        resolution_class=ResolutionClass.P256,
        width=64,
        height=64,
        frames=5,
        fps=8,
        steps=2,
        guidance=family.guidance,
        seed=1,
        sampler=family.samplers[0],
    )
    # Another seed for each: a base that was rendered before is kept.
    seed = 100 + list(Upscale).index(upscale)
    spec = clip(name, base=base.model_copy(update={"seed": seed}), upscale=upscale, strength=0.7, steps=3)
    halves = any(layout.decode_half for layout in family.layouts)
    layout = family.layouts[0].model_copy(update={"decode_half": halves, "evict_encoders": True})
    assert len(rendered(model, spec, layout)) == spec.total_steps - 1


def test_the_weights_are_of_full_width_and_are_brought_to_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    model = FakeCard().model(family_named("wan2.2-5b"), shallow=True, on_host=True)
    card_of(model).install(monkeypatch)
    assert {where(model, stage).pop()[0] for stage in Stage} == {"cpu"}
    assert model.parts.transformer.config.num_layers == 2
    assert model.parts.transformer.blocks[0].attn1.to_q.weight.shape == (3072, 3072)
    with model.device.work():
        model.residency.place(Stage.DENOISE)
    assert {device for device, _ in where(model, Stage.DENOISE)} == {"cuda"}
    assert {device for device, _ in where(model, Stage.ENCODE)} == {"cpu"}


@pytest.mark.parametrize(
    ("does", "waits"),
    [
        (lambda card, _host: card.sum().item(), 1),
        (lambda card, _host: bool(card.isfinite().all()), 1),
        (lambda card, _host: card.cpu(), 1),
        (lambda _card, host: host.to("cuda:0"), 1),
        (lambda _card, host: host.to("cuda:0", non_blocking=True), 0),
        (lambda card, host: card.copy_(host), 1),
        (lambda _card, _host: torch.tensor([1.0], device="cuda:0"), 1),
        (lambda card, host: card + host[0], 0),
        (lambda card, _host: card.to(torch.float64), 0),
        (lambda card, _host: card[1:].copy_(card[:-1]), 0),
    ],
)
def test_what_is_waited_for_is_counted(does: Any, waits: int) -> None:
    card, host = FakeCard(), torch.ones(4)
    with card.work():
        there = torch.empty(4, device="cuda:0")
        card.waits = 0
        does(there, host)
    assert card.waits == waits
