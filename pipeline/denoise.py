"""The denoising loop over diffusers' schedulers: start, then step after step, from any state to the end.

The loop holds no state of its own: a `DenoiseState` and the scheduler are all there is, so a clip can stop
between any two steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from pipeline.models.model import OnStep

#: (latents, timestep) -> the network's prediction, shaped like the latents, guidance applied.
Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

#: (latents, timestep, conditions) -> raw prediction of the network; the batch is the first dimension of all three.
Evaluate = Callable[[torch.Tensor, torch.Tensor, Mapping[str, torch.Tensor]], torch.Tensor]

#: Step index -> further arguments of that scheduler's step, such as DDIM's `eta` and `variance_noise`.
StepOptions = Callable[[int], Mapping[str, Any]]


class Scheduler(Protocol):
    """What the loop needs of a diffusers scheduler."""

    timesteps: torch.Tensor
    init_noise_sigma: Any

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Lay out the timesteps of a clip."""
        ...

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        """Scale the latents as the network expects them."""
        ...

    def step(self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, **options: Any) -> Any:
        """One step of the sampler; the result has `prev_sample`."""
        ...


@dataclass(kw_only=True)
class DenoiseState:
    """Where a clip stands between two steps."""

    #: (1, channels, frames, height, width), at least float32 whatever the network computes in.
    latents: torch.Tensor
    #: Steps done.
    step_index: int = 0


def start(scheduler: Scheduler, noise: torch.Tensor, steps: int) -> DenoiseState:
    """The state before the first step of `steps`; `noise` is standard normal."""
    # Kept on the CPU: the scheduler looks its tables up by timestep, which on a card would wait for it every step.
    scheduler.set_timesteps(steps, device="cpu")
    return DenoiseState(latents=noise * scheduler.init_noise_sigma)


def advance(scheduler: Scheduler, predict: Predict, state: DenoiseState, options: Mapping[str, Any]) -> None:
    """Do one step in place."""
    timestep = scheduler.timesteps[state.step_index]
    prediction = predict(scheduler.scale_model_input(state.latents, timestep), timestep)
    # The sampler adds small differences of large terms: it runs in the latents' precision, not the network's.
    prediction = prediction.to(state.latents.dtype)
    state.latents = scheduler.step(prediction, timestep, state.latents, **options).prev_sample
    state.step_index += 1


def denoise(
    scheduler: Scheduler,
    predict: Predict,
    state: DenoiseState,
    on_step: OnStep,
    step_options: StepOptions = lambda _step: {},
) -> torch.Tensor:
    """Run `state` to the last timestep of `scheduler` and return its latents.

    `on_step` is called with (steps done, steps in all) after every step; what it raises ends the loop, with
    `state` standing at the last finished step.
    """
    total = len(scheduler.timesteps)
    while state.step_index < total:
        advance(scheduler, predict, state, step_options(state.step_index))
        if state.latents.is_cuda:
            # A step counts when the card has finished it, not when it is queued.
            torch.cuda.synchronize(state.latents.device)
        on_step(state.step_index, total)
    return state.latents


class Guided:
    """Classifier-free guidance (Ho & Salimans, 2022, arXiv:2207.12598, in the form u + s·(c − u)); a `Predict`.

    Every condition tensor has batch 1. Batched, both halves are one evaluation of batch 2; `split` evaluates
    them one after the other at about half the memory. A scale of 1 or less evaluates the conditional half only.
    """

    # An object and not a closure: the frames of a traceback hold their functions, and a function its closure,
    # so conditions would outlive a failed clip for as long as somebody holds the error.

    def __init__(
        self,
        evaluate: Evaluate,
        unconditional: Mapping[str, torch.Tensor],
        conditional: Mapping[str, torch.Tensor],
        scale: float,
        *,
        split: bool,
    ) -> None:
        self._evaluate = evaluate
        self._scale = scale
        self._halves: tuple[Mapping[str, torch.Tensor], ...] = (unconditional, conditional)
        self._batched: Mapping[str, torch.Tensor] | None = None
        if scale > 1 and not split:
            self._batched = {name: torch.cat([unconditional[name], conditional[name]]) for name in conditional}

    def __call__(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """The guided prediction, shaped like `latents` (batch 1)."""
        unconditional, conditional = self._halves
        if self._scale <= 1:
            return self._evaluate(latents, timestep, conditional)
        if self._batched is not None:
            without, with_ = self._evaluate(torch.cat([latents, latents]), timestep, self._batched).chunk(2)
        else:
            without = self._evaluate(latents, timestep, unconditional)
            with_ = self._evaluate(latents, timestep, conditional)
        return without + self._scale * (with_ - without)
