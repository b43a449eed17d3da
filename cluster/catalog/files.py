"""Files beside a manifest: read safely, never outside its folder."""

from __future__ import annotations

import difflib
import itertools
import os
import stat
import unicodedata
from pathlib import Path

from cluster.remote.urls import is_remote, scheme_of, shown
from pipeline.problems import BadInputError

MAX_IMAGE_BYTES = 200_000_000

_REMEDY = "Write the path of an image relative to the manifest's folder."
# A mistyped name is worth a look around, but not at a million files for each of many rows.
_MAX_LOOKED_AT = 2000


def _refusal(message: str, remedy: str = _REMEDY) -> BadInputError:
    return BadInputError("image", message, remedy)


def read_beside(root: Path, image: str) -> bytes:
    """Bytes of the regular file that `image` names, relative to `root` (a resolved folder) or absolute within it.

    A name is the file's in whatever Unicode form its accents are: catalogs have the one, disks the other. Links are
    followed first and judged by where they end. Raises `BadInputError` on the field `image` for a URI,
    a path that leaves `root`, and whatever is missing, unreadable, not a regular file or over `MAX_IMAGE_BYTES`.
    """
    if scheme := scheme_of(image):
        what = "are not fetched here" if is_remote(image) else "are not fetched; https, http, s3 and gs are"
        raise _refusal(
            f"pictures by {scheme[:20]}:// {what}: {shown(image)!r}",
            "Download it into the manifest's folder first and write its path.",
        )
    try:
        path = _as_on_disk(root, image).resolve()
        # Before anything is asked of the path: the answer must not tell what lies outside.
        if not path.is_relative_to(root):
            raise _refusal(f"{image!r} leaves the manifest's folder", "Put the image inside the manifest's folder.")
        return _read_regular(path, image)
    except (FileNotFoundError, NotADirectoryError):
        raise _refusal(f"there is no file {image!r} beside the manifest", _suggestion(root, image)) from None
    except PermissionError:
        raise _refusal(f"{image!r} may not be read", "Check its permissions.") from None
    except (OSError, RuntimeError, ValueError) as error:  # a circle of links, a name too long, a NUL
        if isinstance(error, BadInputError):
            raise
        raise _refusal(f"{image[:100]!r} cannot be read ({error.__class__.__name__})") from error


def _as_on_disk(root: Path, image: str) -> Path:
    """The path of `image` with each name in the Unicode form in which it is there; as written where none is."""
    whole = root / image
    if image.isascii() or whole.exists():
        return whole
    path = root
    for part in Path(image).parts:
        forms = (path / part, *(path / unicodedata.normalize(form, part) for form in ("NFC", "NFD")))
        path = next((form for form in forms if os.path.lexists(form)), None) or _as_listed(root, path, part)
    return path


def _as_listed(root: Path, folder: Path, name: str) -> Path:
    """The entry of `folder` that is `name` in a form of neither kind, such as half composed."""
    same = unicodedata.normalize("NFC", name)
    # Nothing outside of the catalog's folder is listed.
    if name.isascii() or not folder.resolve().is_relative_to(root):
        return folder / name
    try:
        with os.scandir(folder) as entries:
            found = [e.name for e in itertools.islice(entries, _MAX_LOOKED_AT)]
    except OSError:
        return folder / name
    return folder / next((one for one in found if unicodedata.normalize("NFC", one) == same), name)


def _read_regular(path: Path, image: str) -> bytes:
    # Looked at before it is opened: opening a device or a FIFO may already act or hang.
    mode = path.lstat().st_mode
    if stat.S_ISDIR(mode):
        raise _refusal(f"{image!r} is a folder")
    if not stat.S_ISREG(mode):
        raise _refusal(f"{image!r} is not a regular file")
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise _refusal(f"{image!r} is not a regular file")
        # By size first, then by what comes: a file may grow while it is read.
        content = b"" if status.st_size > MAX_IMAGE_BYTES else file.read(MAX_IMAGE_BYTES + 1)
        if status.st_size > MAX_IMAGE_BYTES or len(content) > MAX_IMAGE_BYTES:
            raise _refusal(f"{image!r} is larger than {MAX_IMAGE_BYTES // 1_000_000} MB", "Save it smaller.")
        return content


def _suggestion(root: Path, image: str) -> str:
    """A remedy that names the file that was probably meant, where there is one."""
    wanted = Path(image.replace("\\", "/"))
    folder = (root / wanted).parent.resolve()
    if not folder.is_relative_to(root):
        return _REMEDY
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in itertools.islice(entries, _MAX_LOOKED_AT)]
    except OSError:
        return f"The folder {str(wanted.parent)!r} is not there either: is the manifest in the right place?"
    by_folded = {name.casefold(): name for name in sorted(names)}
    by_stem = {Path(name).stem.casefold(): name for name in sorted(names)}
    near = by_folded.get(wanted.name.casefold()) or by_stem.get(wanted.stem.casefold())
    if near is None:
        close = difflib.get_close_matches(wanted.name.casefold(), by_folded, n=1)
        near = by_folded[close[0]] if close else None
    return f"Is {str(wanted.parent / near)!r} meant?" if near else _REMEDY
