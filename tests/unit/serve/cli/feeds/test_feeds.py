"""From feed to feed by the commands themselves, on a farm whose clips are made already; nothing here starts Ray."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from cluster.catalog.defaults import Defaults
from cluster.catalog.ingest import gather
from cluster.farm import Farm
from cluster.feeds.model import FeedOptions
from cluster.feeds.reading import read_catalog
from cluster.jobs.model import Batch, JobState
from cluster.results import deliveries as deliveries_module
from pipeline.clips.encode import EncodeError, encode_mp4
from serve.cli.common import Exit
from serve.cli.delivery.writer import DeliveryOptions
from serve.cli.feeds.output import FeedOutOptions, chosen_profiles
from serve.cli.follow import writer_of
from serve.results_source import LocalResults
from serve.settings import Settings
from tests.building import still_png
from tests.unit.cluster.remote.hosts import Asked, host
from tests.unit.pipeline.delivery.clips import product_clip
from tests.unit.serve.cli.test_results import clipmill, complete, farm, home, office_of

__all__ = ["farm", "home"]

PROFILES = """
google-small: {like: shop, title: s, source: ours, checked: 2026-11-01, width: 128, height: 72, min_seconds: 1}
shop-small: {like: shop, title: s, source: ours, checked: 2026-11-01, width: 72, height: 72, min_seconds: 1}
"""
BRAND = """
overlays:
  - {kind: badge, text: "{price}", size: 0.2}
"""
PUBLIC = "https://cdn.test/spring"
FEED = """<?xml version="1.0" encoding="utf-8"?>\r
<rss xmlns:g="http://base.google.com/ns/1.0"><channel><!-- ours -->\r
  <item>\r
    <g:id>A</g:id><g:brand>Acme &amp; Co</g:brand>\r
    <g:image_link>a.png</g:image_link>\r
    <g:price>9.90 EUR</g:price>\r
  </item>\r
  <item>\r
    <g:id>B</g:id><g:brand>Bolt</g:brand>\r
    <g:image_link>b.png</g:image_link>\r
    <g:price>5 EUR</g:price>\r
  </item>\r
  <item><g:id>C</g:id><g:image_link>gone.png</g:image_link></item>\r
</channel></rss>\r
"""


@pytest.fixture
def shop(tmp_path: Path, home: Path) -> Path:
    """A feed of three products, the picture of one of which is not there."""
    folder = tmp_path / "shop"
    folder.mkdir()
    home.mkdir(exist_ok=True)
    (home / "profiles.yaml").write_text(PROFILES)
    Image.fromarray(product_clip()[0]).save(folder / "a.png")
    Image.fromarray(product_clip(box=(60, 20, 100, 140), background=(200, 210, 205))[0]).save(folder / "b.png")
    (folder / "feed.xml").write_text(FEED, newline="")
    return folder / "feed.xml"


def submitted(farm: Farm, feed: Path) -> Batch:
    """The feed handed in, with its clips made of a real film."""
    own = Farm(farm.batch_store, farm.storage, deliveries=Settings().deliveries())
    batch = own.submit(
        gather(read_catalog(feed), own.put_still),
        Defaults(model="camera"),
        name=feed.name,
        source=str(feed.resolve()),
    )
    film = feed.parent / "film.mp4"
    encode_mp4(product_clip((96, 96), (30, 15, 66, 80), frames=6), 24, film)
    office = office_of(farm)
    for job in office.waiting(100):
        complete(farm, office, job, film.read_bytes())
    return own.batch(batch.id)


def linked(feed: str, links: dict[str, list[str]]) -> str:
    """The feed as it is expected: each product's links behind its last element, as far in as that."""
    for name, urls in links.items():
        head, mark, tail = feed.partition(f"<g:id>{name}</g:id>")
        inside, close, rest = tail.partition("\r\n  </item>")
        added = "".join(f"\r\n    <g:video_link>{url}</g:video_link>" for url in urls)
        feed = head + mark + inside + added + close + rest
    return feed


def test_the_feed_comes_back_with_links_and_is_the_same_bytes_otherwise(farm: Farm, shop: Path, tmp_path: Path) -> None:
    batch = submitted(farm, shop)
    out, target = tmp_path / "out", tmp_path / "new.xml"
    words = ("results", batch.id, "--out", str(out), "--deliver", "google-small,shop-small", "--feed-out", str(target))
    answer = clipmill(*words, "--public-url", PUBLIC, "--json")
    assert answer.exit_code == Exit.DONE, answer.output
    told = json.loads(answer.stdout)["feed"]
    assert (told["products"], told["linked"], told["links"], told["changed"]) == (3, 2, 2, True)
    links = {name: [f"{PUBLIC}/google-small/{name}.mp4"] for name in "AB"}
    assert target.read_bytes().decode() == linked(FEED, links)
    assert (out / "google-small" / "A.mp4").exists()
    before = target.stat().st_mtime_ns
    answer = clipmill(*words, "--public-url", PUBLIC, "--json")
    assert json.loads(answer.stdout)["feed"]["changed"] is False
    assert target.stat().st_mtime_ns == before
    # Of other profiles, and without a place of the public.
    answer = clipmill(*words, "--feed-profiles", "shop-small,google-small")
    assert "names below the folder" in " ".join(answer.output.split())
    both = {name: [f"shop-small/{name}.mp4", f"google-small/{name}.mp4"] for name in "AB"}
    assert target.read_bytes().decode() == linked(FEED, both)


