"""A gateway over a store with every kind of batch, row and card that the page has to show, and no farm behind it."""

from __future__ import annotations

import io
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import sqlalchemy as sa
from PIL import Image, ImageDraw

from cluster.dispatch.retry import after_attempt
from cluster.farm import Farm
from cluster.fleet.cards import CardState
from cluster.jobs.commands import CardVerb
from cluster.jobs.model import Draft, Job
from cluster.jobs.outcomes import Completed, Errored
from cluster.jobs.transitions import Verb
from cluster.storage import Storage
from cluster.store import BatchStore, Claim, Database, DispatchStore
from cluster.store.schema import clips, jobs
from pipeline.clips.clip import ResolutionClass
from pipeline.fidelity.score import FidelityScore
from pipeline.notes import Note, as_json
from pipeline.problems import Problem
from pipeline.units import GIB
from serve.gateway.api import create_api, protect
from tests.building import FLEET, beat, claim_one, draft, objects, spec, still_png
from tests.served import served

OWNER = "local"
#: Text that breaks a page which does not escape it: markup, an end of a script, quotes, right-to-left, and no spaces.
HOSTILE = (
    "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>\"'&amp;{{7*7}}\u202eabc" + "w" * 300
)
PROBLEM = Problem(field="image", message="pics/5.webp ends after 1,024 bytes", remedy="Export the picture again.")
DARK = Note(code="still_dark", message="the picture is very dark: brighten it")
PROMPTS = ("camera slowly zooming in on the ceramic mug, steam rising", "pan left across the sneaker", "tilt up")
SIZES = ((512, 512), (512, 288), (288, 512), (512, 384))


@dataclass
class PageFarm:
    """A store as the page's tests need it."""

    farm: Farm
    dispatch: DispatchStore
    database: Database
    still: str
    #: Whether clips can be played; without it they are a few bytes.
    films: bool = True

    def batch(self, name: str, drafts: Sequence[Draft], **terms: Any) -> str:
        """A sealed batch of these rows."""
        batch_id, _ = self.farm.batch_store.open_batch(OWNER, name=name, **terms)
        self.farm.batch_store.add(OWNER, batch_id, list(drafts))
        self.farm.batch_store.seal(OWNER, batch_id)
        return batch_id

    def jobs(self, batch_id: str) -> list[Job]:
        return self.farm.batch_store.jobs(OWNER, batch_id)

    def claim(self, job: Job, card: str = "gpu0") -> Claim:
        return claim_one(self.dispatch, job, card)

    def complete(
        self,
        job: Job,
        card: str = "gpu0",
        notes: Sequence[Note] = (),
        claim: Claim | None = None,
        fidelity: FidelityScore | None = None,
    ) -> None:
        """Render a job, as far as store and storage can tell."""
        claim = claim or self.claim(job, card)
        width, height = (job.spec.width, job.spec.height) if job.spec else SIZES[0]
        ended = Completed(
            objects=objects(f"{job.id}/{claim.attempt_id}"),
            notes=tuple(notes),
            measured_bytes=3 * GIB,
            fidelity=fidelity,
        )
        self.store_clip(ended.objects.video, ended.objects.poster, (width, height), job.number)
        provenance = (
            b'{"memory": {"predicted_bytes": 3006477107, "corrected_bytes": 3113851289, "measured_bytes": 3221225472},'
            b' "escalated": [{"stage": "denoise", "layout": "everything", "step": 3, "predicted_bytes": 8000000000,'
            b' "measured_bytes": 7700000000, "usable_bytes": 7516192768, "card": "gpu0"}]}'
        )
        self.farm.storage.put_bytes(ended.objects.provenance, provenance)
        self.dispatch.finish(claim, ended, after_attempt(self.dispatch.current_job(claim), ended, FLEET))

    def fail(self, job: Job, times: int = 3) -> None:
        for _ in range(times):
            claim = self.claim(self.farm.batch_store.job(OWNER, job.id))
            ended = Errored(detail="RuntimeError: the sampler raised", measured_bytes=2 * GIB)
            self.dispatch.finish(claim, ended, after_attempt(self.dispatch.current_job(claim), ended, FLEET))

    def store_clip(self, video: str, poster: str, size: tuple[int, int], number: int) -> None:
        film, picture = moving(size, number % 6) if self.films else (b"a film", still_png())
        self.farm.storage.put_bytes(video, film)
        self.farm.storage.put_bytes(poster, picture)

    def many_completed(self, name: str, count: int) -> str:
        """A batch of so many finished rows that share four files: written at once, as rendering them takes too long."""
        drafts = [
            draft(
                n,
                f"many-{name}-{n}",
                name=f"SKU-{n:05}",
                still=self.still,
                row={"number": n, "prompt": PROMPTS[n % 3]},
                spec=clip_spec(n),
            )
            for n in range(1, count + 1)
        ]
        batch_id, _ = self.farm.batch_store.open_batch(OWNER, name=name)
        for first in range(0, count, 500):
            self.farm.batch_store.add(OWNER, batch_id, drafts[first : first + 500])
        self.farm.batch_store.seal(OWNER, batch_id)
        for kind, size in enumerate(SIZES):
            made = objects(f"many/{kind}")
            self.store_clip(made.video, made.poster, size, kind)
        with self.database.engine.begin() as c:
            found = c.execute(
                sa.select(jobs.c.id, jobs.c.number, jobs.c.content_key).where(jobs.c.batch_id == batch_id)
            ).all()
            values = [
                {
                    "id": f"clip-{row.id}",
                    "owner": OWNER,
                    "content_key": row.content_key,
                    "attempt_id": f"many-{row.number % 4}",
                    "objects": dict(vars(objects(f"many/{row.number % 4}")))
                    | ({"notes": as_json([DARK])} if row.number % 9 == 0 else {}),
                    "created_at": 1,
                }
                for row in found
            ]
            c.execute(clips.insert(), values)
            for row in found:
                c.execute(
                    sa.update(jobs).where(jobs.c.id == row.id).values(state="completed", clip_id=f"clip-{row.id}")
                )
        return batch_id


