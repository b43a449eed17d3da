"""The denoising loop over diffusers' schedulers: start, then step after step, from any state to the end.

The loop holds no state of its own: a `DenoiseState` and the scheduler are all there is, so a clip can stop
between any two steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.denoising.samplers import Scheduler, begin, start_within

#: (latents, timestep) -> the network's prediction, shaped like the latents, guidance applied.
Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

#: (latents, timestep, conditions) -> raw prediction of the network; the batch is the first dimension of all three.
Evaluate = Callable[[torch.Tensor, torch.Tensor, Mapping[str, torch.Tensor]], torch.Tensor]

#: Step index -> further arguments of that scheduler's step, such as LCM's `variance_noise`.
StepOptions = Callable[[int], Mapping[str, Any]]

#: Told after every step: (steps done, steps in all) of the scheduler's timesteps. What it raises ends the loop.
AfterStep = Callable[[int, int], None]


@dataclass(kw_only=True)
class DenoiseState:
    """Where a clip stands between two steps."""

    #: (clips, channels, frames, height, width), at least float32 whatever the network computes in.
    latents: torch.Tensor
    #: Index of the next timestep; steps before it are done, or skipped where the start was within.
    step_index: int = 0


def start(scheduler: Scheduler, noise: torch.Tensor, steps: int) -> DenoiseState:
    """The state before the first step of `steps`; `noise` is standard normal."""
    # Kept on the CPU: the scheduler looks its tables up by timestep, which on a card would wait for it every step.
    scheduler.set_timesteps(steps, device="cpu")
    begin(scheduler)
    # Flow matching starts from the noise as it is, and its schedulers do not say so.
    return DenoiseState(latents=noise * getattr(scheduler, "init_noise_sigma", 1.0))


def refine(scheduler: Scheduler, clean: torch.Tensor, noise: torch.Tensor, steps: int, last: int) -> DenoiseState:
    """The state from which the last `last` of `steps` are done on `clean` (Meng et al., 2021, arXiv:2108.01073).

    Raises `ValueError` unless 1 ≤ last ≤ steps.
    """
    if not 1 <= last <= steps:
        raise ValueError(f"of {steps} steps the last {last} cannot be done")
    scheduler.set_timesteps(steps, device="cpu")
    first = len(scheduler.timesteps) - last
    return DenoiseState(latents=start_within(scheduler, clean, noise, first), step_index=first)


def advance(
    scheduler: Any,
    predict: Predict,
    state: DenoiseState,
    options: Mapping[str, Any],
    on_card: torch.Tensor | None = None,
) -> None:
    """Do one step of `scheduler` on `state`, in place; `options` are further arguments of its `step`.

    `on_card`: the scheduler's timesteps where the network computes, so that no step has to wait for one to be copied.
    """
    timestep = scheduler.timesteps[state.step_index]
    scale = getattr(scheduler, "scale_model_input", None)
    told = timestep if on_card is None else on_card[state.step_index]
    prediction = predict(scale(state.latents, timestep) if scale else state.latents, told)
    # The sampler adds small differences of large terms: it runs in the latents' precision, not the network's.
    prediction = prediction.to(state.latents.dtype)
    state.latents = scheduler.step(prediction, timestep, state.latents, **options).prev_sample
    state.step_index += 1


def denoise(
    scheduler: Scheduler,
    predict: Predict,
    state: DenoiseState,
    after_step: AfterStep,
    step_options: StepOptions = lambda _step: {},
) -> torch.Tensor:
    """Run `state` to the last timestep of `scheduler` and return its latents.

    `after_step` is called after every step; what it raises ends the loop, with `state` standing at the last
    finished step.
    """
    total = len(scheduler.timesteps)
    # The sampler looks its tables up by its own on the host.
    on_card = scheduler.timesteps.to(state.latents.device)
    while state.step_index < total:
        advance(scheduler, predict, state, step_options(state.step_index), on_card)
        if state.latents.is_cuda:
            # A step counts when the card has finished it, not when it is queued.
            torch.cuda.synchronize(state.latents.device)
        after_step(state.step_index, total)
    return state.latents


class Guided:
    """Classifier-free guidance (Ho & Salimans, 2022, arXiv:2207.12598, in the form u + s·(c − u)); a `Predict`.

    Every condition tensor has as many rows as there are clips. Batched, both halves are one evaluation of twice the
    rows; `split` evaluates them one after the other at about half the memory. `scale` is a number, or a tensor that
    spreads over the latents (one per frame, say). Without guidance (a largest scale of 1) the conditional half alone
    is evaluated.
    """

    # An object and not a closure: the frames of a traceback hold their functions, and a function its closure,
    # so conditions would outlive a failed clip for as long as somebody holds the error.

    def __init__(
        self,
        evaluate: Evaluate,
        unconditional: Mapping[str, torch.Tensor],
        conditional: Mapping[str, torch.Tensor],
        scale: float | torch.Tensor,
        *,
        split: bool,
        guides: bool | None = None,
    ) -> None:
        """`guides`: whether the largest scale is above 1; looked up, which waits for a card, where it is not told."""
        self._evaluate = evaluate
        self._scale = scale
        self._guides = float(torch.as_tensor(scale).max()) > 1 if guides is None else guides
        self._halves: tuple[Mapping[str, torch.Tensor], ...] = (unconditional, conditional)
        self._batched: Mapping[str, torch.Tensor] | None = None
        if self._guides and not split:
            self._batched = {name: torch.cat([unconditional[name], conditional[name]]) for name in conditional}

    def __call__(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """The guided prediction, shaped like `latents`."""
        unconditional, conditional = self._halves
        if not self._guides:
            return self._evaluate(latents, timestep, conditional)
        if self._batched is not None:
            without, with_ = self._evaluate(torch.cat([latents, latents]), timestep, self._batched).chunk(2)
        else:
            without = self._evaluate(latents, timestep, unconditional)
            with_ = self._evaluate(latents, timestep, conditional)
        return without + self._scale * (with_ - without)


def window_spans(frames: int, window: int, overlap: int) -> list[tuple[int, int]]:
    """(first, end) of windows that cover `frames`, neighbours sharing `overlap` or more; the last ends at the end.

    Raises `ValueError` unless 0 ≤ overlap < window.
    """
    if not 0 <= overlap < window:
        raise ValueError(f"windows of {window} frames cannot share {overlap}")
    if frames <= window:
        return [(0, frames)]
    firsts = list(range(0, frames - window, window - overlap))
    return [(first, first + window) for first in [*firsts, frames - window]]


class Windowed:
    """One prediction for a long clip from predictions of overlapping windows of its frames; a `Predict`.

    Where windows overlap, their predictions are averaged, the nearer a frame is to a window's middle the more it
    counts (MultiDiffusion, Bar-Tal et al., 2023, arXiv:2302.08113, along time as in Wang et al., 2023,
    arXiv:2305.18264). The sampler then steps the whole clip at once, so nothing but the latents is carried.
    """

    def __init__(self, spans: Sequence[tuple[int, int]], predict_of: Callable[[int, int], Predict]) -> None:
        """`predict_of(first, end)` gives the prediction of one window; it is asked anew for every window and step."""
        self._spans = list(spans)
        self._predict_of = predict_of

    def __call__(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """The blended prediction, shaped like `latents` (clips, channels, frames, height, width)."""
        total = torch.zeros_like(latents)
        weights = torch.zeros(latents.shape[2], dtype=latents.dtype, device=latents.device)
        for first, end in self._spans:
            count = end - first
            places = torch.arange(count, dtype=latents.dtype, device=latents.device)
            weight = torch.minimum(places, count - 1 - places) + 1
            prediction = self._predict_of(first, end)(latents[:, :, first:end], timestep).to(latents.dtype)
            total[:, :, first:end] += prediction * weight.view(1, 1, -1, 1, 1)
            weights[first:end] += weight
        return total / weights.view(1, 1, -1, 1, 1)
