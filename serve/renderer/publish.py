"""What happens to rendered frames: review, encoding and provenance, and the files that go into storage."""

from __future__ import annotations

import os
import threading
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cluster.backoff import doubling
from cluster.jobs.model import Objects
from cluster.storage import Storage, UnwritableError
from pipeline.clips.arriving import FrameEncoder
from pipeline.clips.frames import Frames
from pipeline.fidelity.score import FidelityScore
from pipeline.kernels.kernels import equality
from pipeline.notes import Note
from pipeline.private import ScratchFolder, scratch_folder
from pipeline.render import VIDEO, write_clip
from serve.renderer.active_clip import ActiveClip
from serve.renderer.admission import Admitted
from serve.renderer.cards import CardIdentity
from serve.renderer.rendering import RenderedClip, RenderInput
from serve.renderer.storage_health import PAUSES_S, StorageHealth
from serve.settings import SCRATCH_VARIABLE

#: How long the files of a clip wait for a storage that cannot be written, in seconds.
PATIENCE_S = 6 * 3600.0


class ArrivingClip:
    """Where a clip's frames go while later ones are still on the card: a folder on this host, and an encoder in it.

    A `pipeline.clips.frames.FrameSink`, whose calls raise `RenderStopped` where the clip is to stop. Use as a context
    manager: on leaving, however that comes, no process is left, and the folder with all that is in it is gone.
    """

    def __init__(self, clip: ActiveClip) -> None:
        self._clip = clip
        self._stack = ExitStack()
        self._scratch: ScratchFolder | None = None
        self._encoder: FrameEncoder | None = None

    def begin(self, frames: Frames) -> None:
        """Encode what is made in `frames` from now on; raises `OSError` where there is no folder to be had."""
        self._clip.check()
        self.encoder.begin(frames)

    def filled(self, count: int) -> None:
        """The first `count` frames are there."""
        self._clip.check()
        self.encoder.filled(count)

    @property
    def scratch(self) -> ScratchFolder:
        """The folder of the clip's files, made when it is first asked for. Raises `OSError`."""
        if self._scratch is None:
            # In the farm's own folder where it has one: what a killed renderer leaves is swept with it.
            place = os.environ.get(SCRATCH_VARIABLE)
            self._scratch = self._stack.enter_context(scratch_folder("clip-", Path(place) if place else None))
        return self._scratch

    @property
    def encoder(self) -> FrameEncoder:
        """What writes the clip's video into the folder. Raises `OSError`."""
        if self._encoder is None:
            path = self.scratch.path / VIDEO
            self._encoder = self._stack.enter_context(FrameEncoder(self._clip.spec.fps, path))
        return self._encoder

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


@dataclass(frozen=True, kw_only=True)
class PublishedClip:
    """A clip in storage, and what was judged of it."""

    objects: Objects
    #: What was noted before it was published, and by its review and its measure.
    notes: tuple[Note, ...]
    #: How true it is to its still and prompt; None where that was not measured.
    fidelity: FidelityScore | None


