"""What the encoders of each family read, and which motion its clips answer to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from pipeline.families import Family
from pipeline.lint.vocabulary import MotionKind

_ALL = frozenset(MotionKind)


@dataclass(frozen=True, kw_only=True)
class PromptReader:
    """How the models of one engine read prompts."""

    #: Languages that its text encoder was trained on, as ISO 639-1 codes; empty where it reads about every language.
    languages: frozenset[str]
    #: What it moves when a prompt says so.
    answers_to: frozenset[MotionKind]
    #: Camera moves made together that a clip of usual length still shows.
    most_moves: int
    #: Actions, one after the other, that fit into a clip of usual length.
    most_actions: int
    #: A move that every still can take, as this engine is best asked for it.
    safe_move: str


#: By `Family.engine`; engines that read no prompts are left out. The limits of moves and actions are rules of thumb
#: from the length of a clip (2 s of I2VGen-XL, 3 to 5 s of Wan): none was measured on pictures.
READERS: Mapping[str, PromptReader] = MappingProxyType(
    {
        # Reads camera moves and nothing else: `pipeline.clips.prompts`.
        "camera": PromptReader(
            languages=frozenset({"en"}),
            answers_to=frozenset({MotionKind.CAMERA}),
            most_moves=3,
            most_actions=99,
            safe_move="camera slowly zooming in",
        ),
        # OpenCLIP ViT-H, trained on the English part of LAION-5B.
        "i2vgen-xl": PromptReader(
            languages=frozenset({"en"}),
            answers_to=_ALL,
            most_moves=1,
            most_actions=3,
            safe_move="camera slowly zooming in",
        ),
        # UMT5-XXL, trained on 107 languages.
        "wan": PromptReader(
            languages=frozenset(),
            answers_to=_ALL,
            most_moves=2,
            most_actions=5,
            safe_move="the camera slowly pushes in",
        ),
    }
)


def reader_of(family: Family) -> PromptReader | None:
    """How `family` reads prompts; None where it reads none, or where its pictures mean nothing (random weights)."""
    if not family.uses_prompt or (family.repo is None and family.engine != "camera"):
        return None
    return READERS.get(family.engine)
