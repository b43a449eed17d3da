"""One evaluation recorded as a CUDA graph and replayed: all its kernels by one launch.

Recorded anew for each run of the loop, and gone with it: weights may move between runs, conditions are other tensors,
and what a graph's private pool holds survives `torch.cuda.empty_cache`. Recording computes nothing and costs about what
an evaluation's launches do.
"""

from __future__ import annotations

from collections.abc import Callable

import torch


class GraphError(Exception):
    """An evaluation cannot be recorded, or is asked for with other inputs than it was recorded with."""


class EvaluationGraph:
    """A recorded evaluation. What it reads besides its inputs must stay where it is, and is read as it is by then."""

    def __init__(self, evaluate: Callable[..., torch.Tensor], inputs: tuple[torch.Tensor, ...]) -> None:
        """Record `evaluate(*inputs)`, which was computed before, so that nothing is compiled or chosen any more.

        Raises what recording raises: `RuntimeError` where something waits for the card, `torch.OutOfMemoryError`.
        """
        self._inputs = tuple(each.clone() for each in inputs)
        self._graph = torch.cuda.CUDAGraph()
        try:
            _clear_workspaces()
            # Other threads may copy frames of the clip before, and allocate, meanwhile. Entering it frees cached
            # blocks, so that the private pool takes the place of what the evaluations before it took.
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._output = evaluate(*self._inputs)
        except BaseException:
            self._graph.reset()
            raise
        finally:
            # cuBLAS would keep one in the private pool, and use it when the pool is gone.
            _clear_workspaces()

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """What the evaluation gives for `inputs`, a tensor of its own. Raises `GraphError` for other shapes."""
        for kept, given in zip(self._inputs, inputs, strict=True):
            if (kept.shape, kept.dtype, kept.device) != (given.shape, given.dtype, given.device):
                raise GraphError(f"recorded with {tuple(kept.shape)}, asked with {tuple(given.shape)}")
        for kept, given in zip(self._inputs, inputs, strict=True):
            kept.copy_(given)
        self._graph.replay()
        return self._output.clone()

    def free(self) -> None:
        """Give the private pool back. Nothing can be replayed afterwards."""
        del self._output
        self._inputs = ()
        self._graph.reset()


def _clear_workspaces() -> None:
    # What torch's own graphs of compiled code do (`torch._inductor.cudagraph_trees`).
    torch._C._cuda_clearCublasWorkspaces()
