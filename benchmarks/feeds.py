"""What it takes to read a product feed of many products, and to write it again with a link for each.

A feed of `--products` products in XML (Google Merchant, one in a thousand of them broken) and one as a table are made;
then each is read product by product, read as a manifest's rows by `read_catalog`, and written again. CPU time is that
of the process; memory is what no file stands behind, at most, over what it was before the first product.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from report import Aim, Report, parser

#: Aims: memory while products are read and written one by one, and CPU time of a thousand products.
MEMORY_AIM_MIB, CPU_AIM_S = 24.0, 0.15
_G = "http://base.google.com/ns/1.0"


def make(path: Path, products: int) -> None:
    """Write a feed of so many products, of the kind that its name says."""
    text = "A mug of stoneware, glazed by hand, that keeps tea warm. " * 8
    with path.open("w", encoding="utf-8") as file:
        if path.suffix == ".xml":
            file.write(f'<?xml version="1.0"?>\n<rss xmlns:g="{_G}"><channel>\n')
        else:
            file.write("id\ttitle\tdescription\timage_link\tprice\n")
        for number in range(products):
            image = f"https://shop.example/{number}.jpg"
            if path.suffix == ".xml":
                broken = "&" if number % 1000 == 7 else "and"
                file.write(
                    f"  <item>\n    <g:id>SKU-{number}</g:id>\n    <title>Mug {broken} saucer {number}</title>\n"
                    f"    <description>{text}</description>\n    <g:image_link>{image}</g:image_link>\n"
                    f"    <g:price>9.90 EUR</g:price>\n  </item>\n"
                )
            else:
                file.write(f"SKU-{number}\tMug and saucer {number}\t{text}\t{image}\t9.90 EUR\n")
        if path.suffix == ".xml":
            file.write("</channel></rss>\n")


def anonymous_mib() -> float:
    """Memory of this process that no file stands behind, in MiB."""
    return int(Path("/proc/self/status").read_text().partition("RssAnon:")[2].split()[0]) / 1024


def read(path: Path) -> tuple[int, float]:
    """Products that were read one by one, and the most memory meanwhile in MiB."""
    from cluster.feeds.model import FeedOptions
    from cluster.feeds.reading import open_feed

    most = 0.0
    with open_feed(path, FeedOptions()) as feed:
        assert feed is not None
        for product in feed.products():
            if product.number % 5000 == 0:
                most = max(most, anonymous_mib())
        return feed.count, most


def write(path: Path, products: int) -> tuple[int, float]:
    """Products that have a link in the feed written again, and the memory at its end in MiB, links among it."""
    from cluster.feeds.links import ClipLinks, LinkIndex, LinkRules
    from cluster.feeds.model import FeedOptions
    from cluster.feeds.writing import write_feed

    links = (
        ClipLinks(row_id=f"SKU-{n}", number=n + 1, urls=(f"https://cdn.example/google/SKU-{n}.mp4",))
        for n in range(products)
    )
    index = LinkIndex(links)
    written = write_feed(path, path.with_name(f"out{path.suffix}"), index, LinkRules(), FeedOptions())
    return written.linked, anonymous_mib()


def measured(work: Callable[[], tuple[int, float]]) -> tuple[int, float, float]:
    """(what was counted, CPU seconds, memory in MiB over what it was)."""
    before, began = anonymous_mib(), time.process_time()
    count, most = work()
    return count, time.process_time() - began, max(0.0, most - before)


def main() -> int:
    """Measure and report."""
    arguments = parser(__doc__)
    arguments.add_argument("--products", type=int, default=100_000)
    options = arguments.parse_args()
    products = options.products
    figures: dict[str, float | int] = {"products": products}
    aims = []
    with tempfile.TemporaryDirectory(prefix="clipmill-feeds-") as temporary:
        for kind in ("xml", "tsv"):
            path, small = Path(temporary) / f"feed.{kind}", Path(temporary) / f"small.{kind}"
            make(path, products)
            make(small, 10)
            read(small)  # what the readers themselves bring is there then
            figures[f"{kind}_mib"] = path.stat().st_size / 2**20
            count, cpu_s, most = measured(lambda path=path: read(path))  # type: ignore[misc]
            figures |= {f"{kind}_read": count, f"{kind}_read_cpu_s": cpu_s, f"{kind}_read_memory_mib": most}
            linked, write_s, _ = measured(lambda path=path: write(path, products))  # type: ignore[misc]
            figures |= {f"{kind}_linked": linked, f"{kind}_write_cpu_s": write_s}
            figures[f"{kind}_as_rows_s"] = as_rows(path)
            aims.append(Aim(name=f"{kind}: memory while it is read", value=most, at_most=MEMORY_AIM_MIB, unit="MiB"))
            cpu = cpu_s / products * 1000
            aims.append(Aim(name=f"{kind}: CPU time of 1,000 products", value=cpu, at_most=CPU_AIM_S, unit="s"))
    return Report(name="feeds", figures=figures, aims=aims).finish(options)


def as_rows(path: Path) -> float:
    """Seconds that `read_catalog` takes, by the wall: another process reads, this one makes rows."""
    from cluster.feeds.reading import read_catalog

    began = time.monotonic()
    manifest = read_catalog(path)
    assert manifest.good
    return time.monotonic() - began


if __name__ == "__main__":
    sys.exit(main())
