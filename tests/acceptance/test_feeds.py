"""From feed to feed: the shared catalog as a Merchant feed, rendered, delivered and written again.

Files are judged by ffprobe and by reading their boxes, by the marketplaces' rules as they stand here; nothing of the
project says what is right. It takes long, so it is asked for: `CLIPMILL_TEST_FEED_ROWS=101` takes the whole catalog.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from xml.sax.saxutils import escape

import pytest

from tests.acceptance.conftest import Outcome, Terminal

ROWS = int(os.environ.get("CLIPMILL_TEST_FEED_ROWS", "0"))
#: Seconds that a command may take.
LIMIT_S = 600 + 120 * ROWS

pytestmark = [
    pytest.mark.farm,
    pytest.mark.timeout(5 * LIMIT_S),
    pytest.mark.skipif(ROWS < 2, reason="CLIPMILL_TEST_FEED_ROWS says of how many products, 2 to 101"),
]
G = "http://base.google.com/ns/1.0"
PUBLIC = "https://cdn.example/spring"
#: By profile: width, height, seconds from and to, frames and bits a second at most, whether there is sound.
RULES: dict[str, tuple[int, int, float, float, int, float, bool]] = {
    "google": (1920, 1080, 6, 240, 60, 16e6, False),
    "amazon-sb": (1920, 1080, 6, 45, 30, 20e6, True),
    "reels": (1080, 1920, 3, 90, 60, 25e6, True),
}
BRAND = """
overlays:
  - {kind: badge, text: "{price}", size: 0.08}
"""


def run(terminal: Terminal, *words: str) -> Outcome:
    """Run a command to its end, however many products there are."""
    process = terminal.start(*words)
    out, err = process.communicate(timeout=LIMIT_S)
    return Outcome(process.returncode, out, err)


def merchant_feed(catalog: Path, folder: Path) -> Path:
    """The shared catalog as shops write feeds, beside its pictures."""
    shutil.copytree(catalog.parent / "pics", folder / "pics")
    with catalog.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))[:ROWS]
    items = "".join(
        f"    <item>\r\n      <g:id>{row['id']}</g:id>\r\n"
        f"      <title><![CDATA[{row['brand']} & {row['category']}]]></title>\r\n"
        f"      <g:image_link>{row['image']}</g:image_link><!-- the main one -->\r\n"
        f"      <g:brand>{escape(row['brand'])}</g:brand>\r\n"
        f"      <g:price>{row['price']} USD</g:price>\r\n    </item>\r\n"
        for row in rows
    )
    path = folder / "feed.xml"
    head = f'<?xml version="1.0" encoding="utf-8"?>\r\n<rss version="2.0" xmlns:g="{G}">\r\n  <channel>\r\n'
    path.write_text(f"{head}    <title>eShop</title>\r\n{items}  </channel>\r\n</rss>\r\n", newline="")
    return path


def probed(path: Path) -> dict[str, Any]:
    """What ffprobe says of a file, with the time of every frame."""
    words = ["ffprobe", "-v", "error", "-of", "json", "-show_format", "-show_streams", "-show_entries"]
    more = ["frame=pts_time,media_type", str(path)]
    return json.loads(subprocess.run([*words, *more], capture_output=True, check=True).stdout)


def check_file(path: Path, profile: str) -> None:
    """Fail unless a file keeps the rules of a marketplace, as they stand above."""
    width, height, shortest, longest, fastest, most_bits, sound = RULES[profile]
    found = probed(path)
    [video] = [one for one in found["streams"] if one["codec_type"] == "video"]
    assert (video["width"], video["height"]) == (width, height)
    assert video.get("sample_aspect_ratio", "1:1") == "1:1"
    assert (video["codec_name"], video["pix_fmt"]) == ("h264", "yuv420p")
    seconds = float(found["format"]["duration"])
    assert shortest <= seconds <= longest
    rate = Fraction(video["avg_frame_rate"])
    assert Fraction(2397, 100) <= rate <= fastest
    assert video["r_frame_rate"] == video["avg_frame_rate"]
    times = sorted(float(one["pts_time"]) for one in found["frames"] if one["media_type"] == "video")
    steps = [b - a for a, b in pairwise(times)]
    assert max(steps) - min(steps) < 1e-3, "every frame stands equally long"
    assert int(found["format"]["bit_rate"]) <= most_bits
    assert bool([one for one in found["streams"] if one["codec_type"] == "audio"]) is sound
    data = path.read_bytes()
    assert len(data) <= 500_000_000
    assert data.index(b"moov") < data.index(b"mdat"), "the index stands in front"


def check_google(feed: Path) -> list[list[str]]:
    """The links of each product, by Google's rules for `video_link` (support.google.com/merchants/answer/15216925)."""
    root = ET.parse(feed).getroot()
    found = []
    for item in root.iter("item"):
        links = [(link.text or "") for link in item.iter(f"{{{G}}}video_link")]
        assert len(links) <= 10
        for link in links:
            assert link.isascii()
            assert len(link) <= 2000
            assert re.fullmatch(r"[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]+", link), "RFC 3986"
            parts = urlsplit(link)
            assert parts.scheme in ("http", "https")
            assert parts.netloc
            assert parts.path.endswith(".mp4")
        assert len(set(links)) == len(links)
        found.append(links)
    return found


