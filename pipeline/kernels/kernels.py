"""What decides how a clip's sums are rounded, so that two renderings can be called equal only where they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict


class KernelChoice(StrEnum):
    """What a farm's configuration asks for."""

    #: Every operation by the library's own kernel, one after the other.
    EAGER = "eager"
    #: Repeated blocks of the denoiser compiled for each size, where nothing forbids it.
    COMPILED = "compiled"
    #: Eager or compiled, by what both were measured to take on such cards (`pipeline.kernels.choosing`).
    AUTO = "auto"


class KernelMode(StrEnum):
    """What a clip was really denoised with."""

    EAGER = "eager"
    COMPILED = "compiled"
    #: Some steps compiled, the others not: compiled kernels were given up within the clip.
    MIXED = "mixed"


class AttentionKernel(StrEnum):
    """A back end of torch's scaled dot product attention."""

    CUDNN = "cudnn"
    FLASH = "flash"
    EFFICIENT = "efficient"
    MATH = "math"


class MemoryFormat(StrEnum):
    """How the weights of convolutions, and with them what they give, lie in memory."""

    CONTIGUOUS = "contiguous"
    CHANNELS_LAST = "channels_last"


class Kernels(BaseModel):
    """What decides the rounding of a clip, beside its layout and the versions of the libraries.

    Named in a clip's provenance and in each checkpoint. Equal kernels give equal bits on equal libraries; other ones
    give the same algebra, rounded elsewhere.
    """

    model_config = ConfigDict(frozen=True)

    mode: KernelMode
    #: Why blocks are not compiled though the farm asks for it; empty where it does not, or they are.
    eager_because: str = ""
    #: Why the mode was chosen where the farm leaves it open (`auto`) and nothing forbids compiled blocks; else empty.
    chosen_because: str = ""
    #: Back ends of attention in the order in which they are tried; empty: torch's own order.
    attention: tuple[AttentionKernel, ...] = ()
    memory_format: MemoryFormat = MemoryFormat.CONTIGUOUS
    #: Queries, keys and values of self-attentions are one product in place of three.
    packed_projections: bool = False
    #: Steps were replayed from a recorded CUDA graph.
    cuda_graphs: bool = False
    #: `sm90` and the like; on a CPU its vector instructions, such as `cpu AVX2`.
    architecture: str
    #: Whether float32 convolutions and products may be computed in TF32, which has 10 bits of mantissa.
    tf32_convolutions: bool
    tf32_products: bool
    #: What each network's weights are in, several types joined by `+`, by component.
    dtypes: Mapping[str, str]

    def told(self) -> dict[str, Any]:
        """The kernels as provenance and checkpoints tell them."""
        return self.model_dump(mode="json", exclude={name for name in _REASONS if not getattr(self, name)})


#: Fields that say why, and round nothing.
_REASONS = ("eager_because", "chosen_because")


@dataclass(frozen=True, kw_only=True)
class KernelCounts:
    """What compiling came to in this process so far."""

    #: Blocks compiled in the first evaluation of a bucket.
    compiles: int = 0
    #: Blocks compiled again after it.
    recompiles: int = 0
    graph_breaks: int = 0
    #: Buckets whose compiled kernels were given up.
    fallbacks: int = 0
    #: Seconds of the evaluations in which something was compiled.
    compile_seconds: float = 0.0

    def since(self, before: KernelCounts) -> KernelCounts:
        """What was added after `before`."""
        return KernelCounts(**{name: value - getattr(before, name) for name, value in vars(self).items()})

    def plus(self, **more: float) -> KernelCounts:
        """With so much more of what is named."""
        return KernelCounts(**{**vars(self), **{name: getattr(self, name) + value for name, value in more.items()}})


def attention_order(capability: tuple[int, int] | None) -> tuple[AttentionKernel, ...]:
    """Back ends for a card of that compute capability, fastest first; empty without a card (torch's own order).

    None is named that the capability lacks: flash attention and cuDNN's need 8.0. From 9.0 on cuDNN's is ahead, which
    uses the warp-group products that torch's flash attention (version 2) does not. The math of plain operations is
    last, so that whatever the others refuse (a head too wide, a mask) is still computed.
    """
    if capability is None:
        return ()
    last = (AttentionKernel.EFFICIENT, AttentionKernel.MATH)
    if capability < (8, 0):
        return last
    if capability < (9, 0):
        return (AttentionKernel.FLASH, AttentionKernel.CUDNN, *last)
    return (AttentionKernel.CUDNN, AttentionKernel.FLASH, *last)


class Equality(StrEnum):
    """How near a resumed clip is to one that was rendered without a break."""

    BITS = "bit-equal"
    ROUNDING = "equal to rounding"


#: What both sides must agree on for equal bits; whatever else is told (an origin, a note) rounds nothing.
_ROUNDS = ("kernels", "layout", "dtype", "sampler_tables", "torch", "diffusers", "transformers")


def differences(made: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What rounds differently between where a checkpoint was `made` and where the clip goes on `now`, in words.

    A side that does not tell (a checkpoint of an earlier version) may be different, and is named.
    """
    return [text for name in _ROUNDS for text in _different(name, made.get(name), now.get(name))]


def _different(name: str, made: Any, now: Any) -> Iterable[str]:
    if isinstance(made, Mapping) and isinstance(now, Mapping):
        # The reason for a mode rounds nothing; the mode does.
        for key in sorted((made.keys() | now.keys()) - set(_REASONS)):
            yield from _different(f"{name}.{key}", made.get(key), now.get(key))
    elif made != now or made == KernelMode.MIXED:
        yield f"{name}: {_text(made)}, then {_text(now)}"


def _text(value: Any) -> str:
    if value is None:
        return "not told"
    if isinstance(value, Mapping):
        return "told"
    return ", ".join(map(str, value)) or "torch's own" if isinstance(value, (list, tuple)) else str(value)


def equality(made: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """What a provenance says of a clip that goes on from a checkpoint: `equality`, and what `differs`.

    `made`: what the checkpoint tells of where it was made, its own resumption (`resumed`) included; `now`: the same of
    this attempt. Bits are equal only where nothing differs in any of the attempts.
    """
    before = (made.get("resumed") or {}).get("differs") or []
    found = list(dict.fromkeys([*before, *differences(made, now)]))
    return {"equality": str(Equality.ROUNDING if found else Equality.BITS), **({"differs": found} if found else {})}
