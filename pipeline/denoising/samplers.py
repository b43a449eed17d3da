"""Samplers: diffusers' schedulers by name, with noise that is handed in and a state that can be carried away.

A scheduler's state after some steps is whatever differs from an equal one that was only just laid out. It is taken
and given back whole, without knowing which scheduler it is: what a multistep solver remembers comes along.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    UniPCMultistepScheduler,
)

from pipeline.clips.clip import Sampler
from pipeline.devices.emulated import off_card


class Scheduler(Protocol):
    """What the loop needs of a diffusers scheduler."""

    timesteps: torch.Tensor
    init_noise_sigma: Any
    config: Any

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Lay out the timesteps of a clip."""
        ...

    def step(self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, **options: Any) -> Any:
        """One step of the sampler; the result has `prev_sample`."""
        ...


class CountedLCM(LCMScheduler):
    """LCM whose noise is handed in: diffusers draws it from a generator, whose state would have to travel."""

    def step(
        self,
        model_output: torch.Tensor,
        timestep: Any,
        sample: torch.Tensor,
        generator: Any = None,
        return_dict: bool = True,
        variance_noise: torch.Tensor | None = None,
    ) -> Any:
        """One step of `LCMScheduler`, with `variance_noise` shaped like `sample`; `generator` is ignored.

        Raises `ValueError` where a step that adds noise gets none.
        """
        # A generator of its own, so that the global one is left alone; what it draws is thrown away.
        result = super().step(model_output, timestep, sample, generator=torch.Generator(sample.device).manual_seed(0))
        index = self.step_index  # already that of the next step
        if index < self.num_inference_steps:
            if variance_noise is None:
                raise ValueError("LCM adds noise at every step but the last: hand it in as variance_noise")
            alpha = self.alphas_cumprod[int(self.timesteps[index])].to(sample.dtype)
            result.prev_sample = alpha.sqrt() * result.denoised + (1 - alpha).sqrt() * variance_noise
        return result


def make_scheduler(sampler: Sampler, config: Mapping[str, Any]) -> Any:
    """A fresh scheduler for one clip, with a model's own noise schedule (`config` of the scheduler it came with).

    A model trained for flow matching (Lipman et al., 2022, arXiv:2210.02747) says so by `prediction_type` or
    `use_flow_sigmas` in its configuration. Raises `ValueError` for a sampler that cannot follow the schedule.
    """
    flow = config.get("use_flow_sigmas", False) or config.get("prediction_type") == "flow_prediction"
    shift = config.get("flow_shift", config.get("shift", 1.0))
    match sampler:
        case Sampler.DDIM if not flow:
            return DDIMScheduler.from_config(config)
        case Sampler.LCM if not flow:
            return CountedLCM.from_config(config)
        case Sampler.DPMPP_2M:
            options: dict[str, Any] = {"algorithm_type": "dpmsolver++", "solver_order": 2}
            return DPMSolverMultistepScheduler.from_config(config, **options)
        case Sampler.UNIPC:
            return UniPCMultistepScheduler.from_config(config)
        case Sampler.EULER if flow:
            trained = config.get("num_train_timesteps", 1000)
            return FlowMatchEulerDiscreteScheduler(num_train_timesteps=trained, shift=shift)
        case Sampler.EULER:
            return EulerDiscreteScheduler.from_config(config)
        case _:
            raise ValueError(f"the sampler {sampler} cannot follow a flow-matching schedule")


def adds_noise(sampler: Sampler) -> bool:
    """Whether the sampler wants `variance_noise` with its steps."""
    return sampler is Sampler.LCM


def begin(scheduler: Any) -> None:
    """Set a scheduler that was just laid out to its first step.

    A solver looks for the step it begins with by its timestep, and takes the second of two that are equal. Flow
    matching spaces noise levels so narrowly at first that many steps round to equal timesteps.
    """
    first = scheduler.timesteps[:2].tolist()
    if len(set(first)) < len(first) and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)


def start_within(scheduler: Any, clean: torch.Tensor, noise: torch.Tensor, first_step: int) -> torch.Tensor:
    """`clean` latents noised to where step `first_step` begins, the scheduler set to go on from there."""
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first_step)
    at = scheduler.timesteps[first_step : first_step + 1]
    if hasattr(scheduler, "scale_noise"):
        noised: torch.Tensor = scheduler.scale_noise(clean, at, noise)
    else:
        noised = scheduler.add_noise(clean, noise, at)
    return noised


