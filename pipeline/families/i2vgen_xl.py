"""I2VGen-XL (Zhang et al., 2023, arXiv:2311.04145) and its tiny random sibling."""

from dataclasses import replace

from pipeline.clips.clip import Sampler, Tier
from pipeline.families.family import Component, Family, FrameRule, Stage, TierSettings
from pipeline.families.layouts import RESIDENT, Layout

_TIERS = {
    Tier.DRAFT: TierSettings(frames=8, steps=30, fps=8),
    Tier.STANDARD: TierSettings(frames=16, steps=50, fps=8),
    Tier.HIGH: TierSettings(frames=24, steps=80, fps=8),
}
# 512 and 256 pixels a side, a quarter of it shared: the decoder's convolutions see about 100 pixels around one.
_LARGE_TILES = {"decode_tile": 64, "decode_overlap": 16}
_SMALL_TILES = {"decode_tile": 32, "decode_overlap": 8}
# Exact ones first, of them the fastest first. Splitting and chunking cost a few kernel launches; encoders have to be
# fetched again for every clip.
_LAYOUTS = (
    RESIDENT,
    Layout(split_guidance=True),
    Layout(split_guidance=True, chunk_feed_forward=8),
    Layout(evict_encoders=True, split_guidance=True),
    Layout(evict_encoders=True, split_guidance=True, chunk_feed_forward=8),
    Layout(evict_encoders=True, split_guidance=True, chunk_feed_forward=8, stream_weights=True),
    # Not exact. Decoding is never the largest stage as predicted, so these are for cards on which it takes more.
    Layout(evict_encoders=True, split_guidance=True, chunk_feed_forward=8, stream_weights=True, **_LARGE_TILES),
    Layout(evict_encoders=True, split_guidance=True, chunk_feed_forward=8, stream_weights=True, **_SMALL_TILES),
)
# Few only: emulated cards are sized so that 1024p × 32 frames of the small network overflows a 12 GiB one.
_SMALL_LAYOUTS = (RESIDENT, Layout(split_guidance=True), Layout(split_guidance=True, **_LARGE_TILES))
_SAMPLERS = (Sampler.DDIM, Sampler.DPMPP_2M, Sampler.UNIPC, Sampler.EULER, Sampler.LCM)
_COMPONENTS = (
    Component(name="tokenizer", library="transformers", cls="CLIPTokenizer", files=("tokenizer.json", "vocab.json")),
    Component(
        name="feature_extractor",
        library="transformers",
        cls="CLIPImageProcessorPil",
        files=("preprocessor_config.json",),
    ),
    # Only its settings: the sampler of a clip is chosen by its specification.
    Component(name="scheduler", library="diffusers", cls="DDIMScheduler", files=("scheduler_config.json",)),
    Component(name="text_encoder", library="transformers", cls="CLIPTextModel", stage=Stage.ENCODE),
    Component(name="image_encoder", library="transformers", cls="CLIPVisionModelWithProjection", stage=Stage.ENCODE),
    Component(name="vae", library="diffusers", cls="AutoencoderKL", stage=Stage.DECODE),
    Component(name="unet", library="diffusers", cls="I2VGenXLUNet", stage=Stage.DENOISE),
)

I2VGEN_XL = Family(
    name="i2vgen-xl",
    title="I2VGen-XL",
    engine="i2vgen-xl",
    revision="39e1979ea27be737b0278c06755e321f2b4360d5",
    repo="ali-vilab/i2vgen-xl",
    licence="MIT",
    licence_note="The model card's tag says MIT, its text says research and non-commercial use only.",
    stride=64,
    frame_rule=FrameRule(minimum=2, maximum=64),
    # Its configuration's; users report 512p as the size that looks best for what it costs, hence the native class.
    native_sizes=((1280, 704), (704, 1280)),
    tiers=_TIERS,
    guidance=9.0,
    memory=None,
    layouts=_LAYOUTS,
    resumable=True,
    samplers=_SAMPLERS,
    max_windowed_frames=512,
    step_cacheable=True,
    refinable=True,
    components=_COMPONENTS,
)

I2VGEN_XL_TINY = replace(
    I2VGEN_XL,
    name="i2vgen-xl-tiny",
    title="I2VGen-XL, small random network (tests and emulated cards)",
    revision="random-1",
    repo=None,
    licence="Apache-2.0",
    licence_note="Random weights: proves speed, memory and plumbing; the pictures mean nothing.",
    native_sizes=(),
    layouts=_SMALL_LAYOUTS,
)
