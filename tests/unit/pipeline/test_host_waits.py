"""Within a step of denoising nothing is read from the card and nothing is copied to it: the host can run ahead."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from PIL import Image

from pipeline.clips.clip import Sampler
from pipeline.dryrun.device import DryDevice
from pipeline.dryrun.run import DryModel, clip_of
from pipeline.families import FAMILIES, Family
from pipeline.families.layouts import Layout

SMALL = [family for family in FAMILIES.values() if family.repo is None and family.components]
#: diffusers' UniPC builds its coefficients on the card, number by number, and solves a system of two there.
OF_UNIPC = 6
#: Its noise comes from a counter on the host, and its generator is one of a device with data.
UNKNOWN = {Sampler.LCM}


@pytest.mark.parametrize(
    ("does", "waits"),
    [
        (lambda card, _host: card.sum().item(), 1),
        (lambda card, _host: bool(card.isfinite().all()), 1),
        (lambda card, _host: card.cpu(), 1),
        (lambda _card, host: host.to("meta"), 1),
        (lambda card, host: card.copy_(host), 1),
        (lambda card, host: card + host[0], 0),
        (lambda card, host: host.sum().item(), 0),
        (lambda card, _host: card.double() @ card.double(), 0),
        (lambda card, _host: card[1:].copy_(card[:-1]), 0),
    ],
)
def test_what_a_card_is_waited_for_is_counted(does: Any, waits: int) -> None:
    device, card, host = DryDevice(), torch.empty(4, device="meta"), torch.ones(4)
    with device.work():
        does(card, host)
    assert device.waits == waits
    device.reset_peak()
    assert device.waits == 0


@cache
def dry_model(family: Family) -> DryModel:
    return DryModel(family, torch.float32)


def waits_of_steps(family: Family, sampler: Sampler, layout: Layout, **changes: Any) -> list[int]:
    """Waits of each step but what is done before the first."""
    model = dry_model(family)
    frames = next(n for n in range(8, 32) if family.frame_rule.allows(n))
    spec = clip_of(family, 64, 64, frames).model_copy(update={"steps": 4, "sampler": sampler, **changes})
    found: list[int] = []
    with model.device.work(), torch.no_grad():
        halves = model.engine.condition(Image.new("RGB", spec.size), spec)
        model.device.reset_peak()
        model.engine.denoise(halves, spec, layout, lambda *_: found.append(model.device.waits))
    return [later - earlier for earlier, later in pairwise(found)]


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("family", SMALL, ids=lambda family: family.name)
def test_a_step_waits_for_nothing(family: Family, split: bool) -> None:
    for sampler in set(family.samplers) - UNKNOWN:
        most = OF_UNIPC if sampler is Sampler.UNIPC else 0
        assert max(waits_of_steps(family, sampler, Layout(split_guidance=split))) <= most, sampler


@pytest.mark.parametrize("family", [each for each in SMALL if each.engine != "wan"], ids=lambda family: family.name)
def test_neither_does_one_in_windows_or_with_a_step_cache(family: Family) -> None:
    sampler = next(each for each in family.samplers if each not in {*UNKNOWN, Sampler.UNIPC})
    assert max(waits_of_steps(family, sampler, Layout(), window=4, window_overlap=2)) == 0
    assert max(waits_of_steps(family, sampler, Layout(split_guidance=True), step_cache=2)) == 0
