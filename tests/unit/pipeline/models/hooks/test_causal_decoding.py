"""Wan's decoder without its copies: diffusers' own, to the bit, in less memory, with nothing left on it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, WanRMS_norm

from pipeline.devices.emulated import EmulatedDevice
from pipeline.dryrun.device import DryDevice
from pipeline.models.hooks.causal_decoding import CausalDecoder, _normed, _not_repeated

CHANNELS = 8
#: Members of the architecture: all channels alike, narrower towards the end as Wan2.2's, without shortcuts as Wan2.1's.
FORMS: dict[str, dict[str, Any]] = {
    "alike": {"decoder_base_dim": 8, "dim_mult": [1, 1, 1], "temperal_downsample": [True, True], "is_residual": True},
    "wan2.2": {
        "decoder_base_dim": 8,
        "dim_mult": [1, 2, 4, 4],
        "temperal_downsample": [False, True, True],
        "is_residual": True,
    },
    "wan2.1": {"dim_mult": [1, 2, 4, 4], "temperal_downsample": [False, True, True], "attn_scales": [1.0]},
}
every_form = pytest.mark.parametrize("form", FORMS)


def decoder_of(form: str, dtype: torch.dtype = torch.float32) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        vae: Any = AutoencoderKLWan(base_dim=8, z_dim=CHANNELS, num_res_blocks=1, out_channels=12, **FORMS[form])
        for name, parameter in vae.named_parameters():
            # Constructors leave norms at 1, where a product too few would not show.
            if name.endswith("gamma"):
                parameter.data.add_(0.2 * torch.randn_like(parameter))
    return torch.nn.Module.to(vae.decoder, dtype).eval().requires_grad_(False)


def latents_of(count: int, dtype: torch.dtype = torch.float32, rows: int = 1) -> torch.Tensor:
    """`count` latent frames of 5 × 7: rows that fill no vector of a CPU."""
    return torch.randn(rows, CHANNELS, count, 5, 7, generator=torch.Generator().manual_seed(count)).to(dtype)


def stock(decoder: Any, latents: torch.Tensor) -> list[torch.Tensor]:
    kept: list[Any] = [None] * sum(isinstance(module, WanCausalConv3d) for module in decoder.modules())
    with torch.no_grad():
        return [
            decoder(latents[:, :, n : n + 1], feat_cache=kept, feat_idx=[0], first_chunk=n == 0)
            for n in range(latents.shape[2])
        ]


def ours(decoder: Any, latents: torch.Tensor) -> list[torch.Tensor]:
    decode = CausalDecoder(decoder)
    with torch.no_grad():
        return [decode(latents[:, :, n : n + 1]) for n in range(latents.shape[2])]


def same_bits(found: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    """Whether they are alike byte by byte: zeros have signs."""
    return [f.shape for f in found] == [e.shape for e in expected] and all(
        f.contiguous().numpy(force=True).tobytes() == e.contiguous().numpy(force=True).tobytes()
        if f.dtype is not torch.bfloat16
        else torch.equal(f.contiguous().view(torch.int16), e.contiguous().view(torch.int16))
        for f, e in zip(found, expected, strict=True)
    )


@every_form
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_equal_to_the_stock_decoder_to_the_bit(form: str, dtype: torch.dtype, count: int) -> None:
    """1, 5, 9 and 17 frames."""
    decoder, latents = decoder_of(form, dtype), latents_of(count, dtype)
    before = latents.clone()
    expected = stock(decoder, latents)
    assert [part.shape[2] for part in expected] == [1] + [4] * (count - 1)
    assert same_bits(ours(decoder, latents), expected)
    assert torch.equal(latents, before)
    if count > 2:
        # What was before is seen: a decoder that starts in the middle gives something else.
        assert not same_bits(ours(decoder, latents[:, :, 1:])[1:], expected[2:])


@pytest.mark.parametrize("bias", [False, True])
def test_a_norm_is_the_stock_one_down_to_the_sign_of_zero(bias: bool) -> None:
    norm = WanRMS_norm(4, images=False, bias=bias).requires_grad_(False)
    norm.gamma.copy_(torch.tensor([0.5, 1.1, 0.3, 2.0]).view(4, 1, 1, 1))
    if bias:
        norm.bias.copy_(torch.tensor([0.1, -0.2, 0.0, 3.0]).view(4, 1, 1, 1))
    x = torch.randn(1, 4, 2, 3, 5, generator=torch.Generator().manual_seed(2))
    x[0, :, 0, 0] = -0.0
    before = x.clone()
    assert same_bits([_normed(norm, x)], [norm(x)])
    assert same_bits([x], [before])


@every_form
def test_rows_of_a_batch_are_clips_of_their_own(form: str) -> None:
    decoder, latents = decoder_of(form), latents_of(3, rows=2)
    assert same_bits(ours(decoder, latents), stock(decoder, latents))


def test_two_clips_take_turns_on_one_network() -> None:
    """As tiles do whose frames are decoded in turn; shapes may differ."""
    decoder = decoder_of("wan2.2")
    clips = [latents_of(3), latents_of(3)[..., 1:, 2:].flip(2)]
    decoders = [CausalDecoder(decoder) for _ in clips]
    found: list[list[torch.Tensor]] = [[], []]
    with torch.no_grad():
        for n in range(3):
            for decode, clip, parts in zip(decoders, clips, found, strict=True):
                parts.append(decode(clip[:, :, n : n + 1]))
    for clip, parts in zip(clips, found, strict=True):
        assert same_bits(parts, stock(decoder, clip))


@every_form
def test_submodules_are_called_as_ever(form: str) -> None:
    """So what is hooked to them, such as places in a dry run, stays in force."""

    def called(way: Any) -> set[str]:
        decoder, names = decoder_of(form), set()
        for name, module in decoder.named_modules():
            module.register_forward_hook(lambda *_, name=name: names.add(name))
        way(decoder, latents_of(2))
        return names

    # A shortcut is added by its module's numbers, and the activation in place.
    missing = {name for name in called(stock) - called(ours) if "nonlinearity" not in name}
    assert all(name.endswith("avg_shortcut") for name in missing)
    assert called(ours) <= called(stock)


def test_nothing_is_left_on_the_network_nor_on_the_card_after_a_failure() -> None:
    decoder = decoder_of("wan2.2")
    card = EmulatedDevice(2**30)

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    with card.work(), torch.no_grad():
        latents = latents_of(2)
        decode = CausalDecoder(decoder)
        decode(latents[:, :, :1])
        kept = card.used_bytes()
        assert kept > 0
        handle = decoder.up_blocks[1].register_forward_pre_hook(fail)
        with pytest.raises(torch.OutOfMemoryError):
            decode(latents[:, :, 1:])
        handle.remove()
        assert all("forward" not in module.__dict__ for module in decoder.modules())
        # At once, not when circles of objects are looked for: the card is needed.
        del decode, latents
        assert card.used_bytes() == 0


def test_several_latent_frames_at_once_are_refused() -> None:
    with pytest.raises(ValueError, match="one latent frame at a time, not 2"):
        CausalDecoder(decoder_of("alike"))(latents_of(2))


@pytest.mark.parametrize(
    ("factors", "repeats", "kept"),
    [
        ((2, 2, 2), 8, (1, 1, 1)),
        ((2, 2, 2), 4, (2, 1, 1)),
        ((1, 2, 2), 2, (1, 2, 1)),
        ((1, 2, 2), 1, (1, 2, 2)),
        ((2, 2, 2), 16, None),
        ((1, 4, 4), 2, None),
    ],
)
def test_which_of_a_shortcuts_channels_differ(
    factors: tuple[int, int, int], repeats: int, kept: tuple[int, int, int] | None
) -> None:
    assert _not_repeated(factors, repeats) == kept
    if kept is None:
        return
    # By hand: each channel repeated, then dealt out.
    count = factors[0] * factors[1] * factors[2]
    dealt = torch.arange(3 * count // repeats).repeat_interleave(repeats).view(3, *factors)
    assert torch.equal(torch.arange(3 * count // repeats).view(3, *kept).expand(3, *factors), dealt)


def test_decoding_takes_two_thirds_of_the_memory_and_no_more_arithmetic() -> None:
    """On tensors without data, as footprints are counted, besides the weights."""
    decoder = decoder_of("wan2.2").to("meta")
    card = DryDevice()
    found = {}
    for way in (stock, ours):
        latents = torch.empty(1, CHANNELS, 3, 40, 56, device="meta")
        with card.work():
            card.reset_peak()
            before = card.used_bytes()
            parts = way(decoder, latents)
            results = sum(part.untyped_storage().nbytes() for part in parts)
            found[way] = (card.peak_bytes() - before - results, card.flops)
    assert found[ours][0] < 0.7 * found[stock][0]
    assert found[ours][1] == found[stock][1]
