"""Decoding in tiles: where they lie, that they add up, how near they come to whole frames, and what they take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.families import FAMILIES, Family, Line, Stage, family_named
from pipeline.families.layouts import RESIDENT, Layout
from pipeline.memory.footprint import (
    decode_of,
    footprint,
    leaner,
    leaner_fit,
    memory_model,
    plan,
    retry_layout,
    tiled,
    tiles,
)
from pipeline.memory.tiles import decoded_pixels, largest_tile, tile_spans, tile_weights

torch = pytest.importorskip("torch")

from pipeline.devices.emulated import EmulatedDevice, HostDevice  # noqa: E402
from pipeline.dryrun.run import DryModel, clip_of  # noqa: E402
from pipeline.models.build import build  # noqa: E402
from pipeline.models.errors import NotFiniteError  # noqa: E402
from pipeline.models.stages.decoding import decode_once  # noqa: E402
from pipeline.models.stages.tiling import decode_in_tiles  # noqa: E402
from pipeline.models.tiny import make_tiny  # noqa: E402
from pipeline.weights.weights import built_folder  # noqa: E402

TINIES = [f.name for f in FAMILIES.values() if f.components and f.repo is None]
REAL = [f.name for f in FAMILIES.values() if f.components and f.repo]

sides = st.integers(2, 24).flatmap(lambda side: st.tuples(st.integers(1, 90), st.just(side), st.integers(0, side - 1)))


@given(sides)
def test_tiles_cover_a_length_evenly_and_share_enough(drawn):
    length, side, overlap = drawn
    spans = tile_spans(length, side, overlap)
    assert (spans[0][0], spans[-1][1]) == (0, length)
    if length <= side:
        assert spans == [(0, length)]
        return
    assert all(end - first == side for first, end in spans)
    shared = [spans[n][1] - spans[n + 1][0] for n in range(len(spans) - 1)]
    assert all(count >= overlap for count in shared)
    assert max(shared) - min(shared) <= 1
    # One tile fewer could not do it.
    assert (len(spans) - 1) * (side - overlap) + overlap < length


@given(sides, st.integers(1, 4))
def test_weights_add_up_to_one_everywhere_and_are_never_zero(drawn, scale):
    length, side, overlap = drawn
    total = np.zeros(length * scale)
    weights = tile_weights(length, side, overlap, scale)
    for (first, end), of in zip(tile_spans(length, side, overlap), weights, strict=True):
        assert len(of) == scale * (end - first)
        assert min(of) > 0
        total[scale * first : scale * end] += of
    assert total == pytest.approx(1)


def test_what_every_tile_decodes_is_counted():
    layout = Layout(decode_tile=8, decode_overlap=2)
    # 20 latents take 3 tiles of 8, 8 take one, and 9 two.
    assert decoded_pixels(160, 64, layout, 8) == (3 * 8) * 8 * 64
    assert decoded_pixels(160, 72, layout, 8) == (3 * 8) * (2 * 8) * 64
    assert decoded_pixels(160, 72, RESIDENT, 8) == 160 * 72
    assert largest_tile(160, 72, layout, 8) == 64 * 64
    assert largest_tile(160, 32, layout, 8) == 64 * 32


@pytest.mark.parametrize("values", [{"decode_overlap": 1}, {"decode_tile": 4, "decode_overlap": 4}])
def test_tiles_that_would_not_move_on_are_refused(values):
    with pytest.raises(ValidationError, match="cannot share"):
        Layout(**values)


# -- declared layouts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REAL)
def test_the_planner_takes_tiles_only_where_nothing_exact_fits(name):
    family = family_named(name)
    exact = [layout for layout in family.layouts if not layout.lossy]
    whole = [layout for layout in family.layouts if not layout.decode_tile]
    assert family.layouts[: len(exact)] == tuple(exact)
    assert family.layouts[: len(whole)] == tuple(whole)
    assert len(whole) < len(family.layouts)
    clip = clip_of(family, 1280, 704, 25)
    least = min(footprint(clip, layout).peak_bytes for layout in whole)
    assert not plan(clip, least)[0].decode_tile
    following = plan(clip, least - 1)
    assert following is None or following[0].decode_tile


@pytest.mark.parametrize("card", ["c12", "c16"])
def test_720p_of_wan_fits_16_and_12_gb_by_a_decoder_in_half_precision(card):
    """In float32 a whole frame's decode takes 12 GiB beside 2.6 GiB of weights, as its dry run counts."""
    from cluster.fleet.cards import NOMINAL_BYTES, promised_bytes

    family = family_named("wan2.2-5b")
    clip = clip_of(family, 1280, 704, 81)
    usable = promised_bytes(NOMINAL_BYTES[card])
    chosen, predicted = plan(clip, usable)
    assert (chosen.decode_half, chosen.decode_tile) == (True, 0)
    assert (chosen.evict_encoders, chosen.stream_weights) == (True, True)
    exact = chosen.model_copy(update={"decode_half": False})
    assert predicted.decode_bytes < decode_of(family, clip.size, 81, exact)
    assert all(footprint(clip, o).peak_bytes > usable for o in family.layouts if not o.lossy)


