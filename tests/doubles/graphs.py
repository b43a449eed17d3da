"""A double of CUDA graphs for a CPU: what is computed while recording is done again, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten


class FakeGraph:
    """Stands in for `torch.cuda.CUDAGraph`.

    Replaying does the recorded operations on the very tensors that they were recorded on, in their order, as a graph
    does with addresses: Python's part of the evaluation is not run, tensors that were given then are read as they are
    now, results lie where the first ones lay.
    """

    #: Graphs that hold memory, by the order in which they were made.
    alive: list[FakeGraph]
    #: Raised by the next recording.
    fault: Exception | None

    def __init__(self) -> None:
        self.operations: list[tuple[Callable[..., Any], Any, Any, Any]] = []
        self.replays = 0
        type(self).alive.append(self)

    def replay(self) -> None:
        """Do again what was recorded."""
        self.replays += 1
        for func, args, kwargs, kept in self.operations:
            again = tree_flatten(func(*args, **kwargs))[0]
            for old, new in zip(tree_flatten(kept)[0], again, strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)

    def reset(self) -> None:
        """Give the memory back."""
        self.operations.clear()
        if self in type(self).alive:
            type(self).alive.remove(self)

    @classmethod
    def install(cls, monkeypatch: pytest.MonkeyPatch) -> type[FakeGraph]:
        """Stand in for what torch has of graphs until the test ends."""
        cls.alive, cls.fault = [], None

        @contextmanager
        def recording(graph: FakeGraph, *, capture_error_mode: str) -> Iterator[None]:
            assert capture_error_mode == "thread_local", "other threads allocate meanwhile"
            if cls.fault is not None:
                fault, cls.fault = cls.fault, None
                raise fault
            with _Recorder(graph):
                yield

        monkeypatch.setattr(torch.cuda, "CUDAGraph", cls)
        monkeypatch.setattr(torch.cuda, "graph", recording)
        monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None, raising=False)
        return cls


class _Recorder(TorchDispatchMode):
    def __init__(self, graph: FakeGraph) -> None:
        super().__init__()
        self._graph = graph

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self._graph.operations.append((func, args, kwargs or {}, found))
        return found
