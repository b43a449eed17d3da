"""The answers of the API as OpenAPI describes them. Nothing is checked against these at run time; tests do that."""

from __future__ import annotations

from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from cluster.jobs.model import HoldReason, JobState, Pick
from pipeline.delivery.verdicts import ProfileVerdict
from pipeline.fidelity.score import FidelityScore
from pipeline.notes import Note
from pipeline.problems import Problem

_Item = TypeVar("_Item")


class DescribedAnswer(BaseModel):
    """An answer of the API. Later versions may have further fields."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class ErrorFacts(DescribedAnswer):
    """What was wrong with a request, or with the farm."""

    message: str
    """What is wrong and what to do, for people."""
    type: Literal["invalid_request_error", "server_error"]
    """Whose fault it is: the request's, or the farm's."""
    param: str | None
    """The field at fault; null where it is none."""
    code: str
    """What is wrong, for programs; stays the same from version to version."""
    remedy: str | None = None
    """What to do next."""
    clipmill: Problem | None = None
    """The same in parts, where there are any."""


class ErrorAnswer(DescribedAnswer):
    """A request that was refused, in the form of OpenAI's errors."""

    error: ErrorFacts
    """What was wrong."""


class StillAnswer(DescribedAnswer):
    """A picture that was handed in."""

    object: Literal["still"]
    """Always `still`."""
    sha256: str
    """Names the picture from now on, in hex."""


class RowCounts(DescribedAnswer):
    """How many rows of a batch are in each state."""

    queued: int
    """Rows that wait for a card."""
    running: int
    """Rows that are being rendered."""
    held: int
    """Rows that somebody, or a limit, holds back."""
    completed: int
    """Rows whose clip is there."""
    failed: int
    """Rows that ended without a clip."""
    cancelled: int
    """Rows that somebody cancelled."""
    total: int
    """All rows."""


class HeldFacts(DescribedAnswer):
    """Why a batch, and rows of it, are held."""

    batch: HoldReason | None
    """Why all of it is held; null where it is not."""
    rows: dict[str, int]
    """How many rows are held, by the reason."""


class LimitFacts(DescribedAnswer):
    """Where a batch stops by itself; null where it does not."""

    failures: int | None
    """Rows that may fail."""
    gpu_hours: float | None
    """GPU time, in hours."""
    cost: float | None
    """Cost in US dollars, by the table of rates."""


class RefusedRow(DescribedAnswer):
    """A row that cannot be rendered."""

    name: str
    """The row's id."""
    number: int
    """The row's place in the batch, from 1."""
    problems: list[Problem]
    """Everything that is wrong with it."""


class BatchAnswer(DescribedAnswer):
    """A batch as it stands."""

    id: str
    """Begins with `batch_`; sorts by time."""
    object: Literal["batch"]
    """Always `batch`."""
    name: str
    """For people."""
    source: str
    """Where its rows came from."""
    status: str
    """`validating`, `running`, `paused`, `held`, `stopped`, or how it ended: `completed`, `failed`, `cancelled`."""
    created_at: int
    """When it was handed in, in UTC epoch seconds."""
    attended: bool
    """Whether it is rendered only while somebody waits for it."""
    counts: RowCounts
    """Rows by state."""
    attempts: int
    """Times that its rows were started."""
    held: HeldFacts
    """Why it waits for somebody."""
    limits: LimitFacts
    """Where it stops by itself."""
    needs_approval: bool
    """Whether rows wait for an approval."""
    proof: int
    """Rows that start without one."""
    comment: str
    """A note for people."""
    owner: str
    """Whose it is."""
    key: str | None
    """The `Idempotency-Key` under which it was handed in."""
    webhook_url: str | None
    """Where its events are sent, besides the owner's webhooks; its query is not shown."""
    refused: list[RefusedRow] | None = None
    """Where it was just handed in: the first rows that cannot be rendered."""
    notes: list[str] | None = None
    """Where it was just handed in: what was not read, such as columns that the farm does not know, and each kind of
    finding on its prompts (`POST /v1/lint` has rewrites)."""


class BatchDeletionAnswer(DescribedAnswer):
    """What went with a batch, or would go."""

    id: str
    """The batch's id."""
    object: Literal["batch.deleted"]
    """Always `batch.deleted`."""
    deleted: bool
    """False: it was only asked what would go."""
    rows: int
    """Rows that go."""
    clips: int
    """Clips whose files go."""
    shared_clips: int
    """Clips that stay, as another batch shows them."""
    freed_bytes: int
    """Bytes of the files that go."""


class ReviewDecision(DescribedAnswer):
    """What somebody decided of a draft or a candidate."""

    verb: str
    """`approve`, `reject` or `reroll`."""
    round: str
    """The round that it was in; empty where it has one only."""
    clip_id: str | None
    """The clip that was looked at."""
    seed: int
    """That clip's seed."""
    at: int
    """When, in UTC epoch seconds."""


