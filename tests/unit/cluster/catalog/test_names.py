"""Whatever ids a catalog has, its files have names that every file system takes, and none is another row's."""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.catalog.names import Ids, elsewhere, file_stem, folded, id_fault
from cluster.results.ownership import SUFFIXES, twins
from pipeline.problems import BadInputError

#: What Windows documents: names of devices whatever follows a dot, characters, and how a name must not end.
DEVICES = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"} | {
    f"{d}{n}" for d in ("COM", "LPT") for n in "0123456789¹²³"
}
PIECES = ["CON", "con", "aux", "NUL", "com1", "lpt³", ".txt", ".", " ", ":", "?", "*", "<", "|", '"', "%", "%3A", "%41"]
PIECES += ["é", "e\u0301", "É", "ß", "ss", "İ", "a", "A", "3A", "mug", "日本", "ſ"]
NAMES = st.lists(st.sampled_from(PIECES), min_size=1, max_size=5).map("".join) | st.text(min_size=1, max_size=12)


def taken_everywhere(name: str) -> bool:
    """Whether a file may be called so on ext4, NTFS, exFAT, APFS and SMB."""
    device = name.split(".")[0].rstrip(" ").upper()
    return not (
        re.search(r'[\x00-\x1f<>:"/\\|?*]', name)
        or name.endswith((".", " "))
        or device in DEVICES
        or len(name.encode()) > 255
    )


def as_disks_see(name: str) -> str:
    """One text for all names that NTFS or APFS take for one file: without case, in one Unicode form."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())


@given(st.lists(NAMES, max_size=8))
def test_no_two_rows_that_are_taken_have_files_of_one_name(found: list[str]) -> None:
    ids, rows = Ids([]), []
    for number, name in enumerate(found, 1):
        try:
            rows += ids.claim(name, 1, number)
        except BadInputError:
            continue
    rows = [row for row in rows if row not in twins(rows)]
    files = [as_disks_see(file_stem(row) + suffix) for row in rows for suffix in SUFFIXES]
    assert len(set(files)) == len(files)


@given(NAMES)
def test_files_have_names_that_every_disk_takes_and_a_note_where_it_is_not_the_id(name: str) -> None:
    if id_fault(name):
        return
    stem, note = file_stem(name), elsewhere(name)
    assert unquote(stem) == name
    for suffix in (*SUFFIXES, ".json", ""):
        assert taken_everywhere(stem + suffix), stem
    assert (note is None) == (stem == name)
    if note is not None:
        assert repr(stem) in note.message
        assert repr(name) in note.message
    if taken_everywhere(name) and not re.search("%[0-9A-Fa-f]{2}", name):
        assert stem == name, "nothing else is changed"
    assert folded(file_stem(name)) == as_disks_see(stem)


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("SKU-1", "SKU-1"),
        ("A:B", "A%3AB"),
        ("A%3AB", "A%253AB"),
        ("50%OFF", "50%OFF"),
        ("CON", "%43ON"),
        ("aux.txt", "%61ux.txt"),
        ("console", "console"),
        ("a.", "a%2E"),
        ("nul ", "nul%20"),
        ("CON .txt", "%43ON .txt"),
    ],
)
def test_what_files_are_called(name: str, stem: str) -> None:
    assert file_stem(name) == stem


def test_an_id_whose_escapes_make_it_too_long_is_refused() -> None:
    assert id_fault("?" * 66) is None
    assert id_fault("?" * 67) is not None
