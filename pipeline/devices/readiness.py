"""What keeps a card from being used, as a person needs to hear it: what is wrong, where, and what to do. No torch here.

`cuda_problem` reads what torch raised when a card was opened, `nvml_problem` what the driver's library said.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipeline.problems import Problem

#: Where all of these faults are shown.
FIELD = "card"


class CardUnusableError(RuntimeError):
    """A card cannot be used by this process; `problem` says why and what to do."""

    def __init__(self, problem: Problem, *, passes: bool = False) -> None:
        """`passes`: it may be over without anybody doing anything, so that trying again later makes sense."""
        self.problem, self.passes = problem, passes
        super().__init__(f"{problem.message}. {problem.remedy}")


@dataclass(frozen=True, kw_only=True)
class _Said:
    """What is meant by words of the driver or of torch; `{card}` and `{driver}` are filled in."""

    words: str
    means: str
    remedy: str
    passes: bool = False


_REBOOT = "Reset it (`nvidia-smi --gpu-reset`) or restart the machine; if it comes back, have the card looked at."
_TORCH_FOR = "Install a torch built for it (https://pytorch.org/get-started/locally), or use another card"

#: By NVML's own words, lower case.
_NVML = (
    _Said(
        words="gpu is lost",
        means="{card} fell off the bus (Xid 79)",
        remedy=f"See `dmesg | grep -i xid`. {_REBOOT}",
    ),
    _Said(
        words="reset",
        means="{card} has to be reset before it can be used again",
        remedy=_REBOOT,
    ),
    _Said(
        words="insufficient permissions",
        means="this process may not look at {card}",
        remedy="Give it the card's device files: `--gpus` in Docker, a GPU limit on the pod; of a MIG slice, its own.",
    ),
    _Said(
        words="unknown error",
        means="the driver does not answer for {card}",
        remedy=f"See `nvidia-smi` and `dmesg`. {_REBOOT}",
    ),
)

#: By what torch says, lower case; the first that is found counts.
_CUDA = (
    _Said(
        words="driver on your system is too old",
        means="the NVIDIA driver{driver} is too old for the installed torch",
        remedy="Update the driver (torch for CUDA 13 needs 580 or newer), or install a torch for an older CUDA.",
    ),
    _Said(
        words="driver version is insufficient",
        means="the NVIDIA driver{driver} is too old for the installed torch",
        remedy="Update the driver (torch for CUDA 13 needs 580 or newer), or install a torch for an older CUDA.",
    ),
    _Said(
        words="system not yet initialized",
        means="the fabric manager of this machine does not run, which its NVSwitch cards wait for (error 802)",
        remedy="Start it, of the driver's own version: `systemctl start nvidia-fabricmanager`.",
        passes=True,
    ),
    _Said(
        words="busy or unavailable",
        means="{card} is busy: another program has it for itself, or it is in exclusive or prohibited mode",
        remedy="See who has it with `nvidia-smi`; `nvidia-smi -c DEFAULT` lets several programs use it.",
        passes=True,
    ),
    _Said(
        words="no kernel image is available",
        means="the installed torch has no kernels for {card}",
        remedy=f"{_TORCH_FOR}.",
    ),
    _Said(
        words="not compiled with cuda",
        means="the installed torch is built without CUDA",
        remedy="Install the CUDA build: pip install 'clipmill[render]' -c constraints.txt, without a CPU index.",
    ),
    _Said(
        words="no nvidia driver",
        means="torch finds no NVIDIA driver",
        remedy="Install the driver; in a container, start it with `--gpus all`.",
    ),
    _Said(
        words="no cuda gpus are available",
        means="CUDA does not see {card}",
        remedy="See CUDA_VISIBLE_DEVICES and `nvidia-smi -L`; a card's device files must be in the container.",
    ),
    _Said(
        words="no cuda-capable device",
        means="CUDA does not see {card}",
        remedy="See CUDA_VISIBLE_DEVICES and `nvidia-smi -L`; a card's device files must be in the container.",
    ),
    _Said(
        words="out of memory",
        means="other programs have so much of {card} that not even a CUDA context fits",
        remedy="See who has it with `nvidia-smi`, and end what is not needed.",
        passes=True,
    ),
    _Said(
        words="ecc error",
        means="{card} has a memory fault (uncorrectable ECC error)",
        remedy=f"See `nvidia-smi -q -d ECC`. {_REBOOT}",
    ),
    _Said(
        words="forward compatibility was attempted on non supported hw",
        means="the container's CUDA is newer than the driver{driver}, and {card} does not allow that",
        remedy="Update the driver on the host, or use an image for its CUDA version.",
    ),
    _Said(
        words="cuda driver error",
        means="the driver of {card} refuses how torch allocates memory",
        remedy="Start the farm with PYTORCH_ALLOC_CONF=expandable_segments:False in its environment (vGPU, Jetson).",
    ),
)


def nvml_unavailable(error: Exception) -> Problem:
    """Why NVML tells of no cards at all."""
    said = str(error)
    low = said.lower()
    if "mismatch" in low:
        return _problem(
            "the NVIDIA driver was updated while it was loaded: its library and the kernel's part differ",
            "Restart the machine, or unload and load the nvidia modules.",
        )
    if "not loaded" in low:
        return _problem(
            "the NVIDIA driver is installed, but its kernel module is not loaded",
            "Load it (`modprobe nvidia`) and see `dmesg`; after a new kernel the module has to be built again.",
        )
    if "not found" in low or isinstance(error, OSError):
        return _problem(
            "there is no NVIDIA driver",
            "For diffusion at speed, use a machine with an NVIDIA GPU and its driver (Debian: "
            "`apt install nvidia-driver`); in a container, start it with `--gpus all`.",
        )
    return _problem(f"the NVIDIA driver does not answer: {said}", "Run `nvidia-smi` and follow what it says.")


def nvml_problem(card: str, error: Exception) -> Problem:
    """What is wrong with one card, by what NVML said of it."""
    said = str(error)
    for known in _NVML:
        if known.words in said.lower():
            return _problem(known.means.format(card=card), known.remedy)
    return _problem(f"NVML does not tell of {card}: {said}", "Run `nvidia-smi` and follow what it says.")


def memory_untold(name: str) -> Problem:
    """A card whose memory NVML does not know, such as one that shares the host's."""
    return _problem(
        f"the driver does not tell how much memory {name} has, so nothing can be planned on it",
        "It shares the host's memory, which clipmill does not support: use another card, or emulated ones (`--cards`).",
    )


