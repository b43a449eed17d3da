"""Files of rows: made once for each clip and profile, kept, written beside the clips, refused in words."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.maintenance.retention import is_ours
from cluster.results.contact_sheet import ResultRow
from cluster.results.deliveries import (
    DeliveredFile,
    DeliveryMaker,
    DeliveryTerms,
    KeptDeliveries,
    deliver_rows,
    deliveries_key,
    delivery_key,
)
from cluster.results.export import write_deliveries_table, write_delivery
from cluster.storage import Storage
from pipeline.clips.encode import encode_mp4
from pipeline.delivery.brands import Brand
from pipeline.delivery.judging import judge_file
from pipeline.delivery.profiles import DeliveryProfiles
from tests.unit.pipeline.delivery.clips import product_clip, profile

SMALL = profile(width=128, height=72)
TINY = profile(name="tiny-file", width=128, height=72, max_bytes=1500)
#: Nothing but a crop, which would cut the product.
STRICT = profile(name="strict", width=128, height=72, backgrounds=())
PROFILES = DeliveryProfiles([SMALL, TINY, STRICT])


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    encode_mp4(product_clip((96, 96), (30, 15, 66, 80), frames=6), 24, path)
    return path.read_bytes()


@pytest.fixture
def storage(tmp_path: Path, clip: bytes) -> Storage:
    storage = Storage(tmp_path / "farm")
    storage.put_bytes("clips/1/clip.mp4", clip)
    return storage


def row(*deliver: str, **changes: object) -> ResultRow:
    made = ResultRow(
        id="SKU 1",
        number=1,
        prompt="zoom in",
        state="completed",
        video_key="clips/1/clip.mp4",
        content_key="c" * 64,
        deliver=deliver,
        extra={"price": "9.90"},
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def maker(storage: Storage, **terms: object) -> DeliveryMaker:
    said = DeliveryTerms(**({"profiles": PROFILES} | terms))  # type: ignore[arg-type]
    return DeliveryMaker(storage, KeptDeliveries(storage), said)


def test_a_file_is_made_once_and_then_kept_even_without_its_clip(storage: Storage, tmp_path: Path) -> None:
    first = maker(storage)
    made = first.deliver(row("small"), tmp_path)["small"]
    assert made.delivered
    assert made.encoded
    assert made.path is not None
    assert all(check.passed for check in judge_file(made.path, SMALL))
    data = made.path.read_bytes()
    storage.delete("clips/1/clip.mp4")
    again = maker(storage)
    kept = again.deliver(row("small", id="another row, an equal clip"), tmp_path)["small"]
    assert kept.path is not None
    assert (kept.path.read_bytes(), kept.encoded, again.encoded) == (data, False, 0)
    assert kept.verdict == made.verdict


def test_what_is_kept_is_swept_as_other_cached_things_are(storage: Storage, tmp_path: Path) -> None:
    made = maker(storage).deliver(row("small"), tmp_path)["small"]
    keys = [entry.key for entry in storage.entries("cache")]
    assert deliveries_key(made.key) in keys
    assert len(keys) == 2
    assert all(is_ours(key) for key in keys)


def test_a_file_that_breaks_a_rule_and_one_that_cannot_be_are_refused_and_not_tried_again(
    storage: Storage, tmp_path: Path
) -> None:
    for _ in range(2):
        mine = maker(storage)
        made = mine.deliver(row("tiny-file", "strict", "nobody", "small"), tmp_path)
        assert {name for name, one in made.items() if one.delivered} == {"small"}
        assert made["tiny-file"].verdict.broken == ["bytes"]
        assert "would cut the product" in str(made["strict"].verdict.problem)
        assert "'nobody' is no delivery profile" in str(made["nobody"].verdict.problem)
        assert not (tmp_path / "tiny-file.mp4").exists()
        for path in tmp_path.glob("*.mp4"):
            path.unlink()
    assert mine.encoded == 0


def test_the_key_follows_what_decides_the_file_and_nothing_else() -> None:
    brand = Brand.model_validate({"overlays": [{"kind": "badge", "text": "{price}"}]})
    plain, branded = DeliveryTerms(profiles=PROFILES), DeliveryTerms(profiles=PROFILES, brand=brand)
    key = delivery_key(row(), SMALL, plain)
    assert delivery_key(row("small", id="x", number=9, extra={"price": "1"}), SMALL, plain) == key
    assert delivery_key(row(content_key="d" * 64), SMALL, plain) != key
    assert delivery_key(row(), TINY, plain) != key
    # A price that changes makes its overlay anew, and that of no profile that takes none.
    dearer = row(extra={"price": "12"})
    assert delivery_key(row(), SMALL, branded) != delivery_key(dearer, SMALL, branded)
    bare = SMALL.model_copy(update={"overlays": False})
    assert delivery_key(row(), bare, branded) == delivery_key(dearer, bare, branded)


def test_rows_that_do_not_say_get_what_was_asked_of_all(storage: Storage, tmp_path: Path) -> None:
    mine = maker(storage, default=("small",))
    rows = [
        row(deliver=None, id="silent"),
        row(id="none"),
        row("strict", id="own"),
        row("small", id="q", state="queued"),
    ]
    found = deliver_rows(rows, mine, tmp_path)
    assert {name: list(files) for name, files in found.items()} == {"silent": ["small"], "none": [], "own": ["strict"]}
    gone = deliver_rows([row("small", id="gone", video_key="clips/2/x.mp4", content_key="")], mine, tmp_path)
    assert gone["gone"]["small"].verdict.problem is not None


class Stamp:
    """A last step that is seen in the file."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, delivered: DeliveredFile, row: ResultRow, target: Path) -> None:
        assert delivered.path is not None
        target.write_bytes(delivered.path.read_bytes() + f"{self.name} {row.id} {delivered.profile}".encode())


