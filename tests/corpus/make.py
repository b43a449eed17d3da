"""Makes the inputs. The same seed makes the same ones, on every machine with the same Pillow."""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


class Door(StrEnum):
    """Where an input comes in."""

    STILL = "still"
    MANIFEST = "manifest"
    REQUEST = "request"


@dataclass(frozen=True, kw_only=True)
class Hostile:
    """One input."""

    door: Door
    #: What is wrong with it; of a manifest it ends in the file's suffix.
    name: str
    data: bytes = b""
    method: str = "POST"
    path: str = ""
    headers: dict[str, bytes] = field(default_factory=dict)


def hostile(seed: int) -> list[Hostile]:
    """All inputs of this seed, those that cost most among them."""
    chance = random.Random(seed)
    return [*_stills(chance), *_manifests(chance), *_requests(chance)]


# ---------------------------------------------------------------------------------------------- pictures

FORMATS: dict[str, dict[str, object]] = {
    "PNG": {}, "JPEG": {}, "GIF": {}, "WEBP": {}, "TIFF": {"compression": "tiff_lzw"}, "BMP": {}, "AVIF": {}
}  # fmt: skip


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def _picture(chance: random.Random) -> Image.Image:
    pixels = np.frombuffer(chance.randbytes(16 * 12 * 3), np.uint8).reshape(12, 16, 3)
    return Image.fromarray(pixels).resize((96, 72))


def _flipped(data: bytes, chance: random.Random, count: int) -> bytes:
    out = bytearray(data)
    for _ in range(count):
        out[chance.randrange(len(out))] ^= 1 << chance.randrange(8)
    return bytes(out)


def _without(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data))
    return data[:at] + data[at + chance.randint(1, 40) :]


def _doubled(data: bytes, chance: random.Random) -> bytes:
    at, end = sorted(chance.sample(range(len(data)), 2))
    return data[:end] + data[at:end] * 50 + data[end:]


def _large_numbers(data: bytes, chance: random.Random) -> bytes:
    # Within the header, where sizes, counts and offsets are.
    at = chance.randrange(4, min(120, len(data) - 4))
    return data[:at] + chance.choice([b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0" * 4]) + data[at + 4 :]


_BREAKS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "cut": lambda data, chance: data[: chance.randrange(1, len(data))],
    "one bit": lambda data, chance: _flipped(data, chance, 1),
    "many bits": lambda data, chance: _flipped(data, chance, 40),
    "a gap": _without,
    "a part many times": _doubled,
    "large numbers": _large_numbers,
    "zeros behind the header": lambda data, _chance: data[:40] + bytes(len(data) - 40),
    "noise behind the header": lambda data, chance: data[:40] + chance.randbytes(len(data)),
}


def _stills(chance: random.Random) -> Iterator[Hostile]:
    picture = _picture(chance)
    for kind, options in FORMATS.items():
        whole = _saved(picture, kind, **options)
        for name, broken in _BREAKS.items():
            for number in range(2):
                yield Hostile(door=Door.STILL, name=f"{kind} with {name} {number}", data=broken(whole, chance))
    for name, data in _bombs(picture):
        yield Hostile(door=Door.STILL, name=name, data=data)
    for name, data in {
        "nothing": b"", "a NUL": b"\0", "SVG": b"<svg onload='alert(1)'/>", "PDF": b"%PDF-1.7", "ELF": b"\x7fELF" * 99,
        "HTML": b"<html><script>", "zip": _zip({"a.png": bytes(99)}), "HEIC": b"\0\0\0\x18ftypheic" + bytes(90),
    }.items():  # fmt: skip
        yield Hostile(door=Door.STILL, name=f"{name} instead of a picture", data=data)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _bombs(picture: Image.Image) -> Iterator[tuple[str, bytes]]:
    """Small files that cost much to open, or say that they do."""
    yield "PNG of 100 megapixels of 16 bits", _saved(Image.fromarray(np.zeros((10_000, 10_000), np.uint16)), "PNG")
    png, at = _saved(picture, "PNG"), 33
    yield "PNG that says 2^31 pixels a side", png[:16] + b"\x7f\xff\xff\xff" * 2 + png[24:]
    yield "APNG that says 2^32 frames", png[:at] + _chunk(b"acTL", b"\xff\xff\xff\xff\0\0\0\0") + png[at:]
    text = _chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(80_000_000)))
    yield "PNG with texts of gigabytes", png[:at] + text * 20 + png[at:]
    yield "PNG with a profile of noise", png[:at] + _chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(5000))) + png[at:]
    gif = _saved(picture.convert("P"), "GIF")
    start = gif.index(b",")
    yield "GIF of a million frames", gif[:start] + b",\0\0\0\0\1\0\1\0\0\x02\x02L\1\0" * 1_000_000 + b";"
    jpeg = _saved(picture, "JPEG", progressive=True)
    last = jpeg.rindex(b"\xff\xda")
    yield "JPEG of 5,000 scans", jpeg[:-2] + jpeg[last:-2] * 5000 + jpeg[-2:]
    for name, body in (
        ("EXIF", b"Exif\0\0" + bytes(60_000)),
        ("XMP", b"http://ns.adobe.com/xap/1.0/\0" + b"<x>" * 15_000),
    ):
        segment = b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body
        yield f"JPEG with 500 segments of {name}", jpeg[:2] + segment * 500 + jpeg[2:]
    yield "TIFF of 40,000 pages", _tiff_pages(40_000)
    yield "TIFF whose pages are a circle", _tiff_pages(3, circle=True)


