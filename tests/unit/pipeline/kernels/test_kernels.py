"""What decides rounding: which back ends a card has, what forbids compiling, and when two clips are called equal."""

from __future__ import annotations

import json

import pytest

from pipeline.clips.clip import Adapter
from pipeline.families.layouts import Layout
from pipeline.kernels.buckets import bucket_of, eager_because
from pipeline.kernels.cache import keep_compiled_under
from pipeline.kernels.kernels import (
    AttentionKernel,
    KernelChoice,
    KernelCounts,
    KernelMode,
    Kernels,
    attention_order,
    differences,
    equality,
)
from tests.building import spec

COMPILED = KernelChoice.COMPILED


@pytest.mark.parametrize(
    ("capability", "order"),
    [
        (None, []),
        ((6, 1), ["efficient", "math"]),
        ((7, 5), ["efficient", "math"]),
        ((8, 0), ["flash", "cudnn", "efficient", "math"]),
        ((8, 9), ["flash", "cudnn", "efficient", "math"]),
        ((9, 0), ["cudnn", "flash", "efficient", "math"]),
        ((12, 0), ["cudnn", "flash", "efficient", "math"]),
    ],
)
def test_attention_names_no_back_end_that_the_card_lacks(capability, order):
    assert [str(kernel) for kernel in attention_order(capability)] == order


@pytest.mark.parametrize(
    ("changes", "layout", "given", "reason"),
    [
        ({}, {}, {}, ""),
        ({}, {"split_guidance": True, "evict_encoders": True, "evict_denoiser": True}, {}, ""),
        ({"frames": 32, "window": 16, "window_overlap": 4}, {}, {}, ""),
        ({}, {}, {"choice": KernelChoice.EAGER}, "eager"),
        ({}, {}, {"watched": True}, "emulated"),
        ({}, {"stream_weights": True}, {}, "streamed"),
        ({}, {"chunk_feed_forward": 8}, {}, "chunks"),
        ({"adapter": Adapter(name="lora", sha256="a" * 64, scale=1.0)}, {}, {}, "adapter"),
        ({"step_cache": 3}, {}, {}, "reused"),
        ({}, {}, {"failed": "no compiler"}, "no compiler"),
    ],
)
def test_what_forbids_compiled_blocks(changes, layout, given, reason):
    values = {"choice": COMPILED, "watched": False} | given
    found = eager_because(values.pop("choice"), spec(**changes), Layout(**layout), **values)
    assert reason in found
    assert bool(found) == bool(reason)


def test_a_bucket_is_what_has_equal_shapes():
    def of(layout: Layout | None = None, guides: bool = True, **changes):
        return bucket_of(spec(**changes), layout or Layout(), guides)

    same = of(width=64, height=32, frames=16)
    assert of(width=64, height=32, frames=16, seed=99, prompt="another", steps=3) == same
    assert of(width=64, height=32, frames=48, window=16, window_overlap=4) == same
    assert of(Layout(evict_encoders=True, decode_frames=4), width=64, height=32, frames=16) == same
    others = [
        of(width=32, height=64, frames=16),
        of(width=64, height=32, frames=17),
        of(Layout(split_guidance=True), width=64, height=32, frames=16),
    ]
    assert len({same, *others}) == 4
    # Without guidance there is one row, split or not.
    assert of(guides=False) == of(Layout(split_guidance=True))
    assert "64×32×16, 2 rows" in str(same)


def kernels(**changes) -> Kernels:
    values = {
        "mode": KernelMode.COMPILED,
        "attention": (AttentionKernel.CUDNN, AttentionKernel.MATH),
        "architecture": "sm90",
        "tf32_convolutions": True,
        "tf32_products": False,
        "dtypes": {"unet": "float16", "vae": "float32"},
    }
    return Kernels(**(values | changes))


def made(**changes):
    """Where something was made, as a checkpoint tells it: through JSON."""
    facts = {
        "family": "i2vgen-xl",
        "torch": "2.13.0",
        "sampler_tables": ["aa", "bb"],
        "layout": Layout().model_dump(mode="json"),
    }
    return json.loads(json.dumps({**facts, "kernels": kernels().told(), **changes}))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"kernels": kernels(mode=KernelMode.EAGER).told()}, "kernels.mode: compiled, then eager"),
        ({"kernels": kernels(attention=()).told()}, "kernels.attention: cudnn, math, then torch's own"),
        ({"kernels": kernels(architecture="sm80").told()}, "kernels.architecture: sm90, then sm80"),
        ({"kernels": kernels(tf32_convolutions=False).told()}, "kernels.tf32_convolutions: True, then False"),
        ({"kernels": kernels(dtypes={"unet": "float16"}).told()}, "kernels.dtypes.vae: float32, then not told"),
        ({"layout": Layout(split_guidance=True).model_dump()}, "layout.split_guidance: False, then True"),
        ({"torch": "2.14.0"}, "torch: 2.13.0, then 2.14.0"),
        ({"sampler_tables": ["aa", "cc"]}, "sampler_tables: aa, bb, then aa, cc"),
    ],
)
def test_what_rounds_differently_is_named_and_not_called_equal(change, named):
    assert equality(made(), made()) == {"equality": "bit-equal"}
    assert equality(made(), made(**change)) == {"equality": "equal to rounding", "differs": [named]}


def test_a_checkpoint_that_does_not_tell_its_kernels_may_be_of_others():
    before = made()
    del before["kernels"]
    assert equality(before, made()) == {"equality": "equal to rounding", "differs": ["kernels: not told, then told"]}


def test_what_differed_in_an_earlier_attempt_is_not_forgotten():
    first = made(torch="2.12.0")
    second = made() | {"resumed": equality(first, made())}
    third = equality(second, made())
    assert third["equality"] == "equal to rounding"
    assert third["differs"] == ["torch: 2.12.0, then 2.13.0"]


def test_a_clip_of_mixed_kernels_is_equal_to_none():
    mixed = made(kernels=kernels(mode=KernelMode.MIXED).told())
    assert differences(mixed, mixed) == ["kernels.mode: mixed, then mixed"]


def test_the_reason_for_eager_kernels_rounds_nothing_and_is_told_where_there_is_one():
    plain, asked = kernels(mode=KernelMode.EAGER), kernels(mode=KernelMode.EAGER, eager_because="weights are streamed")
    assert "eager_because" not in plain.told()
    assert asked.told()["eager_because"] == "weights are streamed"
    assert differences(made(kernels=plain.told()), made(kernels=asked.told())) == []


def test_counts_of_one_clip_are_what_was_added():
    before = KernelCounts(compiles=3, compile_seconds=1.5)
    after = before.plus(compiles=2, fallbacks=1)
    assert after.since(before) == KernelCounts(compiles=2, fallbacks=1)


def test_compiled_kernels_lie_in_a_private_folder_of_the_home_unless_the_environment_says_where(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    # Restored at the end, whatever is set meanwhile.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    found = keep_compiled_under(tmp_path / "home")
    assert found == tmp_path / "home" / "kernels"
    assert found.stat().st_mode & 0o077 == 0
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    assert cache_dir() == str(found)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "named"))
    assert keep_compiled_under(tmp_path / "other") == tmp_path / "named"
    assert not (tmp_path / "other").exists()
