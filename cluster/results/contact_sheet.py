"""The contact sheet: one self-contained HTML page that plays a batch's clips from the folder it lies in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import jinja2

from cluster.catalog.names import file_stem
from pipeline.fidelity.score import FidelityScore
from pipeline.notes import Note
from pipeline.problems import Problem
from pipeline.units import format_duration

State = Literal["completed", "failed", "cancelled", "queued", "running", "held"]

#: States in the order in which people look for them.
STATES: tuple[State, ...] = ("completed", "failed", "cancelled", "running", "queued", "held")

#: Shape of the tile of a row that never got a size, such as one with an unreadable image.
_CARD_ASPECT = 1.25


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """One clip of a batch, finished or not, as a person sees it. Zero means not known for the counted fields."""

    #: A valid file name, unique in the batch.
    id: str
    #: Line of the manifest, from 1.
    number: int
    prompt: str
    state: State
    #: What was wrong, for a failed row.
    problem: Problem | None = None
    #: Why the row is where it is: `approval`, `out_of_memory`, …
    reason: str = ""
    model: str = ""
    resolution_class: str = ""
    width: int = 0
    height: int = 0
    frames: int = 0
    fps: int = 0
    #: Length of the clip.
    seconds: float = 0.0
    seed: int | None = None
    #: The image as the manifest names it.
    image: str = ""
    #: The manifest's columns that the farm does not know.
    extra: Mapping[str, object] = field(default_factory=dict)
    #: What was assumed, adjusted or judged of the row and its clip.
    noted: tuple[Note, ...] = ()
    #: Short cuts that change the picture; empty for the plain algorithm.
    lossy: tuple[str, ...] = ()
    video_key: str | None = None
    poster_key: str | None = None
    provenance_key: str | None = None
    attempts: int = 0
    #: The id of an equal row whose clip this one shares.
    shared_with: str | None = None
    #: When the clip's files were swept or deleted, in UTC epoch seconds; None: they are there, or nothing says.
    expired_at: int | None = None
    #: What names the clip wherever it lies; empty where nothing is known of it.
    content_key: str = ""
    #: Profiles that the row asks to be delivered for; None: it does not say.
    deliver: tuple[str, ...] | None = None
    #: What became of each profile, in words; only where deliveries were made.
    delivered: Mapping[str, str] = field(default_factory=dict)
    #: What was decided of it in review: `picked`, `round`, `rounds`, `candidates_of` and `steps`; empty: nothing was.
    review: Mapping[str, object] = field(default_factory=dict)
    #: How true the clip is to its still and prompt; None where that was not measured.
    fidelity: FidelityScore | None = None

    @property
    def shows_clip(self) -> bool:
        """Whether there is a clip of it to look at: finished, or a draft that waits for its review."""
        there = self.state == "completed" or (self.state == "held" and self.reason == "review")
        return there and self.video_key is not None and self.expired_at is None


@dataclass(frozen=True, kw_only=True)
class BatchSummary:
    """What the sheet says of the batch as a whole, besides what it counts itself."""

    batch_id: str = ""
    #: UTC epoch seconds; None leaves the time out.
    finished_at: int | None = None
    #: From submission to the last clip; None leaves it out.
    wall_s: float | None = None
    #: The cards that worked, such as `4 × c24`.
    cards: str = ""


def file_url(name: str) -> str:
    """Relative URL of a file beside the sheet; no name can become a scheme, a query or another folder."""
    return quote(name, safe="")


def render(batch_name: str, rows: Sequence[ResultRow], summary: BatchSummary) -> str:
    """The page as HTML; its clips are expected beside it as `<id>.mp4`, `<id>.jpg` and `<id>.json`."""
    # Autoescaping is set by hand: jinja2's default leaves templates called *.j2 unescaped.
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    counts = Counter(row.state for row in rows)
    return environment.get_template("contact_sheet.html.j2").render(
        name=batch_name,
        tiles=[_tile(row) for row in rows],
        states=[(state, counts[state]) for state in STATES if counts[state]],
        classes=sorted({row.resolution_class for row in rows if row.resolution_class}, key=_class_side),
        total=len(rows),
        facts=_summary_facts(rows, summary),
        looks=_look_counts(rows),
        worth=sum(bool(looks_of(row)) for row in rows),
        measured=any(row.fidelity for row in rows),
        finished=_moment(summary.finished_at),
    )


def _summary_facts(rows: Sequence[ResultRow], summary: BatchSummary) -> list[tuple[str, str]]:
    completed = [row for row in rows if row.state == "completed"]
    models = sorted({row.model for row in rows if row.model})
    facts = [
        ("Footage", format_duration(sum(row.seconds for row in completed)) if completed else "none yet"),
        ("Model", ", ".join(models)),
        ("Cards", summary.cards),
        ("Took", format_duration(summary.wall_s) if summary.wall_s is not None else ""),
        ("Batch", summary.batch_id),
    ]
    return [(label, value) for label, value in facts if value]


def looks_of(row: ResultRow) -> list[Note]:
    """One note of each kind that makes the row worth a look, in the order of the row."""
    return list({note.code: note for note in row.noted if note.worth_a_look}.values())


def _look_counts(rows: Sequence[ResultRow]) -> list[tuple[str, int]]:
    """Kinds of notes worth a look and how many rows have each, the most frequent first."""
    return Counter(note.title for row in rows for note in looks_of(row)).most_common()


def _moment(epoch_s: int | None) -> tuple[str, str] | None:
    if epoch_s is None:
        return None
    when = datetime.fromtimestamp(epoch_s, UTC)
    return when.strftime("%Y-%m-%dT%H:%M:%SZ"), f"{when.day} {when:%B %Y, %H:%M} UTC"


def _class_side(name: str) -> tuple[int, str]:
    digits = name.rstrip("p")
    return (int(digits) if digits.isdecimal() else 0), name


def _tile(row: ResultRow) -> dict[str, object]:
    playable = row.state == "completed" and row.video_key is not None
    return {
        "id": row.id,
        "number": row.number,
        "state": row.state,
        "prompt": row.prompt,
        "class": row.resolution_class,
        "video": file_url(f"{file_stem(row.id)}.mp4") if playable else "",
        "poster": file_url(f"{file_stem(row.id)}.jpg") if playable and row.poster_key else "",
        "json": file_url(f"{file_stem(row.id)}.json") if playable and row.provenance_key else "",
        "width": row.width,
        "height": row.height,
        "aspect": round(row.width / row.height, 4) if playable and row.width and row.height else _CARD_ASPECT,
        "seconds": round(row.seconds, 3),
        "length": format_duration(row.seconds) if row.seconds else "",
        "field": row.problem.field if row.problem else "",
        "message": row.problem.message if row.problem else why_no_clip(row, "when this sheet was written"),
        "remedy": row.problem.remedy if row.problem else "",
        "lossy": "; ".join(row.lossy),
        "look": [note.title for note in looks_of(row)],
        "fidelity": None if row.fidelity is None else row.fidelity.score,
        "facts": facts_of(row),
    }


_HELD = {
    "approval": "Waiting for an approval",
    "paused": "Paused",
    "after": "Waiting for another row",
    "review": "Its draft waits for a review",
    "budget": "Its batch has used what it may",
    "failures": "Its batch has stopped: too many rows failed",
}


def why_no_clip(row: ResultRow, moment: str = "") -> str:
    """Why a row has no finished clip to play, in words; empty where it has one.

    `moment`: what is said of things that go on, such as `when this sheet was written`.
    """
    reason, then = row.reason.replace("_", " "), f" {moment}" if moment else ""
    match row.state:
        case "failed":
            return f"Failed: {reason}." if reason else "Failed; the batch's status says more."
        case "cancelled" if row.review.get("picked") is False:
            return "Rejected, or another was picked."
        case "cancelled":
            return "Cancelled before it was finished."
        case "held" if row.reason == "review" and row.expired_at is not None:
            return "Its draft was deleted, being old: approve it, or make another."
        case "held":
            return f"{_HELD.get(row.reason, f'Held: {reason}' if reason else 'On hold')}."
        case "running":
            return f"Being rendered{then}."
        case "queued":
            return f"Waiting for a card{then}."
        case "completed":
            if row.expired_at is not None:
                return "Its clip was deleted, being old."
            return "" if row.shows_clip else "Done; its clip is kept elsewhere."


def facts_of(row: ResultRow) -> list[tuple[str, str]]:
    """All that is known of a row besides its prompt, as labels and texts; one without a label goes on with the last."""
    frames = f"{row.frames} at {row.fps} fps, {format_duration(row.seconds)}" if row.frames and row.fps else ""
    looks = [note.message for note in row.noted if note.worth_a_look]
    known = [
        ("Image", row.image),
        ("Row", str(row.number)),
        ("Class", row.resolution_class),
        ("Size", f"{row.width} × {row.height}" if row.width and row.height else ""),
        ("Frames", frames),
        ("Seed", "" if row.seed is None else str(row.seed)),
        ("Model", row.model),
        ("Lossy", "; ".join(row.lossy)),
        ("Fidelity", "" if row.fidelity is None else row.fidelity.words),
        *zip(["Worth a look", *[""] * len(looks)], looks, strict=False),
        ("Adjusted", "; ".join(note.message for note in row.noted if note.adjusted)),
        *zip(["Delivered", *[""] * len(row.delivered)], (f"{k}: {v}" for k, v in row.delivered.items()), strict=False),
        ("Note", "; ".join(note.message for note in row.noted if not note.worth_a_look and not note.adjusted)),
        ("Attempts", str(row.attempts) if row.attempts > 1 else ""),
        ("Same clip as", row.shared_with or ""),
    ]
    columns = [(name, "" if value is None else str(value)) for name, value in row.extra.items()]
    return [(label, value) for label, value in known + columns if value]
