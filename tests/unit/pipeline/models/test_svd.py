"""Stable Video Diffusion on its small random sibling: equal to diffusers' own pipeline, resumable, tidy."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler, StableVideoDiffusionPipeline
from diffusers.pipelines.stable_video_diffusion import pipeline_stable_video_diffusion as stock_module
from PIL import Image

from pipeline.clips.clip import BaseClip, ClipSpec, ResolutionClass, Sampler, Upscale
from pipeline.clips.stills import fit_still
from pipeline.denoising.noise import noise
from pipeline.devices.emulated import HostDevice
from pipeline.families import Stage, family_named
from pipeline.families.layouts import Layout
from pipeline.models.loading import load_model
from pipeline.models.model import RenderStopped
from pipeline.models.parts import Halves, Parts
from pipeline.models.svd import StableVideo
from pipeline.models.tiny import make_tiny
from pipeline.weights.weights import built_folder

TINY = family_named("svd-xt-tiny")
BATCHED, SPLIT, CHUNKED = TINY.layouts[:3]
EVICTED = next(o for o in reversed(TINY.layouts) if o.evict_denoiser)
SAMPLERS = TINY.samplers


def spec_of(width: int = 64, height: int = 64, frames: int = 3, steps: int = 3, **changes: Any) -> ClipSpec:
    values: dict[str, Any] = {
        "family": TINY.name,
        "revision": TINY.revision,
        "prompt": "none",
        "resolution_class": ResolutionClass.P256,
        "width": width,
        "height": height,
        "frames": frames,
        "fps": 7,
        "steps": steps,
        "guidance": 3.0,
        "seed": 5,
        "sampler": Sampler.EULER,
    }
    return ClipSpec(**(values | changes))


def picture(width: int = 100, height: int = 90, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height))


def no_step(_done: int, _total: int, _snapshot: Any = None) -> None:
    pass


def load(home: Path, device: HostDevice | None = None) -> StableVideo:
    model = load_model(
        TINY, device or HostDevice(), weights_dir=None, home=home, offline=True, on_load=lambda _text: None
    )
    assert isinstance(model, StableVideo)
    return model


def encode(model: StableVideo, still: Image.Image, spec: ClipSpec) -> Halves:
    with model.device.work(), torch.no_grad():
        return model.condition(fit_still(still, spec.size, spec.fit), spec)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    make_tiny(TINY, built_folder(TINY, folder))
    return folder


@pytest.fixture(scope="module")
def model(home: Path) -> StableVideo:
    return load(home)


@pytest.fixture(scope="module")
def exact(home: Path) -> StableVideo:
    """The same networks in float64."""
    loaded = load(home)
    for network in loaded.parts.networks:
        network.double()
    return StableVideo(TINY, loaded.parts, HostDevice(), {})


# --- the same algebra as diffusers -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampler", "size", "guidance"),
    [
        (Sampler.EULER, (128, 64), 3.0),
        (Sampler.EULER, (64, 128), 1.0),
        (Sampler.DPMPP_2M, (64, 64), 3.0),
        (Sampler.DPMPP_2M, (64, 64), 1.0),
    ],
)
def test_equal_to_the_stock_pipeline(
    exact: StableVideo, monkeypatch: pytest.MonkeyPatch, sampler: Sampler, size: tuple[int, int], guidance: float
) -> None:
    """Latents and frames in float64; the one thing patched is its draw of the picture's noise."""
    spec = spec_of(*size, frames=5, steps=4, sampler=sampler, guidance=guidance)
    still = picture(*size)
    parts = exact.parts
    stock = StableVideoDiffusionPipeline(
        vae=parts.vae,
        image_encoder=parts.image_encoder,
        unet=parts.unet,
        scheduler=exact.scheduler_of(spec),
        feature_extractor=parts.feature_extractor,
    )
    stock.set_progress_bar_config(disable=True)

    def counted(shape: torch.Size, **options: Any) -> torch.Tensor:
        return torch.from_numpy(noise(0, "svd picture", 0, 0, tuple(shape))).to(options["dtype"])

    monkeypatch.setattr(stock_module, "randn_tensor", counted)

    def run(output_type: str) -> Any:
        return stock(
            image=still,
            width=spec.width,
            height=spec.height,
            num_frames=spec.frames,
            num_inference_steps=spec.steps,
            max_guidance_scale=guidance,
            fps=spec.fps,
            latents=exact.first_noise(spec).transpose(1, 2),
            decode_chunk_size=2,
            output_type=output_type,
        ).frames

    conditions = encode(exact, still, spec)
    expected = run("latent").transpose(1, 2)
    for layout in (BATCHED, SPLIT, CHUNKED):
        ours = exact.denoise(conditions, spec, layout, no_step)
        assert (ours - expected).abs().max() <= 1e-10 * max(1.0, float(expected.abs().max()))
    frames = exact.decode(ours, Layout(decode_frames=2))
    theirs = np.stack([np.asarray(frame) for frame in run("pil")[0]])
    # Both round a float64 to 8 bits; half a step of rounding is all they may differ by.
    assert np.abs(frames.astype(int) - theirs.astype(int)).max() <= 1
    assert (frames != theirs).mean() < 1e-3


