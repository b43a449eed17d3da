"""Clips as they leave the farm: marked once, equal for all who ask, and nothing of it is in what was published."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.maintenance.retention import is_ours
from cluster.results.archive import archive
from cluster.results.contact_sheet import ResultRow
from cluster.results.export import write_clip
from cluster.results.marked import FileOrigin, MarkedObjects
from cluster.results.rows import JobResult
from cluster.storage import CorruptObjectError, MissingObjectError, Storage, StorageError
from pipeline.marks.coded import coded_pictures
from pipeline.marks.identity import keep, make_test_identity
from pipeline.marks.marker import Marker, WatchedMarker
from pipeline.marks.verdict import MarkState
from pipeline.marks.verify import TrustLists, records_in, verify
from pipeline.render import write_clip as publish
from tests.building import spec
from tests.unit.pipeline.marks.clips import FPS, frames, identity

FOLDER = "clips/video_1/attempt_1"
VIDEO, POSTER, PROVENANCE = (f"{FOLDER}/{name}" for name in ("video.mp4", "poster.jpg", "provenance.json"))
ROW = ResultRow(
    id="BAG-1", number=1, prompt="pan", state="completed", video_key=VIDEO, poster_key=POSTER, provenance_key=PROVENANCE
)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip's files as a renderer makes them."""
    folder = tmp_path_factory.mktemp("clip")
    made = frames()
    asked = spec(frames=len(made), width=made.shape[2], height=made.shape[1], fps=FPS)
    publish(made, asked, folder, {"content_key": "c" * 64, "still_sha256": "d" * 64})
    return folder


@pytest.fixture
def storage(tmp_path: Path, published: Path) -> Storage:
    found = Storage(tmp_path / "storage")
    for path in published.iterdir():
        found.put_file(f"{FOLDER}/{path.name}", path)
    return found


def signing() -> Callable[[], Marker]:
    return lambda: Marker(identity(), "")


def contents(storage: Storage) -> dict[str, bytes]:
    return {entry.key: storage.get_bytes(entry.key) for entry in storage.entries("clips")}


def test_what_was_published_stays_and_what_leaves_is_signed(storage: Storage, tmp_path: Path) -> None:
    before = contents(storage)
    objects = MarkedObjects(storage, signing())
    written = write_clip(tmp_path / "out", ROW, objects, marks=objects.marks)
    assert written == ["BAG-1.mp4", "BAG-1.jpg", "BAG-1.json"]
    after = contents(storage)
    assert {key: after[key] for key in before} == before
    # Two small objects beside it, which a sweep and a deletion take for ours.
    added = sorted(set(after) - set(before))
    assert len(added) == 2
    assert all(is_ours(key) for key in added)
    assert all(len(after[key]) < 20_000 for key in added)
    for name in ("BAG-1.mp4", "BAG-1.jpg"):
        found = verify(tmp_path / "out" / name, TrustLists(own=identity().chain), records_in(tmp_path / "out"))
        assert (found.state, found.facts.content_key) == (MarkState.VALID, "c" * 64)
    recorded = json.loads(before[PROVENANCE])["video"]["stream_sha256"]
    assert coded_pictures(tmp_path / "out" / "BAG-1.mp4").sha256 == recorded


def test_whoever_asks_gets_the_same_bytes_whole_or_in_parts(storage: Storage, tmp_path: Path) -> None:
    one, another = MarkedObjects(storage, signing()), MarkedObjects(Storage(storage.url), signing())
    whole = one.get_bytes(VIDEO)
    assert another.get_bytes(VIDEO) == whole
    assert one.size(VIDEO) == len(whole)
    with another.open(VIDEO) as file:
        for first, length in ((0, 10), (11_000, 5000), (len(whole) - 7, 50)):
            file.seek(first)
            assert file.read(length) == whole[first : first + length]
    one.get_to(VIDEO, tmp_path / "a.mp4")
    assert (tmp_path / "a.mp4").read_bytes() == whole
    assert one.get_bytes(PROVENANCE) == storage.get_bytes(PROVENANCE)


@pytest.mark.parametrize("signs", [True, False])
@pytest.mark.parametrize("actions", [("c2pa.resized",), ("c2pa.resized", "c2pa.edited")])
def test_a_delivery_leaves_with_marks_and_is_kept_without(storage, published, tmp_path, signs, actions) -> None:
    """Another file than the clip, made of it; over which something is laid, it is a composite."""
    key = "cache/deliveries/" + "a" * 64
    storage.put_file(key, published / "video.mp4")
    plain = storage.get_bytes(key)
    told = json.loads(storage.get_bytes(PROVENANCE))
    told["family"]["name"] = "i2vgen-xl"
    storage.put_bytes(PROVENANCE, json.dumps(told).encode(), replace=True)
    objects = MarkedObjects(storage, signing() if signs else lambda: Marker(None, ""))
    assert objects.get_bytes(key) == plain, "nobody has said what it was made of"
    objects = MarkedObjects(storage, signing() if signs else lambda: Marker(None, ""))
    objects.tell(key, FileOrigin(provenance=PROVENANCE, profile="shop", actions=actions))
    assert storage.get_bytes(key) == plain
    path = tmp_path / "shop.mp4"
    objects.get_to(key, path)
    assert objects.size(key) == path.stat().st_size > len(plain)
    found = verify(path, TrustLists(own=identity().chain), {})
    composite = "compositeWithTrainedAlgorithmicMedia" in path.read_bytes().decode("latin-1")
    assert composite is ("c2pa.edited" in actions)
    assert (found.state is MarkState.VALID) is signs
    if signs:
        assert found.facts.content_key == "c" * 64
        added = [entry.key for entry in storage.entries("cache") if entry.key != key]
        assert len(added) == 1
        assert is_ours(added[0])


