"""All families by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from pipeline.families.camera import CAMERA
from pipeline.families.family import Family
from pipeline.families.i2vgen_xl import I2VGEN_XL, I2VGEN_XL_TINY
from pipeline.families.svd_xt import SVD_XT, SVD_XT_TINY
from pipeline.families.wan import WAN22_5B, WAN22_5B_TINY
from pipeline.problems import BadInputError

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {f.name: f for f in (CAMERA, I2VGEN_XL, I2VGEN_XL_TINY, SVD_XT, SVD_XT_TINY, WAN22_5B, WAN22_5B_TINY)}
)


def is_resumable(name: str | None) -> bool:
    """Whether clips of the family called `name` can be stopped between two steps and go on elsewhere."""
    return name is not None and name in FAMILIES and FAMILIES[name].resumable


def family_named(name: str) -> Family:
    """The family called `name`; raises `BadInputError` naming the ones there are."""
    try:
        return FAMILIES[name]
    except KeyError:
        raise BadInputError("model", f"{name!r} is not a model", f"Choose one of: {', '.join(FAMILIES)}.") from None
