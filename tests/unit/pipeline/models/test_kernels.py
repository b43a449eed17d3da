"""Kernels of a clip's loop in the small models of all families: chosen, given up, told, and gone on from."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils import _python_dispatch

from pipeline.clips.clip import ClipSpec
from pipeline.denoising.checkpoint import parse
from pipeline.devices.emulated import EmulatedDevice, HostDevice
from pipeline.families import FAMILIES
from pipeline.families.layouts import RESIDENT, Layout
from pipeline.kernels.buckets import bucket_of
from pipeline.kernels.kernels import KernelChoice
from pipeline.models.hooks.compiling import CompileError
from pipeline.models.loading import load_model
from tests.building import spec
from tests.doubles.processor import elsewhere

SMALL = ["i2vgen-xl-tiny", "svd-xt-tiny", "wan2.2-5b-tiny"]
STEPS = 3
FIXED = [KernelChoice.EAGER, KernelChoice.COMPILED]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    torch._dynamo.reset()


def loaded(name: str, home: Path, choice: KernelChoice, backend: Any = "eager", *, counted: bool = False) -> Any:
    """The small model; `backend`: of torch.compile, where `eager` captures graphs and runs them as they are."""
    model: Any = load_model(
        FAMILIES[name],
        HostDevice(counted=counted),
        weights_dir=None,
        home=home,
        offline=True,
        on_load=lambda _text: None,
        kernels=choice,
    )
    model.kernels.backend = backend
    return model


def clip_of(name: str, **changes: Any) -> ClipSpec:
    family = FAMILIES[name]
    frames = next(n for n in range(max(3, family.frame_rule.minimum), 20) if family.frame_rule.allows(n))
    side = max(64, family.stride)
    values = {"width": 2 * side, "height": side, "frames": frames, "steps": STEPS, "guidance": family.guidance}
    return spec(name, **(values | changes))


def still() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))


def latents_of(
    model: Any,
    clip: ClipSpec,
    layout: Layout = RESIDENT,
    resume: bytes | None = None,
    on_step: Callable[..., None] = lambda *_: None,
) -> torch.Tensor:
    """The finished latents of a clip that is rendered."""
    found: list[torch.Tensor] = []
    settle = type(model).settle

    def keep(latents: torch.Tensor, halves: Any) -> torch.Tensor:
        found.append(settle(model, latents, halves).clone())
        return found[-1]

    model.settle = keep
    try:
        model.render(still(), clip, layout, on_step, resume)
    finally:
        del model.settle
    return found[-1]


@pytest.mark.parametrize("name", SMALL)
def test_clips_of_a_bucket_are_compiled_once_and_close_to_eager_ones(name: str, home: Path) -> None:
    eager, compiled = loaded(name, home, KernelChoice.EAGER), loaded(name, home, KernelChoice.COMPILED)
    told: list[str] = []
    compiled.kernels.tell = told.append
    counts = []
    for seed in (1, 2):
        clip = clip_of(name, seed=seed)
        expected, found = latents_of(eager, clip), latents_of(compiled, clip)
        assert (found - expected).abs().max() <= 1e-4 * max(1.0, float(expected.abs().max()))
        counts.append(compiled.kernel_counts)
    assert counts[0].compiles > 0
    assert counts[0] == counts[1], "the second clip compiles nothing"
    assert (counts[1].recompiles, counts[1].graph_breaks, counts[1].fallbacks) == (0, 0, 0)
    assert len(told) == counts[0].compiles, "whoever waits hears of each"
    assert len(set(told)) == 1
    assert eager.kernel_counts == eager.kernel_counts.since(compiled.kernel_counts).plus(
        compiles=counts[1].compiles, compile_seconds=counts[1].compile_seconds
    )
    kernels = compiled.describe()["kernels"]
    assert kernels["mode"] == "compiled"
    assert kernels["memory_format"] == ("contiguous" if name.startswith("wan") else "channels_last")
    assert kernels["packed_projections"] is True
    plain = {"mode": "eager", "memory_format": "contiguous", "packed_projections": False}
    assert eager.describe()["kernels"] == {**kernels, **plain}


@pytest.mark.parametrize(
    ("changes", "layout", "counted", "reason"),
    [
        ({"step_cache": 2}, RESIDENT, False, "deep layers"),
        ({}, Layout(chunk_feed_forward=4), False, "chunks"),
        ({}, Layout(stream_weights=True), False, "streamed"),
        ({}, RESIDENT, True, "emulated"),
    ],
)
def test_what_cannot_be_compiled_is_the_eager_clip_to_the_bit(changes, layout, counted, reason, home) -> None:
    name = "i2vgen-xl-tiny"
    compiled = loaded(name, home, KernelChoice.COMPILED, counted=counted)
    clip = clip_of(name, **changes)
    found = latents_of(compiled, clip, layout)
    assert torch.equal(found, latents_of(loaded(name, home, KernelChoice.EAGER), clip, layout))
    assert reason in compiled.describe()["kernels"]["eager_because"]
    assert compiled.kernel_counts.compiles == 0


def test_emulated_cards_of_other_threads_do_not_count_here(home: Path) -> None:
    first, second = EmulatedDevice(2**30), EmulatedDevice(2**30)
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        left, right = first.work(), second.work()
        one.submit(left.__enter__).result()
        other.submit(right.__enter__).result()
        # In the order in which they came, which leaves torch's own flag of the process set.
        one.submit(left.__exit__, None, None, None).result()
        other.submit(right.__exit__, None, None, None).result()
    try:
        model = loaded("i2vgen-xl-tiny", home, KernelChoice.COMPILED)
        latents_of(model, clip_of("i2vgen-xl-tiny"))
        assert model.describe()["kernels"]["mode"] == "compiled"
    finally:
        _python_dispatch._is_in_torch_dispatch_mode = False


def test_after_a_compiled_clip_an_eager_one_is_eager_to_the_bit(home: Path) -> None:
    name = "i2vgen-xl-tiny"
    compiled, lean = loaded(name, home, KernelChoice.COMPILED), Layout(chunk_feed_forward=4)
    clip = clip_of(name)
    latents_of(compiled, clip)
    found = latents_of(compiled, clip, lean)
    assert torch.equal(found, latents_of(loaded(name, home, KernelChoice.EAGER), clip, lean))
    assert compiled.describe()["kernels"]["mode"] == "eager"


def test_a_compiler_that_fails_costs_one_try_and_is_logged_once(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    tries = []

    def broken(_graph: Any, _inputs: Any) -> Any:
        tries.append(1)
        raise RuntimeError("no kernel for you")

    name = "svd-xt-tiny"
    compiled = loaded(name, home, KernelChoice.COMPILED, broken)
    with caplog.at_level(logging.WARNING, "clipmill.kernels"):
        found = [latents_of(compiled, clip_of(name, seed=seed)) for seed in (1, 2)]
    eager = loaded(name, home, KernelChoice.EAGER)
    assert all(torch.equal(a, latents_of(eager, clip_of(name, seed=seed))) for seed, a in enumerate(found, start=1))
    assert len(tries) == 1
    logged = [record.message for record in caplog.records if record.name == "clipmill.kernels"]
    assert [text.count("no kernel for you") for text in logged] == [1]
    assert (compiled.kernel_counts.fallbacks, compiled.kernel_counts.compiles) == (1, 0)
    kernels = compiled.describe()["kernels"]
    assert kernels["mode"] == "eager"
    assert "no kernel for you" in kernels["eager_because"]


def test_given_up_within_a_clip_it_is_told_as_mixed(home: Path) -> None:
    name = "wan2.2-5b-tiny"
    model, clip = loaded(name, home, KernelChoice.COMPILED), clip_of(name)
    calls = []

    def evaluate() -> torch.Tensor:
        calls.append(model.kernels.compiles)
        if len(calls) == 2:
            raise CompileError("compiled again and again")
        return torch.zeros(1)

    model.residency.ready(next(iter(set(model.parts.stages.values()) & {"denoise"})), RESIDENT)
    with model.kernels.run(bucket_of(clip, RESIDENT, True), clip, RESIDENT, steps=STEPS):
        for _ in range(3):
            model.kernels.predict(evaluate)
    assert calls == [True, True, False, False], "the evaluation that failed is done again"
    assert model.describe()["kernels"]["mode"] == "mixed"


@pytest.mark.parametrize("way", [FIXED, FIXED[::-1]], ids=["to compiled", "to eager"])
def test_a_clip_goes_on_by_other_kernels_and_says_equal_to_rounding(way, home: Path) -> None:
    name = "i2vgen-xl-tiny"
    first, second = (loaded(name, home, choice) for choice in way)
    clip = clip_of(name)
    taken: dict[str, bytes] = {}

    def keep(into: str) -> Callable[..., None]:
        def on_step(done: int, _total: int, snapshot: Any) -> None:
            taken[f"{into}{done}"] = snapshot()

        return on_step

    whole = latents_of(first, clip, on_step=keep("first"))
    same = latents_of(first, clip, resume=taken["first1"], on_step=keep("same"))
    other = latents_of(second, clip, resume=taken["first1"], on_step=keep("other"))
    assert torch.equal(same, whole)
    assert not torch.equal(other, whole), "another memory format rounds differently"
    assert (other - whole).abs().max() <= 1e-4 * float(whole.abs().max())
    made = {step: parse(data).made for step, data in taken.items()}
    modes = [str(choice) for choice in way]
    assert "resumed" not in made["first2"]
    assert made["first2"]["kernels"]["mode"] == modes[0]
    assert made["same2"]["resumed"] == {"equality": "bit-equal"}
    assert made["other2"]["resumed"]["equality"] == "equal to rounding"
    assert f"kernels.mode: {modes[0]}, then {modes[1]}" in made["other2"]["resumed"]["differs"]


@pytest.mark.parametrize("name", ["i2vgen-xl-tiny", "svd-xt-tiny", "wan2.2-5b-tiny"])
def test_a_clip_that_goes_on_where_tables_are_rounded_otherwise_says_equal_to_rounding(name: str, home: Path) -> None:
    """Hosts of one farm have several kinds of processors; a card says nothing of them."""
    model = loaded(name, home, KernelChoice.EAGER)
    clip = clip_of(name)
    taken: dict[str, bytes] = {}

    def keep(into: str) -> Callable[..., None]:
        def on_step(done: int, _total: int, snapshot: Any) -> None:
            taken[f"{into}{done}"] = snapshot()

        return on_step

    whole = latents_of(model, clip, on_step=keep("here"))
    here = model.describe()["sampler_tables"]
    own = model.scheduler_of
    model.scheduler_of = lambda spec: elsewhere(own(spec))  # type: ignore[method-assign]
    there = latents_of(model, clip, resume=taken["here1"], on_step=keep("there"))
    assert (there - whole).abs().max() <= 1e-4 * float(whole.abs().max())
    other = model.describe()["sampler_tables"]
    assert other != here
    resumed = parse(taken["there2"]).made["resumed"]
    assert resumed == {
        "equality": "equal to rounding",
        "differs": [f"sampler_tables: {here[0]}, then {other[0]}"],
    }
    # Back where it began, it is still not the clip that never left.
    model.scheduler_of = own  # type: ignore[method-assign]
    latents_of(model, clip, resume=taken["there2"], on_step=keep("back"))
    assert parse(taken[f"back{clip.steps}"]).made["resumed"]["equality"] == "equal to rounding"
    latents_of(model, clip, resume=taken["here1"], on_step=keep("same"))
    assert parse(taken["same2"]).made["resumed"] == {"equality": "bit-equal"}


def test_tf32_is_what_is_said_whatever_it_was(home: Path) -> None:
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = False, True
        model = loaded("wan2.2-5b-tiny", home, KernelChoice.EAGER)
        assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == (True, False)
        kernels = model.describe()["kernels"]
        assert (kernels["tf32_convolutions"], kernels["tf32_products"]) == (True, False)
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def broken_compiler(home: str) -> None:
    """In a process of its own: two clips by the real compiler, which finds no C++ compiler."""
    model = loaded("wan2.2-5b-tiny", Path(home), KernelChoice.COMPILED, "inductor")
    eager = loaded("wan2.2-5b-tiny", Path(home), KernelChoice.EAGER)
    equal = [
        torch.equal(latents_of(model, clip), latents_of(eager, clip))
        for clip in (clip_of("wan2.2-5b-tiny", seed=seed) for seed in (1, 2))
    ]
    print(json.dumps({"equal": equal, "fallbacks": model.kernel_counts.fallbacks, **model.describe()["kernels"]}))


@pytest.mark.timeout(900)
def test_without_a_compiler_clips_are_rendered_by_eager_kernels(home: Path, tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", f"from {__name__} import broken_compiler; broken_compiler({str(home)!r})"],
        env=os.environ
        | {"CXX": "/bin/false", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "TORCHINDUCTOR_COMPILE_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    assert (found["equal"], found["fallbacks"], found["mode"]) == ([True, True], 1, "eager")
    assert "compiling failed" in found["eager_because"]
    assert ran.stderr.count("eager kernels from now on") == 1
