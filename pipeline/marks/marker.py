"""Who marks: with a certificate, or without one in plain words only."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import time
from dataclasses import dataclass
from pathlib import Path

from pipeline.marks.identity import FACTS, SigningIdentity, load
from pipeline.marks.signing import MARKS_VERSION
from pipeline.problems import BadInputError

log = logging.getLogger("clipmill.marks")

#: What to do to have signed marks.
HOW_TO_SIGN = "`clipmill marks setup` has them signed (docs/marks.md)"


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
    def summary(self) -> str:
        """One line for people: who signs, or why nobody does and what to do about it."""
        if self.identity is None:
            return f"clips carry no signed mark: {self.unsigned_because}. {HOW_TO_SIGN}"
        test = ", a test certificate that proves nothing" if self.identity.is_test else ""
        return f"clips are signed by {self.identity.common_name}{test}"

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits that change whenever the same file would be marked otherwise."""
        who = self.identity.fingerprint if self.identity else "unsigned"
        return hashlib.sha256(f"{MARKS_VERSION}:{who}".encode()).hexdigest()[:16]


class WatchedMarker:
    """The marker of a folder as it is now: one that is set up or replaced counts at once. Safe for threads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: tuple[object, Marker] | None = None

    def __call__(self) -> Marker:
        """The marker; where the certificate cannot be used, one that does not sign and says why."""
        try:
            found = (self._folder / FACTS).stat()
            state: object = (found.st_ino, found.st_mtime_ns, found.st_size)
        except OSError:
            state = None
        known = self._known
        expired = known is not None and known[1].identity is not None and known[1].identity.problem_at(time.time())
        if known is None or known[0] != state or expired:
            known = state, Marker.of_or_unsigned(self._folder)
            self._known = known
            if state is not None and known[1].identity is None:
                log.error("%s", known[1].summary)
        return known[1]
