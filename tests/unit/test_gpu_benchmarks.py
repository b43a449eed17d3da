"""The benchmarks of a card, without one: all of the script on small networks, and what it does of what goes wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from pipeline.devices.cuda import CudaDevice  # noqa: E402
from pipeline.devices.emulated import EmulatedDevice  # noqa: E402
from pipeline.devices.nvml import Nvml  # noqa: E402
from pipeline.families import Stage, family_named  # noqa: E402
from pipeline.families.layouts import RESIDENT  # noqa: E402
from pipeline.memory.footprint import footprint, plan, weights_on_card  # noqa: E402
from tests.doubles.cuda import FakeCuda  # noqa: E402
from tests.doubles.nvml import FakeNvml, h100  # noqa: E402

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from gpu_parts import grid, needs, speed, speed_ups  # noqa: E402
from gpu_parts.aims import aims_of  # noqa: E402
from gpu_parts.bench import MEASURED, Bench  # noqa: E402
from gpu_parts.cases import PARTS, Case, DeadCardError, Planned, Results, plan_cases, run_cases  # noqa: E402

MIB = 2**20


def case(name: str, part: str = "steps", cost_s: float = 1.0, rank: int = 1, work: Any = None) -> Case:
    return Case(part=part, name=name, cost_s=cost_s, rank=rank, work=work or (lambda: {"figure": 1.0}))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=590, check=False)


# -- the whole script --------------------------------------------------------------------------------------------


@pytest.mark.timeout(600)
def test_all_of_it_runs_to_its_end_with_the_small_networks(tmp_path):
    done = run("--tiny", "--out", str(tmp_path), "--json", str(tmp_path / "all.json"))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))
    assert found["finished"]
    assert found["failed"] == {}
    assert tuple(found["parts"]) == PARTS
    assert {"date", "command", "commit", "machine", "torch", "cuda", "diffusers", "gpu"} <= set(found["about"])
    assert {path.stem for path in tmp_path.glob("*.json")} == {"all", "gpu", *PARTS}
    for name in MEASURED:
        assert found["parts"]["steps"][f"{name}, product"]["step_s"] > 0
        assert found["parts"]["steps"][f"{name}, diffusers"]["step_s"] > 0
        # Nothing of what diffusers' own decoder makes of the same latents is lost, and nothing by a resumed clip.
        assert found["parts"]["decode"][name]["decoder_differs_by"] == 0
        assert found["parts"]["resume"][name]["resumed"]["equal"]
    assert all(cell["done"] for cell in found["parts"]["grid"].values())
    assert [aim["name"] for aim in found["aims"] if aim["value"] is None] == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_it_says_so_and_exits_three():
    done = run()
    assert done.returncode == 3
    assert "no CUDA card here" in done.stderr
    assert "--tiny" in done.stderr


# -- what a machine lacks ----------------------------------------------------------------------------------------


def test_packages_that_are_lacking_are_named_with_how_to_bring_them():
    there = {package.name: ".".join(map(str, package.least)) for package in needs.PACKAGES}
    assert needs.lacking(there.__getitem__) == []

    def versions(name: str) -> str:
        if name == "diffusers":
            raise PackageNotFoundError(name)
        return {**there, "torch": "2.9.1+cu130", "transformers": "6.0.0"}[name]

    missing = needs.lacking(versions)
    assert [each.package.name for each in missing] == ["torch", "diffusers", "transformers"]
    words = needs.how_to_bring(missing)
    assert "torch>=2.10 (2.9.1+cu130 is there)" in words
    assert "diffusers>=0.42,<0.43 (not installed)" in words
    download = next(line for line in words.splitlines() if "pip download" in line)
    assert "diffusers" in download
    assert "torch" not in download


def test_the_packages_are_those_of_the_project():
    import tomllib

    project = tomllib.loads((BENCHMARKS.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {*project["dependencies"], *project["optional-dependencies"]["render"]}
    assert [package.wanted for package in needs.PACKAGES if package.wanted not in wanted] == []


# -- what fits a time --------------------------------------------------------------------------------------------


def test_a_budget_takes_what_aims_need_first_and_tells_the_rest():
    cases = [
        case("a", "resume", 10, rank=0),
        case("b", "ceilings", 10, rank=1),
        case("c", "grid", 50, rank=0),
        case("d", "grid", 40, rank=2),
        case("e", "steps", 5, rank=1),
    ]
    planned = plan_cases(cases, 70)
    assert [each.name for each in planned.runs] == ["b", "c", "a"]
    assert [each.name for each in planned.left_out] == ["d", "e"]
    assert [each.name for each in plan_cases(cases, None).runs] == ["b", "c", "d", "e", "a"]


def test_a_loan_of_eight_minutes_holds_every_aim():
    bench = Bench(tiny=True)
    cases = [*speed.step_cases(bench), *speed.decode_cases(bench), *speed.resume_cases(bench)]
    bench.cuda = True  # all budgets of the grid, and none of its work
    cases += grid.cases(bench)
    planned = plan_cases(cases, 420)
    assert [str(each) for each in planned.left_out if each.rank == 0] == []


def test_a_case_that_fails_is_noted_and_the_next_runs(tmp_path):
    def fail() -> dict[str, Any]:
        raise RuntimeError("no such thing")

    seen: list[BaseException] = []
    results = Results({}, tmp_path / "all.json")
    planned = Planned(runs=(case("a"), case("b", work=fail), case("c")), left_out=(case("d"),))
    run_cases(planned, results, after_failure=seen.append)
    found = json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))
    assert list(found["parts"]["steps"]) == ["a", "c"]
    assert "RuntimeError: no such thing (test_gpu_benchmarks.py:" in found["failed"]["steps: b"]
    assert found["left_out"] == {"steps: d": "does not fit the budget"}
    assert len(seen) == 1


def test_what_was_measured_before_a_kill_is_there(tmp_path):
    def killed() -> dict[str, Any]:
        raise KeyboardInterrupt

    results = Results({}, tmp_path / "all.json", tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        run_cases(Planned(runs=(case("a", "grid"), case("b", work=killed)), left_out=()), results)
    for path in (tmp_path / "all.json", tmp_path / "out" / "gpu.json", tmp_path / "out" / "grid.json"):
        found = json.loads(path.read_text(encoding="utf-8"))
        assert found["parts"]["grid"]["a"]["figure"] == 1.0
    assert not json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))["finished"]


def test_no_case_begins_that_would_go_beyond_the_deadline_nor_on_a_dead_card():
    now = [0.0]

    def takes(seconds: float) -> Any:
        def work() -> dict[str, Any]:
            now[0] += seconds
            return {}

        return work

    runs = (case("a", cost_s=5, work=takes(9)), case("b", cost_s=5, work=takes(5)), case("c", cost_s=1, work=takes(1)))
    results = Results({})
    run_cases(Planned(runs=runs, left_out=()), results, deadline=12, clock=lambda: now[0])
    assert list(results.content["parts"]["steps"]) == ["a", "c"]
    assert results.content["left_out"] == {"steps: b": "no time was left"}

    def dead(_error: BaseException) -> None:
        raise DeadCardError("it is gone")

    def fail() -> dict[str, Any]:
        raise RuntimeError

    results = Results({})
    run_cases(Planned(runs=(case("a", work=fail), case("b")), left_out=()), results, after_failure=dead)
    assert results.content["left_out"] == {"steps: b": "it is gone"}


# -- memory ------------------------------------------------------------------------------------------------------


def card_with(bench: Bench, spec: Any, layout: Any) -> Any:
    """An emulated model on a card that has just what `layout` needs."""
    model = bench.emulated("i2vgen-xl")
    card = model.device
    assert isinstance(card, EmulatedDevice)
    card.foreign_bytes = 0
    needed = footprint(spec, layout).peak_bytes
    card.foreign_bytes = card.total_bytes - needed * 21 // 20
    return model


def test_a_clip_that_overflows_its_budget_is_laid_out_leaner_as_in_a_renderer():
    bench = Bench(tiny=True)
    family = family_named("i2vgen-xl-tiny")
    spec = bench.clip("i2vgen-xl", (64, 64, 9), 1).model_copy(update={"width": 256, "height": 256, "frames": 16})
    lean = next(layout for layout in family.layouts if layout.split_guidance)
    model = card_with(bench, spec, lean)
    # Admitted as if there were more: the first layout overflows.
    budget = grid.Budget(total_bytes=2**40, context_bytes=0, usable_bytes=2**40)
    found = grid.escalated(model, spec, budget, grid.EmulatedMeter(model.device), bench.still())
    assert found["done"]
    assert found["ooms"] >= 1
    assert found["layout"] != str(plan(spec, 2**40)[0])
    assert model.device.used_bytes() < 4 * MIB, "nothing of it is left on the card"


class KeptBlocks:
    """Stages by what they allocate: what was reserved stays so until the allocator is told to give it back."""

    def __init__(self, fake: FakeCuda) -> None:
        self.fake = fake

    def stage(self, count: int) -> None:
        self.fake.allocate(count)
        self.fake.release(count)


def test_what_a_stage_reserves_is_its_own_and_no_earlier_stage_s(monkeypatch):
    """Exact predictions meet the aim although the allocator keeps blocks: they are given back where a stage begins."""
    nvml = FakeNvml([h100()])
    fake = FakeCuda(nvml).install(monkeypatch)
    bench = Bench(tiny=True, device=CudaDevice(0, uuid="GPU-h100", memory=Nvml(nvml)))
    spec = bench.clip("i2vgen-xl", (64, 64, 9), 1)
    predicted = {stage: footprint(spec).stages[stage] * 200 for stage in Stage}
    predicted[Stage.DECODE] = predicted[Stage.ENCODE] // 2
    kept = KeptBlocks(fake)
    reserved = {}
    meter = grid.CudaMeter(bench)
    for stage in Stage:
        meter.begin()
        kept.stage(predicted[stage])
        reserved[stage] = meter.peaks()[1]
    assert reserved == predicted


def test_the_lines_for_a_card_run_with_cuda_s_functions_doubled(monkeypatch):
    """Networks on the host, torch.cuda a double: what is asked of CUDA is asked rightly, and the limits come back."""
    nvml = FakeNvml([h100()])
    fake = FakeCuda(nvml).install(monkeypatch)
    device = CudaDevice(0, uuid="GPU-h100", memory=Nvml(nvml))
    device.torch_device = "cpu"
    bench = Bench(tiny=True, device=device)
    assert bench.cuda
    found = grid.measure(bench, "i2vgen-xl", (64, 64, 9), 8)
    assert found["done"]
    assert found["context_bytes"] == fake.context_bytes
    assert fake.fraction == 1.0
    assert "empty_cache" in fake.called
    clip = speed.clip(bench, "svd-xt")
    assert clip["clip_s"] > clip["step_s"] > 0
    bench.recover(torch.OutOfMemoryError("CUDA out of memory"))
    fake.dead = SimpleNamespace  # type: ignore[assignment]
    fake.dead = RuntimeError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(DeadCardError):
        bench.recover(fake.dead)


def test_a_stage_is_judged_beside_its_weights():
    bench = Bench(tiny=True)
    spec = bench.clip("i2vgen-xl", (64, 64, 9), 1)
    predicted, weights = footprint(spec).stages["denoise"], weights_on_card(family_named(spec.family), RESIDENT)
    budget = grid.Budget(total_bytes=8 * 2**30, context_bytes=400 * MIB, usable_bytes=0)
    taken = grid.taken_of(spec, RESIDENT, budget, {Stage.DENOISE: (predicted + 5 * MIB, predicted + 9 * MIB)})[
        "denoise"
    ]
    assert taken.workspace == 5 * MIB
    assert taken.predicted_activations == predicted - weights.denoise_bytes
    assert taken.taken == predicted + 409 * MIB
    # 450 MiB of context and 128 of workspaces by the estimate, rests of 2 %, and the margin of the card, 512 MiB.
    assert taken.promised == pytest.approx(predicted * 1.02 + (450 + 128 + 512) * MIB, abs=MIB)


# -- speed-ups ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "up"), [("wan2.2-5b", "two timesteps"), ("svd-xt", "one-token attention")])
def test_a_speed_up_of_the_product_can_be_taken_away_and_changes_no_bit(name, up):
    bench = Bench(tiny=True)
    model, spec = bench.model(name), bench.clip(name, (64, 64, 9), 2)
    halves = speed.conditions(bench, model, spec)
    # (what the network is called with, which says whether it is on)
    seen: list[tuple[Any, ...]] = []
    network = model.parts.of(Stage.DENOISE)[0]
    asked = "attn2.to_q" if name == "svd-xt" else "condition_embedder.timesteps_proj"
    part = next(module for path, module in network.named_modules() if path.endswith(asked))
    handle = part.register_forward_pre_hook(lambda _module, args: seen.append(tuple(args[0].shape)))
    latents = {}
    for on in ((up,), ()):
        seen.clear()
        with speed_ups.applied(model, on):
            latents[on] = model.denoise(halves, spec, RESIDENT, lambda *_: None)
        latents[f"seen {on}"] = list(seen)
    handle.remove()
    assert torch.equal(latents[(up,)], latents[()])
    assert latents[f"seen {(up,)}"] != latents["seen ()"], "it was off once and on once"


def test_what_this_version_has_not_is_said_and_does_not_end_the_run(monkeypatch):
    absent = speed_ups.SpeedUp(name="hope", target="pipeline.models.hope:hope", switch=speed_ups.replaced("", None))
    done = speed_ups.SpeedUp(name="love", stands_in_for="pipeline.models.wan:Wan", switch=speed_ups.replaced("", None))
    also = speed_ups.SpeedUp(name="faith", target="pipeline.models.wan:faith", switch=speed_ups.replaced("", None))
    monkeypatch.setattr(speed_ups, "SPEED_UPS", (*speed_ups.SPEED_UPS, absent, also, done))
    there, why = speed_ups.known("wan", "cpu")
    assert [each.name for each in there] == ["two timesteps"]
    assert why["hope"] == "this version has no pipeline.models.hope"
    assert why["faith"] == "this version has no pipeline.models.wan:faith"
    assert why["love"] == "the product has pipeline.models.wan:Wan"
    assert why["cuDNN attention"] == "needs a CUDA card"


def test_each_set_of_speed_ups_is_measured_once():
    there, _ = speed_ups.known("svd", "cuda:0")
    found = speed.variants(there)
    assert found[0][0] == "product"
    assert len({ups for _, ups in found}) == len(found)
    assert {name for name, _ in found} >= {"product", "plain", "all"}


# -- aims --------------------------------------------------------------------------------------------------------


def test_aims_are_read_from_the_figures_and_what_is_not_there_is_not_measured():
    nothing = aims_of({})
    assert all(aim.met is None for aim in nothing)
    assert all("not measured" in str(aim) for aim in nothing)
    steps = {
        "wan2.2-5b, product": {"step_s": 2.0, "tflops": 480.0},
        "wan2.2-5b, diffusers": {"step_s": 3.0},
        "wan2.2-5b, streamed": {"resident_step_s": 2.0, "slower": 0.05, "copied_bytes_a_step": 20e9},
        # Shorter than its copy, so no step that streaming could hide behind.
        "i2vgen-xl, streamed": {"resident_step_s": 0.1, "slower": 3.0, "copied_bytes_a_step": 20e9},
    }
    ceilings = {"gemm": {"bf16_tflops": 760.0}, "bus": {"to_card_pinned_gb_s": 50.0}}
    stage = {"error": -0.06, "taken": 11, "promised": 10}
    cell = {"admitted": True, "done": True, "stages": {"denoise": stage}}
    parts = {"ceilings": ceilings, "steps": steps, "grid": {"wan2.2-5b 1280x704x121 in 16 GiB": cell}}
    found = {aim.name: aim for aim in aims_of(parts)}
    share = found["wan2.2-5b: share of the measured bf16 matrix product"]
    assert share.value == pytest.approx(63.16, abs=0.01)
    assert share.met
    faster = found["wan2.2-5b: steps against diffusers' own"]
    assert (faster.value, faster.met) == (1.5, False)
    assert found["streamed weights, where a step is longer than their copy: slower by"].value == pytest.approx(5.0)
    assert found["memory: largest difference of allocated from predicted"].met is False
    assert found["memory: stages that took more of the card than promised, margin included"].value == 1
    assert found["wan2.2-5b 1280×704×121 in a card of 16 GiB: rendered"].met
    assert found["i2vgen-xl 1024p × 16 frames in a card of 8 GiB: rendered"].met is None