@pytest.mark.parametrize("steps", [1, 4, 25])
def test_every_sampler_tells_the_network_the_same_noise_levels(model: StableVideo, steps: int) -> None:
    """Those of the scheduler that the model came with; a solver that tells it places in a schedule is not one."""
    own = EulerDiscreteScheduler.from_config(model.parts.scheduler.config)
    own.set_timesteps(steps)
    for sampler in SAMPLERS:
        scheduler = model.scheduler_of(spec_of(sampler=sampler))
        scheduler.set_timesteps(steps)
        assert torch.allclose(scheduler.timesteps, own.timesteps, rtol=1e-5)
        assert torch.allclose(scheduler.sigmas, own.sigmas, rtol=1e-5)
        assert float(scheduler.init_noise_sigma) == pytest.approx(float(own.init_noise_sigma))
    told = DPMSolverMultistepScheduler.from_config(model.parts.scheduler.config)
    told.set_timesteps(steps)
    assert not torch.allclose(told.timesteps.float(), own.timesteps)


def test_samplers_solve_one_equation(model: StableVideo) -> None:
    """Against a network whose answer is known: the clip itself at every noise level, x₀ = c·x + s·v."""
    clean = torch.from_numpy(noise(1, "clean", 0, 0, (1, 4, 2, 3, 3))).double()
    for sampler in SAMPLERS:
        scheduler = model.scheduler_of(spec_of(sampler=sampler))
        scheduler.set_timesteps(6)
        grain = torch.from_numpy(noise(1, "grain", 0, 0, clean.shape)).double()
        latents = clean + grain * float(scheduler.sigmas[0])
        for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas.double(), strict=False):
            scaled = scheduler.scale_model_input(latents, timestep)
            assert torch.allclose(scaled, latents / (sigma**2 + 1).sqrt(), rtol=1e-6)
            velocity = (latents / (sigma**2 + 1) - clean) * (sigma**2 + 1).sqrt() / sigma
            latents = scheduler.step(velocity, timestep, latents).prev_sample
        assert (latents - clean).abs().max() < 1e-3


def test_half_precision_pictures_are_encoded_in_float32(home: Path, model: StableVideo) -> None:
    """The weights are stored in float16, so the result is the float32 model's to the bit."""
    half = load(home)
    half.parts.vae.half()
    pixels = torch.from_numpy(noise(3, "pixels", 0, 0, (1, 3, 2, 64, 64))).clamp(-1, 1)
    with torch.no_grad():
        assert torch.equal(half.encode_frames(pixels), model.encode_frames(pixels))
    assert half.parts.vae.dtype == torch.float16


# --- the result depends on its arguments alone ------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_global_states_and_a_fresh_model_change_nothing(home: Path, model: StableVideo, sampler: Sampler) -> None:
    spec = spec_of(sampler=sampler)
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    first = model.render(picture(), spec, BATCHED, no_step)
    torch.manual_seed(2)
    np.random.seed(2)
    random.seed(2)
    state = torch.get_rng_state()
    again = load(home).render(picture(), spec, BATCHED, no_step)
    assert np.array_equal(first, again)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("change", [{"seed": 6}, {"fps": 16}, {"steps": 4}, {"guidance": 9.0}, {"sampler": "dpmpp-2m"}])
