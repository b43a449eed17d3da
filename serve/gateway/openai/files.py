"""Routes of stills as files, and of the models that make videos of them."""

from __future__ import annotations

from typing import Annotated, Any

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request, Response

from cluster.catalog.uploads import ManifestUploads, UploadedManifest
from cluster.farm import Farm
from cluster.storage import MissingObjectError, Storage
from pipeline.families import FAMILIES, family_named
from pipeline.problems import BadInputError
from pipeline.units import format_bytes
from serve.gateway.access.gate import OwnersFarm
from serve.gateway.batches.media import format_of, named_as
from serve.gateway.door import MAX_ROWS_BYTES, CheckedRoute
from serve.gateway.errors import NoSuchFileError, NoSuchModelError
from serve.gateway.openai.body import FILE_ID, MANIFEST_ID, read_body, sha256_of
from serve.gateway.openai.schema import FILE_BODY
from serve.gateway.openai.views import file_view, manifest_view, model_view, page_view

#: What a picture may be for, and a manifest.
_PURPOSES = ("vision", "user_data")
_OF_BATCH = "batch"
_STILLS_AT_ONCE = 4


def file_routes() -> APIRouter:
    """The routes of files: stills and manifests that were handed in, by a prefix and their SHA-256."""
    routes = APIRouter(prefix="/v1", route_class=CheckedRoute, tags=["files"])
    threads = CapacityLimiter(_STILLS_AT_ONCE)

    @routes.post("/files", openapi_extra=FILE_BODY)
    async def create_file(request: Request, farm: OwnersFarm) -> dict[str, Any]:
        """Hand in a picture that several requests name by its `file_id`; with the purpose `batch`, a manifest."""
        values = await read_body(request)
        return await run_sync(_Files(farm).put, values, limiter=threads)

    @routes.get("/files")
    def list_files(
        farm: OwnersFarm,
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        purpose: str | None = None,
    ) -> dict[str, Any]:
        """A page of what was handed in, pictures before manifests; `after` is the last id of the page before.

        With `purpose`, only what is for that: `vision` for pictures, `batch` for manifests.
        """
        views = _Files(farm).views(after, limit + 1, purpose)
        return page_view(views[:limit], len(views) > limit)

    @routes.get("/files/{file_id}")
    def get_file(file_id: str, farm: OwnersFarm) -> dict[str, Any]:
        """One file that was handed in: when, and how large."""
        return _Files(farm).view(file_id)

    @routes.get("/files/{file_id}/content", response_class=Response)
    def get_file_content(file_id: str, farm: OwnersFarm) -> Response:
        """A file as it was handed in."""
        # Never as what it says of itself: a browser would run an SVG.
        headers = {"X-Content-Type-Options": "nosniff", "Content-Disposition": "attachment"}
        return Response(_Files(farm).read(file_id), media_type="application/octet-stream", headers=headers)

    @routes.delete("/files/{file_id}")
    def delete_file(file_id: str, farm: OwnersFarm) -> dict[str, Any]:
        """Forget a file. Clips and batches made of it stay."""
        _Files(farm).forget(file_id)
        return {"id": file_id, "object": "file", "deleted": True}

    return routes


