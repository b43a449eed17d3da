"""What a farm's arguments say of its cards."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from pipeline.kernels.kernels import KernelChoice
from pipeline.memory.footprint import cuda_model
from serve.settings import FarmArgs


def test_a_card_class_may_have_other_kernels_than_the_farm():
    table = {"c8": {}, "c24": {"kernels": "eager"}, "c80": {"kernels": "compiled"}}
    plain = FarmArgs.model_validate({"card_classes": table})
    assert [plain.kernels_of(name) for name in table] == [KernelChoice.EAGER, KernelChoice.EAGER, KernelChoice.COMPILED]
    compiled = FarmArgs.model_validate({"card_classes": table, "kernels": "compiled"})
    # Renderers get the arguments as JSON.
    again = FarmArgs.model_validate(compiled.without_store())
    assert [again.kernels_of(name) for name in table] == [
        KernelChoice.COMPILED,
        KernelChoice.EAGER,
        KernelChoice.COMPILED,
    ]


def test_kernels_that_there_are_not_are_refused():
    with pytest.raises(ValidationError, match="'eager', 'compiled' or 'auto'"):
        FarmArgs.model_validate({"card_classes": {"c8": {"kernels": "fast"}}})


def test_memory_for_recorded_graphs_is_promised_to_no_clip():
    plain = FarmArgs.model_validate({"card_classes": {"c24": {}, "c8": {"memory_gib": 8}}})
    recorded = plain.model_copy(update={"cuda_graphs": True})
    for name in ("c24", "c8"):
        assert plain.usable_bytes(name) - recorded.usable_bytes(name) == cuda_model().graph_bytes > 0
    assert FarmArgs.model_validate(recorded.without_store()).cuda_graphs
