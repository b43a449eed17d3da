"""The body of a request for a video, JSON or a form, and the picture in it."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes

from fastapi import Request
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException

from cluster.remote.urls import is_remote
from cluster.storage import MAX_STILL_BYTES
from pipeline.problems import BadInputError, Problem
from pipeline.units import MIB, format_bytes
from serve.gateway.door import MAX_ROWS_BYTES, DoorError, check_storable

#: Prefix of the ids of stills that were handed in as files; a still's SHA-256 follows.
FILE_ID = "file-"
#: Prefix of the ids of manifests that were handed in as files; a manifest's SHA-256 follows.
MANIFEST_ID = "file-batch-"
#: Fields of a form, and bytes of one that is no file.
_MAX_FIELDS = 100
_MAX_FIELD_BYTES = MIB
_JSON, _FORMS = "application/json", ("multipart/form-data", "application/x-www-form-urlencoded")
#: A field within another, as HTML and OpenAI's clients write it in forms.
_NESTED = re.compile(r"([^\[\]]+)\[([^\[\]]*)\]")
_SHA256 = re.compile(r"[0-9a-f]{64}")
#: Fields of a form whose text may be JSON.
_BLOCKS = frozenset({"image_reference", "input_reference", "video_params", "extra_params", "metadata"})
_REFERENCES = ("input_reference", "image_reference")


class SentFile(bytes):
    """The bytes of a file of a form, with what the form says of it."""

    #: The name that the file has with its sender; empty where that says none.
    filename: str = ""
    #: In small letters, without parameters.
    media_type: str = ""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The picture of a request: its bytes, the SHA-256 of a still that was handed in before, or where it lies."""

    data: bytes | None = None
    sha256: str | None = None
    #: An https, http, s3 or gs URL, not looked at yet.
    url: str | None = None


async def read_body(request: Request) -> dict[str, Any]:
    """The fields of a request; files are bytes. Raises `BadInputError`, and `DoorError` for other media types."""
    kind = request.headers.get("content-type", _JSON).split(";", 1)[0].strip().lower()
    if kind in _FORMS:
        return await _read_form(request)
    if kind == _JSON or kind.endswith("+json"):
        return await _read_json(request)
    problem = Problem(field="content-type", message=f"{kind[:100]} is not read here", remedy=f"Send {_JSON} or a form.")
    raise DoorError(415, "unsupported_media_type", problem)


def reference_of(values: dict[str, Any]) -> Reference:
    """Take the picture out of the fields of a request. Raises `BadInputError` where there is none, or several."""
    there = {name: values.pop(name) for name in _REFERENCES if values.get(name) not in (None, "")}
    if not there:
        what = "no picture was sent, and this farm makes videos of pictures"
        remedy = "Send one as the file input_reference, or as its image_url or file_id."
        raise BadInputError("input_reference", what, remedy)
    if len(there) > 1:
        raise BadInputError("image_reference", "input_reference is there too", "Send one of them.")
    ((name, value),) = there.items()
    if isinstance(value, bytes):
        return Reference(data=value)
    if isinstance(value, str):
        value = {"image_url": value}
    if not isinstance(value, Mapping) or len(value) != 1 or set(value) - {"image_url", "file_id"}:
        raise BadInputError(name, "it is no picture", 'Send a file, or one of {"image_url": …} and {"file_id": …}.')
    if "file_id" in value:
        return Reference(sha256=sha256_of(value["file_id"], f"{name}.file_id"))
    return _of_url(value["image_url"], f"{name}.image_url")


def sha256_of(file_id: object, name: str) -> str:
    """The SHA-256 of a still by the id of its file. Raises `BadInputError`."""
    sha256 = file_id.removeprefix(FILE_ID) if isinstance(file_id, str) else ""
    if not _SHA256.fullmatch(sha256):
        raise BadInputError(name, f"{str(file_id)[:80]!r} is no id of a file", "Send the id that POST /v1/files gave.")
    return sha256