# ------------------------------------------------------------------------------------------ state to carry away


@dataclass(frozen=True, kw_only=True)
class SchedulerState:
    """What a scheduler remembers of the steps it has done."""

    #: Class of the scheduler.
    kind: str
    #: SHA-256 over timesteps and tables of a fresh scheduler: an equal state means nothing under another schedule.
    schedule: str
    #: Attributes that are tensors, or (`name.index`) lists that hold some.
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    #: Other attributes, JSON-able. A list with tensors names them here as {"tensor": "name.index"}.
    values: Mapping[str, Any] = field(default_factory=dict)
    #: Tensors that were on the CPU whatever the card.
    on_cpu: tuple[str, ...] = ()
    #: SHA-256 over what the tables are computed from, and the sum of each table's arctangents: processors round tables
    #: differently, and one schedule is another's within that. Empty in states of before.
    recipe: str = ""
    sums: tuple[float, ...] = ()


def take_state(scheduler: Any, steps: int) -> SchedulerState:
    """The state of a scheduler that was laid out for `steps`; its tensors are copies on the CPU."""
    with off_card():
        return _take_state(scheduler, steps)


def _take_state(scheduler: Any, steps: int) -> SchedulerState:
    fresh = _fresh(scheduler, steps)
    tensors: dict[str, torch.Tensor] = {}
    values: dict[str, Any] = {}
    on_cpu: list[str] = []

    def pack(name: str, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            tensors[name] = value.detach().to("cpu", copy=True).contiguous()
            if value.device.type == "cpu":
                on_cpu.append(name)
            return {"tensor": name}
        if isinstance(value, np.ndarray):
            tensors[name] = torch.from_numpy(value.copy())
            return {"array": name}
        if isinstance(value, (list, tuple)):
            return [pack(f"{name}.{index}", item) for index, item in enumerate(value)]
        if isinstance(value, np.generic):
            return value.item()
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise TypeError(f"{type(scheduler).__name__}.{name} is a {type(value).__name__}, which no checkpoint can hold")

    for name, value in vars(scheduler).items():
        if name != "_internal_dict" and not _same(value, vars(fresh).get(name, _ABSENT)):
            values[name] = pack(name, value)
    return SchedulerState(
        kind=_kind(scheduler),
        schedule=_digest(fresh),
        tensors=tensors,
        values=values,
        on_cpu=tuple(on_cpu),
        recipe=_recipe(fresh, steps),
        sums=_sums(fresh),
    )


def give_state(scheduler: Any, steps: int, state: SchedulerState, device: Any) -> None:
    """Lay `scheduler` out for `steps` and make it remember `state`; tensors go to `device`.

    Raises `ValueError` where the state is another scheduler's or another schedule's, or names what no state holds.
    """
    scheduler.set_timesteps(steps, device="cpu")
    if state.kind != _kind(scheduler) or not _is_schedule_of(scheduler, steps, state):
        raise ValueError(
            f"the state is one of {state.kind} on schedule {state.schedule[:12]}, "
            f"this is {_kind(scheduler)} on schedule {_digest(scheduler)[:12]}"
        )

    def unpack(value: Any) -> Any:
        if isinstance(value, list):
            return [unpack(item) for item in value]
        if isinstance(value, dict) and "tensor" in value:
            name = value["tensor"]
            return state.tensors[name].to("cpu" if name in state.on_cpu else device, copy=True)
        if isinstance(value, dict) and "array" in value:
            return state.tensors[value["array"]].numpy().copy()
        return value

    # What is equal in a fresh scheduler of the same schedule is never part of a state, nor is what its class defines.
    if wrong := sorted(name for name in state.values if name in _TABLES or hasattr(type(scheduler), name)):
        raise ValueError(f"the state has {', '.join(wrong)}, which steps do not change")
    try:
        for name, value in state.values.items():
            setattr(scheduler, name, unpack(value))
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"the state cannot be read: {type(error).__name__}: {error}") from error


