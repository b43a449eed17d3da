"""What only its owner may read: folders and files that other users of a machine can neither open nor swap."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

#: Modes of what only its owner may read.
PRIVATE_FILE, PRIVATE_FOLDER = 0o600, 0o700
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class SwappedFileError(OSError):
    """A temporary file is not the one that was written: somebody else put another in its place."""


def private_folder(folder: Path) -> int | None:
    """Make `folder` one that only this user may enter, with the plain files directly in it; parents as usual.

    Returns the mode it had where rights were taken from others, None where it is new or was private. A folder of
    root's is left as it is, and so is everybody's for root. Raises `PermissionError` for another user's, and `OSError`.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=PRIVATE_FOLDER)
    except FileExistsError:
        pass
    else:
        return None
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = os.fstat(opened)
        mode = stat.S_IMODE(found.st_mode)
        if found.st_uid not in (os.geteuid(), 0) and os.geteuid() != 0:
            raise PermissionError(
                errno.EPERM, "it belongs to another user, who could read and swap all in it", str(folder)
            )
        if found.st_uid != os.geteuid() or not mode & _OTHERS:
            return None
        os.fchmod(opened, mode & ~_OTHERS)
        for name in os.listdir(opened):  # noqa: PTH208 - by the open folder
            # What another process, or NFS for one, deletes meanwhile needs no tightening.
            with suppress(FileNotFoundError):
                # Not through a link: it may lead to what others are meant to read.
                inside = os.stat(name, dir_fd=opened, follow_symlinks=False)
                if stat.S_ISREG(inside.st_mode) and inside.st_uid == found.st_uid and inside.st_mode & _OTHERS:
                    os.chmod(name, stat.S_IMODE(inside.st_mode) & ~_OTHERS, dir_fd=opened)
    finally:
        os.close(opened)
    return mode


def create_private(path: Path) -> None:
    """Create an empty file that only this user may read; does nothing where there is one. Raises `OSError`.

    One that is there is not even opened: to close it would drop all POSIX locks that this process has on it, those of a
    database that it has open.
    """
    with suppress(FileExistsError):
        # Where a link leads to nothing yet, what it leads to is made.
        made = os.open(os.path.realpath(path), os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, PRIVATE_FILE)
        os.close(made)


def write_private(path: Path, text: str) -> None:
    """Put a new file with this text in the place of `path`, readable by this user only. Raises `OSError`."""
    path.unlink(missing_ok=True)
    opened = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, PRIVATE_FILE)
    with os.fdopen(opened, "w", encoding="utf-8") as file:
        file.write(text)


class ScratchFolder:
    """A temporary folder of this user, open for as long as it is used; its files are reached through it only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)

    @contextmanager
    def opened(self, name: str) -> Iterator[tuple[Path, os.stat_result]]:
        """The plain file of this name in the folder, opened once: a path to the open file itself, and its facts.

        Whatever becomes of the name meanwhile, the path leads to the same file. Raises `SwappedFileError` where the
        name is a link, no plain file, or a file of another user or with another name; and `OSError`.
        """
        try:
            file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._opened)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise SwappedFileError(f"{self.path / name} has become a link; nothing is read through it") from error
            raise
        try:
            facts = os.fstat(file)
            if not stat.S_ISREG(facts.st_mode) or facts.st_uid != os.geteuid() or facts.st_nlink != 1:
                raise SwappedFileError(f"{self.path / name} is not the file that was written there")
            yield Path(f"/dev/fd/{file}"), facts
        finally:
            os.close(file)

    def close(self) -> None:
        """Let go of the folder."""
        os.close(self._opened)


@contextmanager
def scratch_folder(prefix: str, within: Path | None = None) -> Iterator[ScratchFolder]:
    """A new folder that only this user may enter, in `within` or where temporary files go; removed in the end.

    `within` is used where others can swap nothing in it: where it is this user's, and only theirs to write or sticky.
    """
    place = within if within is not None and _unswappable(within) else None
    with tempfile.TemporaryDirectory(prefix=prefix, dir=place, ignore_cleanup_errors=True) as folder:
        scratch = ScratchFolder(Path(folder))
        try:
            yield scratch
        finally:
            scratch.close()


def _unswappable(folder: Path) -> bool:
    try:
        found = folder.lstat()
    except OSError:
        return False
    alone = not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or found.st_mode & stat.S_ISVTX
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and bool(alone)
