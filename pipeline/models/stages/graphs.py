"""Evaluations of one run recorded as a CUDA graph, where it is seen that the card waits for launches."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import torch

from pipeline.models.hooks.graphed import EvaluationGraph

#: Share of a step that passes before all of it is launched, from which on launching is what the step waits for. Where
#: the card has more to do it is still computing by then.
LAUNCH_BOUND = 0.8
#: Steps that are looked at, and steps that must be left to pay for recording.
LOOKS, LEAST_LEFT = 2, 4


class RecordedEvaluation(Protocol):
    """An evaluation that can be replayed; `EvaluationGraph` is one."""

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """What the evaluation gives for `inputs`."""
        ...

    def free(self) -> None:
        """Give its memory back."""
        ...


class GraphedRun:
    """One run's evaluations by compiled kernels: watched, recorded once if launching is what they wait for, replayed.

    Whatever fails is told, its memory given back, and the run goes on without.
    """

    def __init__(
        self,
        steps: int,
        failed: Callable[[str], None],
        record: Callable[[Callable[..., torch.Tensor], tuple[torch.Tensor, ...]], RecordedEvaluation] = EvaluationGraph,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`steps` of the run; `failed` is told why nothing is recorded or replayed any more."""
        self._left, self._failed, self._record, self._clock = steps, failed, record, clock
        self._graph: RecordedEvaluation | None = None
        self._wanted, self._ended = False, False
        self._shares: list[float] = []
        self._began_at = self._launched_at = clock()
        #: Steps that were replayed.
        self.replayed = 0

    def evaluate(self, evaluate: Callable[..., torch.Tensor], inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """`evaluate(*inputs)`, launched or replayed. Raises what it raises."""
        if self._graph is None and not self._wanted:
            self._began_at = self._clock()
            found = evaluate(*inputs)
            self._launched_at = self._clock()
            return found
        try:
            if self._graph is None:
                self._graph = self._record(evaluate, inputs)
            found = self._graph(*inputs)
            self.replayed += 1
            return found
        except Exception as error:
            lines = f"{type(error).__name__}: {error}".splitlines()
            reason = lines[0][:300]
        # Outside the `except`: the error's traceback holds activations, and is let go of here.
        self.end()
        self._failed(reason)
        return evaluate(*inputs)

    def step_done(self, *, settled: bool) -> None:
        """A step is done, and the card has finished it. Not `settled`: something was compiled or loaded in it."""
        self._left -= 1
        if self._wanted or self._ended or not settled:
            return
        took = self._clock() - self._began_at
        self._shares.append((self._launched_at - self._began_at) / took if took > 0 else 0.0)
        if len(self._shares) >= LOOKS:
            self._wanted = min(self._shares) >= LAUNCH_BOUND and self._left >= LEAST_LEFT
            self._ended = not self._wanted

    def end(self) -> None:
        """Free what was recorded; nothing is any more."""
        graph, self._graph = self._graph, None
        self._wanted, self._ended = False, True
        if graph is not None:
            graph.free()
