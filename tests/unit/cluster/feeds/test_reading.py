"""Feeds as shops and marketplaces write them, whole and damaged, read into a manifest's rows."""

from __future__ import annotations

import csv
import io
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.catalog.advice.templates import PromptTemplate
from cluster.catalog.manifest import BadRow, Row
from cluster.catalog.tables import ManifestError
from cluster.feeds.mapping import read_mapping
from cluster.feeds.model import FeedFacts, FeedImages, FeedKind, FeedOptions
from cluster.feeds.reading import DEFAULT_MOTION, open_feed, read_catalog, read_feed, records_of
from pipeline.problems import BadInputError

G = "http://base.google.com/ns/1.0"


def rss(*items: str, head: str = "<?xml version='1.0' encoding='utf-8'?>", more: str = "") -> str:
    """A feed in RSS with these items."""
    inside = "\n".join(f"<item>{item}</item>" for item in items)
    return f'{head}<rss version="2.0" xmlns:g="{G}"{more}><channel><title>Shop</title>\n{inside}\n</channel></rss>'


def item(name: str, **attributes: str) -> str:
    """What stands in an item: an id, a picture, and attributes."""
    texts = {"id": name, "image_link": f"https://shop.test/{name}.jpg", **attributes}
    return "".join(f"<g:{key}>{text}</g:{key}>" for key, text in texts.items())


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def rows_of(path: Path, options: FeedOptions | None = None) -> tuple[list[Row], list[BadRow], FeedFacts]:
    """Rows that can be rendered, rows that cannot, and what the file was taken for."""
    found = read_feed(path, options)
    assert found is not None, "it is taken for no feed"
    manifest = read_catalog(path, options)
    return manifest.good, manifest.bad, found.facts


# ------------------------------------------------------------------------------------------------------ Google, XML


def test_a_merchant_feed_becomes_rows_and_its_attributes_free_columns(tmp_path: Path) -> None:
    content = rss(
        item("A-1", title="<![CDATA[Tea & mug]]>", brand="Caf&#233;", price="9.90 EUR"),
        "<title>Plain</title><link>https://shop.test/b</link>"
        + item("B-2", additional_image_link="https://shop.test/b2.jpg", custom_label_0="summer"),
    )
    rows, bad, facts = rows_of(written(tmp_path, "feed.xml", content))
    assert (facts.kind, facts.encoding, facts.products, bad) == (FeedKind.GOOGLE_RSS, "utf-8", 2, [])
    assert [(row.id, row.image) for row in rows] == [
        ("A-1", "https://shop.test/A-1.jpg"),
        ("B-2", "https://shop.test/B-2.jpg"),
    ]
    assert {name: rows[0].extra[name] for name in ("title", "brand", "price")} == {
        "title": "Tea & mug",
        "brand": "Café",
        "price": "9.90 EUR",
    }
    assert rows[1].extra["custom_label_0"] == "summer"
    assert rows[1].extra["title"] == "Plain"
    assert [row.prompt for row in rows] == [DEFAULT_MOTION] * 2
    assert {note.code for row in rows for note in row.notes} == {"prompt_default"}


def test_an_atom_feed_is_read_by_its_entries(tmp_path: Path) -> None:
    content = (
        f'<feed xmlns="http://www.w3.org/2005/Atom" xmlns:shop="{G}"><title>x</title>'
        '<entry><title>Mug</title><link href="https://shop.test/m"/><shop:id>M</shop:id>'
        "<shop:image_link>https://shop.test/m.jpg</shop:image_link></entry></feed>"
    )
    [row], bad, facts = rows_of(written(tmp_path, "feed.atom", content))
    assert (facts.kind, bad) == (FeedKind.GOOGLE_ATOM, [])
    assert (row.id, row.image, row.extra["title"]) == ("M", "https://shop.test/m.jpg", "Mug")
    assert row.extra["link"] == "https://shop.test/m"