def test_every_argument_but_the_prompt_matters(model: StableVideo, change: dict[str, Any]) -> None:
    first = model.render(picture(), spec_of(), BATCHED, no_step)
    assert first.shape == (3, 64, 64, 3)
    assert first.dtype == np.uint8
    assert not np.array_equal(first, model.render(picture(), spec_of(**change), BATCHED, no_step))
    assert not np.array_equal(first, model.render(picture(seed=1), spec_of(), BATCHED, no_step))
    assert not np.array_equal(first[0], first[1])
    assert np.array_equal(first, model.render(picture(), spec_of(prompt="snow", negative_prompt="x"), BATCHED, no_step))
    assert not TINY.uses_prompt
    assert model.notes(spec_of())["prompt_used"] is False


def test_a_picture_is_encoded_once_whatever_the_clip(home: Path) -> None:
    fresh = load(home)
    for changes in ({"seed": 1}, {"seed": 2, "frames": 4, "fps": 12, "guidance": 2.0}):
        fresh.render(picture(), spec_of(steps=1, **changes), BATCHED, no_step)
    # The other entries are finished latents; pictures are looked up through `fetch`, which counts.
    assert (fresh.conditioning.cache.misses, fresh.conditioning.cache.hits) == (1, 1)
    fresh.render(picture(), spec_of(width=128, steps=1), BATCHED, no_step)
    assert fresh.conditioning.cache.misses == 2


# --- stopping and going on --------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_resuming_at_any_step_gives_the_same_bits(home: Path, model: StableVideo, sampler: Sampler) -> None:
    spec = spec_of(steps=5, sampler=sampler)
    kept: list[bytes] = []
    whole = model.render(picture(), spec, BATCHED, lambda _done, _total, snapshot: kept.append(snapshot()))  # type: ignore[misc]
    assert len(kept) == spec.steps
    other = load(home)
    for done, checkpoint in enumerate(kept, start=1):
        steps: list[int] = []
        again = other.render(picture(), spec, BATCHED, lambda d, _t, _s: steps.append(d), checkpoint)  # noqa: B023
        assert steps == list(range(done + 1, spec.steps + 1))
        assert np.array_equal(whole, again), f"resumed after step {done}"


def test_windows_cover_a_long_clip(exact: StableVideo) -> None:
    """One window as long as the clip is the clip; shorter ones give other latents, finite everywhere."""
    spec = spec_of(frames=6)
    conditions = encode(exact, picture(), spec)
    whole = exact.denoise(conditions, spec, BATCHED, no_step)
    one = exact.denoise(conditions, spec.model_copy(update={"window": 6, "window_overlap": 2}), BATCHED, no_step)
    assert (whole - one).abs().max() <= 1e-10 * float(whole.abs().max())
    several = exact.denoise(conditions, spec.model_copy(update={"window": 4, "window_overlap": 2}), BATCHED, no_step)
    assert torch.isfinite(several).all()
    assert (whole - several).abs().max() > 1e-6


@pytest.mark.parametrize("upscale", list(Upscale))
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_clip_can_start_from_a_smaller_one(model: StableVideo, upscale: Upscale, sampler: Sampler) -> None:
    large = spec_of(128, 128, frames=4, steps=4, sampler=sampler)
    base = BaseClip(**(large.model_dump(include=set(BaseClip.model_fields)) | {"width": 64, "height": 64, "frames": 3}))
    spec = large.model_copy(update={"base": base, "strength": 0.5, "upscale": upscale})
    steps: list[int] = []
    kept: dict[int, bytes] = {}

    def on_step(done: int, total: int, snapshot: Any) -> None:
        assert total == 6
        steps.append(done)
        kept[done] = snapshot()

    frames = model.render(picture(), spec, BATCHED, on_step)
    assert frames.shape == (4, 128, 128, 3)
    assert steps[-1] == 6
    assert np.array_equal(frames, model.render(picture(), spec, BATCHED, no_step, kept[5]))


