"""Files of people, read within bounds."""

from __future__ import annotations

import os

import pytest

from pipeline.problems import BadInputError
from pipeline.small_files import read_small_file


def read(path, most_bytes=1 << 20):
    return read_small_file(path, most_bytes, "brand", unreadable="Name it.", too_large="Write less.")


@pytest.mark.parametrize("size", [0, 1, 1 << 20])
def test_a_file_of_up_to_the_bound_is_read_whole(tmp_path, size):
    (tmp_path / "a").write_bytes(b"x" * size)
    assert read(tmp_path / "a") == b"x" * size


def test_what_is_larger_missing_or_no_file_says_what_to_do(tmp_path):
    os.truncate(os.open(tmp_path / "huge", os.O_CREAT | os.O_RDWR), 1 << 40)
    for path, words in ((tmp_path / "huge", "larger than 1 MiB. Write less."), (tmp_path, "cannot be read")):
        with pytest.raises(BadInputError, match=words):
            read(path)
    with pytest.raises(BadInputError, match=r"cannot be read: No such file or directory\. Name it\."):
        read(tmp_path / "nothing")
