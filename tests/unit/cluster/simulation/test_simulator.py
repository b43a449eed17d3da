"""The real dispatcher, placement and store over simulated cards: seeded runs in which every invariant must hold."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from cluster.simulation.invariants import check
from cluster.simulation.journal import What
from cluster.simulation.play import play
from cluster.simulation.scenario import Trouble, draw
from cluster.simulation.simulator import Options, find, main, simulate
from cluster.store import DispatchStore

#: Seeds played here; `make chaos SEEDS=10000` plays more.
SEEDS = int(os.environ.get("CLIPMILL_TEST_SEEDS", "125"))
_CHUNK = 25
#: Shorter than what `make chaos` plays, with as many faults: what happens in a minute happens in 36 s.
SHORT = Options(jobs=8, minutes=0.6)


@pytest.mark.parametrize("first", range(0, SEEDS, _CHUNK))
def test_every_invariant_holds(first):
    found = find(range(first, min(first + _CHUNK, SEEDS)), SHORT)
    assert not found, "\n".join(f"{SHORT.command(f.seed)}: {'; '.join(f.problems)}" for f in found)


def test_the_same_seed_is_the_same_run_in_any_process():
    """Hashes of texts differ from process to process; nothing may depend on them."""
    told = []
    for hash_seed in ("1", "2"):
        code = (
            "import sys; from cluster.simulation.simulator import simulate; sys.stdout.writelines(l + '\\n' for l in "
        )
        code += "simulate(11).lines())"
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=100,
        )
        told.append(done.stdout.splitlines())
    assert len(told[0]) > 100
    assert told[0] == told[1]
    assert told[0] != list(simulate(12).lines())


def test_every_trouble_happens_in_some_run():
    """A fault that never strikes proves nothing."""
    whats: set[Trouble] = set()
    poisons: set[str] = set()
    for seed in range(300):
        scenario = draw(seed)
        whats |= {fault.what for fault in scenario.faults}
        poisons |= {job.poison for batch in scenario.batches for job in batch.jobs}
    assert whats == set(Trouble)
    assert poisons == {"", "crash", "error", "sticky", "invalid", "hang", "encode"}


def test_runs_meet_what_they_are_about():
    """Of a few dozen runs: zombies, resumed clips, overflows, shared and moved clips, lost dispatchers."""
    seen: set[What] = set()
    outcomes: set[str] = set()
    causes: set[str] = set()
    for seed in range(60):
        record = simulate(seed)
        seen |= {entry.what for entry in record.entries}
        outcomes |= {str(row["outcome"]) for row in record.tables["attempts"]}
        shared = {row["name"]: row for row in record.tables["tallies"] if row["outcome"] == "shared"}
        outcomes |= {"shared"} if shared else set()
        # Why clips were told to leave their cards.
        causes |= {str(row["outcome"]) for row in record.tables["tallies"] if row["name"] == "preemptions"}
        outcomes |= {"cancelled"} if any(row["state"] == "cancelled" for row in record.tables["jobs"]) else set()
    assert {What.RESUMED, What.OVERFLOW, What.STOPS, What.UNSAVED, What.HANGS, What.STORE_BACK} <= seen
    assert {What.HELD, What.FREED, What.CLOSED, What.OPENED} <= seen
    assert {"move", "pause", "hold", "drain", "interactive"} <= causes
    assert {"completed", "lost", "crashed", "error", "invalid", "stopped", "shared", "cancelled"} <= outcomes


def test_a_run_that_breaks_a_promise_prints_its_seed_and_journal(monkeypatch, capsys):
    def broken(scenario):
        record = play(scenario)
        record.tables["jobs"].pop()
        return record

    monkeypatch.setattr("cluster.simulation.simulator.play", broken)
    assert main(["--seed", "4", "--cards", "2", "--jobs", "6", "--troubles", "0"]) == 1
    told = capsys.readouterr().out
    assert "python -m cluster.simulation --seed 4 --cards 2 --jobs 6 --troubles 0" in told
    assert '"what": "step"' in told, "what happened on the cards"
    assert '"store": "attempt"' in told, "and in the store"
    assert "I5 at" in told


def test_a_good_run_says_so(capsys, tmp_path):
    journal = tmp_path / "journal.jsonl"
    assert main(["--seed", "1", "--cards", "3", "--jobs", "4", "--journal", str(journal)]) == 0
    assert "seed 1: python -m cluster.simulation --seed 1 --cards 3 --jobs 4" in capsys.readouterr().out
    assert '"what": "submitted"' in journal.read_text()


def test_progress_costs_no_write_per_step():
    """Ten times the steps in the same time make no more transactions: progress travels with the leases."""

    def writes_of(steps: int) -> tuple[int, int]:
        counted: list[str] = []

        class Counted(DispatchStore):
            def __getattribute__(self, name):
                if name in ("renew", "record_cards", "start", "finish_each"):
                    counted.append(name)
                return super().__getattribute__(name)

        scenario = draw(1, cards=2, jobs=4, troubles=0)
        batches = tuple(
            replace(
                batch,
                at=0.0,
                jobs=tuple(
                    replace(job, step_s=40.0 / steps, spec=job.spec.model_copy(update={"steps": steps}))
                    for job in batch.jobs
                    if job.spec.family != "camera"
                ),
            )
            for batch in scenario.batches
        )
        record = play(replace(scenario, batches=batches, noise=0.0), make_dispatch_store=Counted)
        assert check(record) == []
        return sum(1 for _ in record.of(What.STEP)), len(counted)

    few_steps, few = writes_of(10)
    many_steps, many = writes_of(100)
    assert many_steps >= 9 * few_steps
    assert many <= few + 6


def test_no_store_is_polled_while_no_card_is_free():
    """Two minutes of clips on every card: leases are renewed and little else; a freed card takes the next at once."""
    looks: list[float] = []
    scenario = draw(2, cards=2, jobs=6, troubles=0)
    jobs = [job for batch in scenario.batches for job in batch.jobs if job.spec.family != "camera"]
    job = replace(jobs[0], step_s=20.0, spec=jobs[0].spec.model_copy(update={"steps": 10}), needs_bytes=2**20)
    rows = tuple(replace(job, key=f"k{n}") for n in range(4))
    cards = tuple(replace(card, speed=1.0) for card in scenario.cards)
    timing = replace(scenario.timing, poll_s=0.25, look_s=60.0, renew_s=5.0)
    batch = replace(scenario.batches[0], jobs=rows, at=2.0, cancelled_at=None)

    class Looking(DispatchStore):
        def waiting(self, *args):
            looks.append(self._db._clock())
            return super().waiting(*args)

    record = play(
        replace(scenario, batches=(batch,), cards=cards, timing=timing, noise=0.0), make_dispatch_store=Looking
    )
    assert check(record) == []
    claims = [c.at for c in record.changes if c.what == "attempt"]
    first_free = min(e.at for e in record.of(What.OFF_CARD))
    while_busy = [at for at in looks if claims[1] + 1 < at - 1_000_000 < first_free - 1]
    assert first_free - claims[1] > 100
    assert len(while_busy) <= 4, "once a minute, where it was four times a second"
    freed = sorted(e.at for e in record.of(What.OFF_CARD))[:2]
    assert all(claim - free < 0.5 for claim, free in zip(claims[2:], freed, strict=True)), "and none waits for a poll"