def no_slices(uuid: str) -> Problem:
    """A card in MIG mode that has no slices, or none that this process may see."""
    return _problem(
        f"{uuid} is in MIG mode and has no slice that this process may use",
        "Make some (`nvidia-smi mig -cgi … -C`), give the container one, or turn MIG off (`nvidia-smi -mig 0`).",
    )


def hidden(count: int, value: str) -> Problem:
    """Cards are there, and `CUDA_VISIBLE_DEVICES` shows none of them."""
    return _problem(
        f"CUDA_VISIBLE_DEVICES={value!r} hides every card of this machine ({count} by the driver)",
        "Unset it, or name cards as `nvidia-smi -L` does; an unknown entry hides all that follow.",
    )


def other_card(asked: str, opened: str) -> Problem:
    """CUDA opened another card than the one that was claimed."""
    return _problem(
        f"CUDA opened {opened} instead of {asked}",
        "Something sets CUDA_VISIBLE_DEVICES or CUDA_DEVICE_ORDER after the renderer did: leave both to it.",
    )


def driver_too_old(driver: str, driver_cuda: tuple[int, int], torch_cuda: str) -> Problem:
    """The driver's CUDA is of an older major version than torch's."""
    return _problem(
        f"the NVIDIA driver {driver} knows CUDA up to {driver_cuda[0]}.{driver_cuda[1]}, and the installed torch is "
        f"built for {torch_cuda}",
        "Update the driver (torch for CUDA 13 needs 580 or newer), or install a torch for an older CUDA.",
    )


def no_kernels(card: str, capability: tuple[int, int], built: str) -> Problem:
    """Torch has no kernels for the card's compute capability."""
    return _problem(
        f"the installed torch has no kernels for {card} (compute capability {capability[0]}.{capability[1]}; it has "
        f"{built})",
        f"{_TORCH_FOR}.",
    )


def unanswered(card: str, seconds: float) -> Problem:
    """A trial of the card did not come to an end."""
    return _problem(f"{card} did not answer within {seconds:.0f} s", f"See `dmesg | grep -i xid`. {_REBOOT}")


def cuda_problem(card: str, error: BaseException, driver: str = "") -> tuple[Problem, bool]:
    """(what is wrong, whether it may pass by itself), by what torch raised when it opened or tried `card`.

    `driver`: the driver's version, where it is known.
    """
    said = str(error)
    named = f" {driver}" if driver else ""
    for known in _CUDA:
        if known.words in said.lower():
            return _problem(known.means.format(card=card, driver=named), known.remedy), known.passes
    first = re.split(r"\n|\. ", said, maxsplit=1)[0]
    means = f"{card} cannot be used: {type(error).__name__}: {first}"
    return _problem(means, f"Run `clipmill doctor` and `nvidia-smi`. {_REBOOT}"), True


def _problem(message: str, remedy: str) -> Problem:
    return Problem(field=FIELD, message=message, remedy=remedy)
