"""Items of a feed that is XML, one by one, each with the bytes at which it stands.

Read by expat behind defusedxml's guard: entities are refused as such, so that none can grow or fetch anything. A fault
costs the item in which it lies: reading goes on behind it, with the start of the document told to a fresh parser again.
"""

from __future__ import annotations

import codecs
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.sax import SAXParseException
from xml.sax.handler import ContentHandler

from defusedxml.common import DefusedXmlException
from defusedxml.expatreader import DefusedExpatParser

from cluster.catalog.tables import ManifestError
from cluster.feeds.text import Buffer, encoding_of, find_aligned, width_of

#: Whose attributes they are, and custom ones.
GOOGLE = re.compile(r"https?://base\.google\.com/c?ns/1\.0/?")
#: How the name space is called where a feed declares none.
GOOGLE_NAME, GOOGLE_PREFIX = "http://base.google.com/ns/1.0", "g"
_CHUNK = 1 << 16
#: Characters of one element that are read.
_MAX_TEXT = 20_000
_DECLARED = re.compile(rb"""<\?xml[^>]*?\sencoding\s*=\s*["']([A-Za-z0-9._-]+)["']""")
_ITEMS = {"rss": "item", "RDF": "item", "feed": "entry"}


@dataclass(frozen=True, kw_only=True)
class XmlElement:
    """An element of an item by the bytes that it takes."""

    text: str
    begin: int
    behind: int


@dataclass(kw_only=True)
class XmlItem:
    """One item: what it says, and where it may be added to."""

    name: str
    line: int
    #: The byte at which it begins, and that of its closing tag; -1: it has none.
    begin: int
    close: int = -1
    #: Texts of its own elements, of Google's name space and of none, by name without prefix.
    google: dict[str, list[str]] = field(default_factory=dict)
    plain: dict[str, list[str]] = field(default_factory=dict)
    #: Links to videos that it has already.
    links: list[XmlElement] = field(default_factory=list)
    #: The byte at which its last element begins; -1: it has none.
    last_child: int = -1
    #: The prefix by which Google's name space is known in it; empty: it is not declared.
    prefix: str = ""
    #: What is wrong with it; empty: nothing.
    fault: str = ""


class _Parser(DefusedExpatParser):  # type: ignore[misc]
    """The guarded parser, with the byte at which it is."""

    @property
    def at(self) -> int:
        return int(self._parser.CurrentByteIndex)

    @property
    def fault_at(self) -> int:
        # Closed, it does not know any more: the fault is at the end.
        return int(getattr(self._parser, "ErrorByteIndex", sys.maxsize))


class _UnclosedError(Exception):
    """An item begins within another."""


class _NoFeedError(Exception):
    """The document is something else than a feed."""


