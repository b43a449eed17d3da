"""A renderer without Ray: one card, one model at a time, one clip on the card at a time."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cluster.dispatcher import Assignment, CardFree, Event, StepDone
from cluster.jobs import Ended, Objects, Outcome
from cluster.storage import MissingObjectError, Storage, StorageError, StorageShelf
from pipeline.clip import ClipSpec
from pipeline.devices import Device
from pipeline.families import Family, family_named
from pipeline.footprint import Footprint, leanest, plan
from pipeline.layouts import Layout
from pipeline.models.loading import load_model
from pipeline.models.model import Frames, Model, OnStep, Snapshot, Stopped
from pipeline.problems import BadInputError, Problem
from pipeline.render import render_frames, write_clip
from pipeline.weights import WeightsError
from serve.checkpoints import CheckpointEvery, Keeper

if TYPE_CHECKING:
    from pipeline.caches import TensorCache

log = logging.getLogger("clipmill.renderer")

#: One clip on the card at a time in this process, whatever Serve believes: a cancelled call frees its slot
#: before its thread has stopped, and the next clip must not start beside that ghost.
CARD_LOCK = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class CardIdentity:
    """Which card a renderer holds."""

    card: str
    card_class: str
    kind: str


@dataclass(frozen=True, kw_only=True)
class WeightsPlace:
    """Where weights come from."""

    home: Path
    #: A local folder per family.
    folders: dict[str, Path]
    offline: bool
    #: Address asked instead of the hub; empty for the hub.
    mirror: str = ""
    #: Families whose licence was accepted in the farm's configuration.
    accepted: frozenset[str] = frozenset()
    #: Safetensors of the adapters that clips may name, by SHA-256.
    adapters: Mapping[str, Path] = field(default_factory=dict)


class Flight:
    """One assignment on its way through a worker; `stop` may be called from any thread."""

    def __init__(self, assignment: Assignment, emit: Callable[[Event], None]) -> None:
        self.assignment = assignment
        self.emit = emit
        self.steps = (assignment.resume.step if assignment.resume else 0, assignment.spec.total_steps)
        #: Why it begins anew although there was a checkpoint; empty where it does not.
        self.refused = ""
        self._stop = threading.Event()
        self._leave = threading.Event()

    def stop(self, *, checkpoint: bool = False) -> None:
        """Stop within a step; with `checkpoint`, save the clip first, or finish it where its frames are there."""
        (self._leave if checkpoint else self._stop).set()

    @property
    def leaving(self) -> bool:
        """Whether it was told to save a checkpoint and stop."""
        return self._leave.is_set()

    def check(self, *, before: bool = False) -> None:
        """Raise `Stopped` once told to stop; `before` the first step there is nothing to save either."""
        if self._stop.is_set() or (before and self.leaving):
            raise Stopped

    def report(self, step: int, steps: int) -> None:
        """Tell of a finished step."""
        self.steps = (step, steps)
        self.emit(StepDone(step=step, steps=steps))

    def begin_anew(self, reason: str) -> None:
        """The checkpoint cannot be used: all steps are still to be done."""
        log.warning("attempt %s begins anew: %s", self.assignment.attempt_id, reason)
        self.refused = reason
        self.steps = (0, self.assignment.spec.total_steps)


class Observer(Protocol):
    """Hears what rendering takes. Called in the render's thread; must be quick and must not raise."""

    def step(self, spec: ClipSpec, seconds: float) -> None:
        """A step took so long. A clip's first step is left out: encoders and decoder of the still share its time."""

    def memory(self, predicted_bytes: int, measured_bytes: int) -> None:
        """Predicted and measured peak of a clip that was rendered, or that ran out of memory."""


class _Nobody:
    def step(self, spec: ClipSpec, seconds: float) -> None:
        pass

    def memory(self, predicted_bytes: int, measured_bytes: int) -> None:
        pass


