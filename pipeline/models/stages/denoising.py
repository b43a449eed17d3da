"""The middle stage: a clip's phases, each one run of the loop, from noise, a smaller rendering or a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from PIL import Image

from pipeline.clips.clip import ClipSpec
from pipeline.clips.stills import fit_still
from pipeline.denoising import checkpoint as checkpoints
from pipeline.denoising.checkpoint import Checkpoint, CheckpointError
from pipeline.denoising.denoise import DenoiseState, Guided, Predict, Windowed, denoise, refine, start, window_spans
from pipeline.denoising.samplers import adds_noise, check_state, give_state, rounding_of
from pipeline.families import Stage
from pipeline.families.layouts import Layout
from pipeline.kernels.buckets import bucket_of
from pipeline.kernels.kernels import equality
from pipeline.models.model import OnStep
from pipeline.models.networks import DiffusionNetworks
from pipeline.models.parts import Conditions, Halves
from pipeline.models.stages.conditioning import conditions_sha256
from pipeline.models.stages.enlarging import enlarge
from pipeline.models.stages.kernels import DenoiserKernels
from pipeline.models.stages.phases import Phase, PhaseProgress, identity_of, phases_of, require_consistent


class ClipDenoising:
    """One clip from its still to its finished latents, phase by phase.

    It keeps no tensors: whoever handles an error, and so its traceback, would keep them.
    """

    def __init__(
        self,
        model: DiffusionNetworks,
        spec: ClipSpec,
        layout: Layout,
        on_step: OnStep,
        describe: Callable[[], Mapping[str, Any]],
    ) -> None:
        """`describe`: what checkpoints tell of where they were made; `on_step` as `pipeline.models.model.OnStep`."""
        self._model = model
        self._spec = spec
        self._layout = layout
        self._on_step = on_step
        self._describe = describe
        #: What the checkpoint that the clip goes on from tells of where it was made.
        self._made_before: Mapping[str, Any] | None = None

    def run(self, still: Image.Image, resume: bytes | None) -> torch.Tensor:
        """(1, *latent_shape) of the finished clip; `resume`: the bytes of a checkpoint to go on from.

        Raises `CheckpointError` before the first step where `resume` is not a checkpoint of this clip, and whatever
        `on_step` and the networks raise.
        """
        model = self._model
        phases = phases_of(self._spec)
        model.sampler_tables = tuple(rounding_of(model.scheduler_of(each.spec), each.spec.steps) for each in phases)
        checkpoint = self._checkpoint(resume, phases) if resume is not None else None
        results = model.conditioning
        latents: torch.Tensor | None = None
        for phase in phases:
            if checkpoint is not None and phase.index < checkpoint.phase:
                continue
            picture = fit_still(still, phase.spec.size, phase.spec.fit)
            is_base = len(phases) > 1 and phase.index == 0
            if is_base and checkpoint is None:
                latents = results.finished_latents(picture, phase.spec)
            if latents is None or not is_base:
                latents = self._run_phase(phase, picture, latents, checkpoint)
                if model.family.refinable:
                    results.keep_latents(picture, phase.spec, latents)
            checkpoint = None
            if is_base:
                latents = enlarge(model, latents, phases[1].spec, self._layout)
        assert latents is not None
        return latents

    def _checkpoint(self, resume: bytes, phases: list[Phase]) -> Checkpoint:
        checkpoint = checkpoints.parse(resume)
        checkpoints.check(checkpoint, identity_of(self._model, self._spec))
        if checkpoint.phase >= len(phases):
            raise CheckpointError("a checkpoint of another phase", f"{checkpoint.phase}", f"below {len(phases)}")
        self._made_before = checkpoint.made
        return checkpoint

    def _made(self) -> Mapping[str, Any]:
        """Where a checkpoint is made now, and how equal the clip still is to one that never stopped."""
        made = {**self._describe(), "layout": self._layout.model_dump(mode="json")}
        if self._made_before is None:
            return made
        return {**made, "resumed": equality(self._made_before, made)}

    def _run_phase(
        self, phase: Phase, picture: Image.Image, clean: torch.Tensor | None, checkpoint: Checkpoint | None
    ) -> torch.Tensor:
        """Condition, start (from `checkpoint`, `clean` latents or noise), loop, settle: the phase's latents."""
        model = self._model
        model.residency.stage = Stage.ENCODE
        halves = model.condition(picture, phase.spec)
        conditions = conditions_sha256(halves)
        model.residency.ready(Stage.DENOISE, self._layout)
        scheduler = model.scheduler_of(phase.spec)
        if checkpoint is not None:
            state = self._resumed(scheduler, phase, checkpoint, conditions)
        elif clean is None:
            state = start(scheduler, model.first_noise(phase.spec), phase.spec.steps)
        else:
            noise = model.noise(phase.spec, "refine")
            state = refine(scheduler, clean.to(noise.dtype), noise, phase.spec.steps, phase.steps)
        progress = PhaseProgress(
            identity=identity_of(model, self._spec),
            made=self._made,
            resumable=model.family.resumable,
            phase=phase,
            spec=self._spec,
            on_step=self._on_step,
            scheduler=scheduler,
            state=state,
            conditions=conditions,
        )
        try:
            return run_loop(model, halves, phase.spec, self._layout, scheduler, state, progress.after_step)
        finally:
            progress.release()

    def _resumed(self, scheduler: Any, phase: Phase, checkpoint: Checkpoint, conditions: str) -> DenoiseState:
        if checkpoint.conditions != conditions:
            raise CheckpointError("a checkpoint under other conditions", checkpoint.conditions[:12], conditions[:12])
        device, dtype = self._model.device.torch_device, self._model.latents_dtype
        try:
            give_state(scheduler, phase.spec.steps, checkpoint.scheduler, device)
            timesteps = len(scheduler.timesteps)
            require_consistent(checkpoint, phase, (1, *self._model.latent_shape(phase.spec)), timesteps)
            first = timesteps - phase.steps
            check_state(scheduler, phase.spec.steps, checkpoint.scheduler, first, checkpoint.step_index - first)
        except ValueError as error:
            raise error if isinstance(error, CheckpointError) else CheckpointError(str(error)) from error
        latents = checkpoint.latents.to(device, copy=True)
        if latents.dtype != dtype:
            raise CheckpointError("a checkpoint of another precision", str(latents.dtype), str(dtype))
        return DenoiseState(latents=latents, step_index=checkpoint.step_index)


