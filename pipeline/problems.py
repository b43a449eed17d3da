"""What is wrong with an input, where, and what to do about it.

Every refusal that a person may meet is a `Problem`: the same three parts appear in the
summary of a batch, on the contact sheet, in the API and in the store.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Problem(BaseModel):
    """One fault of one input."""

    model_config = ConfigDict(use_attribute_docstrings=True, frozen=True, extra="forbid")

    field: str
    """The manifest column (or option) at fault, such as `image` or `frames`."""
    message: str
    """What is wrong, with the offending value in it."""
    remedy: str
    """What the person can do next."""

    def __str__(self) -> str:
        return f"{self.field}: {self.message}. {self.remedy}"


class BadInputError(ValueError):
    """An input was refused; `problem` says which, why and what to do."""

    def __init__(self, field: str, message: str, remedy: str) -> None:
        self.problem = Problem(field=field, message=message, remedy=remedy)
        super().__init__(str(self.problem))
