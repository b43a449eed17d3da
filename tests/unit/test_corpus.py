"""A slice of the hostile inputs; `make corpus` runs all of them."""

from __future__ import annotations

import random

from tests.corpus.make import Door, hostile
from tests.corpus.run import run


def test_there_are_many_and_a_seed_makes_the_same_again():
    inputs = hostile(0)
    assert len(inputs) >= 300
    assert len({(one.door, one.name) for one in inputs}) == len(inputs)
    assert {one.door for one in inputs} == set(Door)


def test_a_slice_of_them_gets_through_nowhere(tmp_path, sqlite_database):
    # Bombs take seconds each; each kind of break is in.
    small = [one for one in hostile(1) if len(one.data) < 60_000]
    inputs = random.Random(1).sample(small, 60)
    assert [(one.name, one.fault) for one in run(inputs, tmp_path, sqlite_database) if one.fault] == []
