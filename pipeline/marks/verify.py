"""Reading a file's mark back, and telling apart what can have happened to it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pipeline.marks.carriers import Carrier, carrier_of, open_carrier
from pipeline.marks.coded import PART_DIGITS, CodedPictures, coded_pictures
from pipeline.marks.facts import ClipFacts, facts_of
from pipeline.marks.identity import TEST_ORGANIZATION, c2pa_library
from pipeline.marks.likeness import ALIKE_WITHIN, distance, likeness_of_file
from pipeline.marks.mark import is_signed
from pipeline.marks.problems import NotMarkableError
from pipeline.marks.signing import ASSERTION, OFFLINE
from pipeline.marks.verdict import KnownClip, MarkState, MarkVerdict, PixelState, SignerSeen, StillSeen, Trust
from pipeline.marks.xmp import SIGNED, packet_in, properties_in

#: C2PA's names of a file that is not the one that was signed (specification 2.2, 15.2).
_UNBOUND = frozenset({"assertion.bmffHash.mismatch", "assertion.dataHash.mismatch", "assertion.boxesHash.mismatch"})
#: Names that say something of the signer alone, and nothing of the file.
_ABOUT_SIGNER = frozenset({"signingCredential.untrusted", "signingCredential.expired"})
_TRUSTED = "signingCredential.trusted"


@dataclass(frozen=True, kw_only=True)
class TrustLists:
    """Certificates that vouch for signers, in PEM."""

    #: Certificates of this home, now and before.
    own: bytes = b""
    #: Certificates that a person named.
    listed: bytes = b""


def verify(path: Path, trust: TrustLists | None = None, known: Sequence[KnownClip] = ()) -> MarkVerdict:
    """Find out about a file's mark. Asks nothing of a network.

    `known`: clips on record, by which a file without a signed mark may be recognised. Raises `NotMarkableError` for a
    file that carries no marks, `SigningError` where the library that reads them is not installed, and `OSError`.
    """
    with open_carrier(path) as file:
        carrier = carrier_of(file, path.name)
    try:
        signed, coded = is_signed(path), _coded_or_none(path)
    except NotMarkableError as error:
        return MarkVerdict(path=path, state=MarkState.DAMAGED, says=f"the file is damaged: {error.problem.message}")
    if not signed:
        return _without_manifest(path, carrier, coded, known)
    return _with_manifest(path, carrier, coded, trust or TrustLists())


def records_in(folder: Path) -> list[KnownClip]:
    """The clips whose provenance lies in a folder, as results are written."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            data = path.read_bytes()
        except OSError:
            continue
        facts = facts_of(data)
        if facts.stream_sha256:
            off = json.loads(data).get("marks") == "off"
            found.append(KnownClip(name=path.name, facts=facts, marks_off=off))
    return found


def _coded_or_none(path: Path) -> CodedPictures | None:
    try:
        return coded_pictures(path)
    except NotMarkableError:
        # Its mark may still be read.
        return None


def _likeness_or_none(path: Path) -> str:
    try:
        return likeness_of_file(path)
    except NotMarkableError:
        return ""


