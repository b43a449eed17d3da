"""A slice of `make chaos-real`: a real farm on SQLite, a fault of each kind that is quickly over, the same verdict."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.play import Verdict, play

#: In this order: what ends the farm comes last, and starts it again with clips half way.
KINDS = (
    "renderer killed",
    "storage full for a while",
    "checkpoint cut short",
    "dispatcher killed",
    "gateway killed",
    "database locked by somebody",
    "card drained and unlocked",
    "`clipmill up` killed",
)
NEEDS_ROOT = {"storage full for a while"}
SEED = 1
#: Of a clip's 40. How soon a checkpoint is written is the machine's doing, and for `make chaos-real` to judge.
MOST_REPEATED = 30

# It waits for what has to come, however slow the machine is; `PATIENCE_S` ends what hangs.
pytestmark = [pytest.mark.farm, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def verdict(tmp_path_factory: pytest.TempPathFactory) -> Verdict:
    """What became of a farm to which all of them were done."""
    folder: Path = tmp_path_factory.mktemp("faults")
    return play(folder, seed=SEED, count=len(KINDS), kinds=KINDS, most_repeated=MOST_REPEATED)


def test_no_row_pays_for_real_faults(verdict: Verdict) -> None:
    assert verdict.broken == []
    # Both kinds of poison have ended, which `broken` judges; these are the innocent ones.
    assert verdict.rows >= 10
    assert verdict.attempts["completed"] == verdict.rows
    assert verdict.restarts >= 1


def test_every_fault_was_done(verdict: Verdict) -> None:
    assert verdict.count == sum(name not in NEEDS_ROOT or name in verdict.faults for name in KINDS)


def test_a_full_disk_was_among_them(verdict: Verdict) -> None:
    if not NEEDS_ROOT & set(verdict.faults):
        pytest.skip("only root can give storage a disk of its own that is full")
    assert verdict.faults["storage full for a while"].lost == 0
