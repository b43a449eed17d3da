"""Where a family's weights lie on this machine, which they are, and what is wrong with them. No torch here."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.families import Component, Family

#: Lies in a folder of weights and says which they are.
MANIFEST = "clipmill.json"
#: Settings, vocabularies and indices: all of a component but its weights.
SMALL_SUFFIXES = (".json", ".txt", ".model")

_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_PLAIN = re.compile(r"[^.]+?(-\d+-of-\d+)?\.safetensors")
_SHARD_INDEX = re.compile(r"\.safetensors\.index(\.(?P<variant>[^.]+))?\.json$")
_MAX_HEADER_BYTES = 100_000_000
_AGAIN = "Fetch it again; the file is damaged or of another model."


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
    """Where the family's pinned revision lies, in the layout of the hub's own client."""
    return _repo_folder(family, home) / "snapshots" / family.revision


def partial_folder(family: Family, home: Path) -> Path:
    """What a fetch that has not ended has so far: beginnings of files, and `listing.json` with path -> bytes."""
    return _repo_folder(family, home) / "partial" / family.revision


def set_aside_path(family: Family, home: Path, name: str) -> Path:
    """A free name for a file that is not as the hub says and that clipmill did not fetch: it is kept, not deleted."""
    folder = _repo_folder(family, home) / "set-aside" / family.revision
    numbers = itertools.count(2)
    path = folder / name
    while os.path.lexists(path):
        path = folder / f"{name}.{next(numbers)}"
    return path


def _repo_folder(family: Family, home: Path) -> Path:
    return weights_root(home) / f"models--{(family.repo or '').replace('/', '--')}"


# --- what a folder must hold ----------------------------------------------------------------------


def chosen_weights(names: Iterable[str], variant: str) -> list[str]:
    """The safetensors among a component's file names: the variant's where there are any, else those of no variant."""
    found = sorted(name for name in names if name.endswith(".safetensors"))
    tagged = [name for name in found if variant and re.search(rf"\.{re.escape(variant)}[.-]", name)]
    return tagged or [name for name in found if _PLAIN.fullmatch(name)] or found


def has_variant(names: Iterable[str], variant: str) -> bool:
    """Whether weights of the variant are among the names."""
    return bool(variant) and any(re.search(rf"\.{re.escape(variant)}[.-]", name) for name in names)


def weight_files(component: Path, family: Family) -> list[str]:
    """Names of the safetensors files of one network, the family's variant where there is one."""
    return chosen_weights((path.name for path in component.glob("*.safetensors")), family.variant)


def wanted_files(family: Family, names: Iterable[str]) -> list[str]:
    """The paths of a repository that `family` needs: `component/file`, never deeper, never a pickle."""
    inside: dict[str, list[str]] = {component.name: [] for component in family.components}
    for name in names:
        folder, _, file = name.partition("/")
        if folder in inside and file and "/" not in file:
            inside[folder].append(file)
    wanted = []
    for component in family.components:
        files = inside[component.name]
        weights = chosen_weights(files, family.variant) if component.stage else []
        variant = family.variant if has_variant(weights, family.variant) else None
        for file in files:
            index = _SHARD_INDEX.search(file)
            if (file.endswith(SMALL_SUFFIXES) and (index is None or index["variant"] == variant)) or file in weights:
                wanted.append(f"{component.name}/{file}")
    return sorted(wanted)


def check_components(family: Family, folder: Path) -> None:
    """Raise `WeightsError` unless `folder` holds every component, its networks as safetensors, with all shards."""
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
        if component.stage is None:
            continue
        weights = weight_files(place, family)
        if not weights:
            pickled = sorted(path.name for path in place.iterdir() if path.suffix in _PICKLES)
            what = f"The component {component.name!r} has no safetensors weights"
            remedy = "Fetch the safetensors files."
            if pickled:
                what += f", only pickles ({', '.join(pickled)})"
                remedy = "Pickles can run code and are never loaded; fetch or convert to safetensors."
            raise WeightsError(what, str(place), remedy)
        _check_shards(family, component, place, weights)