class ReviewFacts(DescribedAnswer):
    """Where a row is in its review."""

    round: str | None
    """The round that it is in; null where it has one only."""
    rounds: list[str]
    """All its rounds in their order."""
    rounds_left: int
    """Rounds to come: where there are any, its clip is a draft."""
    row: int | None
    """The manifest's row, where that asks for several clips; null: this is its only one."""
    pick: Pick
    """Whether it was chosen."""
    steps: list[ReviewDecision]
    """What was decided, oldest first."""


class JobAnswer(DescribedAnswer):
    """A row of a batch as it stands."""

    id: str
    """Begins with `video_`: the row is also a video."""
    object: Literal["job"]
    """Always `job`."""
    batch_id: str
    """The batch that the row is in."""
    number: int
    """The row's place in the batch, from 1."""
    name: str
    """The row's id, which names its files."""
    state: JobState
    """Where it is in its life."""
    reason: str | None
    """Why it is held, or failed."""
    hold_requested: HoldReason | None
    """Why it will be held once it has stopped."""
    priority: int
    """Higher starts earlier."""
    not_before: int | None
    """UTC epoch seconds before which it does not start."""
    after: str | None
    """Id of the row that must be completed first."""
    problems: list[Problem]
    """Why it cannot be rendered."""
    model: str | None
    """The model's name."""
    resolution_class: str | None
    """Pixels, such as `512p`."""
    size: str | None
    """Width and height in pixels, such as `1280x704`."""
    step: int
    """Denoising steps that are done."""
    steps: int
    """Denoising steps in all; 0 until it is known."""
    attempts: int
    """Times that it was started, of those that cost it something."""
    releases: int
    """Times that it was given back through no fault of its own."""
    clip_id: str | None
    """The row's clip; rows that ask for the same share one."""
    seed: int | None
    """What its noise is made of."""
    guidance: float | None
    """How closely it follows prompt and picture."""
    review: ReviewFacts
    """Its rounds, and what was decided of it."""
    lossy: list[str]
    """Short cuts that change the picture."""
    adjusted: list[str]
    """What was adjusted to what the model can make."""
    notes: list[str]
    """What else was assumed, cut or judged."""
    row: dict[str, Any]
    """What its manifest says: number, line, image, prompt, and columns that the farm does not know."""
    noted: list[Note] | None = None
    """Both kinds of notes with their codes, where there are any."""
    fidelity: FidelityScore | None = None
    """How true its clip is to still and prompt, where that was measured."""


class ChangeFacts(DescribedAnswer):
    """What would start a row."""

    kind: str
    """What kind of change it is."""
    text: str
    """In words."""
    command: str | None = None
    """The command that does it."""
    at: float | None = None
    """When it happens by itself, in UTC epoch seconds."""
    starts: bool | None = None
    """Whether the row would start at once."""


class WhyAnswer(DescribedAnswer):
    """Why a row is where it is."""

    object: Literal["why"]
    """Always `why`."""
    job: str
    """The row's id."""
    state: JobState
    """Where it is."""
    reason: str
    """Why, for programs."""
    text: str
    """Why, in words with numbers."""
    changes: list[ChangeFacts]
    """What would start it, the smallest change first."""


class ResultFacts(DescribedAnswer):
    """A row as the contact sheet shows it."""

    id: str
    """The row's id, which names its files."""
    number: int
    """The row's number in its manifest."""
    state: JobState
    """Where it is."""
    prompt: str
    """What moves."""
    width: int
    """Pixels; 0 where not known."""
    height: int
    """Pixels; 0 where not known."""
    seconds: float
    """Length of the clip."""


class FileUrls(DescribedAnswer):
    """URLs of a clip's files; empty where there are none."""

    video: str | None = None
    """The clip, MP4."""
    thumbnail: str | None = None
    """The poster, JPEG."""
    provenance: str | None = None
    """How the clip came about, JSON."""


class ResultAnswer(DescribedAnswer):
    """A row of a batch's results."""

    object: Literal["result"]
    """Always `result`."""
    job: str
    """The row's id as a job and as a video."""
    place: int
    """The row's place in the batch; the `after` of the next page."""
    updated_at: int
    """When it last changed, in UTC epoch seconds."""
    row: ResultFacts
    """What the contact sheet shows, and more."""
    files: FileUrls
    """Where its files are."""
    deliveries: list[DeliveryAnswer] | None = None
    """What became of each profile that the row asks for; absent where it asks for none."""


class DeliveryAnswer(DescribedAnswer):
    """What became of a row for one delivery profile."""

    object: Literal["delivery"]
    """Always `delivery`."""
    profile: str
    """Name of the profile."""
    state: Literal["delivered", "refused", "not_made"]
    """Whether there is a file that keeps every rule; `not_made`: nobody has asked for it yet."""
    url: str
    """Where the file is; it is made when it is first asked for."""
    verdict: ProfileVerdict | None
    """Every rule, what was found and what is wanted; null: not made yet."""


