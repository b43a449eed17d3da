"""One run of the denoising loop within a clip: what it reports, and what a snapshot of it holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline import checkpoint as checkpoints
from pipeline.checkpoint import Checkpoint
from pipeline.clip import ClipSpec
from pipeline.denoise import DenoiseState
from pipeline.models.model import OnStep, Snapshot
from pipeline.samplers import take_state


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One run of the loop: the base rendering of a clip, or the clip itself."""

    index: int
    spec: ClipSpec
    #: Steps done here; fewer than the spec's where it starts from enlarged latents.
    steps: int
    #: Steps of the phases before.
    before: int


class Run:
    """Reports the steps of one phase and gives snapshots of it.

    An object that is emptied at the end, not a closure: whoever keeps a snapshot function must not keep latents.
    """

    def __init__(
        self,
        *,
        identity: Mapping[str, Any],
        made: Mapping[str, Any],
        resumable: bool,
        phase: Phase,
        spec: ClipSpec,
        on_step: OnStep,
        scheduler: Any,
        state: DenoiseState,
        conditions: str,
    ) -> None:
        self._identity, self._made, self._resumable = identity, made, resumable
        self._phase, self._spec = phase, spec
        self._on_step = on_step
        self._scheduler, self._conditions = scheduler, conditions
        self._state: DenoiseState | None = state
        self._skipped = len(scheduler.timesteps) - phase.steps

    def _done(self, step_index: int) -> int:
        return self._phase.before + step_index - self._skipped

    def after_step(self, done: int, _total: int) -> None:
        # Deep layers kept from an earlier step do not travel: leave only where the next step renews them.
        whole = (done - self._skipped) % self._phase.spec.step_cache == 0
        taken: Snapshot | None = self.snapshot if self._resumable and whole else None
        self._on_step(self._done(done), self._spec.total_steps, taken)

    def snapshot(self) -> bytes:
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
                made=self._made,
            )
        )

    def release(self) -> None:
        self._state = self._scheduler = None