LETTERS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Cn", "Co")), min_size=1, max_size=20)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(LETTERS, LETTERS), min_size=1, max_size=5), st.sampled_from(["utf-8", "utf-16", "utf-8-sig"]))
def test_what_is_read_is_what_another_reader_finds(
    tmp_path_factory: pytest.TempPathFactory, texts: list[tuple[str, str]], encoding: str
) -> None:
    root = ET.Element("rss")
    channel = ET.SubElement(root, "channel")
    for number, (title, brand) in enumerate(texts):
        one = ET.SubElement(channel, "item")
        for name, text in (("id", f"N{number}"), ("image_link", "a.png"), ("title", title), ("brand", brand)):
            ET.SubElement(one, f"{{{G}}}{name}").text = text
    ET.register_namespace("g", G)
    plain = ET.tostring(root, encoding="unicode")
    path = written(tmp_path_factory.mktemp("feed"), "feed.xml", plain.encode(encoding))
    with open_feed(path, FeedOptions()) as feed:
        assert feed is not None
        found = [(one.id, one.values.get("title", ""), one.values.get("brand", "")) for one in feed.products()]
    again = [
        tuple((one.findtext(f"{{{G}}}{name}") or "").strip() for name in ("id", "title", "brand"))
        for one in ET.fromstring(plain.encode()).iter("item")
    ]
    assert found == again


BOMBS = {
    "billion laughs": '<!DOCTYPE rss [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">'
    + "".join(f'<!ENTITY {x} "{f"&{y};" * 10}">' for x, y in zip("cdefghij", "bcdefghi", strict=True))
    + "]>",
    "quadratic": f'<!DOCTYPE rss [<!ENTITY a "{"x" * 50_000}">]>',
    "external": '<!DOCTYPE rss [<!ENTITY a SYSTEM "file:///etc/hostname">]>',
    "parameter": '<!DOCTYPE rss [<!ENTITY % p SYSTEM "http://127.0.0.1:9/x.dtd"> %p;]>',
}


@pytest.mark.parametrize("kind", BOMBS)
def test_entities_are_refused_as_such(tmp_path: Path, kind: str) -> None:
    content = rss(item("A", title="&a;" * 10), head=f"<?xml version='1.0'?>{BOMBS[kind]}")
    with pytest.raises(ManifestError, match="entities"):
        read_catalog(written(tmp_path, "feed.xml", content))