def test_1024p_of_wan_fits_10_gb_in_tiles_alone():
    family = family_named("wan2.2-5b")
    clip = clip_of(family, 1024, 1024, 81)
    chosen, predicted = plan(clip, 9 * 2**30)
    assert (chosen.decode_tile, chosen.stream_weights) == (32, True)
    assert predicted.decode_bytes < decode_of(family, clip.size, 81, tiled(chosen, (0, 0)))
    assert all(footprint(clip, o).peak_bytes > 9 * 2**30 for o in family.layouts if not o.decode_tile)


@pytest.mark.parametrize("name", [*REAL, *TINIES])
def test_a_decode_that_does_not_fit_ends_in_the_smallest_tiles(name):
    family = family_named(name)
    layout, seen = family.layouts[0], []
    while (following := leaner(layout, Stage.DECODE, family)) is not None:
        layout = following
        seen.append(layout)
    assert [o.decode_tile for o in seen if o.decode_tile][:1] == [tiles(family)[0][0]]
    assert seen[-1].decode_tile == tiles(family)[-1][0]
    assert seen[-1].decode_frames == 1
    # Everything exact comes first.
    first = next(n for n, o in enumerate(seen) if o.decode_tile)
    assert seen[first - 1].evict_denoiser
    assert seen[first - 1].evict_encoders


def test_tiles_as_large_as_the_frame_are_passed_over():
    family = family_named("svd-xt")
    clip = clip_of(family, 512, 512, 16)
    base = family.layouts[0].model_copy(update={"evict_encoders": True, "evict_denoiser": True})
    largest = tiles(family)[0]
    assert footprint(clip, tiled(base, largest)).decode_bytes == footprint(clip, base).decode_bytes
    chosen, predicted = leaner_fit(clip, base, Stage.DECODE, footprint(clip, base).decode_bytes)
    assert chosen.decode_tile == tiles(family)[1][0]
    assert predicted.decode_bytes < footprint(clip, base).decode_bytes


def test_experience_chooses_among_leaner_layouts_and_never_refuses():
    family = family_named("svd-xt")
    clip, base = clip_of(family, 1024, 576, 25), family.layouts[0]
    fitting, layout = [], base
    while (layout := leaner(layout, Stage.DECODE, family)) is not None:
        fitting.append((footprint(clip, layout).decode_bytes, layout))
    usable = fitting[1][0]
    assert leaner_fit(clip, base, Stage.DECODE, usable)[0] == fitting[1][1]
    # Half as much again as predicted: the first that fits so is a later one.
    doubled = leaner_fit(clip, base, Stage.DECODE, usable, lambda _layout, p: round(1.5 * p.decode_bytes))
    assert doubled[0] == next(o for count, o in fitting if 1.5 * count <= usable)
    # A hundred times as much: the leanest there is, which fits as predicted.
    assert leaner_fit(clip, base, Stage.DECODE, usable, lambda *_: 100 * usable)[0] == fitting[-1][1]
    assert leaner_fit(clip, base, Stage.DECODE, fitting[-1][0] - 1) is None


# -- pictures --------------------------------------------------------------------------------------------------