class Worker:
    """Holds a card, keeps one model warm, renders and publishes clips."""

    def __init__(
        self,
        identity: CardIdentity,
        device: Device,
        storage: Storage,
        weights: WeightsPlace,
        observer: Observer | None = None,
        clock: Callable[[], float] = time.monotonic,
        every: CheckpointEvery | None = None,
    ) -> None:
        self._every = every or CheckpointEvery()
        self._observer: Observer = observer or _Nobody()
        self._clock = clock
        self.identity = identity
        self.device = device
        self.storage = storage
        self._weights = weights
        self._family: Family | None = None
        self._model: Model | None = None
        # Outlives every model: what one clip encoded serves the next after a swap there and back.
        self._cache: TensorCache | None = None
        # At most one clip is being encoded beside the one on the card: frames of more would fill the host's memory.
        self._publishing = threading.BoundedSemaphore(1)

    @property
    def family(self) -> str | None:
        """Name of the family whose weights are loaded."""
        return self._family.name if self._family else None

    def run(self, flight: Flight) -> Ended:
        """Render and publish one clip, in the calling thread. Never raises."""
        keeper = Keeper(self.storage, flight.assignment, flight.emit, self._every, self._clock)
        ended = self._end(flight, keeper)
        keeper.close()
        return replace(ended, checkpoint=keeper.newest)

    def _end(self, flight: Flight, keeper: Keeper) -> Ended:
        try:
            return self._run(flight, keeper)
        except Stopped:
            lost = f"; the checkpoint is missing: {keeper.fault}" if flight.leaving and keeper.fault else ""
            return Ended(outcome=Outcome.STOPPED, detail=f"told to stop{lost}")
        except BadInputError as error:
            return Ended(outcome=Outcome.INVALID, detail=str(error), problem=error.problem)
        except (MissingObjectError, WeightsError) as error:
            # Neither gets better by trying again on this farm; both say what to do.
            return Ended(outcome=Outcome.INVALID, detail=str(error), problem=_explain(error))
        except Exception as error:
            log.exception("attempt %s failed", flight.assignment.attempt_id)
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f" ({Path(last.filename).name}:{last.lineno})"
            detail = f"{type(error).__name__}: {error}{where}"
            # A full disk knows better than the escalation what to do about it.
            return Ended(outcome=Outcome.ERROR, detail=detail, problem=getattr(error, "problem", None))

    def _run(self, flight: Flight, keeper: Keeper) -> Ended:
        spec = flight.assignment.spec
        still = self.storage.get_still(flight.assignment.still)
        resume = self._fetch(flight)
        self._take_card(flight)
        holds_slot = False
        try:
            began = time.monotonic()
            planned = self._plan(spec)
            if planned is None:
                return self._refuse(spec)
            layout, predicted = planned
            rendered = self._render(flight, keeper, still, layout, predicted, resume)
            if isinstance(rendered, Ended):
                return rendered
            frames, model_facts, measured_bytes = rendered
            facts = {
                "content_key": flight.assignment.content_key,
                "still_sha256": flight.assignment.still,
                "adjusted": flight.assignment.row.get("adjusted") or [],
                "model": model_facts,
                "layout": layout.model_dump(mode="json"),
                "card": {**self.identity.__dict__, "usable_bytes": self.device.usable_bytes()},
                "memory": {"predicted_bytes": predicted.peak_bytes, "measured_bytes": measured_bytes},
                "attempt": flight.assignment.attempt_id,
                "render_seconds": round(time.monotonic() - began, 3),
                **_resumption(flight, resume),
            }
            while not (holds_slot := self._publishing.acquire(timeout=0.1)):
                flight.check()
        finally:
            CARD_LOCK.release()
        try:
            flight.emit(CardFree())
            flight.check()
            objects = self._publish(flight, frames, facts)
        finally:
            if holds_slot:
                self._publishing.release()
        return Ended(
            outcome=Outcome.COMPLETED,
            objects=objects,
            measured_bytes=measured_bytes,
            predicted_bytes=predicted.peak_bytes,
            usable_bytes=self.device.usable_bytes(),
        )

    def _fetch(self, flight: Flight) -> bytes | None:
        checkpoint = flight.assignment.resume
        if checkpoint is None:
            return None
        try:
            return self.storage.get_bytes(checkpoint.key)
        except (StorageError, ValueError) as error:
            flight.begin_anew(str(error))
            return None

    def _take_card(self, flight: Flight) -> None:
        while not CARD_LOCK.acquire(timeout=0.1):
            flight.check(before=True)
        try:
            flight.check(before=True)
        except Stopped:
            CARD_LOCK.release()
            raise

    def _plan(self, spec: ClipSpec) -> tuple[Layout, Footprint] | None:
        if self._family is not None and self._family.name != spec.family:
            self._unload()
        return plan(spec, self.device.usable_bytes())

    def _refuse(self, spec: ClipSpec) -> Ended:
        needed, usable = leanest(spec)[1].peak_bytes, self.device.usable_bytes()
        return Ended(
            outcome=Outcome.TOO_BIG,
            detail=(
                f"{spec.family} at {spec.width}×{spec.height} × {spec.frames} frames needs {needed / 2**20:.0f} MiB; "
                f"{self.identity.card} ({self.identity.card_class}) has {usable / 2**20:.0f} MiB usable"
            ),
            predicted_bytes=needed,
            usable_bytes=usable,
        )

    def _render(
        self,
        flight: Flight,
        keeper: Keeper,
        still: bytes,
        layout: Layout,
        predicted: Footprint,
        resume: bytes | None,
    ) -> tuple[Frames, dict[str, Any], int] | Ended:
        spec = flight.assignment.spec
        failure: str | None = None
        with self._work(family_named(spec.family)):
            try:
                model = self._load(spec)
                self.device.reset_peak()
                frames = self._frames(model, flight, keeper, still, layout, resume)
                measured_bytes = self.device.peak_bytes()
                self._observer.memory(predicted.peak_bytes, measured_bytes)
                return frames, {**model.describe(), **model.notes(spec)}, measured_bytes
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                failure = str(error)
        # Outside the `except`: while the exception lives, its traceback keeps the tensors alive.
        self.device.free_cached()
        self._observer.memory(predicted.peak_bytes, self.device.peak_bytes())
        step, steps = flight.steps
        first = flight.assignment.resume.step if flight.assignment.resume and not flight.refused else 0
        stage = "decode" if step >= steps else "denoise" if step > first else "encode"
        if stage == "decode":
            keeper.save_final()
        return Ended(
            outcome=Outcome.OOM,
            stage=stage,
            detail=f"out of memory in {stage} at step {step} of {steps} on {self.identity.card}: {failure}",
            measured_bytes=self.device.peak_bytes(),
            predicted_bytes=predicted.peak_bytes,
            usable_bytes=self.device.usable_bytes(),
        )

    def _frames(
        self, model: Model, flight: Flight, keeper: Keeper, still: bytes, layout: Layout, resume: bytes | None
    ) -> Frames:
        spec = flight.assignment.spec
        if resume is not None:
            try:
                self._first_step(flight)
                return render_frames(model, still, spec, layout, self._on_step(flight, keeper), resume)
            except Exception as error:
                if not _is_refusal(error):
                    raise
                flight.begin_anew(str(error))
        # Outside the `except`, whose error may hold what is on the card.
        keeper.begin_anew()
        self._first_step(flight)
        return render_frames(model, still, spec, layout, self._on_step(flight, keeper))

    @staticmethod
    def _first_step(flight: Flight) -> None:
        flight.report(*flight.steps)
        flight.check(before=True)

    def _on_step(self, flight: Flight, keeper: Keeper) -> OnStep:
        last: float | None = None
        resumable = family_named(flight.assignment.spec.family).resumable

        def on_step(step: int, steps: int, snapshot: Snapshot | None) -> None:
            nonlocal last
            now = self._clock()
            if last is not None:
                self._observer.step(flight.assignment.spec, now - last)
            last = now
            flight.report(step, steps)
            flight.check()
            # Where a clip cannot be left at this very step, it can a few steps on.
            if flight.leaving and (snapshot is not None or not resumable):
                if snapshot is not None:
                    keeper.save_now(step, snapshot)
                raise Stopped
            keeper.after_step(step, steps, snapshot)

        return on_step

    def _work(self, family: Family | None) -> AbstractContextManager[None]:
        # A family without torch leaves the card's torch side closed: opening it costs seconds and 350 MB.
        return self.device.work() if family is None or family.needs_torch else nullcontext()

    def _load(self, spec: ClipSpec) -> Model:
        if self._model is None:
            family = family_named(spec.family)
            self._model = load_model(
                family,
                self.device,
                weights_dir=self._weights.folders.get(family.name),
                home=self._weights.home,
                offline=self._weights.offline,
                on_load=log.info,
                mirror=self._weights.mirror,
                accepted=self._weights.accepted,
                adapters=self._weights.adapters,
                cache=self._shared_cache() if family.needs_torch else None,
            )
            self._family = family
        return self._model

    def _shared_cache(self) -> TensorCache:
        if self._cache is None:
            from pipeline.caches import TensorCache

            self._cache = TensorCache(shelf=StorageShelf(self.storage))
        return self._cache

    def _unload(self) -> None:
        if self._model is not None:
            with self._work(self._family):
                self._model.unload()
            self._model = self._family = None
            self.device.free_cached()

    def _publish(self, flight: Flight, frames: Frames, facts: dict[str, Any]) -> Objects:
        assignment = flight.assignment
        # In the farm's own folder where it has one: what a killed renderer leaves is swept with it.
        place = os.environ.get("RAY_TMPDIR")
        place = place if place and Path(place).is_dir() else None
        with tempfile.TemporaryDirectory(prefix="clip-", dir=place, ignore_cleanup_errors=True) as folder:
            files = write_clip(frames, assignment.spec, Path(folder), facts)
            flight.check()
            # Keyed by attempt: a zombie that publishes after its lease overwrites nothing.
            prefix = f"clips/{assignment.job_id}/{assignment.attempt_id}"
            keys = {}
            for name in ("video", "poster", "spritesheet", "provenance"):
                path: Path = getattr(files, name)
                keys[name] = f"{prefix}/{path.name}"
                self.storage.put_file(keys[name], path)
            return Objects(**keys, video_bytes=files.video.stat().st_size, frames_sha256=files.frames_sha256)

    def close(self) -> None:
        """Release the card."""
        with suppress(Exception), CARD_LOCK:
            self._unload()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that the card is full, in any of the forms libraries give it."""
    if type(error).__name__ in ("OutOfMemoryError", "AcceleratorOutOfMemoryError"):
        return True
    text = str(error)
    # cuBLAS and cuDNN report a failed allocation as a plain RuntimeError.
    marks = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION")
    return isinstance(error, RuntimeError) and any(mark in text for mark in marks)


def _is_refusal(error: Exception) -> bool:
    # Imported here: it needs torch, and only what ran on torch can have raised it.
    from pipeline.checkpoint import CheckpointError

    return isinstance(error, CheckpointError)


def _resumption(flight: Flight, resume: bytes | None) -> dict[str, Any]:
    """What the provenance says of steps that other attempts did."""
    if flight.refused:
        return {"resume_refused": flight.refused}
    if resume is None:
        return {}
    from pipeline.checkpoint import parse

    stretches = [asdict(stretch) for stretch in flight.assignment.done]
    if stretches:
        stretches[-1]["made"] = dict(parse(resume).made)
    return {"resumed": stretches}


def _explain(error: MissingObjectError | WeightsError) -> Problem:
    if isinstance(error, WeightsError):
        return Problem(field="model", message=f"{error.what} ({error.where})", remedy=error.remedy)
    return Problem(
        field="image", message=error.problem.message, remedy="Submit the manifest again: it hands the still in anew."
    )
