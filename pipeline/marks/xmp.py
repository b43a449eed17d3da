"""XMP (ISO 16684-1) that says what kind of media a file is, by the IPTC's properties; no key, and no proof.

Google Merchant, Google Images and others read `Iptc4xmpExt:DigitalSourceType`.
"""

from __future__ import annotations

import re
import struct
import zlib
from typing import BinaryIO
from xml.sax.saxutils import quoteattr

from pipeline.marks.carriers import (
    XMP_JPEG,
    XMP_PNG,
    XMP_UUID,
    Carrier,
    Part,
    content_of,
    is_uuid,
    parts_of,
)
from pipeline.marks.facts import ClipFacts
from pipeline.marks.problems import NotMarkableError
from pipeline.marks.source_type import DigitalSourceType
from pipeline.marks.splice import SourceStretch, Splice

_NAMESPACES = {
    "Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "clipmill": "urn:clipmill:marks:1",
}
#: Property of files that were signed.
SIGNED = "clipmill:Signed"
_APP1, _APP0 = 0xE1, 0xE0
#: Bytes of an XMP packet that are read at most.
_MOST_BYTES = 1 << 20
_PROPERTY = re.compile(r"""([A-Za-z0-9]+):([A-Za-z0-9]+)\s*=\s*(?:"([^"<]*)"|'([^'<]*)')""")
#: Written as elements by programs that rewrite a packet.
_ELEMENT = re.compile(r"<([A-Za-z0-9]+):([A-Za-z0-9]+)>([^<>]{1,500})</\1:\2>")


def packet(facts: ClipFacts, source_type: DigitalSourceType, *, signed: bool = False) -> bytes:
    """The XMP of a clip's file: equal for equal facts. `signed`: whether a signed mark goes with it, which it says."""
    properties = {
        "Iptc4xmpExt:DigitalSourceType": source_type.uri,
        "xmp:CreatorTool": "clipmill",
        "clipmill:ContentKey": facts.content_key,
    }
    if signed:
        # Whoever takes the manifest out, and leaves this, is found out.
        properties[SIGNED] = "C2PA"
    if source_type is not DigitalSourceType.ENHANCED:
        # IPTC Photo Metadata Standard 2025.1.
        properties["Iptc4xmpExt:AISystemUsed"] = facts.family
        properties["Iptc4xmpExt:AISystemVersionUsed"] = facts.revision
    spaces = [f"xmlns:{name}={quoteattr(uri)}" for name, uri in _NAMESPACES.items()]
    told = [f"{name}={quoteattr(value)}" for name, value in properties.items() if value]
    text = (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about="" {" ".join([*spaces, *told])}/>'
        '</rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
    )
    return text.encode()


def with_packet(file: BinaryIO, carrier: Carrier, text: bytes, name: str = "the file") -> Splice:
    """The file with this XMP in place of what it had, as a splice of it. Raises `NotMarkableError`."""
    parts = parts_of(file, carrier, name)
    size = file.seek(0, 2)
    return Splice(
        {Carrier.MP4: _in_mp4, Carrier.JPEG: _in_jpeg, Carrier.PNG: _in_png}[carrier](file, parts, size, text)
    )


def packet_in(file: BinaryIO, carrier: Carrier, name: str = "the file") -> bytes | None:
    """The XMP of a file; None where it has none. Raises `NotMarkableError`."""
    for part in parts_of(file, carrier, name):
        begin = _begin_of(file, carrier, part)
        if begin is not None:
            end = part.stop - (4 if carrier is Carrier.PNG else 0)
            file.seek(begin)
            return file.read(min(end - begin, _MOST_BYTES))
    return None


def properties_in(text: bytes) -> dict[str, str]:
    """The simple properties of a packet by their names, such as `Iptc4xmpExt:DigitalSourceType`.

    Found by their form, and by customary prefixes: what strangers wrote is not given to a reader of XML.
    """
    words = text.decode("utf-8", "replace")
    found = {f"{one[1]}:{one[2]}": one[3] for one in _ELEMENT.finditer(words)}
    return found | {f"{one[1]}:{one[2]}": one[3] or one[4] or "" for one in _PROPERTY.finditer(words)}