DAMAGE = {
    "a bare ampersand": (item("B", title="Tea & mug"), "not well-formed"),
    "an entity of HTML": (item("B", title="Tea&nbsp;mug"), "HTML"),
    "a tag that is not closed": ("<g:id>B</g:id><g:title>never closed", "mismatched tag"),
    "an item that is not closed": (item("B") + "<item>" + item("B2"), "not closed before the next"),
    "a section that is not closed": (item("B", title="<![CDATA[open"), "unclosed CDATA"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_fault_costs_its_own_item_and_no_other(tmp_path: Path, kind: str) -> None:
    inside, why = DAMAGE[kind]
    rows, bad, _ = rows_of(written(tmp_path, "feed.xml", rss(item("A"), inside, item("C"), item("D"))))
    kept = [row.id for row in rows]
    assert [name for name in kept if name in "ACD"] == ["A", "C", "D"]
    assert why in bad[0].problems[0].message
    assert bad[0].line == 3
    assert bad[0].number == 2


def test_bytes_of_another_encoding_cost_their_item_alone(tmp_path: Path) -> None:
    content = rss(item("A"), item("B", title="Caf?"), item("C", title="Café"))
    path = written(tmp_path, "feed.xml", content.encode().replace(b"Caf?", b"Caf\xe9"))
    rows, [bad], _ = rows_of(path)
    assert [row.id for row in rows] == ["A", "C"]
    assert "0xE9" in bad.problems[0].message


def test_a_feed_that_breaks_off_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    whole = rss(*(item(f"N{number}") for number in range(9)))
    path = written(tmp_path, "feed.xml", whole[: whole.index("N7") + 40])
    rows, bad, _ = rows_of(path)
    assert [row.id for row in rows] == [f"N{number}" for number in range(7)]
    assert len(bad) == 1
    path = written(tmp_path, "other.xml", whole.replace("</channel></rss>", ""))
    rows, bad, facts = rows_of(path)
    assert (len(rows), bad) == (9, [])
    assert [note.code for note in facts.notes] == ["feed_damaged"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("<html><body/></html>", "which is no feed"),
        ("nothing of the kind", "it is not XML"),
        (" \n", "it is empty"),
        ("<?xml version='1.0' encoding='klingon'?><rss/>", "klingon"),
        (rss(), "no products"),
    ],
)
def test_what_is_no_feed_is_told_as_a_whole(tmp_path: Path, content: str, why: str) -> None:
    with pytest.raises(ManifestError, match=why):
        read_catalog(written(tmp_path, "feed.xml", content))


def test_a_feed_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no such file"):
        read_catalog(tmp_path / "gone.xml")


def test_an_encoding_that_is_declared_is_read(tmp_path: Path) -> None:
    content = rss(item("A", title="Größe"), head="<?xml version='1.0' encoding='windows-1252'?>")
    [row], _, facts = rows_of(written(tmp_path, "feed.xml", content.encode("cp1252")))
    assert (row.extra["title"], facts.encoding) == ("Größe", "cp1252")


# ------------------------------------------------------------------------------------------------------------ tables

GOOGLE = "id\ttitle\timage link\tg:price\tadditional_image_link\tsize\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_googles_table_is_read_in_whatever_encoding(tmp_path: Path, encoding: str) -> None:
    content = (
        GOOGLE
        + 'A\tTeekännchen 19" hoch\tttps://x.test/a.jpg\t9.90 EUR\thttps://x.test/2.jpg,https://x.test/3.jpg\tM\n'
    )
    [row], bad, facts = rows_of(written(tmp_path, "feed.txt", content.encode(encoding)))
    assert (facts.kind, facts.delimiter, bad) == (FeedKind.GOOGLE_TABLE, "\t", [])
    assert (row.id, row.extra["title"], row.extra["price"], row.extra["size"]) == (
        "A",
        'Teekännchen 19" hoch',
        "9.90 EUR",
        "M",
    )
    assert ("encoding_guessed" in {note.code for note in row.notes}) is (encoding == "cp1252")


def test_further_pictures_are_rows_where_they_are_asked_for(tmp_path: Path) -> None:
    content = GOOGLE + "A\tMug\ta.jpg\t1\tb.jpg, c.jpg,a.jpg\t\nB\tCup\td.jpg\t1\t\t\n"
    path = written(tmp_path, "feed.tsv", content)
    rows, _, _ = rows_of(path, FeedOptions(images=FeedImages.ALL))
    assert [(row.id, row.image, row.number) for row in rows] == [
        ("A", "a.jpg", 1),
        ("A-i2", "b.jpg", 1),
        ("A-i3", "c.jpg", 1),
        ("B", "d.jpg", 2),
    ]
    assert [row.id for row in rows_of(path)[0]] == ["A", "B"]


SHOPIFY = (
    "Handle,Title,Body (HTML),Vendor,Type,Option1 Name,Option1 Value,"
    "Variant SKU,Variant Price,Image Src,Image Position\n"
    'mug,Mug,"<p>Two\nlines</p>",Daybird,Kitchen,Size,S,MUG-S,9.90,https://x.test/side.jpg,2\n'
    "mug,,,,,,M,MUG-M,11.90,https://x.test/front.jpg,1\n"
    "mug,,,,,,,,,https://x.test/back.jpg,3\n"
    "cup,Cup,,Quester,Kitchen,Title,Default Title,CUP,5.00,https://x.test/cup.jpg,1\n"
    "bowl,Bowl,,Quester,Kitchen,Title,Default Title,BOWL,7.00,,\n"
)


def test_shopifys_lines_of_one_handle_are_one_product_with_the_picture_of_position_one(tmp_path: Path) -> None:
    path = written(tmp_path, "products_export.csv", SHOPIFY)
    rows, [bad], facts = rows_of(path)
    assert facts.kind is FeedKind.SHOPIFY
    assert [(row.id, row.image, row.line) for row in rows] == [
        ("mug", "https://x.test/front.jpg", 2),
        ("cup", "https://x.test/cup.jpg", 6),
    ]
    assert {name: rows[0].extra[name] for name in ("title", "brand", "price", "sku")} == {
        "title": "Mug",
        "brand": "Daybird",
        "price": "9.90",
        "sku": "MUG-S",
    }
    assert (bad.id, bad.problems[0].field) == ("bowl", "image")
    every, _, _ = rows_of(path, FeedOptions(images=FeedImages.ALL))
    assert [row.image[-9:] for row in every if row.number == 1] == ["front.jpg", "/side.jpg", "/back.jpg"]


def test_shopifys_newer_names_are_known(tmp_path: Path) -> None:
    content = "Title,URL handle,Product image URL,Image position,Price\nMug,mug,https://x.test/m.jpg,1,9.90\n"
    [row], _, facts = rows_of(written(tmp_path, "p.csv", content))
    assert (facts.kind, row.id, row.extra["price"]) == (FeedKind.SHOPIFY, "mug", "9.90")


WOO = (
    "ID,Type,SKU,Name,Published,Regular price,Sale price,Categories,Images,Parent\n"
    '11,variable,TEE,Tee,1,20,,"Clothes > Tees","https://x.test/1.jpg, https://x.test/2.jpg",\n'
    "12,variation,TEE-S,Tee S,1,20,18,,,TEE\n"
    "13,variation,TEE-L,Tee L,1,20,,,https://x.test/l.jpg,TEE\n"
    "14,simple,,Hat,1,15,12,,https://x.test/hat.jpg,\n"
)


def test_woocommerces_pictures_share_a_cell_and_variations_without_one_are_their_parents(tmp_path: Path) -> None:
    path = written(tmp_path, "wc-product-export.csv", WOO)
    rows, bad, facts = rows_of(path)
    assert (facts.kind, bad) == (FeedKind.WOOCOMMERCE, [])
    assert [(row.id, row.image) for row in rows] == [
        ("TEE", "https://x.test/1.jpg"),
        ("TEE-L", "https://x.test/l.jpg"),
        ("14", "https://x.test/hat.jpg"),
    ]
    assert [row.extra["price"] for row in rows] == ["20", "20", "12"]


def test_a_mapping_says_what_columns_mean(tmp_path: Path) -> None:
    mapping = written(
        tmp_path,
        "map.yaml",
        "columns: {id: Artikelnummer, image: Bild, title: Bezeichnung, prompt: Bewegung}\n"
        "defaults: {brand: Acme, prompt: pan left}\nimage_separator: '|'\nvideo_column: Video\n",
    )
    table = "Artikelnummer;Bezeichnung;Bild;Bewegung;Model\n1;Krug;a.png|b.png;;X9\n2;Tasse;c.png;tilt up;\n"
    options = FeedOptions(mapping=read_mapping(mapping))
    rows, bad, facts = rows_of(written(tmp_path, "liste.csv", table), options)
    assert (facts.kind, facts.video_column, bad) == (FeedKind.MAPPED, "Video", [])
    assert [(row.id, row.image, row.prompt, row.extra["brand"]) for row in rows] == [
        ("1", "a.png", "pan left", "Acme"),
        ("2", "c.png", "tilt up", "Acme"),
    ]
    assert rows[0].model is None
    assert rows[0].extra["feed_Model"] == "X9"
    with pytest.raises(ManifestError, match="'Artikelnummer' and 'Bild'"):
        read_catalog(written(tmp_path, "other.csv", "a,b\n1,2\n"), options)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("columns: {id: A}", "which column is image"),
        ("columns: [", "is no YAML"),
        ("colums: {}", "colums"),
        ("[]", "docs/feeds.md"),
    ],
)
def test_a_mapping_that_is_none_is_refused_with_what_is_wrong(tmp_path: Path, content: str, why: str) -> None:
    with pytest.raises(BadInputError, match=why):
        read_mapping(written(tmp_path, "map.yaml", content))


