"""From a file or a folder to raw records: one per row, nothing but the form checked."""

from __future__ import annotations

import csv
import datetime as dt
import difflib
import io
import json
import math
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import NoReturn

from pipeline.problems import Problem

#: The columns this farm knows; every other one is carried along.
COLUMNS = frozenset(
    (
        *("id", "image", "prompt", "negative_prompt", "model", "resolution_class", "aspect", "tier"),
        *("frames", "fps", "steps", "guidance", "seed", "candidates", "priority", "after", "fit"),
        *("sampler", "window", "window_overlap", "step_cache", "motion_class", "from_draft", "strength", "upscale"),
    )
)
#: What makes a file in a folder a row; HEIC is refused later, with a remedy, rather than passed over in silence.
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".heif"}
)
MAX_MANIFEST_BYTES = 1_000_000_000

_FORMATS = "a .csv, .tsv, .jsonl, .ndjson or .parquet file, or a folder of images"
_SAVE_AS_UTF8 = "Save the manifest as UTF-8 (in a spreadsheet: 'CSV UTF-8')."
# Longest first: UTF-32's mark begins with UTF-16's.
_MARKS = (
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)


class ManifestError(ValueError):
    """A manifest that cannot be read at all; a fault of one row is a `Problem` of that row instead."""

    def __init__(self, path: Path, message: str, remedy: str) -> None:
        self.path = path
        self.message = message
        self.remedy = remedy
        super().__init__(f"{path}: {message}. {remedy}")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One row as it stands in the source: values trimmed, empty ones left out, nothing converted."""

    #: Which row of data it is, from 1.
    number: int
    #: Physical line on which it begins, from 1, header counted; None where a source has no lines.
    line: int | None = None
    #: By column: known names in lower case, others as written.
    values: dict[str, object]
    problems: tuple[Problem, ...] = ()


def read_records(path: Path) -> list[Record]:
    """All rows of a manifest file or folder, in order, at least one. Raises `ManifestError`."""
    try:
        if path.is_dir():
            return _folder(path)
        suffix = path.suffix.lower()
        readers = {
            ".csv": _csv,
            ".tsv": _csv,
            ".jsonl": _jsonl,
            ".ndjson": _jsonl,
            ".parquet": _parquet,
            ".pq": _parquet,
        }
        mode = path.stat().st_mode
        if suffix not in readers:
            raise ManifestError(
                path, f"{suffix or 'a file without suffix'} is not a kind of manifest", f"Give {_FORMATS}."
            )
        if not stat.S_ISREG(mode):
            raise ManifestError(path, "it is not a regular file", f"Give {_FORMATS}.")
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            limit_mb = MAX_MANIFEST_BYTES // 1_000_000
            raise ManifestError(path, f"it is larger than {limit_mb} MB", "Split it into several manifests.")
        data = path.read_bytes()
    except FileNotFoundError:
        raise ManifestError(path, "there is no such file or folder", f"Give {_FORMATS}.") from None
    except ManifestError:
        raise
    except (OSError, ValueError) as error:  # a ValueError is a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise ManifestError(path, f"it cannot be read: {reason}", "Check its name and permissions.") from error
    if not data.strip():
        raise _empty(path)
    records = readers[suffix](path, data)
    if not records:
        raise ManifestError(path, "it has no rows", "Add one row per clip.")
    return records


def _empty(path: Path) -> ManifestError:
    return ManifestError(path, "it is empty", "Give it a header and one row per clip.")


def unreadable(text: str) -> str | None:
    """Why `text` cannot be stored as text (foreign bytes, half a character, NUL); None where it can."""
    foreign = [ord(c) - 0xDC00 for c in text if "\udc80" <= c <= "\udcff"]
    if foreign:
        shown = ", ".join(f"0x{byte:02X}" for byte in dict.fromkeys(foreign))
        legible = re.sub("[\udc80-\udcff]", "\N{REPLACEMENT CHARACTER}", text[:60])
        return f"{legible!r} holds bytes that are not UTF-8 ({shown})"
    if "\0" in text:
        return f"{text[:60]!r} holds a NUL character"
    if any("\ud800" <= c <= "\udfff" for c in text):
        return f"{text[:60]!r} holds half a character"
    return None


def _column(name: str) -> str:
    """A known column's own name for whatever case, spaces or hyphens it was written with; others trimmed."""
    folded = re.sub(r"[\s-]+", "_", name.strip().casefold())
    return folded if folded in COLUMNS else name.strip()


