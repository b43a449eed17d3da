"""What can happen to a marked file, each told apart from the others; and what a stranger's reader says of it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.marks.carriers import Carrier, parts_of
from pipeline.marks.coded import coded_pictures
from pipeline.marks.likeness import distance, likeness_of, likeness_of_file
from pipeline.marks.mark import mark
from pipeline.marks.marker import Marker
from pipeline.marks.problems import NotMarkableError, SigningError
from pipeline.marks.source_type import DigitalSourceType, source_type_of
from pipeline.marks.verdict import KnownClip, MarkState, PixelState, Trust
from pipeline.marks.verify import TrustLists, verify
from tests.unit.pipeline.marks.clips import (
    FACTS,
    ffmpeg,
    flipped,
    frames,
    identity,
    make_files,
    manifest_box,
    with_manifest_of,
    without_manifest,
)

MARKER = Marker(identity(), "")
OWN = TrustLists(own=identity().chain)
#: A reader that knows nothing of clipmill.
READER = """
import json, sys, c2pa
settings = {"verify": {"remote_manifest_fetch": False}, "trust": {"user_anchors": open(sys.argv[3]).read()}}
with open(sys.argv[1], "rb") as file:
    reader = c2pa.Reader(sys.argv[2], file, context=c2pa.Context(settings=c2pa.Settings.from_dict(settings)))
    print(json.dumps({"state": reader.get_validation_state(), "store": json.loads(reader.json())}))
"""


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A picture that somebody else has signed."""
    made = make_files(tmp_path_factory.mktemp("still"), seed=9)["jpg"]
    return mark(made, replace(FACTS, content_key="still"), MARKER).read_bytes()


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory, still: bytes) -> dict[str, Path]:
    """A clip's files, marked."""
    folder = tmp_path_factory.mktemp("marked")
    return {kind: mark(path, FACTS, MARKER, still=still) for kind, path in make_files(folder).items()}


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, still: bytes) -> Path:
    """Another clip, marked by the same signer."""
    made = make_files(tmp_path_factory.mktemp("other"), seed=1)["mp4"]
    return mark(made, replace(FACTS, content_key="e" * 64), MARKER, still=still)


@pytest.mark.parametrize("kind", ["mp4", "jpg", "png"])
def test_a_marked_file_is_valid_and_says_who_what_and_when(marked, kind) -> None:
    found = verify(marked[kind], OWN)
    assert (found.state, found.pixels, found.codes) == (MarkState.VALID, PixelState.SAME, ())
    assert found.signer is not None
    assert (found.signer.common_name, found.signer.trust, found.signer.is_test) == ("Somebody", Trust.OWN, True)
    sha256 = coded_pictures(marked[kind]).sha256
    assert found.facts == replace(FACTS, stream_sha256=sha256, likeness=found.facts.likeness)
    assert found.source_type == DigitalSourceType.TRAINED.uri
    assert found.marked_at.endswith("Z")
    assert found.facts.rendered_at == FACTS.rendered_at
    assert found.still is not None
    assert found.still.manifest_whole is True


@pytest.mark.parametrize(("kind", "media_type"), [("mp4", "video/mp4"), ("jpg", "image/jpeg"), ("png", "image/png")])
def test_a_second_process_that_knows_only_c2pa_says_the_same(marked, tmp_path, kind, media_type) -> None:
    anchors = tmp_path / "anchors.pem"
    anchors.write_bytes(identity().chain)
    command = [sys.executable, "-c", READER, str(marked[kind]), media_type, str(anchors)]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, cwd=tmp_path).stdout)
    assert told["state"] == "Trusted"
    active = told["store"]["manifests"][told["store"]["active_manifest"]]
    actions = {one["label"]: one["data"] for one in active["assertions"]}["c2pa.actions.v2"]["actions"]
    assert [(one["action"], one["digitalSourceType"]) for one in actions] == [
        ("c2pa.created", "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia")
    ]
    [ingredient] = active["ingredients"]
    assert ingredient["relationship"] == "inputTo"
    kept = told["store"]["manifests"][ingredient["active_manifest"]]
    assert any(one["data"].get("content_key") == "still" for one in kept["assertions"])
    # The action names what it was made from.
    assert len(actions[0]["parameters"]["ingredients"]) == 1


