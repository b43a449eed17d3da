"""The parts of marks by themselves: XMP as others read it, coded pictures, splices, certificates."""

from __future__ import annotations

import io
import stat
import subprocess
import time
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree as ET

import imageio_ffmpeg
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.marks.coded import coded_pictures
from pipeline.marks.facts import ClipFacts, facts_of
from pipeline.marks.identity import forget, from_files, keep, load, make_test_identity, own_certificates
from pipeline.marks.likeness import ALIKE_WITHIN, distance, likeness_of
from pipeline.marks.mark import mark
from pipeline.marks.marker import Marker, WatchedMarker
from pipeline.marks.source_type import DigitalSourceType
from pipeline.marks.splice import SourceStretch, Splice, SplicedFile, spliced
from pipeline.marks.xmp import packet, properties_in
from pipeline.problems import BadInputError
from tests.unit.pipeline.marks.clips import FACTS, ffmpeg, frames, identity, make_files

CATALOG = Path(__file__).parents[4] / "examples" / "catalog"
TERM = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def test_other_programs_read_the_source_type(tmp_path) -> None:
    files = make_files(tmp_path)
    for path in files.values():
        mark(path, FACTS, Marker())
    with Image.open(files["jpg"]) as opened:
        jpeg = opened.info["xmp"]
        assert opened.size == (96, 96)
    with Image.open(files["png"]) as opened:
        opened.load()
        png = opened.info["XML:com.adobe.xmp"].encode()
    assert jpeg == png == packet(FACTS, DigitalSourceType.TRAINED)
    [description] = ET.fromstring(jpeg.decode().partition("?>")[2].rpartition("<?")[0]).iter(
        "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description"
    )
    assert description.get("{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType") == TERM
    assert description.get("{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}AISystemUsed") == "wan2.2-5b"
    # In the MP4 it is the last box, and players read on as before.
    data = files["mp4"].read_bytes()
    assert data.endswith(jpeg)
    probe = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(files["mp4"]), "-f", "null", "-"]
    assert subprocess.run(probe, capture_output=True, check=True).stderr == b""


def test_words_of_strangers_are_read_by_their_form_alone() -> None:
    bomb = b"<!DOCTYPE x [<!ENTITY a \"b\">]><rdf:RDF Iptc4xmpExt:DigitalSourceType='%s'/>" % TERM.encode()
    assert properties_in(bomb)["Iptc4xmpExt:DigitalSourceType"] == TERM
    element = b"<Iptc4xmpExt:DigitalSourceType>%s</Iptc4xmpExt:DigitalSourceType>" % TERM.encode()
    assert properties_in(element)["Iptc4xmpExt:DigitalSourceType"] == TERM
    assert properties_in(b"\xff\xfe\0") == {}
    hostile = replace(FACTS, content_key='"><script>&')
    assert properties_in(packet(hostile, DigitalSourceType.TRAINED))["Iptc4xmpExt:DigitalSourceType"] == TERM


