"""Two timesteps in place of one a token: diffusers' own network, to the bit, with whatever else is laid over it."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file

from pipeline.clips.clip import Adapter
from pipeline.dryrun.device import DryDevice
from pipeline.models.hooks import adapters
from pipeline.models.hooks.chunking import chunk_feed_forward
from pipeline.models.hooks.streaming import StreamedWeights
from pipeline.models.hooks.two_timesteps import two_timesteps

#: Tokens of one latent frame of `inputs`.
FRAME = 4 * 3


def network(dtype: torch.dtype = torch.float32, **changes: Any) -> WanTransformer3DModel:
    """A small one, with what only other members of the architecture have as well (`changes`)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        made = WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=24,
            in_channels=8,
            out_channels=4,
            text_dim=32,
            freq_dim=32,
            ffn_dim=96,
            num_layers=3,
            **changes,
        )
    return made.to(dtype).eval().requires_grad_(False)


def inputs(rows: int = 2, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """(latents, text): 5 latent frames of 8 × 6."""
    source = torch.Generator().manual_seed(1)
    latents = torch.randn(rows, 8, 5, 8, 6, generator=source)
    return latents.to(dtype), torch.randn(rows, 7, 32, generator=source).to(dtype)


def stock(made: Any, latents: torch.Tensor, text: torch.Tensor, first: int, times: tuple[float, float]) -> torch.Tensor:
    dtype = torch.promote_types(latents.dtype, torch.float32)
    tokens = latents[0, 0].numel() // 4
    every = latents.new_full((latents.shape[0], tokens), times[1], dtype=dtype)
    every[:, :first] = times[0]
    with torch.no_grad():
        found: torch.Tensor = made(latents, every, text, return_dict=False)[0]
    return found


def ours(made: Any, latents: torch.Tensor, text: torch.Tensor, first: int, times: tuple[float, float]) -> torch.Tensor:
    two = latents.new_full((latents.shape[0], 2), times[1], dtype=torch.promote_types(latents.dtype, torch.float32))
    two[:, 0] = times[0]
    with torch.no_grad(), two_timesteps(made, first):
        found: torch.Tensor = made(hidden_states=latents, timestep=two, encoder_hidden_states=text, return_dict=False)[
            0
        ]
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("first", [0, FRAME, 2 * FRAME, 5 * FRAME])
def test_equal_to_the_stock_network_to_the_bit(dtype: torch.dtype, rows: int, first: int) -> None:
    made = network(dtype, cross_attn_norm=True)
    latents, text = inputs(rows, dtype)
    before = latents.clone()
    expected = stock(made, latents, text, first, (0.0, 637.0))
    assert torch.equal(ours(made, latents, text, first, (0.0, 637.0)), expected)
    assert torch.equal(latents, before)
    if 0 < first < 5 * FRAME:
        # The two timesteps and where the line is are seen.
        assert not torch.equal(ours(made, latents, text, first, (637.0, 637.0)), expected)
        assert not torch.equal(ours(made, latents, text, first + 1, (0.0, 637.0)), expected)


def test_equal_to_the_stock_network_in_double_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    made = network(torch.float64, patch_size=(1, 2, 2), qk_norm=None)
    latents, text = inputs(dtype=torch.float64)
    expected = stock(made, latents, text, FRAME, (0.0, 412.5))
    assert (ours(made, latents, text, FRAME, (0.0, 412.5)) - expected).abs().max() <= 1e-10


def lora(made: Any, folder: Path) -> Adapter:
    source = torch.Generator().manual_seed(9)
    factors = {}
    for name in ("blocks.0.attn1.to_q", "blocks.1.ffn.net.2", "condition_embedder.time_proj", "proj_out"):
        layer = made.get_submodule(name)
        factors[f"transformer.{name}.lora_A.weight"] = torch.randn(2, layer.in_features, generator=source)
        factors[f"transformer.{name}.lora_B.weight"] = torch.randn(layer.out_features, 2, generator=source)
    path = folder / "lora.safetensors"
    save_file(factors, str(path))
    return Adapter(name=str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest(), scale=0.7)


def test_what_is_laid_over_the_network_stays_in_force(tmp_path: Path) -> None:
    """An adapter, feed-forward in chunks, streamed weights: in any company, the stock network's bits in the same."""
    latents, text = inputs()
    plain = stock(network(), latents, text, FRAME, (0.0, 500.0))
    found = []
    for adapted in (False, True):
        for chunks in (1, 3):
            for streamed in (False, True):
                made = network()
                with ExitStack() as stack:
                    if adapted:
                        adapter = lora(made, tmp_path)
                        adapters.put_on(made, adapter, Path(adapter.name))
                    chunk_feed_forward([made], chunks)
                    if streamed:
                        stream = StreamedWeights(made, "cpu")
                        assert stream.groups
                        stack.callback(stream.end)
                    expected = stock(made, latents, text, FRAME, (0.0, 500.0))
                    assert torch.equal(ours(made, latents, text, FRAME, (0.0, 500.0)), expected)
                    assert torch.equal(stock(made, latents, text, FRAME, (0.0, 500.0)), expected)
                    assert torch.allclose(plain, expected, atol=1e-5) is not adapted
                    found.append(expected)
    assert not torch.equal(found[0], found[-1])


def test_the_network_is_as_it_was_afterwards_and_after_a_failure() -> None:
    made = network()
    latents, text = inputs()

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    handle = made.blocks[1].register_forward_pre_hook(fail)
    with pytest.raises(torch.OutOfMemoryError):
        ours(made, latents, text, FRAME, (0.0, 500.0))
    handle.remove()
    assert all("forward" not in module.__dict__ for module in made.modules())


def test_a_step_takes_less_memory_and_no_more_arithmetic() -> None:
    """On tensors without data, as footprints are counted."""
    made = network().to("meta")
    card = DryDevice()
    frame = 16 * FRAME
    peaks = {}
    for way in (stock, ours):
        latents = torch.empty(2, 8, 5, 4 * 8, 4 * 6, device="meta")
        text = torch.empty(2, 7, 32, device="meta")
        with card.work():
            card.reset_peak()
            before = card.used_bytes()
            way(made, latents, text, frame, (0.0, 500.0))
            peaks[way] = (card.peak_bytes() - before, card.flops)
    # Six vectors a token, once as a product and once beside the layer's table.
    vectors = 2 * 5 * frame * 6 * 48 * 4
    assert peaks[stock][0] - peaks[ours][0] > 1.5 * vectors
    assert peaks[ours][1] < peaks[stock][1]
