"""The files of a finished video: whole or in part (RFC 9110, sections 13 and 14), never twice to who has it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import quote

from fastapi import Response
from fastapi.responses import StreamingResponse

from cluster.catalog.names import file_stem
from cluster.jobs.model import Clip, Objects
from cluster.results.archive import ArchivedObjects
from pipeline.units import MIB

_AT_ONCE = MIB
_RANGE = re.compile(r"\s*bytes\s*=\s*(\d{0,19})\s*-\s*(\d{0,19})\s*", re.IGNORECASE)


class Variant(StrEnum):
    """What can be had of a video: by OpenAI's names, and how it came about."""

    VIDEO = "video"
    THUMBNAIL = "thumbnail"
    SPRITESHEET = "spritesheet"
    PROVENANCE = "provenance"


@dataclass(frozen=True, kw_only=True)
class ClipFile:
    """One file of a clip in storage."""

    key: str
    media_type: str
    #: What it is saved as; any text.
    name: str
    #: Strong: a published object never changes, and its mark only with who marks.
    etag: str


def file_of(clip: Clip, row: str, variant: Variant, marks: str = "") -> ClipFile:
    """Where a variant of the clip of a row lies. `marks`: how files are marked that are handed out."""
    objects: Objects = clip.objects
    key, media_type = {
        Variant.VIDEO: (objects.video, "video/mp4"),
        Variant.THUMBNAIL: (objects.poster, "image/jpeg"),
        Variant.SPRITESHEET: (objects.spritesheet, "image/jpeg"),
        Variant.PROVENANCE: (objects.provenance, "application/json"),
    }[variant]
    suffix = {"video/mp4": "mp4", "image/jpeg": "jpg", "application/json": "json"}[media_type]
    stem = file_stem(row)
    name = f"{stem}.mp4" if variant is Variant.VIDEO else f"{stem}-{variant}.{suffix}"
    # Provenance carries no mark.
    marked = f"-{marks}" if marks and variant is not Variant.PROVENANCE else ""
    etag = f'"{clip.attempt_id}-{variant}{marked}"'
    return ClipFile(key=key, media_type=media_type, name=name, etag=etag)


def answer_with(storage: ArchivedObjects, file: ClipFile, headers: Mapping[str, str]) -> Response:
    """The file as a request with these headers asks for it. Raises `MissingObjectError` and `StorageError`.

    Whoever keeps it has to ask whether it is still that one: after a review, a new certificate or another brand there
    is another file under the same URL.
    """
    known = [tag.strip().removeprefix("W/") for tag in headers.get("if-none-match", "").split(",")]
    told = {
        "ETag": file.etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
        # As results call it, whatever a page would have it called.
        "Content-Disposition": f"inline; filename*=UTF-8''{quote(file.name, safe='')}",
        # Whatever a browser makes of it, it is no page.
        "X-Content-Type-Options": "nosniff",
    }
    if file.etag in known or "*" in known:
        return Response(status_code=304, headers=told)
    size = storage.size(file.key)
    first, last = 0, size - 1
    status = 200
    asked = headers.get("range")
    if asked and headers.get("if-range", file.etag) == file.etag and (found := part_of(asked, size)) is not None:
        if not found:
            return Response(status_code=416, headers=told | {"Content-Range": f"bytes */{size}"})
        (first, last), status = found, 206
        told["Content-Range"] = f"bytes {first}-{last}/{size}"
    told["Content-Length"] = str(last - first + 1)
    return StreamingResponse(
        _parts(storage, file.key, first, last + 1), status_code=status, headers=told, media_type=file.media_type
    )


def part_of(asked: str, size: int) -> tuple[int, int] | tuple[()] | None:
    """First and last byte of the one range that a `Range` header asks of `size` bytes.

    (): it asks for what is not there. None: it asks for several ranges, or cannot be read, and is to be ignored.
    """
    match = _RANGE.fullmatch(asked)
    if not match or not (match[1] or match[2]):
        return None
    if not match[1]:
        last = int(match[2])
        return (max(0, size - last), size - 1) if last and size else ()
    first, last = int(match[1]), int(match[2]) if match[2] else size - 1
    if match[2] and last < first:
        return None
    return (first, min(last, size - 1)) if first < size else ()


def _parts(storage: ArchivedObjects, key: str, first: int, end: int) -> Iterator[bytes]:
    with storage.open(key) as file:
        file.seek(first)
        while first < end:
            part = file.read(min(_AT_ONCE, end - first))
            if not part:
                # Shorter than it was: the connection breaks off, as the length that was told is not reached.
                return
            first += len(part)
            yield part