def _without_manifest(
    path: Path, carrier: Carrier, coded: CodedPictures | None, known: Sequence[KnownClip]
) -> MarkVerdict:
    with open_carrier(path) as file:
        properties = properties_in(packet_in(file, carrier, path.name) or b"")
    source_type = properties.get("Iptc4xmpExt:DigitalSourceType", "")
    was_signed = SIGNED in properties
    # Records are of videos; their posters are other pictures.
    on_record = known if carrier is Carrier.MP4 else ()
    for one in on_record:
        if coded is not None and one.facts.stream_sha256 == coded.sha256:
            state, words = MarkState.STRIPPED, "it carries no signed mark any more"
            if source_type and not was_signed:
                state, words = MarkState.PLAIN, "it says in plain words what made it"
            elif one.marks_off:
                state, words = MarkState.UNMARKED, "it was handed out without marks"
            return MarkVerdict(
                path=path,
                state=state,
                says=f"{words}; its pixels are those that {one.name} has on record",
                pixels=PixelState.SAME,
                facts=one.facts,
                source_type=source_type,
                compared_with=one.name,
            )
    if on_record and (nearest := _nearest(path, on_record)) is not None:
        one, away = nearest
        return MarkVerdict(
            path=path,
            state=MarkState.RE_ENCODED,
            says=f"it carries no signed mark; it looks like the clip that {one.name} has on record, in another "
            f"encoding ({away:.1f} of 255 levels away)",
            pixels=PixelState.ALIKE,
            facts=one.facts,
            source_type=source_type,
            compared_with=one.name,
        )
    if source_type:
        facts = ClipFacts(
            content_key=properties.get("clipmill:ContentKey", ""),
            family=properties.get("Iptc4xmpExt:AISystemUsed", ""),
            revision=properties.get("Iptc4xmpExt:AISystemVersionUsed", ""),
        )
        state, says = MarkState.PLAIN, "it says in plain words what made it, and nothing signed proves it"
        if was_signed:
            state, says = MarkState.STRIPPED, "it was signed, as its plain words say, and its signed mark is gone"
        return MarkVerdict(path=path, state=state, says=says, facts=facts, source_type=source_type)
    says = "it carries no mark" + (", and is none of the clips on record" if on_record else "")
    return MarkVerdict(path=path, state=MarkState.UNMARKED, says=says)


def _nearest(path: Path, known: Sequence[KnownClip]) -> tuple[KnownClip, float] | None:
    own = _likeness_or_none(path)
    found = [
        (away, number) for number, one in enumerate(known) if (away := distance(own, one.facts.likeness)) is not None
    ]
    if not found:
        return None
    away, number = min(found)
    return (known[number], away) if away <= ALIKE_WITHIN else None


def _with_manifest(path: Path, carrier: Carrier, coded: CodedPictures | None, trust: TrustLists) -> MarkVerdict:
    try:
        told, trusted_by = _read(path, carrier, trust)
    except _UnreadableError as error:
        return MarkVerdict(path=path, state=MarkState.DAMAGED, says=f"its mark cannot be read: {error}")
    seen = _Seen(told, trusted_by)
    state, pixels, says = _judge(path, coded, seen)
    return MarkVerdict(
        path=path,
        state=state,
        says=says,
        pixels=pixels,
        signer=seen.signer,
        facts=seen.facts,
        source_type=seen.source_type,
        marked_at=str(seen.claim.get("marked_at") or ""),
        profile=str(seen.claim.get("profile") or ""),
        still=seen.still,
        compared_with="its mark" if seen.claim else "",
        codes=tuple(sorted(seen.failures)),
    )


def _judge(path: Path, coded: CodedPictures | None, seen: _Seen) -> tuple[MarkState, PixelState, str]:
    wrong = seen.failures - _ABOUT_SIGNER
    if not wrong and not seen.claim:
        return MarkState.FOREIGN, PixelState.UNKNOWN, "its mark is whole, and not one of clipmill's"
    same = coded is not None and coded.sha256 == seen.claim.get("stream_sha256")
    if not wrong and same:
        return MarkState.VALID, PixelState.SAME, "not a byte has changed since it was marked"
    if wrong - _UNBOUND:
        pixels = PixelState.SAME if same else PixelState.UNKNOWN
        return MarkState.DAMAGED, pixels, f"the mark itself was changed ({', '.join(sorted(wrong))})"
    if not seen.claim:
        return MarkState.ALTERED, PixelState.UNKNOWN, "it was changed since another program marked it"
    if same:
        return MarkState.ALTERED, PixelState.SAME, "bytes around its pictures were changed since it was marked"
    parts = seen.parts
    shared = coded.shared(parts) if coded is not None else 0
    if shared:
        return (
            MarkState.ALTERED,
            PixelState.CHANGED,
            f"{len(parts) - shared} of {len(parts)} parts of its pictures changed",
        )
    away = distance(_likeness_or_none(path), str(seen.claim.get("likeness") or ""))
    if away is None:
        return MarkState.ALTERED, PixelState.UNKNOWN, "it was changed, and its pictures cannot be decoded any more"
    from_mark = f"({away:.1f} of 255 levels away)"
    if away <= ALIKE_WITHIN:
        return MarkState.RE_ENCODED, PixelState.ALIKE, f"it looks like what was marked, in another encoding {from_mark}"
    return MarkState.SWAPPED, PixelState.OTHER, f"its mark was signed for another clip {from_mark}"