class DeliveryListAnswer(DescribedAnswer):
    """A row's deliveries."""

    object: Literal["list"]
    """Always `list`."""
    data: list[DeliveryAnswer]
    """One for each profile that the row asks for."""


class VideoErrorFacts(DescribedAnswer):
    """Why a video failed."""

    code: str
    """For programs."""
    message: str
    """For people."""
    param: str | None
    """The field at fault, where one is."""
    type: str | None
    """Always null: it is no error of the request that asks."""


class FarmVideoFacts(DescribedAnswer):
    """What only this farm has of a video."""

    state: JobState
    """Finer than `status`."""
    reason: str | None
    """Why it is held, or failed."""
    batch_id: str
    """The batch that the row is in."""
    step: int
    """Denoising steps that are done."""
    steps: int
    """Denoising steps in all."""
    attempts: int
    """Times that it was started, of those that cost it something."""
    card: str | None
    """The card it runs on."""
    frames: int | None
    """Length in frames."""
    fps: int | None
    """Frames a second."""
    seed: int | None
    """The same request with this seed is the same clip."""
    resolution_class: str | None
    """Pixels, such as `512p`."""
    lossy: list[str]
    """Short cuts that change the picture."""
    notes: list[Note]
    """What was assumed, adjusted or judged."""
    file_expired: bool
    """Whether its files are gone."""


class VideoAnswer(DescribedAnswer):
    """A video as it stands, in OpenAI's form."""

    id: str
    """Begins with `video_`; sorts by time."""
    object: Literal["video"]
    """Always `video`."""
    model: str
    """The model's name."""
    prompt: str | None
    """What moves."""
    status: Literal["queued", "in_progress", "completed", "failed"]
    """Where it is; a cancelled one has failed."""
    progress: int
    """Percent of its steps; 100 only where it has completed."""
    created_at: int
    """UTC epoch seconds."""
    completed_at: int | None
    """When it ended, in UTC epoch seconds."""
    expires_at: int | None
    """When its files go, in UTC epoch seconds; null: not by themselves."""
    size: str | None
    """Width and height in pixels."""
    seconds: str
    """Length of the clip, as text."""
    quality: str
    """Always `standard`."""
    remixed_from_video_id: str | None
    """Always null."""
    error: VideoErrorFacts | None
    """Why it failed."""
    media_type: str
    """Always `video/mp4`."""
    file_name: str | None
    """What its file is called, once it is there."""
    inference_time_s: float | None
    """Seconds that it took on its card."""
    peak_memory_mb: float
    """Megabytes of the card's memory that it took."""
    clipmill: FarmVideoFacts
    """What only this farm has."""


class DeletionAnswer(DescribedAnswer):
    """What was removed."""

    id: str
    """What was removed."""
    object: str
    """`video.deleted` or `file`."""
    deleted: Literal[True]
    """Always true."""


class FileAnswer(DescribedAnswer):
    """A picture or a manifest that was handed in, in OpenAI's form."""

    id: str
    """Begins with `file-`."""
    object: Literal["file"]
    """Always `file`."""
    bytes: int
    """Length; 0 where it is gone from storage."""
    created_at: int
    """When it was last handed in, in UTC epoch seconds."""
    filename: str
    """What a manifest's file was called; of a picture the beginning of its SHA-256."""
    purpose: Literal["vision", "batch"]
    """What it is for: `vision` for pictures, `batch` for manifests."""
    status: Literal["processed"]
    """Always `processed`."""
    expires_at: int | None
    """Always null."""


class IdAnswer(DescribedAnswer):
    """A whole id."""

    object: Literal["id"]
    """Always `id`."""
    id: str
    """The batch's or job's whole id."""


class HealthAnswer(DescribedAnswer):
    """Whether the farm can work."""

    status: str
    """`ok`, `no usable card`, `storage unwritable`, or with a 503 `store unreachable`."""
    detail: str | None = None
    """What is wrong, in words."""
    cards: int | None = None
    """Renderers that were heard of lately."""


class ListAnswer(DescribedAnswer, Generic[_Item]):
    """A page of a list."""

    object: Literal["list"]
    """Always `list`."""
    data: list[_Item]
    """What is on the page."""
    has_more: bool
    """Whether there is another page."""

    @classmethod
    def model_parametrized_name(cls, params: tuple[Any, ...]) -> str:
        """What a list of one kind of objects is called, such as `BatchList`."""
        kind = cls.__name__.removesuffix("Answer")
        return f"{getattr(params[0], '__name__', 'Item').removesuffix('Answer')}{kind}"


class ResultPageAnswer(ListAnswer[ResultAnswer]):
    """A page of a batch's results."""

    marks: str = ""
    """Names who marks the files, and changes with them; empty where nobody does."""


class PageAnswer(ListAnswer[_Item], Generic[_Item]):
    """A page of objects that have ids."""

    first_id: str | None
    """The first one's id; null where there is none."""
    last_id: str | None
    """The last one's id: the `after` of the next page."""