def _decode(path: Path, data: bytes) -> str:
    """Text of the file; bytes that are not UTF-8 come as lone surrogates (PEP 383), so only their rows suffer."""
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding, "surrogateescape" if encoding.startswith("utf-8") else "strict")
    except UnicodeDecodeError as error:
        raise ManifestError(path, f"it begins as {encoding.upper()} but is damaged", _SAVE_AS_UTF8) from error
    if not text.strip():
        raise _empty(path)
    return text


def _check_header(path: Path, names: Sequence[str]) -> None:
    for name in names:
        if fault := unreadable(name):
            raise ManifestError(path, f"its header is not text: {fault}", f"{_SAVE_AS_UTF8} Or give {_FORMATS}.")
    if double := {name for name in names if names.count(name) > 1}:
        raise ManifestError(path, f"it has two columns called {min(double)!r}", "Rename or remove one of them.")
    if "image" not in names:
        shown = ", ".join(name[:40] for name in names[:20])
        near = difflib.get_close_matches("image", names, n=1)
        rename = f"Is {near[0]!r} meant? " if near else ""
        raise ManifestError(
            path,
            f"it has no column 'image'; its first row reads: {shown}",
            f"{rename}Name the columns in the first row.",
        )


def _csv_rows(lines: list[str], delimiter: str) -> Iterator[tuple[int, list[str] | csv.Error]]:
    """(line from 1, cells), or the error of a row that is not CSV; goes on at the line after such a row."""
    at = 0
    while at < len(lines):
        # Strict, because a lenient reader lets one stray quote swallow all the rows below it.
        source = (lines[i] for i in range(at, len(lines)))
        reader = csv.reader(source, delimiter=delimiter, strict=True, skipinitialspace=True)
        begun = at
        try:
            for cells in reader:
                yield begun + 1, cells
                begun = at + reader.line_num
            return
        except csv.Error as error:
            yield begun + 1, error
            at = begun + 1


def _csv(path: Path, data: bytes) -> list[Record]:
    lines = list(io.StringIO(_decode(path, data), newline=""))
    first = next((line for line in lines if line.strip()), "")
    unquoted = re.sub(r'"[^"]*"', "", first)
    rows = _csv_rows(lines, max(",;\t", key=unquoted.count))
    header: list[str] = []
    for _, cells in rows:
        if isinstance(cells, csv.Error):
            raise ManifestError(path, f"its header is not CSV ({cells})", f"Close every quote, or give {_FORMATS}.")
        if any(cell.strip() for cell in cells):
            header = [_column(cell) or f"column {i}" for i, cell in enumerate(cells, 1)]
            break
    _check_header(path, header)
    records: list[Record] = []
    for line, cells in rows:
        number = len(records) + 1
        if isinstance(cells, csv.Error):
            remedy = 'Close every quote that is opened, and write "" for a quote inside quotes.'
            problem = Problem(field="row", message=f"line {line} is not CSV ({cells})", remedy=remedy)
            records.append(Record(number=number, line=line, values={}, problems=(problem,)))
            continue
        trimmed = [cell.strip() for cell in cells]
        if not any(trimmed):
            continue  # spreadsheets leave such rows at the end
        problems: tuple[Problem, ...] = ()
        if any(trimmed[len(header) :]):
            message = f"the row has {len(cells)} cells, the header {len(header)}"
            problems = (Problem(field="row", message=message, remedy="Put a value that holds a comma into quotes."),)
        values: dict[str, object] = {name: cell for name, cell in zip(header, trimmed, strict=False) if cell}
        records.append(Record(number=number, line=line, values=values, problems=problems))
    return records


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _object(text: str) -> tuple[dict[str, object], Problem | None]:
    """One line of JSONL: its columns, or what is wrong with it."""
    values: dict[str, object] = {}
    try:
        content = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        remedy = "Write one complete JSON object per line, in UTF-8."
        return values, Problem(field="row", message=f"the line is not JSON ({str(error)[:80]})", remedy=remedy)
    if not isinstance(content, dict):
        message = f"the line is a JSON {type(content).__name__}, not an object"
        return values, Problem(field="row", message=message, remedy='Write it as {"id": …, "image": …, "prompt": …}.')
    problem = None
    for key, value in content.items():
        name = _column(key)
        if fault := unreadable(name):
            problem = Problem(field="row", message=f"a key is not text: {fault}", remedy=_SAVE_AS_UTF8)
        elif name in values:
            problem = Problem(field=name, message=f"the line has {name!r} twice", remedy="Remove one of them.")
        elif not _absent(trimmed := value.strip() if isinstance(value, str) else value):
            values[name] = trimmed
    return values, problem


