"""Notes on stills that were handed in: made once a picture, shared through storage, told with its rows."""

import hashlib
import io
import random
from pathlib import Path

import pytest

from cluster.catalog.defaults import Defaults
from cluster.catalog.ingest import IncomingRow, draft
from cluster.catalog.manifest import Row
from cluster.jobs.still_notes import StillNotes
from cluster.storage import Storage
from pipeline.clips.clip import Autofix
from pipeline.notes import notes_from
from tests.stills.spoilt import FAULTS, product_picture


def dark_png() -> bytes:
    out = io.BytesIO()
    still = FAULTS["still_dark"](product_picture(0, 300), 1, random.Random(0), [])
    assert still is not None
    still.save(out, "PNG")
    return out.getvalue()


DARK = dark_png()
SHA256 = hashlib.sha256(DARK).hexdigest()


def test_a_picture_is_looked_at_once_and_known_to_every_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = StillNotes(Storage(tmp_path))
    assert here.of(SHA256) == ()
    found = here.learn(SHA256, DARK, (300, 300))
    assert [note.code for note in found] == ["still_dark"]

    def never(data: bytes, size: tuple[int, int]) -> None:
        raise AssertionError("looked at twice")

    monkeypatch.setattr("cluster.jobs.still_notes.still_notes", never)
    elsewhere = StillNotes(Storage(tmp_path))
    assert here.of(SHA256) == elsewhere.of(SHA256) == elsewhere.learn(SHA256, DARK, (300, 300)) == found
    assert found[0].fix == {"autofix": "exposure"}


def test_what_storage_lost_or_spoilt_is_made_anew(tmp_path: Path) -> None:
    StillNotes(Storage(tmp_path)).learn(SHA256, DARK, (300, 300))
    (path,) = (tmp_path / "cache").rglob(SHA256)
    path.write_bytes(b"{half")
    assert [note.code for note in StillNotes(Storage(tmp_path)).learn(SHA256, DARK, (300, 300))] == ["still_dark"]


@pytest.mark.parametrize(
    ("autofix", "codes"), [(None, ["still_dark"]), ((Autofix.EXPOSURE,), []), ((Autofix.CROP,), ["still_dark"])]
)
def test_a_row_is_told_of_its_still_but_for_what_it_has_mended(
    tmp_path: Path, autofix: tuple[Autofix, ...] | None, codes: list[str]
) -> None:
    notes = StillNotes(Storage(tmp_path))
    notes.learn(SHA256, DARK, (300, 300))
    row = Row(number=1, id="a", image="a.png", prompt="pan left", resolution_class="256p", autofix=autofix)
    incoming = IncomingRow(position=1, name="a", row=row, still=SHA256, number=1)
    made = draft(incoming, Defaults(model="camera", strict=True), lambda _: (300, 300), still_notes=notes.of)
    assert made.problems == ()
    assert made.spec is not None
    assert made.spec.autofix == (autofix or ())
    assert [note.code for note in notes_from(made.row.get("noted"))] == codes
