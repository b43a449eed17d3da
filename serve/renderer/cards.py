"""The cards of this machine: found, named, and claimed by one renderer each."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from cluster.fleet.cards import NOMINAL_BYTES, card_class_of
from pipeline.devices.discovery import ORDER, VISIBLE, Gpu, GpuSurvey, survey
from pipeline.devices.emulation_scale import emulated_bytes
from pipeline.devices.nvml import Nvml, UnknownMemoryError
from pipeline.devices.protocol import CardFigures, Device
from pipeline.devices.readiness import CardUnusableError, cuda_problem, hidden
from pipeline.memory.admission import Observation, margin
from pipeline.memory.footprint import context_share
from pipeline.problems import Problem
from pipeline.weights.weights import WeightsError
from serve.settings import EMULATED_USABLE_SHARE

log = logging.getLogger("clipmill.cards")

#: With it Ray leaves `CUDA_VISIBLE_DEVICES` alone, and whoever wants its cards has to ask for them.
NOSET = "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"

#: What torch reads of its CUDA allocator: by its present name, and by that which older versions know.
ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")

#: What to do where a model that needs torch is asked for on an installation without it.
INSTALL_TORCH = "Install it: pip install 'clipmill[render]' -c constraints.txt; `--model camera` needs none."


@dataclass(frozen=True, kw_only=True)
class CardIdentity:
    """Which card a renderer has taken."""

    #: GPU uuid, or the name of an emulated card.
    card: str
    card_class: str
    #: NVML name of the card, or `emulated`.
    kind: str
    #: Compute capability, such as (8, 9); None on emulated cards, and where the driver does not say.
    capability: tuple[int, int] | None = None


def find_gpus() -> list[Gpu]:
    """The NVIDIA GPUs that this process may use, by NVML; empty where there is no driver.

    Those that cannot be used are left out; `survey_gpus` says why.
    """
    return list(survey_gpus().gpus)


def survey_gpus() -> GpuSurvey:
    """All that NVML says of this machine's cards. Never raises."""
    return survey(os.environ)


class CardsTakenError(RuntimeError):
    """Every card of the class is taken by another renderer."""


def claim(cards: Collection[str], folder: Path) -> tuple[str, IO[str]]:
    """Take one of `cards`, whose locks lie in `folder`, for this process.

    Returns its id and the open lock file: the card is free again when that is closed, at the latest with the process.
    Raises `CardsTakenError` where all are taken.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for card in cards:
        lock = (folder / f"{card}.lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            continue
        return card, lock
    raise CardsTakenError(f"all of {', '.join(cards)} are held by other renderers")


class LazyDevice:
    """A card whose torch side is opened by the first model that needs it: the `camera` family needs none."""

    def __init__(
        self,
        total_bytes: int,
        usable_bytes: int,
        torch_device: str,
        open_device: Callable[[], Device],
        foreign_bytes: Callable[[], int] = lambda: 0,
    ) -> None:
        """`usable_bytes`: with nothing else on the card; `foreign_bytes`: what others have while it is not open."""
        self.total_bytes = total_bytes
        self.torch_device = torch_device
        self._usable_bytes = usable_bytes
        self._open = open_device
        self._foreign_bytes = foreign_bytes
        self._device: Device | None = None

    def usable_bytes(self) -> int:
        """Bytes a clip may use: measured once the card is open, before that what is safe to count on beside others."""
        return self._device.usable_bytes() if self._device else max(0, self._usable_bytes - self._foreign_bytes())

    @property
    def foreign_bytes(self) -> int:
        """Bytes of the card that other programs have."""
        return self._device.foreign_bytes if self._device else self._foreign_bytes()

    def observe(self, observation: Observation) -> None:
        """Learn from a clip's peak; nothing is learned before the card is open."""
        if self._device:
            self._device.observe(observation)

    def used_bytes(self) -> int:
        """Live bytes of this process on the card; 0 before it is open."""
        return self._device.used_bytes() if self._device else 0

    def peak_bytes(self) -> int:
        """Highest `used_bytes` since `reset_peak`."""
        return self._device.peak_bytes() if self._device else 0

    def reset_peak(self) -> None:
        """Measure `peak_bytes` from here on."""
        if self._device:
            self._device.reset_peak()

    def free_cached(self) -> None:
        """Give cached memory back."""
        if self._device:
            self._device.free_cached()

    def publish(self) -> None:
        """Note what `figures` is to tell, once the card is open."""
        if self._device:
            self._device.publish()

    def figures(self) -> CardFigures:
        """What the card's memory holds; safe on any thread, and never waits for the one that works on the card."""
        if self._device:
            return self._device.figures()
        foreign = self._foreign_bytes()
        return CardFigures(usable_bytes=max(0, self._usable_bytes - foreign), used_bytes=0, foreign_bytes=foreign)

    def computes(self) -> bool:
        """Whether a small operation still works on it; True before it is open, and where it cannot be tried."""
        ask = getattr(self._device, "computes", None)
        return ask is None or bool(ask())

    def ran_out(self) -> bool:
        """Whether an allocation failed on it since `reset_peak`, as far as it knows."""
        ask = getattr(self._device, "ran_out", None)
        return ask is not None and bool(ask())

    def work(self) -> AbstractContextManager[None]:
        """Open the card if need be, and count this thread's allocations against it.

        Raises `WeightsError` where torch is not installed.
        """
        return self.open().work()

    def open(self) -> Device:
        """The card's torch side, opened if need be. Raises `WeightsError` where torch is not installed."""
        if self._device is None:
            try:
                self._device = self._open()
            except ModuleNotFoundError as error:
                what = f"This model needs {error.name}, which is not installed"
                raise WeightsError(what, "this Python environment", INSTALL_TORCH) from error
        return self._device


