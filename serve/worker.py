"""A renderer without Ray: one card, one model at a time, one clip on the card at a time."""

from __future__ import annotations

import gc
import logging
import os
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.cards import every_class
from cluster.escalation import story
from cluster.jobs import Ended, Objects, Outcome, Overflow
from cluster.lessons import Peak
from cluster.renderers import CardFree
from cluster.storage import MissingObjectError, Storage, StorageError, StorageShelf
from pipeline.admission import Admission, NeedsBiggerCard, Observation, Reservation
from pipeline.clip import ClipSpec
from pipeline.devices import Device
from pipeline.emulation import emulation_scale
from pipeline.families import Family, Stage, family_named
from pipeline.footprint import Footprint, footprint, leaner_fit, leanest, plan, weights_on_card
from pipeline.layouts import Layout
from pipeline.models.loading import load_model
from pipeline.models.model import Frames, Model, OnStep, Snapshot, Stopped
from pipeline.problems import BadInputError, Problem
from pipeline.render import render_frames, write_clip
from pipeline.weights import WeightsError
from serve.checkpoints import CheckpointEvery, Keeper
from serve.faults import is_out_of_memory, is_sticky
from serve.flight import CardIdentity, Flight, Hold, Nobody, Observer, WeightsPlace
from serve.settings import EMULATED_USABLE_SHARE

if TYPE_CHECKING:
    from pipeline.caches import TensorCache

log = logging.getLogger("clipmill.renderer")

#: One clip on the card at a time in this process, whatever Serve believes: a cancelled call frees its slot
#: before its thread has stopped, and the next clip must not start beside that ghost.
CARD_LOCK = threading.Lock()

#: How often a clip waits for other programs to give memory back after it ran out of it, and tries the same again.
_MOST_WAITS = 3


@dataclass(frozen=True, kw_only=True)
class _Admitted:
    layout: Layout
    predicted: Footprint
    #: The predicted peak, corrected by what was measured before.
    expected_bytes: int
    reservation: Reservation


@dataclass(frozen=True, kw_only=True)
class _Rendered:
    frames: Frames
    #: What the provenance says of the model.
    model: dict[str, Any]
    layout: Layout
    predicted: Footprint
    measured_bytes: int


