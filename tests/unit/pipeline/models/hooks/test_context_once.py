"""Keys and values of a context that frames and steps share: diffusers' own network to the bit, computed once a clip."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import I2VGenXLUNet
from safetensors.torch import save_file

from pipeline.clips.clip import Adapter
from pipeline.devices.emulated import HostDevice
from pipeline.models.hooks import adapters
from pipeline.models.hooks.chunking import chunk_feed_forward
from pipeline.models.hooks.context_once import context_once
from pipeline.models.hooks.streaming import StreamedWeights

FRAMES = 4
CONDITIONS = ("encoder_hidden_states", "image_latents", "image_embeddings")


def network() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = I2VGenXLUNet(
            sample_size=8,
            block_out_channels=(32, 64),
            down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
            up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
            layers_per_block=1,
            cross_attention_dim=16,
            attention_head_dim=8,
        )
    return made.eval().requires_grad_(False)


def drawn(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def conditions(rows: int = 2, seed: int = 3) -> dict[str, torch.Tensor]:
    return {
        "encoder_hidden_states": drawn(rows, 77, 16, seed=seed),
        "image_latents": drawn(rows, 4, FRAMES, 8, 8, seed=seed + 1),
        "image_embeddings": drawn(rows, 1, 16, seed=seed + 2),
        "fps": torch.full((rows,), 8),
    }


def evaluate(made: Any, given: Mapping[str, torch.Tensor], time: int = 500) -> torch.Tensor:
    rows = given["fps"].shape[0]
    sample = drawn(1, 4, FRAMES, 8, 8).expand(rows, -1, -1, -1, -1).to(made.dtype)
    with torch.no_grad():
        found: torch.Tensor = made(sample, torch.tensor(time), **given, return_dict=False)[0]
    return found


def _counted(kind: Any, name: str, asked: list[str]) -> Any:
    class Counted(kind):
        def forward(self, x: torch.Tensor) -> Any:
            asked.append(name)
            return super().forward(x)

    return Counted


def count_projections(made: Any) -> list[str]:
    """Names of the layers that make keys and values of the context, as they multiply."""
    asked: list[str] = []
    for name, module in made.named_modules():
        if name.endswith(("attn2.to_k", "attn2.to_v")) and module.in_features == 16:
            module.__class__ = _counted(type(module), name, asked)
    return asked


@pytest.mark.parametrize("rows", [1, 2])
def test_equal_to_the_stock_network_to_the_bit(rows: int) -> None:
    made = network()
    given = [conditions(rows, seed) for seed in (3, 13, 23)]
    expected = [[evaluate(made, each, time) for time in (900, 400)] for each in given]
    assert not torch.allclose(expected[0][0], expected[1][0], atol=1e-4)
    with context_once(made, CONDITIONS):
        # Two in turn, as with split guidance; then a third, and one that was forgotten meanwhile.
        for step, time in enumerate((900, 400)):
            assert torch.equal(evaluate(made, given[0], time), expected[0][step])
            assert torch.equal(evaluate(made, given[1], time), expected[1][step])
        assert torch.equal(evaluate(made, given[2], 900), expected[2][0])
        assert torch.equal(evaluate(made, given[0], 400), expected[0][1])
    assert all("forward" not in module.__dict__ for module in made.modules())
    assert torch.equal(evaluate(made, given[0], 900), expected[0][0])


def test_double_precision() -> None:
    made = network().double()
    given = {name: t.double() if t.is_floating_point() else t for name, t in conditions().items()}
    expected = evaluate(made, given)
    with context_once(made, CONDITIONS):
        for _ in range(2):
            assert (evaluate(made, given) - expected).abs().max() <= 1e-10


def test_each_layer_projects_a_context_once_and_once_for_all_frames() -> None:
    made = network()
    asked = count_projections(made)
    one, other = conditions(1, 3), conditions(1, 13)
    with context_once(made, CONDITIONS):
        for time in (900, 500, 100):
            evaluate(made, one, time)
            evaluate(made, other, time)
    layers = len(set(asked))
    assert layers > 3
    assert len(asked) == 2 * layers


@pytest.mark.parametrize("changed", CONDITIONS)
@pytest.mark.parametrize("in_place", [False, True])
def test_any_other_condition_is_projected_anew(changed: str, in_place: bool) -> None:
    made = network()
    given = conditions()
    with context_once(made, CONDITIONS):
        before = evaluate(made, given)
        if in_place:
            given[changed].mul_(3.0)
        else:
            given = {**given, changed: given[changed] * 3.0}
        found = evaluate(made, given)
    assert not torch.equal(found, before)
    assert torch.equal(found, evaluate(made, given))


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("adapted", [False, True])
def test_what_is_laid_over_the_network_stays_in_force(tmp_path: Path, adapted: bool, streamed: bool) -> None:
    made = network()
    given = conditions()
    plain = evaluate(made, given)
    with ExitStack() as stack:
        if adapted:
            layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
            size = made.get_submodule(layer)
            factors = {
                f"{layer}.lora_A.weight": drawn(2, size.in_features),
                f"{layer}.lora_B.weight": drawn(size.out_features, 2),
            }
            path = tmp_path / "lora.safetensors"
            save_file(factors, str(path))
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            adapters.put_on(made, Adapter(name=str(path), sha256=digest, scale=1.0), path)
        chunk_feed_forward([made], 3)
        if streamed:
            stack.callback(StreamedWeights(made, "cpu").end)
        expected = evaluate(made, given)
        assert torch.allclose(plain, expected, atol=1e-6) is not adapted
        with context_once(made, CONDITIONS):
            for _ in range(2):
                assert torch.equal(evaluate(made, given), expected)


def test_nothing_is_kept_after_it_nor_after_a_failure() -> None:
    made, card = network(), HostDevice()
    card.put_on(made)
    weights = card.used_bytes()

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    with card.work():
        with context_once(made, CONDITIONS):
            given = conditions()
            evaluate(made, given)
            assert card.used_bytes() > weights + sum(t.nbytes for t in given.values())
        del given
        assert card.used_bytes() == weights
        handle = made.conv_out.register_forward_pre_hook(fail)
        with pytest.raises(torch.OutOfMemoryError), context_once(made, CONDITIONS):
            evaluate(made, conditions())
        handle.remove()
    assert all("forward" not in module.__dict__ for module in made.modules())
    assert card.used_bytes() == weights
