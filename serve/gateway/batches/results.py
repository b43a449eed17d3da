"""The route of a batch's results: a page of rows, all of them as a table or lines with URLs, or all files in a zip."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from enum import StrEnum
from itertools import islice
from typing import Annotated
from urllib.parse import quote

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from cluster.catalog.names import file_stem
from cluster.farm import Farm
from cluster.results.archive import DeliveriesOf, archive
from cluster.results.rows import JobResult, results_of
from cluster.results.table import table_lines
from pipeline.problems import BadInputError
from serve.gateway.access.gate import OwnersFarm
from serve.gateway.batches.deliveries import deliveries_of, files_for
from serve.gateway.openai.content import Variant
from serve.gateway.requests import MAX_ROW_NUMBER

#: Rows that the store is asked for at once.
_PAGE_ROWS = 500
_BLOCK_BYTES = 256 * 1024
#: Rows of a page where nobody says, and at most.
_PAGE, _MOST = 100, 1000
#: Files of a clip that have a URL, and columns of a table besides those of a row.
_FILES = (Variant.VIDEO, Variant.THUMBNAIL, Variant.PROVENANCE)
_COLUMNS = ("job", *(f"{one}_url" for one in _FILES))
_MEDIA_TYPES = {
    "application/zip": "zip",
    "text/csv": "csv",
    "application/jsonl": "jsonl",
    "application/x-ndjson": "jsonl",
    "application/json": "json",
}


class ResultsFormat(StrEnum):
    """How the results of a batch are answered."""

    JSON = "json"
    CSV = "csv"
    JSONL = "jsonl"
    ZIP = "zip"


def add_results(routes: APIRouter) -> None:
    """Add `GET /batches/{batch_id}/results`."""
    # Making a file takes a thread for seconds: one such zip goes on at a time, in no thread that others need.
    making = CapacityLimiter(1)

    @routes.get("/batches/{batch_id}/results", response_class=Response)
    def get_results(
        batch_id: str,
        request: Request,
        farm: OwnersFarm,
        completed_since: Annotated[int | None, Query(ge=0)] = None,
        after: Annotated[int, Query(ge=-1)] = -1,
        limit: Annotated[int | None, Query(ge=1, le=_MOST)] = None,
        format: Annotated[ResultsFormat | None, Query()] = None,
        deliver: Annotated[str | None, Query(max_length=1000)] = None,
        accept: Annotated[str, Header(include_in_schema=False)] = "",
    ) -> Response:
        """What the contact sheet shows of a batch's rows, with the URLs of their files; or the files themselves.

        `format`, else the header `Accept`, says how: a page of rows as `json`; all rows as `csv` or `jsonl`; or `zip`
        (`application/zip`), made as it is sent: `<id>.mp4`, `.jpg` and `.json` of every clip, and `results.csv`.
        `job` names the video whose content is the row's clip (`GET /v1/videos/{id}/content`). `completed_since`: only
        rows completed at or after that time, in UTC epoch seconds; `after`: the last row's number of the page before;
        `limit`: rows at most (`json`: 100 where nothing is said, else all). `deliver`: delivery profiles, with
        commas, whose files come along in a zip as `<profile>/<id>.mp4`, or `asked` for those that each row asks for.
        What was not made yet is made meanwhile, which takes seconds a file; `missing.txt` says what could not. `marks`
        names who marks files: another text, other files.
        """
        kind = format or accepted_format(accept)
        deliveries = _asked_deliveries(farm, kind, deliver)
        since = None if completed_since is None else min(completed_since, 2**62)
        base = str(request.base_url).rstrip("/")
        if kind is ResultsFormat.JSON:
            rows = _rows(farm, batch_id, since, min(after, MAX_ROW_NUMBER), (limit or _PAGE) + 1)
            found = [one.to_json() | _elsewhere(farm, one, base) for one in rows]
            page = found[: limit or _PAGE]
            told = {"object": "list", "data": page, "has_more": len(found) > len(page), "marks": farm.marks}
            return JSONResponse(told)
        # Before the answer begins: a stream cannot become a 404.
        batch = farm.batch(batch_id)

        def all_rows() -> Iterator[JobResult]:
            return _rows(farm, batch_id, since, min(after, MAX_ROW_NUMBER), limit)

        name = file_stem(re.sub(r"[\x00-\x1f\x7f/\\\"]", "_", batch.name).strip(" .") or batch.id)[:100]
        if kind is ResultsFormat.ZIP:
            facts: dict[str, object] = {"batch": {"id": batch.id, "name": batch.name}}
            if not farm.marks:
                facts["marks"] = "off"
            parts = archive(all_rows, farm.outgoing, facts, deliveries or (lambda _result: ()))
            return _stream(parts, "application/zip", f"{name}.zip", making if deliveries else None)
        if kind is ResultsFormat.CSV:
            lines = table_lines(((one.row, _cells(one, base)) for one in all_rows()), _COLUMNS)
            return _stream(lines, "text/csv; charset=utf-8", f"{name}.csv")
        texts = (
            json.dumps(one.to_json() | _elsewhere(farm, one, base), ensure_ascii=False).encode() + b"\n"
            for one in all_rows()
        )
        return _stream(texts, "application/jsonl", f"{name}.jsonl")


def _asked_deliveries(farm: Farm, kind: ResultsFormat, deliver: str | None) -> DeliveriesOf | None:
    """What makes the files that come along in a zip; None where none is asked for. Raises `BadInputError`."""
    if not deliver:
        return None
    if kind is not ResultsFormat.ZIP:
        raise BadInputError("deliver", "files for marketplaces come in a zip alone", "Ask for format=zip.")
    if deliver.strip() == "asked":
        return lambda result: files_for(farm, result, farm.deliveries.wanted(result.row))
    names = tuple(dict.fromkeys(name.strip() for name in deliver.split(",") if name.strip()))
    for name in names:
        farm.deliveries.profiles.named(name)
    return lambda result: files_for(farm, result, names)


def accepted_format(accept: str) -> ResultsFormat:
    """The kind that a header `Accept` prefers of those there are; JSON where it names none (RFC 9110, 12.5.1)."""
    best, found = 0.0, ResultsFormat.JSON
    for part in accept.split(","):
        kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = 1.0
        for one in parameters:
            if one.startswith("q="):
                quality = float(one[2:]) if re.fullmatch(r"q=[01](\.[0-9]{0,3})?", one) else 0.0
        if kind in _MEDIA_TYPES and quality > best:
            best, found = quality, ResultsFormat(_MEDIA_TYPES[kind])
    return found


def files_of(result: JobResult, base: str) -> dict[str, str]:
    """URLs of the files of a row's clip by what they are; {} of a row that has none."""
    row = result.row
    if row.state != "completed" or row.video_key is None or row.expired_at is not None:
        return {}
    content = f"{base}/v1/videos/{quote(result.job_id, safe='')}/content"
    urls = {Variant.VIDEO: content} | {
        variant: f"{content}?variant={variant}" for variant in (Variant.THUMBNAIL, Variant.PROVENANCE)
    }
    return {variant.value: url for variant, url in urls.items()}