def _begin_of(file: BinaryIO, carrier: Carrier, part: Part) -> int | None:
    """Where the XMP begins that a part holds; None where it holds none."""
    if carrier is Carrier.MP4:
        return part.body + len(XMP_UUID) if is_uuid(file, part, XMP_UUID) else None
    file.seek(part.body)
    if carrier is Carrier.JPEG:
        return part.body + len(XMP_JPEG) if part.kind[0] == _APP1 and file.read(len(XMP_JPEG)) == XMP_JPEG else None
    if part.kind != b"iTXt" or not file.read(len(XMP_PNG) + 1).startswith(XMP_PNG + b"\0"):
        return None
    # Not compressed, and then two texts that are empty in general.
    head = content_of(file, part)[len(XMP_PNG) + 1 :]
    if head[:1] != b"\0":
        return None
    language = head.index(b"\0", 2)
    return part.body + len(XMP_PNG) + 1 + head.index(b"\0", language + 1) + 1


def _in_mp4(file: BinaryIO, parts: list[Part], size: int, text: bytes) -> tuple[bytes | SourceStretch, ...]:
    """Last in the file, where it moves nothing that the tables of pictures point at."""
    box = XMP_UUID + text
    new = struct.pack(">I4s", len(box) + 8, b"uuid") + box
    pieces: list[bytes | SourceStretch] = []
    at = 0
    for part in parts:
        file.seek(part.start)
        head = file.read(4)
        if head == b"\0\0\0\0":
            # To the end of the file, which is now elsewhere.
            length = part.stop - part.start
            if length >= 1 << 32:
                raise NotMarkableError("a box to the end of the file is too long", "Write the file anew with ffmpeg.")
            pieces += [SourceStretch(at, part.start), struct.pack(">I", length)]
            at = part.start + 4
        if is_uuid(file, part, XMP_UUID):
            pieces.append(SourceStretch(at, part.start))
            if part.stop == size:
                at = size
            else:
                # What follows must not move.
                pieces += [head, b"free"]
                at = part.start + 8
    pieces += [SourceStretch(at, size), new]
    return tuple(piece for piece in pieces if len(piece))


def _in_jpeg(file: BinaryIO, parts: list[Part], size: int, text: bytes) -> tuple[bytes | SourceStretch, ...]:
    content = XMP_JPEG + text
    if len(content) + 2 > 0xFFFF:
        raise NotMarkableError("the XMP is longer than a JPEG's segment", "Shorten what it says.")
    new = bytes([0xFF, _APP1]) + struct.pack(">H", len(content) + 2) + content
    pieces: list[bytes | SourceStretch] = []
    # JFIF wants to be first.
    at = parts[0].stop if parts[0].kind[0] == _APP0 else 2
    pieces += [SourceStretch(0, at), new]
    for part in parts:
        if part.start >= at and _begin_of(file, Carrier.JPEG, part) is not None:
            pieces.append(SourceStretch(at, part.start))
            at = part.stop
    pieces.append(SourceStretch(at, size))
    return tuple(piece for piece in pieces if len(piece))


def _in_png(file: BinaryIO, parts: list[Part], size: int, text: bytes) -> tuple[bytes | SourceStretch, ...]:
    content = XMP_PNG + b"\0\0\0\0\0" + text
    chunk = b"iTXt" + content
    new = struct.pack(">I", len(content)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    # IHDR must be first.
    at = parts[0].stop
    pieces: list[bytes | SourceStretch] = [SourceStretch(0, at), new]
    for part in parts[1:]:
        if _begin_of(file, Carrier.PNG, part) is not None:
            pieces.append(SourceStretch(at, part.start))
            at = part.stop
    pieces.append(SourceStretch(at, size))
    return tuple(piece for piece in pieces if len(piece))