def test_coded_pictures_are_those_that_ffmpeg_finds(tmp_path) -> None:
    """ffmpeg's own digest of each packet, against ours of the tables."""
    path = make_files(tmp_path)["mp4"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-c", "copy"]
    made = subprocess.run(
        [*command, "-f", "framehash", "-hash", "sha256", "-"], capture_output=True, check=True, text=True
    ).stdout
    theirs = [line.rpartition(",")[2].strip()[:8] for line in made.splitlines() if not line.startswith("#")]
    assert list(coded_pictures(path).parts) == theirs
    assert len(theirs) == 12


@pytest.mark.parametrize("suffix", ["mp4", "mov"])
def test_another_container_changes_no_coded_picture_and_another_encoding_all(tmp_path, suffix) -> None:
    path = make_files(tmp_path)["mp4"]
    own = coded_pictures(path)
    assert coded_pictures(ffmpeg(path, tmp_path / f"copy.{suffix}", "-c", "copy")) == own
    again = coded_pictures(ffmpeg(path, tmp_path / "again.mp4", "-crf", "30"))
    assert own.shared(again.parts) == 0
    assert own.sha256 != again.sha256


def test_products_of_a_catalog_are_not_alike() -> None:
    """Also where all stand before a plain background, and a copy of each is."""
    found = []
    for path in sorted(CATALOG.iterdir()):
        if path.suffix in (".jpg", ".webp"):
            with Image.open(path) as opened:
                picture = opened.convert("RGB").resize((256, 256))
            clip = np.stack([np.asarray(picture)] * 4)
            buffer = io.BytesIO()
            picture.resize((128, 128)).save(buffer, "JPEG", quality=30)
            with Image.open(buffer) as worse:
                copy = np.stack([np.asarray(worse.convert("RGB"))] * 4)
            found.append((likeness_of(clip), likeness_of(copy)))
    assert len(found) >= 8
    assert max(distance(one, copy) or 0 for one, copy in found) < ALIKE_WITHIN / 2
    assert min(distance(one, other) or 0 for (one, _), (other, _) in combinations(found, 2)) > ALIKE_WITHIN


def test_a_likeness_that_is_none_is_far_from_nothing() -> None:
    own = likeness_of(frames())
    assert distance(own, own) == 0
    for broken in ("", "no base64!", "AAAA"):
        assert distance(own, broken) is None


@settings(deadline=None, max_examples=60)
@given(st.binary(min_size=1, max_size=3000), st.binary(max_size=300), st.binary(max_size=300), st.integers(0, 2999))
def test_a_splice_is_the_file_it_was_made_of(tmp_path_factory, source, head, tail, cut) -> None:
    folder = tmp_path_factory.mktemp("splice")
    own, marked = folder / "own", folder / "marked"
    own.write_bytes(source)
    wanted = head + source[min(cut, len(source) - 1) :] + tail
    marked.write_bytes(wanted)
    found = Splice.from_bytes(spliced(own, marked).to_bytes())
    assert found.size == len(wanted)
    with own.open("rb") as file:
        made = io.BytesIO()
        found.write(file, made)
        assert made.getvalue() == wanted
        reader = io.BufferedReader(SplicedFile(found, file))
        for at in (0, len(wanted) // 2, len(wanted)):
            reader.seek(at)
            assert reader.read() == wanted[at:]


def test_a_mark_adds_little_to_what_is_stored(tmp_path) -> None:
    own = make_files(tmp_path)["mp4"]
    marked = mark(own, FACTS, Marker(identity(), ""), target=tmp_path / "marked.mp4")
    found = spliced(own, marked)
    shared = sum(len(piece) for piece in found.pieces if isinstance(piece, SourceStretch))
    assert len(found.to_bytes()) < 20_000
    # All but what has the places of pictures in it.
    assert shared > own.stat().st_size - 2000


@pytest.mark.parametrize("data", [b"", b"{}\n", b'{"version": 9}\n', b'{"version": 1, "pieces": [5]}\nab'])
def test_what_is_no_splice_is_refused(data) -> None:
    with pytest.raises(ValueError):
        Splice.from_bytes(data)


def test_facts_are_read_from_what_may_be_anything() -> None:
    assert facts_of(b'{"rendered_at": 0}').rendered_at == "1970-01-01T00:00:00Z"
    assert facts_of(b'{"rendered_at": 1e30}').rendered_at == facts_of(b'{"rendered_at": true}').rendered_at == ""
    assert facts_of(b"\xff") == facts_of(b"[1]") == ClipFacts()
    found = facts_of(b'{"content_key": 5, "family": [], "video": "x", "still_sha256": "ab"}')
    assert (found.content_key, found.family, found.stream_sha256, found.still_sha256) == ("", "", "", "ab")


def test_a_certificate_is_kept_for_its_user_alone_and_the_one_before_is_known(tmp_path) -> None:
    folder = tmp_path / "marks"
    assert load(folder) is None
    assert WatchedMarker(folder)().identity is None
    keep(folder, identity())
    assert load(folder) == identity()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir() if path.is_file()} == {0o600}
    another = make_test_identity("Another")
    keep(folder, another)
    assert load(folder) == another
    # No key of before lies about.
    assert [path for path in folder.rglob("*") if path.is_file() and b"PRIVATE" in path.read_bytes()] == [
        folder / "key.pem"
    ]
    assert identity().chain in own_certificates(folder)
    assert forget(folder)
    assert load(folder) is None
    assert another.chain in own_certificates(folder)
    assert not list(folder.glob("key*"))


def test_who_marks_is_seen_to_change_without_a_restart(tmp_path) -> None:
    marker = WatchedMarker(tmp_path / "marks")
    plain = marker().fingerprint
    keep(tmp_path / "marks", identity())
    assert marker().identity == identity()
    keep(tmp_path / "marks", replace(identity(), valid_until=1))
    assert "expired" in marker().unsigned_because
    assert marker().fingerprint == plain
    with pytest.raises(BadInputError, match="expired"):
        Marker.of(tmp_path / "marks")


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_ones_own_certificate_must_be_whole(tmp_path) -> None:
    chain, key = write(tmp_path / "chain.pem", identity().chain), write(tmp_path / "key.pem", identity().key)
    found = from_files(chain, key, None)
    assert (found.chain, found.common_name, found.algorithm, found.is_test) == (
        identity().chain,
        "Somebody",
        "es256",
        False,
    )
    assert found.valid_from <= time.time() < found.valid_until
    with pytest.raises(BadInputError, match="not the key"):
        from_files(chain, write(tmp_path / "other.pem", make_test_identity("Another").key), None)
    with pytest.raises(BadInputError, match="no certificates"):
        from_files(key, key, None)
    with pytest.raises(BadInputError, match="no private key"):
        from_files(chain, chain, None)
    with pytest.raises(BadInputError, match="PASSPHRASE"):
        from_files(chain, key, "unneeded")
    encrypted = encrypt(identity().key, b"secret")
    with pytest.raises(BadInputError, match="PASSPHRASE"):
        from_files(chain, write(tmp_path / "locked.pem", encrypted), None)
    assert from_files(chain, tmp_path / "locked.pem", "secret").key == identity().key


def encrypt(key: bytes, passphrase: bytes) -> bytes:
    from cryptography.hazmat.primitives import serialization

    private = serialization.load_pem_private_key(key, None)
    locked = serialization.BestAvailableEncryption(passphrase)
    return private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked)
