"""Google's feeds in XML: RSS 2.0 and Atom, with attributes of the name space `g`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster.feeds.kinds import GOOGLE_FORM, OWN, carried_as, text_carried
from cluster.feeds.model import FeedFacts, FeedKind, FeedProduct
from cluster.feeds.text import Buffer
from cluster.feeds.xml_items import XmlItem, XmlItems
from pipeline.notes import Note
from pipeline.problems import Problem


@dataclass(frozen=True, kw_only=True)
class XmlGroup:
    """A product and its item."""

    product: FeedProduct
    item: XmlItem


class XmlFeed:
    """A feed in XML. Reading it keeps no more than a few products in memory."""

    def __init__(self, path: Path, data: Buffer) -> None:
        """Raises `ManifestError` where the document's encoding is not known."""
        self.items = XmlItems(path, data)
        #: Names that were met, of ours and of those that are carried along.
        self._met: dict[str, str] = {}
        self._carried: dict[str, None] = {}

    def groups(self) -> Iterator[XmlGroup]:
        """Everything that is a product, in order. Raises `ManifestError` where the document is refused."""
        for number, item in enumerate(self.items, 1):
            yield XmlGroup(product=self._product(number, item), item=item)

    def facts(self, products: int) -> FeedFacts:
        """What the feed was taken for, once all of it was read."""
        atom = self.items.root.rpartition(":")[2] == "feed"
        fault = self.items.fault
        message = f"the feed ends before its end, or goes on with what is none: {fault}"
        return FeedFacts(
            kind=FeedKind.GOOGLE_ATOM if atom else FeedKind.GOOGLE_RSS,
            encoding=self.items.codec,
            columns=tuple((f"g:{theirs}", ours) for ours, theirs in self._met.items()),
            carried=tuple(self._carried),
            video_column="g:video_link",
            products=products,
            notes=(Note(code="feed_damaged", message=message),) if fault else (),
        )

    def _product(self, number: int, item: XmlItem) -> FeedProduct:
        if item.fault:
            message = f"the item on line {item.line} is not XML ({item.fault})"
            problem = Problem(field="row", message=message, remedy="Correct it in the feed: the others are read.")
            # Its id is known where that stood before the fault.
            known = item.google.get("id", item.plain.get("id", [""]))[0]
            return FeedProduct(number=number, line=item.line, id=known, values={}, problems=(problem,))
        texts = {**item.plain, **item.google}
        values: dict[str, str] = {}
        for ours, names in GOOGLE_FORM.columns.items():
            for theirs in names:
                if theirs in texts and ours not in values:
                    values[ours] = texts[theirs][0]
                    self._met.setdefault(ours, theirs)
        images = tuple(
            dict.fromkeys(
                [
                    *texts.get("image_link", ()),
                    *(text for name in GOOGLE_FORM.more_images for text in texts.get(name, ())),
                ]
            )
        )
        name = values.pop("id", "")
        values.pop("image", None)
        for theirs, found in texts.items():
            column = theirs if theirs in OWN else carried_as(theirs)
            if theirs not in ("id", "image_link", "video_link") and column not in values:
                values[column] = found[0] if theirs in OWN else text_carried(", ".join(found))
                self._carried.setdefault(column)
        return FeedProduct(number=number, line=item.line, id=name, images=images, values=values)
