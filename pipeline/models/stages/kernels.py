"""Which kernels a clip's loop runs with: decided, laid over the denoiser, given up where they fail, and told."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from pipeline.clips.clip import ClipSpec
from pipeline.families import Stage
from pipeline.families.layouts import Layout
from pipeline.kernels.buckets import Bucket, eager_because
from pipeline.kernels.choosing import ChosenKernels
from pipeline.kernels.history import BucketHistory
from pipeline.kernels.kernels import KernelChoice, KernelCounts, KernelMode, Kernels, MemoryFormat, attention_order
from pipeline.kernels.measured import KernelRun, ShapeMeasurements
from pipeline.models.hooks.compiling import (
    CompiledBlocks,
    CompileError,
    arrange_convolutions,
    attention_by,
    graph_breaks,
    repeated_blocks,
)
from pipeline.models.hooks.graphed import EvaluationGraph
from pipeline.models.hooks.packed import packed_projections
from pipeline.models.parts import Parts
from pipeline.models.stages.graphs import GraphedRun, RecordedEvaluation

log = logging.getLogger("clipmill.kernels")

#: Buckets whose compiled blocks are kept: the oldest goes, and is compiled anew from the files in the cache.
KEPT_BUCKETS = 16


class DenoiserKernels:
    """The kernels of one model's denoiser.

    `run` is entered around one run of the loop, and `predict` around each evaluation inside it. A bucket whose blocks
    cannot be compiled, or are compiled at every step, is computed by eager kernels from then on, by this process:
    logged once, the evaluation in which it showed done again.
    """

    #: The back end of `torch.compile`.
    backend: str | Callable[..., Any] = "inductor"
    #: Records an evaluation with its inputs.
    record: Callable[..., RecordedEvaluation] = EvaluationGraph

    def __init__(self, parts: Parts, torch_device: str) -> None:
        self._parts = parts
        self._torch_device = torch_device
        # Of decoders as they were loaded: while one decodes, it may be rounded or widened, as the layout tells.
        decoders = (name for name, stage in parts.stages.items() if stage is Stage.DECODE)
        self._decoder_dtypes = {name: _dtypes(getattr(parts, name)) for name in decoders}
        #: What the farm asks for; may be set between clips.
        self.choice = KernelChoice.EAGER
        #: Whether compiled evaluations may be recorded as CUDA graphs, where they wait for launches; on a card only.
        self.graphs = False
        #: Told before each block that is compiled: no step, and all of them may take minutes.
        self.tell: Callable[[str], None] = lambda _text: None
        #: What the farm measured of the clip's phases; set before each clip.
        self.measured: Sequence[ShapeMeasurements] = ()
        #: Told what each run of the loop measured, where its blocks could have been compiled.
        self.tell_run: Callable[[KernelRun], None] = lambda _run: None
        self.counts = KernelCounts()
        self._history = BucketHistory()
        self._watch = _RunWatch()
        self._chosen_because = ""
        self._buckets: dict[Bucket, CompiledBlocks] = {}
        self._failed: dict[Bucket, str] = {}
        self._mode = KernelMode.EAGER
        self._eager_because = ""
        self._memory_format = MemoryFormat.CONTIGUOUS
        self._packed = False
        self._graphed: GraphedRun | None = None
        #: Steps of the last run that were replayed.
        self._replayed = 0
        #: Why a bucket's evaluations are not recorded any more.
        self._ungraphed: dict[Bucket, str] = {}
        #: Convolutions' weights may lie channels last.
        self._arranged = False
        #: While blocks are compiled: what takes them off again.
        self._laid: ExitStack | None = None
        self._blocks: CompiledBlocks | None = None
        self._bucket: Bucket | None = None
        set_tf32()

    @property
    def compiles(self) -> bool:
        """Whether blocks are compiled in the run that is on."""
        return self._blocks is not None

    @property
    def used(self) -> Kernels:
        """The kernels of the run that is on, or was last."""
        compiled = self._mode is not KernelMode.EAGER
        return Kernels(
            mode=self._mode,
            eager_because=self._eager_because,
            chosen_because=self._chosen_because,
            attention=attention_order(self._capability) if compiled else (),
            memory_format=self._memory_format if compiled else MemoryFormat.CONTIGUOUS,
            packed_projections=compiled and self._packed,
            cuda_graphs=compiled and self._has_replayed,
            architecture=_architecture(self._capability),
            tf32_convolutions=torch.backends.cudnn.allow_tf32,
            tf32_products=torch.backends.cuda.matmul.allow_tf32,
            dtypes={
                name: self._decoder_dtypes.get(name) or _dtypes(getattr(self._parts, name))
                for name in self._parts.stages
            },
        )

    @contextmanager
    def run(self, bucket: Bucket, spec: ClipSpec, layout: Layout, *, steps: int) -> Iterator[None]:
        """Inside, the denoiser, which lies where it computes, is evaluated by the kernels that fit the clip.

        `steps`: how many are to be done. `step_done` is to be called after each.
        """
        set_tf32()
        network = self._parts.of(Stage.DENOISE)[0]
        reason = eager_because(self.choice, spec, layout, watched=_is_watched(), failed=self._failed.get(bucket, ""))
        # Eager steps of what could be compiled are measured too, also where no farm asks for it or a compiler failed.
        compares = not eager_because(KernelChoice.AUTO, spec, layout, watched=_is_watched())
        chosen = None
        if not reason and self.choice is KernelChoice.AUTO:
            chosen = self._history.choose(
                bucket, layout, steps=steps, compiled=bucket in self._buckets, told=self.measured
            )
        self._chosen_because = chosen.because if chosen else ""
        self._mode = KernelMode.EAGER
        self._eager_because = "" if self.choice is KernelChoice.EAGER else reason
        self._watch = _RunWatch(self.counts.compile_seconds)
        self._replayed = 0
        try:
            eager = bool(reason) or (chosen is not None and not chosen.compiles)
            with self._kernels_of(network, bucket, layout, steps, eager=eager):
                yield
        except torch.OutOfMemoryError:
            # Eager, the clip may have fitted.
            self._watch.failed |= chosen is not None and chosen.trial and chosen.compiles
            raise
        finally:
            if compares:
                self._end_run(bucket, layout, chosen)

    @contextmanager
    def _kernels_of(
        self, network: torch.nn.Module, bucket: Bucket, layout: Layout, steps: int, *, eager: bool
    ) -> Iterator[None]:
        if eager:
            if self._arranged:
                # A compiled clip left them so.
                arrange_convolutions(network, channels_last=False)
                self._arranged = False
            yield
            return
        with ExitStack() as laid:
            self._laid, self._bucket = laid, bucket
            try:
                self._lay_on(network, bucket, laid)
                if self._blocks is not None:
                    laid.enter_context(self._graphing(bucket, layout, steps))
                yield
            finally:
                self._laid = self._blocks = self._bucket = None

    @contextmanager
    def _graphing(self, bucket: Bucket, layout: Layout, steps: int) -> Iterator[None]:
        """Inside, evaluations may be recorded, where the farm asks for it and nothing moves while they are computed."""
        if not self.graphs or layout.stream_weights or bucket in self._ungraphed or self._capability is None:
            yield
            return

        def failed(reason: str) -> None:
            log.warning("%s is rendered without CUDA graphs from now on: %s", bucket, reason)
            self._ungraphed[bucket] = reason

        self._graphed = GraphedRun(steps, failed, self.record)
        try:
            yield
        finally:
            self._replayed = self._graphed.replayed
            self._graphed.end()
            self._graphed = None

    @property
    def _has_replayed(self) -> bool:
        return bool(self._graphed.replayed if self._graphed is not None else self._replayed)

    def step_done(self) -> None:
        """A step is done, and the card has finished it."""
        settled = self._watch.step(self.counts.compile_seconds)
        if self._graphed is not None:
            self._graphed.step_done(settled=settled)

    def _end_run(self, bucket: Bucket, layout: Layout, chosen: ChosenKernels | None) -> None:
        # Where a trial's blocks could not be compiled it is an eager run as any other.
        is_trial = chosen is not None and chosen.trial and chosen.mode is self._mode
        run = self._watch.run(bucket, layout, self._mode, trial=is_trial)
        self._history.ran(bucket, run, self._watch.steps)
        if run.steps or run.compile_s or run.failed:
            self.tell_run(run)

    def predict(self, evaluate: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
        """`evaluate(*inputs)`; done again by eager kernels where it shows that blocks cannot be compiled."""
        blocks = self._blocks
        if blocks is not None:
            before = (blocks.compiles, blocks.recompiles, blocks.compile_seconds, graph_breaks())
            try:
                with blocks.counted():
                    graphed = self._graphed
                    found = evaluate(*inputs) if graphed is None else graphed.evaluate(evaluate, inputs)
                self._mode = KernelMode.COMPILED
                return found
            except CompileError as error:
                reason = str(error)
            finally:
                self.counts = self.counts.plus(
                    compiles=blocks.compiles - before[0],
                    recompiles=blocks.recompiles - before[1],
                    compile_seconds=blocks.compile_seconds - before[2],
                    graph_breaks=graph_breaks() - before[3],
                )
            self._give_up(reason)
        found = evaluate(*inputs)
        if self._mode is KernelMode.COMPILED:
            self._mode = KernelMode.MIXED
        return found

    def _lay_on(self, network: torch.nn.Module, bucket: Bucket, laid: ExitStack) -> None:
        try:
            blocks = self._buckets.pop(bucket, None)
            if blocks is None:
                blocks = CompiledBlocks(network, self.backend)
        except CompileError as error:
            self._give_up(str(error))
            return
        self._arranged = True
        if arrange_convolutions(network, channels_last=True):
            self._memory_format = MemoryFormat.CHANNELS_LAST
        # Used last, it goes last.
        self._buckets[bucket] = blocks
        while len(self._buckets) > KEPT_BUCKETS:
            oldest = next(iter(self._buckets))
            del self._buckets[oldest]
            self._history.dropped(oldest)
        self._packed = bool(laid.enter_context(packed_projections(repeated_blocks(network))))
        laid.enter_context(attention_by(attention_order(self._capability)))
        laid.enter_context(blocks.on(partial(self._tell, bucket)))
        self._blocks = blocks

    def _tell(self, bucket: Bucket) -> None:
        self.tell(f"compiling kernels for {bucket}")

    def _give_up(self, reason: str) -> None:
        bucket = self._bucket
        assert bucket is not None
        log.warning("%s is rendered by eager kernels from now on: %s", bucket, reason)
        self._failed[bucket] = self._eager_because = f"compiling failed ({reason})"
        self._watch.failed = True
        self._buckets.pop(bucket, None)
        self.counts = self.counts.plus(fallbacks=1)
        if self._laid is not None:
            self._laid.close()
        self._blocks = None
        arrange_convolutions(self._parts.of(Stage.DENOISE)[0], channels_last=False)
        self._arranged = False

    def release(self) -> None:
        """Let go of what was compiled: it refers to the networks."""
        for bucket in self._buckets:
            self._history.dropped(bucket)
        self._buckets.clear()

    @property
    def _capability(self) -> tuple[int, int] | None:
        if not self._torch_device.startswith("cuda"):
            return None
        return torch.cuda.get_device_capability(self._torch_device)


class _RunWatch:
    """Takes the time of one run's steps, those apart in which something was compiled."""

    def __init__(self, compile_seconds: float = 0.0) -> None:
        """`compile_seconds`: what compiling took in this process so far."""
        #: Compiled kernels were given up.
        self.failed = False
        #: Steps so far.
        self.steps = 0
        self._settled: list[float] = []
        #: Seconds of the steps in which something was compiled.
        self._compiling: list[float] = []
        self._compile_seconds = self._compiled_before = compile_seconds
        self._at = time.monotonic()

    def step(self, compile_seconds: float) -> bool:
        """One more step is done; `compile_seconds`: what compiling took in this process by now.

        Whether the step tells how long steps take: nothing was compiled in it, and kernels were loaded before.
        """
        now, settled = time.monotonic(), False
        if compile_seconds > self._compile_seconds:
            self._compiling.append(now - self._at)
        elif self.steps:
            # The first one loads kernels and plans.
            self._settled.append(now - self._at)
            settled = True
        self._at, self._compile_seconds, self.steps = now, compile_seconds, self.steps + 1
        return settled

    def run(self, bucket: Bucket, layout: Layout, mode: KernelMode, *, trial: bool) -> KernelRun:
        """What the run says by now."""
        steps, steps_s = len(self._settled), sum(self._settled)
        compile_s = self._compile_seconds - self._compiled_before
        if steps:
            compile_s = max(0.0, sum(self._compiling) - len(self._compiling) * steps_s / steps)
        return KernelRun(
            width=bucket.width,
            height=bucket.height,
            layout=layout,
            mode=mode,
            trial=trial,
            steps=steps,
            steps_s=steps_s,
            compile_s=compile_s,
            failed=self.failed,
        )


def set_tf32() -> None:
    """Say what torch's defaults are: float32 convolutions may be computed in TF32, float32 products may not.

    Of this process. A library that has set them otherwise would change every float32 decoder.
    """
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.matmul.allow_tf32 = False


def _is_watched() -> bool:
    """Whether a mode follows this thread's operations.

    torch's own `is_in_torch_dispatch_mode` is one flag of the process: two threads that leave their modes in the order
    in which they entered them leave it set for good.
    """
    return bool(_get_current_dispatch_mode_stack())


def _architecture(capability: tuple[int, int] | None) -> str:
    if capability is None:
        return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return f"sm{capability[0]}{capability[1]}"


def _dtypes(network: torch.nn.Module) -> str:
    found = {str(parameter.dtype).removeprefix("torch.") for parameter in network.parameters()}
    return "+".join(sorted(found))