def _elsewhere(farm: Farm, result: JobResult, base: str) -> dict[str, object]:
    """Where the files of a row are, and what became of its deliveries, if it asks for any."""
    told: dict[str, object] = {"files": files_of(result, base)}
    if farm.deliveries.wanted(result.row):
        told["deliveries"] = deliveries_of(farm, result.job_id, result.row, base)
    return told


def _rows(farm: Farm, batch_id: str, since: int | None, after: int, limit: int | None) -> Iterator[JobResult]:
    """The rows of a batch behind the place `after`, at most `limit`, asked for a page at a time."""
    farm.batch(batch_id)
    return islice(_pages(farm, batch_id, since, after, min(_PAGE_ROWS, limit or _PAGE_ROWS)), limit)


def _pages(farm: Farm, batch_id: str, since: int | None, after: int, page: int) -> Iterator[JobResult]:
    while True:
        found = results_of(farm.batch_store, farm.owner, batch_id, completed_since=since, after=after, limit=page)
        yield from found
        if len(found) < page:
            return
        after = found[-1].number


def _cells(result: JobResult, base: str) -> Mapping[str, object]:
    files = files_of(result, base)
    return {"job": result.job_id} | {f"{one}_url": files.get(one.value, "") for one in _FILES}


def _blocks(parts: Iterator[bytes]) -> Iterator[bytes]:
    """Larger parts of the bytes in `parts`: each is fetched in a thread and sent by itself."""
    held: list[bytes] = []
    size = 0
    for part in parts:
        held.append(part)
        size += len(part)
        if size >= _BLOCK_BYTES:
            yield b"".join(held)
            held, size = [], 0
    yield b"".join(held)


async def _one_after_another(blocks: Iterator[bytes], threads: CapacityLimiter) -> AsyncIterator[bytes]:
    """The blocks, each fetched in a thread of `threads`."""

    def following() -> bytes | None:
        return next(blocks, None)

    while (block := await run_sync(following, limiter=threads)) is not None:
        yield block


def _stream(
    parts: Iterator[bytes], media_type: str, name: str, threads: CapacityLimiter | None = None
) -> StreamingResponse:
    headers = {
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}",
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
    }
    blocks = _blocks(parts)
    content = blocks if threads is None else _one_after_another(blocks, threads)
    return StreamingResponse(content, headers=headers, media_type=media_type)
