"""What kind of media a clip is, by the IPTC's list that C2PA, XMP and Google Merchant share."""

from __future__ import annotations

import re
from enum import StrEnum

from pipeline.families import FAMILIES

_VOCABULARY = "http://cv.iptc.org/newscodes/digitalsourcetype/"


class DigitalSourceType(StrEnum):
    """Terms of https://cv.iptc.org/newscodes/digitalsourcetype/ that a clip can be."""

    #: Made by a trained model.
    TRAINED = "trainedAlgorithmicMedia"
    #: Made by a trained model and something else, such as pixels of the still put back, or a logo over it.
    COMPOSITE = "compositeWithTrainedAlgorithmicMedia"
    #: A picture that an algorithm without a trained model moves, crops or grades.
    ENHANCED = "algorithmicallyEnhanced"

    @property
    def uri(self) -> str:
        """How XMP and C2PA name the term."""
        return _VOCABULARY + self.value

    @property
    def words(self) -> str:
        """The term for people."""
        return {
            DigitalSourceType.TRAINED: "made by a trained model",
            DigitalSourceType.COMPOSITE: "made by a trained model together with other media",
            DigitalSourceType.ENHANCED: "a picture moved or changed by an algorithm, without a trained model",
        }[self]


#: Terms of a still by which a model made it, or a part of it.
_BY_A_MODEL = re.compile(
    re.escape(_VOCABULARY).encode()
    + rb"(trainedAlgorithmicMedia|compositeWithTrainedAlgorithmicMedia|compositeSynthetic)"
)


def depends_on_still(family: str) -> bool:
    """Whether `source_type_of` looks at the still of clips of this family."""
    known = FAMILIES.get(family)
    return known is not None and known.engine == "camera"


def source_type_of(family: str, *, composite: bool = False, still: bytes = b"") -> DigitalSourceType:
    """What a clip of this family is; one that is not known counts as a trained model.

    `composite`: whether other media was laid over its frames. `still`: the file that it was made from: where that says
    that a model made it, in XMP or in a manifest of its own, camera moves do not make it less so.
    """
    if not depends_on_still(family):
        return DigitalSourceType.COMPOSITE if composite else DigitalSourceType.TRAINED
    # Both XMP and the CBOR of a manifest have the term's address as it is.
    return DigitalSourceType.COMPOSITE if _BY_A_MODEL.search(still) else DigitalSourceType.ENHANCED
