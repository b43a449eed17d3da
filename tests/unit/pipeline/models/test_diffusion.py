"""The engine that families share, on the small I2VGen-XL: phases, windows, caches, adapters, networks on and
off the card. Equality with stock pipelines and resuming are tested family by family."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pipeline.clips.clip import Adapter, BaseClip, ClipSpec, ResolutionClass, Sampler, Upscale
from pipeline.denoising.caches import TensorCache
from pipeline.denoising.checkpoint import CheckpointError, parse
from pipeline.denoising.denoise import Windowed, window_spans
from pipeline.devices.emulated import HostDevice
from pipeline.families import Stage, family_named
from pipeline.families.layouts import RESIDENT, Layout
from pipeline.models.errors import BlackOutputError, NotFiniteError
from pipeline.models.i2vgen_xl import I2VGenXL
from pipeline.models.loading import load_model
from pipeline.models.stages.decoding import decode_once
from pipeline.models.tiny import make_tiny
from pipeline.weights.weights import WeightsError, built_folder

TINY = family_named("i2vgen-xl-tiny")
SPLIT = Layout(split_guidance=True)
EVICT = Layout(evict_encoders=True)


def spec_of(width: int = 64, height: int = 64, frames: int = 3, steps: int = 3, **changes: Any) -> ClipSpec:
    values: dict[str, Any] = {
        "family": TINY.name,
        "revision": TINY.revision,
        "prompt": "camera slowly panning left, clouds drifting",
        "negative_prompt": "blurred",
        "resolution_class": ResolutionClass.P256,
        "width": width,
        "height": height,
        "frames": frames,
        "fps": 8,
        "steps": steps,
        "guidance": 9.0,
        "seed": 5,
        "sampler": Sampler.DDIM,
    }
    return ClipSpec(**(values | changes))


def base_of(spec: ClipSpec, **changes: Any) -> BaseClip:
    """The specification as somebody else's base."""
    return BaseClip(**({name: getattr(spec, name) for name in BaseClip.model_fields} | changes))