def _tiff_pages(count: int, *, circle: bool = False) -> bytes:
    tags = [(256, 32), (257, 32), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, 32), (279, 1024)]
    size = 2 + 12 * len(tags) + 4
    out = bytearray(b"II*\0" + struct.pack("<I", 8 + 1024) + bytes(1024))
    for page in range(count):
        out += struct.pack("<H", len(tags))
        for tag, value in tags:
            out += struct.pack("<HHII", tag, 4, 1, value)
        following = 8 + 1024 + (page + 1) * size
        out += struct.pack("<I", following if page + 1 < count else (8 + 1024 if circle else 0))
    return bytes(out)


# ---------------------------------------------------------------------------------------------- manifests

#: Values of cells that something may trip over.
CELLS = (
    "", "\0", "\x1b]0;x\x07", "\u202egnp", "../../etc/passwd", "/dev/zero", "file:///etc/passwd", "http://169.254.169.254/",
    "=HYPERLINK(1)", "<img src=x onerror=alert(1)>", "[/x]", "CON", "a:b", "x" * 5000, "-1", "1e308", "nan", "9" * 400,
    "9999-12-31T23:59", "%00", "{{7*7}}", "${jndi:x}", "é\u0301" * 80, "\ufeff", "..", ".", " ",
)  # fmt: skip
COLUMNS = (
    "id",
    "image",
    "prompt",
    "model",
    "frames",
    "guidance",
    "seed",
    "candidates",
    "after",
    "not_before",
    "strength",
)


