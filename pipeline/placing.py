"""Files put into folders that people use too: under a free name, or in place of what is known to be ours.

Nothing here ever replaces a file that it has not looked at *after* taking it out of its place, so no race with another
program loses one. What cannot be done by the file system in one step (exchange, move without replacing) is done by
links or exclusive creation.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import secrets
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

#: Flags of Linux' renameat2.
_NOREPLACE, _EXCHANGE = 1, 2
_AT_FDCWD = -100
_CANNOT = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}
#: What `link` gives on file systems without hard links.
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL}


def place(temporary: Path, target: Path) -> None:
    """Move the file `temporary` to `target`, a name in the same file system where nothing may stand.

    Raises `FileExistsError` where something does (a dangling link too), and leaves both as they were.
    """
    if _rename(temporary, target, _NOREPLACE):
        return
    try:
        os.link(temporary, target, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _copy_to_new(temporary, target)
    temporary.unlink()


def replace_if(temporary: Path, target: Path, is_ours: Callable[[Path], bool]) -> None:
    """Put `temporary` in place of `target`, if `is_ours` says so of what stands there at that very moment.

    `is_ours` is given the path under which that lies by then. Raises `FileExistsError` where it is not ours, and
    `target` then is what it was; where nothing stands there, this is `place`.
    """
    # Open meanwhile, so that no other file gets its number.
    with temporary.open("rb") as ours:
        try:
            exchanged = _rename(temporary, target, _EXCHANGE)
        except FileNotFoundError:
            place(temporary, target)
            return
        if not exchanged:
            _replace_in_steps(temporary, target, is_ours)
            return
        if is_ours(temporary):
            temporary.unlink()
            return
        _rename(temporary, target, _EXCHANGE)
        if temporary.lstat().st_ino != os.fstat(ours.fileno()).st_ino:
            # Somebody put yet another file there in between.
            _move_to_free(temporary, target, "kept")
    raise FileExistsError(errno.EEXIST, "it was changed by somebody else", str(target))


def set_aside(path: Path, word: str) -> Path:
    """Rename `SKU-1.mp4` to `SKU-1.<word>.mp4`, or `SKU-1.<word>-2.mp4` and so on; gives the new path. Loses nothing.

    Raises `OSError`.
    """
    return _move_to_free(path, path, word)


def _move_to_free(path: Path, like: Path, word: str) -> Path:
    number = 1
    while True:
        name = f"{like.stem}.{word}{f'-{number}' if number > 1 else ''}{like.suffix}"
        with suppress(FileExistsError):
            place(path, like.with_name(name))
            return like.with_name(name)
        number += 1


def _replace_in_steps(temporary: Path, target: Path, is_ours: Callable[[Path], bool]) -> None:
    old = temporary.with_name(f".{secrets.token_hex(6)}.old")
    try:
        place(target, old)
    except FileNotFoundError:
        place(temporary, target)
        return
    if not is_ours(old):
        try:
            place(old, target)
        except FileExistsError:
            _move_to_free(old, target, "kept")
        raise FileExistsError(errno.EEXIST, "it was changed by somebody else", str(target))
    try:
        place(temporary, target)
    except OSError:
        with suppress(FileExistsError):
            place(old, target)
        old.unlink(missing_ok=True)
        raise
    old.unlink()


def _copy_to_new(source: Path, target: Path) -> None:
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as out, source.open("rb") as content:
            shutil.copyfileobj(content, out)
            out.flush()
            os.fsync(out.fileno())
        stat = source.stat()
        os.utime(target, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    except BaseException:
        target.unlink(missing_ok=True)
        raise


@functools.cache
def _renameat2() -> Callable[..., int] | None:
    try:
        found: Any = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return None
    found.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    return found  # type: ignore[no-any-return]


def _rename(source: Path, target: Path, flags: int) -> bool:
    """False where system or file system know no such rename."""
    call = _renameat2()
    if call is None:
        return False
    if call(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags) == 0:
        return True
    number = ctypes.get_errno()
    if number in _CANNOT:
        return False
    raise OSError(number, os.strerror(number), str(source), None, str(target))
