"""Numbers of JSON, which true and false are not, though Python takes them for 1 and 0."""

from __future__ import annotations

from functools import cache
from typing import Any, get_args

from pydantic import BaseModel, model_validator


class JsonNumbers(BaseModel):
    """A model whose numbers are never read of true and false."""

    @model_validator(mode="before")
    @classmethod
    def _no_truth(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        wrong = {name: str(values[name]) for name in _numbers(cls) if isinstance(values.get(name), bool)}
        # As texts, of which pydantic itself then says that they are no numbers, and names the field.
        return values | wrong if wrong else values


@cache
def _numbers(model: type[BaseModel]) -> tuple[str, ...]:
    """Fields that are numbers, or may be, and no truth values."""
    kinds = {name: {field.annotation, *get_args(field.annotation)} for name, field in model.model_fields.items()}
    return tuple(name for name, found in kinds.items() if found & {int, float} and bool not in found)
