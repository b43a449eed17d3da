"""`camera`: real camera moves over the still, no weights, on the CPU."""

from pipeline.clips.clip import Tier
from pipeline.families.family import Family, FrameRule, TierSettings

CAMERA = Family(
    name="camera",
    title="Camera moves over the still (no model)",
    engine="camera",
    revision="4",
    repo=None,
    licence="Apache-2.0",
    stride=16,
    frame_rule=FrameRule(minimum=2, maximum=600),
    tiers={
        Tier.DRAFT: TierSettings(frames=24, steps=1, fps=12),
        Tier.STANDARD: TierSettings(frames=48, steps=1, fps=24),
        Tier.HIGH: TierSettings(frames=90, steps=1, fps=30),
    },
    guidance=1.0,
    max_steps=1,
    memory=None,
    needs_torch=False,
    uses_seed=False,
)
