"""A feed written again with links to clips: the same bytes, and what is added at places of its own.

Nothing is parsed and written anew: line ends, quotes, marks, entities and comments stay, for they are never touched.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from xml.sax.saxutils import escape

from cluster.catalog.csv_text import DamagedRecord
from cluster.feeds.delimited import DelimitedFeed, TableRecord
from cluster.feeds.edits import Edit, edited
from cluster.feeds.kinds import key_of
from cluster.feeds.links import LinkIndex, LinkRules, merged
from cluster.feeds.model import FeedOptions
from cluster.feeds.reading import open_feed
from cluster.feeds.text import Buffer, errors_of, width_of
from cluster.feeds.xml_feed import XmlFeed
from cluster.feeds.xml_items import GOOGLE_NAME, GOOGLE_PREFIX, XmlItem
from pipeline.problems import BadInputError

_SEPARATOR = ","
#: White space that is looked at in front of a closing tag, in characters.
_MAX_INDENT = 200
_LINE_END = re.compile(r"(?:\r\n|\n|\r)\Z")


@dataclass
class FeedWritten:
    """What was done with a feed."""

    products: int = 0
    #: Products that have links of ours now, and how many those are.
    linked: int = 0
    links: int = 0
    #: Products whose links of ours were more than there is room for.
    full: int = 0


def write_feed(
    source: Path, target: Path, links: LinkIndex, rules: LinkRules, options: FeedOptions, column: str = ""
) -> FeedWritten:
    """Write the feed `source` with links into the new file `target`. `column`: of tables, in place of the usual one.

    Raises `ManifestError` where the feed cannot be read, `BadInputError` where it is none, `OSError`.
    """
    written = FeedWritten()
    with open_feed(source, options) as feed, target.open("wb") as out:
        if feed is None:
            remedy = "Name the feed that the batch was made of, as `clipmill feed show` knows it."
            raise BadInputError("--feed-out", f"{source} is no feed that is known", remedy)
        data = feed.source.items.data if isinstance(feed.source, XmlFeed) else feed.source.lines.data
        for piece in edited(data, edits_of(feed.source, links, rules, written, column)):
            out.write(piece)
    return written


def edits_of(
    feed: XmlFeed | DelimitedFeed, links: LinkIndex, rules: LinkRules, written: FeedWritten, column: str = ""
) -> Iterator[Edit]:
    """What changes in a feed, in order. `written` is told how much that is."""
    if isinstance(feed, XmlFeed):
        for found in feed.groups():
            written.products += 1
            if found.item.close >= 0 and (ours := links.of(found.product)):
                yield from _of_item(feed, found.item, _kept(found.item, ours, rules, written), written)
        return
    yield from _TableEdits(feed, column or feed.form.video_column).edits(links, rules, written)


# ------------------------------------------------------------------------------------------------------------- XML


def _kept(item: XmlItem, ours: tuple[str, ...], rules: LinkRules, written: FeedWritten) -> list[str]:
    final = merged([link.text for link in item.links], ours, rules)
    _count(final, ours, written)
    return final


def _of_item(feed: XmlFeed, item: XmlItem, final: list[str], written: FeedWritten) -> Iterator[Edit]:
    data, codec = feed.items.data, feed.items.codec
    left = list(final)
    for link in item.links:
        if link.text in left:
            left.remove(link.text)
        else:
            begin = _before_space(data, link.begin, codec)
            yield Edit(begin=begin, behind=link.behind, new=b"")
    if not left:
        return
    # As far in as the elements before it, and in front of the space that leads to the closing tag.
    indent = b""
    if item.last_child >= 0:
        indent = data[_before_space(data, item.last_child, codec) : item.last_child]
    at = _before_space(data, item.close, codec)
    prefix, declared = item.prefix, ""
    if not prefix:
        prefix, declared = GOOGLE_PREFIX, f' xmlns:{GOOGLE_PREFIX}="{GOOGLE_NAME}"'
    name = f"{prefix}:video_link"
    new = b"".join(indent + f"<{name}{declared}>{escape(url)}</{name}>".encode(codec) for url in left)
    yield Edit(begin=at, behind=at, new=new)


def _before_space(data: Buffer, at: int, codec: str) -> int:
    """The byte at which the white space in front of `at` begins."""
    width = width_of(codec)
    spaces = {space.encode(codec) for space in " \t\r\n"}
    begin = at
    while begin > at - _MAX_INDENT * width and data[begin - width : begin] in spaces:
        begin -= width
    return begin


# ---------------------------------------------------------------------------------------------------------- tables


class _TableEdits:
    """The edits of a table: a column more, or cells of one that is there."""

    def __init__(self, feed: DelimitedFeed, column: str) -> None:
        self._feed, self._lines, self._column = feed, feed.lines, column
        keys = [key_of(name) for name in feed.header]
        #: The place of the column among the header's cells; None: it is added behind them.
        self._place = keys.index(key_of(column)) if key_of(column) in keys else None
        raw, spans = self._raw(feed.head)
        #: Whether every cell of the header stands in quotes, as ours then do.
        self._quotes = bool(spans) and all(raw[begin:end].strip(" ").startswith('"') for begin, end in spans)

    def edits(self, links: LinkIndex, rules: LinkRules, written: FeedWritten) -> Iterator[Edit]:
        rules = replace(rules, most=min(rules.most, self._feed.form.most_links))
        if self._place is None:
            yield from self._set(self._feed.head, len(self._feed.header), self._column)
        for group in self._feed.groups():
            final: list[str] = []
            if group.product is not None:
                written.products += 1
                there = self._there(group.records[0])
                if ours := links.of(group.product):
                    final = merged(there, ours, rules)
                    _count(final, ours, written)
                    if final == there:
                        final = []
            for number, record in enumerate(group.records):
                yield from self._of_record(record, _SEPARATOR.join(final) if number == 0 else "")

    def _of_record(self, record: TableRecord, value: str) -> Iterator[Edit]:
        if record.is_blank or isinstance(record.cells, DamagedRecord):
            return
        if self._place is None:
            yield from self._set(record, len(self._feed.header), value)
        elif value:
            yield from self._set(record, self._place, value)

    def _there(self, record: TableRecord) -> list[str]:
        if self._place is None or isinstance(record.cells, DamagedRecord) or self._place >= len(record.cells):
            return []
        return [url for part in record.cells[self._place].split(_SEPARATOR) if (url := part.strip())]

    def _set(self, record: TableRecord, place: int, value: str) -> Iterator[Edit]:
        """The cell at `place` as `value`: put in behind those that the record has, or in place of its text."""
        raw, spans = self._raw(record)
        if isinstance(record.cells, DamagedRecord) or len(spans) != len(record.cells):
            return  # read in another way than it is written: not touched
        cell = self._cell(value)
        if self._place is not None and place < len(spans):
            begin, behind = spans[place]
        else:
            missing = max(0, place - len(spans))
            begin = behind = spans[min(place, len(spans)) - 1][1]
            cell = self._feed.delimiter * (missing + 1) + cell
        first = self._lines.begin(record.line)
        at = first + self._lines.bytes_of(raw[:begin])
        new = cell.encode(self._lines.codec, errors_of(self._lines.codec))
        yield Edit(begin=at, behind=at + self._lines.bytes_of(raw[begin:behind]), new=new)

    def _raw(self, record: TableRecord) -> tuple[str, list[tuple[int, int]]]:
        raw = self._lines.text(record.line, record.behind)
        return raw, cell_spans(raw, self._feed.delimiter)

    def _cell(self, value: str) -> str:
        needed = re.search(r'["\r\n]', value) or self._feed.delimiter in value or value != value.strip()
        return '"' + value.replace('"', '""') + '"' if self._quotes or needed else value


def cell_spans(raw: str, delimiter: str) -> list[tuple[int, int]]:
    """Where the cells of one record stand in its text, quotes and spaces around them among it; its line end is none's.

    Read as `csv` does with `strict` and `skipinitialspace`.
    """
    # Exactly one: a record ends outside of its quotes.
    text = _LINE_END.sub("", raw)
    closing = re.compile(r'"(?:""|[^"])*"')
    spans, at = [], 0
    while True:
        begin = at
        while text[at : at + 1] == " ":
            at += 1
        if quoted := closing.match(text, at):
            at = quoted.end()
        end = text.find(delimiter, at)
        spans.append((begin, len(text) if end < 0 else end))
        if end < 0:
            return spans
        at = end + len(delimiter)


def _count(final: list[str], ours: tuple[str, ...], written: FeedWritten) -> None:
    there = sum(url in final for url in ours)
    written.linked += 1 if there else 0
    written.links += there
    written.full += 1 if there < len(ours) else 0
