"""What operations on tensors without data return, remembered: the same figures, and nothing that shares memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline.dryrun.run import DryModel
from pipeline.dryrun.shapes import KnownResults
from pipeline.families import FAMILIES, Family

SMALL = [family for family in FAMILIES.values() if family.repo is None and family.components]
_aten = torch.ops.aten


@pytest.mark.parametrize("family", SMALL, ids=lambda family: family.name)
def test_a_dry_run_finds_what_it_finds_when_each_operation_is_worked_out(family: Family) -> None:
    frames = next(n for n in range(8, 32) if family.frame_rule.allows(n))
    found = []
    for plain in (False, True):
        model = DryModel(family, torch.float32)
        if plain:
            model.device.results.call = lambda func, args, kwargs: func(*args, **kwargs)  # type: ignore[method-assign]
        for layout in (family.layouts[0], family.layouts[-1]):
            run = model.run(128, 64, frames, layout)
            found.append((plain, run.stages))
    half = len(found) // 2
    assert [stages for _, stages in found[:half]] == [stages for _, stages in found[half:]]


class Counted:
    """An operation, and how often it was called."""

    def __init__(self, func: Any) -> None:
        self._func, self.calls = func, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._func, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self._func(*args, **kwargs)


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


@pytest.mark.parametrize(
    ("func", "arguments", "calls"),
    [
        (_aten.mul.Tensor, [(meta(2, 3), meta(3)), (meta(2, 3), meta(3))], 1),
        (_aten.mul.Tensor, [(meta(2, 3), meta(3)), (meta(2, 3), meta(1))], 2),
        # Equal as numbers, and not as types: an integer times a float is a float.
        (_aten.mul.Tensor, [(meta(2, dtype=torch.int64), 2), (meta(2, dtype=torch.int64), 2.0)], 2),
        (_aten.mul.Tensor, [(meta(2, 3), meta(2, 3)), (meta(3, 2).T, meta(3, 2).T)], 2),
        (_aten.mul.Tensor, [(meta(2), meta(2)), (meta(2, dtype=torch.float16), meta(2, dtype=torch.float16))], 2),
        (_aten.split.Tensor, [(meta(4, 2), 2), (meta(4, 2), 2)], 2),
        (_aten._unsafe_view.default, [(meta(4, 2), [8]), (meta(4, 2), [8])], 2),
        (_aten.add_.Tensor, [(meta(2), meta(2)), (meta(2), meta(2))], 2),
    ],
)
def test_only_new_tensors_of_equal_arguments_are_made_without_asking(func: Any, arguments: Any, calls: int) -> None:
    known, counted = KnownResults(), Counted(func)
    for args in arguments:
        expected, found = func(*args), known.call(counted, args, {})
        expected, found = (each if isinstance(each, (list, tuple)) else [each] for each in (expected, found))
        for one, other in zip(found, expected, strict=True):
            assert (one.shape, one.stride(), one.dtype) == (other.shape, other.stride(), other.dtype)
    assert counted.calls == calls