def test_the_shared_catalog_from_feed_to_feed_and_again(
    terminal: Terminal, shared_catalog: Path, tmp_path: Path
) -> None:
    if shutil.which("ffprobe") is None:
        pytest.skip("ffprobe is not installed")
    (tmp_path / "shop").mkdir()
    feed = merchant_feed(shared_catalog, tmp_path / "shop")
    (tmp_path / "brand.yaml").write_text(BRAND)
    before = feed.read_bytes()
    out, target, place = tmp_path / "out", tmp_path / "out.xml", tmp_path / "public"
    more = ["--deliver", "google,amazon-sb,reels", "--brand", str(tmp_path / "brand.yaml"), "--public-url", PUBLIC]
    render = ["render", str(feed), "--class", "256p", "--out", str(out), "--feed-out", str(target), *more]

    first = run(terminal, *render)
    assert "taken for a Google Merchant feed (RSS 2.0)" in first.err
    assert terminal.attempts() == ROWS
    with (out / "deliveries.csv").open(encoding="utf-8-sig", newline="") as file:
        made = [(line["profile"], line["id"], line["state"]) for line in csv.DictReader(file)]
    delivered = [(profile, name) for profile, name, state in made if state == "delivered"]
    refused = [(profile, name) for profile, name, state in made if state != "delivered"]
    # Amazon takes no bars, and behind some of these products there is no plain background to go on with.
    assert {profile for profile, _ in refused} <= {"amazon-sb"}
    assert len(refused) < ROWS
    assert first.code == (1 if refused else 0), first.err
    assert sorted((path.parent.name, path.stem) for path in out.glob("*/*.mp4")) == sorted(delivered)
    for profile, name in delivered:
        check_file(out / profile / f"{name}.mp4", profile)
        assert json.loads((out / profile / f"{name}.json").read_text())["passed"] is True
    links = check_google(target)
    assert links == [[f"{PUBLIC}/google/SKU-{number:03}.mp4"] for number in range(1, ROWS + 1)]
    added = rb"\r\n      <g:video_link>[^<]*</g:video_link>"
    assert re.sub(added, b"", target.read_bytes()) == before == feed.read_bytes()

    def published() -> dict[str, Any]:
        batch = terminal.run("status", "--json").json["batches"][0]["id"]
        found = run(terminal, "publish", batch, str(place), "--json", *more)
        assert set(found.json["problems"]) == {f"{name} {profile}" for profile, name in refused}, found.err
        return found.json

    assert (published()["uploaded"], (place / "feed.xml").read_bytes()) == (len(delivered) + 1, target.read_bytes())

    # The same again: 0 rendered, 0 encoded, 0 uploaded, and no byte of the feed is another.
    once = target.read_bytes()
    again = run(terminal, *render)
    assert again.code == first.code, again.err
    assert "nothing had to be rendered" in again.err
    assert "(0 encoded now)" in again.err
    found = published()
    assert (found["uploaded"], found["encoded"]) == (0, 0)
    assert target.read_bytes() == once
    assert terminal.attempts() == ROWS

    # One price: the files of that product and the feed, and nothing is rendered.
    old, new = b"<g:price>89.99 USD", b"<g:price>4.20 USD"
    assert old in before
    feed.write_bytes(before.replace(old, new, 1))
    its = sum(name == "SKU-002" for _, name in delivered)
    third = run(terminal, *render)
    assert third.code == first.code, third.err
    assert f"({its} encoded now)" in third.err
    found = published()
    assert (found["uploaded"], found["unchanged"], found["encoded"]) == (its + 1, len(delivered) - its, 0)
    assert target.read_bytes() == once.replace(old, new, 1)
    assert terminal.attempts() == ROWS