class Publisher:
    """Publishes one clip at a time, beside the one that is rendered: frames of more would fill the host's memory."""

    def __init__(
        self,
        storage: Storage,
        health: StorageHealth | None = None,
        patience_s: float = PATIENCE_S,
        *,
        measures: bool = True,
    ) -> None:
        """`patience_s`: how long the files of a clip wait on this host for a storage that cannot be written.

        `measures`: clips are measured against their stills (`pipeline.fidelity`).
        """
        self._storage, self._patience_s, self._measures = storage, patience_s, measures
        self._health = health or StorageHealth(storage)
        #: The clip that is being published waits for storage to be writable.
        self.waits = False
        self._turn = threading.BoundedSemaphore(1)

    def take_turn(self, clip: ActiveClip) -> None:
        """Wait until no other clip is being published; `end_turn` must follow.

        Raises `RenderStopped`, without the turn, where the clip is to stop.
        """
        while not self._turn.acquire(timeout=0.1):
            clip.check()

    def end_turn(self) -> None:
        """Let the next clip be published."""
        self._turn.release()

    def publish(
        self,
        clip: ActiveClip,
        arrived: ArrivingClip,
        rendered: RenderedClip,
        facts: dict[str, Any],
    ) -> PublishedClip:
        """Put the clip's video, poster, spritesheet and provenance (with `facts`) into storage.

        `arrived` has taken all of its frames, and may still be encoding the last of them. Meanwhile they are reviewed
        and measured.

        While storage cannot be written they wait on this host, and with them the next clip for its turn. Raises
        `RenderStopped` where the clip is to stop before all is stored, `EncodeError`, `SwappedFileError`, and
        `StorageError` where storage cannot be written for longer than it is waited for, or the clip is preempted.
        """
        assignment = clip.assignment
        scratch = arrived.scratch
        still = rendered.still if self._measures else None
        files = write_clip(
            rendered.frames, assignment.spec, scratch.path, facts, rendered.notes, arrived.encoder, still
        )
        clip.check()
        # Keyed by attempt: a zombie that publishes after its lease overwrites nothing.
        prefix = f"clips/{assignment.job_id}/{assignment.attempt_id}"
        keys: dict[str, str] = {}
        sizes: dict[str, int] = {}
        for name in ("video", "poster", "spritesheet", "provenance"):
            path: Path = getattr(files, name)
            keys[name] = f"{prefix}/{path.name}"
            # What was opened is stored: another file under the same name is somebody else's.
            with scratch.opened(path.name) as (source, found):
                sizes[name] = found.st_size
                self._put(clip, keys[name], source)
        objects = Objects(**keys, video_bytes=sizes["video"], frames_sha256=files.frames_sha256)
        return PublishedClip(objects=objects, notes=files.notes, fidelity=files.fidelity)

    def _put(self, clip: ActiveClip, key: str, path: str | Path) -> None:
        until = time.monotonic() + self._patience_s
        try:
            for pause_s in doubling(*PAUSES_S):
                try:
                    self._storage.put_file(key, path)
                    return
                except UnwritableError as error:
                    self._health.failed(error)
                    if clip.preempting or time.monotonic() > until:
                        raise
                self.waits = True
                clip.pause(pause_s)
                clip.check()
        finally:
            self.waits = False


def provenance_facts(
    given: RenderInput,
    admitted: Admitted,
    rendered: RenderedClip,
    *,
    identity: CardIdentity,
    usable_bytes: int,
    render_seconds: float,
) -> dict[str, Any]:
    """What a clip's provenance says of this attempt, its card and its memory; `write_clip` adds the rest."""
    clip = given.clip
    return {
        "content_key": clip.assignment.content_key,
        "still_sha256": clip.assignment.still,
        "adjusted": clip.assignment.row.get("adjusted") or [],
        "model": rendered.model,
        "layout": rendered.layout.model_dump(mode="json"),
        "escalated": [asdict(overflow) for overflow in clip.overflows],
        "card": {**asdict(identity), "usable_bytes": usable_bytes},
        "memory": {
            "predicted_bytes": rendered.predicted.peak_bytes,
            "corrected_bytes": admitted.expected_bytes,
            "measured_bytes": rendered.measured_bytes,
        },
        "attempt": clip.attempt_id,
        "render_seconds": round(render_seconds, 3),
        "rendered_at": int(time.time()),
        **_resumption(clip, given.resume, {**rendered.model, "layout": rendered.layout.model_dump(mode="json")}),
    }


def _resumption(clip: ActiveClip, resume: bytes | None, now: dict[str, Any]) -> dict[str, Any]:
    """What the provenance says of steps that other attempts did; `now`: where this one did the rest."""
    if clip.refused:
        return {"resume_refused": clip.refused}
    if resume is None:
        return {}
    from pipeline.denoising.checkpoint import parse

    stretches = [asdict(stretch) for stretch in clip.assignment.done]
    if stretches:
        made = dict(parse(resume).made)
        # Not called equal without a look: kernels, layouts and libraries that differ round differently.
        stretches[-1] |= {"made": made, **equality(made, now)}
    return {"resumed": stretches}