def test_a_clip_that_is_made_again_after_its_delivery_has_no_link(farm: Farm, shop: Path, tmp_path: Path) -> None:
    batch, target, settings = submitted(farm, shop), tmp_path / "new.xml", Settings()
    terms = DeliveryOptions().terms(settings, "google-small")
    options = FeedOutOptions(feed_out=target, public_url=PUBLIC)
    writer = writer_of(LocalResults(farm), batch.id, tmp_path / "out", settings, terms, options)
    writer.update(batch.id)
    writer.finish_deliveries()
    first = farm.batch_store.jobs(farm.owner, batch.id)[0]
    farm.batch_store.forget_clips(farm.owner, [first.clip_id])
    writer.write_feed(batch.id, options.feed(shop, FeedOptions()))
    assert target.read_bytes().decode() == linked(FEED, {"B": [f"{PUBLIC}/google-small/B.mp4"]})


def test_waiting_writes_the_feed_too(farm: Farm, shop: Path, tmp_path: Path) -> None:
    batch, target = submitted(farm, shop), tmp_path / "new.xml"
    words = ["--deliver", "google-small", "--feed-out", str(target), "--public-url", PUBLIC]
    answer = clipmill("wait", batch.id, "--out", str(tmp_path / "out"), *words)
    assert answer.exit_code == Exit.SOME_FAILED, answer.output
    links = {name: [f"{PUBLIC}/google-small/{name}.mp4"] for name in "AB"}
    assert target.read_bytes().decode() == linked(FEED, links)
    answer = clipmill("wait", batch.id, *words)
    assert answer.exit_code == Exit.USAGE
    assert "name a folder with --out" in " ".join(answer.output.split())


def test_somebody_elses_file_and_the_feed_itself_are_never_written_to(farm: Farm, shop: Path, tmp_path: Path) -> None:
    batch = submitted(farm, shop)
    (tmp_path / "theirs.xml").write_text("theirs")
    words = ("results", batch.id, "--out", str(tmp_path / "out"), "--deliver", "shop-small", "--feed-out")
    for target, said in ((tmp_path / "theirs.xml", "clipmill did not write it"), (shop, "which this run reads")):
        before = target.read_bytes()
        answer = clipmill(*words, str(target))
        assert answer.exit_code == Exit.USAGE, answer.output
        assert said in " ".join(answer.output.split())
        assert target.read_bytes() == before
    answer = clipmill(*words, str(tmp_path / "out.csv"))
    assert "End its name with .xml" in " ".join(answer.output.split())


def test_files_are_called_as_the_template_says_and_links_too(farm: Farm, shop: Path, tmp_path: Path) -> None:
    batch = submitted(farm, shop)
    out, target = tmp_path / "out", tmp_path / "new.xml"
    words = ["--deliver", "google-small", "--names", "{brand}/{id}-{profile}.mp4", "--feed-out", str(target)]
    answer = clipmill("results", batch.id, "--out", str(out), "--public-url", PUBLIC, *words)
    assert answer.exit_code == Exit.DONE, answer.output
    links = {"A": [f"{PUBLIC}/Acme-Co/A-google-small.mp4"], "B": [f"{PUBLIC}/Bolt/B-google-small.mp4"]}
    assert target.read_bytes().decode() == linked(FEED, links)
    assert (out / "Acme-Co" / "A-google-small.mp4").exists()
    assert "Bolt/B-google-small.mp4" in (out / "deliveries.csv").read_text("utf-8-sig")
    before = (out / "Bolt" / "B-google-small.mp4").stat().st_mtime_ns
    clipmill("results", batch.id, "--out", str(out), "--public-url", PUBLIC, *words)
    assert (out / "Bolt" / "B-google-small.mp4").stat().st_mtime_ns == before


