"""One clip in one layout on the card: its steps, its snapshots, and what it took of the card."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from cluster.jobs.outcomes import Peak
from cluster.jobs.strict import refusals
from pipeline.clips.clip import ClipSpec
from pipeline.clips.frames import Frames, FrameSink
from pipeline.clips.inspection.autofix import fix_still, with_autofix
from pipeline.clips.inspection.judge import judge_still
from pipeline.clips.stills import decode_still
from pipeline.devices.protocol import Device
from pipeline.families import Stage, family_named
from pipeline.families.layouts import Layout
from pipeline.fidelity.measured import reduced
from pipeline.memory.admission import Observation
from pipeline.memory.footprint import Footprint, weights_on_card
from pipeline.models.model import Model, OnStep, RenderStopped, Snapshot
from pipeline.notes import Note, reading_notes
from pipeline.problems import BadInputError
from pipeline.render import render_frames
from serve.renderer.active_clip import ActiveClip
from serve.renderer.checkpoints import CheckpointWriter
from serve.renderer.faults import is_out_of_memory
from serve.renderer.observer import Observer
from serve.renderer.warm_model import WarmModel


@dataclass(frozen=True, kw_only=True)
class RenderInput:
    """A clip with all that rendering it needs besides a layout."""

    clip: ActiveClip
    #: Bytes of the still's file.
    still: bytes
    #: The checkpoint of an earlier attempt to go on from; None: there is none, or it could not be read.
    resume: bytes | None
    checkpoints: CheckpointWriter
    #: Told of frames as they come off the card.
    sink: FrameSink


@dataclass(frozen=True, kw_only=True)
class RenderedClip:
    """All frames of a clip, on the host, and how they came about."""

    frames: Frames
    #: The still as the model was given it, RGB, no larger than measuring the clip takes.
    still: Image.Image
    #: What the provenance says of the model.
    model: dict[str, Any]
    #: What a person should know of the clip before anybody has looked at its frames: how still and texts were read.
    notes: tuple[Note, ...]
    layout: Layout
    predicted: Footprint
    measured_bytes: int


@dataclass(frozen=True, kw_only=True)
class CardFull:
    """The card ran out of memory in `stage`; `failure` is what the library said."""

    stage: str
    failure: str


class LayoutRender:
    """Renders a clip in a given layout. Called by one thread at a time, the one that has the card."""

    def __init__(self, device: Device, model: WarmModel, observer: Observer, clock: Callable[[], float]) -> None:
        self._device = device
        self._model = model
        self._observer = observer
        self._clock = clock

    def run(
        self, given: RenderInput, layout: Layout, predicted: Footprint, resume: bytes | None
    ) -> RenderedClip | CardFull:
        """Render all that is left of the clip after the checkpoint `resume`; None: from step 0.

        Raises `RenderStopped` where the clip is to end, and whatever else loading and rendering raise.
        """
        clip, spec = given.clip, given.clip.spec
        stage = str(Stage.ENCODE)
        try:
            # Inside the `try`: opening the card takes memory as well.
            with self._model.work(family_named(spec.family)):
                model = self._model.load(clip)
                self._device.reset_peak()
                before = self._model.kernel_counts
                try:
                    if clip.assignment.row.get("strict"):
                        _refuse_cut(model.notes(spec))
                    still = decode_still(given.still)
                    fixed = fix_still(still.image, spec.autofix)
                    frames = self._frames(model, fixed.image, given, layout, resume)
                finally:
                    stage = str(getattr(model, "stage", stage))
                    self._observer.kernels(spec, self._model.kernel_counts.since(before))
                measured_bytes = self._device.peak_bytes()
                self.record_peak(clip, layout, predicted, out_of_memory=False)
                read = model.notes(spec)
                return RenderedClip(
                    frames=frames,
                    still=reduced(fixed.image),
                    model={**model.describe(), **read},
                    notes=(
                        *still.notes,
                        *fixed.notes,
                        *with_autofix(judge_still(fixed.image), spec.autofix),
                        *reading_notes(read),
                    ),
                    layout=layout,
                    predicted=predicted,
                    measured_bytes=measured_bytes,
                )
        except Exception as error:
            if not is_out_of_memory(error, self._device):
                raise
            return CardFull(stage=stage, failure=str(error))

    def record_peak(self, clip: ActiveClip, layout: Layout, predicted: Footprint, *, out_of_memory: bool) -> None:
        """Keep what the clip took of the card in `layout`: for its completion, the observer and the card's margin."""
        measured_bytes = self._device.peak_bytes()
        self._observer.memory(clip.spec, predicted.peak_bytes, measured_bytes)
        clip.peaks.append(
            Peak(
                layout=layout,
                predicted_bytes=predicted.peak_bytes,
                measured_bytes=measured_bytes,
                usable_bytes=self._device.usable_bytes(),
                out_of_memory=out_of_memory,
                absent_bytes=self._absent_bytes(clip.spec, layout),
                partial=bool(clip.overflows) or clip.resumed,
            )
        )
        # A family that uses no card memory says nothing about the card.
        if predicted.peak_bytes:
            expected = clip.assignment.lessons.correct(clip.spec.family, layout, predicted)
            self._device.observe(
                Observation(predicted_bytes=expected, measured_bytes=measured_bytes, out_of_memory=out_of_memory)
            )

    def _absent_bytes(self, spec: ClipSpec, layout: Layout) -> int:
        """Weights that `layout` keeps on the card and that were not needed: of encoders whose results are cached."""
        weights_bytes = self._model.weights_bytes
        if weights_bytes is None or layout.stream_weights:
            return 0
        return max(0, weights_on_card(family_named(spec.family), layout).decode_bytes - weights_bytes)

    def _frames(
        self, model: Model, still: Image.Image, given: RenderInput, layout: Layout, resume: bytes | None
    ) -> Frames:
        clip = given.clip
        if resume is not None:
            try:
                _first_step(clip)
                return render_frames(model, still, clip.spec, layout, self._on_step(given), resume, given.sink)
            except Exception as error:
                if not _is_refusal(error):
                    raise
                clip.begin_anew(str(error))
        # Outside the `except`, whose error may keep tensors on the card.
        given.checkpoints.begin_anew()
        _first_step(clip)
        return render_frames(model, still, clip.spec, layout, self._on_step(given), None, given.sink)

    def _on_step(self, given: RenderInput) -> OnStep:
        clip, checkpoints = given.clip, given.checkpoints
        last: float | None = None
        resumable = family_named(clip.spec.family).resumable

        def on_step(step: int, steps: int, snapshot: Snapshot | None) -> None:
            nonlocal last
            now = self._clock()
            if last is not None:
                self._observer.step(clip.spec, now - last)
            last = now
            self._device.publish()
            clip.report(step, steps)
            clip.check()
            # Where a clip cannot be preempted at this very step, it can a few steps on.
            if clip.preempting and (snapshot is not None or not resumable):
                if snapshot is not None:
                    checkpoints.save_now(step, snapshot)
                raise RenderStopped
            checkpoints.after_step(step, steps, snapshot)

        return on_step


def _first_step(clip: ActiveClip) -> None:
    clip.report(*clip.steps)
    clip.check(before=True)


def _refuse_cut(read: Mapping[str, Any]) -> None:
    """Raise `BadInputError` where a strict row's clip would lack something of what a model reads, as `read` says."""
    for problem in refusals(reading_notes(read)):
        raise BadInputError(problem.field, problem.message, problem.remedy)


def _is_refusal(error: Exception) -> bool:
    # Imported here: it needs torch, and only what ran on torch can have raised it.
    from pipeline.denoising.checkpoint import CheckpointError

    return isinstance(error, CheckpointError)
