"""What was measured of a clip, as it is kept and shown: a score from 0 to 1, its parts, and the worst frame."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator


class FidelityPart(StrEnum):
    """One thing that a clip is measured by."""

    #: The first frame against the still as it was prepared.
    FIRST_FRAME = "first_frame"
    #: The product is found again in every frame.
    TRACK = "track"
    #: Colours of the product.
    COLOUR = "colour"
    #: Outline of the product.
    OUTLINE = "outline"
    #: Label, logo and all that has structure on the product.
    STRUCTURE = "structure"
    #: Words on the product, where they were read.
    TEXT = "text"
    #: Brightness from frame to frame.
    FLICKER = "flicker"
    #: Frames that stand still.
    FROZEN = "frozen"
    BLACK = "black"
    CUT = "cut"
    #: Something beside the product that the still does not show.
    SECOND_PRODUCT = "second_product"
    #: The camera's move against the prompt.
    MOTION = "motion"


#: From here on nothing is worth naming a part for.
_FINE = 0.995


class FidelityScore(BaseModel):
    """A clip's score with its parts. A part that nobody can tell is not among them."""

    model_config = ConfigDict(use_attribute_docstrings=True, frozen=True)

    score: float = Field(ge=0, le=1)
    """0 to 1, that of the worst part; below 0.5 something was found."""
    parts: dict[str, float] = Field(default_factory=dict)
    """0 to 1 by what was measured, such as `colour`."""
    worst_frame: int | None = None
    """The frame, from 0, at which the worst part is worst; null where it is about the whole clip."""

    @field_validator("parts", mode="before")
    @classmethod
    def _known(cls, value: object) -> object:
        # What a later version tells of a part in another form is passed over.
        if not isinstance(value, dict):
            return value
        return {name: one for name, one in value.items() if isinstance(one, (int, float))}

    @property
    def words(self) -> str:
        """The score for people: `0.42, by its colour at frame 17`."""
        if self.score >= _FINE or not self.worst:
            return f"{self.score:.2f}"
        where = "" if self.worst_frame is None else f" at frame {self.worst_frame}"
        return f"{self.score:.2f}, by its {self.worst.replace('_', ' ')}{where}"

    @property
    def worst(self) -> str:
        """Name of the worst part; empty where there is none."""
        return min(self.parts, key=self.parts.__getitem__, default="")


def score_from(value: object) -> FidelityScore | None:
    """A score of JSON as it was stored or sent; None for none, and for what another version wrote in another form."""
    if not isinstance(value, dict):
        return None
    try:
        return FidelityScore.model_validate(value)
    except ValidationError:
        return None