def test_encoded_frames_are_on_the_scale_of_latents(exact: StableVideo) -> None:
    """What refinement starts from is what decoding divides: the still's own latents, which are unscaled, times it."""
    pixels = torch.from_numpy(noise(3, "pixels", 0, 0, (1, 3, 2, 64, 64))).clamp(-1, 1)
    vae = exact.parts.vae
    with torch.no_grad():
        scaled = exact.encode_frames(pixels)
        for frame in range(2):
            mode = vae.encode(pixels[:, :, frame].double()).latent_dist.mode()
            assert (scaled[:, :, frame] / vae.config.scaling_factor - mode).abs().max() <= 1e-12


# --- memory and weights -----------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [BATCHED, SPLIT, EVICTED])
def test_nothing_is_left_after_a_cancel_and_an_unload(home: Path, layout: Layout) -> None:
    card = HostDevice()
    loaded = load(home, card)
    loaded.render(picture(), spec_of(steps=1), layout, no_step)
    resting = card.used_bytes()
    gone = {Stage.ENCODE: layout.evict_encoders, Stage.DENOISE: layout.evict_denoiser}
    assert resting == weights_of(loaded.parts, [stage for stage in Stage if not gone.get(stage)])

    def stop(done: int, _total: int, _snapshot: Any) -> None:
        if done == 2:
            raise RenderStopped("cancelled")

    with pytest.raises(RenderStopped) as held:
        loaded.render(picture(), spec_of(steps=5), layout, stop)
    assert held.value.__traceback__ is not None
    assert card.used_bytes() == resting
    loaded.unload()
    assert card.used_bytes() == 0


def weights_of(parts: Parts, stages: list[Stage]) -> int:
    tensors = [t for s in stages for n in parts.of(s) for t in (*n.parameters(), *n.buffers())]
    return sum(t.numel() * t.element_size() for t in tensors)


def test_steps_take_more_memory_than_weights_at_512p(home: Path) -> None:
    """So that emulated cards of different sizes hold different clips; split guidance saves nearly half of it."""
    card = HostDevice()
    loaded = load(home, card)
    spec = spec_of(512, 512, frames=14, steps=1)
    conditions = encode(loaded, picture(), spec)
    peaks = []
    for layout in (BATCHED, SPLIT):
        loaded.denoise(conditions, spec, layout, no_step)  # everything is placed
        card.reset_peak()
        resting = card.used_bytes()
        loaded.denoise(conditions, spec, layout, no_step)
        peaks.append(card.peak_bytes() - resting)
    assert peaks[0] > weights_of(loaded.parts, list(Stage))
    assert peaks[1] < 0.6 * peaks[0]


def test_the_weights_are_the_same_wherever_they_are_made(home: Path, tmp_path: Path) -> None:
    torch.manual_seed(99)
    before = torch.get_rng_state()
    norm = torch.nn.GroupNorm
    make_tiny(TINY, tmp_path / "again")
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.nn.GroupNorm is norm
    files = sorted(p.relative_to(tmp_path / "again") for p in (tmp_path / "again").rglob("*.safetensors"))
    assert [name.parent.name for name in files] == ["image_encoder", "unet", "vae"]
    for name in files:
        assert (tmp_path / "again" / name).read_bytes() == (built_folder(TINY, home) / name).read_bytes()


# --- the family -------------------------------------------------------------------------------------


def test_the_real_family_is_the_small_one_but_for_its_weights() -> None:
    real = family_named("svd-xt")
    assert real.licence_gate
    assert real.licence_url.startswith("https://")
    assert len(real.revision) == 40
    assert int(real.revision, 16)
    assert not TINY.licence_gate
    width, height = 1024, 576
    assert width % real.stride == height % real.stride == 0
    assert real.native_class.pixels == width * height
    for name in ("stride", "frame_rule", "tiers", "guidance", "layouts", "samplers", "engine", "max_windowed_frames"):
        assert getattr(real, name) == getattr(TINY, name)
    # Decoding mixes frames: were it the card's choice, the card would show in the picture.
    assert {layout.decode_frames for layout in real.layouts} == {8}
