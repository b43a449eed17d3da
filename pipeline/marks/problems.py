"""What can keep a file from being marked."""

from __future__ import annotations

from pipeline.problems import Problem


class MarkError(RuntimeError):
    """A file could not be marked; `problem` says why and what to do."""

    def __init__(self, message: str, remedy: str) -> None:
        self.problem = Problem(field="marks", message=message, remedy=remedy)
        super().__init__(str(self.problem))


class NotMarkableError(MarkError):
    """The file is of a kind that carries no mark, or is damaged."""


class SigningError(MarkError):
    """The mark could not be signed: the certificate, its key or the timestamp authority is at fault."""
