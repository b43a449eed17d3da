"""Model families as data, without torch: strides, frame rules, native sizes and rates, tiers, licences."""

from pipeline.families.family import Component, Family, FrameRule, Line, MemoryModel, Stage, TierSettings
from pipeline.families.registry import FAMILIES, family_named, is_resumable
from pipeline.families.sizing import MAX_ASPECT, parse_aspect, size_for

__all__ = [
    "FAMILIES",
    "MAX_ASPECT",
    "Component",
    "Family",
    "FrameRule",
    "Line",
    "MemoryModel",
    "Stage",
    "TierSettings",
    "family_named",
    "is_resumable",
    "parse_aspect",
    "size_for",
]
