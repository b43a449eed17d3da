"""Feeds that are tables: Google's, Shopify's and WooCommerce's, and others by a mapping."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.catalog.cells import cell_text
from cluster.catalog.columns import column_of
from cluster.catalog.csv_text import DamagedRecord, delimiter_of, named_delimiter, records
from cluster.catalog.tables import MAX_COLUMNS, ManifestError, unreadable
from cluster.feeds.kinds import OWN, TableForm, carried_as, form_of, key_of, text_carried
from cluster.feeds.model import FeedFacts, FeedOptions, FeedProduct
from cluster.feeds.text import Buffer, FeedLines, encoding_of
from pipeline.problems import Problem

#: Lines, and bytes, among which the header has to end.
_HEAD_LINES, _HEAD_BYTES = 200, 1 << 20
#: Pictures of one product that are looked at.
_MOST_IMAGES = 250


@dataclass(frozen=True, kw_only=True)
class TableRecord:
    """One record of a table and the physical lines that it takes, both from 0, `behind` the first that it does not."""

    line: int
    behind: int
    cells: list[str] | DamagedRecord

    @property
    def is_blank(self) -> bool:
        """Whether it says nothing: spreadsheets leave such lines."""
        return not isinstance(self.cells, DamagedRecord) and not any(cell.strip() for cell in self.cells)


@dataclass(frozen=True, kw_only=True)
class TableGroup:
    """Lines that belong together: a product's, or some that are none (`product` is None)."""

    product: FeedProduct | None
    records: tuple[TableRecord, ...]


class DelimitedFeed:
    """A table of products. Reading it keeps no more than one product in memory."""

    def __init__(self, path: Path, lines: FeedLines, delimiter: str, header: TableRecord, form: TableForm) -> None:
        """`header`: its record, which is no damaged one."""
        assert not isinstance(header.cells, DamagedRecord)
        self._path, self.lines, self.delimiter, self.form = path, lines, delimiter, form
        #: The record of the header, and what its cells are called.
        self.head, self.header = header, [cell_text(cell) for cell in header.cells]
        keys = [key_of(name) for name in self.header]
        self._places = {
            ours: [keys.index(key_of(name)) for name in theirs if key_of(name) in keys]
            for ours, theirs in form.columns.items()
        }
        self._more = [keys.index(key_of(name)) for name in form.more_images if key_of(name) in keys]
        self._position = keys.index(key_of(form.position)) if key_of(form.position) in keys else None
        self._parent = keys.index("type") if "type" in keys else None
        taken = {place for places in self._places.values() for place in places}
        self._own = {
            i: column_of(name) for i, name in enumerate(self.header) if column_of(name) in OWN and i not in taken
        }
        self._carried = {
            i: carried_as(name)
            for i, name in enumerate(self.header)
            if name and i not in self._own and i not in self._places["image"] and i not in self._places["id"][:1]
        }

    @property
    def columns(self) -> tuple[tuple[str, str], ...]:
        """Each column that became one of ours: (theirs, ours)."""
        found = [(self.header[place], ours) for ours, places in self._places.items() for place in places]
        return (*found, *((self.header[place], ours) for place, ours in self._own.items()))

    @property
    def carried(self) -> tuple[str, ...]:
        """Columns that are carried along under their own names."""
        ours = {place for places in self._places.values() for place in places}
        return tuple(name for place, name in self._carried.items() if place not in ours)

    def groups(self) -> Iterator[TableGroup]:
        """Everything below the header, in order: products with their lines, and what is none.

        Raises `ManifestError` where the text is damaged as a whole.
        """
        number, waiting = 0, list[TableRecord]()
        for record in self._below():
            is_row = not (record.is_blank or isinstance(record.cells, DamagedRecord) or self._is_variation(record))
            goes_on = is_row and self.form.grouped and bool(waiting) and self._id(record) == self._id(waiting[0]) != ""
            if waiting and not goes_on:
                number += 1
                yield TableGroup(product=self._product(number, waiting), records=tuple(waiting))
                waiting = []
            if is_row:
                waiting.append(record)
            elif isinstance(record.cells, DamagedRecord):
                number += 1
                yield TableGroup(product=_damaged(number, record, record.cells), records=(record,))
            else:
                yield TableGroup(product=None, records=(record,))
        if waiting:
            yield TableGroup(product=self._product(number + 1, waiting), records=tuple(waiting))

    def _below(self) -> Iterator[TableRecord]:
        rows = _recorded(self.lines, self.delimiter, self.head.behind, len(self.header))
        try:
            yield from rows
        except UnicodeDecodeError as error:
            raise damaged_text(self._path, self.lines.codec) from error

    def _product(self, number: int, rows: Sequence[TableRecord]) -> FeedProduct:
        first = rows[0]
        cells = _cells(first)
        values = {ours: self._value(ours, cells) or self.form.defaults.get(ours, "") for ours in self._places}
        values |= {ours: said for ours, said in self.form.defaults.items() if ours not in values}
        name, image = values.pop("id", ""), values.pop("image", "")
        values = {ours: text for ours, text in values.items() if text}
        taken = {key_of(ours) for ours in values}
        for place, column in (*self._own.items(), *self._carried.items()):
            if (text := cell_text(_at(cells, place))) and key_of(column) not in taken:
                values[column] = text if place in self._own else text_carried(text)
        return FeedProduct(
            number=number,
            line=first.line + 1,
            id=name,
            images=self._images(rows) or ((image,) if image else ()),
            values=values,
            problems=tuple(filter(None, (self._surplus(cells),))),
        )

    def _images(self, rows: Sequence[TableRecord]) -> tuple[str, ...]:
        found: list[tuple[float, int, str]] = []
        for row in rows:
            cells = _cells(row)
            place = _number(_at(cells, self._position)) if self._position is not None else float(len(found))
            for image in self._split(self._value("image", cells)):
                found.append((place, len(found), image))
            for more in self._more:
                found += [(place, len(found) + i, one) for i, one in enumerate(self._split(_at(cells, more)))]
        return tuple(dict.fromkeys(image for _, _, image in sorted(found[:_MOST_IMAGES])))

    def _split(self, cell: str) -> list[str]:
        parts = cell.split(self.form.separator) if self.form.separator else [cell]
        return [text for part in parts if (text := cell_text(part))]

    def _value(self, ours: str, cells: Sequence[str]) -> str:
        return next((text for place in self._places[ours] if (text := cell_text(_at(cells, place)))), "")

    def _id(self, record: TableRecord) -> str:
        return "" if isinstance(record.cells, DamagedRecord) else self._value("id", record.cells)

    def _is_variation(self, record: TableRecord) -> bool:
        # A variation without a picture of its own shows its parent's.
        if self._parent is None or self.form.grouped or isinstance(record.cells, DamagedRecord):
            return False
        is_one = _at(record.cells, self._parent).strip().casefold() == "variation"
        return is_one and not self._value("image", record.cells)

    def _surplus(self, cells: Sequence[str]) -> Problem | None:
        if not any(cell.strip() for cell in cells[len(self.header) :]):
            return None
        message = f"the row has {len(cells)} cells, the header {len(self.header)}"
        return Problem(field="row", message=message, remedy="Put a value that holds a delimiter into quotes.")