def _check_shards(family: Family, component: Component, place: Path, weights: list[str]) -> None:
    variant = family.variant if has_variant(weights, family.variant) else None
    for path in sorted(place.iterdir()):
        index = _SHARD_INDEX.search(path.name)
        if index is None or index["variant"] != variant:
            continue
        try:
            named = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            what = f"The component {component.name!r} cannot be read: {path.name} is no index of shards"
            raise WeightsError(what, str(path), _AGAIN) from error
        # An index may only name its neighbours.
        if gone := [name for name in named if not isinstance(name, str) or "/" in name or name not in weights]:
            what = f"The component {component.name!r} lacks {len(gone)} of {len(named)} shards, such as {gone[0]}"
            remedy = "Copy every file the index names; an interrupted download goes on when started again."
            raise WeightsError(what, str(path), remedy)


def check_files(family: Family, folder: Path) -> None:
    """Raise `WeightsError` where a safetensors file of `folder` is cut off or is none. Reads headers only."""
    for component in family.components:
        if component.stage is None:
            continue
        place = folder / component.name
        for name in weight_files(place, family):
            try:
                _read_header(place / name)
            except (OSError, ValueError) as error:
                what = f"The component {component.name!r} cannot be read: {name} {error}"
                raise WeightsError(what, str(place / name), _AGAIN) from error


def _read_header(path: Path) -> bytes:
    """The JSON header of a safetensors file, whose length is checked against it. Raises `ValueError`.

    Format: 8 bytes of header length (little endian), the header, the tensors
    (https://huggingface.co/docs/safetensors/index#format).
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= _MAX_HEADER_BYTES:
            raise ValueError("is no safetensors file")
        if size < 8 + length:
            raise ValueError(f"is cut off: it has {size} bytes, its header alone {8 + length}")
        header = file.read(length)
    try:
        entries = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
        end = max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
    except (ValueError, AttributeError, KeyError, TypeError, IndexError) as error:
        raise ValueError("is no safetensors file") from error
    if size != 8 + length + end:
        raise ValueError(f"is cut off: it has {size} of {8 + length + end} bytes")
    return header


def index_digest(family: Family, folder: Path) -> str:
    """SHA-256 that tells one set of weights from another without reading tensors.

    Over every component's settings, and the names, shapes and sizes in its weights' headers: the same for a copy,
    another for another architecture or precision; not for other values of the same shapes.
    """
    digest = hashlib.sha256()
    for component in family.components:
        place = folder / component.name
        weights = weight_files(place, family) if component.stage else []
        for path in sorted(place.iterdir()):
            if path.name in weights:
                content = _read_header(path)
            elif path.name.endswith(SMALL_SUFFIXES):
                content = path.read_bytes()
            else:
                continue
            digest.update(f"{component.name}/{path.name}\0{len(content)}\0".encode())
            digest.update(content)
    return digest.hexdigest()


# --- which weights they are -----------------------------------------------------------------------


class FileFacts(BaseModel):
    """One file of a folder of weights."""

    model_config = ConfigDict(frozen=True)

    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class WeightsManifest(BaseModel):
    """What `clipmill.json` says of the folder it lies in."""

    model_config = ConfigDict(frozen=True)

    version: int = 1
    family: str
    repo: str
    revision: str
    #: By path inside the folder.
    files: dict[str, FileFacts]

    def write(self, folder: Path) -> None:
        """Put it into `folder`, whole or not at all."""
        _write_whole(folder / MANIFEST, self.model_dump_json(indent=2) + "\n")


def read_manifest(folder: Path) -> WeightsManifest | None:
    """The manifest of a folder; None where it has none. Raises `WeightsError` for one that cannot be read."""
    path = folder / MANIFEST
    try:
        return WeightsManifest.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        remedy = "Fetch the weights again, or delete this file: they are then used as unverified ones."
        raise WeightsError("The weights' manifest cannot be read", str(path), remedy) from error


def check_pin(family: Family, folder: Path) -> WeightsManifest | None:
    """The manifest of `folder`, after comparing it with the family's pin and with the sizes of the files.

    None where the folder has none. Raises `WeightsError` naming both revisions, or the file that differs.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return None
    here, pinned = (manifest.repo, manifest.revision), (family.repo or "", family.revision)
    if here != pinned:
        raise WeightsError(
            f"These weights are {' at '.join(filter(None, here))}, "
            f"but {family.name!r} is pinned to {' at '.join(filter(None, pinned))}",
            str(folder / MANIFEST),
            f"Fetch the pinned revision with `clipmill models pull {family.name}`, or name its folder.",
        )
    for name, facts in manifest.files.items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size != facts.size:
            found = "is missing" if size is None else f"has {size} bytes, not {facts.size}"
            raise WeightsError(f"The file {name} {found}", str(folder), _pull_again(family))
    for component in family.components:
        for file in weight_files(folder / component.name, family) if component.stage else ():
            if f"{component.name}/{file}" not in manifest.files:
                what = f"The file {component.name}/{file} is not among those its manifest names"
                raise WeightsError(what, str(folder), "Remove it: it is not of the pinned revision.")
    return manifest


