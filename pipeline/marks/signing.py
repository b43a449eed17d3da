"""Signed marks: C2PA manifests (specification 2.2) in MP4, JPEG and PNG files, by the library of its authors."""

from __future__ import annotations

import io
import time
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.families import FAMILIES
from pipeline.marks.carriers import Carrier
from pipeline.marks.coded import CodedPictures
from pipeline.marks.facts import ClipFacts, moment_text
from pipeline.marks.identity import SigningIdentity, c2pa_library
from pipeline.marks.problems import NotMarkableError, SigningError
from pipeline.marks.source_type import DigitalSourceType

#: Label of the assertion that carries what only clipmill knows of a clip.
ASSERTION = "io.clipmill.clip"
#: Raised whenever the same facts would be told otherwise: files are then marked anew.
MARKS_VERSION = "1"
#: Settings of the library: no manifest at a stranger's address is fetched, nor lists of revoked certificates; and no
#: thumbnails are made.
OFFLINE: dict[str, Any] = {
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
    "builder": {"thumbnail": {"enabled": False}},
}

_STILL = "still"
_FORMATS = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "TIFF": "image/tiff", "GIF": "image/gif"}
_SUFFIXES = {Carrier.MP4: "mp4", Carrier.JPEG: "jpg", Carrier.PNG: "png"}


@dataclass(frozen=True, kw_only=True)
class MarkClaim:
    """What a mark is to say of one file."""

    facts: ClipFacts
    source_type: DigitalSourceType
    coded: CodedPictures
    likeness: str
    #: What a delivery was made for; empty for the clip itself.
    profile: str = ""
    #: What was done to the clip's frames, by C2PA's names.
    actions: tuple[str, ...] = ()


def sign(
    source: Path, target: Path, carrier: Carrier, claim: MarkClaim, identity: SigningIdentity, still: bytes
) -> None:
    """Write `source` with a signed manifest as `target`. Raises `SigningError` and `NotMarkableError`."""
    c2pa = c2pa_library()
    if problem := identity.problem_at(time.time()):
        raise SigningError(problem, "Set up another with `clipmill marks setup`, or leave marks out: --no-marks.")
    try:
        context = c2pa.Context(settings=c2pa.Settings.from_dict(OFFLINE))
        builder = c2pa.Builder(manifest_of(claim, carrier, with_still=bool(still)), context=context)
        if still:
            _add_still(c2pa, builder, still, claim.facts.still_sha256)
        # Not an empty text for no authority: that one would be asked.
        signer = c2pa.Signer.from_info(
            c2pa.C2paSignerInfo(
                alg=identity.algorithm,
                sign_cert=identity.chain,
                private_key=identity.key,
                ta_url=identity.timestamp_url or None,
            )
        )
        with source.open("rb") as original, target.open("w+b") as signed:
            builder.sign(signer, carrier.value, original, signed)
    except c2pa.C2paError as error:
        raise _explained(c2pa, error, source, identity) from error


def manifest_of(claim: MarkClaim, carrier: Carrier, *, with_still: bool) -> dict[str, Any]:
    """The definition of a manifest, as C2PA's library reads it."""
    facts = claim.facts
    family = FAMILIES.get(facts.family)
    created: dict[str, Any] = {
        "action": "c2pa.created",
        "digitalSourceType": claim.source_type.uri,
        "softwareAgent": {"name": family.title if family else facts.family or "clipmill"},
    }
    if facts.rendered_at:
        created["when"] = facts.rendered_at
    if facts.revision:
        created["softwareAgent"]["version"] = facts.revision
    if with_still:
        created["parameters"] = {"ingredientIds": [_STILL]}
    told = {name: value for name, value in asdict(facts).items() if value and name not in ("likeness", "stream_sha256")}
    told |= {
        "version": 1,
        "marked_at": moment_text(time.time()),
        "stream_sha256": claim.coded.sha256,
        "parts": "".join(claim.coded.parts),
        "likeness": claim.likeness,
    }
    if claim.profile:
        told["profile"] = claim.profile
    if facts.stream_sha256 and facts.stream_sha256 != claim.coded.sha256:
        told["master_stream_sha256"] = facts.stream_sha256
    return {
        "claim_generator_info": [{"name": "clipmill", "version": _version()}],
        "title": f"{facts.content_key[:16] or 'clip'}.{_SUFFIXES[carrier]}",
        "format": carrier.value,
        "assertions": [
            {
                "label": "c2pa.actions.v2",
                "data": {"actions": [created, *({"action": action} for action in claim.actions)]},
            },
            {"label": ASSERTION, "data": told},
        ],
    }


def _add_still(c2pa: Any, builder: Any, still: bytes, sha256: str) -> None:
    """Add the still as what the clip was made from, with the manifest that it may have."""
    about = {
        "title": "still",
        "relationship": "inputTo",
        "label": _STILL,
        "instance_id": f"sha256:{sha256 or 'unknown'}",
    }
    kind = _format_of(still)
    try:
        builder.add_ingredient(about, kind, io.BytesIO(still))
    except c2pa.C2paError:
        # A manifest that cannot be read, or a format that the library does not know: the still is named all the same.
        builder.add_ingredient(about, "application/octet-stream", io.BytesIO(still))


def _format_of(still: bytes) -> str:
    try:
        with Image.open(io.BytesIO(still)) as opened:
            return _FORMATS.get(opened.format or "", "application/octet-stream")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return "application/octet-stream"


def _explained(c2pa: Any, error: Exception, source: Path, identity: SigningIdentity) -> Exception:
    words = str(error)
    if isinstance(error, c2pa.C2paError.NotSupported | c2pa.C2paError.Io | c2pa.C2paError.Decoding):
        return NotMarkableError(f"{source.name} cannot be signed: {words}", "Fetch or render it again.")
    if identity.timestamp_url:
        # The library has one word for both; the certificate was tried before without the authority, or may be.
        remedy = f"Is {identity.timestamp_url} up, and an authority by RFC 3161? Set up again without it to do without."
        return SigningError(f"it could not be signed with a time of {identity.timestamp_url}: {words}", remedy)
    remedy = "C2PA wants a certificate for digital signatures: see docs/marks.md, or try a test one."
    return SigningError(f"the certificate of {identity.common_name!r} does not sign: {words}", remedy)


def _version() -> str:
    try:
        return metadata.version("clipmill")
    except metadata.PackageNotFoundError:
        return "unknown"
