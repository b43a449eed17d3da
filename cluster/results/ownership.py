"""Whose a file in OUT is: clipmill's own as it left it, its own but edited since, a person's, or an input of this run.

What clipmill wrote is recorded below OUT, in `.clipmill/written`: name, size, time and SHA-256. Nothing else is ever
replaced or deleted. Looked at before anything is rendered (`OutFolder.refusals`) and once more, without a race, when a
file is put in its place (`OutFolder.bring`).
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import secrets
import stat
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path

from pydantic import BaseModel, TypeAdapter, ValidationError

from cluster.catalog.manifest import BadRow, Manifest, Row
from cluster.catalog.names import file_stem, folded
from cluster.storage import StorageError
from pipeline.placing import place, replace_if, set_aside
from pipeline.problems import Problem

#: Below OUT: one small file per row that says what was written for it.
OURS = Path(".clipmill")
RECORDS = OURS / "written"
#: What a row's files are called: what `file_stem` makes of its id, and one of these.
SUFFIXES = (".mp4", ".jpg", ".json")
_FULL = {errno.ENOSPC, errno.EDQUOT}
#: Errors that are of the disk or the process, whatever name was to be written.
_WHOLE_DISK = _FULL | {errno.EROFS, errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.EMFILE, errno.ENFILE}
_MOVE = "Name another folder with --out, or move it away, and run the same command again."
#: Names that some file systems do not take; whether this one does is tried.
_ODD = re.compile(r"[^\x00-\x7f]")


class ResultsError(RuntimeError):
    """OUT could not be written; `problem` says what, where and what to do."""

    def __init__(self, message: str, remedy: str) -> None:
        self.problem = Problem(field="out", message=message, remedy=remedy)
        super().__init__(str(self.problem))


class RowRefusedError(ResultsError):
    """One row's files could not be written; the others' can."""


class Written(BaseModel):
    """A file as it was left in OUT, and what it was made of."""

    size_bytes: int
    mtime_ns: int
    sha256: str
    #: The storage key, and behind a `#` how it is marked; for provenance, a hash of everything merged; for a page, of
    #: the catalog it shows.
    source: str
    #: SHA-256 of the file of ours that it took the place of: a killed process may have left that one standing.
    replaces: str | None = None
    #: Which catalog it was written for, as `catalog_key` names it; empty where that was not said.
    catalog: str = ""


_RECORD = TypeAdapter(dict[str, Written])


class Standing(Enum):
    """What is found under a name in OUT."""

    FREE = "free"
    #: The file that the record tells of.
    OURS = "ours"
    #: A file under a name that the record has, with other content: somebody's work, or a file cut short.
    EDITED = "edited"
    #: A file that no record tells of.
    FOREIGN = "foreign"
    #: A file that this run reads, a folder, a link, a device.
    BLOCKED = "blocked"


@dataclass(frozen=True)
class Found:
    """What stands under a name in OUT."""

    standing: Standing
    #: For a refusal: what it is, such as `is a folder`.
    what: str = ""
    remedy: str = _MOVE
    #: What a file of ours was like when it was read.
    sha256: str | None = None


@dataclass(frozen=True)
class Inputs:
    """The files that a run reads: none of them is ever written to."""

    #: What each is, by device and inode: a link or another spelling of its path names the same file.
    files: Mapping[tuple[int, int], str] = field(default_factory=dict)

    @classmethod
    def of(cls, root: Path, images: Iterable[tuple[int, str]], files: Iterable[Path | None] = ()) -> Inputs:
        """Stills as (row number, path beside `root`), and other files, such as the manifest; missing ones are none."""
        found: dict[tuple[int, int], str] = {}
        named = [(path, f"is {path.name}, which this run reads") for path in files if path is not None]
        named += [(root / image, f"is the picture of row {number}") for number, image in images]
        for path, what in named:
            with suppress(OSError, ValueError):
                status = path.stat()
                if not stat.S_ISDIR(status.st_mode):
                    found.setdefault((status.st_dev, status.st_ino), what)
        return cls(found)

    def what(self, path: Path) -> str | None:
        """What `path` (links followed) is to this run; None where it is no input."""
        if not self.files:
            return None
        with suppress(OSError):
            status = path.stat()
            return self.files.get((status.st_dev, status.st_ino))
        return None


NO_INPUTS = Inputs()


def catalog_key(source: str) -> str:
    """Short name by which records tell one catalog from another, without telling where it lies."""
    return hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()[:16] if source else ""


def _difference(one: str, other: str) -> str:
    """By what two names that are one file on many disks differ, in words."""
    a, b = (unicodedata.normalize("NFC", name) for name in (one, other))
    if a != b:
        if len(a) == len(b) and all(x.lower() == y.lower() for x, y in zip(a, b, strict=True)):
            return "upper and lower case"
        return "letters that count as the same (such as ligatures, and ß for ss)"
    pairs = zip(one, other, strict=False)
    x, y = next(((x, y) for x, y in pairs if x != y), ("", ""))
    if len(one) == len(other) and x and unicodedata.normalize("NFC", x) == unicodedata.normalize("NFC", y):
        return f"{unicodedata.name(x, repr(x))} for {unicodedata.name(y, repr(y))}"
    return "the form of its accents (Unicode NFC and NFD)"


def twins(ids: Iterable[str]) -> dict[str, Problem]:
    """All but the first of ids that name one file on Windows or macOS, each with what is wrong."""
    first: dict[str, str] = {}
    found: dict[str, Problem] = {}
    for name in ids:
        other = first.setdefault(folded(name), name)
        if other != name:
            how = _difference(name, other)
            message = f"{name!r} differs from the id {other!r} of another row by {how} only: on many disks one file"
            found[name] = Problem(field="id", message=message, remedy="Give every row an id of its own.")
    return found


def with_refusals(manifest: Manifest, refused: Mapping[str, Problem]) -> Manifest:
    """The manifest with the rows of these ids as bad ones, so that nothing is rendered for them."""
    if not refused:
        return manifest
    return replace(manifest, rows=[_refuse(row, refused) for row in manifest.rows])


def _refuse(row: Row | BadRow, refused: Mapping[str, Problem]) -> Row | BadRow:
    if isinstance(row, BadRow) or row.id not in refused:
        return row
    return BadRow(number=row.number, line=row.line, id=row.id, problems=(refused[row.id],))


class OutFolder:
    """The folder that clips go to. Safe for several threads and processes that write different rows."""

    def __init__(
        self, path: Path, inputs: Inputs = NO_INPUTS, told: Callable[[str], None] = lambda _text: None
    ) -> None:
        """`inputs` are never written to; `told` hears of a file that was edited and is kept under another name."""
        self.path = path.absolute()
        self._inputs = inputs
        #: Given what a person should hear of.
        self.told = told

    def make(self) -> None:
        """Create the folder and its records, and see that it may be written to. Raises `ResultsError`."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _no_folder(self.path, error) from error
        # Before anything is rendered, not after the first clip.
        if not os.access(self.path, os.W_OK | os.X_OK):
            remedy = "Name another folder with --out, or change its rights."
            raise ResultsError(f"{self.path} may not be written to", remedy)
        for folder in (self.path / OURS, self.path / RECORDS):
            try:
                folder.mkdir(exist_ok=True)
                real = stat.S_ISDIR(folder.lstat().st_mode)
            except FileExistsError:
                real = False
            except OSError as error:
                raise _no_folder(folder, error) from error
            if not real:
                raise ResultsError(f"{folder} is not a folder of its own, and clipmill keeps its records there", _MOVE)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """No other process or thread writes here meanwhile, unless the disk has no locks (all stays safe, but two that
        write one row may then be in each other's way).
        """
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = None
        try:
            with suppress(OSError):
                descriptor = os.open(self.path / RECORDS, flags)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def refuse_as_input(self, folder: Path) -> None:
        """Raise `ResultsError` where OUT is `folder`, whose pictures are rendered: posters would be rows next time."""
        with suppress(OSError):
            if self.path.samefile(folder):
                message = f"{self.path} is the folder of the pictures: posters among them would be rows next time"
                raise ResultsError(message, f"Name another folder, such as --out {folder / 'clips'}.")

    def refusals(self, ids: Sequence[str]) -> dict[str, Problem]:
        """Rows with these ids whose files could not be written, each with why. Raises `ResultsError`.

        Rows that clipmill wrote before are no refusals, nor are its files that were edited: those are kept aside.
        """
        self.make()
        refused = twins(ids)
        rest = [name for name in ids if name not in refused]
        # Folded, as a disk may take a name that is there for the one that is asked for; then the disk is asked.
        there, recorded = self._listed(self.path), self._listed(self.path / RECORDS)
        for row_id in rest:
            own = file_stem(row_id)
            stem = folded(own)
            taken = [suffix for suffix in SUFFIXES if stem + suffix in there]
            try:
                known = self.record(row_id) if f"{stem}.json" in recorded else {}
                for suffix in taken:
                    self._require(own + suffix, known)
            except RowRefusedError as error:
                refused[row_id] = error.problem
        refused |= self._refused_names([name for name in rest if name not in refused and _ODD.search(name)])
        return refused

    def record(self, row_id: str) -> dict[str, Written]:
        """What was written for a row, by file name; empty where nothing was, or nobody can tell.

        Raises `RowRefusedError` where the record is that of another row: the disk takes both names for one.
        """
        own = file_stem(row_id)
        found = read_record(self.path / RECORDS / f"{own}.json")
        other = next((name for name in found if name not in {own + suffix for suffix in SUFFIXES}), None)
        if other is not None:
            message = f"{self.path / other} and the files of {row_id!r} are one to this disk"
            raise RowRefusedError(message, "Give the row another id, or name another folder with --out.")
        return found

    def page_record(self, record_id: str) -> dict[str, Written]:
        """What was written of pages, by file name; empty where nothing was."""
        return read_record(self.path / RECORDS / f"{record_id}.json")

    def write_record(self, record_id: str, record: Mapping[str, Written]) -> None:
        """Replace a row's record; what is there and is no record is kept aside. Raises `ResultsError`."""
        path = self.path / RECORDS / f"{file_stem(record_id)}.json"
        with self.drafts() as draft:
            temporary = draft(lambda p: p.write_bytes(_RECORD.dump_json(dict(record), indent=1, exclude_defaults=True)))
            with self._of_one_name(path):
                try:
                    replace_if(temporary, path, _is_record)
                except FileExistsError:
                    if not _is_record(path):
                        set_aside(path, "kept")
                    replace_if(temporary, path, _is_record)

    def kept(self, name: str, source: str, known: Written | None) -> Written | None:
        """The file's record, if the file is still the one that was written from `source`."""
        if known is None or known.source != source:
            return None
        target = self.path / name
        with self._of_one_name(target):
            try:
                status = target.stat()
            except FileNotFoundError:
                return None
            if not stat.S_ISREG(status.st_mode) or status.st_size != known.size_bytes:
                return None
            if status.st_mtime_ns == known.mtime_ns:
                return known
            # A folder copied elsewhere has new times; reading it is cheaper than fetching it again.
            found = describe(target, source, known.catalog)
        return found if found.sha256 == known.sha256 else None

    def look(self, name: str, known: Written | None, *, by_content: bool = True) -> Found:
        """What stands under `name`. Without `by_content` nothing is read: an edited file of ours counts as ours.

        Raises `RowRefusedError` where it cannot be told.
        """
        target = self.path / name
        with self._of_one_name(target):
            try:
                status = target.lstat()
            except FileNotFoundError:
                return Found(Standing.FREE)
            if stat.S_ISDIR(status.st_mode):
                return Found(Standing.BLOCKED, "is a folder")
            if what := self._inputs.what(target):
                return Found(Standing.BLOCKED, what, remedy="Name another folder with --out: it is never written to.")
            if not stat.S_ISREG(status.st_mode):
                return Found(Standing.BLOCKED, "is a link" if target.is_symlink() else "is no regular file")
            if known is None:
                return Found(Standing.FOREIGN, "is there already, and clipmill did not write it")
            if not by_content:
                return Found(Standing.OURS)
            sha256 = describe(target, known.source).sha256
            ours = sha256 in {known.sha256, known.replaces}
            return Found(Standing.OURS if ours else Standing.EDITED, sha256=sha256)

    @contextmanager
    def drafts(self) -> Iterator[Callable[[Callable[[Path], object]], Path]]:
        """Gives a function that lets a new file be written and returns its path; what is left at the end is deleted.

        Raises `ResultsError` where that fails at this end.
        """
        made: list[Path] = []

        def draft(write: Callable[[Path], object]) -> Path:
            path = self.path / OURS / f"{secrets.token_hex(8)}.part"
            made.append(path)
            with _of_folder(self.path):
                write(path)
            return path

        try:
            yield draft
        finally:
            for path in made:
                path.unlink(missing_ok=True)

    def bring(self, temporary: Path, name: str, known: Written | None, new: Written) -> None:
        """Put the file `temporary`, which `new` describes, under `name`; only a file of ours is replaced.

        One of ours that was edited is kept under another name, and told of. Raises `RowRefusedError` where something
        else stands there by then, `ResultsError` where the folder fails.
        """
        target = self.path / name
        found = self.look(name, known)
        with self._of_one_name(target):
            try:
                match found.standing:
                    case Standing.FREE:
                        place(temporary, target)
                    case Standing.OURS:
                        assert known is not None
                        replace_if(temporary, target, lambda path: _is(known, path))
                    case Standing.EDITED:
                        aside = set_aside(target, "edited")
                        place(temporary, target)
                        self.told(f"{name} had been changed: what was there is now {aside.name}")
                    case _:
                        raise self.refusal(name, found)
            except FileExistsError as error:
                # Another process that writes the same row was first?
                again = self.look(name, new)
                if again.standing is not Standing.OURS:
                    raise self.refusal(name, Found(Standing.FOREIGN, "was put there by somebody else")) from error

    def same(self, name: str, wanted: Written) -> Written | None:
        """The record of the file under `name` if its content is what is `wanted`; None where it is not."""
        target = self.path / name
        with self._of_one_name(target):
            found = describe(target, wanted.source, wanted.catalog)
        return found if found.sha256 == wanted.sha256 else None

    def keep_aside(self, name: str, word: str) -> None:
        """Rename a file, so that its name is free, and tell of it. Raises `ResultsError`."""
        with self._of_one_name(self.path / name):
            aside = set_aside(self.path / name, word)
        self.told(f"{name} of before is now {aside.name}")

    def refusal(self, name: str, found: Found) -> RowRefusedError:
        """What to raise for a row whose file `name` is not ours."""
        return RowRefusedError(f"{self.path / name} {found.what}", found.remedy)

    def _require(self, name: str, known: Mapping[str, Written]) -> None:
        found = self.look(name, known.get(name), by_content=False)
        if found.standing in (Standing.FOREIGN, Standing.BLOCKED):
            raise self.refusal(name, found)

    def _listed(self, folder: Path) -> set[str]:
        with _of_folder(self.path), os.scandir(folder) as entries:
            return {folded(entry.name) for entry in entries}

    def _refused_names(self, ids: Collection[str]) -> dict[str, Problem]:
        """The ids among `ids` that this file system does not take for a name, found by trying."""
        if not ids:
            return {}
        refused: dict[str, Problem] = {}
        folder = self.path / OURS / f"{secrets.token_hex(8)}.names"
        tried: list[Path] = []
        taken: set[str] = set()
        with _of_folder(self.path):
            folder.mkdir()
        try:
            for row_id in ids:
                odd = set(_ODD.findall(row_id))
                # Twenty thousand names with an umlaut are tried by one.
                if odd <= taken:
                    continue
                path = folder / f"{file_stem(row_id)}.json"
                try:
                    with self._of_one_name(self.path / path.name), path.open("xb"):
                        tried.append(path)
                        taken |= odd
                except RowRefusedError as error:
                    refused[row_id] = error.problem
        finally:
            for path in tried:
                path.unlink(missing_ok=True)
            folder.rmdir()
        return refused

    @contextmanager
    def _of_one_name(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            usable = self.path.is_dir() and os.access(self.path, os.W_OK | os.X_OK)
            raise unwritable(path, error, RowRefusedError if usable else ResultsError) from error


def read_record(path: Path) -> dict[str, Written]:
    """A record of what was written; empty where there is none."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return {}
        return _RECORD.validate_json(path.read_bytes())
    except (OSError, ValidationError):
        # Without a record nothing is ours: it is compared with what would be written, and never replaced.
        return {}


def describe(path: Path, source: str, catalog: str = "") -> Written:
    """A file as it is now. Raises `OSError`."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        status = os.fstat(file.fileno())
    return Written(
        size_bytes=status.st_size, mtime_ns=status.st_mtime_ns, sha256=sha256, source=source, catalog=catalog
    )


def unwritable(path: Path, error: OSError, kind: type[ResultsError] = ResultsError) -> ResultsError:
    """The refusal that tells of `error`; of `kind`, unless the whole disk is at fault."""
    what = error.strerror or str(error)
    if error.errno in _WHOLE_DISK:
        kind = ResultsError
    if error.errno in _FULL:
        what = "no space is left on its disk"
        remedy = "Make room or choose another --out, then run the same command again: finished clips are kept."
    elif error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        remedy = "Choose another --out, or give yourself write access to this one."
    elif error.errno == errno.ENAMETOOLONG:
        remedy = "Shorten the row's id: it names the files."
    elif kind is RowRefusedError:
        remedy = "Give the row an id that this disk takes for a file name, such as SKU-001, or choose another --out."
    else:
        remedy = "Check that --out is a folder on a working disk, or choose another."
    return kind(f"{path} could not be written: {what}", remedy)


@contextmanager
def _of_folder(path: Path) -> Iterator[None]:
    """Errors of writing under a name of our own: the folder's, not a row's; those of the storage stay what they are."""
    try:
        yield
    except StorageError as error:
        # Copying touches both ends; only a fault at this end is about OUT.
        if isinstance(error.__cause__, OSError) and _concerns(error.__cause__, path):
            raise unwritable(path, error.__cause__) from error
        raise
    except OSError as error:
        raise unwritable(path, error) from error


def _concerns(error: OSError, folder: Path) -> bool:
    # A full disk is met by `write`, which names no file; reading an object never meets one.
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if name is not None]
    return error.errno in _FULL or any(Path(name).is_relative_to(folder) for name in names)


def _no_folder(path: Path, error: OSError) -> ResultsError:
    return ResultsError(f"cannot write to {path}: {error.strerror}", "Name another folder with --out.")


def _is(known: Written, path: Path) -> bool:
    """Whether `path` is, to the byte, a file that the record tells of."""
    if not stat.S_ISREG(path.lstat().st_mode):
        return False
    return describe(path, known.source).sha256 in {known.sha256, known.replaces}


def _is_record(path: Path) -> bool:
    return bool(read_record(path))