def test_files_lie_by_profile_with_their_verdict_and_are_written_once(storage: Storage, tmp_path: Path) -> None:
    out = tmp_path / "out"
    delivered = maker(storage).deliver(row("small", "strict"), tmp_path)
    assert write_delivery(out, row(), delivered["small"]) == ["SKU 1.json", "SKU 1.mp4"]
    assert write_delivery(out, row(), delivered["strict"]) == ["SKU 1.json"]
    assert write_delivery(out, row(), delivered["small"]) == []
    verdict = json.loads((out / "small" / "SKU 1.json").read_text())
    assert verdict["passed"] is True
    assert verdict["key"] == delivered["small"].key
    assert not (out / "strict" / "SKU 1.mp4").exists()
    write_deliveries_table(out, "b", [(row(), delivered)])
    lines = list(csv.DictReader((out / "deliveries.csv").read_text("utf-8-sig").splitlines()))
    assert [(line["profile"], line["state"], line["file"]) for line in lines] == [
        ("small", "delivered", "small/SKU 1.mp4"),
        ("strict", "refused", ""),
    ]
    assert lines[1]["remedy"]


def test_the_last_step_is_done_at_the_end_and_again_only_where_it_changes(storage: Storage, tmp_path: Path) -> None:
    out = tmp_path / "out"
    made = maker(storage).deliver(row("small"), tmp_path)["small"]
    assert made.path is not None
    assert write_delivery(out, row(), made, Stamp("key-1")) == ["SKU 1.json", "SKU 1.mp4"]
    assert (out / "small" / "SKU 1.mp4").read_bytes() == made.path.read_bytes() + b"key-1 SKU 1 small"
    assert write_delivery(out, row(), made, Stamp("key-1")) == []
    assert write_delivery(out, row(), made, Stamp("key-2")) == ["SKU 1.json", "SKU 1.mp4"]
    # What is kept is unmarked: a new key encodes nothing.
    assert storage.get_bytes(deliveries_key(made.key)) == made.path.read_bytes()


def test_a_file_of_before_is_set_aside_where_the_row_is_refused_now(storage: Storage, tmp_path: Path) -> None:
    out = tmp_path / "out"
    good = maker(storage).deliver(row("small"), tmp_path)["small"]
    write_delivery(out, row(), good)
    told: list[str] = []
    bad = replace(good, path=None, verdict=good.verdict.model_copy(update={"passed": False}))
    write_delivery(out, row(), bad, told=told.append)
    assert not (out / "small" / "SKU 1.mp4").exists()
    assert told
    assert json.loads((out / "small" / "SKU 1.json").read_text())["passed"] is False
