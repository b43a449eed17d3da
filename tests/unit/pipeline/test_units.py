"""Bytes in a person's words."""

from __future__ import annotations

import pytest

from pipeline.units import format_bytes


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 MiB"),
        (1, "1 byte"),
        (30, "30 bytes"),
        (524_288, "524288 bytes"),
        (524_289, "1 MiB"),
        (1_048_576, "1 MiB"),
        (150_000_000, "143 MiB"),
        (1_073_741_823, "1.0 GiB"),
        (1_073_741_824, "1.0 GiB"),
        (24_803_435_315.2, "23.1 GiB"),
    ],
)
def test_bytes_are_told_in_the_unit_a_person_reads(count: float, text: str) -> None:
    assert format_bytes(count) == text
