"""Decoding in half precision: after all that is exact, before tiles, as predicted, and nothing of it is left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.clips.clip import ClipSpec
from pipeline.devices.emulated import EmulatedDevice, HostDevice
from pipeline.devices.transfer import PlacedWeights, tensors_of
from pipeline.dryrun.run import clip_of
from pipeline.families import FAMILIES, Stage, family_named
from pipeline.families.layouts import RESIDENT, Layout
from pipeline.memory.footprint import decode_of, footprint, leaner, memory_model, plan, tiled, weights_on_card
from pipeline.memory.slowdown import transferred_bytes
from pipeline.models.build import build
from pipeline.models.loading import load_model
from pipeline.models.stages.decoding import decode_once
from pipeline.render import write_clip

HALVING = [family.name for family in FAMILIES.values() if any(layout.decode_half for layout in family.layouts)]
REAL = family_named("wan2.2-5b")
TINY = family_named("wan2.2-5b-tiny")
HALF = Layout(decode_half=True)


@pytest.mark.parametrize("name", HALVING)
def test_only_a_decoder_in_float32_is_halved_and_to_what_has_its_range(name: str) -> None:
    """Where half precision has less range, what overflows would have to be decoded once more."""
    family = family_named(name)
    assert family.half == "bfloat16"
    assert [part.full_precision for part in family.components if part.stage is Stage.DECODE] == [True]


@pytest.mark.parametrize("name", HALVING)
def test_it_comes_after_all_that_is_exact_and_before_tiles(name: str) -> None:
    order = [(bool(layout.decode_tile), layout.decode_half) for layout in family_named(name).layouts]
    assert order == sorted(order)
    layout, seen = family_named(name).layouts[0], []
    while (following := leaner(layout, Stage.DECODE, family_named(name))) is not None:
        layout = following
        seen.append((layout.evict_denoiser, layout.decode_half, bool(layout.decode_tile)))
    assert seen.index((True, True, False)) < seen.index((True, True, True))
    assert seen.index((True, False, False)) < seen.index((True, True, False))


def test_the_planner_takes_it_only_where_nothing_exact_fits() -> None:
    clip = clip_of(REAL, 1280, 704, 81)
    exact = [layout for layout in REAL.layouts if not layout.lossy]
    least = min(footprint(clip, layout).peak_bytes for layout in exact)
    chosen, _ = plan(clip, least) or pytest.fail("nothing fits")
    assert not chosen.lossy
    following, predicted = plan(clip, least - 1) or pytest.fail("nothing fits")
    assert following.lossy == ("frames decoded in half precision",)
    assert predicted.peak_bytes < least


def test_half_of_the_decoder_and_of_what_it_computes() -> None:
    model = memory_model(REAL)
    assert model is not None
    assert model.half_weights == model.weights[Stage.DECODE] // 2
    whole, half = (weights_on_card(REAL, layout) for layout in (RESIDENT, HALF))
    assert whole.decode_bytes - half.decode_bytes == model.half_weights
    # The still is encoded as ever.
    assert (whole.encode_bytes, whole.denoise_bytes) == (half.encode_bytes, half.denoise_bytes)
    clip = clip_of(REAL, 1280, 704, 81)
    besides = [decode_of(REAL, clip.size, 81, o) - weights_on_card(REAL, o).decode_bytes for o in (RESIDENT, HALF)]
    assert 0.5 <= besides[1] / besides[0] < 0.52
    # On to the card for a decode, and back in float32 for the next still.
    more = transferred_bytes(clip, HALF) - transferred_bytes(clip, RESIDENT)
    assert more == 2 * model.weights[Stage.DECODE]


@pytest.mark.parametrize("tile", [(0, 0), (16, 4)])
@pytest.mark.parametrize("size", [(768, 448), (576, 640)])
def test_its_peak_is_as_predicted(size: tuple[int, int], tile: tuple[int, int]) -> None:
    """On a card of host memory, bytes besides the weights within 5 % of the closed form."""
    card = EmulatedDevice(2**40)
    model = build(TINY, card, torch.float32)
    clip, layout = clip_of(TINY, *size, 9), tiled(HALF, tile)
    with card.work():
        latents = torch.ones(1, *model.latent_shape(clip))
    for stage in Stage:
        model.residency.place(stage)
    model.decode(latents, layout)
    held = card.used_bytes() - latents.nbytes
    assert held == sum(memory_model(TINY).weights.values()) - memory_model(TINY).half_weights  # type: ignore[union-attr]
    card.reset_peak()
    model.decode(latents, layout)
    predicted = decode_of(TINY, clip.size, 9, layout) - held
    assert predicted == pytest.approx(card.peak_bytes() - held, rel=0.05)


# -- pictures ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    home = tmp_path_factory.mktemp("home")
    return load_model(TINY, HostDevice(), weights_dir=None, home=home, offline=True, on_load=lambda _text: None)


def test_the_picture_is_near_the_exact_one_and_weights_are_their_own_again(model: Any) -> None:
    shape = model.latent_shape(clip_of(TINY, 128, 96, 9))
    latents = torch.randn(1, *shape, generator=torch.Generator().manual_seed(3))
    model.residency.place(Stage.DECODE)
    before = [tensor.clone() for tensor in tensors_of(model.parts.vae)]
    exact = model.decode(latents, RESIDENT).astype(int)
    found = model.decode(latents, HALF).astype(int)
    assert model.parts.vae.dtype is torch.bfloat16
    difference = np.abs(found - exact)
    # Eight bits of mantissa through a dozen layers of a small random network.
    assert difference.max() > 0
    assert difference.mean() < 2
    # A leftover of the rounding would be seen by every later clip.
    assert np.array_equal(model.decode(latents, RESIDENT), exact)
    assert model.parts.vae.dtype is torch.float32
    assert all(map(torch.equal, tensors_of(model.parts.vae), before))


def test_a_still_is_encoded_by_the_whole_network_after_a_clip_in_half(model: Any) -> None:
    spec = clip_of(TINY, 128, 96, 5)
    pictures = [Image.new("RGB", spec.size, colour) for colour in ("teal", "navy")]
    expected = [model.condition(picture, spec).conditional["first"] for picture in pictures]
    model.conditioning.cache = type(model.conditioning.cache)()
    found = []
    for picture in pictures:
        found.append(model.condition(picture, spec).conditional["first"])
        model.render(picture, spec, HALF, lambda *_: None)
    assert all(map(torch.equal, found, expected))


def test_what_is_not_finite_is_no_overflow_of_half_precision(model: Any) -> None:
    """It would be as little so in float32, so it is not decoded once more."""
    from pipeline.models.errors import NotFiniteError

    latents = torch.full((1, *model.latent_shape(clip_of(TINY, 64, 64, 5))), float("nan"))
    with pytest.raises(NotFiniteError, match="bfloat16"):
        model.decode(latents, HALF)


def test_weights_are_rounded_once_and_come_back_by_the_bit() -> None:
    made = torch.nn.Linear(3, 5)
    made.register_buffer("count", torch.arange(4))
    before = [(tensor.data_ptr(), tensor.clone()) for tensor in tensors_of(made)]
    card = EmulatedDevice(2**20)
    placed = PlacedWeights(made, card, torch.bfloat16)
    assert {tensor.dtype for tensor in made.parameters()} == {torch.bfloat16}
    assert made.count.dtype is torch.int64
    assert card.used_bytes() == sum(tensor.nbytes for tensor in tensors_of(made))
    assert torch.equal(made.weight, before[0][1].bfloat16())
    placed.end()
    assert [(tensor.data_ptr(), tensor.dtype) for tensor in tensors_of(made)] == [(at, t.dtype) for at, t in before]
    assert all(torch.equal(tensor, was) for tensor, (_, was) in zip(tensors_of(made), before, strict=True))
    assert card.used_bytes() == 0


def test_the_decode_alone_tells_what_it_computed_in(model: Any) -> None:
    latents = torch.zeros(1, *model.latent_shape(clip_of(TINY, 64, 64, 5)))
    model.residency.ready(Stage.DECODE, HALF)
    assert {part.dtype for part in model.decode_chunks(latents, HALF)} == {torch.bfloat16}
    assert decode_once(model, latents, HALF).shape == (5, 64, 64, 3)


# -- what is said of it ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        (RESIDENT, []),
        (HALF, ["frames decoded in half precision"]),
        (tiled(RESIDENT, (32, 8)), ["frames decoded in tiles"]),
        (tiled(HALF, (32, 8)), ["frames decoded in half precision", "frames decoded in tiles"]),
    ],
    ids=str,
)
def test_the_provenance_says_that_it_is_lossy(tmp_path: Path, layout: Layout, words: list[str]) -> None:
    spec: ClipSpec = clip_of(TINY, 64, 64, 5).model_copy(update={"step_cache": 2})
    frames = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    files = write_clip(frames, spec, tmp_path, {"layout": layout.model_dump(mode="json")})
    provenance = json.loads(files.provenance.read_text(encoding="utf-8"))
    assert provenance["lossy"] == ["deep layers reused for 2 steps", *words]


def test_footprint_and_suggest_say_that_it_is_lossy() -> None:
    from typer.testing import CliRunner

    from serve.cli.main import app

    run = CliRunner().invoke
    rows = json.loads(run(app, ["footprint", "wan2.2-5b", "--json"]).stdout)["rows"]
    for row in rows:
        assert bool(row["lossy"]) == (row["switches"]["decode_half"] or row["switches"]["decode_tile"] > 0)
    # Cells are wrapped.
    text = " ".join(run(app, ["footprint", "wan2.2-5b"], env={"COLUMNS": "250"}).output.split())
    assert text.count("(lossy)") == text.count("decoder=half") + text.count("tiles=") > 0
    assert "decoder=half (lossy)" in text
    command = ["suggest", "--vram", "12", "--model", "wan2.2-5b"]
    options = json.loads(run(app, [*command, "--json"]).stdout)["options"]
    largest = next(option for option in options if option["class"] == "1024p")
    assert largest["lossy"], largest
    text = " ".join(run(app, command, env={"COLUMNS": "250"}).output.split())
    assert "(lossy)" in text
