"""Results as a person takes them home: clips, posters and provenance in a folder, and a sheet that shows them."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, TypeAdapter, ValidationError

from cluster.contact_sheet import STATES, BatchSummary, ResultRow, State, render
from cluster.storage import Storage, StorageError
from pipeline.problems import Problem

__all__ = ["STATES", "BatchSummary", "ResultRow", "ResultsError", "State", "write_clip", "write_sheet"]

#: Below OUT: one small file per row that says what was written for it.
RECORDS = Path(".clipmill") / "written"
_FULL = {errno.ENOSPC, errno.EDQUOT}


class ResultsError(RuntimeError):
    """OUT could not be written; `problem` says what, where and what to do."""

    def __init__(self, message: str, remedy: str) -> None:
        self.problem = Problem(field="out", message=message, remedy=remedy)
        super().__init__(str(self.problem))


class _Written(BaseModel):
    """A file as it was left in OUT, and what it was made of."""

    size_bytes: int
    mtime_ns: int
    sha256: str
    #: The storage key; for provenance, a hash of everything merged.
    source: str


_RECORD = TypeAdapter(dict[str, _Written])


def write_clip(
    out: Path, row: ResultRow, storage: Storage, extra_provenance: Mapping[str, object] | None = None
) -> list[str]:
    """Bring `<id>.mp4`, `<id>.jpg` and `<id>.json` of a completed row into `out`; give the names written.

    A file that is there as it was left (same object, size and modification time, else same SHA-256) is not
    written again; one deleted, cut short or edited is restored from storage. A row that is not completed has
    no files. The JSON is the clip's provenance in storage with `extra_provenance` and the row's own facts
    (`row`) on top. Calls for different rows may run in parallel.

    Raises `ResultsError` where `out` cannot be written, `StorageError` where an object cannot be read.
    """
    if row.state != "completed":
        return []
    _check_name(row.id)
    out = out.absolute()
    facts = _row_facts(row)
    jobs: list[tuple[str, str, Callable[[Path], None]]] = []
    for suffix, key in ((".mp4", row.video_key), (".jpg", row.poster_key)):
        if key is not None:
            jobs.append((row.id + suffix, key, _copier(storage, key)))
    if row.provenance_key is not None:
        # An equal row may have asked otherwise: what was adjusted is this row's own.
        on_top = {**(extra_provenance or {}), "row": facts, "adjusted": list(row.adjusted)}
        source = hashlib.sha256(_json([row.provenance_key, on_top])).hexdigest()
        jobs.append((f"{row.id}.json", source, _merger(storage, row.provenance_key, on_top)))

    record_path = out / RECORDS / f"{row.id}.json"
    known = _read_record(record_path)
    now: dict[str, _Written] = {}
    written: list[str] = []
    for name, source, write in jobs:
        target = out / name
        with _telling(target):
            kept = _kept(target, source, known.get(name))
            if kept is None:
                target.parent.mkdir(parents=True, exist_ok=True)
                write(target)
                kept = _describe(target, source)
                written.append(name)
            now[name] = kept
    if now != known:
        _replace(record_path, _RECORD.dump_json(now, indent=1))
    return written


def write_sheet(out: Path, batch_name: str, rows: Sequence[ResultRow], summary: BatchSummary) -> Path:
    """Write `out/index.html`, whole or not at all, and give its path. Raises `ResultsError`."""
    path = out / "index.html"
    _replace(path, render(batch_name, rows, summary).encode())
    return path


def _row_facts(row: ResultRow) -> dict[str, object]:
    facts: dict[str, object] = {"id": row.id, "number": row.number, "image": row.image, "prompt": row.prompt}
    if row.shared_with is not None:
        facts["shared_with"] = row.shared_with
    if row.notes:
        facts["notes"] = list(row.notes)
    return facts | {"extra": dict(row.extra)}


def _copier(storage: Storage, key: str) -> Callable[[Path], None]:
    return lambda target: storage.get_to(key, target)


def _merger(storage: Storage, key: str, on_top: Mapping[str, object]) -> Callable[[Path], None]:
    def write(target: Path) -> None:
        try:
            provenance = json.loads(storage.get_bytes(key))
        except ValueError:
            provenance = None
        if not isinstance(provenance, dict):
            raise ResultsError(
                f"{target} was not written: the provenance {key!r} in {storage.url} is not a JSON object",
                "The stored object is damaged: delete it and retry the row.",
            )
        _replace(target, _json({**provenance, **on_top}, indent=2) + b"\n")

    return write


def _json(value: object, indent: int | None = None) -> bytes:
    # Columns read from Parquet bring dates and decimals; their text is what a person expects.
    return json.dumps(value, ensure_ascii=False, sort_keys=indent is None, indent=indent, default=str).encode()


def _kept(target: Path, source: str, known: _Written | None) -> _Written | None:
    """The file's record, if the file is still the one that was written from `source`."""
    if known is None or known.source != source:
        return None
    try:
        stat = target.stat()
    except FileNotFoundError:
        return None
    if stat.st_size != known.size_bytes:
        return None
    if stat.st_mtime_ns == known.mtime_ns:
        return known
    # A folder copied elsewhere has new times; reading it is cheaper than fetching it again.
    found = _describe(target, source)
    return found if found.sha256 == known.sha256 else None


def _describe(path: Path, source: str) -> _Written:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        stat = os.fstat(file.fileno())
    return _Written(size_bytes=stat.st_size, mtime_ns=stat.st_mtime_ns, sha256=sha256, source=source)


def _read_record(path: Path) -> dict[str, _Written]:
    try:
        return _RECORD.validate_json(path.read_bytes())
    except (OSError, ValidationError):
        # Without a record everything is fetched again: slower, never wrong.
        return {}


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{secrets.token_hex(6)}.part")
    with _telling(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(data)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def _telling(path: Path) -> Iterator[None]:
    try:
        yield
    except StorageError as error:
        # Copying touches both ends; only a fault at this end is about OUT.
        if isinstance(error.__cause__, OSError) and _concerns(error.__cause__, path):
            raise _unwritable(path, error.__cause__) from error
        raise
    except OSError as error:
        raise _unwritable(path, error) from error


def _concerns(error: OSError, path: Path) -> bool:
    # A full disk is met by `write`, which names no file; reading an object never meets one.
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    return error.errno in _FULL or any(Path(name).is_relative_to(path.parent.absolute()) for name in names)


def _unwritable(path: Path, error: OSError) -> ResultsError:
    what = error.strerror or str(error)
    if error.errno in _FULL:
        what = "no space is left on its disk"
        remedy = "Make room or choose another --out, then run the same command again: finished clips are kept."
    elif error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        remedy = "Choose another --out, or give yourself write access to this one."
    elif error.errno == errno.ENAMETOOLONG:
        remedy = "Shorten the row's id: it names the files."
    else:
        remedy = "Check that --out is a folder on a working disk, or choose another."
    return ResultsError(f"{path} could not be written: {what}", remedy)


def _check_name(row_id: str) -> None:
    if not row_id or row_id in {".", ".."} or any(c in row_id for c in "/\\\0"):
        raise ValueError(f"{row_id!r} is no file name; rows are given valid ids when the manifest is read")
