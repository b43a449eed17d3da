"""What is found out about a file's mark: its state, its signer, and whether its pixels are those that were signed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from pipeline.marks.facts import ClipFacts


class MarkState(StrEnum):
    """What became of a file's mark."""

    #: Signed, and not a byte has changed since.
    VALID = "valid"
    #: Signed and whole, by another program than clipmill.
    FOREIGN = "foreign"
    #: Signed, and some of its bytes have changed since.
    ALTERED = "altered"
    #: The clip, in another encoding than was signed or recorded.
    RE_ENCODED = "re_encoded"
    #: Signed for another file.
    SWAPPED = "swapped"
    #: The mark itself has been changed, or cannot be read.
    DAMAGED = "damaged"
    #: No signed mark, and the pixels are those of a clip that is on record.
    STRIPPED = "stripped"
    #: Plain words only, which anybody can write.
    PLAIN = "plain"
    #: No mark, and no record that fits.
    UNMARKED = "unmarked"


class PixelState(StrEnum):
    """Whether a file's pixels are those that its mark, or a record, tells of."""

    SAME = "same"
    #: Some pictures are the same, and some are not.
    CHANGED = "changed"
    #: Other pixels that look the same from afar.
    ALIKE = "alike"
    OTHER = "other"
    UNKNOWN = "unknown"


class Trust(StrEnum):
    """Who vouches for a signer."""

    #: A certificate of this home, now or before.
    OWN = "own"
    #: A certificate of the list that was given.
    LISTED = "listed"
    #: Nobody here does: anybody can call themselves so.
    UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class SignerSeen:
    """Who a signature says that it is from."""

    organization: str
    common_name: str
    trust: Trust
    is_test: bool
    #: When it was signed as a timestamp authority says; empty where none was asked.
    stamped_at: str = ""


@dataclass(frozen=True, kw_only=True)
class StillSeen:
    """The still that a mark names as what its clip was made from."""

    sha256: str
    #: Whether the still's own manifest is kept in the file's, and whether that one is whole; None: there is none.
    manifest_whole: bool | None = None


@dataclass(frozen=True, kw_only=True)
class KnownClip:
    """A clip on record, such as in `<id>.json` beside its files."""

    name: str
    facts: ClipFacts
    #: Whether it was handed out without marks, as somebody wanted.
    marks_off: bool = False


@dataclass(frozen=True, kw_only=True)
class MarkVerdict:
    """What was found out about one file."""

    path: Path
    state: MarkState
    #: The state in a sentence, with numbers.
    says: str
    pixels: PixelState = PixelState.UNKNOWN
    signer: SignerSeen | None = None
    #: What the mark says, or where there is none the record that fits.
    facts: ClipFacts = field(default_factory=ClipFacts)
    #: An address of the IPTC's list; empty where nothing says so.
    source_type: str = ""
    #: When it was marked, by the signer's own clock; when it was rendered, the facts say.
    marked_at: str = ""
    profile: str = ""
    still: StillSeen | None = None
    #: What the pixels were compared with: the mark, or the name of a record.
    compared_with: str = ""
    #: C2PA's names of all that is wrong.
    codes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        found = asdict(self) | {"path": str(self.path), "codes": list(self.codes)}
        found["facts"] = {name: value for name, value in found["facts"].items() if value and name != "likeness"}
        return found
