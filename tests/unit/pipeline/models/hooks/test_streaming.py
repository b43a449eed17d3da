"""Weights that pass through the card: the same bits, a fraction of the network there at a time, nothing left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pipeline.clips.clip import ClipSpec, ResolutionClass
from pipeline.devices.emulated import EmulatedDevice, HostDevice
from pipeline.families import FAMILIES, Family, Stage
from pipeline.families.layouts import Layout
from pipeline.models.diffusion import DiffusionModel
from pipeline.models.hooks.streaming import StreamedWeights, divide, streamed_bytes
from pipeline.models.loading import load_model
from pipeline.models.model import RenderStopped

SMALL = [family for family in FAMILIES.values() if family.repo is None and family.components]


def load(family: Family, home: Path, device: Any) -> DiffusionModel:
    model = load_model(family, device, weights_dir=None, home=home, offline=True, on_load=lambda _text: None)
    assert isinstance(model, DiffusionModel)
    return model


def spec_of(family: Family) -> ClipSpec:
    rule = family.frame_rule
    return ClipSpec(
        family=family.name,
        revision=family.revision,
        prompt="a lamp turns",
        resolution_class=ResolutionClass.P256,
        width=64,
        height=64,
        frames=next(n for n in range(3, rule.maximum) if rule.allows(n)),
        fps=8,
        steps=2,
        guidance=family.guidance,
        seed=1,
        sampler=family.samplers[0],
    )


def no_step(_done: int, _total: int, _snapshot: Any) -> None:
    pass


def still() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.mark.parametrize("family", SMALL, ids=lambda family: family.name)
def test_streamed_weights_give_the_same_clip(family: Family, home: Path) -> None:
    spec, resident = spec_of(family), family.layouts[0]
    streamed = resident.model_copy(update={"stream_weights": True})
    expected = load(family, home, HostDevice()).render(still(), spec, resident, no_step)
    card = HostDevice()
    model = load(family, home, card)
    held: list[int] = []
    frames = model.render(still(), spec, streamed, lambda *_: held.append(card.used_bytes()))
    assert np.array_equal(frames, expected)
    weights = {
        stage: sum(t.nbytes for n in model.parts.of(stage) for t in [*n.parameters(), *n.buffers()]) for stage in Stage
    }
    # Between steps only what no group holds is there, and of the denoiser that is less than a quarter.
    activations = 2**20
    assert max(held) < weights[Stage.DECODE] + (weights[Stage.ENCODE] + weights[Stage.DENOISE]) / 4 + activations
    # Back and forth: a resident clip after it, and a streamed one after that.
    for layout in (resident, streamed, resident):
        assert np.array_equal(model.render(still(), spec, layout, no_step), expected)
    model.unload()
    assert card.used_bytes() == 0


def network() -> nn.Module:
    layers = [nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32)) for _ in range(40)]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.ones(32))
            self.layers = nn.ModuleList(layers)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = x + layer(x)
            return x * self.shift

    return Net().requires_grad_(False)


def test_every_weight_is_streamed_or_stays_and_none_twice() -> None:
    made = network()
    groups, staying = divide(made)
    of_groups = [id(t) for group in groups for t in group.parameters()]
    assert sorted([*of_groups, *map(id, staying)]) == sorted(id(t) for t in made.parameters())
    whole = sum(t.nbytes for t in made.parameters())
    assert all(sum(t.nbytes for t in group.parameters()) <= whole / 16 for group in groups)
    assert streamed_bytes(made) < whole / 8


def test_a_card_smaller_than_the_network_computes_it() -> None:
    made, x = network(), torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    expected = made(x)
    card = EmulatedDevice(streamed_bytes(made) + 16 * x.nbytes)
    with card.work():
        stream = StreamedWeights(made, "cpu")
        found = made(x)
        stream.end()
    assert torch.equal(found, expected)
    assert card.peak_bytes() > streamed_bytes(made) / 2
    with card.work(), pytest.raises(torch.OutOfMemoryError):
        [layer.weight.clone() for layer in made.modules() if isinstance(layer, nn.Linear)]


def test_a_layer_that_fails_leaves_its_weights_on_the_host() -> None:
    made, card = network(), HostDevice()

    def fail(*_args: Any) -> None:
        raise RenderStopped

    handle = made.layers[3][2].register_forward_pre_hook(fail)
    with card.work():
        stream = StreamedWeights(made, "cpu")
        staying = card.used_bytes()
        with pytest.raises(RenderStopped):
            made(torch.ones(1, 32))
    assert card.used_bytes() == staying
    stream.end()
    assert card.used_bytes() == 0
    handle.remove()
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in made.modules())


def test_a_layout_says_that_it_streams() -> None:
    assert "weights=streamed" in str(Layout(stream_weights=True))
    assert "streamed" not in str(Layout())
