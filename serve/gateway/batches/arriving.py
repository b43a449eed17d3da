"""The manifest of a request, wherever it is: in a form with its pictures, as the whole body, as a file, at a URL."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from anyio.to_thread import run_sync
from fastapi import Request
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException

from cluster.catalog.uploads import ManifestUploads
from cluster.farm import Farm
from cluster.remote.manifests import RemoteManifests
from cluster.storage import MissingObjectError
from pipeline.problems import BadInputError
from pipeline.units import MIB, format_bytes
from serve.gateway.batches.bodies import ManifestFormat, ManifestOptions, NewBatchOfManifest, options_of
from serve.gateway.batches.manifests import ReadFile, picture_name
from serve.gateway.batches.media import format_of
from serve.gateway.door import MAX_ROWS_BYTES, check_storable
from serve.gateway.errors import NoSuchFileError
from serve.gateway.openai.body import MANIFEST_ID

#: Files of a form: the manifest and its pictures.
MAX_FILES = 2001
_MAX_FIELDS = 100
_MANIFEST = ("manifest", "file")
_PICTURES = ("image", "images", "image[]", "images[]")


@dataclass(frozen=True, kw_only=True)
class ArrivedManifest:
    """A manifest that a request brought or named, not read yet."""

    data: bytes
    kind: ManifestFormat
    #: For people.
    name: str
    options: ManifestOptions
    #: Pictures that came along, by the names of their files (`picture_name`).
    files: Mapping[str, ReadFile] = field(default_factory=dict)


async def of_body(request: Request, media_type: str) -> ArrivedManifest:
    """The manifest that is the whole body, its options in the query. Raises `DoorError`, `BadInputError`."""
    options = options_of(_once(request.query_params.multi_items()), "query")
    # Before the body is read: a kind that is not read here need not be sent.
    kind = format_of(options.format, "", media_type)
    data = await request.body()
    return ArrivedManifest(data=data, kind=kind, name=options.name or f"manifest.{kind.value}", options=options)


async def read_form(request: Request) -> FormData:
    """The form of a request, its files not read yet; whoever asks closes it. Raises `BadInputError`."""
    try:
        return await request.form(max_files=MAX_FILES, max_fields=_MAX_FIELDS, max_part_size=MIB)
    except (MultiPartException, HTTPException) as error:
        if isinstance(error, HTTPException) and error.status_code != 400:
            raise
        detail = str(getattr(error, "message", "") or getattr(error, "detail", error))
        raise BadInputError("body", f"the form cannot be read: {detail[:200]}", "Send a whole form.") from error


async def of_form(form: FormData) -> ArrivedManifest:
    """The manifest of a form, with its pictures and its options. Raises `DoorError`, `BadInputError`."""
    manifest: UploadFile | None = None
    texts: list[tuple[str, str]] = []
    files: dict[str, ReadFile] = {}
    for name, value in form.multi_items():
        check_storable(name, "body")
        if isinstance(value, str):
            check_storable(value, name[:100])
            texts.append((name, value))
        elif name in _MANIFEST:
            if manifest is not None:
                raise BadInputError(name, "it is there several times", "Send one manifest.")
            manifest = value
        elif name in _PICTURES:
            file_name = picture_name(value.filename or "")
            check_storable(file_name, name)
            if not file_name or file_name in files:
                what = f"{file_name[:60]!r} names several of them" if file_name else "it has no file name"
                raise BadInputError(name, what, "Give every picture the name by which the manifest has it.")
            files[file_name] = _reader(value)
        else:
            remedy = "Send the manifest as `manifest`, pictures as `images`, all else as text."
            raise BadInputError(name[:100], "it is a file", remedy)
    options = options_of(_once(texts), "body")
    if manifest is None:
        raise BadInputError("manifest", "no manifest was sent", "Send it as the file `manifest` of the form.")
    sent_name = manifest.filename or ""
    check_storable(sent_name, "manifest")
    media_type = (manifest.content_type or "").split(";", 1)[0].strip().lower()
    kind = format_of(options.format, sent_name, media_type)
    _check_size(manifest.size or 0)
    data = await run_sync(_reader(manifest))
    named = options.name or PurePosixPath(sent_name.replace("\\", "/")).name or f"manifest.{kind.value}"
    return ArrivedManifest(data=data, kind=kind, name=named[:500], options=options, files=files)


def of_elsewhere(asked: NewBatchOfManifest, farm: Farm, remote: RemoteManifests | None) -> ArrivedManifest:
    """The manifest that a request names by file or URL. Raises `NoSuchFileError`, `BadInputError`, `DoorError`."""
    if asked.input_file_id is not None:
        name, data = _of_file(asked.input_file_id, farm)
    else:
        url = str(asked.manifest_url)
        if remote is None:
            what = "manifests are not fetched here"
            raise BadInputError("manifest_url", what, "Send the manifest itself as the request's body.")
        data = remote.read(url)
        name = PurePosixPath(urlsplit(url).path).name
    kind = format_of(asked.format, name)
    return ArrivedManifest(data=data, kind=kind, name=(asked.name or name or "manifest")[:500], options=asked)


def _of_file(file_id: str, farm: Farm) -> tuple[str, bytes]:
    uploads = ManifestUploads(farm.storage, farm.owner)
    found = uploads.find(file_id.removeprefix(MANIFEST_ID)) if file_id.startswith(MANIFEST_ID) else None
    if found is not None:
        try:
            return found.name, uploads.read(found)
        except MissingObjectError:
            pass
    what = f"there is no manifest {file_id[:80]!r}"
    raise NoSuchFileError(f"{what}. Hand one in by POST /v1/files with the purpose batch.")


def _reader(upload: UploadFile) -> Callable[[], bytes]:
    def read() -> bytes:
        upload.file.seek(0)
        return upload.file.read()

    return read


def _check_size(size: int) -> None:
    if size > MAX_ROWS_BYTES:
        what = f"more than {format_bytes(MAX_ROWS_BYTES)}"
        raise BadInputError("manifest", what, "Split it into several manifests.")


def _once(items: list[tuple[str, str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in items:
        if name in found:
            raise BadInputError(name[:100], "it is there several times", "Send it once.")
        found[name] = value
    return found