def _jsonl(path: Path, data: bytes) -> list[Record]:
    lines = [(at, line.strip()) for at, line in enumerate(_decode(path, data).split("\n"), 1) if line.strip()]
    if not any(line.startswith("{") for _, line in lines):
        raise ManifestError(path, "no line is a JSON object", "Write one object per line, or give it its right suffix.")
    records = []
    for number, (at, line) in enumerate(lines, 1):
        values, problem = _object(line)
        records.append(Record(number=number, line=at, values=values, problems=(problem,) if problem else ()))
    return records


def _absent(value: object) -> bool:
    """None, empty text, and the NaN by which data frames say that a number is missing."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _plain(value: object) -> object:
    """A Parquet value as JSON would have it; bytes that are not text give None."""
    if isinstance(value, bytes):
        # Some writers leave text unannotated.
        try:
            return value.decode().strip()
        except UnicodeDecodeError:
            return None
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, (dt.date, dt.time)):
        return value.isoformat()
    if isinstance(value, (Decimal, dt.timedelta)):
        return str(value)
    return value


def _parquet(path: Path, data: bytes) -> list[Record]:
    import pyarrow as pa  # costs tens of megabytes that other kinds of manifest do without
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(data))
        names = [_column(name) or f"column {i}" for i, name in enumerate(table.column_names, 1)]
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0][:120]
        raise ManifestError(path, f"it is not Parquet ({reason})", f"Write it again, or give {_FORMATS}.") from error
    _check_header(path, names)
    values: list[dict[str, object]] = [{} for _ in range(table.num_rows)]
    problems: list[list[Problem]] = [[] for _ in range(table.num_rows)]
    for name, column in zip(names, table.columns, strict=True):
        for row, cell in enumerate(column):
            try:
                raw = cell.as_py()
            except (ValueError, OverflowError) as error:  # text that is not UTF-8, a date beyond year 9999
                problems[row].append(
                    Problem(field=name, message=f"the value cannot be read ({error})", remedy=_SAVE_AS_UTF8)
                )
                continue
            value = _plain(raw)
            if isinstance(raw, bytes) and value is None and name in COLUMNS:
                problems[row].append(Problem(field=name, message="the value is not UTF-8 text", remedy=_SAVE_AS_UTF8))
            if not _absent(value):
                values[row][name] = value
    return [Record(number=i + 1, values=values[i], problems=tuple(problems[i])) for i in range(table.num_rows)]


def _natural(name: str) -> tuple[list[str | int], str]:
    """A sorting key that puts `9.png` before `10.png`."""
    parts = re.split(r"([0-9]+)", name.casefold())
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def _folder(path: Path) -> list[Record]:
    names = [
        entry.name
        for entry in os.scandir(path)
        if not entry.name.startswith(".") and not entry.is_dir() and Path(entry.name).suffix.lower() in IMAGE_SUFFIXES
    ]
    if not names:
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        raise ManifestError(
            path, "there is no image in this folder", f"Looked for {kinds}; folders in it are not searched."
        )
    return [Record(number=i, values={"image": name}) for i, name in enumerate(sorted(names, key=_natural), 1)]
