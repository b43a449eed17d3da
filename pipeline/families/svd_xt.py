"""Stable Video Diffusion XT (Blattmann et al., 2023, arXiv:2311.15127) and its tiny random sibling."""

from dataclasses import replace

from pipeline.clips.clip import ResolutionClass, Sampler, Tier
from pipeline.families.family import Component, Family, FrameRule, Stage, TierSettings
from pipeline.families.layouts import Layout

_TIERS = {
    Tier.DRAFT: TierSettings(frames=14, steps=15, fps=7),
    Tier.STANDARD: TierSettings(frames=25, steps=25, fps=7),
    Tier.HIGH: TierSettings(frames=25, steps=50, fps=7),
}
# The decoder mixes the frames it decodes together, so their number is the family's and not the card's: another one
# would be another picture.
_TOGETHER = 8
# 512 and 256 pixels a side, a quarter of it shared.
_LARGE_TILES = {"decode_tile": 64, "decode_overlap": 16}
_SMALL_TILES = {"decode_tile": 32, "decode_overlap": 8}
# Exact ones first, of them the fastest first.
_LAYOUTS = (
    Layout(decode_frames=_TOGETHER),
    Layout(split_guidance=True, decode_frames=_TOGETHER),
    Layout(split_guidance=True, chunk_feed_forward=8, decode_frames=_TOGETHER),
    Layout(evict_encoders=True, decode_frames=_TOGETHER),
    Layout(evict_encoders=True, split_guidance=True, decode_frames=_TOGETHER),
    Layout(evict_encoders=True, split_guidance=True, chunk_feed_forward=8, decode_frames=_TOGETHER),
    # Decoding is the largest stage, and the denoiser is of no use to it.
    Layout(evict_encoders=True, evict_denoiser=True, split_guidance=True, decode_frames=_TOGETHER),
    Layout(evict_encoders=True, evict_denoiser=True, split_guidance=True, stream_weights=True, decode_frames=_TOGETHER),
    # Not exact, for what decoding takes: eight frames at once are more than a step.
    Layout(decode_frames=_TOGETHER, **_LARGE_TILES),
    Layout(evict_encoders=True, decode_frames=_TOGETHER, **_LARGE_TILES),
    Layout(evict_encoders=True, split_guidance=True, decode_frames=_TOGETHER, **_LARGE_TILES),
    Layout(evict_encoders=True, split_guidance=True, chunk_feed_forward=8, decode_frames=_TOGETHER, **_LARGE_TILES),
    Layout(
        evict_encoders=True,
        split_guidance=True,
        chunk_feed_forward=8,
        stream_weights=True,
        decode_frames=_TOGETHER,
        **_LARGE_TILES,
    ),
    Layout(
        evict_encoders=True,
        split_guidance=True,
        chunk_feed_forward=8,
        stream_weights=True,
        decode_frames=_TOGETHER,
        **_SMALL_TILES,
    ),
)
_SAMPLERS = (Sampler.EULER, Sampler.DPMPP_2M)
_COMPONENTS = (
    Component(
        name="feature_extractor",
        library="transformers",
        cls="CLIPImageProcessorPil",
        files=("preprocessor_config.json",),
    ),
    # Only its settings: the sampler of a clip is chosen by its specification.
    Component(name="scheduler", library="diffusers", cls="EulerDiscreteScheduler", files=("scheduler_config.json",)),
    Component(name="image_encoder", library="transformers", cls="CLIPVisionModelWithProjection", stage=Stage.ENCODE),
    Component(name="vae", library="diffusers", cls="AutoencoderKLTemporalDecoder", stage=Stage.DECODE),
    Component(name="unet", library="diffusers", cls="UNetSpatioTemporalConditionModel", stage=Stage.DENOISE),
)

SVD_XT = Family(
    name="svd-xt",
    title="Stable Video Diffusion XT",
    engine="svd",
    revision="9e43909513c6714f1bc78bcb44d96e733cd242aa",
    repo="stabilityai/stable-video-diffusion-img2vid-xt",
    licence="Stability AI Community License",
    licence_note=(
        "Free for research and non-commercial use. Commercial use is free too below 1 million US dollars of yearly "
        "revenue, but has to be registered with Stability AI; above that it needs their enterprise licence. The hub "
        "hands the weights only to accounts that have accepted the licence there."
    ),
    licence_gate=True,
    licence_url="https://huggingface.co/stabilityai/stable-video-diffusion-img2vid-xt/blob/main/LICENSE.md",
    # Eight pixels a latent, and three levels that halve the latents: in between, the halves would be rounded.
    stride=64,
    # Trained on 25 frames, from weights trained on 14.
    frame_rule=FrameRule(minimum=2, maximum=32),
    tiers=_TIERS,
    # Of the last frame; it rises from 1 at the first.
    guidance=3.0,
    # Trained at 1024×576, which is exactly 768².
    native_class=ResolutionClass.P768,
    native_sizes=((1024, 576), (576, 1024)),
    memory=None,
    layouts=_LAYOUTS,
    resumable=True,
    uses_prompt=False,
    samplers=_SAMPLERS,
    max_windowed_frames=512,
    step_cacheable=True,
    refinable=True,
    components=_COMPONENTS,
)

_SMALL_CLASSES = {"vae": "SmallVae", "unet": "SmallUNet"}

SVD_XT_TINY = Family(
    name="svd-xt-tiny",
    title="Stable Video Diffusion XT, small random network (tests and emulated cards)",
    engine="svd",
    revision="random-1",
    repo=None,
    licence="Apache-2.0",
    licence_note="Random weights: proves speed, memory and plumbing; the pictures mean nothing.",
    stride=64,
    frame_rule=FrameRule(minimum=2, maximum=32),
    tiers=_TIERS,
    guidance=3.0,
    native_class=ResolutionClass.P768,
    memory=None,
    layouts=_LAYOUTS,
    resumable=True,
    uses_prompt=False,
    samplers=_SAMPLERS,
    max_windowed_frames=512,
    step_cacheable=True,
    refinable=True,
    components=tuple(
        replace(part, library="pipeline.models.tiny_svd", cls=_SMALL_CLASSES[part.name])
        if part.name in _SMALL_CLASSES
        else part
        for part in _COMPONENTS
    ),
)
