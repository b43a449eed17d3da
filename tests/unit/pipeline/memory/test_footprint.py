"""The closed form and the layouts it chooses from: what they promise, and that the switches are exact."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from pipeline.families import FAMILIES, Stage, family_named
from pipeline.families.layouts import RESIDENT, Layout
from pipeline.memory import footprint as footprint_module
from pipeline.memory.footprint import cuda_share, flops_per_step, footprint, footprint_of, leanest, memory_model, plan
from serve.cli.main import app

GIB = 2**30
REAL = family_named("i2vgen-xl")
LEAN = Layout(evict_encoders=True, split_guidance=True, chunk_feed_forward=8)
TINIES = [f.name for f in FAMILIES.values() if f.components and f.repo is None]


def total(family, side, frames, layout):
    peak = max(footprint_of(family, side**2, frames, layout).tensors.values())
    return (peak + cuda_share(peak)) / GIB


def test_what_1024p_needs_of_a_card():
    assert 15 < total(REAL, 1024, 16, RESIDENT) <= 16.5
    assert 5 < total(REAL, 1024, 16, LEAN) <= 6.5
    assert total(REAL, 1024, 32, LEAN) <= 12


def test_workspaces_are_the_largest_convolution_s_input_and_output_once_more():
    """By the published configurations: 320 and 640 channels in the first two blocks, 256 in the decoder's second."""
    half, pixels, frames = 2, 512**2, 16
    found = footprint_of(REAL, pixels, frames)
    # The first block on the way up joins 640 channels with 320 and makes 320, for both halves of the guidance.
    denoise = 2 * (640 + 320 + 320) * half * frames * pixels // 64
    assert found.workspaces["denoise"] == pytest.approx(denoise, rel=1e-4)
    assert footprint_of(REAL, pixels, frames, LEAN).workspaces["denoise"] == pytest.approx(denoise / 2, rel=1e-4)
    # Of one frame: the enlarged picture's 256 channels to 256.
    assert found.workspaces["decode"] == pytest.approx((256 + 256) * half * pixels, rel=1e-4)
    tensors = {stage: found.stages[stage] - found.workspaces[stage] for stage in found.stages}
    assert found.tensors == tensors


def test_tiles_and_windows_have_smaller_convolutions():
    tiled = footprint_of(REAL, 1024**2, 16, Layout(decode_tile=64, decode_overlap=16))
    assert tiled.workspaces["decode"] == footprint_of(REAL, 512**2, 16).workspaces["decode"]
    assert (
        footprint(spec(frames=64, window=16)).workspaces["denoise"] == footprint(spec(frames=16)).workspaces["denoise"]
    )


def test_what_was_measured_of_workspaces_counts(monkeypatch):
    before = footprint_of(REAL, 512**2, 16)
    read = footprint_module._read

    def measured(name):
        found = read(name)
        return (
            found | {"convolution_copies": {"encode": 0.0, "denoise": 0.5, "decode": 2.0}} if name == "cuda" else found
        )

    monkeypatch.setattr(footprint_module, "_read", measured)
    footprint_module.reread()
    try:
        after = footprint_of(REAL, 512**2, 16)
    finally:
        monkeypatch.undo()
        footprint_module.reread()
    assert after.workspaces["encode"] == 0
    assert after.workspaces["denoise"] == pytest.approx(before.workspaces["denoise"] / 2, abs=1)
    assert after.workspaces["decode"] == pytest.approx(2 * before.workspaces["decode"], abs=1)
    assert after.tensors == before.tensors


@pytest.mark.parametrize("name", TINIES)
def test_emulated_cards_have_no_workspaces(name):
    found = footprint_of(family_named(name), 256**2, 5)
    assert found.tensors == found.stages


def test_switches_take_off_what_they_say():
    weights = memory_model(REAL).weights
    resident = footprint_of(REAL, 512**2, 16)
    evicted = footprint_of(REAL, 512**2, 16, Layout(evict_encoders=True))
    assert resident.encode_bytes - evicted.encode_bytes == weights[Stage.DENOISE]
    assert resident.denoise_bytes - evicted.denoise_bytes == weights[Stage.ENCODE]
    assert resident.decode_bytes - evicted.decode_bytes == weights[Stage.ENCODE]
    without = footprint_of(REAL, 512**2, 16, Layout(evict_denoiser=True))
    assert (without.encode_bytes, without.denoise_bytes) == (resident.encode_bytes, resident.denoise_bytes)
    assert resident.decode_bytes - without.decode_bytes == weights[Stage.DENOISE]
    together = footprint_of(REAL, 512**2, 16, Layout(decode_frames=4))
    assert together.decode_bytes > resident.decode_bytes
    assert footprint_of(REAL, 512**2, 4, Layout(decode_frames=16)) == footprint_of(
        REAL, 512**2, 4, Layout(decode_frames=4)
    )