def test_the_zip_has_the_files_that_a_folder_has(storage: Storage, tmp_path: Path) -> None:
    import io
    import zipfile

    objects = MarkedObjects(storage, signing())
    write_clip(tmp_path / "out", ROW, objects, marks=objects.marks)
    result = JobResult(job_id="video_1", number=1, updated_at=0, row=ROW)
    made = zipfile.ZipFile(io.BytesIO(b"".join(archive(lambda: [result], objects, {}))))
    assert made.testzip() is None
    for name in ("BAG-1.mp4", "BAG-1.jpg"):
        assert made.read(name) == (tmp_path / "out" / name).read_bytes()


def test_another_key_marks_anew_and_publishes_nothing(storage: Storage, tmp_path: Path) -> None:
    keep(tmp_path / "marks", identity())
    objects = MarkedObjects(storage, WatchedMarker(tmp_path / "marks"))
    out = tmp_path / "out"
    assert len(write_clip(out, ROW, objects, marks=objects.marks)) == 3
    assert write_clip(out, ROW, objects, marks=objects.marks) == []
    before = {key: data for key, data in contents(storage).items() if "marks-" not in key}
    keep(tmp_path / "marks", make_test_identity("Next year"))
    assert write_clip(out, ROW, objects, marks=objects.marks) == ["BAG-1.mp4", "BAG-1.jpg"]
    found = verify(out / "BAG-1.mp4")
    assert (found.state, found.signer and found.signer.common_name) == (MarkState.VALID, "Next year")
    assert {key: data for key, data in contents(storage).items() if "marks-" not in key} == before


def test_without_a_certificate_files_say_what_they_are_and_storage_holds_nothing_of_it(
    storage: Storage, tmp_path: Path
) -> None:
    before = contents(storage)
    objects = MarkedObjects(storage, Marker)
    write_clip(tmp_path / "out", ROW, objects, marks=objects.marks)
    assert contents(storage) == before
    for name in ("BAG-1.mp4", "BAG-1.jpg"):
        found = verify(tmp_path / "out" / name)
        assert found.state is MarkState.PLAIN
        assert found.source_type.endswith("/algorithmicallyEnhanced")


def test_nobody_signs_what_was_not_published(storage: Storage) -> None:
    damaged = bytearray(storage.get_bytes(VIDEO))
    damaged[-5] ^= 1
    storage.put_bytes(VIDEO, bytes(damaged), replace=True)
    with pytest.raises(CorruptObjectError, match="not those that were published"):
        MarkedObjects(storage, signing()).get_bytes(VIDEO)


def test_a_clip_that_is_gone_is_missing_also_where_its_mark_is_still_there(storage: Storage) -> None:
    objects = MarkedObjects(storage, signing())
    objects.size(VIDEO)
    storage.delete(VIDEO)
    with pytest.raises(MissingObjectError):
        objects.size(VIDEO)
    with pytest.raises(MissingObjectError), objects.open(VIDEO):
        pass


def test_a_stored_mark_that_is_damaged_is_made_anew(storage: Storage) -> None:
    whole = MarkedObjects(storage, signing()).get_bytes(VIDEO)
    [place] = [key for key in contents(storage) if "marks-" in key]
    storage.put_bytes(place, b"{", replace=True)
    again = MarkedObjects(storage, signing())
    assert len(again.get_bytes(VIDEO)) == len(whole)
    assert MarkedObjects(storage, signing()).get_bytes(VIDEO) == again.get_bytes(VIDEO)


def test_a_certificate_that_signs_no_more_is_an_error_and_no_unsigned_file(storage: Storage) -> None:
    expired = Marker(replace(identity(), valid_until=1), "")
    with pytest.raises(StorageError, match="expired"):
        MarkedObjects(storage, lambda: expired).get_bytes(VIDEO)


@pytest.mark.parametrize("marker", [signing(), Marker])
def test_what_is_no_clip_is_handed_out_as_it_is(storage: Storage, marker: Callable[[], Marker]) -> None:
    storage.put_bytes("clips/a/b/video.mp4", b"no video")
    storage.put_bytes("stills/x", b"still")
    objects = MarkedObjects(storage, marker)
    assert objects.get_bytes("clips/a/b/video.mp4") == b"no video"
    assert objects.size("clips/a/b/video.mp4") == 8
    assert objects.get_bytes("stills/x") == b"still"
