"""Cross-attention over one token as a constant: diffusers' own network to the bit, and computed once a clip."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNetSpatioTemporalConditionModel
from safetensors.torch import save_file

from pipeline.clips.clip import Adapter
from pipeline.devices.emulated import HostDevice
from pipeline.models.hooks import adapters
from pipeline.models.hooks.chunking import chunk_feed_forward
from pipeline.models.hooks.one_token import one_token_attention
from pipeline.models.hooks.streaming import StreamedWeights


def network() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = UNetSpatioTemporalConditionModel(
            sample_size=8,
            in_channels=8,
            out_channels=4,
            block_out_channels=(32, 64),
            down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
            num_attention_heads=(2, 4),
            cross_attention_dim=16,
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=24,
            layers_per_block=1,
            num_frames=4,
        )
    return made.eval().requires_grad_(False)


def drawn(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def evaluate(made: Any, context: torch.Tensor, time: float = 1.2) -> torch.Tensor:
    rows = context.shape[0]
    with torch.no_grad():
        found: torch.Tensor = made(
            drawn(1, 4, 8, 8, 8).expand(rows, -1, -1, -1, -1),
            torch.tensor(time),
            encoder_hidden_states=context,
            added_time_ids=drawn(1, 3).expand(rows, -1),
            return_dict=False,
        )[0]
    return found


@pytest.mark.parametrize("rows", [1, 2])
def test_equal_to_the_stock_network_to_the_bit(rows: int) -> None:
    made = network()
    contexts = [drawn(rows, 1, 16, seed=seed) for seed in (3, 4, 5)]
    expected = [evaluate(made, context, time) for context in contexts for time in (1.2, 0.4)]
    assert not torch.equal(expected[0], expected[2])
    with one_token_attention(made):
        # Two in turn, as with split guidance, and more than are kept.
        for _ in range(2):
            assert torch.equal(evaluate(made, contexts[0], 1.2), expected[0])
            assert torch.equal(evaluate(made, contexts[1], 0.4), expected[3])
        assert torch.equal(evaluate(made, contexts[2], 1.2), expected[4])
        assert torch.equal(evaluate(made, contexts[0], 0.4), expected[1])
    for module in made.modules():
        assert not {"forward", "one_token_given", "one_token_constants"} & module.__dict__.keys()
        assert not type(module).__name__.startswith("_")
    assert torch.equal(evaluate(made, contexts[0]), expected[0])


@pytest.mark.parametrize("rows", [1, 2])
def test_computed_ahead_constants_are_close_and_gone_when_they_are_no_longer_wanted(rows: int) -> None:
    made = network()
    one, other = drawn(rows, 1, 16, seed=3), drawn(rows, 1, 16, seed=4)
    expected = [evaluate(made, one), evaluate(made, other)]
    ahead = True
    with one_token_attention(made, ahead=lambda: ahead):
        for _ in range(2):
            assert torch.allclose(evaluate(made, one), expected[0], atol=1e-5)
            assert torch.allclose(evaluate(made, other), expected[1], atol=1e-5)
        ahead = False
        # As if they had never been.
        assert torch.equal(evaluate(made, one), expected[0])
        assert torch.equal(evaluate(made, other), expected[1])


def test_double_precision() -> None:
    made = network().double()
    context = drawn(2, 1, 16).double()
    with torch.no_grad():
        inputs = {"encoder_hidden_states": context, "added_time_ids": drawn(2, 3).double(), "return_dict": False}
        sample = drawn(2, 4, 8, 8, 8).double()
        expected = made(sample, torch.tensor(1.2), **inputs)[0]
        with one_token_attention(made):
            found = made(sample, torch.tensor(1.2), **inputs)[0]
    assert (found - expected).abs().max() <= 1e-10


def test_each_layer_is_asked_once_for_a_context() -> None:
    made = network()
    asked = []
    for name, module in made.named_modules():
        if name.endswith("attn2.to_v"):
            module.register_forward_hook(lambda *_, name=name: asked.append(name))
    one, other = drawn(2, 1, 16, seed=3), drawn(2, 1, 16, seed=4)
    with one_token_attention(made):
        for time in (1.2, 0.8, 0.4):
            evaluate(made, one, time)
            evaluate(made, other, time)
        layers = len(set(asked))
        assert layers > 3
        assert len(asked) == 2 * layers
    evaluate(made, one)
    assert len(asked) == 3 * layers


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("adapted", [False, True])
def test_what_is_laid_over_the_network_stays_in_force(tmp_path: Path, adapted: bool, streamed: bool) -> None:
    made = network()
    context = drawn(2, 1, 16)
    plain = evaluate(made, context)
    with ExitStack() as stack:
        if adapted:
            layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v"
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
        expected = evaluate(made, context)
        assert torch.allclose(plain, expected, atol=1e-5) is not adapted
        with one_token_attention(made):
            for _ in range(2):
                assert torch.equal(evaluate(made, context), expected)


def test_nothing_is_kept_after_it_nor_after_a_failure() -> None:
    made, card = network(), HostDevice()
    card.put_on(made)
    weights = card.used_bytes()

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    with card.work():
        with one_token_attention(made):
            evaluate(made, drawn(2, 1, 16))
        assert card.used_bytes() == weights
        handle = made.conv_out.register_forward_pre_hook(fail)
        with pytest.raises(torch.OutOfMemoryError), one_token_attention(made):
            evaluate(made, drawn(2, 1, 16))
        handle.remove()
    assert all("forward" not in module.__dict__ for module in made.modules())
    assert card.used_bytes() == weights


def test_a_context_of_several_tokens_is_refused() -> None:
    made = network()
    with one_token_attention(made), pytest.raises(ValueError, match="over 2 tokens is no constant"):
        evaluate(made, drawn(2, 2, 16))