def test_a_table_with_our_own_columns_is_a_manifest(tmp_path: Path) -> None:
    path = written(tmp_path, "catalog.csv", "id,image,image_link,prompt\nA,a.png,x,pan\n")
    assert read_feed(path) is None
    assert read_catalog(path).taken_for == ""


def test_prompts_of_a_feed_and_of_the_command_go_before_the_default(tmp_path: Path) -> None:
    path = written(tmp_path, "feed.tsv", "id\timage_link\ttitle\tprompt\nA\ta.jpg\tMug\torbit left\nB\tb.jpg\tCup\t\n")
    assert [row.prompt for row in read_catalog(path).good] == ["orbit left", DEFAULT_MOTION]
    assert [row.prompt for row in read_catalog(path, prompt="zoom in").good] == ["orbit left", "zoom in"]
    template = PromptTemplate(prompt="slow pan over {title}")
    rows = read_catalog(path, template=template).good
    assert [row.prompt for row in rows] == ["orbit left", "slow pan over Cup"]
    assert [note.code for row in rows for note in row.notes] == []


def test_broken_lines_doubled_ids_and_missing_pictures_cost_their_rows_alone(tmp_path: Path) -> None:
    lines = [
        "id,title,image_link,price",
        "A,Mug,a.jpg,1",
        "D,Bowl,d.jpg,5,extra",
        'B,"Tea "pot,b.jpg,2',
        "C,Cup,,3",
        "A,Again,x.jpg,4",
        "",
        "E,Jar,e.jpg,6",
    ]
    content = "\n".join(lines).encode() + b"\nF,Caf\xe9 \xc3\xa9,f.jpg,7\nG,Last,g.jpg,8\n"
    rows, bad, facts = rows_of(written(tmp_path, "feed.csv", content))
    assert [row.id for row in rows] == ["A", "E", "G"]
    assert [(one.line, one.problems[0].field) for one in bad] == [
        (3, "row"),
        (4, "row"),
        (5, "image"),
        (6, "id"),
        (9, "title"),
    ]
    assert "row 1" in bad[3].problems[0].message
    assert facts.products == 8


