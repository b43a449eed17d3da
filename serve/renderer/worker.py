"""A renderer without Ray: one card, one model at a time, one clip on the card at a time."""

from __future__ import annotations

import contextvars
import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from cluster.dispatch.protocol import CardFree
from cluster.jobs.outcomes import Completed, Ended, Errored, Invalid, Lost, Stopped
from cluster.storage import CorruptObjectError, MissingObjectError, Storage, StorageError
from pipeline.clips.encode import EncodeError, EncoderEndedError
from pipeline.clips.still_check import check_still
from pipeline.devices.protocol import Device
from pipeline.families import family_named
from pipeline.kernels.kernels import KernelChoice
from pipeline.memory.admission import NeedsBiggerCard
from pipeline.models.model import RenderStopped
from pipeline.problems import BadInputError, Problem
from pipeline.weights.weights import WeightsError
from serve.renderer.active_clip import ActiveClip
from serve.renderer.admission import ClipAdmission, MemoryWait, MemoryWaiter
from serve.renderer.cards import CardIdentity, UnusableDevice
from serve.renderer.checkpoints import CheckpointEvery, CheckpointWriter
from serve.renderer.fallback import LayoutFallback
from serve.renderer.faults import is_sticky
from serve.renderer.observer import NullObserver, Observer
from serve.renderer.publish import ArrivingClip, Publisher, provenance_facts
from serve.renderer.rendering import LayoutRender, RenderedClip, RenderInput
from serve.renderer.storage_health import StorageHealth
from serve.renderer.warm_model import WarmModel, WeightsPlace

log = logging.getLogger("clipmill.renderer")

#: One clip on the card at a time in this process, whatever Serve believes: a cancelled call frees its slot
#: before its thread has stopped, and the next clip must not start beside it.
CARD_LOCK = threading.Lock()

_T = TypeVar("_T")


