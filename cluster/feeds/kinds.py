"""Kinds of tables that shops export, told by their header, and what their columns are called.

Sources, read in November 2026: support.google.com/merchants/answer/7052112 (Google); help.shopify.com, "Using CSV files
to import and export products" (Shopify, names of before and after 2025); WooCommerce's own product exporter, with
its columns in English.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from cluster.catalog.cells import COLUMNS
from cluster.catalog.columns import column_of, letters_of
from cluster.feeds.mapping import FeedMapping
from cluster.feeds.model import MAX_LINKS, FeedKind

#: Columns of ours that a feed may have under our own names.
OWN = ("prompt", "negative_prompt", "deliver")
#: Characters of a text that is carried along: enough for a caption, and no page of HTML.
MAX_CARRIED_CHARACTERS = 1000


@dataclass(frozen=True, kw_only=True)
class TableForm:
    """What the columns of one kind of table are called."""

    kind: FeedKind
    #: Columns of theirs by our name, the one that goes before others first; a row has the first that is not empty.
    columns: dict[str, tuple[str, ...]]
    #: Columns of further pictures.
    more_images: tuple[str, ...] = ()
    #: What stands between pictures in one cell; empty: a cell is one picture.
    separator: str = ""
    #: Name of the column of a picture's place among those of its product.
    position: str = ""
    #: Whether lines that follow each other with one id are one product.
    grouped: bool = False
    video_column: str = "video_link"
    #: Links that the column takes.
    most_links: int = MAX_LINKS
    defaults: dict[str, str] = field(default_factory=dict)


#: Google's own names, in tables and in XML.
GOOGLE_FORM = TableForm(
    kind=FeedKind.GOOGLE_TABLE,
    columns={
        "id": ("id",),
        "image": ("image_link",),
        "title": ("title",),
        "brand": ("brand",),
        "price": ("price",),
        "category": ("product_type", "google_product_category"),
        "link": ("link",),
    },
    more_images=("additional_image_link",),
    separator=",",
)
_SHOPIFY = TableForm(
    kind=FeedKind.SHOPIFY,
    columns={
        "id": ("Handle", "URL handle"),
        "image": ("Image Src", "Product image URL"),
        "title": ("Title",),
        "brand": ("Vendor",),
        "price": ("Variant Price", "Price"),
        "category": ("Product Category", "Type"),
        "sku": ("Variant SKU", "SKU"),
    },
    position="Image Position",
    grouped=True,
    # Shopify's import takes pictures alone as media; a metafield of the product is the column that it does take.
    video_column="Video link (product.metafields.custom.video_link)",
    most_links=1,
)
_WOOCOMMERCE = TableForm(
    kind=FeedKind.WOOCOMMERCE,
    columns={
        "id": ("SKU", "ID"),
        "image": ("Images",),
        "title": ("Name",),
        "brand": ("Brands",),
        "price": ("Sale price", "Regular price"),
        "category": ("Categories",),
        "sku": ("SKU",),
    },
    separator=",",
    # What WooCommerce's own import reads into the product's meta data.
    video_column="Meta: video_link",
)


def form_of(header: Sequence[str], mapping: FeedMapping | None = None) -> TableForm | None:
    """What a table with this header is; None where it is a manifest, or nothing that is known.

    A table that has our own column `image` is a manifest, unless a `mapping` says otherwise.
    """
    keys = {key_of(name) for name in header}
    if mapping is not None:
        wanted = (key_of(mapping.columns["id"]), key_of(mapping.columns["image"]))
        return _mapped(mapping) if all(key in keys for key in wanted) else None
    if "image" in keys:
        return None
    if {"id", "imagelink"} <= keys:
        return GOOGLE_FORM
    if "title" in keys and ({"handle", "imagesrc"} <= keys or {"urlhandle", "productimageurl"} <= keys):
        return _SHOPIFY
    if {"images", "name"} <= keys and keys & {"sku", "id"} and keys & {"type", "published", "regularprice"}:
        return _WOOCOMMERCE
    return None


def _mapped(mapping: FeedMapping) -> TableForm:
    return TableForm(
        kind=FeedKind.MAPPED,
        columns={ours: (theirs,) for ours, theirs in mapping.columns.items()},
        separator=mapping.image_separator,
        video_column=mapping.video_column,
        defaults=mapping.defaults,
    )


def key_of(name: str) -> str:
    """A column's name by its letters, as all spellings of it have them: `g:image_link` and `Image Link`."""
    return letters_of(name.strip().removeprefix("g:"))


def carried_as(name: str) -> str:
    """Under which name a column that is none of ours is carried along; one called as ours gets another name."""
    plain = name.strip().removeprefix("g:").strip() or "column"
    return f"feed_{plain}" if column_of(plain) in COLUMNS and column_of(plain) not in OWN else plain


def text_carried(text: str) -> str:
    """A cell's text as it is carried along."""
    return text[:MAX_CARRIED_CHARACTERS]
