"""Model families as data: strides, frame rules, native sizes and rates, tiers, licences. No torch here."""

from pipeline.families.family import Family, FrameRule, MemoryModel, TierSettings
from pipeline.families.registry import FAMILIES, family_named
from pipeline.families.sizing import MAX_ASPECT, parse_aspect, size_for

__all__ = [
    "FAMILIES",
    "MAX_ASPECT",
    "Family",
    "FrameRule",
    "MemoryModel",
    "TierSettings",
    "family_named",
    "parse_aspect",
    "size_for",
]