def check_state(scheduler: Any, steps: int, state: SchedulerState, first_step: int, done: int) -> None:
    """Raise `ValueError` where `state` is not what a sampler remembers after `done` steps from `first_step` on.

    What it remembers besides tensors follows from the schedule alone: it is compared with a sampler that did those
    steps on a single number. `scheduler` is only looked at, `steps` are what it was laid out for.
    """
    with off_card():
        other = _fresh(scheduler, steps)
        nothing = torch.zeros(1, 1, 1, 1, 1)
        if first_step:
            start_within(other, nothing, nothing, first_step)
        else:
            begin(other)
        options = {"variance_noise": nothing} if isinstance(other, CountedLCM) else {}
        for timestep in other.timesteps[first_step : first_step + done]:
            if hasattr(other, "scale_model_input"):
                other.scale_model_input(nothing, timestep)
            other.step(nothing, timestep, nothing, **options)
        expected = _take_state(other, steps)
    if not _is_like(dict(state.values), dict(expected.values)) or state.tensors.keys() != expected.tensors.keys():
        raise ValueError(f"the state is not one that {_kind(scheduler)} has after {done} steps")


def _is_like(found: Any, expected: Any) -> bool:
    """Whether two values of states are equal, but for rounding."""
    if type(found) is not type(expected):
        return False
    if isinstance(found, dict):
        return found.keys() == expected.keys() and all(_is_like(found[name], expected[name]) for name in found)
    if isinstance(found, list):
        return len(found) == len(expected) and all(map(_is_like, found, expected))
    if isinstance(found, float):
        return math.isclose(found, expected, rel_tol=_ROUNDING)
    return bool(found == expected)


def rounding_of(scheduler: Any, steps: int) -> str:
    """16 hex digits: equal where two hosts round a clip of `steps` by `scheduler` alike, whatever card they have.

    A hash of a fresh scheduler's tables and of what steps compute of them, number by number, on the host's processor:
    roots and logarithms of noise levels, and exponentials of the logarithms' differences.
    """
    with off_card():
        fresh = _fresh(scheduler, steps)
        levels = getattr(fresh, "sigmas", None)
        if levels is None:
            levels = fresh.alphas_cumprod[torch.as_tensor(fresh.timesteps).long()]
        # One by one, as a step does it: a processor computes whole tables by other code.
        found = [(level, torch.sqrt(level), torch.log(level)) for level in torch.as_tensor(levels).cpu()]
        between = [torch.expm1(a[2] - b[2]) for a, b in pairwise(found)]
        made = torch.stack([*(each for level in found for each in level), *between])
        return hashlib.sha256(_digest(fresh).encode() + made.double().numpy().tobytes()).hexdigest()[:16]


_ABSENT = object()
#: What a schedule is, by the names that schedulers keep it under.
_TABLES = ("timesteps", "sigmas", "alphas_cumprod")
#: Sums of tables that differ by this part or less are of one schedule, rounded by two processors.
_ROUNDING = 1e-5


def _kind(scheduler: Any) -> str:
    return type(scheduler).__name__


def _fresh(scheduler: Any, steps: int) -> Any:
    fresh = type(scheduler).from_config(scheduler.config)
    fresh.set_timesteps(steps, device="cpu")
    return fresh


def _is_schedule_of(scheduler: Any, steps: int, state: SchedulerState) -> bool:
    """Whether `state` is of the schedule that `scheduler` was just laid out for, but for rounding."""
    if state.schedule == _digest(scheduler):
        return True
    same = state.recipe == _recipe(scheduler, steps) and len(state.sums) == len(_sums(scheduler))
    return same and all(map(partial(math.isclose, rel_tol=_ROUNDING), state.sums, _sums(scheduler)))


def _config(fresh: Any) -> bytes:
    return repr(sorted((k, v) for k, v in fresh.config.items() if not k.startswith("_"))).encode()


def _tables(fresh: Any) -> Iterator[np.ndarray[Any, Any]]:
    for name in _TABLES:
        table = getattr(fresh, name, None)
        if table is not None:
            yield np.ascontiguousarray(torch.as_tensor(table).double().cpu().numpy())


def _digest(fresh: Any) -> str:
    digest = hashlib.sha256(_config(fresh))
    for table in _tables(fresh):
        digest.update(table.tobytes())
    return digest.hexdigest()


def _recipe(fresh: Any, steps: int) -> str:
    return hashlib.sha256(_config(fresh) + f" {steps}".encode()).hexdigest()


def _sums(fresh: Any) -> tuple[float, ...]:
    # Of arctangents: without signal, noise levels are infinite or nearly so, and those next to it are mostly rounding.
    return tuple(float(np.arctan(table).sum()) for table in _tables(fresh))


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and one.device == other.device and torch.equal(one, other)
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    if type(one) is not type(other) or isinstance(one, (torch.Tensor, np.ndarray)):
        return False
    return bool(one == other)