class RenderThread:
    """One thread that does all of a process's work on its card; others hand theirs in and wait.

    What CUDA's libraries keep they keep by thread: plans of convolutions, handles, workspaces. A second thread would
    plan every convolution again and hold workspaces of its own. Graphs are captured and replayed by one thread as well.
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="render")

    def run(self, work: Callable[[], _T]) -> _T:
        """Do `work` on the thread, after whatever it has to do before; returns and raises what it does.

        Waits however long it takes: what hangs there is ended with the process. Not to be called within `work`.
        """
        # With the caller's context, by which log lines name their request.
        return self._executor.submit(contextvars.copy_context().run, work).result()


#: The one of this process, as it has one card.
RENDER_THREAD = RenderThread()


class Worker:
    """Renders and publishes clips on one card. Each is read and published in the thread that calls `run`.

    All that touches the card, from loading to decoding, is done by `RENDER_THREAD`.

    The life of one clip, with the collaborator that does it:

    1. Its still and the checkpoint it goes on from come from storage (`_read`).
    2. It waits for the card: one clip at a time is on it (`_card`).
    3. It is promised its part of the card's memory, waits for that, or is refused (`admission.ClipAdmission`).
    4. A model of another family leaves the card, its own is loaded (`warm_model.WarmModel`).
    5. It is rendered (`rendering.LayoutRender`), in a leaner layout after an out-of-memory (`fallback.LayoutFallback`);
       checkpoints are written beside that (`checkpoints.CheckpointWriter`). Its frames are encoded as they come off
       the card (`publish.ArrivingClip`).
    6. It waits until no other clip is being published, gives the card to the next clip, and is reviewed, measured
       against its still, encoded to its end and put into storage with its provenance (`publish.Publisher`).
    7. Whatever came of it, also an exception in any of these, becomes one `Ended` (`_end`).
    """

    def __init__(
        self,
        identity: CardIdentity,
        device: Device,
        storage: Storage,
        weights: WeightsPlace,
        observer: Observer | None = None,
        clock: Callable[[], float] = time.monotonic,
        every: CheckpointEvery | None = None,
        memory_wait: MemoryWait | None = None,
        kernels: KernelChoice = KernelChoice.EAGER,
        cuda_graphs: bool = False,
        measures: bool = True,
    ) -> None:
        """`kernels`: what models compute with on this card; `cuda_graphs`: compiled steps may be recorded.

        `measures`: finished clips are measured against their stills.
        """
        #: Why this process cannot use its card any more; empty while it can.
        self._broken = ""
        self._every = every or CheckpointEvery()
        self._observer: Observer = observer or NullObserver()
        self._clock = clock
        self.identity = identity
        self.device = device
        self.storage = storage
        self._waiter = MemoryWaiter(memory_wait or MemoryWait(), clock)
        self.admission = ClipAdmission(identity, device, self._waiter)
        self.model = WarmModel(device, weights, storage, kernels, cuda_graphs=cuda_graphs)
        render = LayoutRender(device, self.model, self._observer, clock)
        self.fallback = LayoutFallback(identity, device, self.model, render, self._waiter)
        self.storage_health = StorageHealth(storage)
        self._publisher = Publisher(storage, self.storage_health, measures=measures)

    @property
    def family(self) -> str | None:
        """Name of the family whose weights are loaded; None where none are."""
        return self.model.family

    @property
    def waiting_for(self) -> str:
        """What the clip on the card waits for, in words; empty where it does not wait."""
        fault = self.storage_health.fault if self._publisher.waits else ""
        return self._waiter.waiting_for or (fault and f"is rendered and waits for storage: {fault}")

    @property
    def fault(self) -> str:
        """Why the card takes no clips that need a GPU, in words; empty where it does."""
        return str(self.device.fault) if isinstance(self.device, UnusableDevice) else ""

    @property
    def fault_passes(self) -> bool:
        """Whether the card has a fault that may be over by itself."""
        return isinstance(self.device, UnusableDevice) and self.device.fault.passes

    def run(self, clip: ActiveClip) -> Ended:
        """Render and publish one clip, in the calling thread. Never raises."""
        # Nothing is wrong with the process: what computes without the card is rendered.
        if self.fault and family_named(clip.spec.family).needs_torch:
            return Lost(detail=f"this renderer cannot use its card: {self.fault}")
        checkpoints = CheckpointWriter(
            self.storage,
            clip.assignment,
            clip.emit,
            self._every,
            self._clock,
            lambda nbytes: self._observer.checkpoint(clip.spec, nbytes),
            self.storage_health.failed,
        )
        if self._broken:
            return Lost(detail=f"this renderer is being replaced: {self._broken}")
        ended = self._end(clip, checkpoints)
        checkpoints.close()
        if ended.sticky:
            self._broken = ended.detail
        return replace(
            ended,
            checkpoint=checkpoints.newest,
            peaks=tuple(clip.peaks),
            overflows=tuple(clip.overflows),
            kernel_runs=tuple(clip.kernel_runs),
        )

    def _end(self, clip: ActiveClip, checkpoints: CheckpointWriter) -> Ended:
        try:
            return self._run(clip, checkpoints)
        except RenderStopped:
            lost = f"; the checkpoint is missing: {checkpoints.fault}" if clip.preempting and checkpoints.fault else ""
            return Stopped(detail=f"told to stop{lost}")
        except BadInputError as error:
            return Invalid(detail=str(error), problem=error.problem)
        except (MissingObjectError, WeightsError) as error:
            # Neither gets better by trying again on this farm; both say what to do.
            return Invalid(detail=str(error), problem=_problem_of(error))
        except EncoderEndedError as error:
            # Whoever ends all of a farm's processes meets ffmpeg before the renderer, which has time to say so.
            return Lost(detail=str(error))
        except Exception as error:
            log.exception("attempt %s failed", clip.attempt_id)
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f" ({Path(last.filename).name}:{last.lineno})"
            detail = f"{type(error).__name__}: {error}{where}"
            sticky = clip.broke_card or is_sticky(error)
            if sticky:
                # The snapshot is on the host: whatever became of the card, it is good.
                checkpoints.save_snapshot()
            # A full disk knows better than the dispatcher what to do about it.
            problem = getattr(error, "problem", None)
            away = isinstance(error, StorageError) and not isinstance(error, CorruptObjectError)
            denoised = isinstance(error, EncodeError)
            return Errored(detail=detail, problem=problem, sticky=sticky, storage=away, denoised=denoised)

    def _run(self, clip: ActiveClip, checkpoints: CheckpointWriter) -> Ended:
        with ArrivingClip(clip) as arriving:
            given = self._read(clip, checkpoints, arriving)
            with self._card(clip):
                found = RENDER_THREAD.run(partial(self._on_render_thread, given))
            if isinstance(found, Ended):
                return found
            rendered, facts = found
            try:
                clip.emit(CardFree())
                clip.check()
                published = self._publisher.publish(clip, arriving, rendered, facts)
            finally:
                self._publisher.end_turn()
        return Completed(
            objects=published.objects,
            notes=published.notes,
            fidelity=published.fidelity,
            measured_bytes=rendered.measured_bytes,
            predicted_bytes=rendered.predicted.peak_bytes,
            usable_bytes=self.device.usable_bytes(),
        )

    def _read(self, clip: ActiveClip, checkpoints: CheckpointWriter, arriving: ArrivingClip) -> RenderInput:
        still = self.storage.get_still(clip.assignment.still)
        # Again, as when it was handed in: perhaps to an older version, or to another store. Here it would be this
        # process that it takes the memory and the time of.
        check_still(still)
        resume: bytes | None = None
        if checkpoint := clip.assignment.resume:
            try:
                resume = self.storage.get_bytes(checkpoint.key)
            except (StorageError, ValueError) as error:
                clip.begin_anew(str(error))
        return RenderInput(clip=clip, still=still, resume=resume, checkpoints=checkpoints, sink=arriving)

    @contextmanager
    def _card(self, clip: ActiveClip) -> Iterator[None]:
        """The card for one clip: a cancelled one keeps it until its work on the render thread has ended."""
        while not CARD_LOCK.acquire(timeout=0.1):
            clip.check(before=True)
        try:
            clip.check(before=True)
            yield
        finally:
            CARD_LOCK.release()

    def _on_render_thread(self, given: RenderInput) -> tuple[RenderedClip, dict[str, Any]] | Ended:
        try:
            return self._render(given)
        except Exception as error:
            # Tried here: the card is still this clip's, and no other thread ever works on it.
            given.clip.broke_card = is_sticky(error, self.device)
            raise

    def _render(self, given: RenderInput) -> tuple[RenderedClip, dict[str, Any]] | Ended:
        """The rendered clip and its facts, with the turn to publish taken; or how the attempt ended instead."""
        spec = given.clip.spec
        admitted = self.admission.admit(given.clip)
        if isinstance(admitted, NeedsBiggerCard):
            return self.admission.refusal(spec, admitted)
        with admitted.reservation, _on_card(given.clip):
            self.model.make_room(spec.family)
            began = time.monotonic()
            rendered = self.fallback.render(given, admitted)
            if isinstance(rendered, Ended):
                return rendered
            facts = provenance_facts(
                given,
                admitted,
                rendered,
                identity=self.identity,
                usable_bytes=self.device.usable_bytes(),
                render_seconds=time.monotonic() - began,
            )
            self._publisher.take_turn(given.clip)
        return rendered, facts

    def close(self) -> None:
        """Release the card."""
        self.storage_health.close()
        with suppress(Exception), CARD_LOCK:
            RENDER_THREAD.run(self.model.unload)


@contextmanager
def _on_card(clip: ActiveClip) -> Iterator[None]:
    clip.on_card = True
    try:
        yield
    finally:
        clip.on_card = False


def _problem_of(error: MissingObjectError | WeightsError) -> Problem:
    if isinstance(error, WeightsError):
        return Problem(field="model", message=f"{error.what} ({error.where})", remedy=error.remedy)
    return Problem(
        field="image", message=error.problem.message, remedy="Submit the manifest again: it hands the still in anew."
    )
