"""Batches that somebody reviews, handed in as people do, on a farm whose cards a test stands in for."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from PIL import Image

from cluster.catalog.defaults import Defaults
from cluster.catalog.ingest import IncomingRow
from cluster.catalog.manifest import Row
from cluster.jobs.model import Batch, Job, JobState
from cluster.jobs.review import in_review
from pipeline.notes import Note
from tests.page_store import OWNER, PageFarm

#: Each row's own, so that no two of them are one clip.
PROMPT = "the camera slowly pans left across the product number {n}"


def picture(n: int) -> bytes:
    """A still that no other number has."""
    data = io.BytesIO()
    Image.new("RGB", (640, 640), (40 + 3 * n % 200, 90, 160)).save(data, "PNG")
    return data.getvalue()


def hand_in(
    it: PageFarm,
    rows: int,
    *,
    candidates: int = 1,
    prompts: Sequence[str] = (),
    model: str = "i2vgen-xl-tiny",
    terms: Any = None,
    name: str = "Reviewed",
    **defaults: Any,
) -> Batch:
    """A batch of so many rows of a manifest, each with its candidates and prompts."""
    incoming: list[IncomingRow] = []
    for number in range(1, rows + 1):
        still = it.farm.put_still(picture(number))
        texts = prompts or [PROMPT.format(n=number)]
        for place in range(candidates * len(texts)):
            name_of = f"SKU-{number:03}" + (f"-p{place // candidates + 1}" if len(texts) > 1 else "")
            name_of += f"-c{place % candidates + 1}" if candidates > 1 else ""
            row = Row(
                number=number,
                id=name_of,
                image=f"{number}.png",
                prompt=texts[place // candidates],
                candidates=candidates,
                candidate=place % candidates,
                prompts=len(texts),
                prompt_number=place // candidates,
            )
            incoming.append(IncomingRow(position=len(incoming) + 1, name=name_of, row=row, still=still, number=number))
    return it.farm.submit(incoming, Defaults(model=model, **defaults), name=name, terms=terms)


def render(it: PageFarm, batch_id: str, notes: dict[str, Sequence[Note]] | None = None) -> list[Job]:
    """Render all that waits for a card, as far as store and storage can tell; returns what was rendered."""
    done = []
    while queued := it.farm.batch_store.jobs(OWNER, batch_id, state=JobState.QUEUED):
        for job in queued:
            # One clip may have been another's, too.
            if it.farm.batch_store.job(OWNER, job.id).state is JobState.QUEUED:
                it.complete(job, notes=(notes or {}).get(job.name, ()))
                done.append(job)
    return done


def named(it: PageFarm, batch_id: str, name: str) -> Job:
    """The one row of the batch that is called so."""
    [job] = it.farm.batch_store.jobs(OWNER, batch_id, name=name)
    return job


def waiting(it: PageFarm, batch_id: str) -> list[str]:
    """Names of the rows whose draft waits for a review."""
    return [job.name for job in it.jobs(batch_id) if in_review(job)]
