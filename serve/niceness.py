"""Threads that render on the processor give way to all that a farm answers people with."""

from __future__ import annotations

import os

from serve.settings import WORKER_NICENESS_VARIABLE, FarmArgs

#: What Ray itself takes for work that keeps a processor busy.
RENDERING_NICENESS = 15


def gives_way(farm: FarmArgs) -> bool:
    """Whether threads of this farm's renderers should: they compute on the processor, and share it with the rest.

    On clusters Ray gives all its workers one niceness, and renderers on a GPU have to keep it busy.
    """
    return farm.emulate and os.environ.get(WORKER_NICENESS_VARIABLE) == "0"


def give_way() -> None:
    """Make the calling thread nice, and whatever threads and processes it starts from now on; others stay as they are.

    On Linux niceness is a thread's own (`setpriority(2)`, "C library/kernel differences").
    """
    if os.getpriority(os.PRIO_PROCESS, 0) < RENDERING_NICENESS:
        os.setpriority(os.PRIO_PROCESS, 0, RENDERING_NICENESS)