@dataclass(frozen=True, kw_only=True)
class _Full:
    """The card was full."""

    stage: str
    failure: str


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
        hold: Hold | None = None,
    ) -> None:
        self._hold = hold or Hold()
        #: Why this process cannot use its card any more; empty while it can.
        self._broken = ""
        #: All that is promised of this card.
        self.admission = Admission()
        #: What the clip on the card waits for before it starts, in words; empty where it does not wait.
        self.holding = ""
        self._every = every or CheckpointEvery()
        self._observer: Observer = observer or Nobody()
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
        spec = flight.assignment.spec
        keeper = Keeper(
            self.storage,
            flight.assignment,
            flight.emit,
            self._every,
            self._clock,
            lambda nbytes: self._observer.checkpoint(spec, nbytes),
        )
        if self._broken:
            return Ended(outcome=Outcome.LOST, detail=f"this renderer is being replaced: {self._broken}")
        ended = self._end(flight, keeper)
        keeper.close()
        if ended.sticky:
            self._broken = ended.detail
        return replace(ended, checkpoint=keeper.newest, peaks=tuple(flight.peaks), overflows=tuple(flight.overflows))

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
            sticky = is_sticky(error)
            if sticky:
                # The snapshot is on the host: whatever became of the card, it is good.
                keeper.save_held()
            # A full disk knows better than the escalation what to do about it.
            problem = getattr(error, "problem", None)
            return Ended(outcome=Outcome.ERROR, detail=detail, problem=problem, sticky=sticky)

    def _run(self, flight: Flight, keeper: Keeper) -> Ended:
        spec = flight.assignment.spec
        still = self.storage.get_still(flight.assignment.still)
        resume = self._fetch(flight)
        self._take_card(flight)
        holds_slot = False
        admitted: _Admitted | None = None
        try:
            found = self._admit(flight)
            if isinstance(found, NeedsBiggerCard):
                return self._refuse(spec, found)
            admitted = found
            began = time.monotonic()
            rendered = self._render(flight, keeper, still, admitted, resume)
            if isinstance(rendered, Ended):
                return rendered
            predicted, measured_bytes = rendered.predicted, rendered.measured_bytes
            facts = {
                "content_key": flight.assignment.content_key,
                "still_sha256": flight.assignment.still,
                "adjusted": flight.assignment.row.get("adjusted") or [],
                "model": rendered.model,
                "layout": rendered.layout.model_dump(mode="json"),
                "escalated": [asdict(overflow) for overflow in flight.overflows],
                "card": {**self.identity.__dict__, "usable_bytes": self.device.usable_bytes()},
                "memory": {
                    "predicted_bytes": predicted.peak_bytes,
                    "corrected_bytes": admitted.expected_bytes,
                    "measured_bytes": measured_bytes,
                },
                "attempt": flight.assignment.attempt_id,
                "render_seconds": round(time.monotonic() - began, 3),
                **_resumption(flight, resume),
            }
            while not (holds_slot := self._publishing.acquire(timeout=0.1)):
                flight.check()
        finally:
            # By the thread that worked on the card, once it has: a cancelled clip keeps lock and promise until then.
            if admitted is not None:
                admitted.reservation.release()
            CARD_LOCK.release()
        try:
            flight.emit(CardFree())
            flight.check()
            objects = self._publish(flight, rendered.frames, facts)
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

    def _admit(self, flight: Flight) -> _Admitted | NeedsBiggerCard:
        """Promise the clip its part of the card; waits a while where other programs have taken it. Raises `Stopped`."""
        spec = flight.assignment.spec
        give_up: float | None = None
        try:
            while True:
                # Foreign memory first: what appears between the two readings makes the clip wait, not start.
                foreign, usable = self.device.foreign_bytes, self.device.usable_bytes()
                reserved = self.admission.reserved_bytes
                if planned := self._plan(flight, usable - reserved):
                    reservation = self.admission.reserve(min(planned[2], usable - reserved), usable)
                    if isinstance(reservation, Reservation):
                        if self._family is not None and self._family.name != spec.family:
                            self._unload()
                        layout, predicted, expected_bytes = planned
                        return _Admitted(
                            layout=layout, predicted=predicted, expected_bytes=expected_bytes, reservation=reservation
                        )
                least = leanest(spec)[1]
                refusal = NeedsBiggerCard(
                    predicted_bytes=least.peak_bytes,
                    usable_bytes=usable,
                    foreign_bytes=foreign,
                    reserved_bytes=reserved,
                    smallest_class=self._smallest_class(least.peak_bytes),
                    stage=least.largest,
                )
                if refusal.predicted_bytes > usable + foreign:
                    return refusal
                # A clip in flight ends by itself; how long another program stays nobody knows.
                if refusal.predicted_bytes > usable:
                    now = self._clock()
                    give_up = now + self._hold.patience_s if give_up is None else give_up
                    if now >= give_up:
                        return refusal
                if not self.holding:
                    log.info("attempt %s waits for memory: it %s", flight.assignment.attempt_id, refusal)
                self.holding = str(refusal)
                self._hold.pause(flight, self._hold.poll_s)
                flight.check(before=True)
        finally:
            self.holding = ""

    def _plan(self, flight: Flight, usable_bytes: int) -> tuple[Layout, Footprint, int] | None:
        spec = flight.assignment.spec
        correct = flight.assignment.lessons.corrector(spec.family)
        planned = plan(spec, usable_bytes, correct)
        return (*planned, correct(*planned)) if planned else None

    def _smallest_class(self, needed_bytes: int) -> str | None:
        if self.identity.kind == "emulated":
            return every_class(emulation_scale(), EMULATED_USABLE_SHARE).smallest_class_for(needed_bytes)
        return every_class().smallest_class_for(needed_bytes)

    def _refuse(self, spec: ClipSpec, refusal: NeedsBiggerCard) -> Ended:
        return Ended(
            outcome=Outcome.TOO_BIG,
            detail=(
                f"{spec.family} at {spec.width}×{spec.height} × {spec.frames} frames on {self.identity.card} "
                f"({self.identity.card_class}): {refusal}"
            ),
            predicted_bytes=refusal.predicted_bytes,
            usable_bytes=refusal.usable_bytes,
            foreign_bytes=refusal.foreign_bytes,
            smallest_class=refusal.smallest_class,
        )

    def _render(
        self, flight: Flight, keeper: Keeper, still: bytes, admitted: _Admitted, resume: bytes | None
    ) -> _Rendered | Ended:
        """Render, in ever leaner layouts where memory runs out, each going on from the newest snapshot.

        Ends: every layout after the first has a switch more than the one before.
        """
        layout, predicted = admitted.layout, admitted.predicted
        while True:
            tried = self._try(flight, keeper, still, layout, predicted, resume)
            if isinstance(tried, _Rendered):
                return tried
            # Outside the `except`: while the exception lives, its traceback keeps the tensors alive.
            gc.collect()
            self.device.free_cached()
            self._saw(flight, layout, predicted, out_of_memory=True)
            overflow = Overflow(
                stage=tried.stage,
                layout=str(layout),
                step=flight.steps[0],
                predicted_bytes=predicted.peak_bytes,
                measured_bytes=self.device.peak_bytes(),
                usable_bytes=self.device.usable_bytes(),
                card=self.identity.card,
            )
            flight.overflows.append(overflow)
            log.warning("attempt %s is out of memory: %s", flight.assignment.attempt_id, story([overflow]))
            if kept := self._kept_bytes():
                failure = f"{tried.failure}; {kept} bytes of it are not released, so this process is replaced"
                return self._out_of_memory(flight, keeper, overflow, failure, sticky=True)
            following = self._next(flight, layout, tried.stage)
            if following is None:
                return self._out_of_memory(flight, keeper, overflow, tried.failure)
            layout, predicted = following
            resume = self._go_back(flight, keeper, resume)

    def _try(
        self,
        flight: Flight,
        keeper: Keeper,
        still: bytes,
        layout: Layout,
        predicted: Footprint,
        resume: bytes | None,
    ) -> _Rendered | _Full:
        spec = flight.assignment.spec
        with self._work(family_named(spec.family)):
            stage = str(Stage.ENCODE)
            try:
                model = self._load(flight)
                self.device.reset_peak()
                try:
                    frames = self._frames(model, flight, keeper, still, layout, resume)
                finally:
                    stage = str(getattr(model, "stage", stage))
                measured_bytes = self.device.peak_bytes()
                self._saw(flight, layout, predicted, out_of_memory=False)
                return _Rendered(
                    frames=frames,
                    model={**model.describe(), **model.notes(spec)},
                    layout=layout,
                    predicted=predicted,
                    measured_bytes=measured_bytes,
                )
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                return _Full(stage=stage, failure=str(error))

    def _kept_bytes(self) -> int:
        """Bytes that a failed try left on the card beside the weights; 0 where it left none to speak of."""
        weights_bytes = getattr(self._model, "weights_bytes", None)
        if weights_bytes is None:
            return 0
        kept = self.device.used_bytes() - int(weights_bytes)
        # Below a hundredth of the card are workspaces that cuBLAS keeps, and blocks rounded up.
        return kept if kept > self.device.total_bytes // 100 else 0

    def _next(self, flight: Flight, layout: Layout, stage: str) -> tuple[Layout, Footprint] | None:
        """The next layout with `stage` leaner that fits; the same once more where other programs gave memory back."""
        spec, usable = flight.assignment.spec, self.device.usable_bytes()
        lessons, failed = flight.assignment.lessons, footprint(spec, layout)

        def expect(tried: Layout, predicted: Footprint) -> int:
            return lessons.correct_stage(spec.family, tried, predicted, stage)

        if following := leaner_fit(spec, layout, Stage(stage), usable, expect):
            return following
        foreign = self.device.foreign_bytes
        needed = expect(layout, failed)
        if needed > usable + foreign:
            needed = failed.stages[stage]
        if flight.waits >= _MOST_WAITS or not usable < needed <= usable + foreign:
            return None
        flight.waits += 1
        give_up = self._clock() + self._hold.patience_s
        self.holding = f"{stage} needs {needed} bytes, {usable} usable beside other programs"
        try:
            while self.device.usable_bytes() < needed:
                if self._clock() >= give_up:
                    return None
                self._hold.pause(flight, self._hold.poll_s)
                if flight.told:
                    break
        finally:
            self.holding = ""
        return layout, failed

    @staticmethod
    def _go_back(flight: Flight, keeper: Keeper, resume: bytes | None) -> bytes | None:
        """The newest snapshot of the clip, the flight's steps set back to it; None where it begins anew."""
        if flight.leaving:
            keeper.save_held()
        flight.check(before=True)
        step, data = 0, None
        if keeper.held is not None:
            step, data = keeper.held
        elif flight.assignment.resume is not None and not flight.refused:
            step, data = flight.assignment.resume.step, resume
        flight.steps = (step, flight.steps[1])
        return data

    def _out_of_memory(
        self, flight: Flight, keeper: Keeper, overflow: Overflow, failure: str, *, sticky: bool = False
    ) -> Ended:
        keeper.save_held()
        step, steps = flight.steps
        return Ended(
            outcome=Outcome.OOM,
            stage=overflow.stage,
            detail=f"out of memory in {overflow.stage} at step {step} of {steps} on {self.identity.card}: {failure}",
            measured_bytes=overflow.measured_bytes,
            predicted_bytes=overflow.predicted_bytes,
            usable_bytes=overflow.usable_bytes,
            foreign_bytes=self.device.foreign_bytes,
            sticky=sticky,
        )

    def _saw(self, flight: Flight, layout: Layout, predicted: Footprint, *, out_of_memory: bool) -> None:
        measured_bytes = self.device.peak_bytes()
        self._observer.memory(flight.assignment.spec, predicted.peak_bytes, measured_bytes)
        flight.peaks.append(
            Peak(
                layout=layout,
                predicted_bytes=predicted.peak_bytes,
                measured_bytes=measured_bytes,
                usable_bytes=self.device.usable_bytes(),
                out_of_memory=out_of_memory,
                absent_bytes=self._absent_bytes(flight.assignment.spec, layout),
                partial=bool(flight.overflows) or (flight.assignment.resume is not None and not flight.refused),
            )
        )
        # A family that uses no card memory says nothing about the card.
        if predicted.peak_bytes:
            expected = flight.assignment.lessons.correct(flight.assignment.spec.family, layout, predicted)
            self.device.observe(
                Observation(predicted_bytes=expected, measured_bytes=measured_bytes, out_of_memory=out_of_memory)
            )

    def _absent_bytes(self, spec: ClipSpec, layout: Layout) -> int:
        """Weights that `layout` keeps on the card and that were not needed: of encoders whose results are cached."""
        weights_bytes = getattr(self._model, "weights_bytes", None)
        if weights_bytes is None or layout.stream_weights:
            return 0
        return max(0, weights_on_card(family_named(spec.family), layout).decode_bytes - weights_bytes)

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

    def _load(self, flight: Flight) -> Model:
        if self._model is None:
            family = family_named(flight.assignment.spec.family)
            self._model = load_model(
                family,
                self.device,
                weights_dir=self._weights.folders.get(family.name),
                home=self._weights.home,
                offline=self._weights.offline,
                on_load=flight.loads,
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