def emulated_card(card: str, card_class: str) -> tuple[CardIdentity, LazyDevice]:
    """An emulated card of the class: CPU tensors, limited to its scaled memory."""
    total = emulated_bytes(NOMINAL_BYTES[card_class])

    def open_device() -> Device:
        from pipeline.devices.emulated import EmulatedDevice

        return EmulatedDevice(total)

    identity = CardIdentity(card=card, card_class=card_class, kind="emulated")
    return identity, LazyDevice(total, int(total * EMULATED_USABLE_SHARE), "cpu", open_device)


def choose_gpu(card: str | None, accelerator_ids: Sequence[str] = ()) -> Gpu:
    """The GPU `card` (uuid), or the first one that this process may use; from then on CUDA sees no other.

    `accelerator_ids`: what Ray gave this process, which counts where Ray was told not to set `CUDA_VISIBLE_DEVICES`.
    To be called before CUDA is initialised. Raises `CardUnusableError`, which says why there is none.
    """
    if card is not None:
        os.environ[VISIBLE] = card
    elif accelerator_ids and env_flag(NOSET):
        os.environ[VISIBLE] = ",".join(accelerator_ids)
    # As NVML and Ray number them: CUDA by itself puts the fastest first.
    os.environ[ORDER] = "PCI_BUS_ID"
    found = survey_gpus()
    if not found.gpus:
        raise CardUnusableError(why_none(found), passes=True)
    gpu = found.gpus[0]
    # This process must never see, nor leave a context on, another card.
    os.environ[VISIBLE] = gpu.uuid
    _choose_allocator(gpu)
    return gpu


def _choose_allocator(gpu: Gpu) -> None:
    """Let torch's segments grow, where that works and nobody chose otherwise: weights and activations of several shapes
    leave rests between fixed ones that no later clip fits.

    Read by torch when CUDA is initialised. Fails on MIG slices, where torch asks NVML of the parent card
    (vllm-project/ci-infra#355), and under WSL, whose driver refuses the mappings (pytorch#192330). Tensors of growing
    segments cannot be shared with processes of another torch by CUDA IPC, which renderers do not do.
    """
    if any(name in os.environ for name in ALLOCATOR_VARIABLES) or gpu.uuid.startswith("MIG-") or _is_wsl():
        return
    os.environ[ALLOCATOR_VARIABLES[0]] = "expandable_segments:True"


def _is_wsl(release: Path = Path("/proc/sys/kernel/osrelease")) -> bool:
    try:
        return "microsoft" in release.read_text(encoding="ascii", errors="replace").lower()
    except OSError:
        return False


