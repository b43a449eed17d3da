"""I2VGen-XL on its small random sibling: equal to diffusers' own pipeline, independent of global state, tidy."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, I2VGenXLPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from pipeline.clips.clip import ClipSpec, ResolutionClass
from pipeline.clips.stills import fit_still
from pipeline.devices import emulation_scale
from pipeline.devices.emulated import EmulatedDevice, HostDevice
from pipeline.families import FAMILIES, family_named
from pipeline.families.layouts import RESIDENT, Layout
from pipeline.memory.footprint import footprint, leanest, plan
from pipeline.models.errors import NotFiniteError
from pipeline.models.i2vgen_xl import I2VGenXL
from pipeline.models.loading import load_model
from pipeline.models.model import RenderStopped
from pipeline.models.parts import Halves
from pipeline.models.tiny import make_tiny
from pipeline.weights.weights import WeightsError, built_folder, cached_folder, weights_present

TINY = family_named("i2vgen-xl-tiny")
SPLIT = Layout(split_guidance=True)
GIB = 2**30


def spec_of(width: int = 128, height: int = 64, frames: int = 3, steps: int = 3, **changes: Any) -> ClipSpec:
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
    }
    return ClipSpec(**(values | changes))


def picture(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def no_step(_done: int, _total: int, _snapshot: Any = None) -> None:
    pass


def load(home: Path, device: Any = None, **changes: Any) -> I2VGenXL:
    options: dict[str, Any] = {"weights_dir": None, "home": home, "offline": True, "on_load": lambda _text: None}
    model = load_model(changes.pop("family", TINY), device or HostDevice(), **(options | changes))
    assert isinstance(model, I2VGenXL)
    return model


def encode(model: I2VGenXL, still: Image.Image, spec: ClipSpec) -> Halves:
    with model.device.work(), torch.no_grad():
        return model.condition(fit_still(still, spec.size, spec.fit), spec)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    make_tiny(TINY, built_folder(TINY, folder))
    return folder


@pytest.fixture(scope="module")
def model(home: Path) -> I2VGenXL:
    return load(home)


@pytest.fixture(scope="module")
def exact(home: Path) -> I2VGenXL:
    """The same networks in float64."""
    loaded = load(home)
    for network in loaded.parts.networks:
        network.double()
    return I2VGenXL(TINY, loaded.parts, HostDevice(), {})


# --- the same algebra as diffusers -----------------------------------------------------------------


@pytest.mark.parametrize(("width", "height", "guidance"), [(192, 64, 9.0), (64, 128, 9.0), (64, 64, 1.0)])
def test_equal_to_the_stock_pipeline(
    exact: I2VGenXL, monkeypatch: pytest.MonkeyPatch, width: int, height: int, guidance: float
) -> None:
    """Latents and frames in float64; the one thing patched is its draw from the global generator."""
    spec = spec_of(width, height, guidance=guidance)
    still = picture(width, height)
    negative, positive = (t.detach() for t in exact.embed_prompts([spec.negative_prompt, spec.prompt]))
    parts = exact.parts
    stock = I2VGenXLPipeline(
        vae=parts.vae,
        text_encoder=parts.text_encoder,
        tokenizer=parts.tokenizer,
        image_encoder=parts.image_encoder,
        feature_extractor=parts.feature_extractor,
        unet=parts.unet,
        scheduler=DDIMScheduler.from_config(parts.scheduler.config),
    )
    stock.set_progress_bar_config(disable=True)
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())

    def run(output_type: str) -> Any:
        return stock(
            image=still,
            width=width,
            height=height,
            target_fps=spec.fps,
            num_frames=spec.frames,
            num_inference_steps=spec.steps,
            guidance_scale=guidance,
            latents=exact.first_noise(spec),
            prompt_embeds=positive,
            negative_prompt_embeds=negative,
            output_type=output_type,
        ).frames

    for layout in (RESIDENT, SPLIT):
        ours = exact.denoise(encode(exact, still, spec), spec, layout, no_step)
        assert (ours - run("latent")).abs().max() <= 1e-10
        frames = exact.decode(ours, Layout(decode_frames=2))
        theirs = np.stack([np.asarray(frame) for frame in run("pil")[0]])
        # Both round a float64 to 8 bits; half a step of rounding is all they may differ by.
        assert np.abs(frames.astype(int) - theirs.astype(int)).max() <= 1
        assert (frames != theirs).mean() < 1e-3


def test_prompts_are_the_last_but_one_layer_under_the_final_norm(exact: I2VGenXL) -> None:
    """The same as an encoder of one layer less, whose own last output passes its final norm."""
    parts = exact.parts
    config = type(parts.text_encoder.config)(**parts.text_encoder.config.to_dict())
    config.num_hidden_layers -= 1
    with torch.random.fork_rng(devices=[]):
        shorter = CLIPTextModel(config).double().eval()
    missing = shorter.load_state_dict(parts.text_encoder.state_dict(), strict=False).missing_keys
    assert missing == []
    ids = parts.tokenizer(["a lamp"], padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        expected = shorter(ids).last_hidden_state
        (ours,) = exact.embed_prompts(["a lamp"])
    assert (ours - expected).abs().max() <= 1e-12


def test_layouts_are_the_same_algebra(exact: I2VGenXL) -> None:
    spec, still = spec_of(64, 64, frames=4), picture(80, 60)
    conditions = encode(exact, still, spec)
    batched = exact.denoise(conditions, spec, RESIDENT, no_step)
    split = exact.denoise(conditions, spec, SPLIT, no_step)
    assert (batched - split).abs().max() <= 1e-10
    one = exact.decode(batched, RESIDENT)
    assert np.abs(one.astype(int) - exact.decode(batched, Layout(decode_frames=3)).astype(int)).max() <= 1


# --- the result depends on its arguments alone ------------------------------------------------------


def test_global_states_and_a_fresh_model_change_nothing(home: Path, model: I2VGenXL) -> None:
    spec, still = spec_of(), picture(100, 90)
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    first = model.render(still, spec, RESIDENT, no_step)
    torch.manual_seed(2)
    np.random.seed(2)
    random.seed(2)
    state = torch.get_rng_state()
    again = load(home).render(still, spec, RESIDENT, no_step)
    assert np.array_equal(first, again)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "change", [{"seed": 6}, {"prompt": "snow falling"}, {"negative_prompt": "dark"}, {"fps": 16}, {"steps": 4}]
)
def test_every_argument_matters(model: I2VGenXL, change: dict[str, Any]) -> None:
    still = picture(100, 90)
    first = model.render(still, spec_of(64, 64), RESIDENT, no_step)
    assert first.shape == (3, 64, 64, 3)
    assert first.dtype == np.uint8
    assert not np.array_equal(first, model.render(still, spec_of(64, 64, **change), RESIDENT, no_step))
    assert not np.array_equal(first[0], first[1])


def test_the_weights_are_the_same_wherever_they_are_made(home: Path, tmp_path: Path) -> None:
    torch.manual_seed(99)
    before = torch.get_rng_state()
    make_tiny(TINY, tmp_path / "again")
    assert torch.equal(torch.get_rng_state(), before)
    files = sorted(p.relative_to(tmp_path / "again") for p in (tmp_path / "again").rglob("*.safetensors"))
    assert len(files) == 4
    for name in files:
        assert (tmp_path / "again" / name).read_bytes() == (built_folder(TINY, home) / name).read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["again"]


# --- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height", "frames"), [(320, 192, 8), (192, 320, 12)])
@pytest.mark.parametrize("layout", [RESIDENT, SPLIT])
def test_prediction_agrees_with_measurement(home: Path, width: int, height: int, frames: int, layout: Layout) -> None:
    """At sizes that the coefficients were not fitted to; weights taken off, or they would hide an error."""
    card = HostDevice()
    loaded = load(home, card)
    loaded.render(picture(99, 99), spec_of(steps=1), layout, no_step)
    weights = card.used_bytes()
    assert weights == sum(t.numel() * t.element_size() for n in loaded.parts.networks for t in _tensors(n))
    card.reset_peak()
    spec = spec_of(width, height, frames=frames, steps=1)
    loaded.render(picture(99, 99), spec, layout, no_step)
    assert footprint(spec, layout).peak_bytes - weights == pytest.approx(card.peak_bytes() - weights, rel=0.1)
    assert card.used_bytes() == weights
    loaded.unload()
    assert card.used_bytes() == 0


def _tensors(network: torch.nn.Module) -> list[torch.Tensor]:
    return [*network.parameters(), *network.buffers()]


def test_emulated_cards_refuse_and_fit_as_their_docstring_says() -> None:
    largest = emulation_scale.largest_clip()
    usable = {n: EmulatedDevice(emulation_scale.emulated_bytes(n * GIB)).usable_bytes() for n in (8, 12, 16, 24)}
    assert plan(largest, usable[8]) is None
    assert plan(largest, usable[12]) is None
    lean_layout, lean = leanest(largest)
    assert lean.peak_bytes > emulation_scale.emulated_bytes(12 * GIB)
    assert plan(largest, usable[16]) == (lean_layout, lean)
    fits = plan(largest, usable[24])
    assert fits is not None
    assert fits[0] == RESIDENT
    smallest = largest.model_copy(update={"width": 512, "height": 512, "frames": 16})
    assert plan(smallest, usable[8]) is not None


@pytest.mark.parametrize("layout", [RESIDENT, SPLIT])
def test_a_full_card_ends_the_clip_and_keeps_the_weights(home: Path, layout: Layout) -> None:
    card = EmulatedDevice(emulation_scale.emulated_bytes(8 * GIB))
    loaded = load(home, card)
    loaded.render(picture(64, 64), spec_of(steps=1), RESIDENT, no_step)
    weights = card.used_bytes()
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate") as kept:
        loaded.render(picture(64, 64), emulation_scale.largest_clip(), layout, no_step)
    # Even while the error is held, traceback and all.
    assert kept.value.__traceback__ is not None
    assert card.used_bytes() == weights
    assert loaded.render(picture(64, 64), spec_of(), RESIDENT, no_step).shape[0] == 3


def test_a_cancelled_clip_holds_nothing(home: Path) -> None:
    card = HostDevice()
    loaded = load(home, card)
    loaded.render(picture(64, 64), spec_of(steps=1), RESIDENT, no_step)
    weights = card.used_bytes()
    seen = []

    def stop_at_two(done: int, total: int, _snapshot: Any) -> None:
        seen.append((done, total))
        if done == 2:
            raise RenderStopped("cancelled")

    with pytest.raises(RenderStopped) as kept:
        loaded.render(picture(64, 64), spec_of(steps=5), RESIDENT, stop_at_two)
    assert kept.value.__traceback__ is not None
    assert seen == [(1, 5), (2, 5)]
    assert card.used_bytes() == weights


def test_nan_is_an_error_with_its_place(home: Path) -> None:
    loaded = load(home)
    loaded.parts.vae.decoder.conv_out.bias.data.fill_(float("nan"))
    with pytest.raises(NotFiniteError, match="frame 0 on, computing in float32"):
        loaded.render(picture(64, 64), spec_of(64, 64), RESIDENT, no_step)


def test_an_unloaded_model_says_so(home: Path) -> None:
    loaded = load(home)
    loaded.unload()
    loaded.unload()
    with pytest.raises(RuntimeError, match="load it again"):
        loaded.render(picture(64, 64), spec_of(), RESIDENT, no_step)


# --- loading --------------------------------------------------------------------------------------


def test_notes_and_description(model: I2VGenXL) -> None:
    assert model.notes(spec_of()) == {}
    # One token a letter, two for start and end, 77 in all.
    assert model.notes(spec_of(prompt="a" * 100)) == {"prompt_tokens_cut": 25, "prompt_cut": "a" * 100}
    # 20 tokens a word: the third and fourth fit no more whole.
    words = [letter * 20 for letter in "abcd"]
    assert model.notes(spec_of(prompt="a " + " ".join(words), negative_prompt="b" * 5)) == {
        "prompt_tokens_cut": 6,
        "prompt_cut": words[3],
    }
    told = model.describe()
    assert told["revision"] == "random-1"
    assert told["dtype"] == "float32"
    assert told["torch"] == torch.__version__


def test_offline_without_weights_says_where_and_what_to_do(tmp_path: Path) -> None:
    real = family_named("i2vgen-xl")
    assert not weights_present(real, tmp_path)
    assert weights_present(TINY, tmp_path)
    assert weights_present(FAMILIES["camera"], tmp_path)
    with pytest.raises(WeightsError, match=r"'i2vgen-xl' are not on this machine.*Load the model once") as error:
        load(tmp_path, family=real)
    assert str(tmp_path) in error.value.where


def test_a_download_that_fails_is_a_weights_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: Any, **_options: Any) -> str:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", refuse)
    with pytest.raises(WeightsError, match=r"could not be fetched: ConnectionError: no route.*Check the network"):
        load(tmp_path, family=family_named("i2vgen-xl"), offline=False)


def test_a_cached_hub_revision_loads_offline(home: Path, tmp_path: Path) -> None:
    """The small weights laid out as the hub's client does, under a pinned revision."""
    family = replace(TINY, name="from-hub", repo="someone/small", revision="0" * 40)
    shutil.copytree(built_folder(TINY, home), cached_folder(family, tmp_path))
    assert weights_present(family, tmp_path)
    assert load(tmp_path, family=family).describe()["revision"] == "0" * 40


