"""Which kind of manifest a request brings: by what it says, by its file's name, or by its media type."""

from __future__ import annotations

from pathlib import PurePosixPath

from pipeline.problems import Problem
from serve.gateway.batches.bodies import ManifestFormat
from serve.gateway.door import DoorError

#: Media types of manifests.
MEDIA_TYPES = {
    "text/csv": ManifestFormat.CSV,
    "application/csv": ManifestFormat.CSV,
    "text/tab-separated-values": ManifestFormat.TSV,
    "application/jsonl": ManifestFormat.JSONL,
    "application/x-jsonl": ManifestFormat.JSONL,
    "application/jsonlines": ManifestFormat.JSONL,
    "application/json-lines": ManifestFormat.JSONL,
    "application/ndjson": ManifestFormat.JSONL,
    "application/x-ndjson": ManifestFormat.JSONL,
    "application/vnd.apache.parquet": ManifestFormat.PARQUET,
    "application/parquet": ManifestFormat.PARQUET,
    "application/x-parquet": ManifestFormat.PARQUET,
    # Product feeds.
    "application/xml": ManifestFormat.XML,
    "text/xml": ManifestFormat.XML,
    "application/rss+xml": ManifestFormat.XML,
    "application/atom+xml": ManifestFormat.XML,
}
#: The media type of each kind that documentation shows.
SHOWN_TYPES = ("text/csv", "text/tab-separated-values", "application/jsonl", "application/vnd.apache.parquet")
_SUFFIXES = {
    ".csv": ManifestFormat.CSV,
    ".txt": ManifestFormat.CSV,
    ".tsv": ManifestFormat.TSV,
    ".tab": ManifestFormat.TSV,
    ".jsonl": ManifestFormat.JSONL,
    ".ndjson": ManifestFormat.JSONL,
    ".parquet": ManifestFormat.PARQUET,
    ".pq": ManifestFormat.PARQUET,
    ".xml": ManifestFormat.XML,
    ".rss": ManifestFormat.XML,
    ".atom": ManifestFormat.XML,
}


def format_of(said: ManifestFormat | None, name: str = "", media_type: str = "") -> ManifestFormat:
    """The kind of a manifest. Raises `DoorError` (415) where nothing tells, or there is no such kind."""
    suffix = PurePosixPath(name).suffix.lower()
    found = said or _SUFFIXES.get(suffix) or MEDIA_TYPES.get(media_type)
    if found is None:
        what = f"the manifest {name[-60:]!r}" if name else f"a body of {media_type[:80] or 'no media type'}"
        raise unsupported(what)
    return found


def named_as(kind: ManifestFormat, name: str) -> str:
    """A manifest's file name by which alone `format_of` gives `kind`, where the name as it is says no kind."""
    return name if PurePosixPath(name).suffix.lower() in _SUFFIXES else f"{name or 'manifest'}.{kind.value}"


def unsupported(what: str) -> DoorError:
    """A 415: `what` was sent is nothing that a batch is read from."""
    remedy = f"Send application/json, one of {', '.join(SHOWN_TYPES)}, or a form with one as the file `manifest`."
    problem = Problem(field="content-type", message=f"{what} is not read here", remedy=remedy)
    return DoorError(415, "unsupported_media_type", problem)
