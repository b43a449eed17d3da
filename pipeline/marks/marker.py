"""Who marks: with a certificate, or without one in plain words only."""

from __future__ import annotations

import hashlib
import importlib.util
import time
from dataclasses import dataclass
from pathlib import Path

from pipeline.marks.identity import SigningIdentity, load
from pipeline.marks.signing import MARKS_VERSION
from pipeline.problems import BadInputError

#: What to do to have signed marks.
HOW_TO_SIGN = "`clipmill marks setup` makes them signed (docs/marks.md)"


@dataclass(frozen=True)
class Marker:
    """Marks files with the certificate of a folder; where there is none, with the digital source type alone."""

    identity: SigningIdentity | None = None
    #: Why files are not signed; empty where they are.
    unsigned_because: str = "no certificate is set up"

    @classmethod
    def of(cls, folder: Path) -> Marker:
        """The marker of the folder that `clipmill marks setup` filled.

        Raises `BadInputError` where that cannot be used: it is damaged, has expired, or what signs is not installed.
        """
        identity = load(folder)
        if identity is None:
            return cls()
        if problem := identity.problem_at(time.time()):
            remedy = "Set up another with `clipmill marks setup`, or do without for once: --no-marks."
            raise BadInputError("marks", f"{problem} ({folder})", remedy)
        if importlib.util.find_spec("c2pa") is None:
            remedy = "Install it, pip install 'clipmill[marks]', or do without for once: --no-marks."
            raise BadInputError("marks", f"{folder} has a certificate, and what signs by it is not installed", remedy)
        return cls(identity, "")

    @classmethod
    def of_or_unsigned(cls, folder: Path) -> Marker:
        """What `of` gives; where it would raise, the marker that does not sign, which says why."""
        try:
            return cls.of(folder)
        except BadInputError as error:
            return cls(unsigned_because=str(error.problem))

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits that change whenever the same file would be marked otherwise."""
        who = self.identity.fingerprint if self.identity else "unsigned"
        return hashlib.sha256(f"{MARKS_VERSION}:{who}".encode()).hexdigest()[:16]
