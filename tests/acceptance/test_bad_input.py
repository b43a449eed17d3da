"""Every bad input of a manifest beside good rows: clear row errors, and nothing else is lost."""

from __future__ import annotations

import csv
import io
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from tests.acceptance.conftest import Terminal, draw_still

pytestmark = pytest.mark.farm

COLUMNS = ["id", "image", "prompt", "model", "resolution_class", "frames", "colour"]

#: id → (row, field of the problem, words its message or remedy must hold).
BAD = {
    "missing": ({"image": "nowhere.png"}, "image", "nowhere.png"),
    "truncated": ({"image": "truncated.jpg"}, "image", "truncated"),
    "empty": ({"image": "empty.png"}, "image", "empty"),
    "text": ({"image": "text.png"}, "image", "not a picture"),
    "bomb": ({"image": "bomb.png"}, "image", "megapixels"),
    "video": ({"image": "video.png"}, "image", "video"),
    "vector": ({"image": "vector.svg"}, "image", "SVG"),
    "outside": ({"image": "../outside.png"}, "image", "folder"),
    "absolute": ({"image": "/etc/hostname"}, "image", "folder"),
    "no-prompt": ({"prompt": ""}, "prompt", "prompt"),
    "odd-class": ({"resolution_class": "333p"}, "resolution_class", "256p"),
    "odd-model": ({"model": "sora"}, "model", "camera"),
    "negative": ({"frames": "-4"}, "frames", "-4"),
    "words": ({"frames": "many"}, "frames", "many"),
    "too-big": ({"model": "i2vgen-xl-tiny", "resolution_class": "1024p", "frames": "32"}, "resolution_class", "MiB"),
}


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size it does not hold."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    )


def write_shop(shop: Path) -> Path:
    """A folder with good and bad stills, and a manifest that names them all."""
    shop.mkdir()
    for i in range(3):
        draw_still(shop / f"good-{i}.png", i)
    draw_still(shop.parent / "outside.png", 9)
    photo = io.BytesIO()
    Image.effect_noise((400, 400), 90).convert("RGB").save(photo, "JPEG")
    (shop / "truncated.jpg").write_bytes(photo.getvalue()[: photo.tell() // 2])
    (shop / "empty.png").write_bytes(b"")
    (shop / "text.png").write_text("hello")
    (shop / "bomb.png").write_bytes(png_header(50_000, 50_000))
    (shop / "video.png").write_bytes(b"\0\0\0\x18ftypisom\0\0\2\0isomavc1" + bytes(400))
    (shop / "vector.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>')
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    plain = {"image": "good-0.png", "prompt": "zoom in", "resolution_class": "256p", "frames": "8"}
    for name, (row, _, _) in BAD.items():
        writer.writerow(plain | {"id": name} | row)
    writer.writerow(plain | {"id": "good-0", "colour": "sea green"})
    writer.writerow(plain | {"id": "good-1", "image": "good-1.png"})
    writer.writerow(plain | {"id": "good-1", "image": "good-2.png"})
    path = shop / "catalog.csv"
    latin = b"latin,good-2.png,caf\xe9 zoom in,,256p,8,\r\n"
    path.write_bytes(b"\xef\xbb\xbf" + text.getvalue().encode() + latin)
    return path


def test_bad_rows_are_told_and_the_good_ones_render(terminal: Terminal) -> None:
    catalog = write_shop(terminal.folder / "shop")
    small_cards = ("--cards", "c8,c12")
    result = terminal.run("render", str(catalog), "--out", "out", "--json", *small_cards)
    assert result.code == 1, result.err
    jobs = result.json["jobs"]
    by_name = {job["name"]: job for job in jobs}
    for name, (_, field, words) in BAD.items():
        job = by_name[name]
        assert job["state"] == "failed", name
        told = [p for p in job["problems"] if p["field"] == field]
        assert told, (name, job["problems"])
        assert any(words in p["message"] + p["remedy"] for p in told), (name, told)
        assert all(p["remedy"] for p in told)
    assert by_name["too-big"]["reason"] == "no_card_fits"
    latin = by_name["latin"]
    assert latin["state"] == "failed"
    assert "UTF-8" in str(latin["problems"])
    twins = [job for job in jobs if job["name"] == "good-1"]
    assert sorted(job["state"] for job in twins) == ["completed", "failed"]
    assert by_name["good-0"]["state"] == "completed"
    assert by_name["good-0"]["row"]["extra"]["colour"] == "sea green"
    out = terminal.folder / "out"
    assert sorted(p.name for p in out.glob("*.mp4")) == ["good-0.mp4", "good-1.mp4"]
    sheet = (out / "index.html").read_text()
    assert "nowhere.png" in sheet

    told = terminal.run("render", str(catalog), "--out", "out", *small_cards)
    assert told.code == 1
    for words in ("nowhere.png", "bomb", "18 (line 19)"):
        assert words in told.err


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "no such"), (b"", "empty"), (b"\x00\x01\x02\x03" * 99, ""), (b"name,prompt\na,b\n", "image")],
)
def test_an_unreadable_manifest_renders_nothing(terminal: Terminal, content: bytes | None, words: str) -> None:
    path = terminal.folder / "catalog.csv"
    if content is not None:
        path.write_bytes(content)
    result = terminal.run("render", str(path), "--out", "out")
    assert result.code == 2, result.err
    assert words in result.err.lower()
    assert not (terminal.folder / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "sora"], "camera"),
        (["--cards", "c7"], "c24"),
        (["--class", "300p"], "256p"),
        (["--out", "/proc/nope"], "--out"),
    ],
)
def test_wrong_options_are_told(terminal: Terminal, catalog: Path, words: list[str], said: str) -> None:
    result = terminal.run("render", str(catalog), *words)
    assert result.code == 2
    assert said in result.err
    assert "Traceback" not in result.err