class _Items(ContentHandler):
    """Collects items as they are read."""

    def __init__(self, data: Buffer, codec: str, parser: _Parser, shift: int) -> None:
        """`shift`: what is added to the parser's bytes to have those of `data`."""
        super().__init__()
        self._data, self._codec, self._parser, self.shift = data, codec, parser, shift
        self.root = self.item_name = ""
        #: The item that is open, and those that are complete.
        self.open: XmlItem | None = None
        self.complete: list[XmlItem] = []
        #: The byte at which the first item begins; None: none has begun.
        self.first: int | None = None
        self._depth = self._item_depth = 0
        self._prefixes: dict[str, str] = {}
        self._own_prefixes: dict[str, str] = {}
        self._child = ""
        self._child_begin = -1
        self._texts: list[str] = []
        self._size, self._is_bare = 0, False

    @property
    def _at(self) -> int:
        return self._parser.at + self.shift

    def startElement(self, name: str, attrs: Any) -> None:  # noqa: N802 - SAX calls it so
        self._depth += 1
        self._is_bare = True
        if not self.root:
            self.root = name
            if name.rpartition(":")[2] not in _ITEMS:
                raise _NoFeedError(name)
            prefix, colon, local = name.rpartition(":")
            self.item_name = _ITEMS[local] if local == "RDF" else f"{prefix}{colon}{_ITEMS[local]}"
        declared = {key[6:]: value for key, value in attrs.items() if key.startswith("xmlns:")}
        if self.open is None:
            if name == self.item_name:
                self._begin_item(name, declared)
            else:
                self._prefixes |= declared
        elif name == self.item_name:
            raise _UnclosedError
        elif self._depth == self._item_depth + 1:
            self._begin_child(name, attrs, declared)

    def endElement(self, name: str) -> None:  # noqa: N802 - SAX calls it so
        bare, self._is_bare = self._is_bare, False
        if self.open is not None and self._depth == self._item_depth + 1:
            self._end_child(bare)
        elif self.open is not None and self._depth == self._item_depth:
            if not self._is_empty_tag(bare):
                self.open.close = self._at
            self.complete.append(self.open)
            self.open = None
        self._depth -= 1

    def characters(self, content: str) -> None:
        self._is_bare = False
        if self.open is not None and self._depth == self._item_depth + 1 and self._size < _MAX_TEXT:
            self._texts.append(content[: _MAX_TEXT - self._size])
            self._size += len(content)

    def _begin_item(self, name: str, declared: dict[str, str]) -> None:
        self.open = XmlItem(name=name, line=0, begin=self._at)
        self.first = self.open.begin if self.first is None else self.first
        self._item_depth, self._own_prefixes = self._depth, self._prefixes | declared
        found = [prefix for prefix, uri in self._own_prefixes.items() if GOOGLE.fullmatch(uri)]
        self.open.prefix = GOOGLE_PREFIX if GOOGLE_PREFIX in found else found[0] if found else ""

    def _begin_child(self, name: str, attrs: Any, declared: dict[str, str]) -> None:
        assert self.open is not None
        self._child, self._child_begin = name, self._at
        self.open.last_child = self._child_begin
        self._texts, self._size = [], 0
        if declared:
            self._own_prefixes = self._own_prefixes | declared
        if name.rpartition(":")[2] == "link" and attrs.get("href") and attrs.get("rel", "alternate") == "alternate":
            self._texts = [attrs["href"]]

    def _end_child(self, bare: bool) -> None:
        assert self.open is not None
        text = "".join(self._texts).strip()
        prefix, _, local = self._child.rpartition(":")
        is_google = bool(GOOGLE.fullmatch(self._own_prefixes.get(prefix, GOOGLE_NAME if prefix == "g" else "")))
        if is_google and local == "video_link":
            behind = self._at
            if not self._is_empty_tag(bare):
                behind = find_aligned(self._data, ">", self._codec, behind) + width_of(self._codec)
            self.open.links.append(XmlElement(text=text, begin=self._child_begin, behind=behind))
        if text:
            texts = self.open.google if is_google else self.open.plain
            texts.setdefault(local if is_google or not prefix else self._child, []).append(text)

    def _is_empty_tag(self, bare: bool) -> bool:
        # Behind `<a/>` the parser stands at its end, behind `<a></a>` at the closing tag.
        end = "/>".encode(self._codec)
        return bare and self._data[self._at - len(end) : self._at] == end


