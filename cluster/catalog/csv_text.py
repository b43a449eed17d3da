"""CSV as spreadsheets and shops write it: which delimiter, where a record ends, and what to do about a damaged one.

The text is read strictly (RFC 4180): a lenient reader lets one stray quote swallow all the rows below it. A record that
is refused ends where a lenient reader would end it, never within one of its quoted cells; unless what it would swallow
reads as whole rows of its own, for then its quote was never closed.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

DELIMITERS = (",", ";", "\t", "|")
#: Excel's own first line, which names the delimiter; quoted by some writers.
_SEP = re.compile(r'\s*"?sep=(.)"?[,;\t|]*\s*', re.IGNORECASE)


@dataclass(frozen=True)
class DamagedRecord:
    """A record that is not CSV."""

    #: Physical line on which it ends, from 1.
    last_line: int
    #: What the reader said.
    why: str


def lines_of(text: str) -> list[str]:
    """Physical lines with their ends, whichever of the three line ends they have."""
    return list(io.StringIO(text, newline=""))


def named_delimiter(lines: Sequence[str]) -> tuple[str | None, int]:
    """(the delimiter that a first line such as `sep=;` names, or None; how many lines are taken by that)."""
    for at, line in enumerate(lines):
        if not line.strip():
            continue
        found = _SEP.fullmatch(line.rstrip("\r\n"))
        usable = found is not None and found[1] not in '"\\ ' and not found[1].isalnum()
        return (found[1], at + 1) if found and usable else (None, 0)
    return None, 0


def delimiter_of(lines: Sequence[str], is_header: Callable[[list[str]], bool]) -> str:
    """The delimiter under which the first record is a header; where none is, the one that its line holds most often."""
    for delimiter in DELIMITERS:
        for _, cells in records(lines, delimiter, 0):
            if isinstance(cells, DamagedRecord):
                break
            if any(cell.strip() for cell in cells):
                if is_header(cells):
                    return delimiter
                break
    first = re.sub(r'"[^"]*"', "", next((line for line in lines if line.strip()), ""))
    return max(DELIMITERS, key=first.count)


def records(
    lines: Sequence[str], delimiter: str, begin: int, is_row: Callable[[list[str]], bool] = lambda _: False
) -> Iterator[tuple[int, list[str] | DamagedRecord]]:
    """(line from 1, cells or what is wrong) of every record from the line `begin` (from 0) on.

    `is_row` says of cells whether they can be a row of their own; asked where a quote was perhaps never closed.
    """
    # A cell may be as long as the file; it is a setting of the process.
    csv.field_size_limit(max(csv.field_size_limit(), sum(map(len, lines)) + 1))
    at = rows_until = begin
    while at < len(lines):
        begun = at
        reader = csv.reader(_from(lines, begun), delimiter=delimiter, strict=True, skipinitialspace=True)
        offset = begun
        try:
            for cells in reader:
                yield begun + 1, cells
                begun = offset + reader.line_num
            return
        except csv.Error as error:
            # Where all lines are known to be rows, a damaged one is one line.
            at = begun + 1
            if begun >= rows_until:
                at, rows_until = _end_of_damaged(lines, begun, delimiter, is_row)
            yield begun + 1, DamagedRecord(at, str(error))


def _from(lines: Sequence[str], begin: int) -> Iterator[str]:
    return (lines[i] for i in range(begin, len(lines)))


def _end_of_damaged(
    lines: Sequence[str], begin: int, delimiter: str, is_row: Callable[[list[str]], bool]
) -> tuple[int, int]:
    """(the line after the damaged record that begins on the line `begin`, the line up to which all lines are rows)."""
    found = _scan(lines, begin, delimiter)
    if found.suspect is None or found.suspect + 1 >= found.end:
        return found.end, found.end
    # What would be swallowed: does all of it read as rows?
    at = found.suspect + 1
    while at < found.end:
        one = _scan(lines, at, delimiter, only_whole=True)
        if one.stray:
            # A damaged row among them, by itself: several of a catalog may have the same fault.
            one = _scan(lines[at : at + 1], 0, delimiter)
            one.end = at + 1
        blank = len(one.cells) == 1 and not one.cells[0].strip()
        if one.closes or not (blank or is_row(one.cells)):
            return found.end, found.end
        at = one.end
    return found.suspect + 1, at


@dataclass
class _Scanned:
    """One record as a lenient reader takes it."""

    cells: list[str]
    #: The line (from 0) after it.
    end: int = 0
    #: A quoted cell has a quote that is not doubled and does not end it, or is not closed.
    stray: bool = False
    #: A cell that is not quoted ends with a quote: it may be the end of one that began on an earlier line.
    closes: bool = False
    #: Line on which the first quoted cell began that has such a quote and goes on over the line's end.
    suspect: int | None = None


def _scan(lines: Sequence[str], begin: int, delimiter: str, *, only_whole: bool = False) -> _Scanned:
    """The record that begins on the line `begin`. With `only_whole` it is given up at the first stray quote."""
    closing = re.compile(rf'"(?:(")|([ ]*(?:{re.escape(delimiter)}|[\r\n]|$)))')
    found = _Scanned(cells=[])
    at, line, place = begin, lines[begin], 0
    while True:
        rest = line[place:]
        lead = len(rest) - len(rest.lstrip(" "))
        if not rest[lead:].startswith('"'):
            text, separator, _ = rest.partition(delimiter)
            found.cells.append(text.rstrip("\r\n"))
            found.closes |= text.rstrip().endswith('"')
            place += len(text) + 1
            if not separator:
                found.end = at + 1
                return found
            continue
        opened, odd, parts = at, False, []
        place += lead + 1
        while True:
            quote = line.find('"', place)
            if quote < 0:
                parts.append(line[place:])
                at += 1
                if at == len(lines):
                    found.stray, found.end = True, at
                    found.suspect = opened if found.suspect is None else found.suspect
                    return found
                line, place = lines[at], 0
                continue
            parts.append(line[place:quote])
            match = closing.match(line, quote)
            if match and match[1] is None:
                place = match.end()
                break
            if match is None and only_whole:
                found.stray = True
                return found
            odd |= match is None
            place = quote + (2 if match else 1)
            parts.append('"')
        found.stray |= odd
        if odd and at > opened and found.suspect is None:
            found.suspect = opened
        found.cells.append("".join(parts))
        if not line[:place].endswith(delimiter):
            found.end = at + 1
            return found