def spec(**changes):
    from pipeline.devices.emulation_scale import largest_clip

    return largest_clip().model_copy(update={"family": "i2vgen-xl", "revision": REAL.revision, **changes})


def test_a_window_holds_its_own_frames_at_once():
    whole, windowed, short = spec(frames=64), spec(frames=64, window=16), spec(frames=16)
    assert footprint(windowed).denoise_bytes < 0.5 * footprint(whole).denoise_bytes
    assert footprint(windowed).denoise_bytes == pytest.approx(footprint(short).denoise_bytes, rel=0.01)
    assert footprint(windowed).denoise_bytes > footprint(short).denoise_bytes


def test_the_base_counts_where_it_is_larger():
    from pipeline.clips.clip import BaseClip, ResolutionClass, Sampler

    base = {"resolution_class": ResolutionClass.P256, "fps": 8, "steps": 2, "guidance": 9.0, "seed": 0}
    small = BaseClip(width=256, height=256, frames=8, sampler=Sampler.DDIM, **base)
    large = BaseClip(width=1024, height=1024, frames=32, sampler=Sampler.DDIM, **base)
    plain = spec(width=512, height=512, frames=8)
    assert footprint(plain.model_copy(update={"base": small})) == footprint(plain)
    heavy = footprint(plain.model_copy(update={"base": large}))
    assert heavy.denoise_bytes == footprint(spec()).denoise_bytes


@pytest.mark.parametrize("name", TINIES)
def test_frames_that_are_encoded_again_are_counted(name):
    """Of a clip that starts from the frames of a smaller one: bytes besides the weights, as a card counted them."""
    torch = pytest.importorskip("torch")
    from pipeline.clips.clip import BaseClip, ResolutionClass, Upscale
    from pipeline.devices.emulated import HostDevice
    from pipeline.dryrun.run import clip_of
    from pipeline.models.build import build

    family, card = family_named(name), HostDevice()
    model = build(family, card, torch.float32)
    clip = clip_of(family, 320, 256, 25)
    for stage in Stage:
        model.residency.place(stage)
    weights = card.used_bytes()
    with card.work(), torch.no_grad():
        pixels = torch.zeros(1, 3, clip.frames, clip.height, clip.width) + 0.5
        card.reset_peak()
        model.encode_frames(pixels)
    shared = clip.model_dump(include={"frames", "fps", "steps", "guidance", "seed", "sampler"})
    base = BaseClip(resolution_class=ResolutionClass.P256, width=64, height=64, **shared)
    enlarged = clip.model_copy(update={"base": base, "strength": 0.5, "upscale": Upscale.FRAMES})
    predicted = footprint(enlarged).encode_bytes
    assert predicted - weights == pytest.approx(card.peak_bytes() - weights, rel=0.05)
    assert predicted > footprint(enlarged.model_copy(update={"upscale": Upscale.LATENTS})).encode_bytes


def test_the_planner_takes_the_first_that_fits():
    clip = spec(frames=16)
    predicted = [footprint(clip, layout).peak_bytes for layout in REAL.layouts]
    for limit in (*predicted, *(count - 1 for count in predicted), 100 * GIB):
        fitting = [layout for layout, count in zip(REAL.layouts, predicted, strict=True) if count <= limit]
        planned = plan(clip, limit)
        assert (planned[0] if planned else None) == (fitting[0] if fitting else None)
    assert leanest(clip)[1].peak_bytes == min(predicted)


def test_a_layout_without_a_table_is_refused_with_the_remedy():
    with pytest.raises(LookupError, match="clipmill footprint i2vgen-xl --write"):
        footprint_of(REAL, 512**2, 16, Layout(chunk_feed_forward=3))


def test_operations_are_those_of_the_real_network():
    found = [flops_per_step(REAL, side**2, 16) / 1e12 for side in (256, 512, 768, 1024)]
    assert found == pytest.approx([9.67, 41.6, 104.6, 213.6], rel=0.005)
    assert flops_per_step(family_named("camera"), 512**2, 16) == 0


