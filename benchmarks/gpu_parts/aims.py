"""The aims that a card is held to, read from the figures of a run; what was not measured is said to be so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

#: Seconds within which streamed weights are to be hidden: as a share of a step that is longer than their copy.
_STREAMED_SLOWER = 0.10


@dataclass(frozen=True, kw_only=True)
class CardAim:
    """A figure with its bound; the figure is None where it was not measured."""

    name: str
    value: float | None
    bound: float
    at_least: bool = False
    unit: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the figure keeps the bound; None where it was not measured."""
        if self.value is None:
            return None
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def __str__(self) -> str:
        wanted = f"the aim of at {'least' if self.at_least else 'most'} {self.bound:g}{self.unit}"
        if self.value is None:
            return f"{self.name}: not measured ({wanted})"
        return f"{self.name}: {self.value:.3g}{self.unit} {'meets' if self.met else 'MISSES'} {wanted}"


def aims_of(parts: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[CardAim]:
    """All aims, from the figures of a run by part and case."""
    return [*_speed(parts), *_decode(parts), *_memory(parts), *_resume(parts)]


def _speed(parts: Mapping[str, Any]) -> Iterator[CardAim]:
    steps = parts.get("steps", {})
    for family, dtype, share, faster in (("wan2.2-5b", "bf16", 60.0, 1.8), ("i2vgen-xl", "fp16", 50.0, None)):
        best = _fastest(steps, family)
        ceiling = parts.get("ceilings", {}).get("gemm", {}).get(f"{dtype}_tflops")
        yield CardAim(
            name=f"{family}: share of the measured {dtype} matrix product",
            value=100 * best["tflops"] / ceiling if best and ceiling else None,
            bound=share,
            at_least=True,
            unit=" %",
        )
        if faster:
            stock = steps.get(f"{family}, diffusers", {}).get("step_s")
            yield CardAim(
                name=f"{family}: steps against diffusers' own",
                value=stock / best["step_s"] if best and stock else None,
                bound=faster,
                at_least=True,
                unit=" times as fast",
            )
    yield _streaming(parts)


def _fastest(steps: Mapping[str, Any], family: str) -> Mapping[str, Any] | None:
    """The faster of what a renderer does by itself and with a farm's settings: what it cannot do is no figure of it."""
    found = [steps[name] for name in (f"{family}, product", f"{family}, product, set") if name in steps]
    return min(found, key=lambda figures: float(figures["step_s"])) if found else None


def _streaming(parts: Mapping[str, Any]) -> CardAim:
    """The largest slowdown of those steps that are longer than the copy; none of them may be."""
    bus = parts.get("ceilings", {}).get("bus", {})
    rate = bus.get("to_card_pinned_gb_s") or bus.get("to_card_paged_gb_s")
    slower = []
    for name, found in parts.get("steps", {}).items():
        if not (name.endswith(", streamed") and rate):
            continue
        if found["copied_bytes_a_step"] / (rate * 1e9) < found["resident_step_s"]:
            slower.append(100 * found["slower"])
    return CardAim(
        name="streamed weights, where a step is longer than their copy: slower by",
        value=max(slower) if slower else None,
        bound=100 * _STREAMED_SLOWER,
        unit=" %",
    )


def _decode(parts: Mapping[str, Any]) -> Iterator[CardAim]:
    for family in ("i2vgen-xl", "svd-xt", "wan2.2-5b"):
        found = parts.get("decode", {}).get(family, {})
        yield CardAim(
            name=f"{family}: decoding against diffusers' own",
            value=found.get("faster"),
            bound=1.8,
            at_least=True,
            unit=" times as fast",
        )
        yield CardAim(
            name=f"{family}: largest difference of what the decoder gives, in -1…1, from diffusers' own",
            value=found.get("decoder_differs_by"),
            bound=0.0,
        )


def _memory(parts: Mapping[str, Any]) -> Iterator[CardAim]:
    cells = parts.get("grid", {})
    stages = [stage for cell in cells.values() for stage in cell.get("stages", {}).values()]
    yield CardAim(
        name="memory: largest difference of allocated from predicted",
        value=max((100 * abs(stage["error"]) for stage in stages), default=None),
        bound=5.0,
        unit=" %",
    )
    yield CardAim(
        name="memory: stages that took more of the card than promised, margin included",
        value=float(sum(stage["taken"] > stage["promised"] for stage in stages)) if stages else None,
        bound=0.0,
    )
    admitted = [cell for cell in cells.values() if cell.get("admitted")]
    yield CardAim(
        name="memory: admitted clips that failed",
        value=float(sum(not cell["done"] for cell in admitted)) if admitted else None,
        bound=0.0,
    )
    for case, words in (
        ("wan2.2-5b 1280x704x121 in 16 GiB", "wan2.2-5b 1280×704×121 in a card of 16 GiB"),
        ("i2vgen-xl 1024x1024x16 in 8 GiB", "i2vgen-xl 1024p × 16 frames in a card of 8 GiB"),
    ):
        cell = cells.get(case)
        yield CardAim(
            name=f"{words}: rendered", value=None if cell is None else float(cell["done"]), bound=1.0, at_least=True
        )


def _resume(parts: Mapping[str, Any]) -> Iterator[CardAim]:
    for family in ("i2vgen-xl", "svd-xt", "wan2.2-5b"):
        found = parts.get("resume", {}).get(family)
        yield CardAim(
            name=f"{family}: largest difference of a resumed clip, of 255",
            value=float(found["resumed"]["largest_difference_of_255"]) if found else None,
            bound=0.0,
        )
