"""Links to clips: which ones a product has, and what becomes of those that its feed has already."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from urllib.parse import quote

from cluster.feeds.model import MAX_LINK_CHARACTERS, MAX_LINKS, FeedProduct
from pipeline.problems import BadInputError

#: What candidates and prompts append to a row's id (`cluster.catalog.names.clip_names`).
_OF_CLIP = re.compile(r"(?:-i[0-9]+)?(?:-p[0-9]+)?(?:-c[0-9]+)?")
#: Characters of a path that are written as they are (RFC 3986, unreserved).
_SAFE = "/-._~"


class ExistingLinks(StrEnum):
    """What becomes of links that a feed has already."""

    #: Ours are replaced; others stay, and ours come behind them.
    AUTO = "auto"
    #: A product that has any keeps them, and gets none of ours.
    KEEP = "keep"
    #: All are replaced by ours.
    REPLACE = "replace"
    #: All stay, and ours come behind them.
    APPEND = "append"


@dataclass(frozen=True, kw_only=True)
class ClipLinks:
    """The links of one row of a batch."""

    #: The row's id, and the number of the feed's product that it was made of.
    row_id: str
    number: int
    urls: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class LinkRules:
    """What a feed takes, and which of its links are ours."""

    existing: ExistingLinks = ExistingLinks.AUTO
    is_ours: Callable[[str], bool] = lambda _url: False
    most: int = MAX_LINKS


class LinkIndex:
    """The links of a batch's rows, found by product; each row's are given to one product alone."""

    def __init__(self, links: Iterable[ClipLinks]) -> None:
        self._by_id: dict[str, ClipLinks] = {}
        self._by_number: dict[int, list[ClipLinks]] = {}
        for one in links:
            self._by_id[one.row_id] = one
            self._by_number.setdefault(one.number, []).append(one)
        self._given: set[str] = set()

    def of(self, product: FeedProduct) -> tuple[str, ...]:
        """The links of a product, those of all its pictures, candidates and prompts; none where it has no id."""
        if not product.id:
            return ()
        # By its number too: of two products with one id only the first was rendered.
        found = [one for one in self._by_number.get(product.number, ()) if _is_of(one.row_id, product.id)]
        if not found and product.id in self._by_id:
            # The feed has other products in front of it now.
            found = [self._by_id[product.id]]
        new = [one for one in found if one.row_id not in self._given]
        self._given |= {one.row_id for one in new}
        return tuple(dict.fromkeys(url for one in new for url in one.urls))


def _is_of(row_id: str, product_id: str) -> bool:
    return row_id.startswith(product_id) and _OF_CLIP.fullmatch(row_id[len(product_id) :]) is not None


def merged(there: Sequence[str], ours: Sequence[str], rules: LinkRules) -> list[str]:
    """The links of a product: those that are `there` as far as they stay, in their places, and ours behind them.

    Of ours as many as there is room for. Where we have none, all stay as they are.
    """
    if not ours or (there and rules.existing is ExistingLinks.KEEP):
        return list(there)
    match rules.existing:
        case ExistingLinks.REPLACE:
            stay = [url for url in there if url in ours]
        case ExistingLinks.APPEND:
            stay = list(there)
        case _:
            stay = [url for url in there if url in ours or not rules.is_ours(url)]
    more = [url for url in dict.fromkeys(ours) if url not in stay]
    return [*stay, *more[: max(0, rules.most - len(stay))]]


@dataclass(frozen=True)
class PublicPlace:
    """Where files are reached by the public, and which links lead there."""

    #: URL of the folder, or empty: links are names beside the feed.
    base: str = ""
    #: Paths below it of files that are ours: those of now, and those of before.
    paths: frozenset[str] = field(default=frozenset())

    @classmethod
    def of(cls, url: str, names: Iterable[str] = ()) -> PublicPlace:
        """The place that `url` names. Raises `BadInputError` on `--public-url` where it is no URL that Google takes."""
        if url and not re.fullmatch(r"https?://[!-~]+", url):
            message = f"{url!r} is no URL of http or https in ASCII"
            raise BadInputError("--public-url", message, "Write it as https://cdn.example/clips.")
        if re.search(r"[?#]", url):
            raise BadInputError("--public-url", f"{url!r} has a query", "Write the URL of a folder.")
        return cls(url.rstrip("/") + "/" if url else "", frozenset(quote(name, safe=_SAFE) for name in names))

    def link(self, name: str) -> str:
        """The URL of a file by its name, segments joined by slashes. Raises `BadInputError` where it is too long."""
        url = self.base + quote(name, safe=_SAFE)
        if len(url) > MAX_LINK_CHARACTERS:
            message = f"{url[:60]}… has {len(url):,} characters, and {MAX_LINK_CHARACTERS:,} are the limit"
            raise BadInputError("--names", message, "Choose shorter names.")
        return url

    def is_ours(self, url: str) -> bool:
        """Whether a link leads to a file that was published here, and not to somebody else's beside it."""
        return url.startswith(self.base) and url[len(self.base) :] in self.paths
