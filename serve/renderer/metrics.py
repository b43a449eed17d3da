"""What renderers measure, exported by Ray's metrics agent of their node as `ray_clipmill_…`."""

from __future__ import annotations

from ray.util.metrics import Counter, Gauge, Histogram

from pipeline.clips.clip import ClipSpec
from pipeline.kernels.kernels import KernelCounts
from serve.renderer.cards import CardIdentity

#: Upper bounds in seconds: from camera frames to 1024p on a small card.
STEP_BOUNDS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
#: Upper bounds of measured over predicted bytes.
RATIO_BOUNDS = (0.5, 0.7, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25, 1.5, 2.0)
_STEP_TAGS = ("model", "resolution_class", "card_class")
_CARD_TAGS = ("card", "card_class")
#: Fields of `pipeline.kernels.kernels.KernelCounts`, and what their counters say.
_KERNEL_COUNTERS = {
    "compiles": "Blocks of a denoiser compiled in the first evaluation of a bucket (size, frames, rows).",
    "recompiles": "Blocks compiled again after the first evaluation of their bucket.",
    "graph_breaks": "Places at which a compiled graph broke off.",
    "fallbacks": "Buckets whose compiled kernels were given up for eager ones.",
    "compile_seconds": "Seconds of evaluations in which blocks were compiled.",
}


class RayObserver:
    """Tells Ray's metrics what rendering takes (`serve.renderer.observer.Observer`).

    One a process: Ray knows metrics by their names.
    """

    def __init__(self, identity: CardIdentity) -> None:
        self._card = {"card": identity.card, "card_class": identity.card_class}
        self._steps = Histogram(
            "clipmill_step_seconds",
            description="Seconds a step took; the sum is rebuilt from buckets: see clipmill_step_seconds_spent.",
            boundaries=list(STEP_BOUNDS_S),
            tag_keys=_STEP_TAGS,
        )
        self._spent = Counter(
            "clipmill_step_seconds_spent", description="Exact seconds spent in denoising steps.", tag_keys=_STEP_TAGS
        )
        self._predicted = Gauge(
            "clipmill_vram_predicted_bytes",
            description="Predicted peak of the clip the card rendered last.",
            tag_keys=_CARD_TAGS,
        )
        self._ratio = Histogram(
            "clipmill_vram_measured_ratio",
            description="Measured over predicted peak of clips, those that ran out of memory included.",
            boundaries=list(RATIO_BOUNDS),
            tag_keys=_STEP_TAGS,
        )
        self._measured = Gauge(
            "clipmill_vram_measured_bytes",
            description="Measured peak of the clip the card rendered last.",
            tag_keys=_CARD_TAGS,
        )
        self._checkpoint = Gauge(
            "clipmill_checkpoint_bytes", description="Bytes of the checkpoint written last.", tag_keys=_STEP_TAGS
        )
        self._kernels = {
            name: Counter(f"clipmill_kernel_{name}", description=says, tag_keys=_STEP_TAGS)
            for name, says in _KERNEL_COUNTERS.items()
        }

    def step(self, spec: ClipSpec, seconds: float) -> None:
        """Count a step of so many seconds."""
        tags = self._tags(spec)
        self._steps.observe(seconds, tags)
        # Ray refuses to count by 0.
        if seconds > 0:
            self._spent.inc(seconds, tags)

    def memory(self, spec: ClipSpec, predicted_bytes: int, measured_bytes: int) -> None:
        """Show predicted and measured peak of the card's last clip, and count their ratio where one was predicted."""
        if predicted_bytes:
            self._ratio.observe(measured_bytes / predicted_bytes, self._tags(spec))
        self._predicted.set(predicted_bytes, self._card)
        self._measured.set(measured_bytes, self._card)

    def checkpoint(self, spec: ClipSpec, nbytes: int) -> None:
        """Show the bytes of the checkpoint written last."""
        self._checkpoint.set(nbytes, self._tags(spec))

    def kernels(self, spec: ClipSpec, counts: KernelCounts) -> None:
        """Count what was compiled, compiled again, broke off or was given up."""
        for name, counter in self._kernels.items():
            # Ray refuses to count by 0.
            if (count := getattr(counts, name)) > 0:
                counter.inc(count, self._tags(spec))

    def _tags(self, spec: ClipSpec) -> dict[str, str]:
        return {
            "model": spec.family,
            "resolution_class": spec.resolution_class.value,
            "card_class": self._card["card_class"],
        }
