"""From a file or a folder to raw records: one per row, nothing but the form checked."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import math
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import NoReturn

from cluster.catalog.cells import COLUMNS, cell_text
from cluster.catalog.columns import column_of, meant_by, with_numbers
from cluster.catalog.csv_text import DamagedRecord, delimiter_of, lines_of, named_delimiter, records
from pipeline.bounded import ExhaustedError, RaisedError, run_bounded
from pipeline.notes import Note
from pipeline.problems import Problem

#: What makes a file in a folder a row; HEIC is refused later, with a remedy, rather than passed over in silence.
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".heif"}
)
MAX_MANIFEST_BYTES = 200_000_000
#: A manifest has at most so many rows and columns; a batch takes no more rows.
MAX_ROWS = 100_000
MAX_COLUMNS = 1_000
#: Characters of the first row of CSV.
MAX_HEADER_CHARACTERS = 2_000_000
#: Bytes of a Parquet file's pages once they are unpacked, as the file itself says.
_MAX_UNPACKED_BYTES = 400_000_000
#: CPU time that reading a manifest may take, in seconds: so much, and more by its size in bytes.
_CPU_S, _CPU_S_PER_BYTE = 3, 2e-7
#: Characters of one line of JSONL, and values within values on it.
MAX_JSON_CHARACTERS = 1_000_000
MAX_JSON_DEPTH = 20

_FORMATS = "a .csv, .tsv, .txt, .jsonl, .ndjson or .parquet file, or a folder of images"
#: Workbooks, which hold more than a table.
_WORKBOOKS = frozenset({".xlsx", ".xls", ".xlsm", ".xlsb", ".ods", ".numbers"})
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
class RawRecord:
    """One row as it stands in the source: values trimmed, empty ones left out, nothing converted."""

    #: Which row of data it is, from 1.
    number: int
    #: Physical line on which it begins, from 1, header counted; None where a source has no lines.
    line: int | None = None
    #: By column: known names in lower case, others as written.
    values: dict[str, object]
    problems: tuple[Problem, ...] = ()
    #: What was assumed of the row.
    notes: tuple[Note, ...] = ()


def read_records(path: Path) -> list[RawRecord]:
    """All rows of a manifest file or folder, in order, at least one; a file is read in a process with bounds.

    Raises `ManifestError`, also where reading takes more memory or time than a manifest may.
    """
    try:
        if path.is_dir():
            return _folder(path)
    except (OSError, ValueError) as error:
        raise _not_read(path, error) from error
    try:
        place = json.dumps(os.path.abspath(path)).encode()  # noqa: PTH100 - resolving would follow links
        seconds = _CPU_S + _CPU_S_PER_BYTE * min(_size_of(path), MAX_MANIFEST_BYTES)
        answer = run_bounded("cluster.catalog.tables:records_of", place, cpu_s=seconds)
    except ExhaustedError as error:
        raise ManifestError(path, f"reading it takes {error}", "Split it into several manifests.") from None
    except RaisedError as error:
        raise ManifestError(
            path, f"it cannot be read ({error.kind})", f"Write it again, or give {_FORMATS}."
        ) from error
    if fault := answer.get("fault"):
        raise ManifestError(path, *fault)
    return [
        RawRecord(
            number=number,
            line=line,
            values=values,
            problems=tuple(map(Problem.model_validate, problems)),
            notes=tuple(map(Note.model_validate, notes)),
        )
        for number, line, values, problems, notes in answer["records"]
    ]


def records_of(place: bytes) -> dict[str, object]:
    """What `read_records` asks of the other process: the records of a file, by its path as JSON, or what is wrong."""
    try:
        found = _read(Path(json.loads(place)))
    except ManifestError as error:
        return {"fault": [error.message, error.remedy]}
    return {
        "records": [
            [
                *(one.number, one.line, one.values),
                [problem.model_dump() for problem in one.problems],
                [note.model_dump() for note in one.notes],
            ]
            for one in found
        ]
    }


def _size_of(path: Path) -> int:
    # What is wrong with it is told by whoever reads it.
    with contextlib.suppress(OSError, ValueError):
        return path.stat().st_size
    return 0


def _not_read(path: Path, error: Exception) -> ManifestError:
    reason = error.strerror if isinstance(error, OSError) else error
    return ManifestError(path, f"it cannot be read: {reason}", "Check its name and permissions.")


def _read(path: Path) -> list[RawRecord]:
    try:
        suffix = path.suffix.lower()
        readers = {
            ".csv": _csv,
            ".tsv": _csv,
            ".tab": _csv,
            ".txt": _csv,
            ".jsonl": _jsonl,
            ".ndjson": _jsonl,
            ".parquet": _parquet,
            ".pq": _parquet,
        }
        mode = path.stat().st_mode
        if suffix not in readers:
            remedy = "Save its table as 'CSV UTF-8'." if suffix in _WORKBOOKS else f"Give {_FORMATS}."
            raise ManifestError(path, f"{suffix or 'a file without suffix'} is not a kind of manifest", remedy)
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
        raise _not_read(path, error) from error
    if not data.strip():
        raise _empty(path)
    found = readers[suffix](path, data)
    if not found:
        raise ManifestError(path, "it has no rows", "Add one row per clip.")
    _check_rows(path, len(found))
    return found


def _check_rows(path: Path, count: int, more: str = "") -> None:
    """Raise `ManifestError` where `count` rows are too many; `more`: words where the rest is not counted."""
    if count > MAX_ROWS:
        message = f"it has {count:,} rows{more}, and {MAX_ROWS:,} are the limit"
        raise ManifestError(path, message, "Split it into several.")


def _empty(path: Path) -> ManifestError:
    return ManifestError(path, "it is empty", "Give it a header and one row per clip.")


def unreadable(text: str) -> str | None:
    """Why `text` cannot be stored as text (foreign bytes, half a character, NUL); None where it can."""
    if text.isascii() and "\0" not in text:
        return None
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


def _decode(path: Path, data: bytes) -> tuple[str, Note | None]:
    """(text of the file, a note where its encoding was guessed).

    Bytes that are in no encoding that can be told come as lone surrogates (PEP 383), so only their rows suffer.
    """
    data = data.rstrip(b"\x1a")  # the end of a text file to DOS
    marked, note = marked_encoding(data), None
    encoding = marked[1] if marked else ""
    if not marked:
        encoding, note = guess_encoding(data)
    try:
        text = data.decode(encoding, "surrogateescape" if encoding.startswith("utf-8") else "strict")
    except UnicodeDecodeError as error:
        raise ManifestError(path, f"it begins as {encoding.upper()} but is damaged", _SAVE_AS_UTF8) from error
    if not text.strip():
        raise _empty(path)
    return text, note


def marked_encoding(data: bytes) -> tuple[bytes, str] | None:
    """(the mark with which text begins, the encoding that it says); None where there is none."""
    return next(((mark, name) for mark, name in _MARKS if data.startswith(mark)), None)


def guess_encoding(data: bytes) -> tuple[str, Note | None]:
    """(encoding of text without a mark, a note where it is not UTF-8)."""
    head = data[:4096]
    for encoding, at in (("utf-16-le", 1), ("utf-16-be", 0)):
        # Most characters of a table are ASCII, whose other byte is NUL.
        if head[at::2].count(0) * 2 > len(head) // 2 and not head[1 - at :: 2].count(0) and len(data) % 2 == 0:
            return encoding, _guessed("UTF-16 without a byte order mark", "every other byte is NUL")
    text = data.decode("utf-8", "surrogateescape")
    foreign = re.findall("[\udc80-\udcff]+", text)
    mixed = re.search("[\x80-\ud7ff\ue000-\U0010ffff]", text)
    control = re.search(r"[\x00-\x08\x0e-\x1f]", text)
    # Letters with accents stand alone among others; whole words of foreign bytes are another alphabet.
    alphabet = sum(len(run) > 2 for run in foreign) * 10 > len(foreign)
    if not foreign or mixed or control or alphabet:
        return "utf-8", None
    try:
        words = data.decode("cp1252")
    except UnicodeDecodeError:
        return "utf-8", None
    such = re.search(r"\w*[^\x00-\x7f]\w*", words)
    return "cp1252", _guessed("Windows-1252", f"it is not UTF-8: is {such[0] if such else ''!r} right?")


def _guessed(what: str, why: str) -> Note:
    return Note(code="encoding_guessed", message=f"the catalog was read as {what}, because {why} {_SAVE_AS_UTF8}")


def _check_header(path: Path, names: Sequence[str]) -> None:
    if len(names) > MAX_COLUMNS:
        message = f"it has {len(names):,} columns, and {MAX_COLUMNS:,} are the limit"
        raise ManifestError(path, message, "Leave out those that no clip needs.")
    for name in names:
        if fault := unreadable(name):
            raise ManifestError(path, f"its header is not text: {fault}", f"{_SAVE_AS_UTF8} Or give {_FORMATS}.")
    if double := {name for name in names if name in COLUMNS and names.count(name) > 1}:
        raise ManifestError(path, f"it has two columns called {min(double)!r}", "Rename or remove one of them.")
    if "image" not in names:
        shown = ", ".join(name[:40] for name in names[:20])
        near = next((name for name in names if "image" in name.casefold() or meant_by(name, ()) == "image"), None)
        rename = f"Is {near[:40]!r} meant? Then call it 'image'. " if near else ""
        raise ManifestError(
            path,
            f"it has no column 'image'; its first row reads: {shown}",
            f"{rename}Name the columns in the first row.",
        )


def _named(cells: Sequence[str]) -> list[str]:
    return [column_of(cell) or f"column {i}" for i, cell in enumerate(cells, 1)]


def _head(path: Path, lines: Sequence[str], begin: int) -> Sequence[str]:
    """The lines up to which the header has to end; raises `ManifestError` where its first line is longer."""
    end, size = begin, 0
    while end < len(lines) and (size := size + len(lines[end])) <= MAX_HEADER_CHARACTERS:
        end += 1
    if not "".join(lines[begin:end]).strip():
        message = f"its first row has more than {MAX_HEADER_CHARACTERS:,} characters"
        raise ManifestError(path, message, f"Give {_FORMATS} whose first row names the columns.")
    return lines[:end]


def _csv(path: Path, data: bytes) -> list[RawRecord]:
    text, guessed = _decode(path, data)
    lines = lines_of(text)
    delimiter, begin = named_delimiter(lines)
    # What is no table at all is not read to its end, delimiter by delimiter, to find that out.
    head = _head(path, lines, begin)
    if delimiter is None:
        delimiter = delimiter_of(head, lambda cells: "image" in _named(cells))
    header: list[str] = []

    def is_row(cells: list[str]) -> bool:
        image = header.index("image") if header else 0
        return min(2, len(header)) <= len(cells) <= len(header) and bool("".join(cells[image : image + 1]).strip())

    for _, cells in records(head, delimiter, begin):
        if isinstance(cells, DamagedRecord):
            remedy = f"Close every quote, or give {_FORMATS}."
            raise ManifestError(path, f"its header is not CSV ({cells.why})", remedy)
        if any(cell.strip() for cell in cells):
            header = _named(cells)
            break
    _check_header(path, header)
    rows = records(lines, delimiter, begin, is_row)
    for _, cells in rows:
        if not isinstance(cells, DamagedRecord) and any(cell.strip() for cell in cells):
            break  # the header
    header = with_numbers(header)
    found: list[RawRecord] = []
    for line, cells in rows:
        number = len(found) + 1
        _check_rows(path, number, " or more")
        if isinstance(cells, DamagedRecord):
            found.append(_damaged(number, line, cells))
            continue
        trimmed = [cell_text(cell) for cell in cells]
        if not any(trimmed):
            continue  # spreadsheets leave such rows at the end
        problems: tuple[Problem, ...] = ()
        if any(trimmed[len(header) :]):
            message = f"the row has {len(cells)} cells, the header {len(header)}"
            problems = (Problem(field="row", message=message, remedy="Put a value that holds a comma into quotes."),)
        values: dict[str, object] = {name: cell for name, cell in zip(header, trimmed, strict=False) if cell}
        notes = (guessed,) if guessed and not "".join(trimmed).isascii() else ()
        found.append(RawRecord(number=number, line=line, values=values, problems=problems, notes=notes))
    return found


def _damaged(number: int, line: int, record: DamagedRecord) -> RawRecord:
    where = f"line {line} is" if record.last_line <= line else f"lines {line} to {record.last_line} are"
    remedy = 'Close every quote that is opened, and write "" for a quote inside quotes.'
    problem = Problem(field="row", message=f"{where} not CSV ({record.why})", remedy=remedy)
    return RawRecord(number=number, line=line, values={}, problems=(problem,))


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _pairs(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has {next(name for name in names if names.count(name) > 1)[:40]!r} twice")
    return found


def _depth(text: str) -> int:
    """Brackets open at a time, at most, outside of strings."""
    most = now = 0
    for bracket in re.findall(r"[\[{\]}]", re.sub(r'"(?:[^"\\]|\\.)*"', "", text)):
        now += 1 if bracket in "[{" else -1
        most = max(most, now)
    return most


def _object(text: str) -> tuple[dict[str, object], Problem | None]:
    """One line of JSONL: its columns, or what is wrong with it."""
    values: dict[str, object] = {}
    if len(text) > MAX_JSON_CHARACTERS:
        message = f"the line has {len(text):,} characters, more than {MAX_JSON_CHARACTERS:,}"
        return values, Problem(field="row", message=message, remedy="Leave out what the clip does not need.")
    if (depth := _depth(text)) > MAX_JSON_DEPTH:
        message = f"its values lie {depth:,} deep in each other, more than {MAX_JSON_DEPTH}"
        return values, Problem(field="row", message=message, remedy='Write it as {"id": …, "image": …, "prompt": …}.')
    try:
        content = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_pairs)
    except (ValueError, RecursionError) as error:
        remedy = "Write one complete JSON object per line, in UTF-8."
        return values, Problem(field="row", message=f"the line is not JSON ({str(error)[:80]})", remedy=remedy)
    if not isinstance(content, dict):
        message = f"the line is a JSON {type(content).__name__}, not an object"
        return values, Problem(field="row", message=message, remedy='Write it as {"id": …, "image": …, "prompt": …}.')
    problem = None
    for key, value in content.items():
        name = column_of(key)
        if fault := unreadable(name):
            problem = Problem(field="row", message=f"a key is not text: {fault}", remedy=_SAVE_AS_UTF8)
        elif name in values:
            problem = Problem(field=name, message=f"the line has {name!r} twice", remedy="Remove one of them.")
        elif not _absent(trimmed := cell_text(value) if isinstance(value, str) else value):
            values[name] = trimmed
    return values, problem


def _jsonl(path: Path, data: bytes) -> list[RawRecord]:
    text, guessed = _decode(path, data)
    lines = [(at, line.strip()) for at, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not any(line.startswith("{") for _, line in lines):
        raise ManifestError(path, "no line is a JSON object", "Write one object per line, or give it its right suffix.")
    _check_rows(path, len(lines))
    found = []
    for number, (at, line) in enumerate(lines, 1):
        values, problem = _object(line)
        notes = (guessed,) if guessed and not line.isascii() else ()
        problems = (problem,) if problem else ()
        found.append(RawRecord(number=number, line=at, values=values, problems=problems, notes=notes))
    return found


def _absent(value: object) -> bool:
    """None, empty text, and the NaN by which data frames say that a number is missing."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _plain(value: object) -> object:
    """A Parquet value as JSON would have it; bytes that are not text give None."""
    if isinstance(value, bytes):
        # Some writers leave text unannotated.
        try:
            return cell_text(value.decode())
        except UnicodeDecodeError:
            return None
    if isinstance(value, str):
        return cell_text(value)
    if isinstance(value, (dt.date, dt.time)):
        return value.isoformat()
    if isinstance(value, (Decimal, dt.timedelta)):
        return str(value)
    return value


