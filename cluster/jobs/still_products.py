"""Where stills that were handed in show their products: found out once a picture, and remembered by its SHA-256."""

from __future__ import annotations

import functools

from pydantic import ValidationError

from cluster.storage import Storage, StorageError, StorageShelf
from pipeline.clips.clip import STILLS_VERSION
from pipeline.delivery.preflight import PRODUCT_VERSION, StillProduct, still_product

#: Storages of one process.
_STORAGES = 64
#: Stills whose products are kept in memory, beside storage.
_KEPT = 10_000
_KIND = f"still-products-{STILLS_VERSION}.{PRODUCT_VERSION}"


class StillProducts:
    """Products of the stills of one storage, kept under `cache/`; where they are gone they are looked for again."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._shelf = StorageShelf(storage)
        #: The stills of a batch's rows are asked for one by one, many of them again and again.
        self._remembered = functools.lru_cache(_KEPT)(self._found)

    @staticmethod
    @functools.lru_cache(maxsize=_STORAGES)
    def shared(url: str) -> StillProducts:
        """The one of this process for the storage at `url`."""
        return StillProducts(Storage(url))

    def of(self, sha256: str, size: tuple[int, int]) -> StillProduct | None:
        """Where the still with this SHA-256, of `size` (width, height), shows its product; None: nobody can look."""
        return self._remembered(sha256, size)

    def _found(self, sha256: str, size: tuple[int, int]) -> StillProduct | None:
        if (data := self._shelf.get(f"{_KIND}/{sha256}")) is not None:
            try:
                return StillProduct.model_validate_json(data)
            except ValidationError:
                pass
        try:
            found = still_product(self._storage.get_bytes(Storage.still_key(sha256)), size)
        except StorageError:
            return None
        if found is not None:
            self._shelf.put(f"{_KIND}/{sha256}", found.model_dump_json().encode())
        return found
