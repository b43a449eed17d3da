"""What an exception says about the card: full, broken for this process, or neither."""

from __future__ import annotations

#: cuBLAS and cuDNN report a failed allocation as a plain RuntimeError.
_FULL = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
)

#: CUDA's words for errors after which every further call of the process fails, lower case.
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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that the card is full, in any of the forms libraries give it."""
    if type(error).__name__ in ("OutOfMemoryError", "AcceleratorOutOfMemoryError"):
        return True
    text = str(error)
    if not isinstance(error, RuntimeError):
        return False
    # A handle is made on first use and needs memory of its own; at any later call the same status is another fault.
    no_handle = "CUBLAS_STATUS_NOT_INITIALIZED" in text and "cublasCreate" in text
    return no_handle or any(mark in text for mark in _FULL)


def is_sticky(error: BaseException) -> bool:
    """Whether an exception says that this process cannot use its card any more, whatever it tries next."""
    if not isinstance(error, RuntimeError) or is_out_of_memory(error):
        return False
    text = str(error).lower()
    return any(mark in text for mark in _STICKY)