def why_none(found: GpuSurvey) -> Problem:
    """Why a process whose survey found no GPU has none, and what to do."""
    if found.problem is not None:
        return found.problem
    # A card off the bus has no uuid any more by which it could be the one that was named.
    if faults := found.faults or survey({}).faults:
        return faults[0].problem
    if found.hidden:
        return hidden(len(found.hidden), os.environ.get(VISIBLE, ""))
    return Problem(
        field="card",
        message="no NVIDIA GPU is visible here",
        remedy="Check `nvidia-smi`, or start with `--cards` to emulate cards",
    )


def env_flag(name: str) -> bool:
    """Whether an environment variable says yes, as Ray reads it."""
    return os.environ.get(name, "").lower() in ("1", "true")


def gpu_card(
    card: str | None, card_class: str, accelerator_ids: Sequence[str] = (), *, graphs: bool = False
) -> tuple[CardIdentity, LazyDevice]:
    """The GPU that `choose_gpu` chooses, not opened yet. Raises `CardUnusableError`.

    `graphs`: clips may record CUDA graphs, for which memory is kept.
    """
    gpu = choose_gpu(card, accelerator_ids)
    memory = Nvml()

    def open_device() -> Device:
        from pipeline.devices.cuda import CudaDevice

        return CudaDevice(uuid=gpu.uuid, memory=memory, graphs=graphs)

    def foreign_bytes() -> int:
        try:
            found = memory.memory(gpu.uuid)
        except UnknownMemoryError as error:
            log.warning("other programs on the card are not seen: %s", error)
            return 0
        return max(0, found.used_bytes - (found.own_bytes or 0))

    total = gpu.programs_bytes
    identity = CardIdentity(card=gpu.uuid, card_class=card_class, kind=gpu.name, capability=gpu.capability)
    usable = max(0, total - context_share(graphs=graphs) - margin(total))
    return identity, LazyDevice(total, usable, "cuda:0", open_device, foreign_bytes)


def cards_to_choose_from(card_class: str, accelerator_ids: Sequence[str] = ()) -> tuple[str, ...]:
    """Uuids of the cards of the class that nothing assigned to this process, one of which it has to claim.

    Empty where Ray or the environment gave it a card, or where it sees one card only.
    """
    if accelerator_ids:
        return ()
    gpus = find_gpus()
    alike = [gpu.uuid for gpu in gpus if card_class_of(gpu.total_bytes) == card_class]
    return tuple(alike or [gpu.uuid for gpu in gpus]) if len(gpus) > 1 else ()


def open_gpu(
    card: str | None,
    card_class: str,
    accelerator_ids: Sequence[str] = (),
    *,
    unnamed: str = "unknown",
    graphs: bool = False,
) -> tuple[CardIdentity, LazyDevice]:
    """The GPU that `choose_gpu` chooses, opened and tried where torch is there; an `UnusableDevice` where it fails.

    `unnamed`: what the card is called where even its uuid cannot be known. `graphs`: clips may record CUDA graphs.
    """
    identity = CardIdentity(card=card or unnamed, card_class=card_class, kind="unknown")
    try:
        identity, device = gpu_card(card, card_class, accelerator_ids, graphs=graphs)
        # The camera family needs no torch, and a renderer that has only that is a good one.
        if find_spec("torch"):
            from pipeline.devices.probe import try_card

            versions = Nvml().versions()
            try_card(identity.card, f"{identity.kind} {identity.card}", driver=versions[0], driver_cuda=versions[1])
            device.open()
    except CardUnusableError as error:
        return identity, UnusableDevice(error)
    except RuntimeError as error:
        # It worked a moment ago: another program may have taken what was left.
        problem, passes = cuda_problem(f"{identity.kind} {identity.card}", error)
        return identity, UnusableDevice(CardUnusableError(problem, passes=passes))
    return identity, device


class UnusableDevice(LazyDevice):
    """A card that this process cannot use: it has no memory, and whoever wants to work on it is told why."""

    def __init__(self, fault: CardUnusableError) -> None:
        super().__init__(0, 0, "cuda:0", self._refuse)
        #: What is wrong, and whether it may pass.
        self.fault = fault

    def _refuse(self) -> Device:
        raise self.fault
