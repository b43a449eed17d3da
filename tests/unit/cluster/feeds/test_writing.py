"""The feed written again: what is expected is put together here, from the pieces that the feed is made of."""

from __future__ import annotations

import csv
import io
import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.feeds.links import ClipLinks, ExistingLinks, LinkIndex, LinkRules, PublicPlace
from cluster.feeds.mapping import FeedMapping
from cluster.feeds.model import FeedOptions
from cluster.feeds.writing import FeedWritten, cell_spans, write_feed

G = "http://base.google.com/ns/1.0"
URL = "https://cdn.test/clips/"


def linked(
    source: Path,
    links: dict[str, list[str]],
    *,
    rules: LinkRules | None = None,
    options: FeedOptions | None = None,
    column: str = "",
) -> tuple[bytes, FeedWritten]:
    """The feed with links by the ids of its products, whose places are told by those ids' order in the file."""
    target = source.with_name(f"out{source.suffix}")
    index = LinkIndex(ClipLinks(row_id=name, number=0, urls=tuple(urls)) for name, urls in links.items())
    written = write_feed(source, target, index, rules or LinkRules(), options or FeedOptions(), column)
    return target.read_bytes(), written


def file(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# ------------------------------------------------------------------------------------------------------------ tables

TEXTS = st.text(st.sampled_from("aZ äé€\U0001f375\"\n,;\t|'&<"), max_size=12)


@dataclass
class Table:
    """A table in pieces: records without line ends, and the line ends."""

    records: list[str]
    ends: list[str]
    delimiter: str
    #: How many cells each record has, and which product it is; None: none.
    cells: list[int]
    products: list[str | None]
    quoted: bool


@st.composite
def tables(draw: st.DrawFn) -> Table:
    delimiter = draw(st.sampled_from(",;\t|"))
    end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    quoted = draw(st.booleans())

    def cell(text: str) -> str:
        must = quoted or re.search(r'["\r\n]', text) or delimiter in text or text != text.strip()
        return '"' + text.replace('"', '""') + '"' if must or (text and draw(st.booleans())) else text

    header = ["id", "title", "image_link", "price"]
    found = Table([], [], delimiter, [], [], quoted)
    if draw(st.booleans()):
        found.records.append("")
        found.cells.append(0)
        found.products.append(None)
    found.records.append(delimiter.join('"' + name + '"' if quoted else name for name in header))
    found.cells.append(4)
    found.products.append("header")
    for number in range(draw(st.integers(0, 5))):
        kind = draw(st.sampled_from(["row", "row", "row", "short", "long", "blank"]))
        if kind == "blank":
            found.records.append("")
            found.cells.append(0)
            found.products.append(None)
            continue
        texts = [f"P{number}", draw(TEXTS), "a.png", draw(TEXTS)]
        texts = texts[:3] if kind == "short" else [*texts, ""] if kind == "long" else texts
        found.records.append(delimiter.join(map(cell, texts)))
        found.cells.append(len(texts))
        found.products.append(f"P{number}")
    found.ends = [end] * len(found.records)
    if draw(st.booleans()):
        found.ends[-1] = ""
    return found


def expected(table: Table, links: dict[str, list[str]]) -> str:
    """What the table is with a column more, by the rules of docs/feeds.md."""
    parts = []
    for record, end, count, product in zip(table.records, table.ends, table.cells, table.products, strict=True):
        if product is None:
            parts.append(record + end)
            continue
        value = "video_link" if product == "header" else ",".join(links.get(product, []))
        if table.quoted or table.delimiter in value:
            value = f'"{value}"'
        if count > 4:
            # The cell that is one too many is empty: it stays behind ours.
            empty = '""' if record.endswith('""') and table.quoted else ""
            head = record[: len(record) - len(empty) - 1]
            parts.append(head + table.delimiter + value + table.delimiter + empty + end)
        else:
            parts.append(record + table.delimiter * (5 - count) + value + end)
    return "".join(parts)


@settings(max_examples=40, deadline=None)
@given(tables(), st.sampled_from(["utf-8", "utf-8-sig", "utf-16-le", "utf-16-be"]), st.data())
def test_a_table_has_one_column_more_and_is_the_same_bytes_otherwise(
    tmp_path_factory: pytest.TempPathFactory, table: Table, encoding: str, data: st.DataObject
) -> None:
    names = [name for name in table.products if name not in (None, "header")]
    links = {
        name: [f"{URL}{name}-{i}.mp4" for i in range(data.draw(st.integers(1, 3)))]
        for name in names
        if data.draw(st.booleans())
    }
    mark = "" if encoding in ("utf-8", "utf-8-sig") else "\ufeff"
    plain = "".join(record + end for record, end in zip(table.records, table.ends, strict=True))
    source = file(tmp_path_factory.mktemp("feed"), "feed.csv", (mark + plain).encode(encoding))
    out, written = linked(source, links)
    assert out == (mark + expected(table, links)).encode(encoding)
    assert (written.products, written.linked) == (len(names), len(links))
    # Read by another reader: the cells that were there, and one more.
    rows = [row for row in csv.reader(io.StringIO(plain, newline=""), delimiter=table.delimiter) if any(row)]
    text = out.decode(encoding).removeprefix("\ufeff")
    again = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=table.delimiter) if any(row)]
    assert [[*row, "", ""][:4] for row in again] == [[*row, "", ""][:4] for row in rows]
    assert [row[4].split(",") for row in again[1:] if row[4]] == [links[name] for name in names if name in links]


