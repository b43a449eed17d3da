"""Blocks compiled by the real compiler for the CPU: one graph each, once for a bucket, close to the eager network."""

from __future__ import annotations

import itertools
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from diffusers import I2VGenXLUNet, UNetSpatioTemporalConditionModel, WanTransformer3DModel
from diffusers.models.resnet import ResnetBlock2D, TemporalConvLayer
from torch import nn
from torch._inductor import config as inductor_config
from torch._inductor.utils import run_and_get_code

from pipeline.models.hooks.compiling import (
    MOST_RECOMPILES,
    CompiledBlocks,
    CompileError,
    arrange_convolutions,
    graph_breaks,
    repeated_blocks,
)
from pipeline.models.hooks.one_token import one_token_attention
from pipeline.models.hooks.two_timesteps import two_timesteps

FRAMES, SIDE = 3, 8


@pytest.fixture(autouse=True)
def _one_thread(tmp_path, monkeypatch) -> Iterator[None]:
    """Nothing is left running or lying about: no pool of compilers, and files in the test's own folder."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with inductor_config.patch(compile_threads=1):
        yield
    torch.set_num_threads(before)
    torch._dynamo.reset()


def drawn(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def built(make: Callable[[], Any]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().eval().requires_grad_(False)


def i2vgen_xl() -> Any:
    return built(
        lambda: I2VGenXLUNet(
            sample_size=SIDE,
            # One level: each distinct layer takes the compiler seconds.
            block_out_channels=(8,),
            down_block_types=("CrossAttnDownBlock3D",),
            up_block_types=("CrossAttnUpBlock3D",),
            layers_per_block=1,
            norm_num_groups=4,
            cross_attention_dim=16,
            attention_head_dim=4,
        )
    )


def svd() -> Any:
    return built(
        lambda: UNetSpatioTemporalConditionModel(
            sample_size=SIDE,
            in_channels=4,
            out_channels=4,
            block_out_channels=(32,),
            down_block_types=("CrossAttnDownBlockSpatioTemporal",),
            up_block_types=("CrossAttnUpBlockSpatioTemporal",),
            num_attention_heads=(2,),
            cross_attention_dim=16,
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=24,
            layers_per_block=1,
            num_frames=FRAMES,
        )
    )


def wan() -> Any:
    return built(
        lambda: WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=16,
            freq_dim=32,
            ffn_dim=48,
            num_layers=3,
        )
    )


def evaluate(network: Any, clip: int, time: float, rows: int = 2, side: int = SIDE) -> torch.Tensor:
    """One evaluation of the `clip`-th clip at `time`."""
    context = drawn(rows, 1 if isinstance(network, UNetSpatioTemporalConditionModel) else 5, 16, seed=clip)
    if isinstance(network, I2VGenXLUNet):
        latents = drawn(rows, 4, FRAMES, side, side, seed=clip + 10)
        given: dict[str, Any] = {
            "fps": torch.full((rows,), 8),
            "image_latents": drawn(rows, 4, FRAMES, side, side, seed=clip + 20),
            "image_embeddings": drawn(rows, 1, 16, seed=clip + 30),
        }
        found = network(latents, torch.tensor(time), encoder_hidden_states=context, **given, return_dict=False)[0]
    elif isinstance(network, UNetSpatioTemporalConditionModel):
        latents = drawn(rows, FRAMES, 4, side, side, seed=clip + 10)
        numbers = drawn(rows, 3)
        found = network(
            latents, torch.tensor(time), encoder_hidden_states=context, added_time_ids=numbers, return_dict=False
        )[0]
    else:
        latents = drawn(rows, 4, FRAMES, side, side, seed=clip + 10)
        times = torch.tensor([[0.0, time]]).expand(rows, 2)
        with two_timesteps(network, (side // 2) ** 2):
            found = network(hidden_states=latents, timestep=times, encoder_hidden_states=context, return_dict=False)[0]
    return found


def hoisting(network: Any, ahead: bool) -> Any:
    return (
        one_token_attention(network, ahead=lambda: ahead)
        if isinstance(network, UNetSpatioTemporalConditionModel)
        else nullcontext()
    )


#: A minute of compiling each: `make slow` runs them.
slow = pytest.mark.skipif("CLIPMILL_SLOW_TESTS" not in os.environ, reason="takes a minute: `make slow` runs it")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for a CPU by g++: install it")


@needs_compiler
@pytest.mark.timeout(900)
@pytest.mark.parametrize("make", [pytest.param(i2vgen_xl, marks=slow), pytest.param(svd, marks=slow), wan])
@torch.no_grad()
def test_each_block_is_one_graph_compiled_once_for_a_bucket_and_close_to_the_eager_network(make) -> None:
    network = make()
    evaluations = [(clip, time) for clip in (1, 2) for time in (900.0, 500.0, 20.0)]
    expected = [evaluate(network, *each) for each in evaluations]
    arrange_convolutions(network, channels_last=True)
    blocks = CompiledBlocks(network)
    breaks = graph_breaks()
    found = []
    for clip in (1, 2):
        # As two clips: laid on, taken off, laid on again.
        with blocks.on(), hoisting(network, ahead=True):
            for each in [each for each in evaluations if each[0] == clip]:
                with blocks.counted():
                    found.append(evaluate(network, *each))
    kinds = {(type(block), tuple(p.shape for p in block.parameters())) for block in repeated_blocks(network)}
    assert len(kinds) <= blocks.compiles < len(repeated_blocks(network)), "blocks that are alike share a graph"
    assert blocks.recompiles == 0
    assert graph_breaks() == breaks
    assert not any(torch.equal(a, b) for a, b in itertools.pairwise(expected))
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= 1e-4 * max(1.0, float(b.abs().max()))
    # Taken off and laid out as it came, it is the network that it was.
    arrange_convolutions(network, channels_last=False)
    assert all(module._compiled_call_impl is None for module in network.modules())
    with hoisting(network, ahead=False):
        assert torch.equal(evaluate(network, *evaluations[0]), expected[0])


@slow
@needs_compiler
@pytest.mark.timeout(900)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("block", "inputs"),
    [
        # Without a timestep, whose SiLU follows no norm.
        (lambda: ResnetBlock2D(in_channels=32, out_channels=64, temb_channels=None, groups=4), ((2, 32, 8, 8), None)),
        (lambda: TemporalConvLayer(32, 32), ((4, 32, 8, 8),)),
    ],
    ids=["residual", "temporal"],
)
@torch.no_grad()
def test_each_silu_is_in_one_kernel_with_the_norm_before_it(block, inputs, channels_last) -> None:
    network = built(lambda: nn.Sequential(block()))
    if channels_last:
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
    compiled = torch.compile(network[0], dynamic=False, fullgraph=True)
    _, (code,) = run_and_get_code(compiled, *(drawn(*shape) if shape else None for shape in inputs))
    kernels = re.findall(r"\bcpp_fused_\w+(?=\()", code.split("def call")[1])
    activated = [name for name in kernels if "silu" in name]
    assert activated, kernels
    assert all("group_norm" in name for name in activated), kernels


@torch.no_grad()
def test_a_bucket_that_is_compiled_at_every_step_is_given_up() -> None:
    network = wan()
    blocks = CompiledBlocks(network, backend="eager")
    with blocks.on():
        with blocks.counted():
            evaluate(network, 1, 900.0)
        # Another size each time is what a bucket must not have.
        for rows in range(3, 3 + MOST_RECOMPILES):
            with blocks.counted():
                evaluate(network, 1, 900.0, rows=rows)
        assert blocks.recompiles == MOST_RECOMPILES
        with pytest.raises(CompileError), blocks.counted():
            evaluate(network, 1, 900.0, rows=3 + MOST_RECOMPILES)


@torch.no_grad()
def test_buckets_do_not_share_their_limits() -> None:
    network = wan()
    buckets = [CompiledBlocks(network, backend="eager") for _ in range(9)]
    for rows, blocks in enumerate(buckets, start=1):
        with blocks.on(), blocks.counted():
            evaluate(network, 1, 900.0, rows=rows)
    assert [(blocks.compiles, blocks.recompiles) for blocks in buckets] == [(1, 0)] * 9


@torch.no_grad()
def test_a_block_that_breaks_the_graph_is_named() -> None:
    network = wan()

    class Broken(nn.Module):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            print("what no graph can hold")
            torch._dynamo.graph_break()
            return hidden

    network.blocks[1].ffn = Broken()
    blocks = CompiledBlocks(network, backend="eager")
    with blocks.on(), pytest.raises(CompileError, match="WanTransformerBlock"):
        evaluate(network, 1, 900.0)
    assert all(module._compiled_call_impl is None for module in network.modules())


@torch.no_grad()
def test_memory_that_runs_out_while_compiling_is_told_as_such() -> None:
    def full(_graph: Any, _inputs: Any) -> Any:
        raise torch.OutOfMemoryError("the card is full")

    network = wan()
    blocks = CompiledBlocks(network, backend=full)
    with blocks.on(), pytest.raises(torch.OutOfMemoryError, match="the card is full"):
        evaluate(network, 1, 900.0)


def test_a_network_that_declares_no_blocks_is_refused_and_left_alone() -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 3))
    with pytest.raises(CompileError, match="Sequential"):
        CompiledBlocks(network)
    assert arrange_convolutions(network, channels_last=True) == 0


def test_convolutions_lie_channels_last_and_as_they_came_again() -> None:
    network = i2vgen_xl()
    kept = {name: parameter.data for name, parameter in network.named_parameters()}
    count = arrange_convolutions(network, channels_last=True)
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    within = [module for block in repeated_blocks(network) for module in block.modules()]
    convolutions = [module for module in within if isinstance(module, (nn.Conv2d, nn.Conv3d))]
    assert count == len(convolutions) > 10
    assert {module.weight.ndim for module in convolutions} == {4, 5}
    assert all(m.weight.is_contiguous(memory_format=formats[m.weight.ndim]) for m in convolutions)
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, kept[name])
        assert kept[name].is_contiguous(), "what is kept elsewhere stays as it is"
    arrange_convolutions(network, channels_last=False)
    assert all(parameter.is_contiguous() for parameter in network.parameters())