#: Called with (bytes done, bytes in all).
OnBytes = Callable[[int, int], None]


def verify(
    family: Family,
    folder: Path,
    home: Path,
    *,
    anew: bool = False,
    on_bytes: OnBytes = lambda _done, _total: None,
    on_start: Callable[[int], None] = lambda _total: None,
) -> WeightsManifest | None:
    """Compare the SHA-256 of every file in the manifest of `folder`; None where it has no manifest.

    What was compared before, here and in this state (size and time of change of every file), is not read again unless
    `anew`. `on_start` is told the bytes to read. Raises `WeightsError` naming the file that differs.
    """
    manifest = check_pin(family, folder)
    if manifest is None or (not anew and is_verified(manifest, folder, home)):
        return manifest
    state = _state(manifest, folder)
    total = sum(facts.size for facts in manifest.files.values())
    on_start(total)
    done = 0
    for name, facts in manifest.files.items():
        with (folder / name).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != facts.sha256:
            what = f"The file {name} is not the one that was fetched: SHA-256 {found[:16]}…, not {facts.sha256[:16]}…"
            raise WeightsError(what, str(folder), _pull_again(family))
        done += facts.size
        on_bytes(done, total)
    _remember(state, folder, home)
    return manifest


def record_verified(manifest: WeightsManifest, folder: Path, home: Path) -> None:
    """Note that the files of `folder`, as they are, were compared with `manifest`."""
    _remember(_state(manifest, folder), folder, home)


def _remember(state: dict[str, Any], folder: Path, home: Path) -> None:
    # A home that cannot be written only costs the reading next time.
    with suppress(OSError):
        record = _record(folder, home)
        record.parent.mkdir(parents=True, exist_ok=True)
        _write_whole(record, json.dumps(state))


def is_verified(manifest: WeightsManifest, folder: Path, home: Path) -> bool:
    """Whether `verify` has read the files of `folder` as they are now."""
    try:
        known = json.loads(_record(folder, home).read_text(encoding="utf-8"))
        return bool(known == _state(manifest, folder))
    except (OSError, ValueError):
        return False


def _state(manifest: WeightsManifest, folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = {}
    for name, facts in manifest.files.items():
        stat = (folder / name).stat()
        state[name] = [facts.sha256, stat.st_size, stat.st_mtime_ns]
    return state


def as_verified(folder: Path, home: Path, name: str) -> bool:
    """Whether the file `name` has the size and time that it had when it was verified: nobody has edited it since."""
    try:
        known = json.loads(_record(folder, home).read_text(encoding="utf-8"))
        status = (folder / name).lstat()
        return bool(known[name][1:] == [status.st_size, status.st_mtime_ns])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _record(folder: Path, home: Path) -> Path:
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]
    return weights_root(home) / ".verified" / f"{name}.json"