def denoise_from_noise(
    model: DiffusionNetworks, halves: Halves, spec: ClipSpec, layout: Layout, on_step: OnStep
) -> torch.Tensor:
    """One run of the loop from noise: (1, *latent_shape). `on_step` gets no snapshot."""
    model.residency.ready(Stage.DENOISE, layout)
    scheduler = model.scheduler_of(spec)
    state = start(scheduler, model.first_noise(spec), spec.steps)
    return run_loop(model, halves, spec, layout, scheduler, state, lambda done, total: on_step(done, total, None))


def run_loop(
    model: DiffusionNetworks,
    halves: Halves,
    spec: ClipSpec,
    layout: Layout,
    scheduler: Any,
    state: DenoiseState,
    after_step: Callable[[int, int], None],
) -> torch.Tensor:
    """Run `state` to the end of `scheduler`, the denoiser being on the card: (1, *latent_shape), settled."""
    kernels = model.kernels
    steps = len(scheduler.timesteps) - state.step_index

    def step_done(done: int, total: int) -> None:
        kernels.step_done()
        after_step(done, total)

    predict = _ByKernels(kernels, predict_of(model, halves, spec, layout))
    with (
        model.hooks.laid_on(spec, layout, scheduler),
        kernels.run(bucket_of(spec, layout, spec.guidance > 1), spec, layout, steps=steps),
        model.hoisting(ahead=lambda: kernels.compiles),
    ):
        latents = denoise(scheduler, predict, state, step_done, _step_options(model, spec))
    return model.settle(latents, halves)


class _ByKernels:
    """A prediction by the kernels of its run; a `Predict`."""

    def __init__(self, kernels: DenoiserKernels, predict: Predict) -> None:
        self._kernels, self._predict = kernels, predict

    def __call__(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """The guided prediction, shaped like `latents`."""
        return self._kernels.predict(self._predict, latents, timestep)


def predict_of(model: DiffusionNetworks, halves: Halves, spec: ClipSpec, layout: Layout) -> Predict:
    """The guided prediction of the whole clip, or of its windows blended."""
    scale = model.guidance(spec)

    def guided(unconditional: Conditions, conditional: Conditions, scale: float | torch.Tensor) -> Guided:
        # Asked of the clip and not of its scale, which may lie on the card, for every window of every step.
        guides = spec.guidance > 1
        return Guided(model.evaluate, unconditional, conditional, scale, split=layout.split_guidance, guides=guides)

    if not spec.window:
        return guided(halves.unconditional, halves.conditional, scale)
    per_latent = model.family.frames_per_latent
    spans = window_spans(
        model.latent_shape(spec)[1],
        (spec.window - 1) // per_latent + 1,
        spec.window_overlap // per_latent,
    )

    def of_window(first: int, end: int) -> Guided:
        by_frame = isinstance(scale, torch.Tensor) and scale.ndim == 5
        return guided(
            model.cut(halves.unconditional, first, end),
            model.cut(halves.conditional, first, end),
            scale[:, :, first:end] if by_frame else scale,  # type: ignore[index]
        )

    return Windowed(spans, of_window)


def _step_options(model: DiffusionNetworks, spec: ClipSpec) -> Callable[[int], Mapping[str, Any]]:
    if spec.sampler is None or not adds_noise(spec.sampler):
        return lambda _step: {}
    return lambda step: {"variance_noise": model.noise(spec, "variance", step + 1)}