class _Files:
    """An owner's files: stills, which the store knows, and manifests, which lie in storage alone."""

    def __init__(self, farm: Farm) -> None:
        self._farm = farm
        self._uploads = ManifestUploads(farm.storage, farm.owner)

    def put(self, values: dict[str, Any]) -> dict[str, Any]:
        data, purpose = values.pop("file", None), values.pop("purpose", "vision")
        if purpose not in (*_PURPOSES, _OF_BATCH):
            remedy = f"Send one of: {', '.join((*_PURPOSES, _OF_BATCH))}."
            raise BadInputError("purpose", f"{str(purpose)[:60]!r} is nothing that a file is for", remedy)
        if not isinstance(data, bytes):
            raise BadInputError("file", "no file was sent", "Send the picture, or the manifest, as the file of a form.")
        if values:
            raise BadInputError(sorted(values)[0][:100], "there is no such field", "Send file and purpose.")
        if purpose == _OF_BATCH:
            return _put_manifest(self._uploads, data)
        return self.view(FILE_ID + _put(self._farm, data))

    def views(self, after: str | None, limit: int, purpose: str | None) -> list[dict[str, Any]]:
        """Stills by their SHA-256, then manifests by theirs, behind the id `after`. Raises `BadInputError`."""
        farm, views = self._farm, list[dict[str, Any]]()
        in_manifests = after is not None and after.startswith(MANIFEST_ID)
        if purpose in (None, *_PURPOSES) and not in_manifests:
            behind = None if after is None else sha256_of(after, "after")
            found = farm.batch_store.stills(farm.owner, after=behind, limit=limit)
            views += [_view(farm, sha256, at) for sha256, at in found]
        if purpose in (None, _OF_BATCH) and len(views) < limit:
            behind = sha256_of(str(after).replace(MANIFEST_ID, FILE_ID, 1), "after") if in_manifests else None
            views += map(manifest_view, self._uploads.listed(after=behind, limit=limit - len(views)))
        return views

    def view(self, file_id: str) -> dict[str, Any]:
        if file_id.startswith(MANIFEST_ID):
            return manifest_view(self._manifest(file_id))
        return _view(self._farm, *self._still(file_id))

    def read(self, file_id: str) -> bytes:
        try:
            if file_id.startswith(MANIFEST_ID):
                return self._uploads.read(self._manifest(file_id))
            return self._farm.storage.get_still(self._still(file_id)[0])
        except MissingObjectError as error:
            raise NoSuchFileError(f"the file of {file_id!r} is gone: hand it in again") from error

    def forget(self, file_id: str) -> None:
        if file_id.startswith(MANIFEST_ID):
            self._uploads.delete(self._manifest(file_id).sha256)
        else:
            self._farm.batch_store.forget_still(self._farm.owner, self._still(file_id)[0])

    def _still(self, file_id: str) -> tuple[str, int]:
        sha256 = _known(file_id)
        at = self._farm.batch_store.still_at(self._farm.owner, sha256)
        if at is None:
            raise NoSuchFileError(f"there is no file {file_id!r}; `GET /v1/files` lists those there are")
        return sha256, at

    def _manifest(self, file_id: str) -> UploadedManifest:
        found = self._uploads.find(file_id.removeprefix(MANIFEST_ID))
        if found is None:
            raise NoSuchFileError(f"there is no file {file_id[:90]!r}; `GET /v1/files` lists those there are")
        return found


def model_routes() -> APIRouter:
    """The routes of models."""
    routes = APIRouter(prefix="/v1", route_class=CheckedRoute, tags=["models"])

    @routes.get("/models")
    def list_models() -> dict[str, Any]:
        """The models that can be named, with their classes and tiers."""
        return page_view((model_view(family) for family in FAMILIES.values()), False)

    @routes.get("/models/{name}")
    def get_model(name: str) -> dict[str, Any]:
        """One model, with its classes and tiers."""
        try:
            return model_view(family_named(name))
        except BadInputError as error:
            raise NoSuchModelError(str(error)) from error

    return routes


def _known(file_id: str) -> str:
    try:
        return sha256_of(file_id, "file_id")
    except BadInputError as error:
        raise NoSuchFileError(str(error)) from error


def _put_manifest(uploads: ManifestUploads, data: bytes) -> dict[str, Any]:
    if len(data) > MAX_ROWS_BYTES:
        what = f"more than {format_bytes(MAX_ROWS_BYTES)}"
        raise BadInputError("file", what, "Split the manifest into several.")
    name = getattr(data, "filename", "")
    kind = format_of(None, name, getattr(data, "media_type", ""))
    # Nothing else of what the sender said is kept.
    sha256 = uploads.put(data, named_as(kind, name))
    found = uploads.find(sha256)
    assert found is not None
    return manifest_view(found)


def _put(farm: Farm, data: bytes) -> str:
    try:
        return farm.put_still(data)
    except BadInputError as error:
        raise BadInputError("file", error.problem.message, error.problem.remedy) from error


def _view(farm: Farm, sha256: str, at: int) -> dict[str, Any]:
    try:
        size = farm.storage.size(Storage.still_key(sha256))
    except MissingObjectError:
        size = 0
    return file_view(sha256, size, at)
