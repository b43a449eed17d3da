"""Wan2.2 TI2V-5B on its small random sibling: equal to diffusers' own pipeline, resumable, tidy."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
)
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify
from diffusers.pipelines.wan import pipeline_wan_i2v
from diffusers.schedulers import scheduling_dpmsolver_multistep, scheduling_flow_match_euler_discrete
from PIL import Image

from pipeline.clips.clip import BaseClip, ClipSpec, ResolutionClass, Sampler, Tier, Upscale
from pipeline.clips.stills import fit_still
from pipeline.denoising import checkpoint as checkpoints
from pipeline.denoising.caches import TensorCache
from pipeline.denoising.samplers import make_scheduler, start_within
from pipeline.devices.emulated import EmulatedDevice, HostDevice
from pipeline.families import Stage, family_named
from pipeline.families.layouts import RESIDENT, Layout
from pipeline.models.loading import _load_parts, load_model
from pipeline.models.model import RenderStopped
from pipeline.models.parts import Halves
from pipeline.models.stages.residency import leaving_nothing
from pipeline.models.tiny import make_tiny
from pipeline.models.wan import MAX_TOKENS, Wan
from pipeline.weights.weights import built_folder

TINY = family_named("wan2.2-5b-tiny")
REAL = family_named("wan2.2-5b")
SPLIT = Layout(split_guidance=True)
FLOW: dict[str, Any] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 5.0}
#: The stock schedulers as the documentation of diffusers sets them up for this model.
STOCK: dict[Sampler, Any] = {
    Sampler.UNIPC: lambda: UniPCMultistepScheduler(**FLOW),
    Sampler.DPMPP_2M: lambda: DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", solver_order=2, **FLOW),
    Sampler.EULER: lambda: FlowMatchEulerDiscreteScheduler(shift=5.0),
}


def spec_of(width: int = 64, height: int = 64, frames: int = 9, steps: int = 4, **changes: Any) -> ClipSpec:
    values: dict[str, Any] = {
        "family": TINY.name,
        "revision": TINY.revision,
        "prompt": "camera slowly panning left, clouds drifting",
        "negative_prompt": "blurred",
        "resolution_class": ResolutionClass.P256,
        "width": width,
        "height": height,
        "frames": frames,
        "fps": 24,
        "steps": steps,
        "guidance": 5.0,
        "seed": 5,
        "sampler": Sampler.UNIPC,
    }
    return ClipSpec(**(values | changes))


def picture(width: int = 64, height: int = 64, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def no_step(_done: int, _total: int, _snapshot: Any = None) -> None:
    pass


def load(home: Path, device: Any = None, cache: TensorCache | None = None) -> Wan:
    model = load_model(
        TINY,
        device or HostDevice(),
        weights_dir=None,
        home=home,
        offline=True,
        on_load=lambda _text: None,
        cache=cache,
    )
    assert isinstance(model, Wan)
    return model


def encode(model: Wan, still: Image.Image, spec: ClipSpec) -> Halves:
    with model.device.work(), torch.no_grad():
        return model.condition(fit_still(still, spec.size, spec.fit), spec)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads that wait for each other over tiny tensors cost ten times the work where cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    make_tiny(TINY, built_folder(TINY, folder))
    return folder


@pytest.fixture(scope="module")
def model(home: Path) -> Wan:
    return load(home)


class _Doubles:
    """torch, but what is called float32 is float64."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@pytest.fixture
