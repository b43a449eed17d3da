"""Samplers: what they remember can be carried away at any step; noise that is handed in; starts within."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, LCMScheduler, UniPCMultistepScheduler

from cluster.catalog.resolve import MAX_LCM_STEPS
from pipeline.clips.clip import Sampler
from pipeline.denoising.checkpoint import Checkpoint, dump, parse
from pipeline.denoising.denoise import DenoiseState, advance, denoise, refine, start
from pipeline.denoising.noise import clip_noise
from pipeline.denoising.samplers import (
    SchedulerState,
    adds_noise,
    check_state,
    give_state,
    make_scheduler,
    rounding_of,
    take_state,
)
from pipeline.families.registry import family_named
from tests.doubles.processor import elsewhere

SHAPE = (1, 4, 3, 8, 8)
STEPS = 7
#: The schedules of the families: v-prediction with zero terminal SNR, continuous v-prediction, flow matching.
DDIM_CONFIG = dict(
    DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        clip_sample=False,
        timestep_spacing="leading",
        steps_offset=1,
    ).config
)
EULER_CONFIG = dict(
    EulerDiscreteScheduler(
        prediction_type="v_prediction",
        use_karras_sigmas=True,
        timestep_type="continuous",
        timestep_spacing="leading",
        sigma_min=0.002,
        sigma_max=700.0,
    ).config
)
FLOW_CONFIG = dict(
    UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0).config
)
CASES = [(sampler, DDIM_CONFIG) for sampler in Sampler] + [
    (Sampler.EULER, EULER_CONFIG),
    (Sampler.UNIPC, FLOW_CONFIG),
    (Sampler.EULER, FLOW_CONFIG),
    (Sampler.DPMPP_2M, FLOW_CONFIG),
]
IDS = [
    f"{sampler}-{config['_class_name'] if '_class_name' in config else config['prediction_type']}"
    for sampler, config in CASES
]


def network(latents: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Anything that depends on both, and not linearly."""
    return torch.tanh(latents) * (1 + t.double() / 1000).to(latents.dtype)


