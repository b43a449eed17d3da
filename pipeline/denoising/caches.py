"""What one clip computes and the next can use: text embeddings, picture conditioning, latents of drafts.

Two levels: tensors in this process, least recently used first out by bytes, and a shelf shared by all renderers.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from pipeline.devices.emulated import off_card
from pipeline.units import MIB

Tensors = Mapping[str, torch.Tensor]

DEFAULT_CACHE_BYTES = 512 * MIB


class Shelf(Protocol):
    """Objects by key that outlive the process; must not raise: a cache that fails is a cache that misses."""

    def get(self, key: str) -> bytes | None:
        """The object, or None."""
        ...

    def put(self, key: str, data: bytes) -> None:
        """Keep the object if possible; what is there already stays."""
        ...


def cache_key(kind: str, **parts: Any) -> str:
    """`<kind>/<SHA-256>` over `parts`: everything, by name, that decides the value. JSON, or told as `str`."""
    content = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return f"{kind}/{hashlib.sha256(content.encode()).hexdigest()}"


def digest(tensors: Tensors) -> str:
    """SHA-256 (hex) over the tensors' names, shapes, types and bytes, in order of their names."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = (
            tensors[name].detach().cpu().contiguous().reshape(-1 if tensors[name].ndim == 0 else tensors[name].shape)
        )
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        found.update(tensor.view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return found.hexdigest()


class TensorCache:
    """Tensors by key, kept on the CPU; safe to use from several threads."""

    def __init__(self, max_bytes: int = DEFAULT_CACHE_BYTES, shelf: Shelf | None = None) -> None:
        self._max_bytes = max_bytes
        self._shelf = shelf
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, dict[str, torch.Tensor]] = OrderedDict()
        self._bytes = 0
        #: How often a value was found in this process, found on the shelf, and made.
        self.hits = self.shelf_hits = self.misses = 0

    @property
    def used_bytes(self) -> int:
        """Bytes of the tensors kept in this process."""
        return self._bytes

    def get(self, key: str) -> Tensors | None:
        """The tensors under `key`, on the CPU, or None. They are the cache's own: do not write to them."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                self.hits += 1
                return self._kept[key]
        data = self._shelf.get(key) if self._shelf else None
        if data is None:
            return None
        try:
            with off_card():
                tensors = load(data)
        except (SafetensorError, ValueError, KeyError):
            return None  # cut short on disk: made anew
        self.shelf_hits += 1
        self._keep(key, tensors)
        return tensors

    def put(self, key: str, tensors: Tensors) -> Tensors:
        """Keep copies under `key`, here and on the shelf; returns them, on the CPU."""
        with off_card():
            kept = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
        self._keep(key, kept)
        if self._shelf:
            self._shelf.put(key, save(kept))
        return kept

    def fetch(self, key: str, make: Callable[[], Tensors]) -> Tensors:
        """The tensors under `key`, made and kept where they are not there."""
        found = self.get(key)
        if found is not None:
            return found
        self.misses += 1
        return self.put(key, make())

    def _keep(self, key: str, tensors: dict[str, torch.Tensor]) -> None:
        size = sum(tensor.nbytes for tensor in tensors.values())
        with self._lock:
            if key in self._kept or size > self._max_bytes:
                return
            self._kept[key] = tensors
            self._bytes += size
            while self._bytes > self._max_bytes:
                _, old = self._kept.popitem(last=False)
                self._bytes -= sum(tensor.nbytes for tensor in old.values())
