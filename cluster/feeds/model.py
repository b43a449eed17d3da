"""What a product feed is: its kind, its rows, and what was found out about it before it is used."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from cluster.feeds.mapping import FeedMapping
from pipeline.notes import Note
from pipeline.problems import Problem

#: Videos that Google takes for one product, and characters of each URL (support.google.com/merchants/answer/15216925,
#: read November 2026).
MAX_LINKS, MAX_LINK_CHARACTERS = 10, 2000
#: Pictures of one product that become rows of their own: Google takes one and ten additional ones.
MAX_IMAGES = 11


class FeedKind(StrEnum):
    """Whose form a feed has."""

    GOOGLE_RSS = "google-rss"
    GOOGLE_ATOM = "google-atom"
    GOOGLE_TABLE = "google-table"
    SHOPIFY = "shopify"
    WOOCOMMERCE = "woocommerce"
    MAPPED = "mapped"

    @property
    def words(self) -> str:
        """The kind in words."""
        return _WORDS[self]

    @property
    def is_google(self) -> bool:
        """Whether Google's rules for links hold."""
        return self in (FeedKind.GOOGLE_RSS, FeedKind.GOOGLE_ATOM, FeedKind.GOOGLE_TABLE)


_WORDS = {
    FeedKind.GOOGLE_RSS: "a Google Merchant feed (RSS 2.0)",
    FeedKind.GOOGLE_ATOM: "a Google Merchant feed (Atom)",
    FeedKind.GOOGLE_TABLE: "a Google Merchant feed (table)",
    FeedKind.SHOPIFY: "a product export of Shopify",
    FeedKind.WOOCOMMERCE: "a product export of WooCommerce",
    FeedKind.MAPPED: "a table read by a mapping",
}


class FeedImages(StrEnum):
    """Which of a product's pictures become clips."""

    #: The main one.
    MAIN = "main"
    #: Every one, each a row: `<id>` for the main one, `<id>-i2` and so on for the others.
    ALL = "all"


class FeedOptions(BaseModel):
    """How a feed is read; crosses to the process that reads it as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mapping: FeedMapping | None = None
    images: FeedImages = FeedImages.MAIN


class FeedFacts(BaseModel):
    """What a feed was taken for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: FeedKind
    #: Name of a Python codec.
    encoding: str
    #: What stands between cells; empty for XML.
    delimiter: str = ""
    #: Each column that became one of ours: (theirs, ours).
    columns: tuple[tuple[str, str], ...] = ()
    #: Columns that are carried along for templates and overlays, under their own names.
    carried: tuple[str, ...] = ()
    #: The column or element that links to clips go to.
    video_column: str = "video_link"
    #: Products that were read.
    products: int = 0
    #: What is noted of the whole.
    notes: tuple[Note, ...] = ()

    @property
    def words(self) -> str:
        """What it was taken for, in a line."""
        became = ", ".join(f"{ours} from {theirs}" for theirs, ours in self.columns if ours in ("id", "image"))
        form = self.encoding.upper().replace("_", "-") + (f", {_NAMES[self.delimiter]}" if self.delimiter else "")
        return f"taken for {self.kind.words} in {form}: {self.products} products, {became}"


_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


@dataclass(frozen=True, kw_only=True)
class FeedProduct:
    """One product of a feed, as it stands there."""

    #: Which product it is, from 1.
    number: int
    #: Physical line on which it begins, from 1.
    line: int
    #: The id as written; empty where there is none.
    id: str
    #: Pictures in the feed's order, the main one first.
    images: tuple[str, ...] = ()
    #: Whatever else the feed says, by column: ours first, then theirs.
    values: dict[str, str]
    problems: tuple[Problem, ...] = ()

    def ids(self, images: FeedImages) -> list[str]:
        """Ids of the rows that are made of it, one a picture; of a product without an id, none."""
        if not self.id:
            return []
        count = len(self.images) if images is FeedImages.ALL else 1
        return [self.id, *(f"{self.id}-i{number}" for number in range(2, min(count, MAX_IMAGES) + 1))]