def clip_spec(n: int) -> Any:
    width, height = SIZES[n % 4]
    large = n % 5 == 0
    return spec(
        width=width,
        height=height,
        prompt=PROMPTS[n % 3],
        frames=16,
        resolution_class=ResolutionClass.P512 if large else ResolutionClass.P256,
    )


@cache
def moving(size: tuple[int, int], hue: int) -> tuple[bytes, bytes]:
    """A second of film (MP4) and its first frame (JPEG)."""
    colours = ("#c98b5a", "#5a7fc9", "#5aa987", "#b05a7f", "#8a7a5a", "#5a6a72")
    with tempfile.TemporaryDirectory() as folder:
        for n in range(8):
            frame = Image.new("RGB", size, colours[hue])
            ImageDraw.Draw(frame).ellipse(
                [20 + 16 * n, size[1] // 3, 20 + 16 * n + size[1] // 3, 2 * size[1] // 3], fill="white"
            )
            frame.save(Path(folder) / f"{n:03}.png")
        out = Path(folder) / "clip.mp4"
        options = ["-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p", "-movflags", "+faststart"]
        pattern = str(Path(folder) / "%03d.png")
        command = [
            imageio_ffmpeg.get_ffmpeg_exe(),
            "-y",
            "-loglevel",
            "error",
            "-threads",
            "1",
            "-framerate",
            "8",
            "-i",
            pattern,
        ]
        subprocess.run([*command, *options, str(out)], check=True)
        first = io.BytesIO()
        Image.open(Path(folder) / "000.png").save(first, "JPEG")
        return out.read_bytes(), first.getvalue()


def row(number: int, name: str, still: str, **changes: Any) -> Draft:
    """A row that can be rendered; `prompt` is one of `changes`."""
    prompt = changes.pop("prompt", PROMPTS[number % 3])
    facts = {"number": number, "prompt": prompt, "image": f"pics/{number}.webp", "extra": {"brand": f"Brand{number}"}}
    made = clip_spec(number).model_copy(update={"prompt": prompt})
    return draft(number, f"{name}-{number}-{prompt[:9]}", name=name, still=still, row=facts, spec=made, **changes)


@contextmanager
def page_farm(folder: Path, *, films: bool = True) -> Iterator[PageFarm]:
    """An empty store with a dispatcher in office that is not there."""
    database = Database.in_folder(folder / "home")
    farm = Farm(BatchStore(database), Storage(folder / "storage"), accepted=lambda: ())
    dispatch = DispatchStore(database)
    dispatch.take_office("test")
    yield PageFarm(farm=farm, dispatch=dispatch, database=database, still=farm.put_still(still_png()), films=films)
    database.close()


def beats_of(running: dict[str, tuple[int, int]]) -> list[Any]:
    """Three cards: one that renders the attempts of `running`, one that others fill, one that cannot be used."""
    return [
        beat(
            "gpu0",
            usable_bytes=21 * GIB,
            total_bytes=24 * GIB,
            used_bytes=14 * GIB,
            state=CardState.BUSY,
            steps=running,
            card_class="c24",
            kind="NVIDIA L4",
            family="wan2.2-5b",
        ),
        beat(
            "gpu1",
            usable_bytes=2 * GIB,
            total_bytes=8 * GIB,
            used_bytes=GIB,
            foreign_bytes=6 * GIB - 2**28,
            kind="NVIDIA RTX 4060",
        ),
        beat(
            "gpu2",
            usable_bytes=0,
            total_bytes=8 * GIB,
            used_bytes=0,
            kind="NVIDIA RTX 4060",
            fault="The driver does not answer. Restart the machine.",
        ),
    ]


def fill(it: PageFarm) -> dict[str, str]:
    """Batches of every kind: their ids by what they are."""
    still, ids = it.still, {}
    running = it.batch("Autumn catalogue", [
        *(row(n, f"MUG-{n:02}", still) for n in range(1, 13)),
        Draft(number=13, name="BROKEN-13", row={"number": 13, "prompt": "tilt up"}, problems=(PROBLEM,)),
    ])  # fmt: skip
    claims: dict[str, tuple[int, int]] = {}
    for number, job in enumerate(it.jobs(running)[:8]):
        it.complete(job, notes=[DARK] if number % 3 == 0 else ())
    claim = it.claim(it.jobs(running)[8])
    claims[claim.attempt_id] = (18, 30)
    it.dispatch.record_cards(beats_of(claims))
    ids["running"] = running
    ids["done"] = it.batch("One bag", [row(1, "BAG-1", still, prompt="turn around once")])
    it.complete(it.jobs(ids["done"])[0])
    ids["failed"] = it.batch("Lamps that failed", [row(1, "LAMP-1", still), row(2, "LAMP-2", still)])
    it.fail(it.jobs(ids["failed"])[0])
    it.complete(it.jobs(ids["failed"])[1])
    ids["paused"] = it.batch("Paused by somebody", [row(n, f"CUP-{n}", still) for n in range(1, 4)])
    it.farm.command_batch(ids["paused"], Verb.PAUSE)
    hostile = row(1, "x" * 60 + "<b>", still, prompt=HOSTILE)
    ids["hostile"] = it.batch(HOSTILE[:400], [
        replace(hostile, row=hostile.row | {"extra": {"note": HOSTILE}}),
        Draft(
            number=2,
            name="y<i>'\"",
            row={"number": 2, "prompt": HOSTILE},
            problems=(Problem(field="image", message=HOSTILE, remedy=HOSTILE),),
        ),
    ])  # fmt: skip
    it.complete(it.jobs(ids["hostile"])[0], notes=[Note(code="still_dark", message=HOSTILE)])
    it.farm.command_card("gpu2", CardVerb.LOCK, reason=HOSTILE[:200], by="<b>me</b>")
    return ids


async def nobody() -> None:
    """Nobody is nudged."""


@contextmanager
def gateway(it: PageFarm, port: int = 0) -> Iterator[str]:
    """The application over this store behind a real server (`port` 0: on a free one); yields its address."""
    with served(protect(create_api(it.farm, default_model="camera", nudge=nobody)), port) as found:
        yield f"http://127.0.0.1:{found}"