def test_rows_of_one_name_are_refused_before_anything_is_rendered(shop: Path, tmp_path: Path) -> None:
    from cluster.catalog.manifest import BadRow

    options = FeedOutOptions(names="{category|all}/{profile}.mp4")
    refused = options.refuse(read_catalog(shop), ("shop",))
    assert [row.id for row in refused.rows if isinstance(row, BadRow)] == ["B", "C"]
    assert "rows 'A' and 'B' both have the name 'all/shop.mp4'" in refused.bad[0].problems[0].message
    answer = clipmill(
        "render", str(shop), "--out", str(tmp_path / "o"), "--model", "camera", "--names", "{colour}/{id}"
    )
    assert answer.exit_code == Exit.USAGE
    assert "no row has a column 'colour'" in " ".join(answer.output.split())
    assert not (tmp_path / "o").exists()


def publish(batch: Batch, place: Path, *words: str) -> dict[str, object]:
    """What `publish --json` says, and that it ended well."""
    answer = clipmill(
        "publish", batch.id, str(place), "--deliver", "google-small", "--public-url", PUBLIC, "--json", *words
    )
    assert answer.exit_code == Exit.DONE, answer.output
    return json.loads(answer.stdout)


def test_the_same_again_sends_nothing_and_a_price_sends_one_file_and_the_feed(
    farm: Farm, shop: Path, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "brand.yaml").write_text(BRAND)
    place = tmp_path / "public"
    first = publish(submitted(farm, shop), place)
    assert (first["uploaded"], first["encoded"]) == (3, 2)
    links = {name: [f"{PUBLIC}/google-small/{name}.mp4"] for name in "AB"}
    assert (place / "feed.xml").read_bytes().decode() == linked(FEED, links)
    files = {path.name: path.read_bytes() for path in (place / "google-small").iterdir()}
    assert set(files) == {"A.mp4", "B.mp4"}

    with monkeypatch.context() as patch:
        # Neither fetched nor made.
        patch.setattr(deliveries_module.DeliveryMaker, "deliver", None)
        again = publish(submitted(farm, shop), place)
    assert (again["uploaded"], again["unchanged"], again["encoded"]) == (0, 3, 0)
    assert (place / "feed.xml").read_bytes().decode() == linked(FEED, links)

    # The way of a shop: one price is another one.
    cheaper = FEED.replace("9.90", "4.90")
    shop.write_text(cheaper, newline="")
    third = publish(submitted(farm, shop), place)
    assert (third["uploaded"], third["unchanged"], third["encoded"]) == (2, 1, 1)
    assert (place / "feed.xml").read_bytes().decode() == linked(cheaper, links)
    assert (place / "google-small" / "B.mp4").read_bytes() == files["B.mp4"]
    assert (place / "google-small" / "A.mp4").read_bytes() != files["A.mp4"]


def test_a_feed_without_a_place_of_the_public_is_not_published(farm: Farm, shop: Path, tmp_path: Path) -> None:
    batch = submitted(farm, shop)
    answer = clipmill("publish", batch.id, str(tmp_path / "p"), "--deliver", "shop-small")
    assert answer.exit_code == Exit.USAGE
    assert "--public-url" in answer.output
    answer = clipmill("publish", batch.id, str(tmp_path / "p"), "--deliver", "shop-small", "--no-feed")
    assert answer.exit_code == Exit.DONE, answer.output
    assert not (tmp_path / "p" / "feed.xml").exists()
    answer = clipmill("publish", batch.id, str(tmp_path / "p"), "--no-feed")
    assert "Say for which profiles" in " ".join(answer.output.split())


def test_what_is_no_longer_wanted_goes_where_that_is_asked_for(farm: Farm, shop: Path, tmp_path: Path) -> None:
    batch, place = submitted(farm, shop), tmp_path / "public"
    publish(batch, place)
    (place / "theirs.mp4").write_bytes(b"theirs")
    found = publish(batch, place, "--names", "{id}-{profile}.mp4", "--prune")
    assert (found["uploaded"], found["removed"]) == (3, 2)
    assert sorted(path.name for path in place.rglob("*.mp4")) == [
        "A-google-small.mp4",
        "B-google-small.mp4",
        "theirs.mp4",
    ]


def test_what_is_made_again_is_not_taken_from_the_public_meanwhile(farm: Farm, shop: Path, tmp_path: Path) -> None:
    batch, place = submitted(farm, shop), tmp_path / "public"
    publish(batch, place)
    before = {path.name: path.read_bytes() for path in (place / "google-small").iterdir()}
    first = farm.batch_store.jobs(farm.owner, batch.id)[0]
    farm.batch_store.forget_clips(farm.owner, [first.clip_id])
    assert farm.batch_store.job(farm.owner, first.id).state is JobState.QUEUED
    found = publish(batch, place, "--prune")
    assert found["removed"] == 0
    assert {path.name: path.read_bytes() for path in (place / "google-small").iterdir()} == before