def _parquet(path: Path, data: bytes) -> list[RawRecord]:
    import pyarrow as pa  # costs tens of megabytes that other kinds of manifest do without
    import pyarrow.parquet as pq

    try:
        about = pq.read_metadata(pa.BufferReader(data))
        _check_rows(path, about.num_rows)
        unpacked = sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
        if unpacked > _MAX_UNPACKED_BYTES or about.num_columns > MAX_COLUMNS:
            message = f"it unpacks to {unpacked / 1e6:,.0f} MB in {about.num_columns:,} columns"
            limit = f"{_MAX_UNPACKED_BYTES / 1e6:,.0f} MB and {MAX_COLUMNS:,} columns are the limit"
            raise ManifestError(path, f"{message}; {limit}", "Split it, or leave out columns.")
        table = pq.read_table(pa.BufferReader(data), use_threads=False)
        names = _named(table.column_names)
    except ManifestError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0][:120]
        raise ManifestError(path, f"it is not Parquet ({reason})", f"Write it again, or give {_FORMATS}.") from error
    _check_header(path, names)
    names = with_numbers(names)
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
    return [RawRecord(number=i + 1, values=values[i], problems=tuple(problems[i])) for i in range(table.num_rows)]


def _natural(name: str) -> tuple[list[str | int], str]:
    """A sorting key that puts `9.png` before `10.png`, and `a.png` before `a2.jpg`."""
    parts = re.split(r"([0-9]+)", Path(name).stem.casefold())
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def _folder(path: Path) -> list[RawRecord]:
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
    return [RawRecord(number=i, values={"image": name}) for i, name in enumerate(sorted(names, key=_natural), 1)]