def test_the_command_prints_rows_without_gpu_or_weights():
    result = CliRunner().invoke(app, ["footprint", "i2vgen-xl", "--frames", "16", "--json"])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    assert len(rows) == 4 * len(REAL.layouts)
    keys = {"family", "class", "frames", "layout", "stage_bytes", "total_bytes", "flops_per_step"}
    assert all(keys <= set(row) for row in rows)
    largest = next(row for row in rows if row["class"] == "1024p" and row["layout"] == str(RESIDENT))
    assert largest["stage_bytes"] == dict(footprint_of(REAL, 1024**2, 16).stages)
    peak = footprint_of(REAL, 1024**2, 16).peak_bytes
    assert largest["total_bytes"] == peak + cuda_share(peak)
    assert largest["workspace_bytes"] == dict(footprint_of(REAL, 1024**2, 16).workspaces)
    assert largest["smallest_card"] == "c24"


def test_the_command_shows_people_what_saves_something_only():
    """A tile of 512 pixels is all of a 512p square: there the fastest layout in tiles is the fastest of all again."""
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["footprint", "svd-xt", "--frames", "25"])
    assert result.exit_code == 0, result.output
    found = {
        side: [line for line in result.stderr.splitlines() if line.strip().startswith(side)]
        for side in ("512p", "1024p")
    }
    assert len(found["512p"]) < len(found["1024p"]) == len(family_named("svd-xt").layouts)
    tiled = {side: [line for line in lines if "tiles=64-16" in line] for side, lines in found.items()}
    assert not any("guidance=batched" in line for line in tiled["512p"])
    assert any("guidance=batched" in line for line in tiled["1024p"])


def test_the_command_refuses_frames_the_family_cannot_render():
    result = CliRunner().invoke(app, ["footprint", "wan2.2-5b", "--frames", "16"])
    assert result.exit_code == 2
    assert "4n+1" in result.stderr


@pytest.mark.parametrize("name", TINIES)
def test_chunked_feed_forward_is_exact_and_can_be_undone(name):
    torch = pytest.importorskip("torch")
    from PIL import Image

    from pipeline.devices.emulated import HostDevice
    from pipeline.dryrun.run import clip_of
    from pipeline.dryrun.table import allowed_frames
    from pipeline.models.build import build

    family = family_named(name)
    model = build(family, HostDevice(), torch.float64)
    clip = clip_of(family, 64, 64, allowed_frames(family, [3])[0])
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)

    def latents(layout):
        halves = model.condition(Image.fromarray(noise), clip)
        return model.denoise(halves, clip, layout, lambda _done, _total, _snapshot: None)

    with torch.no_grad():
        plain = latents(RESIDENT)
        assert plain.dtype is torch.float64
        assert plain.std() > 0.1
        # Three does not divide any number of tokens here.
        chunked = latents(Layout(chunk_feed_forward=3))
        assert torch.allclose(chunked, plain, rtol=0, atol=1e-10)
        assert any("forward" in vars(m) for n in model.parts.of(Stage.DENOISE) for m in n.modules())
        assert torch.equal(latents(RESIDENT), plain)
        assert not any("forward" in vars(m) for n in model.parts.of(Stage.DENOISE) for m in n.modules())


def test_evicted_networks_are_off_the_card_as_predicted():
    torch = pytest.importorskip("torch")
    from PIL import Image

    from pipeline.devices.emulated import HostDevice
    from pipeline.dryrun.run import clip_of
    from pipeline.models.build import build

    family = family_named("i2vgen-xl-tiny")
    weights = memory_model(family).weights
    card = HostDevice()
    model = build(family, card, torch.float32)
    clip = clip_of(family, 192, 64, 4)
    layout = Layout(evict_encoders=True, evict_denoiser=True)
    picture = Image.new("RGB", clip.size, "red")
    plain = model.render(picture, clip, RESIDENT, lambda _done, _total, _snapshot: None)
    assert card.used_bytes() == sum(weights.values())
    again = model.render(picture, clip, layout, lambda _done, _total, _snapshot: None)
    assert np.array_equal(plain, again)
    assert card.used_bytes() == weights[Stage.DECODE]
    card.reset_peak()
    model.decode(torch.zeros(1, *model.latent_shape(clip)) + 1, layout)
    held = weights[Stage.DECODE]
    predicted = footprint(clip, layout)
    assert predicted.decode_bytes - held == pytest.approx(card.peak_bytes() - held, rel=0.05)