class _UnreadableError(Exception):
    """A manifest is there, and the library takes it for none."""


class _Seen:
    """A manifest store, as the library tells of it, in our words."""

    def __init__(self, told: dict[str, Any], trust: Trust) -> None:
        active = told.get("manifests", {}).get(told.get("active_manifest"), {})
        results = told.get("validation_results", {})
        self.failures = {str(one.get("code")) for one in results.get("activeManifest", {}).get("failure", ())}
        self.claim: dict[str, Any] = {}
        self.source_type = ""
        for assertion in active.get("assertions", ()):
            if assertion.get("label") == ASSERTION and isinstance(assertion.get("data"), dict):
                self.claim = assertion["data"]
            if str(assertion.get("label")).startswith("c2pa.actions"):
                self._learn_actions(assertion.get("data"))
        names = {field.name for field in fields(ClipFacts)}
        self.facts = ClipFacts(**{name: str(value) for name, value in self.claim.items() if name in names})
        text = str(self.claim.get("parts") or "")
        #: First digits of the digest of each part of the pictures that were signed.
        self.parts = [text[at : at + PART_DIGITS] for at in range(0, len(text), PART_DIGITS)]
        self.signer = _signer(active.get("signature_info") or {}, trust)
        self.still = _still(active.get("ingredients") or (), results, self.facts.still_sha256)

    def _learn_actions(self, data: object) -> None:
        actions = data.get("actions", ()) if isinstance(data, dict) else ()
        for action in actions:
            if action.get("action") == "c2pa.created":
                self.source_type = str(action.get("digitalSourceType") or "")


def _signer(told: dict[str, Any], trust: Trust) -> SignerSeen:
    organization = str(told.get("issuer") or "")
    return SignerSeen(
        organization=organization,
        common_name=str(told.get("common_name") or ""),
        trust=trust,
        is_test=organization == TEST_ORGANIZATION,
        stamped_at=str(told.get("time") or ""),
    )


def _still(ingredients: Sequence[dict[str, Any]], results: dict[str, Any], sha256: str) -> StillSeen | None:
    for one in ingredients:
        if one.get("relationship") != "inputTo":
            continue
        if not one.get("active_manifest"):
            return StillSeen(sha256=sha256)
        deltas = [delta.get("validationDeltas", {}) for delta in results.get("ingredientDeltas") or ()]
        later = {str(fault.get("code")) for delta in deltas for fault in delta.get("failure", ())}
        before = one.get("validation_results", {}).get("activeManifest", {}).get("failure", ())
        faults = later | {str(fault.get("code")) for fault in before}
        return StillSeen(sha256=sha256, manifest_whole=not faults - _ABOUT_SIGNER)
    return None


def _read(path: Path, carrier: Carrier, trust: TrustLists) -> tuple[dict[str, Any], Trust]:
    """What the library tells of a file's manifest, and who vouches for its signer."""
    c2pa = c2pa_library()
    told: dict[str, Any] | None = None
    for whose, anchors in ((Trust.OWN, trust.own), (Trust.LISTED, trust.listed)):
        if told is None or anchors:
            told, trusted = _read_with(c2pa, path, carrier, anchors)
            if anchors and trusted:
                return told, whose
    assert told is not None
    return told, Trust.UNKNOWN


def _read_with(c2pa: Any, path: Path, carrier: Carrier, anchors: bytes) -> tuple[dict[str, Any], bool]:
    settings = OFFLINE | ({"trust": {"user_anchors": anchors.decode("ascii", "replace")}} if anchors else {})
    try:
        context = c2pa.Context(settings=c2pa.Settings.from_dict(settings))
        with path.open("rb") as file, c2pa.Reader(carrier.value, file, context=context) as reader:
            told = json.loads(reader.json())
            # Not the state of the whole: who signed is known even where the file was changed since.
            well = told.get("validation_results", {}).get("activeManifest", {}).get("success", ())
            return told, any(one.get("code") == _TRUSTED for one in well)
    except c2pa.C2paError as error:
        raise _UnreadableError(str(error)) from error
    except ValueError as error:
        raise _UnreadableError(f"what it says is no JSON ({error})") from error
