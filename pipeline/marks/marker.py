"""Who marks: with a certificate, or without one in plain words only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Marker:
    """Marks files with the certificate of a folder; where there is none, with the digital source type alone."""

    @classmethod
    def of(cls, folder: Path) -> Marker:
        """The marker of the folder that `clipmill marks setup` filled."""
        raise NotImplementedError
