"""What torch, CUDA, cuDNN and cuBLAS say when something is wrong, word for word, and the exceptions they say it with.

From torch's sources and from public reports; `FakeCuda` raises them, tests of the reading code go through all of them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

_HINTS = (
    "\nCUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be "
    "incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1\nCompile with `TORCH_USE_CUDA_DSA` to enable "
    "device-side assertions.\n"
)


def accelerator_error(code: int, text: str) -> torch.AcceleratorError:
    """The exception of a failed CUDA call: cudaError number `code`, CUDA's sentence `text`."""
    error = torch.AcceleratorError(f"CUDA error: {text}\n{_HINTS}")
    error.error_code = code
    return error


#: Out of memory, in every form that says so by itself.
OUT_OF_MEMORY: Mapping[str, Exception] = {
    "allocator": torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 14.56 GiB of which 1.29 GiB is "
        "free. Process 3142 has 13.27 GiB memory in use. Of the allocated memory 12.87 GiB is allocated by PyTorch, "
        "and 200.04 MiB is reserved by PyTorch but unallocated."
    ),
    "runtime": accelerator_error(2, "out of memory"),
    "runtime, before AcceleratorError": RuntimeError(f"CUDA error: out of memory{_HINTS}"),
    "driver api": RuntimeError("CUDA driver error: out of memory"),
    "cublas handle": RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    "cublas workspace": RuntimeError(
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasSetWorkspace(handle, workspace_ptr, size)`"
    ),
    "cublas handle, alloc": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "cudnn 8": RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "cudnn 9, host": RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"),
    "cudnn 9, device": RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    "cudnn handle": RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED at cudnnCreate(&handle)"),
    "cusolver": RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"),
    "cufft": RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"),
    # The allocator looks up who has the memory, and asserts that NVML answers: it does not on MIG, in restricted
    # containers and on Jetson.
    "nvml assert": RuntimeError(
        'NVML_SUCCESS == r INTERNAL ASSERT FAILED at "/pytorch/c10/cuda/CUDACachingAllocator.cpp":1131, please '
        "report a bug to PyTorch. "
    ),
    "nvml assert, driver api": RuntimeError(
        "NVML_SUCCESS == DriverAPI::get()->nvmlInit_v2_() INTERNAL ASSERT FAILED at "
        '"/pytorch/c10/cuda/CUDACachingAllocator.cpp":1016, please report a bug to PyTorch. '
    ),
}

#: No convolution engine: out of memory, or a dtype that the card cannot convolve. The words are the same.
NO_ENGINE: Mapping[str, Exception] = {
    "get": RuntimeError("GET was unable to find an engine to execute this computation"),
    "find": RuntimeError("FIND was unable to find an engine to execute this computation"),
}

#: After these every further CUDA call of the process fails with the same words: cudaError number, sentence.
DEAD: Mapping[int, str] = {
    214: "uncorrectable ECC error encountered",
    220: "uncorrectable NVLink error detected during the execution",
    700: "an illegal memory access was encountered",
    702: "the launch timed out and was terminated",
    709: "context is destroyed",
    710: "device-side assert triggered",
    714: "hardware stack error",
    715: "an illegal instruction was encountered",
    716: "misaligned address",
    717: "operation not supported on global/shared address space",
    718: "invalid program counter",
    719: "unspecified launch failure",
    721: "an error happened in a kernel that was run by another context",
    999: "unknown error",
}

#: These end with the call that raised them.
HARMLESS: Mapping[int, str] = {
    1: "invalid argument",
    9: "invalid configuration argument",
    701: "too many resources requested for launch",
}

NO_KERNEL_IMAGE = (209, "no kernel image is available for execution on the device")
BUSY = (46, "CUDA-capable device(s) is/are busy or unavailable")
NO_DEVICE = (100, "no CUDA-capable device is detected")

#: As torch raises them while it opens CUDA.
FABRIC_MANAGER = RuntimeError(
    "Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before calling NumCudaDevices() that "
    "might have already set an error? Error 802: system not yet initialized"
)
DRIVER_TOO_OLD = RuntimeError(
    "The NVIDIA driver on your system is too old (found version 12040). Please update your GPU driver by downloading "
    "and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx Alternatively, go to: "
    "https://pytorch.org to install a PyTorch version that has been compiled with your version of the CUDA driver."
)
NO_DRIVER = RuntimeError(
    "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a driver from "
    "http://www.nvidia.com/Download/index.aspx"
)
NO_GPUS = RuntimeError("No CUDA GPUs are available")
CPU_ONLY = AssertionError("Torch not compiled with CUDA enabled")
