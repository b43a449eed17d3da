"""From a smaller rendering to the latents that a larger clip starts from."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from pipeline.clips.clip import ClipSpec, Upscale
from pipeline.families.layouts import Layout
from pipeline.models.networks import DiffusionNetworks
from pipeline.models.stages.decoding import decode


def enlarge(model: DiffusionNetworks, latents: torch.Tensor, large: ClipSpec, layout: Layout) -> torch.Tensor:
    """Latents of a finished smaller rendering at the size and frame count of `large`: (1, *its latent shape).

    By `large.upscale`, latents themselves are interpolated, or the decoded frames are enlarged and encoded again.
    Raises what `pipeline.models.stages.decoding.decode` raises.
    """
    _, frames, height, width = model.latent_shape(large)
    if large.upscale is Upscale.LATENTS:
        # Ends of the clip stay its ends, so time is aligned at corners; pixels are areas, so space is not.
        timed = along_time(latents, frames)
        flat = timed.transpose(1, 2).flatten(0, 1)
        sized = torch.nn.functional.interpolate(flat, size=(height, width), mode="bicubic", align_corners=False)
        return sized.unflatten(0, (latents.shape[0], frames)).transpose(1, 2).contiguous()
    pictures = decode(model, latents, layout)
    enlarged = np.stack([np.asarray(Image.fromarray(p).resize(large.size, Image.Resampling.LANCZOS)) for p in pictures])
    pixels = torch.from_numpy(enlarged).permute(3, 0, 1, 2).unsqueeze(0).float()
    pixels = along_time(pixels, large.frames) / 127.5 - 1.0
    with model.residency.encoders():
        return model.encode_frames(pixels.to(model.device.torch_device)).to(model.latents_dtype)


def along_time(clip: torch.Tensor, frames: int) -> torch.Tensor:
    """(rows, channels, frames, height, width) of a clip with another frame count, interpolated linearly, ends kept."""
    count = clip.shape[2]
    if count == frames:
        return clip
    places = torch.linspace(0, count - 1, frames, dtype=torch.float64)
    below = places.floor().long().clamp(max=count - 1)
    above = (below + 1).clamp(max=count - 1)
    share = (places - below).to(device=clip.device, dtype=clip.dtype).view(1, 1, -1, 1, 1)
    return clip[:, :, below] * (1 - share) + clip[:, :, above] * share