def test_a_column_that_is_there_is_filled_where_it_stands(tmp_path: Path) -> None:
    content = (
        b"\xef\xbb\xbfid;video_link;image_link;title\r\n"
        b'A;;a.png;"Tea; mug"\r\n'
        b"B;https://other.test/b.mp4;b.png;Cup\r\n"
        b"C;https://cdn.test/clips/C-0.mp4;c.png;Jar\r\n"
        b"D;;d.png;Pot\r\n"
    )
    place = PublicPlace.of(URL, ["A-0.mp4", "B-0.mp4", "C-0.mp4"])
    links = {name: [f"{URL}{name}-0.mp4"] for name in "ABC"}
    out, _ = linked(file(tmp_path, "feed.csv", content), links, rules=LinkRules(is_ours=place.is_ours))
    assert out == content.replace(b"A;;", b"A;https://cdn.test/clips/A-0.mp4;").replace(
        b"https://other.test/b.mp4", b"https://other.test/b.mp4,https://cdn.test/clips/B-0.mp4"
    )


def test_damaged_lines_stay_as_they_are(tmp_path: Path) -> None:
    content = 'id,title,image_link\nA,"Tea "pot,a.png\nB,Mug,b.png\n'
    out, _ = linked(file(tmp_path, "feed.csv", content), {"B": [f"{URL}B.mp4"]})
    assert out.decode() == f'id,title,image_link,video_link\nA,"Tea "pot,a.png\nB,Mug,b.png,{URL}B.mp4\n'


def test_shopifys_product_has_its_link_on_its_first_line_and_takes_one(tmp_path: Path) -> None:
    content = (
        "Handle,Title,Image Src,Image Position\nmug,Mug,https://x.test/2.jpg,2\nmug,,https://x.test/1.jpg,1\n"
        "cup,Cup,https://x.test/c.jpg,1\n"
    )
    out, written = linked(file(tmp_path, "p.csv", content), {"mug": [f"{URL}a.mp4", f"{URL}b.mp4"]})
    assert out.decode() == (
        "Handle,Title,Image Src,Image Position,Video link (product.metafields.custom.video_link)\n"
        f"mug,Mug,https://x.test/2.jpg,2,{URL}a.mp4\nmug,,https://x.test/1.jpg,1,\ncup,Cup,https://x.test/c.jpg,1,\n"
    )
    assert written.full == 1


def test_woocommerce_and_mapped_tables_have_columns_of_their_own(tmp_path: Path) -> None:
    woo = "SKU,Type,Name,Images\nA,simple,Mug,https://x.test/a.jpg\n"
    out, _ = linked(file(tmp_path, "w.csv", woo), {"A": [f"{URL}A.mp4"]})
    assert out.decode() == f"SKU,Type,Name,Images,Meta: video_link\nA,simple,Mug,https://x.test/a.jpg,{URL}A.mp4\n"
    options = FeedOptions(mapping=FeedMapping(columns={"id": "Nr", "image": "Bild"}, video_column="Film"))
    table = file(tmp_path, "t.csv", "Nr,Bild\n1,a.png\n")
    assert linked(table, {"1": ["x.mp4"]}, options=options)[0] == b"Nr,Bild,Film\n1,a.png,x.mp4\n"
    assert linked(table, {"1": ["x.mp4"]}, options=options, column="Clip")[0] == b"Nr,Bild,Clip\n1,a.png,x.mp4\n"


def test_a_table_in_windows_1252_stays_in_it(tmp_path: Path) -> None:
    content = "id,title,image_link\nA,Größe,a.png\n".encode("cp1252")
    out, _ = linked(file(tmp_path, "feed.csv", content), {"A": ["x.mp4"]})
    assert out == "id,title,image_link,video_link\nA,Größe,a.png,x.mp4\n".encode("cp1252")