def exact(home: Path, monkeypatch: pytest.MonkeyPatch) -> Wan:
    """The same networks in float64, also where diffusers names float32 for want of precision."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    for module in (pipeline_wan_i2v, scheduling_flow_match_euler_discrete, scheduling_dpmsolver_multistep):
        monkeypatch.setattr(module, "torch", _Doubles())
    loaded = load(home)
    for network in loaded.parts.networks:
        network.double()
    return Wan(TINY, loaded.parts, HostDevice(), {})


def stock_of(model: Wan, sampler: Sampler) -> WanImageToVideoPipeline:
    parts = model.parts
    stock = WanImageToVideoPipeline(
        tokenizer=parts.tokenizer,
        text_encoder=parts.text_encoder,
        vae=parts.vae,
        scheduler=STOCK[sampler](),
        transformer=parts.transformer,
        expand_timesteps=True,
    )
    stock.set_progress_bar_config(disable=True)
    return stock


# --- the same algebra as diffusers -----------------------------------------------------------------


@pytest.mark.parametrize("sampler", TINY.samplers)
@pytest.mark.parametrize(("width", "height", "frames", "guidance"), [(96, 64, 9, 5.0), (64, 64, 5, 1.0)])
def test_equal_to_the_stock_pipeline(
    exact: Wan, sampler: Sampler, width: int, height: int, frames: int, guidance: float
) -> None:
    spec = spec_of(width, height, frames, guidance=guidance, sampler=sampler)
    still = picture(width, height)
    conditions = encode(exact, still, spec)
    stock = stock_of(exact, sampler)

    def run(output_type: str) -> torch.Tensor:
        found: torch.Tensor = stock(
            image=still,
            width=width,
            height=height,
            num_frames=frames,
            num_inference_steps=spec.steps,
            guidance_scale=guidance,
            latents=exact.first_noise(spec),
            prompt_embeds=conditions.conditional["encoder_hidden_states"],
            negative_prompt_embeds=conditions.unconditional["encoder_hidden_states"],
            output_type=output_type,
        ).frames
        return found

    expected, expected_frames = run("latent"), run("pt")
    for layout in (RESIDENT, SPLIT):
        ours = exact.denoise(conditions, spec, layout, no_step)
        assert ours.dtype == torch.float64
        assert (ours - expected).abs().max() <= 1e-10
    with torch.no_grad():
        pixels = torch.cat(list(exact.decode_chunks(ours, RESIDENT))).unsqueeze(0)
    assert pixels.shape == (1, frames, 3, height, width)
    assert ((pixels * 0.5 + 0.5).clamp(0, 1) - expected_frames).abs().max() <= 1e-10


@pytest.mark.parametrize("prompt", ["", "a &amp;amp; lamp\n\t on  été 灯 🙂 ", "a very long prompt " * 60])
def test_prompts_are_embedded_as_the_stock_pipeline_does(
    exact: Wan, monkeypatch: pytest.MonkeyPatch, prompt: str
) -> None:
    """It calls a library, absent here, that mends mis-decoded text; there is none in these."""
    monkeypatch.setattr(pipeline_wan_i2v, "ftfy", SimpleNamespace(fix_text=lambda text: text), raising=False)
    with torch.no_grad():
        expected, _ = stock_of(exact, Sampler.UNIPC).encode_prompt(
            prompt, do_classifier_free_guidance=False, max_sequence_length=MAX_TOKENS
        )
    ours = encode(exact, picture(), spec_of(negative_prompt=prompt)).unconditional["encoder_hidden_states"]
    assert ours.shape == expected.shape == (1, MAX_TOKENS, exact.parts.text_encoder.config.d_model)
    assert (ours - expected).abs().max() <= 1e-12
    assert exact.parts.tokenizer.unk_token_id not in exact.parts.tokenizer(prompt).input_ids


def test_decoding_by_latent_frames_is_the_decoder_itself(model: Wan) -> None:
    """To the bit, several clips after each other, and with nothing left in the decoder."""
    vae = model.parts.vae
    for seed, frames in ((0, 1), (1, 2), (2, 3), (3, 5)):
        latents = torch.randn(1, vae.config.z_dim, frames, 4, 6, generator=torch.Generator().manual_seed(seed))
        mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1)
        deviation = torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1)
        with torch.no_grad():
            chunks = list(model.decode_chunks(latents, Layout(decode_frames=2)))
            whole = vae.decode(latents / (1.0 / deviation) + mean).sample[0].transpose(0, 1)
        assert [len(chunk) for chunk in chunks] == [1] + [4] * (frames - 1)
        assert torch.equal(torch.cat(chunks).clamp(-1, 1), whole)


@pytest.mark.parametrize("frames", [1, 3, 5])
def test_tiles_are_each_the_decoder_itself_and_blended(model: Wan, frames: int) -> None:
    """To the bit: every tile by diffusers' own decoder, weighed and added up by hand."""
    vae = model.parts.vae
    tile, overlap, side = 4, 2, vae.config.scale_factor_spatial
    latents = torch.randn(1, vae.config.z_dim, frames, 4, 6, generator=torch.Generator().manual_seed(frames))
    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1)
    deviation = 1.0 / torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1)
    expected = torch.zeros(1 + 4 * (frames - 1), 3, 4 * side, 6 * side)
    # Four columns each, of which the middle two are shared: the weight moves from one to the other in a line.
    rise = (torch.arange(2 * side, dtype=torch.float64) + 0.5) / (2 * side)
    ones = torch.ones(2 * side, dtype=torch.float64)
    weights = (torch.cat([ones, 1 - rise]), torch.cat([rise, ones]))
    with torch.no_grad():
        for first, weight in zip((0, 2), weights, strict=True):
            given = vae.post_quant_conv(latents[..., first : first + tile] / deviation + mean)
            kept: list[Any] = [None] * 99
            # Not by `decode`, which clamps.
            parts = [
                vae.decoder(given[:, :, n : n + 1], feat_cache=kept, feat_idx=[0], first_chunk=n == 0)
                for n in range(frames)
            ]
            part = unpatchify(torch.cat(parts, dim=2), vae.config.patch_size)[0].transpose(0, 1)
            expected[..., side * first : side * (first + tile)] += part * weight.float()
        layout = Layout(decode_tile=tile, decode_overlap=overlap)
        found = torch.cat(list(model.decode_chunks(latents, layout)))
    assert found.shape == expected.shape
    assert torch.equal(found, expected)


