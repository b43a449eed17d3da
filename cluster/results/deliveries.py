"""Files that a batch's rows are delivered as: one per profile that a row asks for, made once and kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from pipeline.delivery.verdicts import ProfileVerdict


@dataclass(frozen=True, kw_only=True)
class DeliveredFile:
    """What became of one row for one profile."""

    profile: str
    verdict: ProfileVerdict
    #: The finished file, marks included; None where it was not delivered.
    path: Path | None = None
    #: SHA-256 (hex) of all that decides the file: clip, profile, overlays. The same again is not made again.
    key: str = ""
    #: Whether it was encoded now, and not taken from what was kept.
    encoded: bool = False

    @property
    def delivered(self) -> bool:
        """Whether there is a file that keeps every rule."""
        return self.path is not None and self.verdict.passed


#: By the id of a row, by the name of a profile: what a feed names.
RowDeliveries: TypeAlias = Mapping[str, Mapping[str, DeliveredFile]]