# ----------------------------------------------------------------------------------------------------------- a lot


def anonymous_bytes() -> int:
    """Memory of this process that no file stands behind."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


def xml_of(count: int) -> Iterable[str]:
    yield f'<?xml version="1.0"?><rss xmlns:g="{G}"><channel>\n'
    for number in range(count):
        broken = " & " if number % 1000 == 7 else " "
        yield f"<item>{item(f'SKU-{number}', title=f'Mug{broken}{number}', price='9.90 EUR')}</item>\n"
    yield "</channel></rss>"


def table_of(count: int) -> Iterable[str]:
    out = io.StringIO()
    writer = csv.writer(out, delimiter="\t", lineterminator="\n")
    writer.writerow(["id", "title", "image_link", "price"])
    for number in range(count):
        writer.writerow([f"SKU-{number}", f"Mug {number}", f"https://x.test/{number}.jpg", "9.90 EUR"])
    yield out.getvalue()


@pytest.mark.parametrize(("name", "make", "bad"), [("feed.xml", xml_of, 100), ("feed.tsv", table_of, 0)])
def test_a_hundred_thousand_products_are_read_one_by_one(tmp_path: Path, name: str, make, bad: int) -> None:
    path = tmp_path / name
    with path.open("w") as file:
        file.writelines(make(100_000))
    # What the reader itself brings is there by then.
    with open_feed(path, FeedOptions()) as feed:
        assert feed is not None
        next(feed.products())
    before, most, faults, last = anonymous_bytes(), 0, 0, ""
    with open_feed(path, FeedOptions()) as feed:
        assert feed is not None
        for product in feed.products():
            faults += bool(product.problems)
            last = product.id
            if product.number % 20_000 == 0:
                most = max(most, anonymous_bytes())
        assert feed.count == 100_000
    assert (last, faults) == ("SKU-99999", bad)
    assert most - before < 24 * 2**20


def test_one_product_too_many_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.feeds.reading.MAX_ROWS", 3)
    path = written(tmp_path, "feed.xml", rss(*(item(f"N{number}") for number in range(4))))
    answer = records_of(f'{{"path": "{path}", "options": {{}}}}'.encode())
    assert "more than 3 products" in answer["fault"][0]
