"""Where a family's weights lie on this machine, and what is wrong where they do not. No torch here."""

from __future__ import annotations

from pathlib import Path

from pipeline.families import Family

_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


class WeightsError(RuntimeError):
    """Weights cannot be had: `what` is wrong, `where`, and the `remedy`."""

    def __init__(self, what: str, where: str, remedy: str) -> None:
        self.what, self.where, self.remedy = what, where, remedy
        super().__init__(f"{what} ({where}). {remedy}")

    def __reduce__(self) -> tuple[type[WeightsError], tuple[str, str, str]]:
        return type(self), (self.what, self.where, self.remedy)


def weights_root(home: Path) -> Path:
    """The folder under `home` that holds the weights of every family."""
    return home / "weights"


def built_folder(family: Family, home: Path) -> Path:
    """Where a family that is built at run time keeps its weights."""
    return weights_root(home) / f"{family.name}-{family.revision}"


def cached_folder(family: Family, home: Path) -> Path:
    """Where the hub's client keeps the family's pinned revision (its own cache layout)."""
    repo = f"models--{(family.repo or '').replace('/', '--')}"
    return weights_root(home) / repo / "snapshots" / family.revision


def weight_files(component: Path, family: Family) -> list[str]:
    """Names of the safetensors files of one network, the family's variant where there is one."""
    names = sorted(path.name for path in component.glob("*.safetensors"))
    if not family.variant:
        return names
    return [name for name in names if f".{family.variant}." in name] or names


def check_components(family: Family, folder: Path) -> None:
    """Raise `WeightsError` unless `folder` holds every component, its networks as safetensors."""
    if not folder.is_dir():
        raise WeightsError("There are no weights", str(folder), "Name a folder that holds the model's subfolders.")
    for component in family.components:
        place = folder / component.name
        if not any((place / name).is_file() for name in component.files):
            raise WeightsError(
                f"The component {component.name!r} is missing",
                f"looked for {place / component.files[0]}",
                "Copy the whole model, every subfolder of it; an interrupted download goes on when started again.",
            )
        if component.stage is not None and not weight_files(place, family):
            pickled = sorted(path.name for path in place.iterdir() if path.suffix in _PICKLES)
            what = f"The component {component.name!r} has no safetensors weights"
            remedy = "Fetch the safetensors files."
            if pickled:
                what += f", only pickles ({', '.join(pickled)})"
                remedy = "Pickles can run code and are never loaded; fetch or convert to safetensors."
            raise WeightsError(what, str(place), remedy)


def weights_present(family: Family, home: Path) -> bool:
    """Whether `family` can be loaded without network: nothing to fetch, or fetched already. Reads no weights."""
    if family.repo is None:
        return True
    try:
        check_components(family, cached_folder(family, home))
    except WeightsError:
        return False
    return True
