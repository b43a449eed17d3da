"""`--deliver`, the column and the files in OUT, by the commands themselves; nothing here starts Ray."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import httpx
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cluster.catalog.defaults import Defaults
from cluster.catalog.ingest import gather
from cluster.catalog.manifest import BadRow, read_manifest
from cluster.farm import Farm
from cluster.jobs.model import Batch, JobState
from cluster.results import deliveries as deliveries_module
from pipeline.clips.encode import encode_mp4
from pipeline.marks.carriers import carrier_of, open_carrier
from pipeline.marks.source_type import DigitalSourceType
from pipeline.marks.xmp import packet_in, properties_in
from serve.cli.common import Exit
from serve.settings import Settings
from tests.unit.pipeline.delivery.clips import product_clip
from tests.unit.serve.cli.test_results import clipmill, complete, farm, gateway, home, office_of

__all__ = ["farm", "home"]

PROFILES = """
small: {like: shop, title: s, source: ours, checked: 2026-11-01, width: 128, height: 72, min_seconds: 1}
strict: {like: shop, title: s, source: ours, width: 128, height: 72, min_seconds: 1, backgrounds: []}
tower: {like: shop, title: s, source: ours, checked: 2026-11-01, width: 64, height: 128, most_continued: 0.5}
"""


@pytest.fixture
def shop(tmp_path: Path, home: Path) -> Path:
    """A catalog of three pictures: a plain row, one for another profile, and a banner that nothing makes a tower of."""
    folder = tmp_path / "shop"
    folder.mkdir()
    home.mkdir(exist_ok=True)
    (home / "profiles.yaml").write_text(PROFILES)
    Image.fromarray(product_clip()[0]).save(folder / "a.png")
    Image.fromarray(product_clip(box=(60, 20, 100, 140), background=(200, 210, 205))[0]).save(folder / "b.png")
    Image.fromarray(product_clip((300, 100), (6, 10, 294, 90))[0]).save(folder / "banner.png")
    (folder / "catalog.csv").write_text(
        "id,image,prompt,aspect,deliver,price\n"
        "A,a.png,zoom in,1:1,,9.90\n"
        'B,b.png,zoom in,1:1,"small, strict",\n'
        "C,banner.png,zoom in,3:1,tower,\n"
    )
    return folder / "catalog.csv"


def submitted(farm: Farm, catalog: Path) -> Batch:
    """The catalog handed in, with its clips made of a real film."""
    own = Farm(farm.batch_store, farm.storage, deliveries=Settings().deliveries())
    manifest = read_manifest(catalog)
    batch = own.submit(
        gather(manifest, own.put_still), Defaults(model="camera"), name=catalog.name, source=str(catalog.resolve())
    )
    office = office_of(farm)
    film = catalog.parent / "film.mp4"
    encode_mp4(product_clip((96, 96), (30, 15, 66, 80), frames=6), 24, film)
    for job in office.waiting(100):
        complete(farm, office, job, film.read_bytes())
    return own.batch(batch.id)


def test_rows_are_delivered_as_they_and_the_command_ask(farm: Farm, shop: Path, tmp_path: Path) -> None:
    batch = submitted(farm, shop)
    out = tmp_path / "out"
    answer = clipmill("results", batch.id, "--out", str(out), "--deliver", "small", "--json")
    assert answer.exit_code == Exit.SOME_FAILED, answer.output
    told = json.loads(answer.stdout)["deliveries"]
    assert {row: {name: bool(one["file"]) for name, one in files.items()} for row, files in told.items()} == {
        "A": {"small": True},
        "B": {"small": True, "strict": False},
    }
    assert (out / "small" / "A.mp4").exists()
    assert (out / "A.mp4").exists()
    assert not (out / "strict" / "B.mp4").exists()
    lines = list(csv.DictReader((out / "deliveries.csv").read_text("utf-8-sig").splitlines()))
    assert [line["state"] for line in lines] == ["delivered", "delivered", "refused"]
    assert "delivered (" in (out / "index.html").read_text()


def test_the_same_again_encodes_nothing(
    farm: Farm, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = submitted(farm, shop)
    words = ("results", batch.id, "--out", str(tmp_path / "out"), "--deliver", "small")
    clipmill(*words)
    before = (tmp_path / "out" / "small" / "A.mp4").stat().st_mtime_ns
    monkeypatch.setattr(deliveries_module.DeliveryMaker, "_made", None)
    clipmill(*words)
    assert (tmp_path / "out" / "small" / "A.mp4").stat().st_mtime_ns == before


def test_what_no_profile_of_a_row_can_meet_is_refused_when_it_is_handed_in(farm: Farm, shop: Path) -> None:
    batch = submitted(farm, shop)
    [job] = [job for job in farm.jobs(batch.id) if job.state is JobState.FAILED]
    assert job.name == "C"
    assert job.problems[0].field == "deliver"
    assert "1:2 from a clip of 3:1" in job.problems[0].message
    assert "% of the frame" in job.problems[0].message


def test_profiles_and_brands_that_are_none_end_the_command_before_anything(shop: Path, tmp_path: Path) -> None:
    (tmp_path / "brand.yaml").write_text("fonts: {text: gone.ttf}")
    for words, said in (
        (["--deliver", "nobody"], "no delivery profile"),
        (["--deliver", "small", "--brand", str(tmp_path / "brand.yaml")], "gone.ttf is missing"),
        (["--deliver", "small", "--profiles", str(tmp_path / "none.yaml")], "cannot be read"),
    ):
        answer = clipmill("render", str(shop), "--out", str(tmp_path / "out"), "--model", "camera", *words)
        assert answer.exit_code == Exit.USAGE
        assert said in " ".join(answer.output.split())
    assert not (tmp_path / "out").exists()


def test_a_file_of_the_home_that_is_at_fault_stops_nothing_but_what_goes_by_it(
    farm: Farm, shop: Path, home: Path
) -> None:
    submitted(farm, shop)
    (home / "brand.yaml").write_text("logo: gone.png")
    assert clipmill("status").exit_code == Exit.DONE
    answer = clipmill("submit", str(shop), "--model", "camera")
    assert answer.exit_code == Exit.USAGE
    assert "gone.png is missing" in " ".join(answer.output.split())


def test_a_cell_that_names_no_profile_is_that_rows_problem(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('image,prompt,deliver\na.png,zoom,../up\nb.png,zoom,"Google; Reels"\n')
    bad, good = read_manifest(tmp_path / "a.csv").rows
    assert isinstance(bad, BadRow)
    assert bad.problems[0].field == "deliver"
    assert not isinstance(good, BadRow)
    assert good.deliver == ("google", "reels")


def test_check_says_it_before_anything_is_handed_in(shop: Path) -> None:
    answer = clipmill("check", str(shop), "--model", "camera", "--deliver", "small", "--json")
    rows = {row["name"]: row for row in json.loads(answer.stdout)["rows"]}
    assert "1:2 from a clip of 3:1" in rows["C"]["problems"][0]["message"]
    assert rows["A"]["problems"] == []
    assert [note["code"] for note in rows["B"]["noted"] if note.get("field") == "deliver"] == ["delivery_refused"]


def test_a_delivery_is_marked_alike_wherever_it_is_written(farm: Farm, shop: Path, tmp_path: Path, monkeypatch) -> None:
    """By the farm's own machine, by the gateway, and by a machine that has the gateway alone: the still says it is made
    by a model, and camera moves do not make it less so."""
    words = PngInfo()
    words.add_itxt("XML:com.adobe.xmp", f"<x>{DigitalSourceType.TRAINED.uri}</x>")
    Image.fromarray(product_clip()[0]).save(shop.parent / "a.png", pnginfo=words)
    batch = submitted(farm, shop)
    (job,) = [job for job in farm.jobs(batch.id) if job.name == "A"]
    assert job.clip_id is not None
    made = farm.batch_store.clips(farm.owner, [job.clip_id])[job.clip_id].objects
    still = hashlib.sha256((shop.parent / "a.png").read_bytes()).hexdigest()
    told = {"family": {"name": "camera"}, "still_sha256": still}
    farm.storage.put_bytes(made.provenance, json.dumps(told).encode(), replace=True)
    own = Farm(farm.batch_store, farm.storage, deliveries=Settings().deliveries(), marked=farm.marked)
    asked = ("--deliver", "small", "--profiles", str(Settings().home / "profiles.yaml"))
    assert clipmill("results", batch.id, "--out", str(tmp_path / "here"), *asked).exit_code == Exit.SOME_FAILED
    with gateway(own) as url:
        sent = httpx.get(f"{url}/v1/jobs/{job.id}/deliveries/small", timeout=60)
        monkeypatch.setenv("CLIPMILL_HOME", str(tmp_path / "elsewhere"))
        clipmill("results", batch.id, "--url", url, "--out", str(tmp_path / "there"), *asked)
    here, there = (tmp_path / name / "small" / "A.mp4" for name in ("here", "there"))
    assert sent.content == here.read_bytes()
    assert source_type_in(here) == source_type_in(there) == DigitalSourceType.COMPOSITE.uri


def source_type_in(path: Path) -> str:
    with open_carrier(path) as file:
        found = packet_in(file, carrier_of(file, path.name))
    assert found is not None
    return properties_in(found)["Iptc4xmpExt:DigitalSourceType"]