def test_one_byte_in_a_picture_is_told_with_how_many_pictures_it_is_in(marked, tmp_path) -> None:
    with marked["mp4"].open("rb") as file:
        [mdat] = [part for part in parts_of(file, Carrier.MP4) if part.kind == b"mdat"]
    found = verify(flipped(marked["mp4"], mdat.stop - 20, tmp_path / "a.mp4"), OWN)
    assert (found.state, found.pixels) == (MarkState.ALTERED, PixelState.CHANGED)
    assert "1 of 12 parts" in found.says
    # Who signed what was there before is still known.
    assert found.signer is not None
    assert found.signer.trust is Trust.OWN


def test_no_byte_that_a_player_reads_can_change_unseen(marked, tmp_path) -> None:
    """In every box but those that C2PA leaves out of its digest, which say nothing of pictures."""
    with marked["mp4"].open("rb") as file:
        parts = parts_of(file, Carrier.MP4)
    for part in parts:
        for at in (part.body, (part.body + part.stop) // 2, part.stop - 1):
            if part.kind in (b"ftyp", b"free") or at >= part.stop:
                continue
            found = verify(flipped(marked["mp4"], at, tmp_path / "a.mp4"), OWN)
            # A box of manifests that is called otherwise is none any more; the words say that it was there.
            assert found.state in (MarkState.ALTERED, MarkState.DAMAGED, MarkState.STRIPPED), (part, at, found.says)


@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_one_byte_in_a_still_picture_is_told(marked, tmp_path, kind) -> None:
    path = flipped(marked[kind], marked[kind].stat().st_size - 300, tmp_path / f"a.{kind}")
    assert verify(path, OWN).state is MarkState.ALTERED


def test_a_changed_manifest_is_damaged_and_its_pixels_are_still_compared(marked, tmp_path) -> None:
    part, _ = manifest_box(marked["mp4"])
    found = verify(flipped(marked["mp4"], (part.body + part.stop) // 2, tmp_path / "a.mp4"), OWN)
    assert found.state is MarkState.DAMAGED
    found = verify(flipped(marked["mp4"], part.body + 60, tmp_path / "a.mp4"), OWN)
    assert found.state is MarkState.DAMAGED


def test_a_copy_that_was_encoded_again_is_known_by_its_record_and_by_nothing_else(marked, tmp_path) -> None:
    record = KnownClip(name="BAG-1.json", facts=replace(FACTS, stream_sha256="0", likeness=likeness_of(frames())))
    stranger = KnownClip(name="MUG-1.json", facts=replace(FACTS, stream_sha256="1", likeness=likeness_of(frames(1))))
    worse, smaller = ("-crf", "32"), ("-vf", "scale=64:64", "-r", "24", "-crf", "28")
    for options in (worse, smaller, ("-c:v", "libx265", "-x265-params", "log-level=none", "-crf", "30")):
        copy = ffmpeg(marked["mp4"], tmp_path / "copy.mp4", *options)
        assert verify(copy, OWN).state is MarkState.UNMARKED
        found = verify(copy, OWN, [stranger, record])
        assert (found.state, found.pixels, found.compared_with) == (
            MarkState.RE_ENCODED,
            PixelState.ALIKE,
            "BAG-1.json",
        )
        assert verify(copy, OWN, [stranger]).state is MarkState.UNMARKED


def test_a_manifest_that_is_put_onto_a_copy_or_onto_another_clip_is_told_apart(marked, other, tmp_path) -> None:
    swapped = verify(with_manifest_of(other, marked["mp4"], tmp_path / "swapped.mp4"), OWN)
    assert (swapped.state, swapped.pixels) == (MarkState.SWAPPED, PixelState.OTHER)
    copy = ffmpeg(marked["mp4"], tmp_path / "copy.mp4", "-crf", "32")
    # A mark of its own makes the room for the other one's.
    mark(copy, replace(FACTS, revision="r" * 40), MARKER, still=marked["jpg"].read_bytes())
    found = verify(with_manifest_of(copy, marked["mp4"], tmp_path / "carried.mp4"), OWN)
    assert (found.state, found.pixels) == (MarkState.RE_ENCODED, PixelState.ALIKE)


def test_a_stripped_manifest_is_told_by_the_words_that_are_left_or_by_a_record(marked, tmp_path) -> None:
    found = verify(without_manifest(marked["mp4"], tmp_path / "stripped.mp4"), OWN)
    assert (found.state, found.facts.content_key) == (MarkState.STRIPPED, FACTS.content_key)
    record = KnownClip(name="r.json", facts=replace(FACTS, stream_sha256=coded_pictures(marked["mp4"]).sha256))
    remuxed = ffmpeg(marked["mp4"], tmp_path / "remuxed.mp4", "-c", "copy")
    assert verify(remuxed, OWN).state is MarkState.UNMARKED
    found = verify(remuxed, OWN, [record])
    assert (found.state, found.pixels) == (MarkState.STRIPPED, PixelState.SAME)


def test_words_without_a_signature_are_called_that(tmp_path) -> None:
    path = mark(make_files(tmp_path)["mp4"], FACTS, Marker())
    assert verify(path).state is MarkState.PLAIN
    record = KnownClip(name="r.json", facts=replace(FACTS, stream_sha256=coded_pictures(path).sha256))
    found = verify(path, TrustLists(), [record])
    assert (found.state, found.pixels) == (MarkState.PLAIN, PixelState.SAME)


def test_a_clip_that_was_handed_out_without_marks_is_not_called_stripped(tmp_path) -> None:
    path = make_files(tmp_path)["mp4"]
    facts = replace(FACTS, stream_sha256=coded_pictures(path).sha256)
    found = verify(path, OWN, [KnownClip(name="r.json", facts=facts, marks_off=True)])
    assert (found.state, found.pixels) == (MarkState.UNMARKED, PixelState.SAME)


def test_another_signer_is_not_taken_for_ours_by_its_name(tmp_path) -> None:
    from pipeline.marks.identity import make_test_identity

    impostor = Marker(make_test_identity("Somebody"), "")
    path = mark(make_files(tmp_path)["mp4"], FACTS, impostor)
    found = verify(path, OWN)
    assert found.state is MarkState.VALID
    assert found.signer is not None
    assert found.signer.trust is Trust.UNKNOWN
    assert impostor.identity is not None
    listed = verify(path, replace(OWN, listed=impostor.identity.chain)).signer
    assert listed is not None
    assert listed.trust is Trust.LISTED


def test_a_mark_is_replaced_and_pixels_stay_what_they_were(marked, tmp_path) -> None:
    from pipeline.marks.identity import make_test_identity

    for kind, path in make_files(tmp_path).items():
        before = coded_pictures(path)
        for marker in (Marker(), MARKER, Marker(make_test_identity("Another"), "")):
            mark(path, FACTS, marker)
            assert coded_pictures(path) == before
        found = verify(path)
        assert (found.state, found.signer and found.signer.common_name) == (MarkState.VALID, "Another"), kind
        # Words that anybody can write do not take the place of a signature.
        signed = path.read_bytes()
        mark(path, FACTS, Marker())
        assert path.read_bytes() == signed


def test_an_expired_certificate_signs_nothing_and_leaves_the_file(tmp_path) -> None:
    path = make_files(tmp_path)["mp4"]
    before = path.read_bytes()
    with pytest.raises(SigningError, match="expired"):
        mark(path, FACTS, Marker(replace(identity(), valid_until=1), ""))
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir() if one.name.startswith(".")] == []


@pytest.mark.parametrize("content", [b"", b"GIF89a and more", b"\0\0\0\x20ftypisom", b"\xff\xd8\xff\xe0\0\x10JFIF"])
def test_what_is_no_file_of_clips_is_refused_and_left(tmp_path, content) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(NotMarkableError):
        mark(path, FACTS, MARKER)
    assert path.read_bytes() == content


def test_what_a_clip_is_follows_from_what_made_it_and_from_its_still(marked) -> None:
    assert source_type_of("wan2.2-5b") is DigitalSourceType.TRAINED
    assert source_type_of("a model of tomorrow") is DigitalSourceType.TRAINED
    assert source_type_of("wan2.2-5b", composite=True) is DigitalSourceType.COMPOSITE
    assert source_type_of("camera") is DigitalSourceType.ENHANCED
    # Camera moves over what a model made; its own mark says so, in a manifest and in XMP.
    assert source_type_of("camera", still=marked["jpg"].read_bytes()) is DigitalSourceType.COMPOSITE
    assert source_type_of("camera", still=marked["png"].read_bytes()) is DigitalSourceType.COMPOSITE


def test_a_delivery_says_what_was_done_and_for_whom(tmp_path, still) -> None:
    path = make_files(tmp_path)["mp4"]
    facts = replace(FACTS, stream_sha256="of the master", likeness="of the master")
    mark(path, facts, MARKER, still=still, profile="amazon-sb", actions=("c2pa.resized", "c2pa.edited"))
    with pytest.raises(ValueError, match="ingredient"):
        mark(path, facts, MARKER, actions=("c2pa.placed",))
    found = verify(path, OWN)
    assert (found.state, found.profile, found.source_type) == (
        MarkState.VALID,
        "amazon-sb",
        DigitalSourceType.COMPOSITE.uri,
    )
    away = distance(found.facts.likeness, likeness_of_file(path))
    assert away == 0
