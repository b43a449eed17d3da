"""What an exception says about the card: full, broken for this process, or neither.

By CUDA's numbers and words where they are clear; by the card itself, where the same words may mean two things.
"""

from __future__ import annotations

from typing import Protocol

#: Words, lower case, of failed allocations that come as a plain RuntimeError.
_FULL = (
    "cuda out of memory",
    "cuda error: out of memory",
    "cuda driver error: out of memory",
    "cublas_status_alloc_failed",
    "cusolver_status_alloc_failed",
    "cufft_alloc_failed",
    "cudnn_status_alloc_failed",
    "cudnn_status_internal_error_host_allocation_failed",
    "cudnn_status_internal_error_device_allocation_failed",
)

#: Handles are made on first use and need memory of their own; at any later call the same status is another fault.
_HANDLES = (
    ("cublas_status_not_initialized", "cublascreate"),
    ("cudnn_status_not_initialized", "cudnncreate"),
)

#: The allocator looks up who has the memory that it lacks, and asserts that NVML answers: it does not on MIG slices, in
#: restricted containers and on Jetson.
_UNTOLD = ("nvml_success ==", "internal assert failed", "cudacachingallocator")

#: cuDNN found no way to convolve: for want of memory, or because the card cannot do it in that dtype.
_NO_ENGINE = "was unable to find an engine to execute this computation"

#: CUDA's numbers (cudaError) of errors after which every further call of the process fails.
_STICKY_CODES = frozenset({214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 999})
_OUT_OF_MEMORY_CODE = 2

#: CUDA's words for the same, lower case: older torch gives no number, and libraries only words.
_STICKY = (
    "an illegal memory access was encountered",
    "device-side assert triggered",
    "unspecified launch failure",
    "uncorrectable ecc error",
    "uncorrectable nvlink error",
    "misaligned address",
    "an illegal instruction was encountered",
    "hardware stack error",
    "invalid program counter",
    "operation not supported on global/shared address space",
    "the launch timed out and was terminated",
    "context is destroyed",
    "cuda error: unknown error",
    "cuda driver error: unknown error",
    "gpu is lost",
    # What libraries say of a context that an earlier error broke.
    "cublas_status_execution_failed",
    "cudnn_status_execution_failed",
)

#: Words, lower case, by which an error is one of the card, whatever it is.
_OF_THE_CARD = ("cuda", "cudnn", "cublas", "cusolver", "cufft", "cusparse", "nvrtc", "nvml")


class CardTrial(Protocol):
    """A card that can be tried after an error: a `LazyDevice`, or any other device that has these methods."""

    def computes(self) -> bool:
        """Whether a small operation still works on it."""
        ...

    def ran_out(self) -> bool:
        """Whether an allocation failed on it since `reset_peak`, also one whose exception a library kept to itself."""
        ...


def is_out_of_memory(error: BaseException, card: object = None) -> bool:
    """Whether an exception says that the card is full, in any of the forms libraries give it.

    `card`, where it is a `CardTrial`, is asked where words alone do not tell.
    """
    if type(error).__name__ in ("OutOfMemoryError", "AcceleratorOutOfMemoryError"):
        return True
    if not isinstance(error, RuntimeError):
        return False
    if getattr(error, "error_code", None) == _OUT_OF_MEMORY_CODE:
        return True
    text = str(error).lower()
    if any(mark in text for mark in _FULL) or any(status in text and call in text for status, call in _HANDLES):
        return True
    if all(mark in text for mark in _UNTOLD):
        return True
    return _NO_ENGINE in text and _asked(card, "ran_out") is True


def is_sticky(error: BaseException, card: object = None) -> bool:
    """Whether an exception says that this process cannot use its card any more, whatever it tries next.

    After any other error of CUDA's the `card`, where it is a `CardTrial`, is tried: what it cannot do then, it will not
    do for the next clip.
    """
    if not isinstance(error, RuntimeError) or is_out_of_memory(error, card):
        return False
    if getattr(error, "error_code", None) in _STICKY_CODES:
        return True
    text = str(error).lower()
    if any(mark in text for mark in _STICKY):
        return True
    of_the_card = hasattr(error, "error_code") or _NO_ENGINE in text or any(mark in text for mark in _OF_THE_CARD)
    return of_the_card and _asked(card, "computes") is False


def _asked(card: object, question: str) -> bool | None:
    ask = getattr(card, question, None)
    return None if ask is None else bool(ask())