@given(st.lists(st.text(st.sampled_from('ab ",\n'), max_size=8), min_size=1, max_size=5))
def test_spans_are_where_the_csv_module_sees_cells(cells: list[str]) -> None:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(cells)
    raw = out.getvalue()
    found = [raw[begin:end] for begin, end in cell_spans(raw, ",")]
    assert [next(csv.reader([one, ""], skipinitialspace=True), [""]) or [""] for one in found] == [
        [cell] if cell == cell.lstrip(" ") or '"' in one else [cell.lstrip(" ")]
        for cell, one in zip(cells, found, strict=True)
    ]


# --------------------------------------------------------------------------------------------------------------- XML


@dataclass
class Document:
    """A feed in XML in pieces."""

    head: str
    #: Of each item: what stands before the place of a link, the indent of its last element, and what stands behind.
    items: list[tuple[str, str, str]]
    tail: str
    prefix: str
    declared: bool


@st.composite
def documents(draw: st.DrawFn) -> Document:
    end = draw(st.sampled_from(["\n", "\r\n", ""]))
    step = draw(st.sampled_from(["  ", "\t", ""])) if end else ""
    declared = draw(st.booleans())
    prefix = draw(st.sampled_from(["g", "shop"])) if declared else "g"
    atom = draw(st.booleans())
    name, outer = ("entry", "feed") if atom else ("item", "rss")
    space = f' xmlns:{prefix}="{G}"' if declared else ""
    head = f"<{outer}{space}>" + ("" if atom else f"{end}<channel>")
    head += draw(st.sampled_from(["", "<!-- <item> of a comment -->", "<title>Tea &amp; more</title>"])) + end
    children = [
        "<title><![CDATA[a <b> ]]]]><![CDATA[> c]]></title>",
        f"<{prefix}:brand>Caf&#233; &amp; Söhne</{prefix}:brand>",
        f"<{prefix}:size/>",
        f"<{prefix}:shipping><{prefix}:price>1</{prefix}:price></{prefix}:shipping>",
        f"<{prefix}:price unit='x>y'>9.90</{prefix}:price>",
        "<link href='https://x.test/?a=1&amp;b=2' />",
        f"<{prefix}:video_link>https://other.test/v.mp4</{prefix}:video_link>",
    ]
    items = []
    for number in range(draw(st.integers(1, 4))):
        chosen = [f"<{prefix}:id>P{number}</{prefix}:id>", *draw(st.lists(st.sampled_from(children), max_size=4))]
        indent = end + step * 2
        body = "".join(indent + child for child in draw(st.permutations(chosen)))
        body += draw(st.sampled_from(["", indent + "<!-- last -->", indent + "<?pi x?>"]))
        items.append((f"{step}<{name}>{body}", indent, f"{end}{step}</{name}>{end}"))
    tail = ("" if atom else "</channel>") + f"</{outer}>" + draw(st.sampled_from(["", end, "<!-- end -->"]))
    return Document(head, items, tail, prefix, declared)


@settings(max_examples=40, deadline=None)
@given(documents(), st.sampled_from(["utf-8", "utf-8-sig", "iso-8859-1", "utf-16"]), st.data())
def test_an_item_has_elements_more_and_is_the_same_bytes_otherwise(
    tmp_path_factory: pytest.TempPathFactory, document: Document, encoding: str, data: st.DataObject
) -> None:
    links = {
        f"P{number}": [f"{URL}P{number}-{i}.mp4" for i in range(data.draw(st.integers(1, 3)))]
        for number in range(len(document.items))
        if data.draw(st.booleans())
    }
    declaration = f"<?xml version='1.0' encoding='{encoding.removesuffix('-sig')}'?>"
    space = "" if document.declared else f' xmlns:g="{G}"'

    def whole(with_links: bool) -> bytes:
        text = declaration + document.head
        for number, (before, indent, behind) in enumerate(document.items):
            urls = links.get(f"P{number}", []) if with_links else []
            name = f"{document.prefix}:video_link"
            text += before + "".join(f"{indent}<{name}{space}>{url}</{name}>" for url in urls) + behind
        return (text + document.tail).encode(encoding)

    source = file(tmp_path_factory.mktemp("feed"), "feed.xml", whole(with_links=False))
    out, written = linked(source, links)
    assert out == whole(with_links=True)
    assert (written.products, written.linked) == (len(document.items), len(links))
    # What was added, taken away by its form alone, leaves the feed as it was.
    added = rf'[ \t\r\n]*<{document.prefix}:video_link(?: xmlns:g="[^"]*")?>{re.escape(URL)}[^<]*</[a-z]+:video_link>'
    assert re.sub(added, "", out.decode(encoding)).encode(encoding) == source.read_bytes()
    if document.declared:
        root = ET.fromstring(out)
        found = [
            [link.text for link in one.iter(f"{{{G}}}video_link") if (link.text or "").startswith(URL)]
            for one in root.iter()
            if one.tag in ("item", "entry")
        ]
        assert found == [links.get(f"P{number}", []) for number in range(len(document.items))]


