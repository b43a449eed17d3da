"""The routes of a row's deliveries: what became of each profile, and the file, made when it is first asked for."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import APIRouter, Request, Response

from cluster.catalog.names import file_stem
from cluster.farm import Farm
from cluster.results.contact_sheet import ResultRow
from cluster.results.deliveries import DeliveryMaker, KeptDeliveries, actions_of, deliveries_key, delivery_key
from cluster.results.marked import FileOrigin
from cluster.results.rows import JobResult, result_row
from cluster.storage import MissingObjectError, StorageError
from pipeline.delivery.profiles import DeliveryProfile
from pipeline.problems import BadInputError, Problem
from serve.gateway.access.gate import OwnersFarm
from serve.gateway.openai.content import ClipFile, answer_with

#: Files that are made at once; others wait. One takes two cores for seconds.
_AT_ONCE = 1


def add_deliveries(routes: APIRouter) -> None:
    """Add `GET /jobs/{job_id}/deliveries` and `GET /jobs/{job_id}/deliveries/{profile}`."""
    limiter = CapacityLimiter(_AT_ONCE)

    @routes.get("/jobs/{job_id}/deliveries")
    def list_deliveries(job_id: str, request: Request, farm: OwnersFarm) -> dict[str, Any]:
        """What a row asks to be delivered for, and what became of each: `delivered`, `refused` or `not_made`.

        A file is made when it is first asked for, and kept. Every verdict has all rules of its profile.
        """
        row = completed_row(farm, job_id)
        base = str(request.base_url).rstrip("/")
        return {"object": "list", "data": deliveries_of(farm, job_id, row, base)}

    @routes.get("/jobs/{job_id}/deliveries/{profile}", response_class=Response)
    async def get_delivery(job_id: str, profile: str, request: Request, farm: OwnersFarm) -> Response:
        """The file of a row's clip for a profile, whether the row asked for it or not; ranges are answered.

        Made when it is first asked for, which takes some seconds. A file that would break a rule is a 400 that says
        which, and so is a profile that nothing can be made for.
        """
        # What is kept does not wait for what is being made.
        kept = await run_sync(_kept, farm, job_id, profile)
        key: str = kept if kept is not None else await run_sync(_made, farm, job_id, profile, limiter=limiter)
        row_name = (await run_sync(farm.batch_store.job, farm.owner, job_id)).name
        marked = f"-{farm.marks}" if farm.marks else ""
        file = ClipFile(
            key=deliveries_key(key),
            media_type="video/mp4",
            name=f"{file_stem(row_name)}-{profile}.mp4",
            etag=f'"{key[:32]}{marked}"',
        )
        return await run_sync(answer_with, farm.outgoing, file, request.headers)


def completed_row(farm: Farm, job_id: str) -> ResultRow:
    """The row of a job with its clip, if it has one. Raises `NoSuchJobError`."""
    job = farm.batch_store.job(farm.owner, job_id)
    clip = farm.batch_store.clips(farm.owner, [job.clip_id]).get(job.clip_id) if job.clip_id else None
    return result_row(job, clip)


def deliveries_of(farm: Farm, job_id: str, row: ResultRow, base: str) -> list[dict[str, Any]]:
    """What became of each profile that a row asks for; nothing is made for it. `base`: the beginning of URLs."""
    found = []
    for name in farm.deliveries.wanted(row):
        url = f"{base}/v1/jobs/{quote(job_id, safe='')}/deliveries/{quote(name, safe='')}"
        told: dict[str, Any] = {"object": "delivery", "profile": name, "state": "not_made", "url": url, "verdict": None}
        if name in farm.deliveries.profiles.names and row.state == "completed":
            key = delivery_key(row, farm.deliveries.profiles.named(name), farm.deliveries)
            verdict = KeptDeliveries(farm.storage).verdict(key)
            if verdict is not None:
                told |= {
                    "state": "delivered" if verdict.passed else "refused",
                    "verdict": verdict.model_dump(mode="json"),
                }
        found.append(told)
    return found


def files_for(farm: Farm, result: JobResult, profiles: Sequence[str]) -> Iterator[tuple[str, str | Problem]]:
    """Files of a completed row as a zip takes them: (profile, key of its file in storage or why there is none).

    What is not kept is made, which takes seconds; each is made when it is asked for.
    """
    for name in profiles:
        try:
            kept = _kept(farm, result.job_id, name)
            yield name, deliveries_key(kept if kept is not None else _made(farm, result.job_id, name))
        except (BadInputError, StorageError) as error:
            yield name, error.problem


def _kept(farm: Farm, job_id: str, name: str) -> str | None:
    """The key of the file, None where it has to be made. Raises `BadInputError` and `MissingObjectError`."""
    row, profile = _asked_for(farm, job_id, name)
    key = delivery_key(row, profile, farm.deliveries)
    verdict = KeptDeliveries(farm.storage).verdict(key)
    if verdict is None or not verdict.passed or not farm.storage.exists(deliveries_key(key)):
        return None
    _tell_marks(farm, row, profile, key)
    return key


def _asked_for(farm: Farm, job_id: str, name: str) -> tuple[ResultRow, DeliveryProfile]:
    """A row that has its clip, and the profile of that name. Raises `BadInputError` and `MissingObjectError`."""
    row = completed_row(farm, job_id)
    profile = farm.deliveries.profiles.named(name)
    if row.state != "completed" or row.video_key is None:
        remedy = f"Ask again when it has completed: GET /v1/jobs/{job_id} says how far it is."
        raise BadInputError("job_id", f"the row is {row.state} and has no clip yet", remedy)
    if row.expired_at is not None:
        remedy = "Submit its row again: it is rendered anew."
        raise MissingObjectError(row.video_key, "the clip's files were removed, being older than what is kept", remedy)
    return row, profile


def _tell_marks(farm: Farm, row: ResultRow, profile: DeliveryProfile, key: str) -> None:
    """Have the file leave with marks."""
    if farm.marked is not None and row.provenance_key is not None:
        done = actions_of(row, profile, farm.deliveries)
        origin = FileOrigin(provenance=row.provenance_key, profile=profile.name, actions=done)
        farm.marked.tell(deliveries_key(key), origin)


def _made(farm: Farm, job_id: str, name: str) -> str:
    """The key of the file, made where it is not kept. Raises `BadInputError` and `MissingObjectError`."""
    row, profile = _asked_for(farm, job_id, name)
    maker = DeliveryMaker(farm.storage, KeptDeliveries(farm.storage), farm.deliveries)
    with tempfile.TemporaryDirectory(prefix="clipmill-") as folder:
        delivered = maker.for_profile(row, profile, Path(folder))
    if not delivered.delivered and (problem := delivered.verdict.problem) is not None:
        raise BadInputError(problem.field, problem.message, problem.remedy)
    _tell_marks(farm, row, profile, delivered.key)
    return delivered.key