class XmlItems:
    """The items of a feed in XML. Reading it keeps no more than a few items in memory."""

    def __init__(self, path: Path, data: Buffer) -> None:
        """Raises `ManifestError` where the document's encoding is not known."""
        self._path, self.data = path, data
        self.codec = codec_of(path, data)
        #: Name of the document's element, once something was read.
        self.root = ""
        #: What is wrong with the document outside of its items; empty: nothing.
        self.fault = ""
        self._counted = (0, 1)

    def __iter__(self) -> Iterator[XmlItem]:
        """The items in order. Raises `ManifestError` where the document is refused or cannot be read at all."""
        head: int | None = None
        begin: int | None = 0
        while begin is not None:
            parser = _Parser(forbid_dtd=False, forbid_entities=True, forbid_external=True)
            items = _Items(self.data, self.codec, parser, begin - (head or 0))
            parser.setContentHandler(items)
            try:
                if head is not None:
                    parser.feed(self.data[:head])
                for at in range(begin, len(self.data), _CHUNK):
                    parser.feed(self.data[at : at + _CHUNK])
                    self.root = items.root
                    yield from self._complete(items)
                parser.close()
                yield from self._complete(items)
                return
            except DefusedXmlException as error:
                message = f"it declares what XML calls entities ({type(error).__name__}), which can grow without end"
                raise ManifestError(
                    self._path, f"{message} or name files", "Write the texts themselves, without <!ENTITY."
                ) from error
            except _NoFeedError as error:
                message = f"its element is <{error}>, which is no feed"
                raise ManifestError(self._path, message, "Give an RSS 2.0 or Atom feed of Google's form.") from error
            except (SAXParseException, _UnclosedError) as error:
                head = items.first if head is None else head
                yield from self._complete(items)
                begin = self._behind_fault(error, items, parser, head)
                if items.open is not None:
                    yield self._faulty(items.open, error)

    def _behind_fault(self, error: Exception, items: _Items, parser: _Parser, head: int | None) -> int | None:
        """The byte from which reading goes on; None where nothing is left to be read."""
        if head is None:
            message = f"it is not XML ({_why(error)})"
            raise ManifestError(self._path, message, "Write the feed again.") from error
        if items.open is not None:
            after = items.open.begin + 1
        else:
            after = min(len(self.data), max(parser.fault_at + items.shift, head + 1))
        begin = self._next(items.item_name, after)
        if begin is None and items.open is None:
            self.fault = _why(error)
        return begin

    def _next(self, name: str, after: int) -> int | None:
        """The byte behind the next closing tag of an item, or at which the next one begins."""
        if width_of(self.codec) > 1:
            return None
        tag = re.escape(name.encode())
        found = re.compile(rb"</" + tag + rb"\s*>|<" + tag + rb"(?=[\s>/])").search(self.data, after)
        if found is None:
            return None
        return found.end() if found[0].startswith(b"</") else found.start()

    def _complete(self, items: _Items) -> Iterator[XmlItem]:
        complete, items.complete = items.complete, []
        for item in complete:
            item.line = self._line_of(item.begin)
            yield item

    def _faulty(self, item: XmlItem, error: Exception) -> XmlItem:
        item.line, item.fault, item.close = self._line_of(item.begin), _why(error), -1
        if isinstance(error, SAXParseException):
            end = self._next(item.name, item.begin + 1) or len(self.data)
            try:
                self.data[item.begin : end].decode(self.codec)
            except UnicodeDecodeError as fault:
                item.fault = f"it holds bytes that are not {self.codec.upper()} (0x{fault.object[fault.start]:02X})"
        return item

    def _line_of(self, at: int) -> int:
        """The physical line of a byte; asked for in order."""
        begin, line = self._counted
        while begin < at:
            some = self.data[begin : min(at, begin + (1 << 20))]
            begin, line = begin + len(some), line + some.count(b"\n")
        self._counted = (begin, line)
        return line


def codec_of(path: Path, data: Buffer) -> str:
    """The codec of a document in XML: as its mark says, else as it declares, else UTF-8. Raises `ManifestError`."""
    codec, mark, _ = encoding_of(data[:4])
    if mark or codec != "utf-8":
        return codec
    if (declared := _DECLARED.match(data[:1000].lstrip())) is None:
        return "utf-8"
    try:
        return codecs.lookup(declared[1].decode()).name
    except LookupError as error:
        message = f"it says that its encoding is {declared[1].decode()!r}, which nobody knows"
        raise ManifestError(path, message, "Save it as UTF-8.") from error


def _why(error: Exception) -> str:
    if isinstance(error, _UnclosedError):
        return "it is not closed before the next one begins"
    if isinstance(error, SAXParseException):
        message = str(error.getMessage())
        if "undefined entity" in message:
            return "it has an entity of HTML, such as &nbsp;, which XML does not know"
        return message
    return str(error)
