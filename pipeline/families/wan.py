"""Wan2.2 TI2V-5B (Wan team, 2025, arXiv:2503.20314) and its tiny random sibling."""

from dataclasses import replace

from pipeline.clips.clip import ResolutionClass, Sampler, Tier
from pipeline.families.family import Component, Family, FrameRule, Stage, TierSettings
from pipeline.families.layouts import RESIDENT, Layout

# One latent frame for the first frame, then one for every four.
_FRAMES = FrameRule(minimum=5, maximum=121, multiple=4, offset=1)
_TIERS = {
    Tier.DRAFT: TierSettings(frames=33, steps=20, fps=24),
    Tier.STANDARD: TierSettings(frames=81, steps=40, fps=24),
    Tier.HIGH: TierSettings(frames=121, steps=50, fps=24),
}
# 512 and 256 pixels a side, a quarter of it shared.
_LARGE_TILES = {"decode_tile": 32, "decode_overlap": 8}
_SMALL_TILES = {"decode_tile": 16, "decode_overlap": 4}
_HALF = {"decode_half": True}
# Exact ones first, of them the fastest first. The text encoder is larger than the denoiser: 24 GB hold one of them and
# the autoencoder.
_LAYOUTS = (
    RESIDENT,
    Layout(split_guidance=True),
    Layout(split_guidance=True, chunk_feed_forward=8),
    Layout(evict_encoders=True),
    Layout(evict_encoders=True, split_guidance=True),
    Layout(evict_encoders=True, evict_denoiser=True, split_guidance=True),
    Layout(evict_encoders=True, evict_denoiser=True, split_guidance=True, chunk_feed_forward=8),
    Layout(evict_encoders=True, evict_denoiser=True, split_guidance=True, chunk_feed_forward=8, stream_weights=True),
    # Not exact, for what decoding in float32 takes: at 720p 16 GB, whatever else is off the card. First by a decoder in
    # half precision, which rounds each pixel; tiles change tones.
    Layout(evict_encoders=True, **_HALF),
    Layout(evict_encoders=True, split_guidance=True, **_HALF),
    Layout(evict_encoders=True, evict_denoiser=True, split_guidance=True, **_HALF),
    Layout(evict_encoders=True, split_guidance=True, chunk_feed_forward=8, stream_weights=True, **_HALF),
    Layout(evict_encoders=True, **_LARGE_TILES),
    Layout(evict_encoders=True, split_guidance=True, **_LARGE_TILES),
    Layout(evict_encoders=True, evict_denoiser=True, split_guidance=True, **_LARGE_TILES),
    Layout(evict_encoders=True, split_guidance=True, chunk_feed_forward=8, stream_weights=True, **_LARGE_TILES),
    Layout(evict_encoders=True, split_guidance=True, chunk_feed_forward=8, stream_weights=True, **_SMALL_TILES),
)
# Its weights are too small for it to matter where they are.
_SMALL_LAYOUTS = (
    RESIDENT,
    Layout(split_guidance=True),
    Layout(split_guidance=True, **_HALF),
    Layout(split_guidance=True, **_LARGE_TILES),
    Layout(split_guidance=True, **_SMALL_TILES),
)
_SAMPLERS = (Sampler.UNIPC, Sampler.DPMPP_2M, Sampler.EULER)
_COMPONENTS = (
    # Read as the file says. T5's own class rebuilds the tokenizer and loses its fallback to bytes, with which no
    # letter of any language is unknown.
    Component(name="tokenizer", library="transformers", cls="PreTrainedTokenizerFast", files=("tokenizer.json",)),
    # Only its settings: the sampler of a clip is chosen by its specification.
    Component(name="scheduler", library="diffusers", cls="UniPCMultistepScheduler", files=("scheduler_config.json",)),
    Component(name="text_encoder", library="transformers", cls="UMT5EncoderModel", stage=Stage.ENCODE),
    Component(name="vae", library="diffusers", cls="AutoencoderKLWan", stage=Stage.DECODE, full_precision=True),
    Component(name="transformer", library="diffusers", cls="WanTransformer3DModel", stage=Stage.DENOISE),
)

WAN22_5B = Family(
    name="wan2.2-5b",
    title="Wan2.2 TI2V-5B",
    engine="wan",
    revision="b8fff7315c768468a5333511427288870b2e9635",
    repo="Wan-AI/Wan2.2-TI2V-5B-Diffusers",
    licence="Apache-2.0",
    licence_url="https://www.apache.org/licenses/LICENSE-2.0",
    stride=32,
    frame_rule=_FRAMES,
    tiers=_TIERS,
    guidance=5.0,
    # Trained at 1280×704, 24 frames a second.
    native_class=ResolutionClass.P1024,
    native_sizes=((1280, 704), (704, 1280)),
    memory=None,
    layouts=_LAYOUTS,
    resumable=True,
    samplers=_SAMPLERS,
    max_windowed_frames=481,
    frames_per_latent=4,
    pixels_per_latent=16,
    refinable=True,
    components=_COMPONENTS,
    half="bfloat16",
    least_capability=(8, 0),
    variant="",
)

WAN22_5B_TINY = replace(
    WAN22_5B,
    name="wan2.2-5b-tiny",
    title="Wan2.2 TI2V-5B, small random network (tests and emulated cards)",
    revision="random-1",
    repo=None,
    licence_note="Random weights: proves speed, memory and plumbing; the pictures mean nothing.",
    licence_url="",
    native_class=ResolutionClass.P512,
    native_sizes=(),
    layouts=_SMALL_LAYOUTS,
)
