"""Long things in pieces: nothing lost, nothing read too early."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.chunks import chunks


@given(st.integers(0, 300), st.integers(1, 70), st.none() | st.integers(1, 100))
def test_every_item_is_in_one_piece_in_order(count, size, first):
    pieces = list(chunks(range(count), size, first=first))
    assert [item for piece in pieces for item in piece] == list(range(count))
    assert all(0 < len(piece) <= size for piece in pieces)
    assert all(len(piece) == size for piece in pieces[:-1]) or first is not None


def test_the_first_pieces_grow_to_the_size():
    assert [len(piece) for piece in chunks(range(100), 32, first=4)] == [4, 8, 16, 32, 32, 8]


def test_no_more_is_read_than_a_piece_needs():
    read = []
    pieces = chunks((read.append(n) or n for n in range(100)), 64, first=4)
    assert next(pieces) == [0, 1, 2, 3]
    assert read == [0, 1, 2, 3]
