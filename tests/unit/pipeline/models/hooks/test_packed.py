"""Packed projections: the same algebra in fewer products, weights held once, nothing left when they are taken off."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.models.hooks.compiling import CompiledBlocks, repeated_blocks
from pipeline.models.hooks.packed import packed_projections
from tests.unit.pipeline.models.hooks.test_compiling import evaluate, hoisting, i2vgen_xl, svd, wan

NETWORKS = [i2vgen_xl, svd, wan]
PRODUCTS = {torch.ops.aten.addmm.default, torch.ops.aten.mm.default, torch.ops.aten.bmm.default}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    torch._dynamo.reset()


class Products(TorchDispatchMode):
    """Counts the products of matrices inside."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in PRODUCTS
        return func(*args, **(kwargs or {}))


def stored_bytes(network: nn.Module) -> int:
    """Bytes of the storages that the parameters lie in, each once."""
    return sum({p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in network.parameters()}.values())


def in_float64(network: Any, **changes: Any) -> tuple[torch.Tensor, int]:
    """One evaluation, and its products."""
    with Products() as products, hoisting(network, ahead=False), torch.no_grad():
        return evaluate(network, 1, 500.0, **changes), products.count


@pytest.mark.parametrize("make", NETWORKS)
def test_one_product_in_place_of_three_gives_the_same(make) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        network = make()
        before_bytes = stored_bytes(network)
        expected, plain = in_float64(network)
        with packed_projections(repeated_blocks(network)) as packed:
            found, products = in_float64(network)
            assert stored_bytes(network) == before_bytes, "no weight is held twice"
        assert packed > 0
        assert plain - products == 2 * packed
        assert (found - expected).abs().max() <= 1e-10 * max(1.0, float(expected.abs().max()))
        assert not hasattr(next(m for m in network.modules() if hasattr(m, "to_q")), "to_qkv")
        again, products = in_float64(network)
        assert products == plain
        assert torch.equal(again, expected), "taken off, it is the network that it was"
        assert stored_bytes(network) == before_bytes
    finally:
        torch.set_default_dtype(torch.float32)


def test_what_is_packed_is_not_copied_again_until_it_was_moved() -> None:
    network = wan()
    attention = network.blocks[0].attn1
    with packed_projections(repeated_blocks(network)):
        first = attention.to_qkv.weight.data_ptr()
    with packed_projections(repeated_blocks(network)):
        assert attention.to_qkv.weight.data_ptr() == first
        assert torch.equal(attention.to_qkv.weight, torch.cat([getattr(attention, n).weight for n in QKV]))
    # As eviction does, and as putting it back does.
    kept = {name: attention.get_submodule(name).weight.data.clone() for name in QKV}
    for name, host in kept.items():
        attention.get_submodule(name).weight.data = host
    with packed_projections(repeated_blocks(network)):
        assert attention.to_qkv.weight.data_ptr() != kept["to_q"].data_ptr()
        assert torch.equal(attention.to_qkv.weight, torch.cat([kept[name] for name in QKV]))
        # Whoever changes a weight in place changes what is computed with.
        with torch.no_grad():
            attention.to_k.weight.zero_()
        assert int((attention.to_qkv.weight == 0).all(dim=1).sum()) == attention.to_k.out_features


QKV = ("to_q", "to_k", "to_v")


class _Adapted(nn.Linear):
    """A layer that gives something else than its weights say."""


def test_layers_that_are_no_plain_ones_are_left_alone() -> None:
    network = wan()
    adapted = network.blocks[0].attn1
    adapted.to_k = _Adapted(24, 24)
    with packed_projections(repeated_blocks(network)) as packed:
        assert packed == len(network.blocks) - 1
        assert not hasattr(adapted, "to_qkv")


@pytest.mark.parametrize("make", NETWORKS)
@torch.no_grad()
def test_blocks_that_are_alike_still_share_what_is_compiled(make) -> None:
    compiles = []
    for packs in (False, True):
        network = make()
        with packed_projections(repeated_blocks(network) if packs else []):
            blocks = CompiledBlocks(network, backend="eager")
            with blocks.on(), hoisting(network, ahead=True):
                for clip in (1, 2):
                    with blocks.counted():
                        evaluate(network, clip, 500.0)
        # A second clip packs anew, and compiles nothing.
        with (
            packed_projections(repeated_blocks(network) if packs else []),
            blocks.on(),
            hoisting(network, ahead=True),
            blocks.counted(),
        ):
            evaluate(network, 1, 20.0)
        compiles.append((blocks.compiles, blocks.recompiles))
    assert compiles[0] == compiles[1]
    assert compiles[0][1] == 0
