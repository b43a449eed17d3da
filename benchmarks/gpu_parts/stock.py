"""diffusers' own pipelines around the same networks: what a step and a decode take without this project."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from gpu_parts.bench import Bench
from pipeline.clips.clip import ClipSpec
from pipeline.clips.frames import Frames
from pipeline.families import Stage
from pipeline.families.layouts import Layout
from pipeline.models.diffusion import DiffusionModel
from pipeline.models.parts import Halves


def pipeline_of(model: DiffusionModel, spec: ClipSpec) -> Any:
    """The stock pipeline of the model's family around its networks. All of them have to be on the card."""
    parts, engine = model.parts, model.family.engine
    if engine == "wan":
        from diffusers import WanImageToVideoPipeline

        found = WanImageToVideoPipeline(
            tokenizer=parts.tokenizer,
            text_encoder=parts.text_encoder,
            vae=parts.vae,
            scheduler=model.scheduler_of(spec),
            transformer=parts.transformer,
            expand_timesteps=True,
        )
    elif engine == "svd":
        from diffusers import StableVideoDiffusionPipeline

        found = StableVideoDiffusionPipeline(
            vae=parts.vae,
            image_encoder=parts.image_encoder,
            unet=parts.unet,
            scheduler=model.scheduler_of(spec),
            feature_extractor=parts.feature_extractor,
        )
    elif engine == "i2vgen-xl":
        from diffusers import DDIMScheduler, I2VGenXLPipeline

        found = I2VGenXLPipeline(
            vae=parts.vae,
            text_encoder=parts.text_encoder,
            tokenizer=parts.tokenizer,
            image_encoder=parts.image_encoder,
            feature_extractor=parts.feature_extractor,
            unet=parts.unet,
            scheduler=DDIMScheduler.from_config(parts.scheduler.config),
        )
    else:
        raise LookupError(f"no stock pipeline of the engine {engine!r} is known: add it to {__file__}")
    found.set_progress_bar_config(disable=True)
    return found


def steps_s(bench: Bench, model: DiffusionModel, halves: Halves, spec: ClipSpec) -> list[float]:
    """Seconds of each step but the last of the stock pipeline; the first loads kernels."""
    pipeline = pipeline_of(model, spec)
    starts: list[float] = []
    # Wan's evaluates the halves of guidance one after the other; the others batch them.
    evaluations = 2 if model.family.engine == "wan" and spec.guidance > 1 else 1
    seen = [0]

    def note(_module: Any, _args: Any) -> None:
        if seen[0] % evaluations == 0:
            bench.wait()
            starts.append(time.perf_counter())
        seen[0] += 1

    handle = model.parts.of(Stage.DENOISE)[0].register_forward_pre_hook(note)
    try:
        with torch.no_grad():
            pipeline(**_arguments(bench, model, halves, spec))
    finally:
        handle.remove()
    if len(starts) != spec.steps:
        raise RuntimeError(f"the stock pipeline did {len(starts)} steps of {spec.steps}: is its loop another now?")
    return [after - before for before, after in pairwise(starts)]


def _arguments(bench: Bench, model: DiffusionModel, halves: Halves, spec: ClipSpec) -> dict[str, Any]:
    found: dict[str, Any] = {
        "image": bench.still().resize(spec.size),
        "width": spec.width,
        "height": spec.height,
        "num_frames": spec.frames,
        "num_inference_steps": spec.steps,
        "output_type": "latent",
    }
    if model.family.engine == "svd":
        return found | {"max_guidance_scale": spec.guidance, "fps": spec.fps}
    prompts = (halves.conditional, halves.unconditional)
    positive, negative = (half["encoder_hidden_states"] for half in prompts)
    return found | {
        "guidance_scale": spec.guidance,
        "prompt_embeds": positive,
        "negative_prompt_embeds": negative,
    }


def decode(model: DiffusionModel, pipeline: Any, latents: torch.Tensor, together: int) -> Frames:
    """8-bit frames of (1, channels, frames, height, width) latents, by the pipeline's own decoding.

    `together`: frames that SVD's decoder mixes, as our layout has it; else the pictures would be others.
    """
    vae = model.parts.vae
    latents = latents.to(vae.dtype)
    with torch.no_grad():
        if model.family.engine == "wan":
            mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1).to(latents.device, latents.dtype)
            deviation = 1.0 / torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1).to(
                latents.device, latents.dtype
            )
            video = vae.decode(latents / deviation + mean, return_dict=False)[0]
        elif model.family.engine == "svd":
            video = pipeline.decode_latents(latents.transpose(1, 2), latents.shape[2], together)
        else:
            video = pipeline.decode_latents(latents, decode_chunk_size=1)
        floats = pipeline.video_processor.postprocess_video(video, output_type="np")[0]
    return np.asarray((floats * 255).round()).astype(np.uint8)


def decoders_differ(model: DiffusionModel, latents: torch.Tensor, layout: Layout) -> float:
    """Largest difference of what our decoding and diffusers' decoder make of the same latents, before rounding.

    Latents are scaled as we do it (diffusers multiplies by the reciprocal, another bit of it); values beyond -1…1 are
    cut off, as diffusers' decoder of Wan does by itself.
    """
    vae, config = model.parts.vae, model.parts.vae.config
    with model.device.work(), torch.no_grad():
        mine = torch.cat([chunk.cpu().float() for chunk in model.decode_chunks(latents, layout)])
        if model.family.engine == "wan":
            mean = torch.tensor(config.latents_mean).view(1, -1, 1, 1, 1).to(latents.device, vae.dtype)
            spread = 1.0 / torch.tensor(config.latents_std).view(1, -1, 1, 1, 1).to(latents.device, vae.dtype)
            theirs = vae.decode(latents.to(vae.dtype) / spread + mean, return_dict=False)[0][0].transpose(0, 1)
        else:
            scaled = (latents[0].transpose(0, 1) / config.scaling_factor).to(vae.dtype)
            chunks = scaled.split(layout.decode_frames)
            options = [{"num_frames": len(chunk)} if model.family.engine == "svd" else {} for chunk in chunks]
            decoded = [vae.decode(c, return_dict=False, **o)[0] for c, o in zip(chunks, options, strict=True)]
            theirs = torch.cat(decoded)
    return float((mine.clamp(-1, 1) - theirs.cpu().float().clamp(-1, 1)).abs().max())
