"""From a family to a loaded model on a card."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.devices import Device
from pipeline.families import Family
from pipeline.models.model import Model, OnLoad
from pipeline.weights import (
    COMPONENT_FILES,
    NETWORKS,
    VARIANT,
    WeightsError,
    built_folder,
    cached_folder,
    check_components,
    weight_files,
    weights_root,
)

if TYPE_CHECKING:
    from pipeline.models.i2vgen_xl import Parts


def load_model(
    family: Family, device: Device, *, weights_dir: Path | None, home: Path, offline: bool, on_load: OnLoad
) -> Model:
    """Load `family` onto `device`, half precision on CUDA and float32 elsewhere.

    Weights come from `weights_dir` where given, else from the hub at the family's pinned revision, kept under
    `home`; a family without a repo is built there. Only safetensors are read and no code is fetched.

    Raises `WeightsError` where the weights cannot be had, `torch.OutOfMemoryError` where they do not fit.
    """
    if family.engine == "camera":
        from pipeline.models.camera import CameraModel

        return CameraModel()
    if family.engine == "i2vgen-xl":
        return _load_i2vgen_xl(family, device, weights_dir, home, offline, on_load)
    raise WeightsError(
        f"No engine {family.engine!r} renders the family {family.name!r}",
        "pipeline.models.loading",
        "Use a family of this version, or add its engine.",
    )


def _load_i2vgen_xl(
    family: Family, device: Device, weights_dir: Path | None, home: Path, offline: bool, on_load: OnLoad
) -> Model:
    try:
        import torch

        from pipeline.models.i2vgen_xl import I2VGenXL
    except ImportError as error:
        raise WeightsError(
            f"The model {family.name!r} needs {error.name}", "this Python environment", "Install clipmill[render]."
        ) from error

    if weights_dir is not None:
        folder, revision = weights_dir, f"local folder {weights_dir.name}"
    else:
        folder, revision = _fetch(family, home, offline, on_load), family.revision
    check_components(folder)
    cuda = device.torch_device.startswith("cuda")
    parts = _load_parts(folder, device, torch.float16 if cuda else torch.float32, on_load)
    return I2VGenXL(parts, device, {"family": family.name, "revision": revision, "repo": family.repo or ""})


def _fetch(family: Family, home: Path, offline: bool, on_load: OnLoad) -> Path:
    """The folder of the family's weights, downloaded or built if need be."""
    if family.repo is None:
        from pipeline.models.tiny import make_tiny

        folder = built_folder(family, home)
        if not folder.is_dir():
            on_load(f"making the random weights of {family.name}")
            make_tiny(folder)
        return folder

    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    where = f"{family.repo} at {family.revision[:12]}, cached in {weights_root(home)}"
    wanted = [f"{name}/*.json" for name in COMPONENT_FILES] + ["tokenizer/merges.txt"]
    wanted += [f"{name}/*.{VARIANT}.safetensors" for name in NETWORKS]
    if offline:
        try:
            check_components(cached_folder(family, home))
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


def _load_parts(folder: Path, device: Device, dtype: Any, on_load: OnLoad) -> Parts:
    """Load every component of `folder` and put the networks on the card, largest last."""
    from diffusers import AutoencoderKL, DDIMScheduler, I2VGenXLUNet
    from transformers import CLIPImageProcessorPil, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

    from pipeline.models.devices import place
    from pipeline.models.i2vgen_xl import Parts

    def network(name: str, load: Callable[..., Any], dtype_name: str) -> Any:
        on_load(f"loading {name}")
        variant = VARIANT if any(f".{VARIANT}." in file for file in weight_files(folder / name)) else None
        try:
            module, info = load(
                folder,
                subfolder=name,
                variant=variant,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                **{dtype_name: dtype},
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise WeightsError(
                f"The component {name!r} cannot be read: {error}",
                str(folder / name),
                "Fetch it again; the file is damaged or of another model.",
            ) from error
        # A library fills what a file lacks with random values and only warns.
        if missing := sorted(info["missing_keys"]):
            raise WeightsError(
                f"The component {name!r} lacks {len(missing)} weights, such as {missing[0]}",
                str(folder / name),
                "Fetch it again; the file is damaged or of another model.",
            )
        module.eval().requires_grad_(False)
        place(module, device)
        return module

    def plain(name: str, load: Callable[..., Any]) -> Any:
        return load(folder, subfolder=name, local_files_only=True)

    return Parts(
        tokenizer=plain("tokenizer", CLIPTokenizer.from_pretrained),
        feature_extractor=plain("feature_extractor", CLIPImageProcessorPil.from_pretrained),
        scheduler=plain("scheduler", DDIMScheduler.from_pretrained),
        text_encoder=network("text_encoder", CLIPTextModel.from_pretrained, "dtype"),
        image_encoder=network("image_encoder", CLIPVisionModelWithProjection.from_pretrained, "dtype"),
        vae=network("vae", AutoencoderKL.from_pretrained, "torch_dtype"),
        unet=network("unet", I2VGenXLUNet.from_pretrained, "torch_dtype"),
    )