def test_every_layout_is_the_same_algebra(exact: Wan) -> None:
    spec = spec_of(96, 64, steps=2)
    first: tuple[torch.Tensor, Any] | None = None
    for layout in REAL.layouts:
        latents = exact.denoise(encode(exact, picture(), spec), spec, layout, no_step)
        frames = exact.render(picture(), spec, layout, no_step)
        first = first or (latents, frames)
        assert (latents - first[0]).abs().max() <= 1e-10, layout
        # A bfloat16 decoder has eight bits of mantissa; the rest of the clip has all of them.
        apart = 40 if layout.decode_half else 1
        assert np.abs(frames.astype(int) - first[1].astype(int)).max() <= apart, layout


def test_encoding_a_clip_begins_with_the_still(exact: Wan) -> None:
    """The encoder is causal too: the first latent frame of a clip is the still's condition."""
    pixels = torch.rand(1, 3, 9, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        clip, still = exact.encode_frames(pixels), exact.encode_frames(pixels[:, :, :1])
        spec = spec_of(96, 64, 9)
        assert clip.shape == (1, *exact.latent_shape(spec))
        assert (clip[:, :, :1] - still).abs().max() <= 1e-10
        mode = exact.parts.vae.encode(pixels.double()).latent_dist.mode()
    config = exact.parts.vae.config
    for channel in range(config.z_dim):
        expected = (mode[:, channel] - config.latents_mean[channel]) / config.latents_std[channel]
        assert (clip[:, channel] - expected).abs().max() <= 1e-10
    with pytest.raises(ValueError, match=r"8 frames are not of the form 4n\+1"):
        exact.encode_frames(pixels[:, :, :8])


@pytest.mark.parametrize("sampler", TINY.samplers)
def test_a_refinement_starts_on_the_straight_line_to_noise(model: Wan, sampler: Sampler) -> None:
    scheduler = make_scheduler(sampler, model.parts.scheduler.config)
    scheduler.set_timesteps(8)
    clean, noise = torch.full((1, 2, 1, 2, 2), 3.0), torch.full((1, 2, 1, 2, 2), -1.0)
    begun = start_within(scheduler, clean, noise, 5)
    share = float(scheduler.sigmas[5])
    assert 0.2 < share < 0.9
    assert torch.allclose(begun, (1 - share) * clean + share * noise, atol=1e-6)


def test_samplers_that_need_another_schedule_are_refused(model: Wan) -> None:
    for sampler in set(Sampler) - set(TINY.samplers):
        with pytest.raises(ValueError, match="cannot follow a flow-matching schedule"):
            make_scheduler(sampler, model.parts.scheduler.config)


# --- the result depends on its arguments alone ------------------------------------------------------


def test_global_states_and_a_fresh_model_change_nothing(home: Path, model: Wan) -> None:
    spec, still = spec_of(), picture(100, 90)
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    first = model.render(still, spec, RESIDENT, no_step)
    torch.manual_seed(2)
    np.random.seed(2)
    random.seed(2)
    fresh = load(home)
    state = torch.get_rng_state()
    assert np.array_equal(first, fresh.render(still, spec, RESIDENT, no_step))
    assert torch.equal(torch.get_rng_state(), state)


def test_every_argument_matters(model: Wan) -> None:
    first = model.render(picture(), spec_of(), RESIDENT, no_step)
    assert first.shape == (9, 64, 64, 3)
    assert not np.array_equal(first[0], first[1])
    changes: list[dict[str, Any]] = [{"seed": 6}, {"prompt": "snow"}, {"negative_prompt": "dark"}, {"steps": 5}]
    for change in [*changes, {"guidance": 2.0}, {"sampler": Sampler.EULER}]:
        assert not np.array_equal(first, model.render(picture(), spec_of(**change), RESIDENT, no_step)), change
    assert not np.array_equal(first, model.render(picture(seed=1), spec_of(), RESIDENT, no_step))
    # Frames per second are how it is played, not what it was trained on.
    assert np.array_equal(first, model.render(picture(), spec_of(fps=12), RESIDENT, no_step))


# --- checkpoints ----------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", TINY.samplers)
def test_resuming_at_any_step_gives_the_same_frames(home: Path, model: Wan, sampler: Sampler) -> None:
    spec, still = spec_of(96, 64, steps=5, sampler=sampler), picture(100, 90)
    taken: list[bytes] = []
    whole = model.render(still, spec, RESIDENT, lambda _done, _total, snapshot: taken.append(snapshot()))
    assert len(taken) == spec.steps
    other = load(home)
    for done, data in enumerate(taken, start=1):
        steps: list[int] = []
        frames = other.render(still, spec, RESIDENT, lambda at, _total, _s, to=steps: to.append(at), resume=data)
        assert steps == list(range(done + 1, spec.steps + 1))
        assert np.array_equal(frames, whole), done


@pytest.mark.parametrize("upscale", Upscale)
def test_a_draft_is_refined_and_resumed_in_either_phase(model: Wan, upscale: Upscale) -> None:
    base = BaseClip(
        resolution_class=ResolutionClass.P256,
        width=64,
        height=64,
        frames=5,
        fps=24,
        steps=2,
        guidance=5.0,
        seed=5,
        sampler=Sampler.UNIPC,
    )
    spec, still = spec_of(96, 96, 9, steps=4, base=base, strength=0.5, upscale=upscale), picture(100, 90)
    taken: list[bytes] = []
    model.conditioning.cache = TensorCache()
    whole = model.render(still, spec, RESIDENT, lambda _done, _total, snapshot: taken.append(snapshot()))
    assert whole.shape == (9, 96, 96, 3)
    assert len(taken) == 4
    for data in taken:
        assert np.array_equal(model.render(still, spec, RESIDENT, no_step, resume=data), whole)


# --- windows --------------------------------------------------------------------------------------


def test_the_still_is_in_the_first_window_only(model: Wan) -> None:
    half = encode(model, picture(), spec_of()).conditional
    assert torch.equal(model.cut(half, 0, 3)["first"], half["first"])
    assert model.cut(half, 2, 5)["first"].shape[2] == 0
    assert torch.equal(model.cut(half, 2, 5)["encoder_hidden_states"], half["encoder_hidden_states"])


def test_windows_of_latent_frames(exact: Wan) -> None:
    plain = spec_of(frames=17, steps=2)
    conditions = encode(exact, picture(), plain)
    whole = exact.denoise(conditions, plain, RESIDENT, no_step)
    one = exact.denoise(conditions, plain.model_copy(update={"window": 17, "window_overlap": 4}), RESIDENT, no_step)
    assert (one - whole).abs().max() <= 1e-10
    several = plain.model_copy(update={"window": 9, "window_overlap": 4})
    blended = exact.denoise(conditions, several, RESIDENT, no_step)
    assert blended.shape == whole.shape
    assert not torch.allclose(blended, whole, atol=1e-3)
    assert torch.equal(blended[:, :, :1], conditions.conditional["first"])


# --- memory ---------------------------------------------------------------------------------------


def _bytes(model: Wan) -> int:
    tensors = [t for n in model.parts.networks for t in (*n.parameters(), *n.buffers())]
    return sum(t.numel() * t.element_size() for t in tensors)


def test_a_cancelled_clip_holds_nothing_and_an_unloaded_model_nothing_at_all(home: Path) -> None:
    card = HostDevice()
    loaded = load(home, card)
    loaded.render(picture(), spec_of(steps=1, frames=5), RESIDENT, no_step)
    weights = card.used_bytes()
    assert weights == _bytes(loaded)

    def stop_at_two(done: int, _total: int, _snapshot: Any) -> None:
        if done == 2:
            raise RenderStopped("cancelled")

    with pytest.raises(RenderStopped) as kept:
        loaded.render(picture(), spec_of(), RESIDENT, stop_at_two)
    assert kept.value.__traceback__ is not None
    assert card.used_bytes() == weights
    loaded.unload()
    assert card.used_bytes() == 0


def test_a_card_that_fills_up_while_encoding_keeps_the_weights(home: Path) -> None:
    """The autoencoder keeps activations between the frames it is given; not beyond a failure."""
    roomy = HostDevice()
    measured = load(home, roomy)
    measured.render(picture(), spec_of(steps=1, frames=5), RESIDENT, no_step)
    weights = roomy.used_bytes()

    def encode_clip(model: Wan) -> None:
        with leaving_nothing(model.device), model.device.work(), torch.no_grad():
            model.encode_frames(torch.zeros(1, 3, 9, 128, 128))

    roomy.reset_peak()
    encode_clip(measured)
    needed = roomy.peak_bytes()
    assert roomy.used_bytes() == weights
    for short in range(1, 10):
        card = EmulatedDevice(weights + (needed - weights) * short // 10)
        loaded = load(home, card)
        with card.work():
            for stage in Stage:
                loaded.residency.place(stage)
        with pytest.raises(torch.OutOfMemoryError):
            encode_clip(loaded)
        assert card.used_bytes() == weights, short


def test_decoding_holds_no_more_for_a_longer_clip(home: Path) -> None:
    card = HostDevice()
    loaded = load(home, card)
    peaks = []
    for frames in (9, 33):
        spec = spec_of(frames=frames)
        latents = torch.zeros(1, *loaded.latent_shape(spec))
        loaded.decode(latents, RESIDENT)
        card.reset_peak()
        loaded.decode(latents, RESIDENT)
        peaks.append(card.peak_bytes())
    assert peaks[1] - peaks[0] < 24 * 64 * 64 * 3


# --- half precision, weights, the family -----------------------------------------------------------


def test_half_precision_computes_in_it_and_steps_in_float32(home: Path) -> None:
    """Some of the denoiser's parameters stay in float32, its first one among them."""
    parts = _load_parts(TINY, built_folder(TINY, home), torch.bfloat16, lambda _text: None)
    assert next(parts.transformer.parameters()).dtype == torch.float32
    half = Wan(TINY, parts, HostDevice(), {})
    assert half.dtype == torch.bfloat16
    assert parts.vae.dtype == torch.float32
    taken: list[bytes] = []
    spec = spec_of(steps=3)
    frames = half.render(picture(), spec, RESIDENT, lambda _d, _t, snapshot: taken.append(snapshot()))
    assert checkpoints.parse(taken[0]).latents.dtype == torch.float32
    assert np.array_equal(half.render(picture(), spec, RESIDENT, no_step, resume=taken[0]), frames)


def test_the_weights_are_the_same_wherever_they_are_made(home: Path, tmp_path: Path) -> None:
    torch.manual_seed(99)
    before = torch.get_rng_state()
    make_tiny(TINY, tmp_path / "again")
    assert torch.equal(torch.get_rng_state(), before)
    files = sorted(p.relative_to(tmp_path / "again") for p in (tmp_path / "again").rglob("*.*"))
    assert len([name for name in files if name.suffix == ".safetensors"]) == 3
    for name in files:
        assert (tmp_path / "again" / name).read_bytes() == (built_folder(TINY, home) / name).read_bytes(), name


def test_notes_tell_what_was_cut(model: Wan) -> None:
    assert model.notes(spec_of()) == {}
    # One token a letter, one before them, one for the end.
    assert model.notes(spec_of(prompt="a" * 600)) == {"prompt_tokens_cut": 90, "prompt_cut": "a" * 600}


def test_frame_counts_are_of_the_form_4n_plus_1() -> None:
    for family in (TINY, REAL):
        assert [n for n in range(1, 130) if family.frame_rule.allows(n)] == list(range(5, 122, 4))
        assert str(family.frame_rule) == "5 to 121 frames of the form 4n+1"
        assert all(family.frame_rule.allows(settings.frames) for settings in family.tiers.values())
        assert family.tiers[Tier.HIGH].frames == 121


def test_the_small_one_has_the_real_ones_shape(model: Wan) -> None:
    config = model.parts.vae.config
    assert config.is_residual
    assert config.patch_size is not None
    for family in (TINY, REAL):
        assert family.pixels_per_latent == config.scale_factor_spatial
        assert family.frames_per_latent == config.scale_factor_temporal
        assert family.stride == config.scale_factor_spatial * model.parts.transformer.config.patch_size[1]
    assert TINY.components == REAL.components
    assert dict(model.parts.scheduler.config).items() >= FLOW.items()
