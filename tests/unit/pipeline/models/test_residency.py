"""Networks on their way to the card and back: all there or nothing, and the host's own tensors afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.clips.clip import ClipSpec, ResolutionClass
from pipeline.devices.emulated import EmulatedDevice, HostDevice, off_card
from pipeline.devices.transfer import PlacedWeights, tensors_of
from pipeline.families import Stage, family_named
from pipeline.families.layouts import RESIDENT, Layout
from pipeline.models.diffusion import DiffusionModel
from pipeline.models.hooks.streaming import StreamedWeights
from pipeline.models.loading import load_model
from pipeline.units import MIB

TINY = family_named("i2vgen-xl-tiny")
EVICTING = Layout(evict_encoders=True, evict_denoiser=True)
STREAMING = Layout(stream_weights=True, evict_encoders=True, evict_denoiser=True)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def load(home: Path, device: Any) -> DiffusionModel:
    model = load_model(TINY, device, weights_dir=None, home=home, offline=True, on_load=lambda _text: None)
    assert isinstance(model, DiffusionModel)
    return model


def spec_of(prompt: str = "a lamp turns") -> ClipSpec:
    return ClipSpec(
        family=TINY.name,
        revision=TINY.revision,
        prompt=prompt,
        resolution_class=ResolutionClass.P256,
        width=64,
        height=64,
        frames=4,
        fps=8,
        steps=1,
        guidance=TINY.guidance,
        seed=1,
        sampler=TINY.samplers[0],
    )


def still() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def no_step(_done: int, _total: int, _snapshot: Any) -> None:
    pass


def addresses(model: DiffusionModel) -> list[int]:
    return [tensor.data_ptr() for network in model.parts.networks for tensor in tensors_of(network)]


class FullOnce(HostDevice):
    """Memory runs out once, when so many tensors of a network have arrived."""

    def __init__(self, network_of: Any, after: int) -> None:
        super().__init__()
        self.network_of, self.after, self.failed = network_of, after, False

    def put_on(self, module: nn.Module, dtype: torch.dtype | None = None) -> None:
        if self.failed or module is not self.network_of():
            super().put_on(module, dtype)
            return
        self.failed = True
        for tensor in tensors_of(module)[: self.after]:
            with off_card():
                tensor.data = tensor.data.clone()
            self._live.take(tensor.untyped_storage())
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate …")


@pytest.mark.parametrize("stage", list(Stage))
def test_what_was_half_placed_is_placed_anew(home: Path, stage: Stage) -> None:
    expected = load(home, HostDevice()).render(still(), spec_of(), RESIDENT, no_step)
    networks: list[nn.Module] = []
    device = FullOnce(lambda: networks[-1], after=3)
    model = load(home, device)
    networks[:] = model.parts.of(stage)
    before = addresses(model)
    with pytest.raises(torch.OutOfMemoryError):
        model.render(still(), spec_of(), RESIDENT, no_step)
    assert not model.residency.is_placed(stage)
    of_stage = {tensor.data_ptr() for network in networks for tensor in tensors_of(network)}
    assert of_stage <= set(before)
    others = {each for each in Stage if model.residency.is_placed(each)}
    held = sum(t.nbytes for each in others for network in model.parts.of(each) for t in tensors_of(network))
    assert device.used_bytes() == held == model.weights_bytes
    # The leaner layout that a renderer tries next.
    frames = model.render(still(), spec_of(), Layout(split_guidance=True), no_step)
    assert np.abs(frames.astype(int) - expected).max() <= 1
    assert all(model.residency.is_placed(each) for each in Stage)
    model.unload()
    assert device.used_bytes() == 0


def test_a_card_too_small_at_any_point_keeps_nothing_of_a_network() -> None:
    made = nn.Sequential(*[nn.Linear(8, 8 * (place + 1)) for place in range(6)])
    before = [(tensor.data_ptr(), tensor.clone()) for tensor in tensors_of(made)]
    whole = sum(tensor.nbytes for tensor in tensors_of(made))
    for room in range(0, whole, 64):
        card = EmulatedDevice(room)
        for place in (PlacedWeights, lambda network, card: StreamedWeights(network, card.torch_device)):
            with card.work():
                try:
                    place(made, card).end()
                except torch.OutOfMemoryError:
                    pass
                else:
                    assert place is not PlacedWeights
            assert card.used_bytes() == 0
            for tensor, (address, value) in zip(tensors_of(made), before, strict=True):
                assert tensor.data_ptr() == address
                assert torch.equal(tensor, value)
    assert not any(module._forward_pre_hooks for module in made.modules())


@pytest.mark.parametrize("layout", [EVICTING, STREAMING], ids=["evicting", "streaming"])
def test_evicted_weights_are_the_hosts_own_tensors_again(home: Path, layout: Layout) -> None:
    model = load(home, HostDevice())
    before = addresses(model)
    for number in range(3):
        model.render(still(), spec_of(f"clip {number}"), layout, no_step)
        for stage in (Stage.ENCODE, Stage.DENOISE, Stage.DECODE):
            model.residency.displace(stage)
        assert addresses(model) == before


def test_a_network_that_was_widened_on_the_card_comes_back_as_it_was() -> None:
    made = nn.Linear(4, 4).half()
    host = made.weight.data
    placed = PlacedWeights(made, HostDevice())
    made.float()
    placed.end()
    # Not restored in time: its values count, not where they lay.
    assert made.weight.dtype == torch.float32
    assert torch.equal(made.weight, host.float())
    placed = PlacedWeights(made.half(), HostDevice())
    made.register_buffer("laid_on", torch.ones(2))
    placed.end()
    placed.end()
    assert torch.equal(made.weight, host)


def _anonymous_bytes() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux")
def test_evicting_takes_no_host_memory(tmp_path: Path) -> None:
    """Weights that are a mapped file stay one: what was on the card (72 MiB of host memory here) is not kept."""
    # Above 32 MiB, below which the C library may keep what was freed.
    layers, side = 2, 3072
    save_file({f"{at}.weight": torch.ones(side, side) for at in range(layers)}, str(tmp_path / "weights.safetensors"))
    with torch.device("meta"):
        made = nn.Sequential(*[nn.Linear(side, side, bias=False) for _ in range(layers)])
    made.load_state_dict(load_file(str(tmp_path / "weights.safetensors")), assign=True)
    before = [tensor.data_ptr() for tensor in tensors_of(made)]
    start = _anonymous_bytes()
    for _ in range(3):
        placed = PlacedWeights(made, HostDevice())
        placed.end()
        del placed
        assert _anonymous_bytes() - start < 16 * MIB
    assert [tensor.data_ptr() for tensor in tensors_of(made)] == before


@pytest.mark.parametrize("stage", list(Stage))
def test_cached_memory_goes_before_weights_come(home: Path, stage: Stage) -> None:
    class Noting(HostDevice):
        def free_cached(self) -> None:
            freed.append(self.used_bytes())

    freed: list[int] = []
    model = load(home, Noting())
    freed.clear()
    model.residency.place(stage)
    assert freed == [0], "once, while nothing is on the card"
    model.residency.place(stage)
    assert freed == [0], "what is there already is left alone"