def test_what_cannot_be_made_this_time_is_not_taken_from_the_public(
    farm: Farm, shop: Path, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, place = submitted(farm, shop), tmp_path / "public"
    publish(batch, place)
    before = (place / "google-small" / "A.mp4").read_bytes()
    # Other files are wanted now, and the disk is full.
    (home / "brand.yaml").write_text(BRAND)

    def full(*_: object) -> None:
        raise EncodeError("no space left on device")

    monkeypatch.setattr(deliveries_module.DeliveryMaker, "deliver", full)
    words = ("--deliver", "google-small", "--public-url", PUBLIC, "--prune")
    answer = clipmill("publish", batch.id, str(place), *words)
    assert answer.exit_code == Exit.SOME_FAILED, answer.output
    assert (place / "google-small" / "A.mp4").read_bytes() == before


def test_show_says_what_a_feed_is_taken_for(shop: Path, tmp_path: Path, home: Path) -> None:
    answer = clipmill("feed", "show", str(shop))
    words = " ".join(answer.output.split())
    assert answer.exit_code == Exit.DONE, answer.output
    assert (
        "taken for a Google Merchant feed (RSS 2.0) in UTF-8: 3 products, id from g:id, image from g:image_link"
        in words
    )
    assert "3 of 3 rows can be read" in words
    table = tmp_path / "list.csv"
    table.write_text("Nr;Bild;Name\n1;a.png;Krug\n;;\n2;;Tasse\n")
    answer = clipmill("feed", "show", str(table))
    assert answer.exit_code == Exit.USAGE
    assert "--mapping" in answer.output
    (tmp_path / "m.yaml").write_text("columns: {id: Nr, image: Bild, title: Name}")
    answer = clipmill("feed", "show", str(table), "--mapping", str(tmp_path / "m.yaml"), "--json")
    assert answer.exit_code == Exit.SOME_FAILED
    told = json.loads(answer.stdout)
    assert told["feed"]["kind"] == "mapped"
    assert told["feed"]["columns"] == [["Nr", "id"], ["Bild", "image"], ["Name", "title"]]
    assert [row["id"] for row in told["problems"]] == ["2"]


@pytest.mark.parametrize("command", ["check", "forecast", "render"])
def test_commands_say_in_a_line_what_they_took_a_feed_for(shop: Path, tmp_path: Path, command: str) -> None:
    # Every picture is gone: nothing is rendered.
    for picture in shop.parent.glob("*.png"):
        picture.unlink()
    fleet = Path(__file__).parents[5] / "examples" / "fleet.yaml"
    more = {"render": ["--out", str(tmp_path / "out")], "forecast": ["--fleet", str(fleet)], "check": []}[command]
    answer = clipmill(command, str(shop), "--model", "camera", *more)
    assert answer.exit_code == Exit.SOME_FAILED, answer.output
    assert "taken for a Google Merchant feed (RSS 2.0)" in " ".join(answer.output.split())


def test_links_are_of_googles_profiles_in_googles_feeds_and_of_the_shops_in_others() -> None:
    there = ["reels", "google-square", "shop", "google"]
    assert chosen_profiles(there, is_google=True) == ("google-square", "google")
    assert chosen_profiles(there, is_google=False) == ("shop",)
    assert chosen_profiles(["reels", "tiktok"], is_google=True) == ("reels", "tiktok")


def test_pictures_by_url_that_fail_cost_their_products_alone(tmp_path: Path, home: Path) -> None:
    def shop(asked: Asked) -> None:
        asked.send(200 if asked.path == "/a.png" else 404, still_png())

    with host(shop) as server:
        at = f"http://127.0.0.1:{server.port}"
        table = tmp_path / "feed.tsv"
        lines = [f"A\t{at}/a.png", f"B\t{at}/gone.png", "C\tftp://shop.test/c.png", f"D\t{at}/a.png"]
        table.write_text("id\timage_link\n" + "\n".join(lines) + "\n")
        words = ["--model", "camera", "--json", "--allow-private-hosts", f"127.0.0.1:{server.port}"]
        answer = clipmill("check", str(table), *words)
    assert answer.exit_code == Exit.SOME_FAILED, answer.output
    told = json.loads(answer.stdout)
    assert told["taken_for"].startswith("taken for a Google Merchant feed (table) in UTF-8, tabs: 4 products")
    assert {row["name"]: bool(row["problems"]) for row in told["rows"]} == {
        "A": False,
        "B": True,
        "C": True,
        "D": False,
    }


def test_a_feed_is_not_rewritten_by_lint(shop: Path) -> None:
    answer = clipmill("lint", str(shop), "--model", "camera", "--fix")
    assert answer.exit_code == Exit.USAGE, answer.output
    assert "--template" in " ".join(answer.output.split())
    assert [path.name for path in shop.parent.glob("*fixed*")] == []
