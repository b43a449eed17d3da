"""Results as a person takes them home: clips, posters and provenance in a folder, and a sheet that shows them."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cluster.catalog.names import file_stem
from cluster.results.contact_sheet import STATES, BatchSummary, ResultRow, State, render
from cluster.results.deliveries import DeliveredFile, Finish
from cluster.results.ownership import (
    NO_INPUTS,
    RECORDS,
    Found,
    Inputs,
    OutFolder,
    ResultsError,
    RowRefusedError,
    Standing,
    Written,
    describe,
)
from cluster.results.table import deliveries_table_of, table_of
from pipeline.notes import as_json

__all__ = [
    "RECORDS",
    "STATES",
    "BatchSummary",
    "ClipObjects",
    "ResultRow",
    "ResultsError",
    "RowRefusedError",
    "State",
    "provenance_of",
    "write_clip",
    "write_deliveries_table",
    "write_delivery",
    "write_sheet",
    "write_table",
]

PAGE = "index.html"
TABLE = "results.csv"
DELIVERIES = "deliveries.csv"
#: The record of the pages; no row's id begins with a dot.
_PAGES = ".pages"
#: What the title of every page ended with before pages were recorded.
_PAGE_MARK = b" \xc2\xb7 clipmill</title>"
_MARK_WITHIN_BYTES = 4096
#: Pages of catalogs with one name in one folder.
_MAX_PAGES = 1000


class ClipObjects(Protocol):
    """The objects of clips by their storage keys, wherever they are read from."""

    url: str

    def get_bytes(self, key: str) -> bytes:
        """The whole object. Raises `MissingObjectError`, `StorageError`."""
        ...

    def get_to(self, key: str, path: str | Path) -> None:
        """Copy the object to a file. Raises `MissingObjectError`, `StorageError`."""
        ...


@dataclass(frozen=True)
class _File:
    """A file that a row is to have in OUT."""

    name: str
    #: The storage key, and behind a `#` how it is marked; for provenance, a hash of everything merged.
    source: str
    write: Callable[[Path], object]


def write_clip(
    out: Path,
    row: ResultRow,
    storage: ClipObjects,
    extra_provenance: Mapping[str, object] | None = None,
    *,
    inputs: Inputs = NO_INPUTS,
    catalog: str = "",
    marks: str = "",
    told: Callable[[str], None] = lambda _text: None,
) -> list[str]:
    """Bring `<id>.mp4`, `<id>.jpg` and `<id>.json` of a completed row into `out`; give the names fetched.

    An id that some disks take for no name is written as `file_stem` has it.

    A file that is there as it was left (same object, size and modification time, else same SHA-256) is not
    fetched again; one deleted, cut short or edited is restored from storage, and what was edited is kept under
    another name, of which `told` hears. A file that clipmill did not write, or that is one of `inputs`, is never
    touched: the row is refused, unless the file is what would be written. A row that is not completed has no files.
    The JSON is the clip's provenance in storage with `extra_provenance` and the row's own facts (`row`) on top.
    `catalog` says for whom (`catalog_key`), and `marks` how `storage` marks files: those marked otherwise are fetched
    again. Calls for different rows may run in parallel.

    Raises `RowRefusedError` where only this row's files cannot be written, `ResultsError` where nothing can be,
    `StorageError` where an object cannot be read.
    """
    if row.state != "completed":
        return []
    _check_name(row.id)
    folder = OutFolder(out, inputs, told)
    return _written(folder, row.id, _files_of(row, storage, extra_provenance or {}, folder.path, marks), catalog)


def write_delivery(
    out: Path,
    row: ResultRow,
    delivered: DeliveredFile,
    finish: Finish | None = None,
    *,
    name: str = "",
    inputs: Inputs = NO_INPUTS,
    catalog: str = "",
    told: Callable[[str], None] = lambda _text: None,
) -> list[str]:
    """Bring a row's file for a profile into `out/<profile>/`, with what was judged of it; give the names written.

    It is `<id>.mp4`, finished by `finish`, and `<id>.json`; with a `name`, a path below `out` that no other file has,
    it is called so, and what was judged of it alike. Of a row that was not delivered there is the judgement alone,
    and a file of before is kept under another name: nobody takes it for the one that was asked for. Files are replaced
    as `write_clip` does, and it raises the same.
    """
    _check_name(row.id)
    called = Path(name or f"{delivered.profile}/{file_stem(row.id)}.mp4")
    folder = OutFolder(out / called.parent, inputs, told)
    # What is written is recorded by the file's name, which is the row's id where nobody chose another.
    stem, record, marks = called.stem, called.stem if name else row.id, finish.name if finish else ""
    path = delivered.path
    facts = delivered.verdict.model_dump(mode="json") | {"row": row.id, "key": delivered.key, "marks": marks}
    judged = _json(facts, indent=2) + b"\n"
    files = [_File(f"{stem}.json", hashlib.sha256(judged).hexdigest(), lambda target: target.write_bytes(judged))]
    if delivered.delivered and path is not None:

        def copy(target: Path) -> None:
            if finish:
                finish(delivered, row, target)
            else:
                shutil.copyfile(path, target)

        files.append(_File(f"{stem}.mp4", f"{delivered.key} {marks}".strip(), copy))
    elif (own := f"{stem}.mp4") in folder.record(record) and (folder.path / own).exists():
        folder.keep_aside(own, "before")
    return _written(folder, record, files, catalog)


def write_sheet(
    out: Path,
    batch_name: str,
    rows: Sequence[ResultRow],
    summary: BatchSummary,
    *,
    catalog: str = "",
    told: Callable[[str], None] = lambda _text: None,
) -> Path:
    """Write the page of a batch, whole or not at all, and give its path. Raises `ResultsError`.

    It is `out/index.html`, unless a file of somebody else or the page of another `catalog` (`catalog_key`) has that
    name: then it is `index-<batch_name>.html`, and both stay. One that was edited is kept under another name.
    """
    return _write_page(
        OutFolder(out, told=told), batch_name, Path(PAGE), render(batch_name, rows, summary).encode(), catalog
    )


def write_table(
    out: Path,
    batch_name: str,
    rows: Sequence[ResultRow],
    *,
    catalog: str = "",
    told: Callable[[str], None] = lambda _text: None,
) -> Path:
    """Write the rows of a batch as CSV, whole or not at all, and give its path. Raises `ResultsError`.

    It is `out/results.csv`, unless that is somebody else's or another catalog's: then it has a name as the page would.
    """
    return _write_page(OutFolder(out, told=told), batch_name, Path(TABLE), table_of(rows), catalog)


def write_deliveries_table(
    out: Path,
    batch_name: str,
    rows: Sequence[tuple[ResultRow, Mapping[str, DeliveredFile]]],
    *,
    name_of: Callable[[ResultRow, str], str] | None = None,
    catalog: str = "",
    told: Callable[[str], None] = lambda _text: None,
) -> Path:
    """Write what became of each row for each profile as CSV, as `write_table` does. Raises `ResultsError`."""
    content = deliveries_table_of(rows, name_of)
    return _write_page(OutFolder(out, told=told), batch_name, Path(DELIVERIES), content, catalog)


def _written(folder: OutFolder, row_id: str, files: Sequence[_File], catalog: str) -> list[str]:
    known = folder.record(row_id)
    if known and _kept(folder, files, known) == known:
        return []
    folder.make()
    with folder.alone():
        known = folder.record(row_id)
        kept = _kept(folder, files, known)
        missing = [file for file in files if file.name not in kept]
        if missing:
            _bring(folder, row_id, known, missing, kept, catalog)
        elif kept != known:
            folder.write_record(row_id, kept)
    return [file.name for file in missing]


def _write_page(folder: OutFolder, batch_name: str, wanted: Path, content: bytes, catalog: str) -> Path:
    out, stem, suffix = folder.path, wanted.stem, wanted.suffix
    folder.make()
    slug = re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(batch_name).stem).strip("-.")[:60] or "catalog"
    more = (f"{stem}-{slug}-{number}{suffix}" for number in range(2, _MAX_PAGES))
    names = [wanted.name, f"{stem}-{slug}{suffix}", *more]
    refused = None
    with folder.alone(), folder.drafts() as draft:
        temporary = draft(lambda path: path.write_bytes(content))
        for name in names:
            try:
                if _bring_page(folder, temporary, name, catalog):
                    return out / name
            except RowRefusedError as error:
                refused = error
    raise refused or ResultsError(f"{out} has no name left for a page", "Name another folder with --out.")


def _bring_page(folder: OutFolder, temporary: Path, name: str, catalog: str) -> bool:
    """False where the name is somebody else's or another catalog's. Raises `RowRefusedError` where it is by now."""
    known = folder.page_record(_PAGES)
    before = known.get(name)
    found = folder.look(name, before)
    if found.standing is Standing.FOREIGN and not known and _is_older_page(folder.path / name):
        # Of a version that kept no record of pages. It may show another catalog.
        folder.keep_aside(name, "before")
        found = Found(Standing.FREE)
    if found.standing in (Standing.FOREIGN, Standing.BLOCKED) or (before and before.source != catalog):
        return False
    new = describe(temporary, catalog)
    if found.standing is Standing.OURS:
        new = new.model_copy(update={"replaces": found.sha256})
    folder.write_record(_PAGES, {**known, name: new})
    try:
        folder.bring(temporary, name, before, new)
    except RowRefusedError:
        folder.write_record(_PAGES, known)
        raise
    return True


def _kept(folder: OutFolder, files: Sequence[_File], known: Mapping[str, Written]) -> dict[str, Written]:
    """The records of those files that are there as they were left."""
    found = {file.name: folder.kept(file.name, file.source, known.get(file.name)) for file in files}
    return {name: written for name, written in found.items() if written is not None}


def _bring(
    folder: OutFolder,
    row_id: str,
    known: Mapping[str, Written],
    missing: Sequence[_File],
    kept: Mapping[str, Written],
    catalog: str,
) -> None:
    """Fetch what is missing, see that all of it may be written, and only then write any of it."""
    now = dict(kept)
    new: list[tuple[Path, str]] = []
    others = False
    with folder.drafts() as draft:
        for file in missing:
            before = known.get(file.name)
            found = folder.look(file.name, before)
            if found.standing is Standing.BLOCKED:
                raise folder.refusal(file.name, found)
            temporary = draft(file.write)
            written = describe(temporary, file.source, catalog)
            if found.standing is Standing.FOREIGN:
                there = folder.same(file.name, written)
                if there is None:
                    raise folder.refusal(file.name, found)
                # What it should be already, of a lost record.
                now[file.name] = there
                continue
            if found.standing is Standing.OURS:
                written = written.model_copy(update={"replaces": found.sha256})
            now[file.name] = written
            new.append((temporary, file.name))
            others |= before is not None and "" != before.catalog != catalog != ""
        # The record first: a process that is killed here leaves no file of which nobody knows whose it is.
        folder.write_record(row_id, now)
        left = [name for _, name in new]
        try:
            for temporary, name in new:
                folder.bring(temporary, name, known.get(name), now[name])
                left.remove(name)
        except RowRefusedError:
            # What was not written is not claimed.
            as_before = {name: known[name] for name in left if name in known}
            folder.write_record(row_id, {name: now[name] for name in now if name not in left} | as_before)
            raise
    if others:
        folder.told(f"{row_id}: the clip that another catalog had here was replaced")


def _files_of(
    row: ResultRow, storage: ClipObjects, extra: Mapping[str, object], folder: Path, marks: str
) -> list[_File]:
    files = [
        _File(file_stem(row.id) + suffix, f"{key}#{marks}" if marks else key, _copier(storage, key))
        for suffix, key in ((".mp4", row.video_key), (".jpg", row.poster_key))
        if key is not None
    ]
    if row.provenance_key is not None:
        name = f"{file_stem(row.id)}.json"
        on_top = _own_facts(row, extra)
        source = hashlib.sha256(_json([row.provenance_key, on_top])).hexdigest()
        files.append(_File(name, source, _merger(storage, row.provenance_key, on_top, folder / name)))
    return files


def _is_older_page(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return _PAGE_MARK in file.read(_MARK_WITHIN_BYTES)
    except OSError:
        return False


def provenance_of(row: ResultRow, stored: bytes, extra: Mapping[str, object]) -> bytes | None:
    """A clip's provenance as `<id>.json` has it: as `stored`, with `extra` and the row's own facts on top.

    None where what is stored is damaged.
    """
    return _merged(stored, _own_facts(row, extra))


def _own_facts(row: ResultRow, extra: Mapping[str, object]) -> dict[str, object]:
    # An equal row may have asked otherwise: what was adjusted is this row's own.
    return {**extra, "row": _row_facts(row), "adjusted": [note.message for note in row.noted if note.adjusted]}


def _merged(stored: bytes, on_top: Mapping[str, object]) -> bytes | None:
    try:
        provenance = json.loads(stored)
    except ValueError:
        return None
    return _json({**provenance, **on_top}, indent=2) + b"\n" if isinstance(provenance, dict) else None


def _row_facts(row: ResultRow) -> dict[str, object]:
    facts: dict[str, object] = {"id": row.id, "number": row.number, "image": row.image, "prompt": row.prompt}
    if row.shared_with is not None:
        facts["shared_with"] = row.shared_with
    if row.review:
        # What decided that it was this one: the draft's seed and clip, and who else there was.
        facts["review"] = dict(row.review)
        facts["picked"] = row.review.get("picked") is True
    if row.noted:
        facts["notes"] = [note.message for note in row.noted if not note.adjusted]
        facts["noted"] = as_json(row.noted)
    return facts | {"extra": dict(row.extra)}


def _copier(storage: ClipObjects, key: str) -> Callable[[Path], None]:
    return lambda target: storage.get_to(key, target)


def _merger(storage: ClipObjects, key: str, on_top: Mapping[str, object], name: Path) -> Callable[[Path], object]:
    def write(target: Path) -> None:
        merged = _merged(storage.get_bytes(key), on_top)
        if merged is None:
            raise RowRefusedError(
                f"{name} was not written: the provenance {key!r} in {storage.url} is not a JSON object",
                "The stored object is damaged: delete it and retry the row.",
            )
        target.write_bytes(merged)

    return write


def _json(value: object, indent: int | None = None) -> bytes:
    # Columns read from Parquet bring dates and decimals; their text is what a person expects.
    return json.dumps(value, ensure_ascii=False, sort_keys=indent is None, indent=indent, default=str).encode()


def _check_name(row_id: str) -> None:
    if not row_id or row_id in {".", ".."} or any(c in row_id for c in "/\\\0"):
        raise ValueError(f"{row_id!r} is no file name; rows are given valid ids when the manifest is read")