def test_a_decoder_that_looks_nowhere_else_is_the_same_in_tiles():
    """Each pixel from its own latent: the blend must give back what went in, to rounding."""
    latents = torch.randn(2, 3, 21, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    layout = Layout(decode_tile=6, decode_overlap=2)

    def decode(part):
        assert part.shape[-2:] == (6, 6)
        return part.repeat_interleave(4, -1).repeat_interleave(4, -2)

    found = decode_in_tiles(latents, decode, layout, 4)
    assert (found - latents.repeat_interleave(4, -1).repeat_interleave(4, -2)).abs().max() < 1e-12


def test_a_decoder_that_sees_as_far_as_half_of_what_is_shared_is_nearly_the_same():
    """A blur over 5 latents: the wrong rim of a tile counts for little, and the middle for all."""
    latents = torch.randn(1, 3, 40, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    kernel = torch.full((3, 1, 5, 5), 1 / 25, dtype=torch.float64)

    def decode(part):
        return torch.nn.functional.conv2d(part, kernel, padding=2, groups=3)

    whole = decode(latents)
    wide = (decode_in_tiles(latents, decode, Layout(decode_tile=16, decode_overlap=8), 1) - whole).abs()
    hard = (decode_in_tiles(latents, decode, Layout(decode_tile=16, decode_overlap=0), 1) - whole).abs()
    spans = tile_spans(40, 16, 8)
    far = [n for n in range(40) if all(abs(n - edge) > 2 for span in spans for edge in span if edge not in (0, 40))]
    assert wide[..., far, :][..., far].max() < 1e-12, "away from edges nothing differs"
    assert wide.max() < 0.6 * hard.max()


def loaded(name: str, folder: Path, dtype: Any = None, device: Any = None) -> Any:
    """The small family with its own weights, as a farm would have them."""
    from pipeline.models.loading import load_model

    family = family_named(name)
    if not built_folder(family, folder).exists():
        make_tiny(family, built_folder(family, folder))
    model = load_model(
        family, device or HostDevice(), weights_dir=None, home=folder, offline=True, on_load=lambda _text: None
    )
    if dtype is not None:
        for network in model.parts.networks:
            network.to(dtype)
    return model


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


def some_latents(model: Any, family: Family, side: int, frames: int) -> Any:
    """White noise, whose parts are alike, as a trained decoder's latents nearly are."""
    shape = model.latent_shape(clip_of(family, side, side, frames))
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(3))


def decoded(model: Any, latents: Any, layout: Layout) -> Any:
    """(frames, 3, height, width), not clamped."""
    with model.device.work(), torch.no_grad():
        return torch.cat(list(model.decode_chunks(latents, layout))).double()


#: Mean difference of a small random decoder's tiles from its whole frames, as a share of the picture's deviation.
#: Random weights mix a frame through norms and attention far more than trained ones; a random causal decoder, whose
#: tiles here are eight latents a side, most of all. These are bounds of the code, not of quality.
BOUNDS = {"i2vgen-xl-tiny": 0.06, "svd-xt-tiny": 0.06, "wan2.2-5b-tiny": 0.4}
#: By what share a picture may be steeper or flatter than the whole where a tile begins or ends, at most.
SEAM = 0.1


@pytest.mark.parametrize("name", TINIES)
def test_tiles_of_a_small_autoencoder_are_near_the_whole_and_have_no_seams(name, home):
    family, model = family_named(name), loaded(name, home)
    latents = some_latents(model, family, 256, 5)
    side = 128 // family.pixels_per_latent
    layout = family.layouts[0].model_copy(update={"decode_tile": side, "decode_overlap": side // 4})
    whole, found = decoded(model, latents, family.layouts[0]), decoded(model, latents, layout)
    hard = decoded(model, latents, layout.model_copy(update={"decode_overlap": 0}))
    assert found.shape == whole.shape
    difference = (found - whole).abs().mean() / whole.std()
    assert difference <= BOUNDS[name]
    # Where nothing is shared it is further off.
    assert (hard - whole).abs().mean() / whole.std() > 1.2 * difference

    spans = tile_spans(256 // family.pixels_per_latent, side, side // 4)
    edges = [family.pixels_per_latent * edge - 1 for edge in sorted({e for span in spans for e in span})[1:-1]]
    assert len(edges) >= 2
    for axis in (2, 3):
        assert abs(_steepness(found, axis, edges) / _steepness(whole, axis, edges) - 1) <= SEAM
    # The measure sees seams where there are some.
    middle = [127]
    assert max(abs(_steepness(hard, a, middle) / _steepness(whole, a, middle) - 1) for a in (2, 3)) > SEAM


def _steepness(frames: Any, axis: int, places: list[int]) -> float:
    """Mean step from one pixel to the next at `places` along an axis, over that elsewhere."""
    steps = frames.diff(dim=axis).abs()
    return float(steps.index_select(axis, torch.tensor(places)).mean() / steps.mean())


@pytest.mark.parametrize("name", TINIES)
def test_an_overflow_in_one_tile_is_seen(name, home):
    family, model = family_named(name), loaded(name, home)
    latents = some_latents(model, family, 256, 5)
    latents[0, :, 0, -1, -1] = float("nan")
    side = 128 // family.pixels_per_latent
    layout = family.layouts[0].model_copy(update={"decode_tile": side, "decode_overlap": side // 4})
    with pytest.raises(NotFiniteError):
        model.decode(latents, layout)


# -- memory ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TINIES)
@pytest.mark.parametrize("size", [(768, 448), (576, 640)])
def test_the_peak_of_a_tiled_decode_is_as_predicted(name, size):
    """On a card of host memory, bytes besides the weights within 5 % of the closed form, and below the whole's."""
    family = family_named(name)
    card = EmulatedDevice(2**40)
    model = build(family, card, torch.float32)
    clip = clip_of(family, *size, 9)
    layout = next(o for o in family.layouts if o.decode_tile)
    latents = torch.zeros(1, *model.latent_shape(clip)) + 1
    with card.work():
        latents = latents.clone()
    model.decode(latents, family.layouts[0])
    for stage in Stage:
        model.residency.place(stage)
    held = card.used_bytes() - latents.nbytes
    found = {}
    for tile in ((0, 0), (layout.decode_tile, layout.decode_overlap)):
        each = tiled(family.layouts[0], tile)
        card.reset_peak()
        model.decode(latents, each)
        found[each] = card.peak_bytes() - held
        predicted = decode_of(family, clip.size, 9, each) - held
        assert predicted == pytest.approx(found[each], rel=0.05)
    whole, parts = found.values()
    assert parts < 0.95 * whole


def test_a_retry_in_float32_takes_no_more_than_the_decode_that_overflowed():
    """For every real family and layout; where tiles are not enough, the footprint says so."""
    for name in REAL:
        family = family_named(name)
        for size in ((256, 256), (512, 512), (1024, 576), (1024, 1024)):
            for layout in family.layouts:
                clip = clip_of(family, *size, 25)
                retry = retry_layout(family, clip.size, 25, layout)
                assert retry.decode_frames == layout.decode_frames
                plain = decode_of(family, size, 25, layout)
                if family.name == "wan2.2-5b":
                    # Its decoder is in float32 already.
                    assert footprint(clip, layout).tensors["decode"] == plain
                    continue
                again = decode_of(family, size, 25, retry, single=True)
                assert footprint(clip, layout).tensors["decode"] == max(plain, again)
                if again > plain:
                    assert retry.decode_tile == tiles(family)[-1][0]


@pytest.fixture(scope="module")
def half_svd():
    """The small SVD in half precision, as a real one is, with a table of what its decoder takes by dry runs."""
    known, (width, height), frames = family_named("svd-xt-tiny"), (1024, 512), 2
    dry = DryModel(known, torch.float16)
    assert dry.half_decoder
    layout = known.layouts[0]
    found = [
        dry.run(width, height, frames, layout, frozenset({Stage.DECODE})).stages[Stage.DECODE],
        dry.decode_single(width, height, frames, layout),
    ]
    # Convolutions: it grows with pixels and frames, and nothing is there besides.
    whole, single = (Line(per_pixel_frame=each.peak_bytes / (width * height * frames)) for each in found)
    model = replace(memory_model(known), weights=dry.weights, decode=(whole,), decode_single=(single,))
    return replace(known, memory=model)


@pytest.mark.parametrize("counted", [True, False])
def test_a_decode_that_overflows_is_repeated_where_it_fits(half_svd, counted):
    """On a card that holds the first decode and not whole frames in float32: only what is counted is laid out."""
    family = half_svd if counted else replace(half_svd, memory=replace(half_svd.memory, decode_single=()))
    size, frames = (1024, 512), 2
    alone = family.layouts[0].model_copy(update={"evict_encoders": True, "evict_denoiser": True})
    whole = decode_of(family, size, frames, alone)
    assert whole < 0.6 * decode_of(half_svd, size, frames, alone, single=True)
    card = EmulatedDevice(round(1.01 * whole))
    model = build(family, card, torch.float16)
    # Values beyond what 16 bits hold, which norms bring back.
    first = model.parts.vae.decoder.conv_in.weight.data
    first.mul_(60000 / float(first.abs().max()))
    latents = 100 * torch.randn(1, *model.latent_shape(clip_of(family, *size, frames)))
    with pytest.raises(NotFiniteError):
        decode_once(model, latents, alone)
    card.reset_peak()
    if not counted:
        with pytest.raises(torch.OutOfMemoryError):
            model.decode(latents, alone)
        return
    assert model.decode(latents, alone).shape == (frames, *reversed(size), 3)
    # The first decode, or its repetition, came near to what was foretold.
    assert 0.9 * whole < card.peak_bytes() <= card.total_bytes
    assert model.parts.vae.dtype == torch.float16