def open_delimited(path: Path, data: Buffer, options: FeedOptions) -> tuple[DelimitedFeed, FeedFacts] | None:
    """The table at `path` as a feed, and what it was taken for; None where it is none that is known.

    Raises `ManifestError` where it is one and cannot be read as a whole.
    """
    codec, mark, note = encoding_of(data)
    try:
        # What is no feed is not taken apart to its end to find that out.
        found = _header(FeedLines(data[:_HEAD_BYTES], codec, mark), options)
    except UnicodeDecodeError as error:
        raise damaged_text(path, codec) from error
    if found is None:
        return None
    delimiter, header, form = found
    lines = FeedLines(data, codec, mark)
    feed = DelimitedFeed(path, lines, delimiter, header, form)
    if len(feed.header) > MAX_COLUMNS:
        message = f"it has {len(feed.header):,} columns, and {MAX_COLUMNS:,} are the limit"
        raise ManifestError(path, message, "Leave out those that no clip needs.")
    if fault := next(filter(None, map(unreadable, feed.header)), None):
        raise ManifestError(path, f"its header is not text: {fault}", "Save it as UTF-8.")
    facts = FeedFacts(
        kind=form.kind,
        encoding=codec,
        delimiter=delimiter,
        columns=feed.columns,
        carried=feed.carried,
        video_column=form.video_column,
        notes=(note,) if note else (),
    )
    return feed, facts


def damaged_text(path: Path, codec: str) -> ManifestError:
    """What is raised where text is not what its mark says."""
    return ManifestError(path, f"it begins as {codec.upper()} but is damaged", "Save it as UTF-8.")


def _header(lines: FeedLines, options: FeedOptions) -> tuple[str, TableRecord, TableForm] | None:
    # The last one may be cut off, within a character even.
    whole = len(lines) - 1 if lines.begin(len(lines)) >= _HEAD_BYTES else len(lines)
    head = lines[: min(_HEAD_LINES, whole)]
    delimiter, begin = named_delimiter(head)
    if delimiter is None:
        delimiter = delimiter_of(head, lambda cells: form_of(cells, options.mapping) is not None)
    for record in _recorded(lines, delimiter, begin, None, most=len(head)):
        if record.is_blank:
            continue
        if isinstance(record.cells, DamagedRecord):
            return None
        form = form_of([cell_text(cell) for cell in record.cells], options.mapping)
        return (delimiter, record, form) if form is not None else None
    return None


def _recorded(
    lines: FeedLines, delimiter: str, begin: int, columns: int | None, most: int | None = None
) -> Iterator[TableRecord]:
    """The records from a line on, with the lines that each takes. `columns`: those of the header, which rows have."""

    def is_row(cells: list[str]) -> bool:
        return columns is not None and min(2, columns) <= len(cells) <= columns

    of = lines if most is None else lines[:most]
    before: tuple[int, list[str] | DamagedRecord] | None = None
    for number, cells in records(of, delimiter, begin, is_row):
        if before is not None:
            yield TableRecord(line=before[0], behind=number - 1, cells=before[1])
        before = number - 1, cells
    if before is not None:
        yield TableRecord(line=before[0], behind=len(of), cells=before[1])


def _cells(record: TableRecord) -> list[str]:
    return [] if isinstance(record.cells, DamagedRecord) else record.cells


def _at(cells: Sequence[str], place: int | None) -> str:
    return cells[place] if place is not None and place < len(cells) else ""


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("inf")


def _damaged(number: int, record: TableRecord, damage: DamagedRecord) -> FeedProduct:
    where = f"line {record.line + 1} is" if record.behind - record.line <= 1 else f"lines {record.line + 1} to "
    where += "" if where.endswith("is") else f"{record.behind} are"
    remedy = 'Close every quote that is opened, and write "" for a quote inside quotes.'
    problem = Problem(field="row", message=f"{where} not CSV ({damage.why})", remedy=remedy)
    return FeedProduct(number=number, line=record.line + 1, id="", values={}, problems=(problem,))
