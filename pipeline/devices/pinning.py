"""Host memory that a card reads by itself: weights that leave it and come back are kept in pinned memory. Needs torch.

A copy from pageable memory goes through a buffer of the driver at a fraction of the bus, and the host waits for it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

import torch

# A power of two, as torch's allocator rounds up to one, and of one size, as it keeps what is let go of for the next.
from pipeline.memory.host import PIECE_BYTES

#: Tensors begin at multiples of it within a piece.
_ALIGNMENT = 256

_log = logging.getLogger(__name__)


class HostPinning:
    """Moves weights on the host into pinned memory, for one card; does nothing for cards that are host memory.

    Where memory cannot be pinned (a container's limit, WSL) weights stay where they are, which is slower; that is
    logged once, and not tried again.
    """

    def __init__(self, torch_device: str) -> None:
        self._works = torch.device(torch_device).type == "cuda"

    def pin(self, tensors: Iterable[torch.Tensor]) -> None:
        """Give every tensor on the host pinned memory for its own. Each piece's pageable memory is freed with it."""
        wanted = [
            tensor
            for tensor in tensors
            if self._works and tensor.device.type == "cpu" and tensor.is_contiguous() and not self._is_pinned(tensor)
        ]
        try:
            for part in _pieces(wanted):
                self._move(part)
        except RuntimeError as error:
            self._works = False
            _log.warning(
                "Host memory cannot be pinned, so weights are copied to the card from pageable memory, which is "
                "slower: %s. Raise the memory of the container, or the limit of locked memory.",
                error,
            )

    def free_cached(self) -> None:
        """Give pinned memory that nothing uses back to the system."""
        if self._works:
            empty = getattr(torch.accelerator, "empty_host_cache", None)  # not there before torch 2.11
            if empty is not None:
                empty()

    def _move(self, tensors: list[torch.Tensor]) -> None:
        piece = self._allocate(sum(map(_rounded, tensors)))
        offset = 0
        for tensor in tensors:
            place = piece[offset : offset + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            place.copy_(tensor.data)
            tensor.data = place
            offset += _rounded(tensor)

    def _allocate(self, count: int) -> torch.Tensor:
        return torch.empty(count, dtype=torch.uint8, pin_memory=True)

    def _is_pinned(self, tensor: torch.Tensor) -> bool:
        return bool(tensor.data.is_pinned())


def _rounded(tensor: torch.Tensor) -> int:
    return -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT


def _pieces(tensors: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """`tensors` in parts of at most `PIECE_BYTES`; a tensor that is larger is alone."""
    part: list[torch.Tensor] = []
    for tensor in tensors:
        if part and sum(map(_rounded, part)) + _rounded(tensor) > PIECE_BYTES:
            yield part
            part = []
        part.append(tensor)
    if part:
        yield part
