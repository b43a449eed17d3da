"""The phases of a clip, what a checkpoint of it must be of, and the report of one phase's steps."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.clips.clip import RENDERER_VERSION, ClipSpec
from pipeline.denoising import checkpoint as checkpoints
from pipeline.denoising.checkpoint import Checkpoint, CheckpointError
from pipeline.denoising.denoise import DenoiseState
from pipeline.denoising.samplers import take_state
from pipeline.models.model import OnStep, Snapshot
from pipeline.models.networks import DiffusionNetworks


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One run of the loop: the base rendering of a clip, or the clip itself."""

    index: int
    spec: ClipSpec
    #: Steps done in this phase; fewer than the spec's where it starts from enlarged latents.
    steps: int
    #: Steps of the phases before.
    before: int


def phases_of(spec: ClipSpec) -> list[Phase]:
    """The phases of a clip in order: its base rendering, if it has one, then the clip."""
    base = spec.base_spec
    if base is None:
        return [Phase(index=0, spec=spec, steps=spec.steps, before=0)]
    return [
        Phase(index=0, spec=base, steps=base.steps, before=0),
        Phase(index=1, spec=spec, steps=spec.refined_steps, before=base.steps),
    ]


def identity_of(model: DiffusionNetworks, spec: ClipSpec) -> dict[str, Any]:
    """What a checkpoint of the clip must be of; by the whole clip also in its base phase, which it decides."""
    return {
        "family": model.family.name,
        "revision": spec.revision,
        "weights": model.weights,
        "renderer": RENDERER_VERSION,
        "shape": list(model.latent_shape(spec)),
        "sampler": str(spec.sampler or model.family.samplers[0]),
        "specification": hashlib.sha256(spec.model_dump_json().encode()).hexdigest(),
    }


def require_consistent(checkpoint: Checkpoint, phase: Phase, shape: tuple[int, ...], timesteps: int) -> None:
    """Raise `CheckpointError` where a checkpoint of a phase contradicts itself, whatever it says to be of.

    `shape`: of the phase's latents, (1, channels, frames, height, width); `timesteps`: how many its scheduler has.
    """
    if tuple(checkpoint.latents.shape) != shape:
        raise CheckpointError("a checkpoint of another shape", f"{tuple(checkpoint.latents.shape)}", f"{shape}")
    kept = {name: tuple(t.shape) for name, t in checkpoint.scheduler.tensors.items() if t.ndim > 1}
    if wrong := {name: found for name, found in kept.items() if found != shape}:
        raise CheckpointError("a checkpoint whose sampler remembers another clip", f"{wrong}", f"{shape}")
    done, index = checkpoint.done - phase.before, checkpoint.step_index
    if not (0 < done <= phase.steps and index == done + timesteps - phase.steps):
        expected = f"one of {phase.steps} steps after {phase.before}"
        raise CheckpointError("a checkpoint of another place", f"timestep {index} after {checkpoint.done}", expected)


class PhaseProgress:
    """Reports the steps of one phase and gives snapshots of it.

    An object that is emptied at the end, not a closure: whoever keeps a snapshot function must not keep latents.
    """

    def __init__(
        self,
        *,
        identity: Mapping[str, Any],
        made: Callable[[], Mapping[str, Any]],
        resumable: bool,
        phase: Phase,
        spec: ClipSpec,
        on_step: OnStep,
        scheduler: Any,
        state: DenoiseState,
        conditions: str,
    ) -> None:
        """`spec`: of the whole clip; `scheduler` and `state`: of the loop, which moves them; `conditions`: SHA-256.

        `made`: asked when a checkpoint is taken for where it is made.
        """
        self._identity, self._made, self._resumable = identity, made, resumable
        self._phase, self._spec = phase, spec
        self._on_step = on_step
        self._scheduler, self._conditions = scheduler, conditions
        self._state: DenoiseState | None = state
        self._skipped = len(scheduler.timesteps) - phase.steps

    def _done(self, step_index: int) -> int:
        return self._phase.before + step_index - self._skipped

    def after_step(self, done: int, _total: int) -> None:
        """Tell the clip's `on_step`; `done` counts the timesteps of this phase's scheduler."""
        # Deep layers kept from an earlier step do not travel: leave only where the next step renews them.
        whole = (done - self._skipped) % self._phase.spec.step_cache == 0
        taken: Snapshot | None = self.snapshot if self._resumable and whole else None
        self._on_step(self._done(done), self._spec.total_steps, taken)

    def snapshot(self) -> bytes:
        """The clip as it stands, as a checkpoint. Raises `RuntimeError` once the phase is over."""
        if self._state is None:
            raise RuntimeError("a snapshot is taken while its step is reported, not later")
        return checkpoints.dump(
            Checkpoint(
                identity=self._identity,
                phase=self._phase.index,
                step_index=self._state.step_index,
                done=self._done(self._state.step_index),
                latents=self._state.latents,
                scheduler=take_state(self._scheduler, self._phase.spec.steps),
                conditions=self._conditions,
                made=self._made(),
            )
        )

    def release(self) -> None:
        """Let go of latents and scheduler: the phase is over."""
        self._state = self._scheduler = None
