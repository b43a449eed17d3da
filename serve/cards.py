"""The cards of this machine: found, named, and claimed by one renderer each."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pynvml

from cluster.cards import NOMINAL_BYTES, card_class_of
from pipeline.admission import Observation, margin
from pipeline.devices import Device
from pipeline.emulation import emulated_bytes
from pipeline.footprint import cuda_model
from pipeline.nvml import Nvml, UnknownMemoryError
from pipeline.weights import WeightsError
from serve.flight import CardIdentity
from serve.settings import EMULATED_USABLE_SHARE

log = logging.getLogger("clipmill.cards")

#: What to do where a model that needs torch is asked for on an installation without it.
INSTALL_TORCH = "Install it: pip install 'clipmill[render]' -c constraints.txt; `--model camera` needs none."


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU as the driver reports it."""

    uuid: str
    name: str
    total_bytes: int
    free_bytes: int

    @property
    def card_class(self) -> str | None:
        """Its card class; None where it is smaller than the smallest."""
        return card_class_of(self.total_bytes)


def find_gpus() -> list[Gpu]:
    """The NVIDIA GPUs of this machine, by NVML; empty where there is no driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        return [_gpu(pynvml.nvmlDeviceGetHandleByIndex(i)) for i in range(pynvml.nvmlDeviceGetCount())]
    finally:
        pynvml.nvmlShutdown()


def _gpu(handle: object) -> Gpu:
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return Gpu(
        uuid=_text(pynvml.nvmlDeviceGetUUID(handle)),
        name=_text(pynvml.nvmlDeviceGetName(handle)),
        total_bytes=int(memory.total),
        free_bytes=int(memory.free),
    )


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


class CardsTakenError(RuntimeError):
    """Every card of the class is held by another renderer."""


def claim(cards: Iterable[str], folder: Path) -> tuple[str, IO[str]]:
    """Take one of `cards` for this process; returns its id and the open lock, which dies with the process.

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
        """`usable_bytes`: with nobody else on the card; `foreign_bytes`: what others hold while it is not open."""
        self.total_bytes = total_bytes
        self.torch_device = torch_device
        self._usable_bytes = usable_bytes
        self._open = open_device
        self._foreign_bytes = foreign_bytes
        self._device: Device | None = None

    def usable_bytes(self) -> int:
        """As measured once the card is open, before that the part that is safe to count on beside other programs."""
        return self._device.usable_bytes() if self._device else max(0, self._usable_bytes - self._foreign_bytes())

    @property
    def foreign_bytes(self) -> int:
        """Bytes that other programs hold on the card."""
        return self._device.foreign_bytes if self._device else self._foreign_bytes()

    def observe(self, observation: Observation) -> None:
        """Learn from a clip's peak."""
        if self._device:
            self._device.observe(observation)

    def used_bytes(self) -> int:
        """Live bytes of this process."""
        return self._device.used_bytes() if self._device else 0

    def peak_bytes(self) -> int:
        """Highest `used_bytes` since `reset_peak`."""
        return self._device.peak_bytes() if self._device else 0

    def reset_peak(self) -> None:
        """Forget the peak."""
        if self._device:
            self._device.reset_peak()

    def free_cached(self) -> None:
        """Give cached memory back."""
        if self._device:
            self._device.free_cached()

    def work(self) -> AbstractContextManager[None]:
        """Open the card if need be, and count this thread's allocations against it.

        Raises `WeightsError` where torch is not installed.
        """
        if self._device is None:
            try:
                self._device = self._open()
            except ModuleNotFoundError as error:
                what = f"This model needs {error.name}, which is not installed"
                raise WeightsError(what, "this Python environment", INSTALL_TORCH) from error
        return self._device.work()


def emulated_card(card: str, card_class: str) -> tuple[CardIdentity, Device]:
    """A card of memory-limited CPU tensors."""
    total = emulated_bytes(NOMINAL_BYTES[card_class])

    def open_device() -> Device:
        from pipeline.models.devices import EmulatedDevice

        return EmulatedDevice(total)

    identity = CardIdentity(card=card, card_class=card_class, kind="emulated")
    return identity, LazyDevice(total, int(total * EMULATED_USABLE_SHARE), "cpu", open_device)


def gpu_card(card: str | None, card_class: str) -> tuple[CardIdentity, Device]:
    """The GPU `card` (uuid), or the first one visible to this process."""
    if card is not None:
        # Before torch is imported: this process must never see, nor leave a context on, another card.
        os.environ["CUDA_VISIBLE_DEVICES"] = card
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0]
    gpus = find_gpus()
    if not gpus:
        raise RuntimeError(
            "no NVIDIA GPU is visible here: check `nvidia-smi`, or start with `--cards` to emulate cards"
        )
    by_index = {str(i): gpu for i, gpu in enumerate(gpus)}
    gpu = next((g for g in gpus if visible and g.uuid.startswith(visible)), by_index.get(visible, gpus[0]))

    uuid = visible if visible.startswith("MIG-") else gpu.uuid
    memory = Nvml()

    def open_device() -> Device:
        from pipeline.models.devices import CudaDevice

        return CudaDevice(uuid=uuid, memory=memory)

    def foreign_bytes() -> int:
        try:
            found = memory.memory(uuid)
        except UnknownMemoryError as error:
            log.warning("other programs on the card are not seen: %s", error)
            return 0
        return max(0, found.used_bytes - (found.own_bytes or 0))

    total = gpu.total_bytes
    with suppress(UnknownMemoryError):
        total = memory.memory(uuid).total_bytes
    identity = CardIdentity(card=gpu.uuid, card_class=card_class, kind=gpu.name)
    usable = max(0, total - cuda_model().context_bytes - margin(total))
    return identity, LazyDevice(total, usable, "cuda:0", open_device, foreign_bytes)
