"""Trials of a CUDA card: whether it opens, computes and convolves. Needs torch.

As a program, `python -m pipeline.devices.probe UUID`, it tries that card in a process of its own, which may hang or die
without harm, and prints what is wrong as JSON; an empty object where nothing is.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import torch

from pipeline.devices.discovery import ORDER, VISIBLE
from pipeline.devices.readiness import CardUnusableError, cuda_problem, driver_too_old, no_kernels, other_card

#: What models compute in.
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def add_up(device: str) -> None:
    """One small operation on `device`, waited for. Raises what torch raises."""
    found = float((torch.ones(8, device=device) * 2).sum())
    if found != 16.0:
        raise RuntimeError(f"the card adds up 8 times 2 to {found}")


def convolve(device: str, dtype: torch.dtype) -> None:
    """One small convolution on `device`, waited for. Raises what torch raises."""
    with torch.inference_mode():
        image = torch.ones(1, 4, 8, 8, device=device, dtype=dtype)
        float(torch.nn.functional.conv2d(image, torch.ones(4, 4, 3, 3, device=device, dtype=dtype)).sum())


def computes(device: str) -> bool:
    """Whether `device` still computes: after some faults nothing does that this process asks of its card."""
    try:
        add_up(device)
    except Exception:
        return False
    return True


def convolves(device: str) -> bool:
    """Whether `device` convolves in all that models compute in."""
    try:
        for dtype in DTYPES:
            convolve(device, dtype)
    except Exception:
        return False
    return True


def try_card(uuid: str, name: str, *, driver: str = "", driver_cuda: int = 0) -> None:
    """Open the first card that this process sees, which should be `uuid`, and compute on it.

    `driver_cuda`: the newest CUDA that the driver knows, as 1000 × major + 10 × minor; 0: not known.
    Raises `CardUnusableError`, which says what is wrong and what to do.
    """
    built = torch.version.cuda
    if built and driver_cuda and driver_cuda // 1000 < int(built.split(".")[0]):
        raise CardUnusableError(driver_too_old(driver, (driver_cuda // 1000, driver_cuda % 1000 // 10), built))
    try:
        torch.cuda.mem_get_info(0)
        _check_kernels(name)
        add_up("cuda:0")
        opened = str(torch.cuda.get_device_properties(0).uuid)
    except CardUnusableError:
        raise
    except (RuntimeError, AssertionError) as error:
        problem, passes = cuda_problem(name, error, driver)
        raise CardUnusableError(problem, passes=passes) from error
    # Of a slice some versions tell the uuid of the whole card.
    if uuid.startswith("GPU-") and opened.removeprefix("GPU-") != uuid.removeprefix("GPU-"):
        raise CardUnusableError(other_card(uuid, f"GPU-{opened.removeprefix('GPU-')}"))


def _check_kernels(name: str) -> None:
    """Compare the card with what torch is built for: an architecture it lacks may only show in the first clip."""
    listed: list[Any] = torch.cuda.get_arch_list() if torch.version.cuda else []
    capability = torch.cuda.get_device_capability(0)
    if listed and not has_kernels(capability, listed):
        raise CardUnusableError(no_kernels(name, capability, ", ".join(listed)))


def has_kernels(capability: tuple[int, int], listed: list[str]) -> bool:
    """Whether a torch built for `listed` (`sm_90`, `compute_90`) runs on a card of this compute capability.

    Binaries run on later cards of the same major version, PTX on all later ones; `sm_90a` and the like on that one.
    """
    for entry in listed:
        kind, _, number = entry.partition("_")
        if not number.isdigit():
            continue
        built = (int(number[:-1]), int(number[-1]))
        if kind == "compute" and built <= capability:
            return True
        if kind == "sm" and built[0] == capability[0] and built <= capability:
            return True
    return False


def main(uuid: str, name: str, driver: str = "", driver_cuda: str = "0") -> None:
    """Try the card `uuid` alone and print what is wrong with it as JSON."""
    os.environ[ORDER], os.environ[VISIBLE] = "PCI_BUS_ID", uuid
    try:
        try_card(uuid, name, driver=driver, driver_cuda=int(driver_cuda))
    except CardUnusableError as error:
        print(error.problem.model_dump_json())
    else:
        print(json.dumps({}))


if __name__ == "__main__":
    main(*sys.argv[1:])
