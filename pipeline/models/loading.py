"""From a family to a loaded model on a card."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pipeline.devices.protocol import Device
from pipeline.families import FAMILIES, Component, Family
from pipeline.families.licences import licence_problem, remembered_acceptances
from pipeline.kernels.kernels import KernelChoice
from pipeline.models.model import Model, OnLoad
from pipeline.units import GIB, format_bytes
from pipeline.weights.weights import (
    Here,
    WeightsError,
    WeightsManifest,
    built_folder,
    cached_folder,
    check_components,
    check_files,
    has_variant,
    index_digest,
    verify,
    weight_files,
    weights_presence,
    weights_root,
)

if TYPE_CHECKING:
    from pipeline.denoising.caches import TensorCache
    from pipeline.models.diffusion import DiffusionModel
    from pipeline.models.parts import Parts

#: Engine -> module and class; imported when a family of that engine is loaded.
_ENGINES = {
    "i2vgen-xl": ("pipeline.models.i2vgen_xl", "I2VGenXL"),
    "svd": ("pipeline.models.svd", "StableVideo"),
    "wan": ("pipeline.models.wan", "Wan"),
}


_AGAIN = "Fetch it again; the file is damaged or of another model."
#: A file may have a few tensors the library leaves out; more than this share of them is another model.
_MOST_UNKNOWN = 0.05
#: Progress of a fetch is told at every such share of the bytes.
_TOLD_EVERY = 0.1


def load_model(
    family: Family,
    device: Device,
    *,
    weights_dir: Path | None,
    home: Path,
    offline: bool,
    on_load: OnLoad,
    cache: TensorCache | None = None,
    mirror: str = "",
    accepted: frozenset[str] = frozenset(),
    adapters: Mapping[str, Path] = MappingProxyType({}),
    kernels: KernelChoice = KernelChoice.EAGER,
) -> Model:
    """Load `family` onto `device`, half precision on CUDA and float32 elsewhere.

    Weights come from `weights_dir` where given, else from the hub (or `mirror`, its address) at the family's pinned
    revision, kept under `home`; a family without a repo is built there. Only safetensors are read and no code is
    fetched. A folder with a manifest must be the pinned revision to the byte; one without is used and noted as
    unverified. `accepted`: families whose licence was accepted, besides those remembered under `home`. `adapters`:
    files that clips may name, by SHA-256. `kernels`: what its denoiser computes with.

    Raises `WeightsError` where the weights cannot be had or are not the family's, or its licence has not been
    accepted, `torch.OutOfMemoryError` where they do not fit.
    """
    if family.engine == "camera":
        from pipeline.models.camera import CameraModel

        return CameraModel()
    if problem := licence_problem(family, accepted | remembered_acceptances(FAMILIES.values(), home)):
        what = problem.message[:1].upper() + problem.message[1:]
        raise WeightsError(what, family.licence_url or family.name, problem.remedy)
    engine = engine_of(family)
    import torch

    folder = weights_dir if weights_dir is not None else _fetch(family, home, offline, on_load, mirror or None)
    check_components(family, folder)
    check_files(family, folder)
    manifest = verify(
        family, folder, home, on_start=lambda total: on_load(f"verifying {format_bytes(total)} of {family.name}")
    )
    origin = _origin(family, folder, manifest, local=weights_dir is not None)
    cuda = device.torch_device.startswith("cuda")
    parts = _load_parts(family, folder, getattr(torch, family.half) if cuda else torch.float32, on_load)
    model = engine(family, parts, device, origin, cache)
    model.hooks.adapters = adapters
    model.kernels.choice = kernels
    if weights_dir is not None and manifest is None:
        # Nobody vouches for its content: another file of the same name must not answer for this one.
        stats = [(str(path), path.stat()) for path in sorted(folder.rglob("*.safetensors"))]
        files = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
        model.conditioning.weights_name = hashlib.sha256(repr((model.weights, files)).encode()).hexdigest()
    return model


def engine_of(family: Family) -> Callable[..., DiffusionModel]:
    """The class that renders `family`: (family, parts, device, origin, cache) -> a model.

    Raises `WeightsError` for a family that has none here, or where its libraries are not installed.
    """
    if family.engine not in _ENGINES:
        raise WeightsError(
            f"No engine {family.engine!r} renders the family {family.name!r}",
            "pipeline.models.loading",
            "Use a family of this version, or add its engine.",
        )
    module, name = _ENGINES[family.engine]
    try:
        found: Callable[..., DiffusionModel] = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise WeightsError(
            f"The model {family.name!r} needs {error.name}", "this Python environment", "Install clipmill[render]."
        ) from error
    return found


def _origin(family: Family, folder: Path, manifest: WeightsManifest | None, *, local: bool) -> dict[str, str]:
    """What the provenance says of where the weights came from."""
    origin = {"family": family.name, "revision": family.revision, "repo": family.repo or ""}
    if local and manifest is None:
        # Nobody says which revision it is; the digest at least tells it from another.
        origin["revision"] = f"local folder {folder.name}, unverified"
        origin["index_sha256"] = index_digest(family, folder)
    return origin


def _fetch(family: Family, home: Path, offline: bool, on_load: OnLoad, mirror: str | None) -> Path:
    """The folder of the family's weights, downloaded or built if need be."""
    if family.repo is None:
        from pipeline.models.tiny import make_tiny

        folder = built_folder(family, home)
        if not folder.is_dir():
            on_load(f"making the random weights of {family.name}")
            make_tiny(family, folder)
        return folder

    from pipeline.weights.hub import pull, source_text

    folder = cached_folder(family, home)
    presence = weights_presence(family, home)
    if presence.here in (Here.PRESENT, Here.VERIFIED):
        return folder
    if offline:
        why = presence.problem or _told_bytes("only", presence.bytes_here, presence.bytes_total)
        raise WeightsError(
            f"The weights of {family.name!r} are not on this machine, and it is offline ({why})",
            f"{source_text(family, mirror)}, cached in {weights_root(home)}",
            f"Load the model once with a network, run `clipmill models pull {family.name}` there, "
            "or name a folder that holds it.",
        )
    on_load(f"fetching {family.repo}")
    return pull(family, home, endpoint=mirror, on_bytes=_Told(family, on_load), tell=on_load)


