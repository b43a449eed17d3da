"""From a manifest's bytes to rows on their way: read in another process, no picture of them from the gateway's disk."""

from __future__ import annotations

import re
import tempfile
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cluster.catalog.advice.templates import PromptTemplate
from cluster.catalog.defaults import Defaults
from cluster.catalog.ingest import IncomingRow, gather
from cluster.catalog.manifest import Manifest, Row, manifest_of
from cluster.catalog.tables import ManifestError, read_records
from cluster.farm import Farm
from cluster.feeds.reading import manifest_of_feed, read_feed
from cluster.remote.stills import RemoteStills
from cluster.remote.urls import is_remote, shown
from pipeline.problems import BadInputError, Problem
from serve.gateway.batches.bodies import ManifestFormat
from serve.gateway.batches.lines import RequestLines, are_requests, read_lines
from serve.gateway.openai.body import FILE_ID

_STILL = re.compile(rf"(?:{FILE_ID}|sha256:)?([0-9a-f]{{64}})")
#: Gives the bytes of a file that came with the request.
ReadFile = Callable[[], bytes]


@dataclass(frozen=True, kw_only=True)
class ManifestRead:
    """A manifest whose rows were read; their pictures are handed in as `incoming` is walked through."""

    manifest: Manifest
    #: Ids of rows that are strict, whatever is said of the batch.
    strict: frozenset[str] = field(default=frozenset())


def read_sent(
    data: bytes, kind: ManifestFormat, defaults: Defaults, farm: Farm, *, template: PromptTemplate | None = None
) -> ManifestRead:
    """The rows of a manifest that was sent, as `clipmill submit` reads them from a file; `template` is for those that
    have no prompt.

    Raises `BadInputError` on the field `manifest` where it cannot be read as a whole.
    """
    with tempfile.TemporaryDirectory(prefix="clipmill-manifest-") as folder:
        path = Path(folder) / f"manifest.{kind.value}"
        path.write_bytes(data)
        try:
            if (feed := read_feed(path)) is not None:
                return ManifestRead(manifest=manifest_of_feed(path, feed, template=template, model=defaults.model))
            records = read_records(path)
            if kind is ManifestFormat.JSONL and are_requests(records):
                found: RequestLines = read_lines(records, farm.put_still, defaults.model, template=template)
                return ManifestRead(manifest=found.manifest, strict=found.strict)
            return ManifestRead(manifest=manifest_of(path, records, template=template, model=defaults.model))
        except ManifestError as error:
            raise BadInputError("manifest", error.message, error.remedy) from error


def incoming(
    read: ManifestRead,
    farm: Farm,
    remote: RemoteStills | None,
    files: Mapping[str, ReadFile],
    handed_in: Mapping[str, str | Problem] | None = None,
) -> Iterator[IncomingRow]:
    """The rows with their stills handed in: of `files` by their names, of URLs by `remote`, or handed in before.

    Names of `files` are as `picture_name` has them, and so are those of `handed_in`: pictures of which the SHA-256 is
    known, or what is wrong with them. One without folders is the picture of whatever path ends with it, as browsers
    send none of their folders, but not of two.
    """
    stills = {name: _still_of_file(farm, read_file) for name, read_file in files.items()}
    stills |= {name: _still_known(farm, found) for name, found in (handed_in or {}).items()}
    paths: dict[str, set[str]] = {}
    for name in (picture_name(row.image) for row in read.manifest.good if not is_remote(row.image)):
        paths.setdefault(_last(name), set()).add(name)
    alike = {name for name, found in paths.items() if len(found) > 1}

    def find(row: Row) -> str:
        return _hand_in(row.image, farm, stills, alike, _CHOOSE if handed_in is not None else _SEND)

    yield from gather(read.manifest, farm.put_still, remote, find=find)


def _still_of_file(farm: Farm, read_file: ReadFile) -> Callable[[], str]:
    return lambda: farm.put_still(read_file())


def _still_known(farm: Farm, found: str | Problem) -> Callable[[], str]:
    def known() -> str:
        if isinstance(found, Problem):
            raise BadInputError(found.field, found.message, found.remedy)
        return _require_still(farm, found, found)

    return known


def _require_still(farm: Farm, sha256: str, named: str) -> str:
    if farm.batch_store.still_size(farm.owner, sha256) is None:
        what = f"there is no file {named[:20]}…"
        raise BadInputError("image", what, "Hand it in by POST /v1/files or PUT /v1/stills first.")
    return sha256


#: What to do about a picture that is not there: of a program, and of somebody before the page.
_SEND = "Send it in the form as a file of that name, or name it by an https:// URL or by the id of its file."
_CHOOSE = "Choose it as well, or the whole folder; or name it by an https:// URL."


def _hand_in(
    image: str, farm: Farm, stills: Mapping[str, Callable[[], str]], alike: Collection[str], remedy: str
) -> str:
    if still := _STILL.fullmatch(image):
        return _require_still(farm, still[1], image)
    if is_remote(image):
        raise BadInputError("image", f"{shown(image)}: pictures are not fetched here", "Send it in the form as a file.")
    name = picture_name(image)
    hand_in, last = stills.get(name), _last(name)
    if hand_in is None and last not in alike:
        hand_in = stills.get(last)
    if hand_in is None:
        other = f": {last[:100]!r}, which did, may be another row's" if last in stills else ""
        raise BadInputError("image", f"{shown(image)[:100]!r} did not come with the manifest{other}", remedy)
    return hand_in()


def picture_name(name: str) -> str:
    """A picture's path as manifests and forms write it, in the one way in which both are compared."""
    return unicodedata.normalize("NFC", name).replace("\\", "/").removeprefix("./")


def _last(name: str) -> str:
    return name.rpartition("/")[2]
