"""Recorded evaluations, on a CPU that records: the same clip, nothing kept after it, and any failure is survived.

CUDA itself has run none of this.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.families.layouts import RESIDENT, Layout
from pipeline.kernels.kernels import KernelChoice
from pipeline.models.hooks.graphed import EvaluationGraph, GraphError
from pipeline.models.stages import kernels as stage
from pipeline.models.stages.graphs import LAUNCH_BOUND, LEAST_LEFT, LOOKS, GraphedRun
from pipeline.models.stages.kernels import DenoiserKernels
from tests.doubles.graphs import FakeGraph
from tests.unit.pipeline.models.test_kernels import SMALL, clip_of, latents_of, loaded

STEPS = 8


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> type[FakeGraph]:
    return FakeGraph.install(monkeypatch)


class Uncompiled:
    """Blocks as they are, for compiled ones: torch compiles nothing that a mode follows, as recording here does."""

    def __init__(self, network: Any, _backend: Any) -> None:
        self.compiles = self.recompiles = 0
        self.compile_seconds = 0.0

    def on(self, _tell: Any) -> Any:
        return torch.no_grad()

    def counted(self) -> Any:
        return torch.no_grad()


@pytest.fixture
def on_a_card(monkeypatch: pytest.MonkeyPatch, graphs: type[FakeGraph]) -> type[FakeGraph]:
    """The stage believes that it computes on a card whose launches take all of a step."""
    monkeypatch.setattr(stage, "CompiledBlocks", Uncompiled)
    monkeypatch.setattr(DenoiserKernels, "_capability", (9, 0))
    monkeypatch.setattr("pipeline.models.stages.graphs.LAUNCH_BOUND", 0.0)
    return graphs


def with_graphs(name: str, home: Path) -> Any:
    model = loaded(name, home, KernelChoice.COMPILED)
    model.kernels.graphs = True
    return model


@pytest.mark.parametrize("layout", [RESIDENT, Layout(split_guidance=True)], ids=["batched", "split"])
@pytest.mark.parametrize("name", SMALL)
def test_a_recorded_clip_is_the_launched_one_to_the_bit(name, layout, home, on_a_card, monkeypatch) -> None:
    replays: list[int] = []
    reset = FakeGraph.reset
    monkeypatch.setattr(FakeGraph, "reset", lambda graph: (replays.append(graph.replays), reset(graph)))
    plain, model = loaded(name, home, KernelChoice.COMPILED), with_graphs(name, home)
    # Of another still and prompt than the first: a graph of that must not be replayed.
    for seed in (1, 2):
        clip = clip_of(name, steps=STEPS, seed=seed, prompt=f"prompt {seed}")
        assert torch.equal(latents_of(model, clip, layout), latents_of(plain, clip, layout))
        assert model.describe()["kernels"]["cuda_graphs"] is True
    assert plain.describe()["kernels"]["cuda_graphs"] is False
    assert replays == [STEPS - 1 - LOOKS] * 2, "all steps but the first and those looked at, in a graph a clip"
    assert on_a_card.alive == []


def test_windows_of_a_long_clip_are_recorded_together(home, on_a_card) -> None:
    name = "i2vgen-xl-tiny"
    clip = clip_of(name, steps=STEPS, frames=6, window=4, window_overlap=2)
    model = with_graphs(name, home)
    assert torch.equal(latents_of(model, clip), latents_of(loaded(name, home, KernelChoice.COMPILED), clip))
    assert model.describe()["kernels"]["cuda_graphs"] is True


@pytest.mark.parametrize(
    "fault", [RuntimeError("operation not permitted when stream is capturing"), torch.OutOfMemoryError("full")]
)
def test_what_cannot_be_recorded_is_launched_and_said_once(fault, home, on_a_card, caplog) -> None:
    name = "wan2.2-5b-tiny"
    model, plain = with_graphs(name, home), loaded(name, home, KernelChoice.COMPILED)
    on_a_card.fault = fault
    with caplog.at_level(logging.WARNING, "clipmill.kernels"):
        for seed in (1, 2):
            clip = clip_of(name, steps=STEPS, seed=seed)
            assert torch.equal(latents_of(model, clip), latents_of(plain, clip))
            assert model.describe()["kernels"]["cuda_graphs"] is False
            assert model.describe()["kernels"]["mode"] == "compiled"
    assert [record.message for record in caplog.records if "without CUDA graphs" in record.message] == [
        caplog.records[0].message
    ]
    assert str(fault) in caplog.records[0].message
    assert on_a_card.alive == []


@pytest.mark.parametrize(
    ("layout", "asked", "capability"),
    [(RESIDENT, False, (9, 0)), (Layout(stream_weights=True), True, (9, 0)), (RESIDENT, True, None)],
    ids=["not asked for", "streamed", "no card"],
)
def test_nothing_is_recorded_where_it_must_not_be(layout, asked, capability, home, on_a_card, monkeypatch) -> None:
    monkeypatch.setattr(DenoiserKernels, "_capability", capability)
    monkeypatch.setattr(DenoiserKernels, "record", None)
    name = "i2vgen-xl-tiny"
    model = loaded(name, home, KernelChoice.COMPILED)
    model.kernels.graphs = asked
    latents_of(model, clip_of(name, steps=STEPS), layout)
    assert model.describe()["kernels"]["cuda_graphs"] is False


def test_a_clip_that_is_stopped_leaves_no_graph(home, on_a_card) -> None:
    def stop(step: int, *_: Any) -> None:
        if step == STEPS - 1:
            assert on_a_card.alive, "it is recorded by then"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        latents_of(with_graphs("wan2.2-5b-tiny", home), clip_of("wan2.2-5b-tiny", steps=STEPS), on_step=stop)
    assert on_a_card.alive == []


class Card:
    """Time on a card: launching an evaluation takes `launch_s`, and a step is done `step_s` after it began."""

    def __init__(self, launch_s: float, step_s: float) -> None:
        self.now, self.launch_s, self.step_s = 0.0, launch_s, step_s
        self.recorded = 0

    def run(self, steps: int, unsettled: int = 1) -> int:
        """How many of so many steps were replayed."""
        run = GraphedRun(steps, pytest.fail, self.record, lambda: self.now)
        for step in range(steps):
            began = self.now
            run.evaluate(self.evaluate, (torch.zeros(1),))
            self.now = max(self.now, began + self.step_s)
            run.step_done(settled=step >= unsettled)
        run.end()
        return run.replayed

    def evaluate(self, inputs: torch.Tensor) -> torch.Tensor:
        self.now += self.launch_s
        return inputs

    def record(self, _evaluate: Any, _inputs: Any) -> Any:
        self.recorded += 1
        return self

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        return inputs[0]

    def free(self) -> None:
        self.recorded -= 1


def test_only_steps_that_wait_for_launches_are_recorded() -> None:
    bound = Card(launch_s=0.010, step_s=0.011)
    assert bound.run(20) == 20 - 1 - LOOKS
    assert bound.recorded == 0, "and freed"
    assert Card(launch_s=0.010, step_s=0.010 / LAUNCH_BOUND + 0.001).run(20) == 0
    assert bound.run(20, unsettled=10) == 20 - 10 - LOOKS, "what compiles says nothing of launches"
    assert bound.run(1 + LOOKS + LEAST_LEFT) == LEAST_LEFT
    assert bound.run(LOOKS + LEAST_LEFT) == 0, "recording would not pay"


def test_a_graph_reads_new_inputs_and_old_weights_where_they_lie(graphs) -> None:
    weight, called = torch.tensor([2.0]), []

    def evaluate(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        called.append(1)
        return latents * weight + timestep

    recorded = EvaluationGraph(evaluate, (torch.tensor([1.0]), torch.tensor(10.0)))
    first = recorded(torch.tensor([3.0]), torch.tensor(20.0))
    second = recorded(torch.tensor([4.0]), torch.tensor(30.0))
    assert (first.item(), second.item()) == (26.0, 38.0), "results are tensors of their own"
    weight.fill_(1.0)
    assert recorded(torch.tensor([4.0]), torch.tensor(30.0)).item() == 34.0
    assert len(called) == 1
    with pytest.raises(GraphError, match="recorded with"):
        recorded(torch.tensor([4.0, 5.0]), torch.tensor(30.0))
    recorded.free()
    assert graphs.alive == []
