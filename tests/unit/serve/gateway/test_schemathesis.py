"""A short run of schemathesis over every route, with every check on; `make schemathesis` runs it longer."""

from __future__ import annotations

from pathlib import Path

from tests.schemathesis_run import faults

#: Requests of each kind (right and wrong ones) for each route: seconds in all.
EXAMPLES = 4


def test_no_request_that_the_document_allows_or_forbids_finds_a_fault(tmp_path: Path) -> None:
    assert faults(20, EXAMPLES, tmp_path) == []
