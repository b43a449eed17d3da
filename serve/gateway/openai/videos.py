"""Routes of videos: one clip from one picture in one request, for clients that know OpenAI's or vLLM-Omni's."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from cluster.catalog.defaults import Defaults, FewStep
from cluster.catalog.ingest import IncomingRow
from cluster.farm import Farm
from cluster.jobs.fidelity import SHORT
from cluster.jobs.model import JobState
from cluster.jobs.review import in_review
from cluster.jobs.transitions import Verb
from cluster.remote.stills import RemoteStills
from cluster.remote.urls import shown
from cluster.storage import MissingObjectError
from cluster.store import videos as store
from cluster.store.batch_reader import VIDEO_SOURCE
from cluster.store.batches import Terms
from cluster.store.videos import Video
from pipeline.problems import BadInputError, Problem
from serve.gateway.access.gate import OwnersFarm
from serve.gateway.door import CheckedRoute
from serve.gateway.errors import error_body
from serve.gateway.openai.body import Reference, read_body, reference_of
from serve.gateway.openai.content import Variant, answer_with, file_of
from serve.gateway.openai.fields import VideoRequest, param_of, read_fields
from serve.gateway.openai.schema import VIDEO_BODY
from serve.gateway.openai.views import has_ended, page_view, poll_after_ms, video_view

#: Pictures that are looked at, at once.
_STILLS_AT_ONCE = 4
#: How long `/v1/videos/sync` waits where nobody says, and how often it looks, in seconds.
SYNC_S = 600.0
LOOK_S = 0.25
#: How long a deletion waits for a video to stop, in seconds: a step of most clips.
_STOP_S = 10.0
#: Threads in which all that wait look: they leave the others to requests that are answered at once.
_LOOKING = 2
#: OpenAI's clients would ask again by themselves for what would only be rendered anew.
_NO_RETRY = {"x-should-retry": "false"}

#: Status of the answer to whoever waited for what did not come, by the reason; others are the farm's fault.
_STATUS_OF = {"cancelled": 409, "invalid": 422, "no_card_fits": 422, SHORT: 409}

IdempotencyKey = Annotated[str | None, Header(min_length=1, max_length=255)]


@dataclass(frozen=True, kw_only=True)
class VideoSettings:
    """What the farm says for requests that are silent."""

    default_model: str
    few_step: Mapping[str, FewStep]
    #: For how many days finished clips are kept; None: for ever.
    keep_days: float | None = None
    #: Reads pictures that requests name by URL; None: they are refused.
    remote: RemoteStills | None = None


def video_routes(nudge_dispatcher: Callable[[], Awaitable[None]], settings: VideoSettings) -> APIRouter:
    """The routes of videos; `nudge_dispatcher` is called after every change."""
    routes = APIRouter(prefix="/v1", route_class=CheckedRoute, tags=["videos"])
    maker = _Maker(nudge_dispatcher, settings)
    # Before the routes of one video, whose id would be "sync".
    _add_sync(routes, maker, settings)
    _add_creation(routes, maker, settings)
    _add_views(routes, settings)
    _add_content(routes)
    _add_cancel(routes, nudge_dispatcher, settings)
    _add_deletion(routes, nudge_dispatcher)
    return routes


class _Maker:
    """Makes videos of requests."""

    def __init__(self, nudge: Callable[[], Awaitable[None]], settings: VideoSettings) -> None:
        self._nudge, self._settings = nudge, settings
        self._threads = CapacityLimiter(_STILLS_AT_ONCE)
        # Of their own: a slow host holds up nobody who brings the picture along.
        self._fetching = CapacityLimiter(_STILLS_AT_ONCE)

    async def make(self, request: Request, farm: Farm, key: str | None) -> tuple[Video, VideoRequest]:
        """The video that a request asks for, handed in. Raises `BadInputError`."""
        values = await read_body(request)
        reference = reference_of(values)
        asked = read_fields(values, self._settings.default_model)
        try:
            if reference.url is not None:
                reference = Reference(data=await run_sync(self._fetch, reference.url, limiter=self._fetching))
            sha256 = await run_sync(self._still, farm, reference, limiter=self._threads)
            video = await run_in_threadpool(self._submit, farm, asked, sha256, key)
        except BadInputError as error:
            raise _named(error.problem) from error
        await self._nudge()
        return video, asked

    def _fetch(self, url: str) -> bytes:
        if self._settings.remote is None:
            raise BadInputError("image", f"{shown(url)}: pictures are not fetched here", "Send the picture as a file.")
        return self._settings.remote.read(url)

    def _still(self, farm: Farm, reference: Reference) -> str:
        if reference.data is not None:
            return farm.put_still(reference.data)
        sha256 = str(reference.sha256)
        if farm.batch_store.still_size(farm.owner, sha256) is None:
            raise BadInputError("input_reference", "there is no such file", "Hand it in by POST /v1/files first.")
        return sha256

    def _submit(self, farm: Farm, asked: VideoRequest, sha256: str, key: str | None) -> Video:
        given = {"model": asked.family.name, "few_step": dict(self._settings.few_step), "strict": asked.strict}
        defaults = Defaults.model_validate(given)
        # Somebody waits for it, if nothing else is said; for the lines of a batch nobody does.
        interactive = asked.row.interactive is not False
        wanted = asked.row.model_copy(update={"interactive": interactive})
        row = IncomingRow(position=1, name=asked.row.id, row=wanted, still=sha256, number=1)
        if problems := farm.check(row, defaults):
            raise _named(problems[0])
        # The request's own fields: its bytes differ from one try to the next where they are a form's. Without what
        # every request says that is silent of it: a version before had no such field.
        told = asked.row.model_copy(update={"interactive": None if interactive else False})
        text = row.model_copy(update={"row": told}).model_dump_json()
        same = hashlib.sha256(f"{text}{asked.strict}{asked.webhook_url or ''}".encode()).hexdigest()
        batch = farm.submit(
            [row],
            defaults,
            name=_title(asked),
            source=VIDEO_SOURCE,
            idempotency_key=key,
            fingerprint=same,
            terms=Terms(webhook_url=asked.webhook_url),
        )
        (job,) = farm.jobs(batch.id)
        return find_video(farm, job.id)


def find_video(farm: Farm, video_id: str) -> Video:
    """A video as it stands. Raises `NoSuchJobError`."""
    return store.video(farm.batch_store.database, farm.owner, video_id)


def _title(asked: VideoRequest) -> str:
    prompt = " ".join((asked.row.prompt or "").split())
    return (prompt[:77] + "…" if len(prompt) > 78 else prompt) or "video"


def _named(problem: Problem) -> BadInputError:
    """The problem with its field as a request names it."""
    return BadInputError(param_of(problem.field), problem.message, problem.remedy)


def _add_creation(routes: APIRouter, maker: _Maker, settings: VideoSettings) -> None:
    @routes.post("/videos", openapi_extra=VIDEO_BODY)
    async def create_video(request: Request, farm: OwnersFarm, idempotency_key: IdempotencyKey = None) -> JSONResponse:
        """Make one clip of one picture. Answers with the video, which is queued."""
        video, _ = await maker.make(request, farm, idempotency_key)
        return _answer(video, settings)


def _add_sync(routes: APIRouter, maker: _Maker, settings: VideoSettings) -> None:
    looking = CapacityLimiter(_LOOKING)

    @routes.post("/videos/sync", openapi_extra=VIDEO_BODY, response_class=Response)
    async def create_video_and_wait(
        request: Request, farm: OwnersFarm, idempotency_key: IdempotencyKey = None
    ) -> Response:
        """Make one clip of one picture and wait: answers with the file, or after `timeout_s` with a 504 naming it."""
        video, asked = await maker.make(request, farm, idempotency_key)
        end = time.monotonic() + (SYNC_S if asked.timeout_s is None else asked.timeout_s)
        while not has_ended(video.job) and time.monotonic() < end:
            await asyncio.sleep(LOOK_S)
            video = await run_sync(find_video, farm, video.job.id, limiter=looking)
        view = video_view(video, keep_days=settings.keep_days)
        headers = {**_NO_RETRY, "X-Video-Id": video.job.id}
        if not has_ended(video.job):
            problem = Problem(
                field="timeout_s",
                message=f"{video.job.id} is not done yet",
                remedy=f"Go on with GET /v1/videos/{video.job.id}.",
            )
            body = error_body(504, str(problem), "still_rendering", "timeout_s", problem)
            return JSONResponse(body, status_code=504, headers=headers)
        if video.job.state is not JobState.COMPLETED:
            error = view["error"]
            status = _STATUS_OF.get(error["code"], 500)
            return JSONResponse(
                error_body(status, error["message"], error["code"]), status_code=status, headers=headers
            )
        answer = await run_in_threadpool(_content, farm, video, Variant.VIDEO, {})
        answer.headers.update(headers)
        return answer


def _add_views(routes: APIRouter, settings: VideoSettings) -> None:
    @routes.get("/videos")
    def list_videos(
        farm: OwnersFarm,
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        order: Literal["asc", "desc"] = "desc",
    ) -> dict[str, Any]:
        """A page of videos; `after` is the id of the last one of the page before."""
        found = store.videos(
            farm.batch_store.database, farm.owner, after=after, limit=limit + 1, newest_first=order == "desc"
        )
        views = (video_view(video, keep_days=settings.keep_days) for video in found[:limit])
        return page_view(views, len(found) > limit)

    @routes.get("/videos/{video_id}")
    def get_video(video_id: str, farm: OwnersFarm) -> JSONResponse:
        """One video as it stands. `openai-poll-after-ms` says when to look again."""
        return _answer(find_video(farm, video_id), settings)


def _add_content(routes: APIRouter) -> None:
    @routes.get("/videos/{video_id}/content", response_class=Response)
    def get_video_content(
        video_id: str, request: Request, farm: OwnersFarm, variant: Variant = Variant.VIDEO
    ) -> Response:
        """The file of a video: the clip, its `thumbnail`, `spritesheet` or `provenance`. In parts by `Range`."""
        video = find_video(farm, video_id)
        return _content(farm, video, variant, request.headers)


def _add_cancel(routes: APIRouter, nudge_dispatcher: Callable[[], Awaitable[None]], settings: VideoSettings) -> None:
    @routes.post("/videos/{video_id}/cancel")
    async def cancel_video(video_id: str, farm: OwnersFarm) -> JSONResponse:
        """Cancel a video; one that runs stops within a step."""
        await run_in_threadpool(farm.command_job, video_id, Verb.CANCEL)
        await nudge_dispatcher()
        video = await run_in_threadpool(find_video, farm, video_id)
        return _answer(video, settings)


def _add_deletion(routes: APIRouter, nudge_dispatcher: Callable[[], Awaitable[None]]) -> None:
    looking = CapacityLimiter(_LOOKING)

    @routes.delete("/videos/{video_id}")
    async def delete_video(video_id: str, farm: OwnersFarm) -> JSONResponse:
        """Remove a video with its files, cancelling it first where it has not ended."""
        video = await run_sync(find_video, farm, video_id, limiter=looking)
        if video.source != VIDEO_SOURCE:
            remedy = f"Delete the batch: DELETE /v1/batches/{video.job.batch_id}."
            return _refuse_deletion(f"{video_id} is a row of {video.job.batch_id}", remedy)
        if not video.job.state.final:
            await run_in_threadpool(farm.command_job, video_id, Verb.CANCEL)
            await nudge_dispatcher()
        end = time.monotonic() + _STOP_S
        while not (video := await run_sync(find_video, farm, video_id, limiter=looking)).job.state.final:
            if time.monotonic() >= end:
                return _refuse_deletion(f"{video_id} is being cancelled, and has not stopped yet", "Try again later.")
            await asyncio.sleep(LOOK_S)
        await run_in_threadpool(farm.delete_batch, video.job.batch_id)
        return JSONResponse({"id": video_id, "object": "video.deleted", "deleted": True})


def _refuse_deletion(message: str, remedy: str) -> JSONResponse:
    problem = Problem(field="video_id", message=message, remedy=remedy)
    return JSONResponse(error_body(409, str(problem), "refused", "video_id", problem), status_code=409)


def _answer(video: Video, settings: VideoSettings) -> JSONResponse:
    headers = {"openai-poll-after-ms": str(poll_after_ms(video, int(time.time())))}
    return JSONResponse(video_view(video, keep_days=settings.keep_days), headers=headers)


def _content(farm: Farm, video: Video, variant: Variant, headers: Mapping[str, str]) -> Response:
    job = video.job
    if (job.state is not JobState.COMPLETED and not in_review(job)) or video.clip is None:
        problem = Problem(
            field="video_id", message=f"{job.id} has no file: it is {job.state}", remedy="Wait until it has completed."
        )
        return JSONResponse(error_body(404, str(problem), "not_ready", "video_id", problem), status_code=404)
    gone = video.clip.expired_at is not None
    if not gone:
        try:
            file = file_of(video.clip, job.name, variant, farm.marks)
            return answer_with(farm.outgoing, file, headers)
        except MissingObjectError:
            gone = True
    problem = Problem(
        field="video_id",
        message=f"the file of {job.id} is gone",
        remedy="Ask for the video again: it is rendered anew.",
    )
    return JSONResponse(error_body(404, str(problem), "file_gone", "video_id", problem), status_code=404)
