"""Which NVIDIA cards this process may use, by the driver: whole ones and MIG slices, and what keeps others from use.

No torch here. Cards are in PCI order, as `nvidia-smi` shows them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pynvml

from pipeline.devices.readiness import memory_untold, no_slices, nvml_problem, nvml_unavailable
from pipeline.problems import Problem

#: Says to CUDA which cards a process sees.
VISIBLE = "CUDA_VISIBLE_DEVICES"
#: Says to CUDA how cards are numbered; without `PCI_BUS_ID` by speed, which neither NVML nor Ray does.
ORDER = "CUDA_DEVICE_ORDER"


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU, or a MIG slice of one, as the driver reports it."""

    #: `GPU-…` or `MIG-…`.
    uuid: str
    name: str
    #: The figure that `nvidia-smi` shows: the driver's own part is in it.
    total_bytes: int
    free_bytes: int
    #: What programs can have of it in all.
    programs_bytes: int
    #: Compute capability, such as (8, 9); None where the driver does not say.
    capability: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class GpuFault:
    """A card that is there and cannot be used."""

    #: The card's uuid, or its place on the bus where even that is not told.
    card: str
    problem: Problem


@dataclass(frozen=True, kw_only=True)
class GpuSurvey:
    """All that the driver says of this machine's cards."""

    #: Cards that this process may use, in the order in which CUDA numbers them for it.
    gpus: tuple[Gpu, ...] = ()
    #: Cards that this process may use and cannot.
    faults: tuple[GpuFault, ...] = ()
    #: Cards that `CUDA_VISIBLE_DEVICES` hides.
    hidden: tuple[Gpu, ...] = ()
    #: Why nothing is known; None where the driver answers.
    problem: Problem | None = None


@dataclass(frozen=True, kw_only=True)
class _Place:
    """One card on the bus: its uuid, its slices where it is cut up, or what is wrong with it."""

    uuid: str
    parts: tuple[Gpu | GpuFault, ...]


def survey(environ: Mapping[str, str], driver: Any = pynvml) -> GpuSurvey:
    """The cards that a process with `environ` may use. Never raises: what is wrong with a card is told beside it.

    `driver`: a module with the functions of `pynvml`.
    """
    try:
        driver.nvmlInit()
    except (driver.NVMLError, OSError) as error:
        return GpuSurvey(problem=nvml_unavailable(error))
    try:
        places = [_place(driver, index) for index in range(driver.nvmlDeviceGetCount())]
    except driver.NVMLError as error:
        return GpuSurvey(problem=nvml_unavailable(error))
    finally:
        with suppress(driver.NVMLError):
            driver.nvmlShutdown()
    every = [part for place in places for part in place.parts]
    seen = visible(places, environ.get(VISIBLE))
    return GpuSurvey(
        gpus=tuple(part for part in seen if isinstance(part, Gpu)),
        faults=tuple(part for part in seen if isinstance(part, GpuFault)),
        hidden=tuple(part for part in every if isinstance(part, Gpu) and part not in seen),
    )


def visible(places: Sequence[_Place], value: str | None) -> list[Gpu | GpuFault]:
    """The cards that `CUDA_VISIBLE_DEVICES` with this value shows, in its order; all where it is not set.

    As CUDA reads it: indexes, or uuids that may be cut short; the first entry that names no card, or one again, ends
    the list. An index means the card `nvidia-smi` shows under it, of a card in slices the first.
    """
    if value is None:
        return [part for place in places for part in place.parts]
    found: list[Gpu | GpuFault] = []
    for entry in value.split(","):
        part = _named(entry.strip(), places)
        if part is None or part in found:
            break
        found.append(part)
    return found


def _named(entry: str, places: Sequence[_Place]) -> Gpu | GpuFault | None:
    if entry.isdigit():
        return places[int(entry)].parts[0] if int(entry) < len(places) else None
    if not entry.startswith(("GPU-", "MIG-")):
        return None
    parts = [part for place in places for part in place.parts if _id(part).startswith(entry)]
    if not parts:
        # The card by its own uuid, which its slices do not have.
        parts = [place.parts[0] for place in places if place.uuid.startswith(entry)]
    return parts[0] if len(parts) == 1 else None


def _id(part: Gpu | GpuFault) -> str:
    return part.uuid if isinstance(part, Gpu) else part.card


def _place(driver: Any, index: int) -> _Place:
    uuid = f"card {index} on the bus"
    try:
        handle = driver.nvmlDeviceGetHandleByIndex(index)
        uuid = text(driver.nvmlDeviceGetUUID(handle))
        if _is_cut_up(driver, handle):
            slices = tuple(_part(driver, part, f"a slice of {uuid}") for part in _slices(driver, handle))
            return _Place(uuid=uuid, parts=slices or (GpuFault(card=uuid, problem=no_slices(uuid)),))
    except driver.NVMLError as error:
        return _Place(uuid=uuid, parts=(GpuFault(card=uuid, problem=nvml_problem(uuid, error)),))
    return _Place(uuid=uuid, parts=(_part(driver, handle, uuid),))


def _is_cut_up(driver: Any, handle: Any) -> bool:
    try:
        return bool(driver.nvmlDeviceGetMigMode(handle)[0])
    except driver.NVMLError:
        # Most cards cannot be, and old drivers do not know.
        return False


def _slices(driver: Any, handle: Any) -> Iterator[Any]:
    for index in range(driver.nvmlDeviceGetMaxMigDeviceCount(handle)):
        # Indexes have gaps, and a container is shown its own slices only.
        with suppress(driver.NVMLError):
            yield driver.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)


def _part(driver: Any, handle: Any, card: str) -> Gpu | GpuFault:
    name = ""
    try:
        card = text(driver.nvmlDeviceGetUUID(handle))
        name = text(driver.nvmlDeviceGetName(handle))
        total, free, programs = memory_of(driver, handle)
        return Gpu(
            uuid=card,
            name=name,
            total_bytes=total,
            free_bytes=free,
            programs_bytes=programs,
            capability=_capability(driver, handle),
        )
    except driver.NVMLError as error:
        # Once its name is known, only its memory can be what is not supported.
        if name and error.value == pynvml.NVML_ERROR_NOT_SUPPORTED:
            return GpuFault(card=card, problem=memory_untold(name))
        return GpuFault(card=card, problem=nvml_problem(f"{name} {card}".strip(), error))


def _capability(driver: Any, handle: Any) -> tuple[int, int] | None:
    try:
        major, minor = driver.nvmlDeviceGetCudaComputeCapability(handle)
    except driver.NVMLError:
        return None
    return int(major), int(minor)


def memory_of(driver: Any, handle: Any) -> tuple[int, int, int]:
    """(total, free, what programs can have in all) of a card, in bytes. Raises `NVMLError`."""
    try:
        found = driver.nvmlDeviceGetMemoryInfo(handle, version=driver.nvmlMemory_v2)
        return int(found.total), int(found.free), int(found.total) - int(found.reserved)
    except driver.NVMLError:
        # Drivers before 510: the first version counts the driver's own part as used.
        found = driver.nvmlDeviceGetMemoryInfo(handle)
        return int(found.total), int(found.free), int(found.total)


def text(value: str | bytes) -> str:
    """What NVML answers, as text: older bindings give bytes."""
    return value.decode() if isinstance(value, bytes) else value