@pytest.fixture
def copy(home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built_folder(TINY, home), tmp_path / "weights"))


def test_a_missing_component_is_named(copy: Path) -> None:
    shutil.rmtree(copy / "vae")
    with pytest.raises(WeightsError, match=r"'vae' is missing .*vae/config\.json"):
        load(copy, weights_dir=copy)


def test_pickles_are_refused(copy: Path) -> None:
    weights = copy / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    torch.save(load_file(weights), copy / "unet" / "diffusion_pytorch_model.bin")
    weights.unlink()
    with pytest.raises(WeightsError, match=r"only pickles \(diffusion_pytorch_model.bin\).*never loaded"):
        load(copy, weights_dir=copy)


@pytest.mark.parametrize("component", ["unet", "text_encoder"])
def test_a_file_that_lacks_weights_is_refused(copy: Path, component: str) -> None:
    """The libraries would fill the gap with random values."""
    (path,) = (copy / component).glob("*.safetensors")
    tensors = load_file(path)
    tensors.popitem()
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=f"'{component}' lacks 1 weights"):
        load(copy, weights_dir=copy)


def test_a_damaged_file_is_refused(copy: Path) -> None:
    (path,) = (copy / "vae").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="'vae' cannot be read"):
        load(copy, weights_dir=copy)


