"""The loop, with networks simple enough to know the answer."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler

from pipeline.denoising.denoise import Guided, advance, denoise, start
from pipeline.models.model import RenderStopped

SHAPE = (1, 4, 3, 8, 8)


def ddim(**options: Any) -> DDIMScheduler:
    return DDIMScheduler(clip_sample=False, timestep_spacing="leading", steps_offset=1, **options)


def seen_nothing(_done: int, _total: int) -> None:
    pass


def draw(seed: int, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_network_that_knows_the_noise_leads_to_the_clean_clip() -> None:
    """With the true noise as prediction DDIM (Song et al., 2020, eq. 12) is exact: it ends at the clean sample."""
    scheduler = ddim()
    clean, noise = draw(1), draw(2)
    state = start(scheduler, noise, 10)
    alpha = scheduler.alphas_cumprod[scheduler.timesteps[0]].double()
    state.latents = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise

    out = denoise(scheduler, lambda _latents, _t: noise, state, seen_nothing)

    # set_alpha_to_one: the last step goes to alpha = 1 exactly.
    assert (out - clean).abs().max() < 1e-5  # the scheduler's table is float32


def test_steps_follow_ddims_closed_form() -> None:
    """One step against equation 12 of the paper, written out."""
    scheduler = ddim()
    state = start(scheduler, draw(1), 4)
    before, prediction = state.latents.clone(), draw(3)
    t = int(scheduler.timesteps[0])
    advance(scheduler, lambda _latents, _t: prediction, state, {})
    now, then = float(scheduler.alphas_cumprod[t]), float(scheduler.alphas_cumprod[t - 1000 // 4])
    clean = (before - math.sqrt(1 - now) * prediction) / math.sqrt(now)
    expected = math.sqrt(then) * clean + math.sqrt(1 - then) * prediction
    assert (state.latents - expected).abs().max() < 1e-5
    assert state.step_index == 1


def test_every_step_is_reported_once() -> None:
    seen: list[tuple[int, int]] = []
    scheduler = ddim()
    denoise(
        scheduler,
        lambda latents, _t: latents,
        start(scheduler, draw(1), 5),
        lambda *step: seen.append((step[0], step[1])),
    )
    assert seen == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]


@pytest.mark.parametrize("make", [ddim, EulerDiscreteScheduler, UniPCMultistepScheduler])
def test_a_loop_stopped_anywhere_goes_on_to_the_same_end(make: Any) -> None:
    """State and scheduler are everything: a copy of both, taken between two steps, ends at the same latents."""

    def network(latents: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.tanh(latents) * (1 + t.double() / 1000)

    scheduler = make()
    whole = denoise(scheduler, network, start(scheduler, draw(1), 8), seen_nothing)

    scheduler = make()
    state = start(scheduler, draw(1), 8)

    def stop_at_three(done: int, _total: int) -> None:
        if done == 3:
            raise RenderStopped

    with pytest.raises(RenderStopped):
        denoise(scheduler, network, state, stop_at_three)
    assert state.step_index == 3
    resumed = denoise(copy.deepcopy(scheduler), network, copy.deepcopy(state), seen_nothing)
    assert torch.equal(resumed, whole)


def test_step_options_reach_the_sampler() -> None:
    """DDIM with eta = 1 adds sigma × the noise it is given: equation 16 of the paper."""
    with_noise, without = ddim(), ddim()
    extra = draw(9)
    a, b = start(with_noise, draw(1), 4), start(without, draw(1), 4)
    network = lambda latents, _t: 0.5 * latents  # noqa: E731
    advance(with_noise, network, a, {"eta": 1.0, "variance_noise": extra})
    advance(without, network, b, {"eta": 1.0, "variance_noise": torch.zeros_like(extra)})
    t = int(without.timesteps[0])
    now, then = float(without.alphas_cumprod[t]), float(without.alphas_cumprod[t - 250])
    sigma = math.sqrt((1 - then) / (1 - now)) * math.sqrt(1 - now / then)
    assert (a.latents - b.latents - sigma * extra).abs().max() < 1e-5


def evaluations(calls: list[int]) -> Any:
    def evaluate(latents: torch.Tensor, _t: torch.Tensor, conditions: Mapping[str, torch.Tensor]) -> torch.Tensor:
        calls.append(len(latents))
        return latents * conditions["factor"].view(-1, 1, 1, 1, 1)

    return evaluate


@pytest.mark.parametrize(("split", "batches"), [(False, [2]), (True, [1, 1])])
def test_guidance_is_u_plus_s_times_c_minus_u(split: bool, batches: list[int]) -> None:
    calls: list[int] = []
    half = {"factor": torch.tensor([0.5], dtype=torch.float64)}, {"factor": torch.tensor([2.0], dtype=torch.float64)}
    latents = draw(1)
    out = Guided(evaluations(calls), *half, 9.0, split=split)(latents, torch.tensor(1))
    assert torch.allclose(out, latents * (0.5 + 9 * 1.5), rtol=1e-15)
    assert calls == batches


def test_no_guidance_evaluates_the_conditional_half_only() -> None:
    calls: list[int] = []
    half = {"factor": torch.tensor([0.5], dtype=torch.float64)}, {"factor": torch.tensor([2.0], dtype=torch.float64)}
    latents = draw(1)
    assert torch.equal(Guided(evaluations(calls), *half, 1.0, split=False)(latents, torch.tensor(1)), latents * 2)
    assert calls == [1]
