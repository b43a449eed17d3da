"""What a clip and its layout lay over the denoiser while its loop runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.clips.clip import Adapter, ClipSpec
from pipeline.devices.emulated import off_card
from pipeline.families import Stage
from pipeline.families.layouts import Layout
from pipeline.models.hooks.chunking import chunk_feed_forward
from pipeline.models.parts import Parts
from pipeline.models.stages.residency import Residency


class DenoiserHooks:
    """Lays the techniques of `pipeline.models.hooks` over one model's denoiser, in this order:

    1. feed-forward layers in chunks, as the layout says; they stay until another layout says otherwise;
    2. the clip's adapter, which stays until a clip asks for another or for none;
    3. the clip's step cache, for one run of the loop.
    """

    def __init__(self, parts: Parts, residency: Residency) -> None:
        self._parts = parts
        self._residency = residency
        self._adapter: Adapter | None = None
        #: Files of the adapters that clips may ask for, by SHA-256.
        self.adapters: Mapping[str, Path] = {}

    @contextmanager
    def laid_on(self, spec: ClipSpec, layout: Layout, scheduler: Any) -> Iterator[None]:
        """Around the loop of one phase; `scheduler` is laid out for it.

        Raises `pipeline.weights.weights.WeightsError` for an adapter that cannot be laid on.
        """
        chunk_feed_forward(self._parts.of(Stage.DENOISE), layout.chunk_feed_forward)
        self._adapt(spec.adapter)
        if spec.step_cache == 1:
            yield
            return
        # Imported when asked for: DeepCache costs seconds.
        from pipeline.models.hooks.step_cache import reusing_deep_layers

        with reusing_deep_layers(self._parts.of(Stage.DENOISE)[0], scheduler, spec.step_cache):
            yield

    def _adapt(self, adapter: Adapter | None) -> None:
        if adapter == self._adapter:
            return
        # Imported when asked for: peft costs seconds.
        from pipeline.models.hooks import adapters

        network = self._parts.of(Stage.DENOISE)[0]
        placed = self._residency.is_placed(Stage.DENOISE)
        self._residency.displace(Stage.DENOISE)
        with off_card():
            if self._adapter is not None:
                adapters.take_off(network)
                self._adapter = None
            if adapter is not None:
                adapters.put_on(network, adapter, self.adapters.get(adapter.sha256, Path(adapter.name)))
                self._adapter = adapter
        if placed:
            self._residency.place(Stage.DENOISE)
