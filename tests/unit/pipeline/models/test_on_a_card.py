"""Full-size decoders on a card that has devices and types and no data: nothing of the host is mixed up with the card's.

On a CPU every tensor is on the one device there is, so a forgotten `.to(device)` shows nowhere else without a GPU.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.dryrun.run import clip_of
from pipeline.families import Stage, family_named
from pipeline.families.layouts import Layout
from pipeline.models.diffusion import DiffusionModel
from pipeline.models.stages.decoding import _eight_bits
from tests.doubles.fake_card import FakeCard

FULL_SIZE = ("i2vgen-xl", "svd-xt", "wan2.2-5b")
#: Shapes matter to no device and no type: small ones take a fraction of the time.
SIZE, FRAMES = (128, 64), 5


@pytest.fixture(scope="module", params=FULL_SIZE)
def model(request: pytest.FixtureRequest) -> DiffusionModel:
    return FakeCard().model(family_named(request.param))


def clip(model: DiffusionModel):
    return clip_of(model.family, *SIZE, FRAMES).model_copy(update={"steps": 3})


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8))


@pytest.mark.parametrize("tiled", [False, True])
def test_the_decoder_and_its_frames(model: DiffusionModel, tiled: bool) -> None:
    spec = clip(model)
    side = SIZE[0] // model.family.pixels_per_latent
    tiles = {"decode_tile": side - 2, "decode_overlap": 1} if tiled else {}
    layout = Layout(**{**model.family.layouts[0].model_dump(), **tiles})
    found = 0
    with model.device.work():
        for chunk in model.decode_chunks(model.first_noise(spec)[:, :, :2], layout):
            finite, pixels = _eight_bits(chunk)
            assert (finite.device.type, pixels.device.type, pixels.dtype) == ("cuda", "cuda", torch.uint8)
            found += pixels.shape[0]
    assert found == 1 + model.family.frames_per_latent


def test_networks_are_full_size(model: DiffusionModel) -> None:
    parameters = sum(parameter.numel() for network in model.parts.networks for parameter in network.parameters())
    assert parameters > 2_000_000_000
    assert len(model.parts.of(Stage.DENOISE)) == 1


@pytest.mark.parametrize("mixed", ["device", "type", "index"])
def test_what_is_mixed_up_is_seen(mixed: str) -> None:
    card = FakeCard()
    with card.work():
        there = torch.empty(4, 8, device="cuda:0")
        half = torch.empty(8, 8, dtype=torch.float16, device="cuda:0")
        here = torch.empty(4, 8)
        mixes = {
            "device": lambda: there + here,
            "type": lambda: torch.nn.functional.linear(there, half),
            "index": lambda: there[:, 2:] @ here[:, 2:].T,
        }
        with pytest.raises(RuntimeError, match=r"device|dtype"):
            mixes[mixed]()
