"""Threads that render on the processor give way; those that answer for them do not."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from serve.embedded import emulated_classes, gpu_classes
from serve.niceness import RENDERING_NICENESS, give_way, gives_way
from serve.settings import WORKER_NICENESS_VARIABLE, FarmArgs


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, 0)


def test_one_thread_gives_way_with_what_it_starts() -> None:
    seen: list[int] = []

    def work() -> None:
        give_way()
        give_way()
        child = subprocess.run([sys.executable, "-c", "import os; print(os.nice(0))"], capture_output=True, check=True)
        inner = threading.Thread(target=lambda: seen.append(niceness()))
        inner.start()
        inner.join()
        seen.extend([niceness(), int(child.stdout)])

    before = niceness()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [max(before, RENDERING_NICENESS)] * 3
    assert niceness() == before


@pytest.mark.parametrize(("emulate", "niceness_of_ray", "expected"), [
    (True, "0", True), (True, None, False), (True, "15", False), (False, "0", False),
])  # fmt: skip
def test_only_emulated_cards_beside_the_farm_give_way(
    monkeypatch: pytest.MonkeyPatch, emulate: bool, niceness_of_ray: str | None, expected: bool
) -> None:
    monkeypatch.delenv(WORKER_NICENESS_VARIABLE, raising=False)
    if niceness_of_ray is not None:
        monkeypatch.setenv(WORKER_NICENESS_VARIABLE, niceness_of_ray)
    classes = emulated_classes(["c8"]) if emulate else gpu_classes()
    assert gives_way(FarmArgs(card_classes=classes or emulated_classes(["c8"]), emulate=emulate)) is expected
