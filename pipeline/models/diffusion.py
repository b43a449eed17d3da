"""What every denoising family shares: three stages, checkpoints, caches, refinement, and leaving nothing behind.

A family brings its networks' arithmetic (`DiffusionModel`'s abstract methods); the loop, and with it progress,
cancelling, resuming and moving networks on and off the card, is here.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from PIL import Image

from pipeline import checkpoint as checkpoints
from pipeline.caches import TensorCache, cache_key, digest
from pipeline.checkpoint import Checkpoint, CheckpointError
from pipeline.clip import RENDERER_VERSION, Adapter, ClipSpec, Upscale
from pipeline.denoise import DenoiseState, Guided, Predict, Windowed, denoise, refine, start, window_spans
from pipeline.devices import Device
from pipeline.families import Family, Stage
from pipeline.footprint import retry_layout
from pipeline.layouts import Layout
from pipeline.models.chunking import chunk_feed_forward
from pipeline.models.devices import displace, off_card, place
from pipeline.models.errors import BlackOutputError, NotFiniteError
from pipeline.models.model import Frames, OnStep
from pipeline.models.parts import Conditions, Halves, Parts, along_time, clear_frames, picture_sha256, rows, widened
from pipeline.models.phases import Phase, Run
from pipeline.models.streaming import StreamedWeights
from pipeline.noise import clip_noise
from pipeline.samplers import adds_noise, give_state, make_scheduler
from pipeline.stills import fit_still

#: Latents up to this size are kept on the shelf when a clip is done, so that a larger one can start from them.
KEPT_LATENTS_BYTES = 2 * 2**20


class DiffusionModel(ABC):
    """A loaded model of one family; see `pipeline.models.model.Model`."""

    def __init__(
        self, family: Family, parts: Parts, device: Device, origin: Mapping[str, str], cache: TensorCache | None = None
    ) -> None:
        """`parts` may lie on the host: each stage's networks are put on the card when first needed."""
        self.family = family
        self._parts: Parts | None = parts
        self._device = device
        self._origin = dict(origin)
        self.cache = cache or TensorCache()
        # The network's own word: some classes keep a few parameters, the first of all among them, in float32.
        denoiser: Any = parts.of(Stage.DENOISE)[0]
        self._dtype: torch.dtype = denoiser.dtype
        self._placed: set[Stage] = set()
        self._evicting = False
        self._streaming = False
        self._streams: list[tuple[Stage, StreamedWeights]] = []
        #: Files of the adapters that clips may ask for, by SHA-256.
        self.adapters: Mapping[str, Path] = {}
        self._adapter: Adapter | None = None
        #: Names the weights in keys of the cache; whoever loads from a folder of unknown content makes it stricter.
        self.cache_name = self.weights
        #: What is being done: tells where memory ran out.
        self.stage = Stage.ENCODE

    # -- what a family brings -------------------------------------------------------------------------------

    @abstractmethod
    def condition(self, picture: Image.Image, spec: ClipSpec) -> Halves:
        """Encode prompt and picture (fitted to `spec.size`), through `self.cache`; tensors on the card, batch 1.

        Call `self.encoders()` around whatever needs the encoders (or the VAE's), so that they are on the card.
        """

    @abstractmethod
    def latent_shape(self, spec: ClipSpec) -> tuple[int, int, int, int]:
        """(channels, frames, height, width) of the clip's latents."""

    @abstractmethod
    def evaluate(self, latents: torch.Tensor, timestep: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        """The network's raw prediction, shaped like `latents` (rows, channels, frames, height, width)."""

    @abstractmethod
    def decode_chunks(self, latents: torch.Tensor, layout: Layout) -> Iterator[torch.Tensor]:
        """Decode (1, channels, frames, height, width) to chunks of (frames, 3, height, width) in -1…1, in order."""

    @abstractmethod
    def encode_frames(self, pixels: torch.Tensor) -> torch.Tensor:
        """Latents of a clip's pixels, (1, 3, frames, height, width) in -1…1, as `decode_chunks` would take them."""

    def guidance(self, spec: ClipSpec) -> float | torch.Tensor:
        """Scale of guidance: a number, or one for each latent frame, shaped to spread over latents."""
        return spec.guidance

    def cut(self, conditions: Conditions, first: int, end: int) -> Conditions:
        """The conditions of a window of latent frames `first … end`."""
        raise NotImplementedError(f"{self.family.name} has no windows")

    def settle(self, latents: torch.Tensor, conditions: Halves) -> torch.Tensor:
        """The finished latents after the last step; a family that pins some of them does so here."""
        return latents

    def notes(self, spec: ClipSpec) -> dict[str, Any]:
        """What the provenance of one clip should say beyond its spec."""
        return {}

    @contextmanager
    def stepping(self, spec: ClipSpec, scheduler: Any) -> Iterator[None]:
        """Around the loop of one phase: the network with the clip's adapter and step cache."""
        self._adapt(spec.adapter)
        if spec.step_cache == 1:
            yield
            return
        from pipeline.models.step_cache import reusing_deep_layers

        with reusing_deep_layers(self.parts.of(Stage.DENOISE)[0], scheduler, spec.step_cache):
            yield

    # -- Model ----------------------------------------------------------------------------------------------

    @property
    def parts(self) -> Parts:
        """The components; raises `RuntimeError` after `unload`."""
        if self._parts is None:
            raise RuntimeError(f"This {self.family.title} was unloaded; load it again to render")
        return self._parts

    @property
    def device(self) -> Device:
        """The card."""
        return self._device

    @property
    def weights_bytes(self) -> int:
        """Bytes of the networks that are on the card while nothing is evaluated: between clips nothing else is."""
        if self._parts is None:
            return 0
        streamed = {stage for stage, _ in self._streams}
        return sum(
            tensor.nbytes
            for stage in self._placed - streamed
            for network in self._parts.of(stage)
            for tensor in (*network.parameters(), *network.buffers())
        )

    @property
    def dtype(self) -> torch.dtype:
        """What the denoiser computes in."""
        return self._dtype

    def render(
        self, still: Image.Image, spec: ClipSpec, layout: Layout, on_step: OnStep, resume: bytes | None = None
    ) -> Frames:
        """Render one clip; see `Model.render`. Raises `NotFiniteError` or `BlackOutputError` for a failed decode."""
        with self._leaving_nothing(), self._device.work(), torch.no_grad():
            self._lay_out(layout)
            latents = self._denoise_phases(still, spec, layout, on_step, resume)
            return self.decode(latents, layout)

    def render_batch(
        self, stills: Sequence[Image.Image], specs: Sequence[ClipSpec], layout: Layout, on_step: OnStep
    ) -> list[Frames]:
        """Render several clips in one evaluation a step; each equals its single render to rounding.

        The specifications may differ in prompts, seed, fps and guidance only, and have no base or windows;
        raises `ValueError` otherwise. The batch cannot be resumed: `on_step` gets no snapshot.
        """
        one = {"prompt": "", "negative_prompt": "", "seed": 0, "fps": 1, "guidance": 1.0}
        if len({spec.model_copy(update=one) for spec in specs}) != 1 or specs[0].base or specs[0].window:
            raise ValueError("clips of one batch share size, frames, steps and sampler, and have no base or windows")
        with self._leaving_nothing(), self._device.work(), torch.no_grad():
            self._lay_out(layout)
            singles = [
                self.condition(fit_still(still, spec.size, spec.fit), spec)
                for still, spec in zip(stills, specs, strict=True)
            ]
            halves = Halves(
                unconditional=rows([single.unconditional for single in singles]),
                conditional=rows([single.conditional for single in singles]),
            )
            scales = [torch.as_tensor(self.guidance(spec), device=self._device.torch_device) for spec in specs]
            scale = torch.cat([s.reshape(1, 1, -1, 1, 1).double() for s in scales])
            self._ready(Stage.DENOISE, layout)
            scheduler = self.scheduler_of(specs[0])
            predict = Guided(
                self.evaluate,
                halves.unconditional,
                halves.conditional,
                scale.to(self._latents_dtype),
                split=layout.split_guidance,
            )
            noise = torch.cat([self._noise(spec, "latents", 0) for spec in specs])
            state = start(scheduler, noise, specs[0].steps)

            def variance(step: int) -> Mapping[str, Any]:
                return {"variance_noise": torch.cat([self._noise(spec, "variance", step + 1) for spec in specs])}

            options = variance if specs[0].sampler and adds_noise(specs[0].sampler) else lambda _step: {}
            with self.stepping(specs[0], scheduler):
                latents = denoise(scheduler, predict, state, lambda done, total: on_step(done, total, None), options)
            latents = self.settle(latents, halves)
            return [self.decode(latents[row : row + 1], layout) for row in range(len(specs))]

    def describe(self) -> dict[str, Any]:
        """Revision as loaded, dtype and library versions."""
        return {
            **self._origin,
            "dtype": str(self._dtype).removeprefix("torch."),
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "transformers": transformers.__version__,
        }

    def unload(self) -> None:
        """Free the weights; the model cannot render afterwards."""
        if self._parts is None:
            return
        for _, stream in self._streams:
            stream.end()
        self._streams.clear()
        for network in self._parts.networks:
            # Frees the storages now, whoever else still refers to the module.
            network.to("meta")
        self._parts = None
        self._placed.clear()
        self._device.free_cached()

    @property
    def weights(self) -> str:
        """Names the weights that were loaded: their revision, or a digest of a folder of unknown revision."""
        return self._origin.get("index_sha256") or self._origin.get("revision") or self.family.revision

    # -- stages ---------------------------------------------------------------------------------------------

    def denoise(self, halves: Halves, spec: ClipSpec, layout: Layout, on_step: OnStep) -> torch.Tensor:
        """The middle stage alone, from noise: (1, *latent_shape) latents of the finished clip."""
        with self._device.work(), torch.no_grad():
            self._lay_out(layout)
            self._ready(Stage.DENOISE, layout)
            scheduler = self.scheduler_of(spec)
            state = start(scheduler, self.first_noise(spec), spec.steps)
            with self.stepping(spec, scheduler):
                latents = denoise(
                    scheduler,
                    self._predict(halves, spec, layout),
                    state,
                    lambda done, total: on_step(done, total, None),
                    self._step_options(spec),
                )
            return self.settle(latents, halves)

    def decode(self, latents: torch.Tensor, layout: Layout) -> Frames:
        """Last stage: (frames, height, width, 3) uint8 of (1, channels, frames, height, width) latents.

        Half precision overflows in some decoders, so a result that is not finite, or all black, is decoded once more
        in float32, laid out by `pipeline.footprint.retry_layout` so that it takes no more memory. Raises
        `NotFiniteError` or `BlackOutputError` where that does not help.
        """
        with self._device.work(), torch.no_grad():
            self._ready(Stage.DECODE, layout)
            networks = self.parts.of(Stage.DECODE)
            half = any(network.dtype in (torch.float16, torch.bfloat16) for network in networks)
            if half:
                try:
                    return self._decode(latents, layout)
                except (NotFiniteError, BlackOutputError):
                    pass  # outside the handler, so that the failed attempt's tensors are gone
                retry = self._retry_layout(latents, layout)
                self._ready(Stage.DECODE, retry)
                with widened(networks):
                    return self._decode(latents, retry)
            return self._decode(latents, layout)

    def _retry_layout(self, latents: torch.Tensor, layout: Layout) -> Layout:
        family = self.family
        frames, height, width = latents.shape[2:]
        size = (width * family.pixels_per_latent, height * family.pixels_per_latent)
        return retry_layout(family, size, (frames - 1) * family.frames_per_latent + 1, layout)

    def _decode(self, latents: torch.Tensor, layout: Layout) -> Frames:
        done: list[Frames] = []
        for decoded in self.decode_chunks(latents, layout):
            # One at a time: beside a frame that was blended from tiles, copies of a whole chunk would be the peak.
            for frame in decoded.split(1):
                if not bool(torch.isfinite(frame).all()):
                    dtype = str(self.parts.of(Stage.DECODE)[0].dtype).removeprefix("torch.")
                    raise NotFiniteError("decode", len(done), dtype)
                pixels = frame.float().mul_(0.5).add_(0.5).clamp_(0, 1).mul_(255).round_().to(torch.uint8)
                # A copy: on an emulated card the array would share, and so keep, the tensor's memory.
                done.append(np.array(pixels.permute(0, 2, 3, 1).cpu()))
                del frame, pixels
            del decoded
        frames: Frames = np.concatenate(done)
        if not frames.any():
            raise BlackOutputError(str(self.parts.of(Stage.DECODE)[0].dtype).removeprefix("torch."))
        return frames

    def scheduler_of(self, spec: ClipSpec) -> Any:
        """A fresh scheduler for `spec`."""
        sampler = spec.sampler or self.family.samplers[0]
        return make_scheduler(sampler, self.parts.scheduler.config)

    def first_noise(self, spec: ClipSpec) -> torch.Tensor:
        """(1, *latent_shape): the standard normal noise a clip starts from."""
        return self._noise(spec, "latents", 0)

    def identity(self, spec: ClipSpec) -> dict[str, Any]:
        """What a checkpoint of this clip must be of."""
        dumped = spec.model_dump_json()
        return {
            "family": self.family.name,
            "revision": spec.revision,
            "weights": self.weights,
            "renderer": RENDERER_VERSION,
            "shape": list(self.latent_shape(spec)),
            "sampler": str(spec.sampler or self.family.samplers[0]),
            "specification": hashlib.sha256(dumped.encode()).hexdigest(),
        }

    def to_card(self, tensors: Mapping[str, torch.Tensor]) -> Conditions:
        """Copies on the card of what the cache holds on the host."""
        return {name: tensor.to(self._device.torch_device, copy=True) for name, tensor in tensors.items()}

    # -- networks on the card -------------------------------------------------------------------------------

    @contextmanager
    def encoders(self) -> Iterator[None]:
        """The encoders and the VAE are on the card inside."""
        self.stage = Stage.ENCODE
        if self._evicting:
            # What the encoders need may be all there is: the denoiser must not be beside them.
            self._take_off(Stage.DENOISE)
        self._put(Stage.ENCODE)
        self._put(Stage.DECODE)
        yield

    def _ready(self, stage: Stage, layout: Layout) -> None:
        self.stage = stage
        if layout.evict_encoders:
            self._take_off(Stage.ENCODE)
        if stage is Stage.DENOISE:
            chunk_feed_forward(self.parts.of(stage), layout.chunk_feed_forward)
        if stage is Stage.DECODE and layout.evict_denoiser:
            self._take_off(Stage.DENOISE)
        self._put(stage)

    def _lay_out(self, layout: Layout) -> None:
        """Before a clip: what `layout` says of where weights lie between evaluations."""
        self.stage = Stage.ENCODE
        self._evicting = layout.evict_encoders
        if self._streaming != layout.stream_weights:
            for stage in (Stage.ENCODE, Stage.DENOISE):
                self._take_off(stage)
            self._streaming = layout.stream_weights
        if layout.evict_encoders:
            # A clip that goes on, or finds all in the cache, never asks for them.
            self._take_off(Stage.ENCODE)

    def _put(self, stage: Stage) -> None:
        if stage in self._placed:
            return
        streams = self._streaming and stage is not Stage.DECODE
        # Whether all of it arrived or memory ran out half way, it is to be taken off again.
        self._placed.add(stage)
        for network in self.parts.of(stage):
            if streams:
                self._streams.append((stage, StreamedWeights(network, self._device.torch_device)))
            else:
                place(network, self._device)

    def _take_off(self, stage: Stage) -> None:
        if stage not in self._placed:
            return
        for _, stream in [pair for pair in self._streams if pair[0] is stage]:
            stream.end()
        self._streams = [pair for pair in self._streams if pair[0] is not stage]
        for network in self.parts.of(stage):
            displace(network, self._device)
        self._placed.discard(stage)
        self._device.free_cached()

    def _adapt(self, adapter: Adapter | None) -> None:
        if adapter == self._adapter:
            return
        from pipeline.models import adapters

        network = self.parts.of(Stage.DENOISE)[0]
        placed = Stage.DENOISE in self._placed
        self._take_off(Stage.DENOISE)
        with off_card():
            if self._adapter is not None:
                adapters.take_off(network)
                self._adapter = None
            if adapter is not None:
                adapters.put_on(network, adapter, self.adapters.get(adapter.sha256, Path(adapter.name)))
                self._adapter = adapter
        if placed:
            self._put(Stage.DENOISE)

    # -- the loop -------------------------------------------------------------------------------------------

    def _denoise_phases(
        self, still: Image.Image, spec: ClipSpec, layout: Layout, on_step: OnStep, resume: bytes | None
    ) -> torch.Tensor:
        phases = self._phases(spec)
        checkpoint = checkpoints.parse(resume) if resume is not None else None
        if checkpoint is not None:
            # By the whole clip, also in its base phase: the specification decides every phase.
            checkpoints.check(checkpoint, self.identity(spec))
            if checkpoint.phase >= len(phases):
                raise CheckpointError("a checkpoint of another phase", f"{checkpoint.phase}", f"below {len(phases)}")
        latents: torch.Tensor | None = None
        for phase in phases:
            if checkpoint is not None and phase.index < checkpoint.phase:
                continue
            picture = fit_still(still, phase.spec.size, phase.spec.fit)
            key = self._latents_key(picture, phase.spec)
            if len(phases) > 1 and phase.index == 0 and checkpoint is None and (kept := self.cache.get(key)):
                latents = kept["latents"].to(self._device.torch_device)
            else:
                latents = self._run_phase(phase, picture, latents, spec, layout, on_step, checkpoint)
                sound = bool(torch.isfinite(latents).all())
                if sound and latents.nbytes <= KEPT_LATENTS_BYTES and self.family.refinable:
                    self.cache.put(key, {"latents": latents})
            checkpoint = None
            if phase.index + 1 < len(phases):
                latents = self._enlarge(latents, phase.spec, phases[phase.index + 1].spec, layout)
        assert latents is not None
        return latents

    def _phases(self, spec: ClipSpec) -> list[Phase]:
        base = spec.base_spec
        if base is None:
            return [Phase(index=0, spec=spec, steps=spec.steps, before=0)]
        return [
            Phase(index=0, spec=base, steps=base.steps, before=0),
            Phase(index=1, spec=spec, steps=spec.refined_steps, before=base.steps),
        ]

    def _run_phase(
        self,
        phase: Phase,
        picture: Image.Image,
        clean: torch.Tensor | None,
        spec: ClipSpec,
        layout: Layout,
        on_step: OnStep,
        checkpoint: Checkpoint | None,
    ) -> torch.Tensor:
        self.stage = Stage.ENCODE
        halves = self.condition(picture, phase.spec)
        named = digest({f"u.{n}": t for n, t in halves.unconditional.items()}) + digest(
            {f"c.{n}": t for n, t in halves.conditional.items()}
        )
        conditions = hashlib.sha256(named.encode()).hexdigest()
        self._ready(Stage.DENOISE, layout)
        scheduler = self.scheduler_of(phase.spec)
        if checkpoint is not None:
            state = self._resume(scheduler, phase, checkpoint, conditions)
        elif clean is None:
            state = start(scheduler, self.first_noise(phase.spec), phase.spec.steps)
        else:
            noise = self._noise(phase.spec, "refine", 0)
            state = refine(scheduler, clean.to(noise.dtype), noise, phase.spec.steps, phase.steps)
        run = Run(
            identity=self.identity(spec),
            made={**self.describe(), "layout": layout.model_dump(mode="json")},
            resumable=self.family.resumable,
            phase=phase,
            spec=spec,
            on_step=on_step,
            scheduler=scheduler,
            state=state,
            conditions=conditions,
        )
        predict = self._predict(halves, phase.spec, layout)
        try:
            with self.stepping(phase.spec, scheduler):
                latents = denoise(scheduler, predict, state, run.after_step, self._step_options(phase.spec))
        finally:
            run.release()
        return self.settle(latents, halves)

    def _resume(self, scheduler: Any, phase: Phase, checkpoint: Checkpoint, conditions: str) -> DenoiseState:
        if checkpoint.conditions != conditions:
            raise CheckpointError("a checkpoint under other conditions", checkpoint.conditions[:12], conditions[:12])
        try:
            give_state(scheduler, phase.spec.steps, checkpoint.scheduler, self._device.torch_device)
        except ValueError as error:
            raise CheckpointError(str(error)) from error
        latents = checkpoint.latents.to(self._device.torch_device, copy=True)
        if latents.dtype != self._latents_dtype:
            raise CheckpointError("a checkpoint of another precision", str(latents.dtype), str(self._latents_dtype))
        return DenoiseState(latents=latents, step_index=checkpoint.step_index)

    def _predict(self, halves: Halves, spec: ClipSpec, layout: Layout) -> Predict:
        scale = self.guidance(spec)

        def guided(unconditional: Conditions, conditional: Conditions, scale: float | torch.Tensor) -> Guided:
            return Guided(self.evaluate, unconditional, conditional, scale, split=layout.split_guidance)

        if not spec.window:
            return guided(halves.unconditional, halves.conditional, scale)
        per_latent = self.family.frames_per_latent
        spans = window_spans(
            self.latent_shape(spec)[1],
            (spec.window - 1) // per_latent + 1,
            spec.window_overlap // per_latent,
        )

        def of_window(first: int, end: int) -> Guided:
            by_frame = isinstance(scale, torch.Tensor) and scale.ndim == 5
            return guided(
                self.cut(halves.unconditional, first, end),
                self.cut(halves.conditional, first, end),
                scale[:, :, first:end] if by_frame else scale,  # type: ignore[index]
            )

        return Windowed(spans, of_window)

    def _step_options(self, spec: ClipSpec) -> Callable[[int], Mapping[str, Any]]:
        if spec.sampler is None or not adds_noise(spec.sampler):
            return lambda _step: {}
        return lambda step: {"variance_noise": self._noise(spec, "variance", step + 1)}

    @property
    def _latents_dtype(self) -> torch.dtype:
        return torch.promote_types(self._dtype, torch.float32)

    def _noise(self, spec: ClipSpec, purpose: str, step: int) -> torch.Tensor:
        channels, frames, height, width = self.latent_shape(spec)
        by_frame = torch.from_numpy(clip_noise(spec.seed, purpose, frames, (channels, height, width), step))
        return by_frame.transpose(0, 1).unsqueeze(0).to(device=self._device.torch_device, dtype=self._latents_dtype)

    def _latents_key(self, picture: Image.Image, spec: ClipSpec) -> str:
        return cache_key(
            "latents",
            picture=picture_sha256(picture),
            spec=spec.model_dump(mode="json"),
            dtype=str(self._dtype),
            weights=self.cache_name,
            renderer=RENDERER_VERSION,
        )

    def _enlarge(self, latents: torch.Tensor, small: ClipSpec, large: ClipSpec, layout: Layout) -> torch.Tensor:
        """Latents of the small rendering at the large one's size and frame count."""
        _, frames, height, width = self.latent_shape(large)
        if large.upscale is Upscale.LATENTS:
            # Ends of the clip stay its ends, so time is aligned at corners; pixels are areas, so space is not.
            timed = along_time(latents, frames)
            flat = timed.transpose(1, 2).flatten(0, 1)
            sized = torch.nn.functional.interpolate(flat, size=(height, width), mode="bicubic", align_corners=False)
            return sized.unflatten(0, (latents.shape[0], frames)).transpose(1, 2).contiguous()
        pictures = self.decode(latents, layout)
        enlarged = np.stack(
            [np.asarray(Image.fromarray(p).resize(large.size, Image.Resampling.LANCZOS)) for p in pictures]
        )
        pixels = torch.from_numpy(enlarged).permute(3, 0, 1, 2).unsqueeze(0).float()
        pixels = along_time(pixels, large.frames) / 127.5 - 1.0
        with self.encoders():
            return self.encode_frames(pixels.to(self._device.torch_device)).to(self._latents_dtype)

    @contextmanager
    def _leaving_nothing(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            # Whoever handles the error holds its traceback, whose frames hold activations: release them here.
            clear_frames(error)
            if isinstance(error, torch.OutOfMemoryError):
                self._device.free_cached()
            raise