def draw(purpose: str, step: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    noise = torch.from_numpy(clip_noise(3, purpose, SHAPE[2], (SHAPE[1], *SHAPE[3:]), step))
    return noise.transpose(0, 1).unsqueeze(0).to(dtype)


def options(sampler: Sampler) -> Any:
    return lambda step: {"variance_noise": draw("variance", step + 1)} if adds_noise(sampler) else {}


def run(scheduler: Any, sampler: Sampler, state: DenoiseState, after_step: Any = lambda _done, _total: None) -> Any:
    return denoise(scheduler, network, state, after_step, options(sampler))


@pytest.mark.parametrize("within", [False, True], ids=["from-noise", "from-within"])
@pytest.mark.parametrize(("sampler", "config"), CASES, ids=IDS)
def test_a_checkpoint_of_any_step_goes_on_to_the_same_bits(sampler: Sampler, config: Any, within: bool) -> None:
    scheduler = make_scheduler(sampler, config)
    taken: list[bytes] = []

    def keep(_done: int, _total: int) -> None:
        taken.append(
            dump(
                Checkpoint(
                    identity={"family": "none"},
                    phase=0,
                    step_index=state.step_index,
                    done=state.step_index,
                    latents=state.latents,
                    scheduler=take_state(scheduler, STEPS),
                    conditions="",
                )
            )
        )

    if within:
        state = refine(scheduler, draw("clean"), draw("latents"), STEPS, 5)
    else:
        state = start(scheduler, draw("latents"), STEPS)
    whole = run(scheduler, sampler, state, keep)
    assert torch.isfinite(whole).all()
    assert len(taken) == (5 if within else STEPS)
    for data in taken:
        checkpoint = parse(data)
        fresh = make_scheduler(sampler, config)
        give_state(fresh, STEPS, checkpoint.scheduler, "cpu")
        resumed = run(fresh, sampler, DenoiseState(latents=checkpoint.latents, step_index=checkpoint.step_index))
        assert torch.equal(resumed, whole), checkpoint.step_index


@pytest.mark.parametrize("sampler", [Sampler.DPMPP_2M, Sampler.UNIPC])
def test_what_a_multistep_solver_remembers_matters(sampler: Sampler) -> None:
    """Left out of a checkpoint it would give another clip: the equality above is no accident."""
    scheduler = make_scheduler(sampler, DDIM_CONFIG)
    state = start(scheduler, draw("latents"), STEPS)
    kept: dict[int, tuple[torch.Tensor, SchedulerState]] = {}
    whole = run(
        scheduler,
        sampler,
        state,
        lambda done, _total: kept.setdefault(done, (state.latents.clone(), take_state(scheduler, STEPS))),
    )
    latents, remembered = kept[4]
    assert remembered.tensors
    forgetful = make_scheduler(sampler, DDIM_CONFIG)
    forgetful.set_timesteps(STEPS)
    forgetful.set_begin_index(4)
    assert not torch.equal(run(forgetful, sampler, DenoiseState(latents=latents, step_index=4)), whole)


def test_a_state_names_what_it_is_of() -> None:
    scheduler = make_scheduler(Sampler.UNIPC, DDIM_CONFIG)
    state = start(scheduler, draw("latents"), STEPS)
    run(scheduler, Sampler.UNIPC, state)
    taken = take_state(scheduler, STEPS)
    for other, steps in ((make_scheduler(Sampler.DPMPP_2M, DDIM_CONFIG), STEPS), (scheduler, STEPS + 1)):
        with pytest.raises(ValueError, match="the state is one of UniPCMultistepScheduler on schedule"):
            give_state(other, steps, taken, "cpu")


def test_a_single_step_solver_carries_little() -> None:
    scheduler = make_scheduler(Sampler.DDIM, DDIM_CONFIG)
    run(scheduler, Sampler.DDIM, start(scheduler, draw("latents"), STEPS))
    assert take_state(scheduler, STEPS).tensors == {}


def test_lcm_adds_the_noise_it_is_given_and_leaves_the_global_generator_alone() -> None:
    """One step against the paper's algorithm 3, from the stock scheduler's own clean estimate."""
    stock, ours = LCMScheduler.from_config(DDIM_CONFIG), make_scheduler(Sampler.LCM, DDIM_CONFIG)
    latents, prediction, noise = draw("latents"), draw("prediction"), draw("variance", 1)
    for scheduler in (stock, ours):
        scheduler.set_timesteps(4)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    result = ours.step(prediction, ours.timesteps[0], latents, variance_noise=noise)
    assert torch.equal(torch.get_rng_state(), before)
    clean = stock.step(prediction, stock.timesteps[0], latents, generator=torch.Generator().manual_seed(1)).denoised
    alpha = stock.alphas_cumprod[int(stock.timesteps[1])]
    assert torch.allclose(result.prev_sample, alpha.sqrt() * clean + (1 - alpha).sqrt() * noise, atol=1e-6)
    with pytest.raises(ValueError, match="hand it in"):
        ours.step(prediction, ours.timesteps[1], latents)


def test_lcm_ends_at_its_clean_estimate() -> None:
    ours = make_scheduler(Sampler.LCM, DDIM_CONFIG)
    ours.set_timesteps(1)
    result = ours.step(draw("prediction"), ours.timesteps[0], draw("latents"))
    assert torch.equal(result.prev_sample, result.denoised)


@pytest.mark.parametrize("sampler", [Sampler.DDIM, Sampler.LCM])
def test_flow_matching_has_no_such_sampler(sampler: Sampler) -> None:
    with pytest.raises(ValueError, match="flow-matching"):
        make_scheduler(sampler, FLOW_CONFIG)


@pytest.mark.parametrize(("sampler", "config"), [case for case in CASES if case[0] is not Sampler.LCM])
def test_a_start_within_is_the_clean_clip_under_that_step_s_noise(sampler: Sampler, config: Any) -> None:
    """A network that knows the clean clip leads back to it, from wherever the start is."""
    if config is EULER_CONFIG or config is FLOW_CONFIG:
        pytest.skip("the oracle below is for variance-preserving schedules; equality with stock is tested by family")
    plain = {**config, "prediction_type": "sample"}
    scheduler = make_scheduler(sampler, plain)
    clean = draw("clean", dtype=torch.float64)
    state = refine(scheduler, clean, draw("latents", dtype=torch.float64), STEPS, 3)
    assert state.step_index == STEPS - 3
    assert not torch.allclose(state.latents, clean, atol=0.05)
    out = denoise(scheduler, lambda _latents, _t: clean, state, lambda _done, _total: None)
    assert (out - clean).abs().max() < 0.02


def test_a_start_needs_between_one_and_all_steps() -> None:
    scheduler = make_scheduler(Sampler.DDIM, DDIM_CONFIG)
    for last in (0, STEPS + 1):
        with pytest.raises(ValueError, match="cannot be done"):
            refine(scheduler, draw("clean"), draw("latents"), STEPS, last)


@pytest.mark.parametrize(("sampler", "config"), CASES, ids=IDS)
def test_a_state_of_a_processor_that_rounds_tables_otherwise_is_taken(sampler: Sampler, config: Any) -> None:
    """Hosts of one farm differ: tables are computed there, and their last bits are the processor's."""
    scheduler = make_scheduler(sampler, config)
    scheduler.set_timesteps(STEPS)
    state = take_state(scheduler, STEPS)
    elsewhere = dataclasses.replace(state, schedule="0" * 64, sums=tuple(one * (1 + 1e-7) for one in state.sums))
    give_state(make_scheduler(sampler, config), STEPS, elsewhere, "cpu")
    for changed in (
        {"sums": tuple(one * 1.001 for one in state.sums)},
        {"recipe": "1" * 64},
        # Of a version that told nothing but the hash.
        {"recipe": "", "sums": ()},
    ):
        with pytest.raises(ValueError, match="on schedule"):
            give_state(make_scheduler(sampler, config), STEPS, dataclasses.replace(elsewhere, **changed), "cpu")
    with pytest.raises(ValueError, match="on schedule"):
        give_state(make_scheduler(sampler, config), STEPS + 1, elsewhere, "cpu")


@pytest.mark.parametrize(("sampler", "config"), CASES, ids=IDS)
def test_a_host_that_rounds_otherwise_is_told_from_one_that_does_not(sampler: Sampler, config: Any) -> None:
    own = rounding_of(make_scheduler(sampler, config), STEPS)
    used = make_scheduler(sampler, config)
    run(used, sampler, start(used, draw("latents"), STEPS))
    assert rounding_of(used, STEPS) == own, "what a scheduler went through is no matter"
    assert rounding_of(used, STEPS + 1) != own
    assert rounding_of(elsewhere(make_scheduler(sampler, config)), STEPS) != own


def test_so_is_one_with_equal_tables_whose_logarithms_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a multistep solver makes of its tables is computed at every step."""
    own = rounding_of(make_scheduler(Sampler.UNIPC, FLOW_CONFIG), STEPS)
    log = torch.log
    monkeypatch.setattr(torch, "log", lambda one: torch.nextafter(log(one), torch.tensor(torch.inf)))
    assert rounding_of(make_scheduler(Sampler.UNIPC, FLOW_CONFIG), STEPS) != own


#: What each family's own schedule is like, with the samplers that the family offers.
OFFERED = [
    (family, sampler, config)
    for family, config in (
        ("i2vgen-xl", DDIM_CONFIG),
        ("svd-xt", EULER_CONFIG | {"steps_offset": 1, "beta_schedule": "scaled_linear"}),
        ("wan2.2-5b", FLOW_CONFIG),
    )
    for sampler in family_named(family).samplers
]


def tenth(latents: torch.Tensor, _t: torch.Tensor) -> torch.Tensor:
    return 0.1 * latents


@pytest.mark.parametrize(("family", "sampler", "config"), OFFERED, ids=[f"{one[0]}-{one[1]}" for one in OFFERED])
def test_every_number_of_steps_that_is_taken_can_be_sampled(family: str, sampler: Sampler, config: Any) -> None:
    most = MAX_LCM_STEPS if sampler is Sampler.LCM else family_named(family).max_steps
    one = torch.ones(1, 1, 1, 1, 1)
    extra = {"variance_noise": torch.zeros_like(one)} if adds_noise(sampler) else {}
    for steps in (1, 2, 3, 7, 49, most):
        scheduler = make_scheduler(sampler, config)
        done: list[tuple[int, int]] = []
        state = start(scheduler, one, steps)
        assert len(rounding_of(scheduler, steps)) == 16
        found = denoise(scheduler, tenth, state, partial(_append, done), lambda _step: extra)
        assert done == [(at + 1, steps) for at in range(steps)]
        assert torch.isfinite(found).all(), steps


def _append(done: list[tuple[int, int]], at: int, of: int) -> None:
    done.append((at, of))


@pytest.mark.parametrize("sampler", [Sampler.UNIPC, Sampler.DPMPP_2M])
def test_a_clip_whose_first_timesteps_round_to_one_goes_on_from_a_checkpoint(sampler: Sampler) -> None:
    scheduler = make_scheduler(sampler, FLOW_CONFIG)
    steps = 300
    state = start(scheduler, draw("latents"), steps)
    assert scheduler.timesteps[0] == scheduler.timesteps[1]
    for _ in range(2):
        advance(scheduler, network, state, {})
    taken, latents = take_state(scheduler, steps), state.latents.clone()
    check_state(make_scheduler(sampler, FLOW_CONFIG), steps, taken, 0, 2)
    other = make_scheduler(sampler, FLOW_CONFIG)
    give_state(other, steps, taken, "cpu")
    resumed = run(other, sampler, DenoiseState(latents=latents, step_index=2))
    assert torch.equal(resumed, run(scheduler, sampler, state))