def _pull_again(family: Family) -> str:
    if family.repo:
        return f"`clipmill models pull {family.name}` fetches what is wrong or missing, and nothing else."
    return "Delete the folder; it is made again."


def _write_whole(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


# --- what is here ---------------------------------------------------------------------------------


class Here(StrEnum):
    """How far the weights of a family are on this machine."""

    #: Nothing to fetch: without weights, or made here when needed.
    NOT_NEEDED = "nothing to fetch"
    ABSENT = "no"
    PARTIAL = "in part"
    #: All files, with their sizes; their content was not compared, or there is nothing to compare it with.
    PRESENT = "yes"
    #: All files, and their content was compared with the hub's checksums.
    VERIFIED = "verified"
    DAMAGED = "damaged"


@dataclass(frozen=True, kw_only=True)
class Presence:
    """What there is of a family's weights, in the place where fetched ones lie."""

    here: Here
    #: Bytes on the disk, and bytes of the whole; both 0 where that is not known.
    bytes_here: int = 0
    bytes_total: int = 0
    #: What is wrong with damaged ones.
    problem: str = ""


def weights_presence(family: Family, home: Path) -> Presence:
    """What there is of a family's weights. Reads no tensors."""
    if family.repo is None:
        return Presence(here=Here.NOT_NEEDED)
    folder = cached_folder(family, home)
    if listing := read_listing(family, home):
        return Presence(
            here=Here.PARTIAL,
            bytes_here=sum(fetched_bytes(family, home, name, size) for name, size in listing.items()),
            bytes_total=sum(listing.values()),
        )
    if not folder.is_dir():
        return Presence(here=Here.ABSENT)
    try:
        manifest = check_pin(family, folder)
        check_components(family, folder)
    except WeightsError as error:
        return Presence(here=Here.DAMAGED, problem=str(error))
    if manifest is None:
        return Presence(here=Here.PRESENT)
    total = sum(facts.size for facts in manifest.files.values())
    here = Here.VERIFIED if is_verified(manifest, folder, home) else Here.PRESENT
    return Presence(here=here, bytes_here=total, bytes_total=total)


def weights_present(family: Family, home: Path) -> bool:
    """Whether `family` can be loaded without network: nothing to fetch, or fetched already. Reads no weights."""
    return weights_presence(family, home).here in (Here.NOT_NEEDED, Here.PRESENT, Here.VERIFIED)


def read_listing(family: Family, home: Path) -> dict[str, int]:
    """Path -> bytes of a fetch that was begun and has not ended; empty where there is none."""
    try:
        found = json.loads((partial_folder(family, home) / "listing.json").read_text(encoding="utf-8"))
        return {str(name): int(size) for name, size in found.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def write_listing(family: Family, home: Path, listing: dict[str, int]) -> None:
    """Begin a fetch: from here on the family counts as fetched in part."""
    folder = partial_folder(family, home)
    folder.mkdir(parents=True, exist_ok=True)
    _write_whole(folder / "listing.json", json.dumps(listing))


def part_file(family: Family, home: Path, name: str) -> Path:
    """Where the beginning of a file lies until it is whole."""
    return partial_folder(family, home) / f"{name}.part"


def fetched_bytes(family: Family, home: Path, name: str, size: int) -> int:
    """How many of a file's `size` bytes are here, whole or as a beginning."""
    with suppress(OSError):
        if (cached_folder(family, home) / name).stat().st_size == size:
            return size
    with suppress(OSError):
        return min(size, part_file(family, home, name).stat().st_size)
    return 0
