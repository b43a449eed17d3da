"""What diffusers' own I2VGen-XL pipeline gets wrong, shown beside this one.

A fault that is mended there fails its first half here, and says that the comparison can go.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import I2VGenXLPipeline, LCMScheduler
from PIL import Image

from pipeline.clip import ClipSpec, ResolutionClass, Sampler
from pipeline.families import family_named
from pipeline.layouts import RESIDENT
from pipeline.models.devices import HostDevice
from pipeline.models.i2vgen_xl import I2VGenXL
from pipeline.models.loading import load_model
from pipeline.models.model import Stopped

TINY = family_named("i2vgen-xl-tiny")


def spec_of(**changes: Any) -> ClipSpec:
    values: dict[str, Any] = {
        "family": TINY.name,
        "revision": TINY.revision,
        "prompt": "a lamp turns",
        "resolution_class": ResolutionClass.P256,
        "width": 64,
        "height": 64,
        "frames": 3,
        "fps": 8,
        "steps": 2,
        "guidance": 9.0,
        "seed": 5,
        "sampler": Sampler.DDIM,
    }
    return ClipSpec(**(values | changes))


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def no_step(_done: int, _total: int, _snapshot: Any) -> None:
    pass


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> I2VGenXL:
    home = tmp_path_factory.mktemp("home")
    loaded = load_model(TINY, HostDevice(), weights_dir=None, home=home, offline=True, on_load=lambda _text: None)
    assert isinstance(loaded, I2VGenXL)
    loaded.render(picture(64, 64), spec_of(), RESIDENT, no_step)
    return loaded


@pytest.fixture
def stock(model: I2VGenXL) -> I2VGenXLPipeline:
    parts = model.parts
    names = ("vae", "text_encoder", "tokenizer", "image_encoder", "feature_extractor", "unet", "scheduler")
    pipe = I2VGenXLPipeline(**{name: getattr(parts, name) for name in names})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(stock: I2VGenXLPipeline, model: I2VGenXL, image: Any, prompts: list[str], **options: Any) -> Any:
    """Latents of the stock pipeline, given embeddings, which is the one way it takes prompts."""
    with torch.no_grad():
        embeddings = torch.cat(model.embed_prompts(prompts))
        negative = torch.cat(model.embed_prompts([""] * len(prompts)))
    chosen: dict[str, Any] = {
        "width": 64,
        "height": 64,
        "num_frames": 3,
        "num_inference_steps": 2,
        "target_fps": 8,
        "output_type": "latent",
    }
    return stock(image=image, prompt_embeds=embeddings, negative_prompt_embeds=negative, **(chosen | options)).frames


def test_a_prompt_is_text(model: I2VGenXL, stock: I2VGenXLPipeline) -> None:
    with pytest.raises(AttributeError, match="text_model"):
        stock(prompt="a lamp turns", image=picture(64, 64), width=64, height=64, num_frames=3, num_inference_steps=1)
    one = model.render(picture(64, 64), spec_of(), RESIDENT, no_step)
    assert not np.array_equal(one, model.render(picture(64, 64), spec_of(prompt="snow falls"), RESIDENT, no_step))


def test_a_seed_fixes_the_clip(model: I2VGenXL, stock: I2VGenXLPipeline) -> None:
    def seeded(global_seed: int) -> Any:
        torch.manual_seed(global_seed)
        return run(stock, model, picture(64, 64), ["a lamp"], generator=torch.Generator().manual_seed(5))

    assert not torch.equal(seeded(1), seeded(2))
    clips = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        clips.append(model.render(picture(64, 64), spec_of(), RESIDENT, no_step))
    assert np.array_equal(*clips)


def test_progress_is_told_and_a_clip_can_be_stopped(model: I2VGenXL, stock: I2VGenXLPipeline) -> None:
    with pytest.raises(TypeError, match="callback"):
        run(stock, model, picture(64, 64), ["a lamp"], callback_on_step_end=lambda *_: {})

    seen = []

    def stop(done: int, total: int, _snapshot: Any) -> None:
        seen.append((done, total))
        raise Stopped

    with pytest.raises(Stopped):
        model.render(picture(64, 64), spec_of(), RESIDENT, stop)
    assert seen == [(1, 2)]


def test_every_still_of_a_batch_is_cropped_for_itself(
    model: I2VGenXL, stock: I2VGenXLPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stock pipeline takes the first still's crop for all: a tall one after a wide one is shown in part."""
    wide, tall = picture(128, 64), picture(64, 128, seed=1)
    crops: list[Any] = []
    crop = Image.Image.crop
    monkeypatch.setattr(Image.Image, "crop", lambda self, box=None: crops.append((self.size, box)) or crop(self, box))
    torch.manual_seed(0)
    run(stock, model, [wide, tall], ["a", "b"])
    boxes = {box for _size, box in crops}
    monkeypatch.undo()
    assert len({size for size, _box in crops}) > 1
    assert len(boxes) < len(crops), "each picture got a box of its own: mended"
    specs = [spec_of(), spec_of(seed=6)]
    together = model.render_batch([wide, tall], specs, RESIDENT, no_step)
    for still, spec, frames in zip([wide, tall], specs, together, strict=True):
        alone = model.render(still, spec, RESIDENT, no_step)
        assert np.abs(frames.astype(int) - alone.astype(int)).max() <= 2


def test_prompts_of_a_batch_stay_with_their_clips(model: I2VGenXL, stock: I2VGenXLPipeline) -> None:
    """The stock pipeline repeats prompts and pictures of a batch in different orders when asked for several clips of
    each. A batch here is one prompt, one still and one seed for each clip."""
    stills = [picture(64, 64), picture(64, 64, seed=1)]
    prompts = ["a lamp turns", "snow falls slowly over a long road"]
    specs = [spec_of(prompt=prompt, seed=9) for prompt in prompts for _ in range(2)]
    pairs = [still for still in stills for _ in range(2)]
    together = model.render_batch(pairs, specs, RESIDENT, no_step)
    for still, spec, frames in zip(pairs, specs, together, strict=True):
        alone = model.render(still, spec, RESIDENT, no_step)
        assert np.abs(frames.astype(int) - alone.astype(int)).max() <= 2
    assert np.array_equal(together[0], together[1])
    assert not np.array_equal(together[1], together[2])


def test_samplers_that_add_noise_take_batches(model: I2VGenXL, stock: I2VGenXLPipeline) -> None:
    stock.scheduler = LCMScheduler.from_config(stock.scheduler.config)
    generators = [torch.Generator().manual_seed(n) for n in range(2)]
    with pytest.raises(IndexError):
        run(stock, model, [picture(64, 64)] * 2, ["a", "b"], generator=generators)
    specs = [spec_of(sampler=Sampler.LCM, seed=n) for n in range(2)]
    one, two = model.render_batch([picture(64, 64)] * 2, specs, RESIDENT, no_step)
    assert not np.array_equal(one, two)