def _zip(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def _manifests(chance: random.Random) -> Iterator[Hostile]:
    for suffix, data in [*_texts(chance), *_parquets(chance)]:
        yield Hostile(door=Door.MANIFEST, name=suffix, data=data)
    for number in range(40):
        rows = [[chance.choice(CELLS) for _ in COLUMNS] for _ in range(20)]
        lines = [",".join(COLUMNS), *(",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows)]
        text = "\n".join(lines).encode("utf-8", "surrogatepass")
        yield Hostile(door=Door.MANIFEST, name=f"cells {number}.csv", data=text)
        records = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
        lines = [json.dumps(record | {"extra": chance.choice(CELLS)}) for record in records]
        yield Hostile(door=Door.MANIFEST, name=f"cells {number}.jsonl", data="\n".join(lines).encode())
        yield Hostile(door=Door.MANIFEST, name=f"bits {number}.csv", data=_flipped(text, chance, 30))


def _texts(chance: random.Random) -> Iterator[tuple[str, bytes]]:
    good = b"id,image,prompt\na,a.png,zoom in\n"
    yield "an unclosed quote.csv", good + b'b,"a.png,zoom in\n' + b"c,a.png,pan\n" * 2000
    yield (
        "100,000 columns.csv",
        b"image," + b",".join(b"c%d" % n for n in range(100_000)) + b"\n" + b"a.png" + b",1" * 100_000,
    )
    yield "200,000 rows.csv", good + b"x,a.png,pan\n" * 200_000
    yield "a cell of 30 MB.csv", good + b"b,a.png," + b"x" * 30_000_000 + b"\n"
    yield "20 MB of NUL.csv", bytes(20_000_000)
    yield "noise.csv", chance.randbytes(100_000)
    yield "UTF-16 cut.csv", good.decode().encode("utf-16")[:-1]
    yield "UTF-32 marked.csv", b"\xff\xfe\0\0" + good
    yield "one column name twice.csv", b"image,image,prompt\na,b,c\n"
    yield "only separators.csv", b",;\t" * 100_000
    yield "a spreadsheet.csv", _zip({"xl/worksheets/sheet1.xml": b"<sheetData/>" * 9999})
    yield "a zip bomb.parquet", _zip({"a": bytes(50_000_000)})
    yield "not a table.xlsx", _zip({"xl/workbook.xml": b"<x/>"})
    for depth in (60, 400, 100_000):
        deep = b'{"image": "a.png", "prompt": "x", "extra": ' + b"[" * depth + b"]" * depth + b"}\n"
        yield f"nested {depth} deep.jsonl", deep + b'{"image": "a.png", "prompt": "pan"}\n'
    for value in (b"1e999", b"NaN", b"9" * 5000, b'"\\ud800"', b'"\\u0000"', b"-" + b"9" * 30, b"{}", b"[]", b"true"):
        for column in (b"image", b"seed", b"frames", b"extra"):
            line = b'{"image": "a.png", "prompt": "x", "%s": %s}\n' % (column, value)
            yield f"{column.decode()} is {value[:12].decode()}.jsonl", line
    yield "keys without end.jsonl", json.dumps({f"k{n}": n for n in range(50_000)}).encode()


def _parquets(chance: random.Random) -> Iterator[tuple[str, bytes]]:
    def written(table: pa.Table, **options: object) -> bytes:
        out = io.BytesIO()
        pq.write_table(table, out, **options)
        return out.getvalue()

    few = written(pa.table({"image": ["a.png"] * 5, "prompt": ["pan"] * 5, "price": [1.5] * 5}))
    for number in range(16):
        yield f"bits {number}.parquet", _flipped(few, chance, 3)
    yield "cut.parquet", few[: len(few) // 2]
    yield "a million rows.parquet", written(pa.table({"image": ["a.png"] * 10**6, "prompt": ["x"] * 10**6}))
    large = pa.DictionaryArray.from_arrays(pa.array([0] * 90_000), pa.array(["x" * 5_000_000]))
    yield "one long text 90,000 times.parquet", written(pa.table({"image": large, "prompt": large}))
    yield "zeros without end.parquet", written(pa.table({"image": [bytes(300_000_000)]}), compression="zstd")


# ---------------------------------------------------------------------------------------------- requests


L4 = {"cards": [{"kind": "L4"}]}


def _requests(chance: random.Random) -> Iterator[Hostile]:
    row = {"position": 1, "name": "a", "number": 1, "row": {"number": 1, "id": "a", "image": "a.png", "prompt": "x"}}
    bodies = [
        b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b"9" * 10_000, b'{"a":' * 5000, b"NaN", b'"\\ud800"',
        json.dumps({"name": "\0", "rows": [row]}).encode(), json.dumps({"name": "x", "rows": [row] * 3}).encode(),
        json.dumps({"name": "x", "rows": [row | {"position": 2**63}]}).encode(),
        json.dumps({"name": "x", "rows": [row], "max_failures": 2**70}).encode(),
        json.dumps({"name": "x", "rows": [row], "comment": "\ud800"}).encode(),
        json.dumps({"rows": [{"row": row["row"], "still_size": [0, 0]}], "fleet": L4}).encode(),
        bytes(3_000_000),
    ]  # fmt: skip
    words = ["%00", "%ff", "..%2f..", "%0d%0aX: y", "x" * 3000, "%F0%9F", "batch_1", "*", "%ed%a0%80"]
    paths = ["/v1/batches", "/v1/forecast", "/v1/batches/{}/pause", "/v1/jobs/{}/retry", "/v1/cards/{}/lock", "/{}"]
    heads: list[dict[str, bytes]] = [
        {"Content-Type": b"application/json"}, {"Content-Type": b"multipart/form-data; boundary="},
        {"Idempotency-Key": b"\xff" * 200, "Content-Type": b"application/json"}, {"Content-Type": b""},
        {"Content-Type": b"application/json;charset=utf-7"},
        {"Host": b"evil.example"}, {"Origin": b"null"}, {"Last-Event-ID": b"9" * 30}, {"Accept": b"\xff"},
    ]  # fmt: skip
    for number, content in enumerate(bodies):
        for path in ("/v1/batches", "/v1/forecast"):
            headers = {"Content-Type": b"application/json"}
            yield Hostile(door=Door.REQUEST, name=f"body {number} to {path}", data=content, path=path, headers=headers)
    for number in range(80):
        path = chance.choice(paths).format(chance.choice(words))
        yield Hostile(
            door=Door.REQUEST,
            name=f"mixed {number} {path[:60]}",
            method=chance.choice(["GET", "POST", "PUT", "DELETE"]),
            path=path,
            data=chance.choice(bodies),
            headers=chance.choice(heads),
        )
    for number in ("-1", str(2**31), str(2**63), str(2**200), "x", "%00"):
        for query in ("after", "limit", "name", "state"):
            path = f"/v1/batches/b/jobs?{query}={number}"
            yield Hostile(door=Door.REQUEST, name=f"{query} {number[:20]}", method="GET", path=path)
