"""From a family to a loaded model on a card."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.devices import Device
from pipeline.families import Component, Family
from pipeline.models.model import Model, OnLoad
from pipeline.weights import (
    WeightsError,
    built_folder,
    cached_folder,
    check_components,
    weight_files,
    weights_root,
)

if TYPE_CHECKING:
    from pipeline.caches import TensorCache
    from pipeline.models.diffusion import Parts

#: Engine -> module and class; imported when a family of that engine is loaded.
_ENGINES = {
    "i2vgen-xl": ("pipeline.models.i2vgen_xl", "I2VGenXL"),
    "svd": ("pipeline.models.svd", "StableVideo"),
    "wan": ("pipeline.models.wan", "Wan"),
}


def load_model(
    family: Family,
    device: Device,
    *,
    weights_dir: Path | None,
    home: Path,
    offline: bool,
    on_load: OnLoad,
    cache: TensorCache | None = None,
) -> Model:
    """Load `family` onto `device`, half precision on CUDA and float32 elsewhere.

    Weights come from `weights_dir` where given, else from the hub at the family's pinned revision, kept under
    `home`; a family without a repo is built there. Only safetensors are read and no code is fetched.

    Raises `WeightsError` where the weights cannot be had, `torch.OutOfMemoryError` where they do not fit.
    """
    if family.engine == "camera":
        from pipeline.models.camera import CameraModel

        return CameraModel()
    if family.engine not in _ENGINES:
        raise WeightsError(
            f"No engine {family.engine!r} renders the family {family.name!r}",
            "pipeline.models.loading",
            "Use a family of this version, or add its engine.",
        )
    module, name = _ENGINES[family.engine]
    try:
        import torch

        engine: Callable[..., Model] = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise WeightsError(
            f"The model {family.name!r} needs {error.name}", "this Python environment", "Install clipmill[render]."
        ) from error

    if weights_dir is not None:
        folder, revision = weights_dir, f"local folder {weights_dir.name}"
    else:
        folder, revision = _fetch(family, home, offline, on_load), family.revision
    check_components(family, folder)
    cuda = device.torch_device.startswith("cuda")
    parts = _load_parts(family, folder, getattr(torch, family.half) if cuda else torch.float32, on_load)
    origin = {"family": family.name, "revision": revision, "repo": family.repo or ""}
    return engine(family, parts, device, origin, cache)


def _fetch(family: Family, home: Path, offline: bool, on_load: OnLoad) -> Path:
    """The folder of the family's weights, downloaded or built if need be."""
    if family.repo is None:
        from pipeline.models.tiny import make_tiny

        folder = built_folder(family, home)
        if not folder.is_dir():
            on_load(f"making the random weights of {family.name}")
            make_tiny(family, folder)
        return folder

    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    where = f"{family.repo} at {family.revision[:12]}, cached in {weights_root(home)}"
    infix = f".{family.variant}" if family.variant else ""
    wanted = [f"{c.name}/*.json" for c in family.components] + ["tokenizer/*.txt", "tokenizer/*.model"]
    wanted += [f"{c.name}/*{infix}*.safetensors" for c in family.components if c.stage]
    if offline:
        try:
            check_components(family, cached_folder(family, home))
        except WeightsError as error:
            raise WeightsError(
                f"The weights of {family.name!r} are not on this machine, and it is offline ({error.what})",
                where,
                "Load the model once with a network, or name a folder that holds it.",
            ) from error
        return cached_folder(family, home)
    on_load(f"fetching {family.repo}")
    try:
        snapshot = snapshot_download(
            family.repo, revision=family.revision, cache_dir=weights_root(home), allow_patterns=wanted
        )
    except (OSError, HfHubHTTPError, ValueError) as error:
        raise WeightsError(
            f"The weights of {family.name!r} could not be fetched: {type(error).__name__}: {error}",
            where,
            "Check the network, its proxy and the disk's free space, or name a folder that holds the model.",
        ) from error
    return Path(snapshot)


def _load_parts(family: Family, folder: Path, dtype: Any, on_load: OnLoad) -> Parts:
    """Load every component of `folder` into host memory."""
    import torch

    from pipeline.models.devices import off_card
    from pipeline.models.diffusion import Parts

    found: dict[str, Any] = {}
    with off_card():
        for number, component in enumerate(family.components, start=1):
            on_load(f"loading {component.name} ({number} of {len(family.components)})")
            cls = getattr(importlib.import_module(component.library), component.cls)
            if component.stage is None:
                found[component.name] = cls.from_pretrained(folder, subfolder=component.name, local_files_only=True)
            else:
                wanted = torch.float32 if component.full_precision else dtype
                found[component.name] = _load_network(family, component, cls, folder, wanted)
    stages = {c.name: c.stage for c in family.components if c.stage is not None}
    return Parts(stages=stages, **found)


def _load_network(family: Family, component: Component, cls: Any, folder: Path, dtype: Any) -> Any:
    place = folder / component.name
    variant = family.variant if any(f".{family.variant}." in file for file in weight_files(place, family)) else None
    try:
        module, info = cls.from_pretrained(
            folder,
            subfolder=component.name,
            variant=variant,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **{"dtype" if component.library == "transformers" else "torch_dtype": dtype},
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise WeightsError(
            f"The component {component.name!r} cannot be read: {error}",
            str(place),
            "Fetch it again; the file is damaged or of another model.",
        ) from error
    # A library fills what a file lacks with random values and only warns.
    if missing := sorted(info["missing_keys"]):
        raise WeightsError(
            f"The component {component.name!r} lacks {len(missing)} weights, such as {missing[0]}",
            str(place),
            "Fetch it again; the file is damaged or of another model.",
        )
    return module.eval().requires_grad_(False)
