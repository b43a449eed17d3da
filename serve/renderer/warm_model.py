"""The model that a renderer keeps loaded between clips, and what outlives it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.storage import Storage, StorageShelf
from pipeline.devices.protocol import Device
from pipeline.families import Family, family_named
from pipeline.kernels.kernels import KernelChoice, KernelCounts
from pipeline.models.loading import load_model
from pipeline.models.model import Model
from serve.renderer.active_clip import ActiveClip

if TYPE_CHECKING:
    from pipeline.denoising.caches import TensorCache


@dataclass(frozen=True, kw_only=True)
class WeightsPlace:
    """Where weights come from."""

    home: Path
    #: A local folder per family.
    folders: dict[str, Path]
    offline: bool
    #: Address asked instead of the hub; empty for the hub.
    mirror: str = ""
    #: Families whose licence was accepted in the farm's configuration.
    accepted: frozenset[str] = frozenset()
    #: Safetensors of the adapters that clips may name, by SHA-256.
    adapters: Mapping[str, Path] = field(default_factory=dict)


class WarmModel:
    """At most one loaded model: it stays on the card until a clip of another family comes."""

    def __init__(
        self,
        device: Device,
        weights: WeightsPlace,
        storage: Storage,
        kernels: KernelChoice = KernelChoice.EAGER,
        *,
        cuda_graphs: bool = False,
    ) -> None:
        """`kernels`: what models compute with on this card; `cuda_graphs`: compiled steps may be recorded."""
        self._device = device
        self._kernels, self._cuda_graphs = kernels, cuda_graphs
        self._weights = weights
        self._storage = storage
        self._family: Family | None = None
        self._model: Model | None = None
        # Outlives every model: what one clip encoded serves the next after a swap there and back.
        self._cache: TensorCache | None = None

    @property
    def family(self) -> str | None:
        """Name of the family whose weights are loaded; None where none are."""
        return self._family.name if self._family else None

    @property
    def weights_bytes(self) -> int | None:
        """Bytes of the weights that are on the card now; None where no model is loaded, or it does not say."""
        found = getattr(self._model, "weights_bytes", None)
        return None if found is None else int(found)

    @property
    def kernel_counts(self) -> KernelCounts:
        """What compiling came to since the model was loaded; nothing for one that has nothing to compile."""
        found: KernelCounts = getattr(self._model, "kernel_counts", KernelCounts())
        return found

    @property
    def cache(self) -> TensorCache:
        """Encodings of prompts and stills, in this process and in storage; the first call loads torch."""
        if self._cache is None:
            from pipeline.denoising.caches import TensorCache

            self._cache = TensorCache(shelf=StorageShelf(self._storage))
        return self._cache

    def work(self, family: Family | None) -> AbstractContextManager[None]:
        """Enter in a thread that computes with a model of `family`: `Device.work`, where the family needs torch."""
        # A family without torch leaves the card's torch side closed: opening it costs seconds and 350 MB.
        return self._device.work() if family is None or family.needs_torch else nullcontext()

    def load(self, clip: ActiveClip) -> Model:
        """The model of the clip's family, loaded where it is not there yet. Called inside `work`.

        Expects that no other family is loaded (`make_room`). Raises what `load_model` raises.
        """
        if self._model is None:
            family = family_named(clip.spec.family)
            self._model = load_model(
                family,
                self._device,
                weights_dir=self._weights.folders.get(family.name),
                home=self._weights.home,
                offline=self._weights.offline,
                on_load=clip.loads,
                mirror=self._weights.mirror,
                accepted=self._weights.accepted,
                adapters=self._weights.adapters,
                cache=self.cache if family.needs_torch else None,
                kernels=self._kernels,
            )
            self._family = family
        if kernels := getattr(self._model, "kernels", None):
            # Compiling may take longer than any step: it is told as loading is.
            kernels.tell = clip.loads
            kernels.graphs = self._cuda_graphs
            kernels.measured = clip.assignment.kernels
            kernels.tell_run = clip.kernel_runs.append
        return self._model

    def make_room(self, family: str) -> None:
        """Unload the model of any other family than `family`."""
        if self.family not in (None, family):
            self.unload()

    def unload(self) -> None:
        """Take the model off the card, where there is one."""
        if self._model is not None:
            with self.work(self._family):
                self._model.unload()
            self._model = self._family = None
            self._device.free_cached()
