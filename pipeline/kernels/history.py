"""What one process did in its buckets so far, and what is chosen of that and of what the farm knows."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.families.layouts import Layout
from pipeline.kernels.buckets import Bucket
from pipeline.kernels.choosing import ChosenKernels, ExpectedWork, choose
from pipeline.kernels.kernels import KernelMode
from pipeline.kernels.measured import KernelMeasurements, KernelRun, ShapeMeasurements


class BucketHistory:
    """Runs of one process, by bucket; for `kernels: auto`."""

    def __init__(self) -> None:
        self._measured: dict[tuple[Bucket, Layout], KernelMeasurements] = {}
        #: Steps since a bucket last had compiled kernels.
        self._steps: dict[Bucket, int] = {}
        self._used: dict[Bucket, KernelMode] = {}

    def choose(
        self, bucket: Bucket, layout: Layout, *, steps: int, compiled: bool, told: Sequence[ShapeMeasurements]
    ) -> ChosenKernels:
        """The kernels of a run of `steps` steps. `compiled`: this process has them; `told`: what the farm measured."""
        known = self._measured.get((bucket, layout), KernelMeasurements())
        for one in told:
            if (one.width, one.height, one.layout) == (bucket.width, bucket.height, layout):
                known = known.merged(one.measured)
        work = ExpectedWork(
            steps=steps,
            earlier_steps=self._steps.get(bucket, 0),
            compiled=compiled,
            used=self._used.get(bucket),
        )
        return choose(known, work)

    def ran(self, bucket: Bucket, run: KernelRun, steps: int) -> None:
        """A run of the bucket has ended after `steps` steps."""
        key = bucket, run.layout
        self._measured[key] = self._measured.get(key, KernelMeasurements()).plus(run)
        self._steps[bucket] = self._steps.get(bucket, 0) + steps
        if not run.trial:
            self._used[bucket] = run.mode

    def dropped(self, bucket: Bucket) -> None:
        """Compiled kernels of the bucket are no longer there: what they are to pay for begins anew."""
        self._steps.pop(bucket, None)
