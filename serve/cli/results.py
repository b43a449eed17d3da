"""From jobs and clips to the files in OUT."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.contact_sheet import BatchSummary, ResultRow
from cluster.farm import Farm
from cluster.jobs import Batch, Clip, Job, JobState
from cluster.results import write_clip, write_sheet
from pipeline.clip import NO_PROMPT


class ResultsWriter:
    """Writes a batch's results into a folder, each clip once as it completes."""

    def __init__(self, farm: Farm, out: Path, facts: Mapping[str, Any]) -> None:
        self.farm = farm
        self.out = out
        self._facts = facts
        self._seen: set[str] = set()
        self._since = 0
        #: Files written by this command.
        self.written = 0

    def update(self, batch_id: str) -> int:
        """Write the clips that completed since the last call; returns how many rows they are."""
        desk, owner = self.farm.desk, self.farm.owner
        completed = desk.jobs(owner, batch_id, state=JobState.COMPLETED, updated_since=self._since)
        new = [job for job in completed if job.id not in self._seen]
        if not new:
            return 0
        clips = desk.clips(owner, {job.clip_id for job in new if job.clip_id})
        # Inclusive next time: the store's clock counts whole seconds.
        self._since = max(job.updated_at for job in new)
        for job in new:
            row = result_row(job, clips)
            self.written += len(write_clip(self.out, row, self.farm.storage, self._facts))
            self._seen.add(job.id)
        return len(new)

    def sheet(self, batch: Batch, cards: str) -> Path:
        """Write the contact sheet of the batch as it stands."""
        clips = self.farm.clips(batch.id)
        jobs = self.farm.jobs(batch.id)
        makers = {clip.attempt_id: clip.id for clip in clips.values()}
        own = {attempt.job_id: attempt.id for attempt in self.farm.desk.attempts_of(batch.owner, batch.id)}
        first: dict[str, str] = {}
        for job in jobs:
            if job.clip_id and makers.get(own.get(job.id, "")) == job.clip_id:
                first[job.clip_id] = job.name
        rows = [result_row(job, clips, first.get(job.clip_id or "")) for job in jobs]
        summary = BatchSummary(
            batch_id=batch.id, finished_at=int(time.time()), wall_s=time.time() - batch.created_at, cards=cards
        )
        return write_sheet(self.out, batch.name, rows, summary)


def result_row(job: Job, clips: Mapping[str, Clip], shared_with: str | None = None) -> ResultRow:
    """A job as the contact sheet shows it."""
    clip = clips.get(job.clip_id) if job.clip_id else None
    spec = job.spec
    return ResultRow(
        id=job.name,
        number=int(job.row.get("number", job.number)),
        prompt=spec.prompt if spec and spec.prompt != NO_PROMPT else str(job.row.get("prompt") or ""),
        state=job.state.value,
        problem=job.problems[0] if job.problems else None,
        reason=job.reason or "",
        model=spec.family if spec else "",
        resolution_class=spec.resolution_class.value if spec else "",
        width=spec.width if spec else 0,
        height=spec.height if spec else 0,
        frames=spec.frames if spec else 0,
        fps=spec.fps if spec else 0,
        seconds=spec.seconds if spec else 0.0,
        seed=spec.seed if spec else None,
        image=str(job.row.get("image") or ""),
        extra=job.row.get("extra") or {},
        adjusted=tuple(job.row.get("adjusted") or ()),
        notes=tuple(job.row.get("notes") or ()),
        lossy=spec.lossy if spec else (),
        video_key=clip.objects.video if clip else None,
        poster_key=clip.objects.poster if clip else None,
        provenance_key=clip.objects.provenance if clip else None,
        attempts=job.attempts,
        shared_with=shared_with if shared_with != job.name else None,
    )