async def _read_json(request: Request) -> dict[str, Any]:
    if len(await request.body()) > MAX_ROWS_BYTES:
        what = f"JSON of more than {format_bytes(MAX_ROWS_BYTES)}"
        raise BadInputError("body", what, "Send the picture as a file, or hand it in by POST /v1/files.")
    try:
        values = await request.json()
    except json.JSONDecodeError as error:
        raise BadInputError("body", f"it is no JSON: {error}", "Send an object of fields and values.") from error
    if not isinstance(values, dict):
        raise BadInputError("body", "it is no object", "Send an object of fields and values.")
    return values


async def _read_form(request: Request) -> dict[str, Any]:
    try:
        form = await request.form(max_files=2, max_fields=_MAX_FIELDS, max_part_size=_MAX_FIELD_BYTES)
    except (MultiPartException, HTTPException) as error:
        if isinstance(error, HTTPException) and error.status_code != 400:
            raise
        detail = str(getattr(error, "message", "") or getattr(error, "detail", error))
        raise BadInputError("body", f"the form cannot be read: {detail[:200]}", "Send a whole form.") from error
    try:
        return await _values_of(form)
    finally:
        await form.close()


async def _values_of(form: FormData) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in form.multi_items():
        check_storable(name, "body")
        found: Any = await _bytes_of(name, value) if isinstance(value, UploadFile) else value
        if isinstance(found, str):
            check_storable(found, name[:100])
            found = _unpacked(name, found)
        if nested := _NESTED.fullmatch(name):
            name, inner = nested.groups()
            block = values.setdefault(name, {})
            if not isinstance(block, dict) or inner in block:
                raise BadInputError(name, "it is there several times", "Send it once.")
            block[inner] = found
        elif name in values:
            raise BadInputError(name, "it is there several times", "Send it once.")
        else:
            values[name] = found
    return values


async def _bytes_of(name: str, upload: UploadFile) -> bytes:
    if name not in (*_REFERENCES, "file"):
        raise BadInputError(name[:100], "it is a file", "Send the picture as input_reference, all else as text.")
    if (upload.size or 0) > MAX_STILL_BYTES:
        raise BadInputError(name, f"more than {format_bytes(MAX_STILL_BYTES)}", "Send a smaller picture.")
    found = SentFile(await upload.read())
    found.filename = upload.filename or ""
    check_storable(found.filename, name)
    found.media_type = (upload.content_type or "").split(";", 1)[0].strip().lower()
    return found


def _unpacked(name: str, text: str) -> Any:
    """A block of fields that a form has as the text of JSON; other text as it is."""
    if name not in _BLOCKS or not text.lstrip().startswith("{"):
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInputError(
            name, f"it is no JSON ({type(error).__name__})", "Send an object, or plain text."
        ) from error
    check_storable(value, name)
    return value


def _of_url(url: object, name: str) -> Reference:
    """The picture in a `data:` URL (RFC 2397), or the URL by which it is to be fetched."""
    text = url.strip() if isinstance(url, str) else ""
    if is_remote(text):
        return Reference(url=text)
    if text[:5].lower() != "data:":
        scheme = text.split(":", 1)[0][:20] if ":" in text else "none"
        remedy = "Give an https:// or data: URL, or send the picture as a file."
        raise BadInputError(name, f"pictures are not fetched that way (scheme: {scheme})", remedy)
    head, comma, rest = text[5:].partition(",")
    if not comma:
        raise BadInputError(name, "the data: URL has no comma", "Write it as data:image/png;base64,…")
    try:
        if not head.lower().replace(" ", "").endswith(";base64"):
            return Reference(data=unquote_to_bytes(rest))
        coded = re.sub(r"\s", "", rest).replace("-", "+").replace("_", "/").rstrip("=")
        return Reference(data=base64.b64decode(coded + "=" * (-len(coded) % 4), validate=True))
    except (binascii.Error, ValueError) as error:
        raise BadInputError(name, f"its base64 is broken: {error}", "Send the picture as a file.") from error
