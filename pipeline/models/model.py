"""The one protocol every model of every family follows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from PIL import Image

from pipeline.clips.clip import ClipSpec
from pipeline.clips.frames import Frames, FrameSink
from pipeline.families.layouts import Layout

#: The clip as it stands after the step just done, as the bytes of a checkpoint (see `pipeline.denoising.checkpoint`).
Snapshot = Callable[[], bytes]

#: Called after every step with (steps done, steps in all, snapshot). The snapshot is None where the clip cannot be
#: left here; it is good during the call only. Raises `RenderStopped` to end the clip within that step.
OnStep = Callable[[int, int, Snapshot | None], None]

#: Called while weights load, with a short text for people.
OnLoad = Callable[[str], None]


class RenderStopped(Exception):  # noqa: N818 - a verdict, not an error
    """The clip was told to stop (cancel, lost lease, shutdown); its memory is released as this rises."""


class Model(Protocol):
    """A loaded model: renders clips one at a time."""

    def render(
        self,
        still: Image.Image,
        spec: ClipSpec,
        layout: Layout,
        on_step: OnStep,
        resume: bytes | None = None,
        sink: FrameSink | None = None,
    ) -> Frames:
        """Render one clip, from the checkpoint `resume` where one is given.

        `still` is an upright RGB picture of any size; the model fits it to `spec.size` by `spec.fit`. `sink` is told of
        the frames as they come off the card; one that raises ends the clip, as `on_step` does.
        Returns (frames, height, width, 3) uint8. The result depends on nothing but the arguments and the
        weights: never on a global random state. Raises `RenderStopped` if `on_step` does, `torch.OutOfMemoryError`
        when the card is full, `pipeline.denoising.checkpoint.CheckpointError` before the first step where `resume`
        is not a checkpoint of this clip.
        """
        ...

    def notes(self, spec: ClipSpec) -> dict[str, Any]:
        """What the provenance says of this clip beyond its spec, such as how the prompt was read; may be empty."""
        ...

    def describe(self) -> dict[str, Any]:
        """What the provenance says of the model: revision as loaded, dtype, library versions, kernels."""
        ...

    def unload(self) -> None:
        """Free everything the model has on the card; it cannot render afterwards."""
        ...