def xml(*items: str) -> str:
    inside = "".join(f"\n  <item>{one}\n  </item>" for one in items)
    return f'<rss xmlns:g="{G}"><channel>{inside}\n</channel></rss>'


OURS, OTHER = f"{URL}A.mp4", "https://other.test/a.mp4"


def link(url: str) -> str:
    return f"\n    <g:video_link>{url}</g:video_link>"


@pytest.mark.parametrize(
    ("existing", "there", "then"),
    [
        (ExistingLinks.AUTO, [f"{URL}old.mp4", OTHER], [OTHER, OURS]),
        (ExistingLinks.AUTO, [OURS, OTHER], [OURS, OTHER]),
        (ExistingLinks.KEEP, [OTHER], [OTHER]),
        (ExistingLinks.KEEP, [], [OURS]),
        (ExistingLinks.REPLACE, [OTHER, f"{URL}old.mp4"], [OURS]),
        (ExistingLinks.APPEND, [f"{URL}old.mp4"], [f"{URL}old.mp4", OURS]),
        (ExistingLinks.AUTO, [f"{OTHER}?{i}" for i in range(10)], [f"{OTHER}?{i}" for i in range(10)]),
        # Beside ours, in the same folder, and not ours.
        (ExistingLinks.AUTO, [f"{URL}theirs.mp4"], [f"{URL}theirs.mp4", OURS]),
    ],
)
def test_links_that_are_there_are_kept_or_replaced_as_asked(
    tmp_path: Path, existing: ExistingLinks, there: list[str], then: list[str]
) -> None:
    head = "\n    <g:id>A</g:id>"
    place = PublicPlace.of(URL, ["A.mp4", "old.mp4"])
    rules = LinkRules(existing=existing, is_ours=place.is_ours)
    source = file(tmp_path, "feed.xml", xml(head + "".join(map(link, there)), "\n    <g:id>B</g:id>" + link(OTHER)))
    out, written = linked(source, {"A": [OURS]}, rules=rules)
    assert out.decode() == xml(head + "".join(map(link, then)), "\n    <g:id>B</g:id>" + link(OTHER))
    assert written.full == (0 if OURS in then else 1)
    again, _ = linked(file(tmp_path, "again.xml", out), {"A": [OURS]}, rules=rules)
    assert again == out, "the same again changes nothing"


def test_a_url_is_written_as_xml_has_it_and_a_faulty_item_is_left_alone(tmp_path: Path) -> None:
    content = xml("<g:id>A</g:id>", "<g:id>B</g:id> & ", "<g:id>C</g:id>")
    out, _ = linked(file(tmp_path, "feed.xml", content), {name: ["https://x.test/?a=1&b=2"] for name in "ABC"})
    added = "<g:video_link>https://x.test/?a=1&amp;b=2</g:video_link>"
    assert out.decode() == xml(f"<g:id>A</g:id>{added}", "<g:id>B</g:id> & ", f"<g:id>C</g:id>{added}")


def test_each_row_of_a_batch_is_given_to_one_product(tmp_path: Path) -> None:
    rows = [
        ClipLinks(row_id="A-p1-c2", number=1, urls=("1.mp4",)),
        ClipLinks(row_id="A-i2", number=1, urls=("2.mp4",)),
        ClipLinks(row_id="A-c1x", number=1, urls=("no.mp4",)),
        ClipLinks(row_id="B", number=2, urls=("3.mp4",)),
    ]
    # B stands elsewhere by now, and is there twice.
    source = file(tmp_path, "feed.csv", "id,image_link\nA,a.png\nNEW,n.png\nB,b.png\nB,c.png\n")
    write_feed(source, tmp_path / "out.csv", LinkIndex(rows), LinkRules(), FeedOptions())
    assert (tmp_path / "out.csv").read_text() == (
        'id,image_link,video_link\nA,a.png,"1.mp4,2.mp4"\nNEW,n.png,\nB,b.png,3.mp4\nB,c.png,\n'
    )


@pytest.mark.parametrize(
    "url", ["cdn.test/x", "ftp://cdn.test", "https://cdn.test/ä", "https://cdn.test/?a", "https://"]
)
def test_a_public_url_that_google_would_not_take_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="--public-url"):
        PublicPlace.of(url)


def test_a_link_is_of_plain_ascii(tmp_path: Path) -> None:
    assert PublicPlace.of("https://cdn.test/x/").link("Größe/a b.mp4") == "https://cdn.test/x/Gr%C3%B6%C3%9Fe/a%20b.mp4"
    with pytest.raises(ValueError, match="characters"):
        PublicPlace.of("https://cdn.test").link("a" * 2000)
