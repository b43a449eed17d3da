"""A feed's bytes as lines of text, decoded one by one, with the byte at which each begins."""

from __future__ import annotations

import codecs
import mmap
import re
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias, overload

from cluster.catalog.tables import guess_encoding, marked_encoding
from pipeline.notes import Note

#: What a feed's bytes are read from: a file in memory, or mapped.
Buffer: TypeAlias = bytes | mmap.mmap

#: Codecs that read one line without what stands before it, by the name under which a mark is known.
_PLAIN = {"utf-8-sig": "utf-8", "utf-16": "", "utf-32": ""}
_CHUNK = 1 << 20
#: Bytes from which an encoding is guessed where a large file is not UTF-8.
_GUESSED_FROM = 8 << 20


@contextmanager
def mapped(path: Path) -> Iterator[Buffer]:
    """The bytes of a file, of which no more is in memory than is looked at. Raises `OSError`."""
    with path.open("rb") as file:
        if not path.stat().st_size:
            yield b""
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data


def encoding_of(data: Buffer) -> tuple[str, int, Note | None]:
    """(codec without a mark, bytes of the mark, a note where the codec was guessed).

    Text in which UTF-8 and something else are mixed is UTF-8: what is not decodes to lone surrogates (PEP 383).
    """
    head = data[:4]
    if marked := marked_encoding(head):
        mark, name = marked
        if name in ("utf-16", "utf-32"):
            name += "-le" if mark[:1] == b"\xff" else "-be"
        return _PLAIN.get(name) or name, len(mark), None
    decoder = codecs.getincrementaldecoder("utf-8")()
    foreign_letters = False
    for begin in range(0, len(data), _CHUNK):
        try:
            text = decoder.decode(data[begin : begin + _CHUNK], begin + _CHUNK >= len(data))
        except UnicodeDecodeError:
            if foreign_letters:
                return "utf-8", 0, None
            line = max(data.rfind(b"\n", 0, begin) + 1, begin - _CHUNK) if begin else 0
            name, note = guess_encoding(data[line : line + _GUESSED_FROM])
            return name, 0, note
        if not begin and "\0" in text:
            name, note = guess_encoding(data[:_GUESSED_FROM])
            return name, 0, note
        foreign_letters = foreign_letters or not text.isascii()
    return "utf-8", 0, None


def width_of(codec: str) -> int:
    """Bytes of a unit of the codec: of a line end, a quote, a comma."""
    return 2 if codec.startswith("utf-16") else 4 if codec.startswith("utf-32") else 1


class FeedLines(Sequence[str]):
    """Physical lines with their ends, whichever of the three line ends they have; none is kept."""

    def __init__(self, data: Buffer, codec: str, begin: int = 0) -> None:
        """`begin`: bytes of the mark in front."""
        self.data, self.codec = data, codec
        end = len(data)
        while end > begin and width_of(codec) == 1 and data[end - 1 : end] == b"\x1a":
            end -= 1  # the end of a text file to DOS
        self._begins = array("Q", [begin])
        for at in _line_ends(data, codec, begin, end):
            self._begins.append(at)
        if self._begins[-1] < end:
            self._begins.append(end)

    def __len__(self) -> int:
        return len(self._begins) - 1

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> list[str]: ...
    def __getitem__(self, at: int | slice) -> str | list[str]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        if not 0 <= at < len(self):
            raise IndexError(at)
        return self.text(at, at + 1)

    def begin(self, line: int) -> int:
        """The byte at which a line begins, from 0; of the one behind the last, the text's end."""
        return self._begins[line]

    def text(self, line: int, behind: int) -> str:
        """The lines from `line` up to, and without, `behind`."""
        return self.data[self._begins[line] : self._begins[behind]].decode(self.codec, errors_of(self.codec))

    def bytes_of(self, text: str) -> int:
        """How many bytes a text of these lines takes."""
        return len(text.encode(self.codec, errors_of(self.codec)))


def errors_of(codec: str) -> str:
    """What is done with bytes that are none of the codec, so that they come back as they were where that can be."""
    return "surrogateescape" if width_of(codec) == 1 else "surrogatepass"


def _line_ends(data: Buffer, codec: str, begin: int, end: int) -> Iterator[int]:
    """The byte behind each line end."""
    width = width_of(codec)
    if width == 1:
        for found in re.finditer(rb"\r\n|\n|\r", data):
            if begin < found.end() <= end:
                yield found.end()
        return
    pair, feed, back = (re.escape(text.encode(codec)) for text in ("\r\n", "\n", "\r"))
    pattern, at = re.compile(pair + b"|" + feed + b"|" + back), begin
    while (match := pattern.search(data, at)) is not None:
        if (match.start() - begin) % width:
            at = match.start() + 1  # half of one character and half of the next
            continue
        at = match.end()
        yield at


def find_aligned(data: Buffer, text: str, codec: str, begin: int) -> int:
    """The byte at which `text` stands at or behind `begin`, where a character begins. Raises `ValueError`."""
    needle, width, at = text.encode(codec), width_of(codec), begin
    while (at := data.find(needle, at)) >= 0:
        if not (at - begin) % width:
            return at
        at += 1
    raise ValueError(f"there is no {text!r} behind {begin}")
