"""What diffusers' own I2VGen-XL pipeline gets wrong, shown beside this one.

A fault that is mended there fails its first half here, and says that the comparison can go.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import I2VGenXLPipeline
from PIL import Image

from pipeline.clips.clip import ClipSpec, ResolutionClass, Sampler
from pipeline.devices.emulated import HostDevice
from pipeline.families import family_named
from pipeline.families.layouts import RESIDENT
from pipeline.models.i2vgen_xl import I2VGenXL
from pipeline.models.loading import load_model
from pipeline.models.model import RenderStopped

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
        raise RenderStopped

    with pytest.raises(RenderStopped):
        model.render(picture(64, 64), spec_of(), RESIDENT, stop)
    assert seen == [(1, 2)]
