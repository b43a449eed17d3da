"""Names of the rounds that a clip goes through before it is made for good."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import BeforeValidator

#: Rounds of one clip, at most.
MAX_ROUNDS = 4


class Round(StrEnum):
    """What a clip is made for: to be looked at, or for good."""

    #: Tier draft in a class of 512p at most: which rows are worth a clip?
    DRAFT = "draft"
    #: A draft as well, by the name it has where another round comes between it and the end: is it the right motion?
    QUICK = "quick"
    #: Tier standard in a class of 512p at most: prompt and guidance are tuned.
    TUNE = "tune"
    #: The clip as its row asks for it.
    FINAL = "final"


def rounds_of(value: object) -> tuple[Round, ...]:
    """The rounds that `value` names in their order: a list of names, or a text with commas between them.

    Nothing, or `final` alone, are clips without a review: (). Raises `ValueError` for anything else than rounds, each
    once, of which `final` is the last.
    """
    names = value.replace(",", " ").replace(";", " ").split() if isinstance(value, str) else value
    if names is None:
        return ()
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"name some of {', '.join(Round)}, with commas between them")
    wanted = [name.lower() for name in names]
    if unknown := next((name for name in wanted if name not in {*Round}), None):
        raise ValueError(f"{unknown[:40]!r} is no round: choose from {', '.join(Round)}")
    if len(set(wanted)) < len(wanted):
        raise ValueError("a round is named twice: name each once")
    if wanted and wanted[-1] != Round.FINAL:
        raise ValueError(f"the last round is {wanted[-1]}: end with final, such as draft,final or quick,tune,final")
    return tuple(map(Round, wanted)) if len(wanted) > 1 else ()


#: A field of a model for what `rounds_of` reads.
Rounds = Annotated[tuple[Round, ...], BeforeValidator(rounds_of)]
