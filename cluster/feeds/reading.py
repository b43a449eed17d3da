"""From a feed to the records of a manifest, in a process with bounds; what is none is left to whoever reads tables."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster.catalog.advice.templates import PromptTemplate
from cluster.catalog.manifest import Manifest, manifest_of
from cluster.catalog.tables import MAX_MANIFEST_BYTES, MAX_ROWS, ManifestError, RawRecord, read_records
from cluster.feeds.delimited import DelimitedFeed, open_delimited
from cluster.feeds.model import MAX_IMAGES, FeedFacts, FeedImages, FeedOptions, FeedProduct
from cluster.feeds.text import Buffer, mapped
from cluster.feeds.xml_feed import XmlFeed
from pipeline.bounded import ExhaustedError, RaisedError, run_bounded
from pipeline.notes import Note
from pipeline.problems import BadInputError, Problem

XML_SUFFIXES = frozenset({".xml", ".rss", ".atom"})
_TABLE_SUFFIXES = frozenset({".csv", ".tsv", ".tab", ".txt"})
#: A feed has more around its rows than a manifest has.
MAX_FEED_BYTES = 2 * MAX_MANIFEST_BYTES
#: CPU time that reading a feed may take, in seconds: so much, and more by its size in bytes.
_CPU_S, _CPU_S_PER_BYTE = 5, 6e-7
#: What moves where a feed says nothing of it. One text for all: its encoding is made once.
DEFAULT_MOTION = "the camera slowly zooms in, soft studio light"


@dataclass(frozen=True, kw_only=True)
class FeedRead:
    """Records of a feed, and what it was taken for."""

    records: list[RawRecord]
    facts: FeedFacts


def read_feed(path: Path, options: FeedOptions | None = None) -> FeedRead | None:
    """A feed's rows, at least one; None where the file is no feed that is known, but perhaps a manifest.

    Raises `ManifestError` where it is a feed that cannot be read as a whole.
    """
    options = options or FeedOptions()
    if path.is_dir() or path.suffix.lower() not in XML_SUFFIXES | _TABLE_SUFFIXES:
        if options.mapping is not None:
            message = f"a mapping is for tables, not for {path.suffix or 'what has no suffix'}"
            raise BadInputError("--mapping", message, "Save the table as CSV.")
        return None
    size = 0
    with contextlib.suppress(OSError, ValueError):
        size = path.stat().st_size
    asked = {"path": os.path.abspath(path), "options": options.model_dump(mode="json")}  # noqa: PTH100 - follows no link
    seconds = _CPU_S + _CPU_S_PER_BYTE * min(size, MAX_FEED_BYTES)
    try:
        answer = run_bounded("cluster.feeds.reading:records_of", json.dumps(asked).encode(), cpu_s=seconds)
    except ExhaustedError as error:
        raise ManifestError(path, f"reading it takes {error}", "Split it into several feeds.") from None
    except RaisedError as error:
        raise ManifestError(path, f"it cannot be read ({error.kind}: {error})", "Write the feed again.") from error
    if fault := answer.get("fault"):
        raise ManifestError(path, *fault)
    if answer.get("table"):
        return None
    return FeedRead(
        records=[_record_from(one) for one in answer["records"]], facts=FeedFacts.model_validate(answer["facts"])
    )


def records_of(asked: bytes) -> dict[str, Any]:
    """What `read_feed` asks of the other process: records and facts, or what is wrong; `table`: it is no feed."""
    question = json.loads(asked)
    options = FeedOptions.model_validate(question["options"])
    path = Path(question["path"])
    try:
        with open_feed(path, options) as feed:
            if feed is None:
                return {"table": True}
            records = list(feed.records())
            facts = feed.facts
    except ManifestError as error:
        return {"fault": [error.message, error.remedy]}
    except OSError:
        # Told by whoever reads tables, as of every file.
        return {"table": True} if path.suffix.lower() in _TABLE_SUFFIXES else {"fault": _missing(path)}
    if not records:
        return {"fault": ["it has no products", "Add one item per product."]}
    return {"records": [_told(one) for one in records], "facts": facts.model_dump(mode="json")}


class OpenFeed:
    """A feed that is open, to be read product by product."""

    def __init__(self, source: DelimitedFeed | XmlFeed, facts: FeedFacts | None, options: FeedOptions) -> None:
        self.source, self._facts, self._options = source, facts, options
        #: Products that were read.
        self.count = 0

    @property
    def facts(self) -> FeedFacts:
        """What the feed was taken for; complete once all products were read."""
        if self._facts is None:
            assert isinstance(self.source, XmlFeed)
            return self.source.facts(self.count)
        return self._facts.model_copy(update={"products": self.count})

    def products(self) -> Iterator[FeedProduct]:
        """The products in order. Raises `ManifestError` where the feed is refused or has too many."""
        for group in self.source.groups():
            if group.product is not None:
                self.count += 1
                if self.count > MAX_ROWS:
                    message = f"it has more than {MAX_ROWS:,} products, which are the limit"
                    raise ManifestError(Path(), message, "Split it into several feeds.")
                yield group.product

    def records(self) -> Iterator[RawRecord]:
        """The products as records of a manifest."""
        for product in self.products():
            yield from records_of_product(product, self._options.images)


@contextlib.contextmanager
def open_feed(path: Path, options: FeedOptions) -> Iterator[OpenFeed | None]:
    """The feed at `path`; None where it is none that is known. Raises `ManifestError` and `OSError`."""
    if not path.is_file():
        raise OSError("it is no regular file")
    if path.stat().st_size > MAX_FEED_BYTES:
        message = f"it is larger than {MAX_FEED_BYTES // 1_000_000} MB"
        raise ManifestError(path, message, "Split it into several feeds.")
    with mapped(path) as data:
        yield _opened(path, data, options)


def _opened(path: Path, data: Buffer, options: FeedOptions) -> OpenFeed | None:
    if path.suffix.lower() in XML_SUFFIXES:
        if options.mapping is not None:
            raise ManifestError(path, "a mapping is for tables, not for XML", "Leave out --mapping.")
        if not data[:1_000_000].strip():
            raise ManifestError(path, "it is empty", "Write the feed again.")
        return OpenFeed(XmlFeed(path, data), None, options)
    found = open_delimited(path, data, options) if data[:1_000_000].strip() else None
    if found is not None:
        return OpenFeed(found[0], found[1], options)
    if options.mapping is not None:
        wanted = " and ".join(repr(options.mapping.columns[name]) for name in ("id", "image"))
        raise ManifestError(path, f"its header has no {wanted}, as the mapping says", "Correct --mapping.")
    return None


def records_of_product(product: FeedProduct, images: FeedImages) -> list[RawRecord]:
    """A product as records of a manifest: one, or one for each picture."""
    wanted = list(product.images[: 1 if images is FeedImages.MAIN else MAX_IMAGES]) or [""]
    names = product.ids(images) or [""] * len(wanted)
    return [
        RawRecord(
            number=product.number,
            line=product.line,
            values={key: text for key, text in {"id": name, "image": image, **product.values}.items() if text},
            problems=product.problems,
        )
        for name, image in zip(names, wanted, strict=True)
    ]


def read_catalog(
    path: Path,
    options: FeedOptions | None = None,
    *,
    prompt: str | None = None,
    model: str | None = None,
    template: PromptTemplate | None = None,
    prompts: Sequence[str] = (),
) -> Manifest:
    """The rows of a manifest, as `cluster.catalog.manifest.read_manifest` reads them, or of a feed.

    A feed without prompts, for which none is given either, gets `DEFAULT_MOTION`, of which each such row has a note.
    Raises `ManifestError`, and `BadInputError` for a mapping that is none of the file.
    """
    found = read_feed(path, options)
    if found is None:
        return manifest_of(path, read_records(path), prompt=prompt, model=model, template=template, prompts=prompts)
    return manifest_of_feed(path, found, prompt=prompt, model=model, template=template, prompts=prompts)


def manifest_of_feed(
    path: Path,
    found: FeedRead,
    *,
    prompt: str | None = None,
    model: str | None = None,
    template: PromptTemplate | None = None,
    prompts: Sequence[str] = (),
) -> Manifest:
    """The rows of a feed whose records were read, as `read_catalog` reads them. Raises `ManifestError`."""
    records = found.records
    if not (prompt or "").strip() and template is None and not prompts:
        prompt = DEFAULT_MOTION
        records = [one if "prompt" in one.values else replace(one, notes=(*one.notes, _MOTION)) for one in records]
    if guessed := [note for note in found.facts.notes if note.code == "encoding_guessed"]:
        records = [one if _is_ascii(one) else replace(one, notes=(*one.notes, *guessed)) for one in records]
    told = {"prompt": prompt, "model": model, "template": template, "prompts": prompts}
    manifest = manifest_of(path, records, **told, strangers_known=True)  # type: ignore[arg-type]
    words = [found.facts.words, *(note.message for note in found.facts.notes if note.code != "encoding_guessed")]
    return replace(manifest, taken_for="; ".join(words))


_MOTION = Note(
    code="prompt_default",
    message=f"the feed says nothing of motion: {DEFAULT_MOTION!r}. A prompt for all, or a template, says otherwise",
    field="prompt",
)


def _is_ascii(record: RawRecord) -> bool:
    return all(str(value).isascii() for value in record.values.values())


def _missing(path: Path) -> list[str]:
    return [f"there is no such file: {path.name}", "Check its name and permissions."]


def _told(record: RawRecord) -> list[Any]:
    return [record.number, record.line, record.values, [problem.model_dump() for problem in record.problems]]


def _record_from(told: list[Any]) -> RawRecord:
    number, line, values, problems = told
    return RawRecord(number=number, line=line, values=values, problems=tuple(map(Problem.model_validate, problems)))