class _Told:
    """Tells `on_load` how far a fetch is, a few times in all."""

    def __init__(self, family: Family, on_load: OnLoad) -> None:
        self._family, self._on_load = family, on_load
        self._next = 0.0

    def __call__(self, done: int, total: int) -> None:
        if total and done / total >= self._next:
            self._on_load(_told_bytes(f"fetching {self._family.repo}:", done, total))
            self._next = done / total + _TOLD_EVERY


def _told_bytes(words: str, done: int, total: int) -> str:
    return f"{words} {done / GIB:.2f} of {total / GIB:.2f} GiB"


def _load_parts(family: Family, folder: Path, dtype: Any, on_load: OnLoad) -> Parts:
    """Load every component of `folder` into host memory."""
    import torch

    from pipeline.devices.emulated import off_card
    from pipeline.models.parts import Parts

    found: dict[str, Any] = {}
    # Constructors draw from the global generator what is overwritten a moment later; that is nobody's business.
    with off_card(), torch.random.fork_rng(devices=[]):
        for number, component in enumerate(family.components, start=1):
            size = sum((folder / component.name / file).stat().st_size for file in _files(family, component, folder))
            size_text = f", {format_bytes(size)}" if size else ""
            on_load(f"loading {component.name} ({number} of {len(family.components)}{size_text})")
            cls = getattr(importlib.import_module(component.library), component.cls)
            if component.stage is None:
                found[component.name] = _load_settings(component, cls, folder)
            else:
                wanted = torch.float32 if component.full_precision else dtype
                found[component.name] = _load_network(family, component, cls, folder, wanted)
    stages = {c.name: c.stage for c in family.components if c.stage is not None}
    return Parts(stages=stages, **found)


def _files(family: Family, component: Component, folder: Path) -> list[str]:
    return weight_files(folder / component.name, family) if component.stage else []


def _load_settings(component: Component, cls: Any, folder: Path) -> Any:
    try:
        return cls.from_pretrained(folder, subfolder=component.name, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _unreadable(component, folder / component.name, error) from error


def _load_network(family: Family, component: Component, cls: Any, folder: Path, dtype: Any) -> Any:
    place = folder / component.name
    try:
        module, info = cls.from_pretrained(
            folder,
            subfolder=component.name,
            variant=family.variant if has_variant(weight_files(place, family), family.variant) else None,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **{"dtype" if component.library == "transformers" else "torch_dtype": dtype},
        )
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise _unreadable(component, place, error) from error
    # A library fills what a file lacks, or has in another shape, with random values and only warns.
    for kind, words in (("mismatched_keys", "has {} weights of another shape"), ("missing_keys", "lacks {} weights")):
        if wrong := sorted(map(str, info.get(kind) or ())):
            what = f"The component {component.name!r} {words.format(len(wrong))}, such as {wrong[0]}"
            raise WeightsError(what, str(place), _AGAIN)
    unknown = sorted(info.get("unexpected_keys") or ())
    if len(unknown) > _MOST_UNKNOWN * len(module.state_dict()):
        what = f"The component {component.name!r} has {len(unknown)} weights too many, such as {unknown[0]}"
        raise WeightsError(what, str(place), "It is of another model; name the folder of the right one.")
    return module.eval().requires_grad_(False)


def _unreadable(component: Component, place: Path, error: Exception) -> WeightsError:
    # The libraries' messages run over pages; the first lines say which tensor.
    lines = [line for line in str(error).splitlines() if line.strip()][:4]
    return WeightsError(f"The component {component.name!r} cannot be read: {' '.join(lines)}", str(place), _AGAIN)
