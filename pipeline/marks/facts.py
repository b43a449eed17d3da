"""What a mark says of a clip, as its provenance has it."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from typing import Any

#: The year 10000, in UTC epoch seconds.
_LAST_S = 253_402_300_800


@dataclass(frozen=True, kw_only=True)
class ClipFacts:
    """Facts on a clip that its mark carries. Neither prompt nor file names are among them: marks are for everybody."""

    content_key: str = ""
    #: Family of models by which it was made, and that family's revision.
    family: str = ""
    revision: str = ""
    #: SHA-256 (hex) of the still's file, of the frames before encoding, and of the provenance as it is in storage.
    still_sha256: str = ""
    frames_sha256: str = ""
    provenance_sha256: str = ""
    #: When it was rendered, in UTC, as ISO 8601 writes it; empty where that was not recorded.
    rendered_at: str = ""
    #: SHA-256 (hex) of the master's coded pictures, as recorded when it was published; empty where it was not.
    stream_sha256: str = ""
    #: Small grey pictures of the master (`pipeline.marks.likeness`), as recorded when it was published; else empty.
    likeness: str = ""


def facts_of(provenance: bytes) -> ClipFacts:
    """The facts in a clip's provenance, as it is in storage; what is not in it stays empty."""
    try:
        told = json.loads(provenance)
    except ValueError:
        return ClipFacts()
    if not isinstance(told, dict):
        return ClipFacts()
    family, video = _table(told.get("family")), _table(told.get("video"))
    return ClipFacts(
        content_key=_text(told.get("content_key")),
        family=_text(family.get("name")),
        revision=_text(family.get("revision")),
        still_sha256=_text(told.get("still_sha256")),
        frames_sha256=_text(told.get("frames_sha256")),
        rendered_at=moment_text(told.get("rendered_at")),
        provenance_sha256=hashlib.sha256(provenance).hexdigest(),
        stream_sha256=_text(video.get("stream_sha256")),
        likeness=_text(video.get("likeness")),
    )


def moment_text(at: object) -> str:
    """A time in UTC epoch seconds as ISO 8601 writes it; empty for what is none."""
    if isinstance(at, bool) or not isinstance(at, int | float) or not 0 <= at < _LAST_S:
        return ""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


def _table(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