def test_weights_named_as_older_releases_did_load_the_same(copy: Path, model: I2VGenXL) -> None:
    """The published text encoder has its keys under `text_model.`"""
    (path,) = (copy / "text_encoder").glob("*.safetensors")
    save_file({f"text_model.{k}": v for k, v in load_file(path).items()}, path, metadata={"format": "pt"})
    older = load(copy, weights_dir=copy).parts.text_encoder.state_dict()
    newer = model.parts.text_encoder.state_dict()
    assert older.keys() == newer.keys()
    assert all(torch.equal(older[name], newer[name]) for name in newer)


def test_two_makers_at_once_leave_one_whole_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have seen that there is none and written theirs before either moves it into place."""
    folder = tmp_path / "weights" / "tiny"
    both_written = threading.Barrier(2, timeout=60)
    replace_folder = os.replace

    def together(source: Any, target: Any) -> None:
        both_written.wait()
        replace_folder(source, target)

    writer = "pipeline.models.tiny.write_i2vgen_xl"
    monkeypatch.setattr(writer, lambda building: (building / "weights").write_text("all"))
    monkeypatch.setattr("pipeline.models.tiny.os.replace", together)
    with ThreadPoolExecutor(2) as makers:
        for maker in [makers.submit(make_tiny, TINY, folder) for _ in range(2)]:
            maker.result()
    assert [p.name for p in folder.parent.iterdir()] == ["tiny"]
    assert (folder / "weights").read_text() == "all"


def test_planning_never_imports_torch() -> None:
    scale = "pipeline.devices.emulation_scale"
    modules = f"pipeline.memory.footprint, {scale}, pipeline.weights.weights, pipeline.families, pipeline.models.errors"
    code = f"import {modules}, sys; {scale}.emulated_bytes(1); sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[4]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, timeout=60, check=False).returncode == 0
