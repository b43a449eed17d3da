"""Signing a small picture and reading it back, so that a certificate is known to work before clips depend on it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from PIL import Image

from pipeline.marks.facts import ClipFacts
from pipeline.marks.identity import SigningIdentity
from pipeline.marks.mark import mark
from pipeline.marks.marker import Marker
from pipeline.marks.problems import SigningError
from pipeline.marks.verdict import MarkState
from pipeline.marks.verify import verify


def try_signing(identity: SigningIdentity) -> None:
    """Sign a picture and read the mark. Raises `SigningError`; asks the timestamp authority, where there is one."""
    with tempfile.TemporaryDirectory(prefix="clipmill-marks-") as folder:
        picture = Path(folder) / "trial.png"
        Image.new("RGB", (16, 16), "white").save(picture)
        mark(picture, ClipFacts(content_key="trial"), Marker(identity, ""))
        found = verify(picture)
        if found.state is not MarkState.VALID:
            remedy = "C2PA wants a certificate for digital signatures: see docs/marks.md, or try a test one."
            raise SigningError(f"a mark by {identity.common_name!r} cannot be read back: {found.says}", remedy)
        if identity.timestamp_url and not (found.signer and found.signer.stamped_at):
            message = f"{identity.timestamp_url} gave no time that can be read back"
            raise SigningError(message, "Name another authority (RFC 3161), or none.")
