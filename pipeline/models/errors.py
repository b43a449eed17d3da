"""Faults of a render that are neither the input's nor the card's size. No torch here."""

from __future__ import annotations


class NotFiniteError(RuntimeError):
    """A network returned NaN or infinity: half precision overflowed, the weights are damaged, or the card is faulty."""

    def __init__(self, stage: str, first_frame: int, dtype: str) -> None:
        self.stage, self.first_frame, self.dtype = stage, first_frame, dtype
        super().__init__(
            f"{stage} gave values that are not finite from frame {first_frame} on, computing in {dtype}. "
            "Try the clip on another card; if it fails there too, lower the guidance or check the weights."
        )

    def __reduce__(self) -> tuple[type[NotFiniteError], tuple[str, int, str]]:
        return type(self), (self.stage, self.first_frame, self.dtype)


class BlackOutputError(RuntimeError):
    """Every pixel of the clip is black: half precision overflowed where the library hides it, or weights are wrong."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        super().__init__(
            f"decode gave black frames only, computing in {dtype}. "
            "Try the clip on another card; if it is black there too, lower the guidance or check the weights."
        )

    def __reduce__(self) -> tuple[type[BlackOutputError], tuple[str]]:
        return type(self), (self.dtype,)