def picture(width: int = 80, height: int = 60, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def no_step(_done: int, _total: int, _snapshot: Any) -> None:
    pass


class Steps:
    """Remembers what it was told, and the snapshots it could take."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []
        self.snapshots: dict[int, bytes] = {}

    def __call__(self, done: int, total: int, snapshot: Any) -> None:
        self.seen.append((done, total))
        if snapshot is not None:
            self.snapshots[done] = snapshot()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    make_tiny(TINY, built_folder(TINY, folder))
    return folder


def load(home: Path, device: Any = None, cache: TensorCache | None = None) -> I2VGenXL:
    loaded = load_model(
        TINY,
        device or HostDevice(),
        weights_dir=None,
        home=home,
        offline=True,
        on_load=lambda _text: None,
        cache=cache,
    )
    assert isinstance(loaded, I2VGenXL)
    return loaded


@pytest.fixture
def model(home: Path) -> I2VGenXL:
    return load(home)


@pytest.fixture(scope="module")
def exact(home: Path) -> I2VGenXL:
    loaded = load(home)
    for network in loaded.parts.networks:
        network.double()
    return I2VGenXL(TINY, loaded.parts, HostDevice(), {})


def calls(module: torch.nn.Module, counts: Counter[str], name: str) -> None:
    module.register_forward_pre_hook(lambda *_args: counts.update([name]))


# --- from a smaller rendering -------------------------------------------------------------------------


@pytest.mark.parametrize("upscale", list(Upscale))
def test_a_clip_from_a_smaller_one_counts_all_its_steps_and_resumes_in_either_phase(
    model: I2VGenXL, upscale: Upscale
) -> None:
    small = spec_of(frames=2, steps=4)
    spec = spec_of(128, 128, frames=4, steps=6, base=base_of(small), strength=0.5, upscale=upscale)
    steps = Steps()
    frames = model.render(picture(), spec, RESIDENT, steps)
    assert frames.shape == (4, 128, 128, 3)
    assert steps.seen == [(n, 7) for n in range(1, 8)]
    for done, data in steps.snapshots.items():
        rest = Steps()
        model.conditioning.cache = TensorCache()
        assert np.array_equal(model.render(picture(), spec, RESIDENT, rest, data), frames)
        assert rest.seen == [(n, 7) for n in range(done + 1, 8)]


def test_a_draft_rendered_before_is_not_rendered_again(home: Path) -> None:
    """And gives the same clip as one that is rendered from scratch."""
    cache = TensorCache()
    draft = spec_of(frames=2, steps=4)
    final = spec_of(128, 128, frames=4, steps=6, base=base_of(draft), strength=0.5)
    from_scratch = load(home).render(picture(), final, RESIDENT, no_step)
    steps = Steps()
    load(home, cache=cache).render(picture(), draft, RESIDENT, no_step)
    after_draft = load(home, cache=cache).render(picture(), final, RESIDENT, steps)
    assert steps.seen == [(5, 7), (6, 7), (7, 7)]
    assert np.array_equal(after_draft, from_scratch)
    other = Steps()
    load(home, cache=cache).render(picture(seed=3), final, RESIDENT, other)
    assert len(other.seen) == 7, "another picture's draft is not this one's"


def test_the_less_strength_the_nearer_the_small_clip(exact: I2VGenXL) -> None:
    """At one step of many, the enlarged rendering is nearly what comes out; at full strength, nothing is left of it."""
    small = spec_of(frames=3, steps=4)
    drafted = exact.render(picture(), small, RESIDENT, no_step).astype(float)

    def distance(strength: float) -> float:
        spec = spec_of(64, 64, frames=3, steps=20, base=base_of(small), strength=strength)
        return float(np.abs(exact.render(picture(), spec, RESIDENT, no_step) - drafted).mean())

    near, middle, far = distance(0.05), distance(0.5), distance(1.0)
    assert near < middle < far


def test_a_checkpoint_of_another_clip_is_refused_before_the_first_step(model: I2VGenXL) -> None:
    steps = Steps()
    model.render(picture(), spec_of(), RESIDENT, steps)
    for other, what in (
        (spec_of(128), "another shape"),
        (spec_of(seed=6), "another specification"),
        (spec_of(sampler=Sampler.EULER), "another sampler"),
    ):
        seen = Steps()
        with pytest.raises(CheckpointError, match=what):
            model.render(picture(), other, RESIDENT, seen, steps.snapshots[1])
        assert seen.seen == []
    with pytest.raises(CheckpointError, match="other conditions"):
        model.render(picture(seed=9), spec_of(), RESIDENT, no_step, steps.snapshots[1])


def test_a_checkpoint_is_small(model: I2VGenXL) -> None:
    spec, steps = spec_of(512, 512, frames=2, steps=1), Steps()
    model.render(picture(), spec, RESIDENT, steps)
    latents = 4 * 4 * 2 * 64 * 64
    assert latents < len(steps.snapshots[1]) < latents + 4096
    assert parse(steps.snapshots[1]).done == 1


# --- windows ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("frames", "window", "overlap"), [(16, 8, 2), (17, 8, 4), (9, 8, 0), (5, 8, 4), (40, 7, 6)])
def test_windows_cover_every_frame_and_share_what_is_asked(frames: int, window: int, overlap: int) -> None:
    spans = window_spans(frames, window, overlap)
    assert {f for first, end in spans for f in range(first, end)} == set(range(frames))
    assert all(end - first == min(window, frames) for first, end in spans)
    assert all(a_end - b_first >= overlap for (_, a_end), (b_first, _) in pairwise(spans))
    with pytest.raises(ValueError, match="cannot share"):
        window_spans(frames, window, window)


def test_where_windows_agree_blending_changes_nothing() -> None:
    spans = window_spans(11, 4, 2)
    latents = torch.randn(1, 4, 11, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    blended = Windowed(spans, lambda _first, _end: lambda x, t: torch.sin(x) * t)(latents, torch.tensor(2.0))
    assert torch.allclose(blended, torch.sin(latents) * 2, rtol=1e-14)


def test_a_clip_within_one_window_is_the_whole_clip(model: I2VGenXL) -> None:
    whole = model.render(picture(), spec_of(), RESIDENT, no_step)
    assert np.array_equal(model.render(picture(), spec_of(window=8, window_overlap=2), RESIDENT, no_step), whole)


def test_a_long_clip_needs_the_memory_of_its_windows(home: Path) -> None:
    card = HostDevice()
    loaded = load(home, card)

    def peak(spec: ClipSpec) -> int:
        loaded.render(picture(), spec, RESIDENT, no_step)  # the cache and the networks are there
        card.reset_peak()
        frames = loaded.render(picture(), spec, RESIDENT, no_step)
        assert len(frames) == spec.frames
        return card.peak_bytes() - card.used_bytes()

    size = {"width": 192, "height": 192, "steps": 1}
    windowed = peak(spec_of(**size, frames=24, window=6, window_overlap=2))
    assert windowed < 1.3 * peak(spec_of(**size, frames=6))
    assert windowed < 0.5 * peak(spec_of(**size, frames=24))


# --- deep layers kept ---------------------------------------------------------------------------------


def test_kept_layers_are_run_every_other_step_only(model: I2VGenXL) -> None:
    counts: Counter[str] = Counter()
    calls(model.parts.unet.mid_block.resnets[0], counts, "deep")
    plain = model.render(picture(), spec_of(steps=6), RESIDENT, no_step)
    assert counts["deep"] == 6
    counts.clear()
    cached = model.render(picture(), spec_of(steps=6, step_cache=2), RESIDENT, no_step)
    assert counts["deep"] == 3
    assert not np.array_equal(cached, plain)
    assert np.array_equal(model.render(picture(), spec_of(steps=6), RESIDENT, no_step), plain), "hooks were left behind"


def test_split_halves_keep_a_store_each(exact: I2VGenXL) -> None:
    spec = spec_of(steps=4, step_cache=2)
    batched = exact.render(picture(), spec, RESIDENT, no_step).astype(int)
    split = exact.render(picture(), spec, SPLIT, no_step).astype(int)
    assert np.abs(batched - split).max() <= 1


def test_with_kept_layers_a_clip_is_left_where_they_are_renewed(model: I2VGenXL) -> None:
    spec, steps = spec_of(steps=6, step_cache=2), Steps()
    frames = model.render(picture(), spec, RESIDENT, steps)
    assert sorted(steps.snapshots) == [2, 4, 6]
    for data in steps.snapshots.values():
        assert np.array_equal(model.render(picture(), spec, RESIDENT, no_step, data), frames)


# --- adapters -----------------------------------------------------------------------------------------


def write_lora(model: I2VGenXL, path: Path, rank: int = 2, **names: str) -> tuple[Adapter, Mapping[str, torch.Tensor]]:
    """A random LoRA over the attention's queries, and what it adds to each weight."""
    generator = torch.Generator().manual_seed(1)
    state, delta = {}, {}
    for name, module in model.parts.unet.named_modules():
        if name.endswith("attn1.to_q"):
            a = torch.randn(rank, module.in_features, generator=generator)
            b = torch.randn(module.out_features, rank, generator=generator)
            state[f"unet.{name}.{names.get('a', 'lora_A')}.weight"] = a
            state[f"unet.{name}.{names.get('b', 'lora_B')}.weight"] = b
            state[f"unet.{name}.alpha"] = torch.tensor(1.0)
            delta[name] = b @ a / rank
    save_file(state, path)
    return Adapter(name="fast", sha256=hashlib.sha256(path.read_bytes()).hexdigest(), scale=0.5), delta


@pytest.mark.parametrize("names", [{}, {"a": "lora_down", "b": "lora_up"}])
def test_an_adapter_is_its_product_added_to_the_weights(home: Path, tmp_path: Path, names: dict[str, str]) -> None:
    adapted, merged = load(home), load(home)
    adapter, delta = write_lora(adapted, tmp_path / "lora.safetensors", **names)
    adapted.hooks.adapters = {adapter.sha256: tmp_path / "lora.safetensors"}
    plain = adapted.render(picture(), spec_of(), RESIDENT, no_step)
    with_it = adapted.render(picture(), spec_of(adapter=adapter), RESIDENT, no_step).astype(int)
    for name, added in delta.items():
        merged.parts.unet.get_submodule(name).weight.data += 0.5 * added
    expected = merged.render(picture(), spec_of(), RESIDENT, no_step).astype(int)
    assert np.abs(with_it - expected).max() <= 1
    assert (with_it != plain).mean() > 0.01
    assert np.array_equal(adapted.render(picture(), spec_of(), RESIDENT, no_step), plain), "it stayed on"


def test_an_adapter_of_another_network_or_file_is_refused(home: Path, tmp_path: Path) -> None:
    loaded = load(home)
    path = tmp_path / "lora.safetensors"
    adapter, _ = write_lora(loaded, path)
    loaded.hooks.adapters = {adapter.sha256: path}
    plain = loaded.render(picture(), spec_of(), RESIDENT, no_step)

    def refused(adapter: Adapter, match: str) -> None:
        with pytest.raises(WeightsError, match=match):
            loaded.render(picture(), spec_of(adapter=adapter), RESIDENT, no_step)

    def changed(state: dict[str, torch.Tensor]) -> Adapter:
        save_file(state, path)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        loaded.hooks.adapters = {sha256: path}
        return adapter.model_copy(update={"sha256": sha256})

    refused(adapter.model_copy(update={"sha256": "0" * 64}), "is not there")
    loaded.hooks.adapters = {"0" * 64: path}
    refused(adapter.model_copy(update={"sha256": "0" * 64}), "was submitted with 000000000000")
    refused(changed({"blocks.0.q.lora_A.weight": torch.ones(2, 8)}), "another network: 1 modules are unknown")
    refused(changed({"something": torch.ones(2)}), "no LoRA at all")
    name = next(n for n, _ in loaded.parts.unet.named_modules() if n.endswith("attn1.to_q"))
    wrong = {f"{name}.lora_A.weight": torch.ones(2, 3), f"{name}.lora_B.weight": torch.ones(8, 2)}
    refused(changed(wrong), "does not fit")
    half = {f"{name}.lora_A.weight": torch.ones(2, 8)}
    refused(changed(half), "1 modules have one factor of two")
    norm = next(n for n, m in loaded.parts.unet.named_modules() if isinstance(m, torch.nn.GroupNorm))
    refused(changed({f"{norm}.lora_A.weight": torch.ones(2, 8), f"{norm}.lora_B.weight": torch.ones(8, 2)}), "not fit")
    path.write_bytes(b"nothing")
    sha256 = hashlib.sha256(b"nothing").hexdigest()
    loaded.hooks.adapters = {sha256: path}
    refused(adapter.model_copy(update={"sha256": sha256}), "cannot be read")
    assert np.array_equal(loaded.render(picture(), spec_of(), RESIDENT, no_step), plain)


# --- caches and networks on the card ------------------------------------------------------------------


def test_a_catalog_with_one_prompt_encodes_it_once(model: I2VGenXL) -> None:
    counts: Counter[str] = Counter()
    calls(model.parts.text_encoder, counts, "text")
    calls(model.parts.image_encoder, counts, "image")
    for seed, still in ((1, picture()), (2, picture()), (3, picture(seed=1))):
        model.render(still, spec_of(seed=seed, steps=1), RESIDENT, no_step)
    assert counts == {"text": 2, "image": 2}  # prompt and negative prompt; two stills


def test_evicted_encoders_are_off_the_card_and_change_nothing(home: Path) -> None:
    card = HostDevice()
    loaded = load(home, card)
    resident = load(home).render(picture(), spec_of(), RESIDENT, no_step)
    of_stage = {
        stage: sum(t.nbytes for n in loaded.parts.of(stage) for t in [*n.parameters(), *n.buffers()]) for stage in Stage
    }
    held: list[int] = []
    frames = loaded.render(picture(), spec_of(), EVICT, lambda *_: held.append(card.used_bytes()))
    assert np.array_equal(frames, resident)
    without = of_stage[Stage.DENOISE] + of_stage[Stage.DECODE]
    assert all(without <= bytes_ < without + of_stage[Stage.ENCODE] // 4 for bytes_ in held)
    # A second clip of the same still and prompt needs no encoder at all.
    card.reset_peak()
    loaded.render(picture(), spec_of(seed=8), EVICT, no_step)
    assert card.peak_bytes() < without + of_stage[Stage.ENCODE] // 2
    assert np.array_equal(
        loaded.render(picture(seed=4), spec_of(), EVICT, no_step),
        load(home).render(picture(seed=4), spec_of(), RESIDENT, no_step),
    )
    loaded.unload()
    assert card.used_bytes() == 0


# --- a decoder that overflows -------------------------------------------------------------------------


def test_a_decoder_that_overflows_in_half_precision_is_run_in_single(home: Path) -> None:
    """Its weights make values beyond what 16 bits hold, and bring them back: only float32 gets through."""
    loaded = load(home)
    vae = loaded.parts.vae
    vae.decoder.conv_out.weight.data.mul_(0.001)
    vae.decoder.conv_out.bias.data.fill_(0.1)
    latents = torch.randn(1, 4, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    vae.half().post_quant_conv.weight.data.mul_(60000)
    with pytest.raises(NotFiniteError):
        decode_once(loaded, latents.mul(50), RESIDENT)
    frames = loaded.decode(latents.mul(50), RESIDENT)
    assert frames.any()
    assert vae.dtype == torch.float16, "it stays wide"


def test_black_frames_are_a_failure_that_says_so(model: I2VGenXL) -> None:
    model.parts.vae.decoder.conv_out.bias.data.fill_(-1e4)
    with pytest.raises(BlackOutputError, match="black frames only, computing in float32"):
        model.render(picture(), spec_of(steps=1), RESIDENT, no_step)
