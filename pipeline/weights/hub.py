"""Fetching a family's pinned weights from a hub or its mirror: every file checked, and going on where it stopped.

The hub's client says what there is and who may have it. The bytes are read here: the client (2.4) throws the
beginning of a file away when it is interrupted, and files are up to 10 GB.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal, TextIO
from urllib.parse import urlsplit

import httpx

from pipeline.families import Family
from pipeline.placing import place
from pipeline.units import GIB, MIB
from pipeline.weights.weights import (
    FileFacts,
    OnBytes,
    WeightsError,
    WeightsManifest,
    as_verified,
    cached_folder,
    check_components,
    fetched_bytes,
    part_file,
    partial_folder,
    record_verified,
    set_aside_path,
    wanted_files,
    weights_root,
    write_listing,
)

#: Free space that a fetch leaves on the disk.
SPARE_BYTES = 2**28
_CHUNK_BYTES = MIB
#: Files fetched at once: one connection seldom fills a line.
_STREAMS = 4
_TIMEOUT_S = 30.0
#: How often a process that waits for another one's fetch looks how far it is, in seconds.
_LOOK_S = 2.0
#: How often a file is asked for again in a row without a byte gained.
RETRIES = 5
_HUB = "https://huggingface.co"
#: Environment variable with the token for a mirror; the hub's own (`HF_TOKEN`) goes to nobody but the hub.
MIRROR_TOKEN = "CLIPMILL_MIRROR_TOKEN"  # noqa: S105


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """One file as the hub describes it."""

    path: str
    url: str
    size: int
    #: SHA-256 of the content; None for a small file, which the hub knows by `git_sha1`.
    sha256: str | None
    #: Git's id of the content as a blob: SHA-1 over a header and the content.
    git_sha1: str | None


def pull(
    family: Family,
    home: Path,
    *,
    endpoint: str | None = None,
    on_bytes: OnBytes = lambda _done, _total: None,
    tell: Callable[[str], None] = lambda _text: None,
    retries: int = RETRIES,
) -> Path:
    """Fetch what is missing of the family's pinned revision; returns its folder, verified and with a manifest.

    `endpoint`: a mirror's address, or None for the hub (`HF_ENDPOINT` names another). `on_bytes` is called in the
    calling thread. Interrupted at any point (also by SIGKILL) it leaves what it has, and goes on from there when
    called again. Several processes may call it at once: one fetches, the others wait.

    Raises `WeightsError` where the hub cannot be reached or does not give the files, where a file is not what the
    hub says, and where the disk is too small.
    """
    if family.repo is None:
        raise WeightsError(f"{family.name!r} has no weights to fetch", "its family", "It is ready to be used.")
    with _one_at_a_time(family, home, tell):
        files, headers = _listing(family, endpoint)
        missing = [file for file in files if not _is_here(family, home, file, tell)]
        _check_space(family, home, missing)
        if missing:
            write_listing(family, home, {file.path: file.size for file in files})
            _Download(family, home, endpoint, headers, retries, tell).run(files, missing, on_bytes)
        folder = cached_folder(family, home)
        check_components(family, folder)
        _write_manifest(family, folder, files, home)
        return folder


def token_for(endpoint: str) -> str | None:
    """The token that this address is sent: the hub's own for the hub over TLS, `CLIPMILL_MIRROR_TOKEN` for a mirror.

    None where it gets none. A token of the hub opens its owner's account there: a mirror has no business with it.
    """
    from huggingface_hub import get_token

    if urlsplit(endpoint.rstrip("/"))[:3] == urlsplit(_HUB)[:3]:
        return get_token()
    return os.environ.get(MIRROR_TOKEN) or None


def source_text(family: Family, endpoint: str | None) -> str:
    """Where a family is fetched from, for messages."""
    return f"{family.repo} at {family.revision[:12]}" + (f" from the mirror {endpoint}" if endpoint else "")


@contextmanager
def _one_at_a_time(family: Family, home: Path, tell: Callable[[str], None]) -> Iterator[None]:
    folder = partial_folder(family, home)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder.parent / f"{family.revision}.lock").open("a")
    except OSError as error:
        what = f"There is no place for the weights of {family.name!r}: {error.strerror}"
        raise WeightsError(what, str(folder), "Set CLIPMILL_HOME to a folder of yours.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            _wait_for_other(family, folder, lock, tell)
        yield


def _wait_for_other(family: Family, folder: Path, lock: TextIO, tell: Callable[[str], None]) -> None:
    """Wait for the lock of another process that fetches the family, telling how far it is meanwhile."""
    last = ""
    while True:
        here = 0
        # Files are renamed while they are counted.
        with suppress(FileNotFoundError):
            here = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        if (text := f"another process fetches {family.name}; waiting for it ({here / GIB:.2f} GiB so far)") != last:
            tell(last := text)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            time.sleep(_LOOK_S)
        else:
            return


def _listing(family: Family, endpoint: str | None) -> tuple[list[RemoteFile], dict[str, str]]:
    """The files of the pinned revision that the family needs, and the headers to ask for them with."""
    try:
        from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url
    except ImportError as error:
        what = f"Fetching the weights of {family.name!r} needs {error.name}"
        raise WeightsError(what, "this Python environment", "Install clipmill[render].") from error
    repo = family.repo or ""
    try:
        address = HfApi(endpoint=endpoint).endpoint
        token = token_for(address)
        # False: none. The client would take the hub's own for None, whatever the address.
        given: str | Literal[False] = token or False
        api = HfApi(endpoint=address, library_name="clipmill", token=given)
        info = api.model_info(repo, revision=family.revision, files_metadata=True, timeout=_TIMEOUT_S)
        if info.sha and info.sha != family.revision:
            raise WeightsError(
                f"The hub gives {repo} at {info.sha}, but {family.name!r} is pinned to {family.revision}",
                api.endpoint,
                "Use the hub, or a mirror that keeps revisions.",
            )
        known = {sibling.rfilename: sibling for sibling in info.siblings or ()}
        files = []
        for path in wanted_files(family, known):
            url = hf_hub_url(repo, path, revision=family.revision, endpoint=api.endpoint)
            listed = known[path]
            size, sha256, git_sha1 = listed.size, listed.lfs.sha256 if listed.lfs else None, listed.blob_id
            if size is None:
                # A mirror that lists names only; a file's own ETag is its SHA-256, or git's id of it.
                head = get_hf_file_metadata(url, endpoint=api.endpoint, token=given)
                size, tag = head.size, head.etag or ""
                sha256, git_sha1 = (tag if len(tag) == 64 else None), (tag if len(tag) == 40 else None)
            if size is None:
                what = f"The hub does not say how large {path} is"
                raise WeightsError(what, api.endpoint, "Use another mirror, or a local folder.")
            files.append(
                RemoteFile(path=path, url=url, size=size, sha256=sha256, git_sha1=None if sha256 else git_sha1)
            )
        return files, {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {token}"} if token else {})
    except WeightsError:
        raise
    except Exception as error:  # the client's own errors, and those of whichever HTTP library it brings
        raise refusal(family, endpoint, error) from error


def refusal(family: Family, endpoint: str | None, error: Exception) -> WeightsError:
    """The hub's or the network's error, with what to do about it."""
    where = source_text(family, endpoint)
    names = {cls.__name__ for cls in type(error).__mro__}
    status = getattr(getattr(error, "response", None), "status_code", None)
    page = f"{(endpoint or _HUB).rstrip('/')}/{family.repo}"
    if "OfflineModeIsEnabled" in names:
        what = f"The weights of {family.name!r} are not on this machine, and it is offline (HF_HUB_OFFLINE)"
        return WeightsError(what, where, "Unset HF_HUB_OFFLINE, or name a folder that holds the model.")
    if "RevisionNotFoundError" in names:
        remedy = "Use the hub itself or a mirror that keeps revisions, or name a folder that holds the model."
        return WeightsError(f"There is no revision {family.revision} of {family.repo}", where, remedy)
    if "GatedRepoError" in names or status in (401, 403):
        name = MIRROR_TOKEN if endpoint else "HF_TOKEN"
        remedy = f"Ask for access on {page} with your account, then set {name} to a token of that account."
        return WeightsError(f"The weights of {family.name!r} are not open to everybody", where, remedy)
    if "RepositoryNotFoundError" in names or status == 404:
        name = MIRROR_TOKEN if endpoint else "HF_TOKEN"
        remedy = f"Look at {page}; if it is private, set {name}; if it is a mirror, unset CLIPMILL_MIRROR."
        return WeightsError(f"The hub has no {family.repo}", where, remedy)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
        remedy = (
            "Free some space or set CLIPMILL_HOME to another folder, then start again: it goes on where it stopped."
        )
        what = f"The weights of {family.name!r} cannot be written: {error.strerror}"
        return WeightsError(what, str(error.filename or where), remedy)
    return WeightsError(
        f"The weights of {family.name!r} could not be fetched: {type(error).__name__}: {error}",
        where,
        "Check the network, its proxy and the mirror, then start again: it goes on where it stopped. "
        "Or name a folder that holds the model.",
    )


def _is_here(family: Family, home: Path, file: RemoteFile, tell: Callable[[str], None]) -> bool:
    """Whether the file is whole and right. A wrong one that was fetched here is removed; any other is set aside."""
    folder = cached_folder(family, home)
    path = folder / file.path
    try:
        if path.stat().st_size == file.size and _matches(path, file):
            return True
    except FileNotFoundError:
        if not path.is_symlink():
            return False
    if as_verified(folder, home, file.path):
        # Damaged on disk since it was fetched, and touched by nobody.
        path.unlink()
    else:
        _set_aside(family, home, file.path, tell)
    return False


def _set_aside(family: Family, home: Path, name: str, tell: Callable[[str], None]) -> None:
    """Move what is in a file's place, of the hub's own client (a link) or of a person, to where it is in no way."""
    while True:
        aside = set_aside_path(family, home, name)
        aside.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            place(cached_folder(family, home) / name, aside)
            tell(f"{name} is not as published; what was there is now {aside}")
            return


def _check_space(family: Family, home: Path, missing: list[RemoteFile]) -> None:
    needed = sum(file.size - fetched_bytes(family, home, file.path, file.size) for file in missing)
    root = weights_root(home)
    free = shutil.disk_usage(root).free
    if needed and free < needed + SPARE_BYTES:
        raise WeightsError(
            f"The weights of {family.name!r} need {needed / GIB:.1f} GiB more, "
            f"and the disk has {free / GIB:.1f} GiB free",
            str(root),
            "Free some space, or set CLIPMILL_HOME to a folder on a larger disk.",
        )


@dataclass
class _Tally:
    """Bytes that are here, by file; written by many threads, each its own file."""

    by_file: dict[str, int] = field(default_factory=dict)

    @property
    def done(self) -> int:
        """Bytes of all files that are here."""
        return sum(self.by_file.values())


class _Download:
    """Some threads that fetch files one by one."""

    def __init__(
        self,
        family: Family,
        home: Path,
        endpoint: str | None,
        headers: dict[str, str],
        retries: int,
        tell: Callable[[str], None],
    ) -> None:
        self._family, self._home, self._endpoint = family, home, endpoint
        self._headers, self._retries, self._tell = headers, retries, tell
        self._stop = threading.Event()
        self._tally = _Tally()

    def run(self, files: list[RemoteFile], missing: list[RemoteFile], on_bytes: OnBytes) -> None:
        """Return when all of `missing` are in place. Raises `WeightsError` for the first that fails."""
        total = sum(file.size for file in files)
        here = {file.path: fetched_bytes(self._family, self._home, file.path, file.size) for file in files}
        self._tally = _Tally(here)
        todo: queue.SimpleQueue[RemoteFile] = queue.SimpleQueue()
        for file in sorted(missing, key=lambda file: -file.size):
            todo.put(file)
        ended: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
        threads = [
            # Daemons: a thread that waits for the network must not keep a process that was interrupted.
            threading.Thread(target=self._work, args=(todo, ended), name="fetch", daemon=True)
            for _ in range(min(_STREAMS, len(missing)))
        ]
        for thread in threads:
            thread.start()
        left = len(missing)
        try:
            while left:
                on_bytes(self._tally.done, total)
                try:
                    error = ended.get(timeout=0.2)
                except queue.Empty:
                    continue
                if isinstance(error, WeightsError):
                    raise error
                if error is not None:
                    raise refusal(self._family, self._endpoint, error) from error
                left -= 1
            on_bytes(total, total)
        finally:
            self._stop.set()

    def _work(self, todo: queue.SimpleQueue[RemoteFile], ended: queue.SimpleQueue[Exception | None]) -> None:
        # One client a thread: redirects to another host leave the token behind.
        with httpx.Client(headers=self._headers, follow_redirects=True, timeout=_TIMEOUT_S) as client:
            while not self._stop.is_set():
                try:
                    file = todo.get_nowait()
                except queue.Empty:
                    return
                try:
                    self._fetch(client, file)
                    ended.put(None)
                except Exception as error:
                    ended.put(error)
                    return

    def _fetch(self, client: httpx.Client, file: RemoteFile) -> None:
        part = part_file(self._family, self._home, file.path)
        part.parent.mkdir(parents=True, exist_ok=True)
        failures = 0
        while True:
            before = part.stat().st_size if part.exists() else 0
            try:
                self._stream(client, file, part)
                break
            except (httpx.TransportError, httpx.HTTPStatusError) as error:
                if isinstance(error, httpx.HTTPStatusError) and not _may_pass(error.response.status_code):
                    raise
                failures = 0 if part.exists() and part.stat().st_size > before else failures + 1
                if failures > self._retries or self._stop.wait(min(2.0**failures / 2, 10.0) if failures else 0.0):
                    raise
        if not _matches(part, file):
            part.unlink()
            self._tally.by_file[file.path] = 0
            raise WeightsError(
                f"The file {file.path} is not what the hub says it is: its checksum differs",
                file.url,
                "It was thrown away; start again to fetch it once more. If that does not help, use another mirror.",
            )
        target = cached_folder(self._family, self._home) / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            place(part, target)
        except FileExistsError:
            # Put there since the fetch began.
            _set_aside(self._family, self._home, file.path, self._tell)
            place(part, target)

    def _stream(self, client: httpx.Client, file: RemoteFile, part: Path) -> None:
        have = part.stat().st_size if part.exists() else 0
        if have > file.size:
            have = 0
        if have == file.size and part.exists():
            return
        headers = {"Range": f"bytes={have}-"} if have else {}
        with client.stream("GET", file.url, headers=headers) as answer:
            answer.raise_for_status()
            if have and not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                have = 0  # the whole file comes
            with part.open("r+b" if have else "wb") as out:
                out.seek(have)
                for chunk in answer.iter_raw():
                    if self._stop.is_set():
                        raise httpx.ReadError("stopped")
                    have += _put(out, chunk)
                    self._tally.by_file[file.path] = have
        if have < file.size:
            raise httpx.ReadError(f"{have} of {file.size} bytes came")


def _put(out: IO[bytes], chunk: bytes) -> int:
    out.write(chunk)
    # So that an interruption loses nothing that was received.
    out.flush()
    return len(chunk)


def _may_pass(status: int) -> bool:
    return status in (408, 425, 429) or status >= 500


def _matches(path: Path, file: RemoteFile) -> bool:
    """Whether the content is what the hub said; the size alone where it said no more."""
    if path.stat().st_size != file.size:
        return False
    with path.open("rb") as content:
        if file.sha256:
            return hashlib.file_digest(content, "sha256").hexdigest() == file.sha256
        if file.git_sha1:
            digest = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
            for chunk in iter(lambda: content.read(_CHUNK_BYTES), b""):
                digest.update(chunk)
            return digest.hexdigest() == file.git_sha1
    return True


def _write_manifest(family: Family, folder: Path, files: list[RemoteFile], home: Path) -> None:
    facts: dict[str, FileFacts] = {}
    for file in files:
        sha256 = file.sha256
        if sha256 is None:
            with (folder / file.path).open("rb") as content:
                sha256 = hashlib.file_digest(content, "sha256").hexdigest()
        facts[file.path] = FileFacts(size=file.size, sha256=sha256)
    manifest = WeightsManifest(family=family.name, repo=family.repo or "", revision=family.revision, files=facts)
    manifest.write(folder)
    record_verified(manifest, folder, home)
    with suppress(OSError):
        _tidy(partial_folder(family, home), files)


def _tidy(partial: Path, files: list[RemoteFile]) -> None:
    """Delete what a fetch keeps on its way; a folder with anything else in it stays."""
    (partial / "listing.json").unlink(missing_ok=True)
    for file in files:
        (partial / f"{file.path}.part").unlink(missing_ok=True)
    folders = {parent for file in files for parent in (partial / file.path).parents if parent.is_relative_to(partial)}
    for folder in sorted({*folders, partial}, key=lambda path: -len(path.parts)):
        with suppress(OSError):
            folder.rmdir()
