"""The route by which batches come in: rows as JSON, or a manifest of any kind."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import APIRouter, Header, Request
from fastapi.exceptions import RequestValidationError

from cluster.catalog.advice.templates import plain_template
from cluster.catalog.defaults import Defaults, FewStep
from cluster.catalog.ingest import IncomingRow
from cluster.farm import Farm
from cluster.jobs.model import Batch, JobState
from cluster.remote.manifests import RemoteManifests
from cluster.remote.stills import RemoteStills
from serve.gateway.access.gate import OwnersFarm
from serve.gateway.advice.prompts import PromptAdvice
from serve.gateway.batches.arriving import ArrivedManifest, of_body, of_elsewhere, of_form, read_form
from serve.gateway.batches.bodies import (
    BatchDefaults,
    ManifestOptions,
    NewBatch,
    NewBatchOfManifest,
    batch_body,
)
from serve.gateway.batches.lines import fingerprint_of
from serve.gateway.batches.manifests import incoming, read_sent
from serve.gateway.batches.media import MEDIA_TYPES, unsupported
from serve.gateway.views import batch_view

#: Rows that cannot be rendered, in the answer to whoever handed them in.
REFUSED_SHOWN = 20
#: Batches that are handed in at once: others wait, and no thread with them that another request needs.
_AT_ONCE = 4
_FORM = "multipart/form-data"


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """What the farm says for batches that are silent, and how it reads what lies elsewhere."""

    default_model: str
    #: What tier `fast` means, by family.
    few_step: Mapping[str, FewStep]
    #: Reads pictures that manifests name by URL; None: they are refused.
    remote: RemoteStills | None = None
    #: Reads manifests by URL; None: they are refused.
    remote_manifests: RemoteManifests | None = None


def add_submission(routes: APIRouter, nudge_dispatcher: Callable[[], Awaitable[None]], settings: BatchSettings) -> None:
    """Add `POST /batches`; `nudge_dispatcher` is called after every batch."""
    # Rows of their own, and manifests of theirs: pictures of a slow host hold up nobody's rows.
    rows_at_once, manifests_at_once = CapacityLimiter(_AT_ONCE), CapacityLimiter(_AT_ONCE)

    @routes.post("/batches", status_code=202)
    async def create_batch(
        request: Request,
        farm: OwnersFarm,
        idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255)] = None,
    ) -> dict[str, Any]:
        """Hand in a batch of rows, each of which becomes a clip. Answered before anything is rendered.

        Rows come as JSON; or as a manifest, as `clipmill submit` reads them: as the whole body with its media type and
        its options in the query, as the file `manifest` of a form with its pictures, as a file that was handed in, or
        at a URL. Rows that cannot be rendered are kept as failed, and the first of them told as `refused`. The same
        `Idempotency-Key` and body again answer with the batch that is there; with another body they are a 422.
        """
        maker = _BatchMaker(farm, settings)
        kind = request.headers.get("content-type", "").split(";", 1)[0].strip().lower()
        if kind == "application/json" or kind.endswith("+json"):
            body = await run_sync(batch_body, await _json_of(request), limiter=rows_at_once)
            data = await request.body()
            if isinstance(body, NewBatch):
                answer = await run_sync(maker.of_rows, body, data, idempotency_key, limiter=rows_at_once)
            else:
                answer = await run_sync(maker.of_elsewhere, body, idempotency_key, limiter=manifests_at_once)
        elif kind == _FORM:
            form = await read_form(request)
            try:
                arrived = await of_form(form)
                answer = await run_sync(maker.of_manifest, arrived, idempotency_key, limiter=manifests_at_once)
            finally:
                await form.close()
        elif kind in MEDIA_TYPES or "format" in request.query_params:
            arrived = await of_body(request, kind)
            answer = await run_sync(maker.of_manifest, arrived, idempotency_key, limiter=manifests_at_once)
        else:
            raise unsupported(f"a body of {kind[:80] or 'no media type'}")
        await nudge_dispatcher()
        return answer


async def _json_of(request: Request) -> Any:
    try:
        return await request.json()
    except json.JSONDecodeError as error:
        fault = {"type": "json_invalid", "loc": ("body", error.pos), "msg": f"JSON decode error: {error.msg}"}
        raise RequestValidationError([fault], body=error.doc) from error


class _BatchMaker:
    """Makes batches of what requests bring; the answer is the batch as it stands."""

    def __init__(self, farm: Farm, settings: BatchSettings) -> None:
        self._farm, self._settings = farm, settings

    def of_rows(self, body: NewBatch, data: bytes, key: str | None) -> dict[str, Any]:
        fingerprint = hashlib.sha256(data).hexdigest()
        return self._submit(body.rows, self._defaults(body.defaults), body, key, fingerprint, count=len(body.rows))

    def of_elsewhere(self, body: NewBatchOfManifest, key: str | None) -> dict[str, Any]:
        if body.metadata and not body.comment:
            body.comment = json.dumps(body.metadata, ensure_ascii=False)[:2000]
        return self.of_manifest(of_elsewhere(body, self._farm, self._settings.remote_manifests), key)

    def of_manifest(self, arrived: ArrivedManifest, key: str | None) -> dict[str, Any]:
        options = arrived.options
        defaults = self._defaults(options.defaults)
        template = plain_template(options.prompt or "")
        read = read_sent(arrived.data, arrived.kind, defaults, self._farm, template=template)
        files = [part for name in sorted(arrived.files) for part in (name, arrived.files[name]())] if key else []
        fingerprint = fingerprint_of(arrived.data, arrived.kind.value, options.model_dump_json(), *files)
        rows = incoming(read, self._farm, self._settings.remote, arrived.files)
        answer = self._submit(
            rows,
            defaults,
            options,
            key,
            fingerprint,
            count=max(1, len(read.manifest.good)),
            name=arrived.name,
            strict=read.strict,
        )
        said = filter(None, (read.manifest.taken_for, read.manifest.unknown))
        notes = [*said, *answer.get("notes", ())]
        return answer | ({"notes": notes} if notes else {})

    def _defaults(self, said: BatchDefaults) -> Defaults:
        given = said.model_dump()
        given |= {"model": given["model"] or self._settings.default_model, "few_step": self._settings.few_step}
        return Defaults(**given)

    def _submit(
        self,
        rows: Iterable[IncomingRow],
        defaults: Defaults,
        body: NewBatch | ManifestOptions,
        key: str | None,
        fingerprint: str,
        *,
        count: int,
        name: str | None = None,
        strict: Collection[str] = (),
    ) -> dict[str, Any]:
        advice = PromptAdvice(defaults.model)
        batch = self._farm.submit(
            advice.passing(rows),
            defaults,
            name=name or body.name,
            source=body.source,
            idempotency_key=key,
            fingerprint=fingerprint,
            terms=body.terms(),
            strict=strict,
            count=count,
        )
        refused = self._refused(batch)
        notes = advice.notes()
        return batch_view(batch) | ({"refused": refused} if refused else {}) | ({"notes": notes} if notes else {})

    def _refused(self, batch: Batch) -> list[dict[str, Any]]:
        """The first rows that cannot be rendered, and why: whoever handed them in need not ask for them."""
        if not batch.counts[JobState.FAILED]:
            return []
        farm = self._farm
        found = farm.batch_store.jobs(farm.owner, batch.id, state=JobState.FAILED, limit=REFUSED_SHOWN)
        return [
            {"name": job.name, "number": job.number, "problems": [problem.model_dump() for problem in job.problems]}
            for job in found
        ]
