"""Predicted peak bytes and operations of a clip per stage, in closed form, without torch.

    stage = weights on the card + largest of (fixed + per pixel × pixels + per pixel and frame × pixels × frames)
          + on a CUDA card: the workspace of its largest convolution

Coefficients lie in `pipeline/memory/footprints/<family>.json`, fitted to dry runs of the real networks by
`clipmill footprint FAMILY --write`. They count tensors. A workspace is a share of the largest convolution's input and
output (`CudaModel.convolution_copies`); what CUDA takes besides is estimated apart, by `cuda_share`.

Decoding counts the pixels of a tile, and the blended frame besides. A decoder in half precision may overflow, and then
decodes once more in float32: that takes the layout of `retry_layout`, which stays within the first decode's bytes where
any does, and is counted where none does. Frames that are encoded again (`Upscale.FRAMES`) count as encoding.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

from pipeline.clips.clip import ClipSpec, Upscale
from pipeline.families import Family, Line, MemoryModel, Stage, family_named
from pipeline.families.layouts import RESIDENT, Layout
from pipeline.memory.tiles import largest_tile


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Peak bytes that torch takes of the card per stage: tensors, weights included, and workspaces of convolutions."""

    encode_bytes: int
    denoise_bytes: int
    decode_bytes: int
    #: What of them is workspaces, in this order: an upper bound, as the peak of tensors may be elsewhere.
    workspace_bytes: tuple[int, int, int] = (0, 0, 0)

    @property
    def peak_bytes(self) -> int:
        """The largest stage: what a card must have free before the clip starts."""
        return max(self.encode_bytes, self.denoise_bytes, self.decode_bytes)

    @property
    def largest(self) -> Stage:
        """The stage that takes most."""
        return max(Stage, key=lambda stage: self.stages[stage])

    @property
    def stages(self) -> Mapping[str, int]:
        """The three by name."""
        return {"encode": self.encode_bytes, "denoise": self.denoise_bytes, "decode": self.decode_bytes}

    @property
    def workspaces(self) -> Mapping[str, int]:
        """Bytes of the workspaces of convolutions, by stage."""
        return dict(zip(Stage, self.workspace_bytes, strict=True))

    @property
    def tensors(self) -> Mapping[str, int]:
        """Bytes of tensors alone, by stage: what a dry run counts."""
        return {stage: count - self.workspaces[stage] for stage, count in self.stages.items()}


@dataclass(frozen=True, kw_only=True)
class CudaModel:
    """Bytes that a CUDA card has in use besides tensors; measured, from `footprints/cuda.json`."""

    #: The process's context and loaded kernels.
    context_bytes: int
    #: Workspaces that cuBLAS and cuDNN keep.
    workspace_bytes: int
    #: A recorded graph, which the driver keeps beside torch's tensors. Its private pool takes the place of a step's
    #: activations, which are counted.
    graph_bytes: int
    #: Share of the tensors' bytes that the caching allocator cannot use: blocks are rounded to 512 bytes and cut from
    #: segments of 2 MiB and more, whose rests lie idle.
    fragmentation: float
    #: Workspace of a convolution per byte of its input and output, by stage. cuDNN's tensor core kernels want channels
    #: last, so it copies both of a tensor that has channels first (pytorch#81940).
    convolution_copies: Mapping[str, float] = field(hash=False)
    source: str


NOTHING = Footprint(encode_bytes=0, denoise_bytes=0, decode_bytes=0)


@cache
def memory_model(family: Family) -> MemoryModel | None:
    """The family's coefficients: its own, else its table; None for a family that uses no card memory.

    Raises `FileNotFoundError` for a family with networks and no table: write it by `clipmill footprint`.
    """
    if family.memory is not None or not family.needs_torch:
        return family.memory
    return parse(_read(family.name))


@cache
def cuda_model() -> CudaModel:
    """What CUDA takes besides tensors."""
    return CudaModel(**_read("cuda"))


def context_share(*, graphs: bool) -> int:
    """Estimated bytes that a process takes of a card beside all tensors; `graphs`: it may record CUDA graphs."""
    model = cuda_model()
    return model.context_bytes + (model.graph_bytes if graphs else 0)


def cuda_share(tensor_bytes: int) -> int:
    """Estimated bytes that CUDA takes besides tensors whose peak is `tensor_bytes`; 0 where there are none."""
    if tensor_bytes == 0:
        return 0
    model = cuda_model()
    return model.context_bytes + model.workspace_bytes + round(model.fragmentation * tensor_bytes)


def parse(table: Mapping[str, Any]) -> MemoryModel:
    """The memory model that a footprint table is read as. Raises `KeyError` or `TypeError` for what is none."""

    def lines(found: Iterable[Mapping[str, float]]) -> tuple[Line, ...]:
        return tuple(Line(**line) for line in found)

    return MemoryModel(
        weights={Stage(stage): count for stage, count in table["weights"].items()},
        streamed={Stage(stage): count for stage, count in table["streamed"].items()},
        encode=lines(table["encode"]),
        denoise={switches: lines(found) for switches, found in table["denoise"].items()},
        decode=lines(table["decode"]),
        latents=table["latents"],
        flops=table["flops"],
        dtype=table["dtype"],
        configs=table["configs"],
        source=table["source"],
        decode_flops=table.get("decode_flops", 0.0),
        canvas=table.get("canvas", 0.0),
        blended=table.get("blended", 0.0),
        decode_single=lines(table.get("decode_single", ())),
        decode_half=lines(table.get("decode_half", ())),
        half_weights=table.get("half_weights", 0),
        reencode=lines(table.get("reencode", ())),
        convolutions={where: lines(found) for where, found in table.get("convolutions", {}).items()},
    )


@cache
def _footprint(
    family: Family, pixels: int, frames: int, evaluated: int, layout: Layout, size: tuple[int, int] | None
) -> Footprint:
    """`evaluated`: frames of a window, or 0 where all are evaluated at once; `size`: None where only `pixels` count."""
    model = memory_model(family)
    if model is None:
        return NOTHING
    lacks = "" if layout.denoise_switches in model.denoise else layout.denoise_switches
    if lacks := lacks or ("decoder=half" if layout.decode_half and not model.decode_half else ""):
        raise LookupError(
            f"the footprint table of {family.name!r} has no layout {lacks!r}: "
            f"declare it in the family and run `clipmill footprint {family.name} --write`"
        )
    weights = weights_on_card(family, layout)
    clip = latent_frames(family, frames)
    window = latent_frames(family, min(frames, evaluated or frames))
    # Of a windowed clip, its latents, their prediction and the noise are there whole.
    denoise = _largest(model.denoise[layout.denoise_switches], pixels, window) + round(
        3 * model.latents * pixels * (clip - window)
    )
    decodes = [_decode_stage(family, pixels, frames, layout, size)]
    if model.decode_single:
        retry = _retry(family, pixels, frames, layout, size)
        decodes.append(_decode_stage(family, pixels, frames, retry, size, single=True))
    decode = max(map(sum, decodes))
    workspaces = (
        _workspace(family, Stage.ENCODE, Stage.ENCODE.value, pixels, frames),
        _workspace(family, Stage.DENOISE, layout.denoise_switches, pixels, window),
        # More than the tensors of either.
        decode - max(tensors for tensors, _ in decodes),
    )
    return Footprint(
        encode_bytes=weights.encode_bytes + _largest(model.encode, pixels, frames) + workspaces[0],
        denoise_bytes=weights.denoise_bytes + denoise + workspaces[1],
        decode_bytes=decode,
        workspace_bytes=workspaces,
    )


def _workspace(family: Family, stage: Stage, where: str, pixels: int, frames: int) -> int:
    """Bytes that cuDNN takes for the largest convolution of a stage; emulated cards, of small networks, have none."""
    model = memory_model(family)
    if family.repo is None or model is None or where not in model.convolutions:
        return 0
    return round(cuda_model().convolution_copies[stage] * _largest(model.convolutions[where], pixels, frames))


def _largest(lines: Iterable[Line], pixels: int, frames: int) -> int:
    return max(line.at(pixels, frames) for line in lines)


def _decode_stage(
    family: Family, pixels: int, frames: int, layout: Layout, size: tuple[int, int] | None, *, single: bool = False
) -> tuple[int, int]:
    """Bytes of tensors (weights included) and of workspaces while decoding; `single`: by networks in float32."""
    model = memory_model(family)
    assert model is not None
    # Of a size that is not known the tile is as large as it can be.
    side = layout.decode_tile * family.pixels_per_latent
    tile = largest_tile(*size, layout, family.pixels_per_latent) if size else min(pixels, side**2 or pixels)
    together = min(frames, layout.decode_frames)
    which = "decode_single" if single else "decode_half" if layout.decode_half else "decode"
    lines: Mapping[str, tuple[Line, ...]] = {
        "decode": model.decode,
        "decode_single": model.decode_single,
        "decode_half": model.decode_half,
    }
    workspace = _workspace(family, Stage.DECODE, which, tile, together)
    weights = weights_on_card(family, layout).decode_bytes + (model.weights[Stage.DECODE] if single else 0)
    most = _largest(lines[which], tile, together)
    if tile < pixels:
        most = max(most + round(model.canvas * pixels * together), round(model.blended * pixels * together))
    return weights + most + round(model.latents * pixels * latent_frames(family, frames)), workspace


@cache
def _retry(family: Family, pixels: int, frames: int, layout: Layout, size: tuple[int, int] | None) -> Layout:
    model = memory_model(family)
    alone = layout.model_copy(update={"evict_denoiser": True})
    if model is None or not model.decode_single:
        return alone
    most = sum(_decode_stage(family, pixels, frames, layout, size))
    tried = [alone, *(tiled(alone, tile) for tile in tiles(family) if tile[0] < (layout.decode_tile or pixels))]
    for each in tried:
        if sum(_decode_stage(family, pixels, frames, each, size, single=True)) <= most:
            return each
    return tried[-1]


def retry_layout(family: Family, size: tuple[int, int], frames: int, layout: Layout) -> Layout:
    """How a clip of `size` (width, height) that overflowed in half precision is decoded in float32.

    Without the denoiser on the card; then in tiles, where whole frames would take more than the decode that overflowed.
    """
    return _retry(family, size[0] * size[1], frames, layout, size)


def tiles(family: Family) -> list[tuple[int, int]]:
    """(side, overlap), in latent pixels, of the tiles that the family's layouts declare, the largest first."""
    found = {(layout.decode_tile, layout.decode_overlap) for layout in family.layouts if layout.decode_tile}
    return sorted(found, reverse=True)


def tiled(layout: Layout, tile: tuple[int, int]) -> Layout:
    """`layout` with tiles of (side, overlap) latent pixels."""
    return layout.model_copy(update={"decode_tile": tile[0], "decode_overlap": tile[1]})


@cache
def weights_on_card(family: Family, layout: Layout) -> Footprint:
    """Bytes of the networks alone that are on the card in each stage; nothing for a family without networks."""
    model = memory_model(family)
    if model is None:
        return NOTHING
    weights = {**model.weights, **model.streamed} if layout.stream_weights else model.weights
    encoders, denoiser, decoder = (weights[stage] for stage in (Stage.ENCODE, Stage.DENOISE, Stage.DECODE))
    stays = 0 if layout.evict_encoders else encoders
    return Footprint(
        # The still is encoded by the decoder's network, so that is there from the start.
        encode_bytes=encoders + decoder + (0 if layout.evict_encoders else denoiser),
        denoise_bytes=stays + denoiser + decoder,
        # It encodes as it is, and is placed anew to decode.
        decode_bytes=stays
        + (0 if layout.evict_denoiser else denoiser)
        + (model.half_weights if layout.decode_half else decoder),
    )


def latent_frames(family: Family, frames: int) -> int:
    """Latent frames of a clip: the first frame has one of its own."""
    return (frames - 1) // family.frames_per_latent + 1


def footprint(spec: ClipSpec, layout: Layout = RESIDENT) -> Footprint:
    """Predicted peak bytes of `spec` under `layout`: of its base rendering, where that is the larger one."""
    family = family_named(spec.family)
    own = _footprint(family, spec.width * spec.height, spec.frames, spec.window, layout, spec.size)
    base = spec.base_spec
    if base is None:
        return own
    small = _footprint(family, base.width * base.height, base.frames, base.window, layout, base.size)
    again = _reencode_bytes(family, spec, layout)
    of_stages = [
        max((own.stages[stage], own.workspaces[stage]), (small.stages[stage], small.workspaces[stage]))
        for stage in Stage
    ]
    of_stages[0] = max(of_stages[0], again)
    (encode, denoise, decode), workspaces = zip(*of_stages, strict=True)
    return Footprint(encode_bytes=encode, denoise_bytes=denoise, decode_bytes=decode, workspace_bytes=workspaces)


def _reencode_bytes(family: Family, spec: ClipSpec, layout: Layout) -> tuple[int, int]:
    """(bytes with workspaces, those of them) while an enlarged clip is encoded again; zeros where none is."""
    model = memory_model(family)
    if model is None or not model.reencode or spec.upscale is not Upscale.FRAMES:
        return 0, 0
    pixels = spec.width * spec.height
    workspace = _workspace(family, Stage.ENCODE, "reencode", pixels, spec.frames)
    tensors = weights_on_card(family, layout).encode_bytes + _largest(model.reencode, pixels, spec.frames)
    return tensors + workspace, workspace


def footprint_of(family: Family, pixels: int, frames: int, layout: Layout = RESIDENT) -> Footprint:
    """Predicted peak bytes of any clip of `frames` frames of `pixels` each under `layout`, all evaluated at once.

    In tiles it is the most that any shape takes: a narrow frame may be narrower than its tiles.
    """
    return _footprint(family, pixels, frames, 0, layout, None)


def decode_of(family: Family, size: tuple[int, int], frames: int, layout: Layout, *, single: bool = False) -> int:
    """Bytes of tensors while decoding, without the retry that `footprint` counts, or (`single`) of that in `layout`."""
    return _decode_stage(family, size[0] * size[1], frames, layout, size, single=single)[0]


def reread() -> None:
    """Forget every footprint table that was read: one was written anew."""
    for known in (memory_model, cuda_model, _footprint, _retry, weights_on_card):
        known.cache_clear()


def flops_per_step(family: Family, pixels: int, frames: int) -> float:
    """Floating point operations of one denoising step with guidance, a multiplication and an addition being two.

    The layout changes their order and not their number. Without guidance it is half of it. 0 for a family that does
    not denoise.
    """
    model = memory_model(family)
    if model is None:
        return 0.0
    count = latent_frames(family, frames)
    total = 0.0
    for term, coefficient in model.flops.items():
        of_pixels, of_frames = term.split(",")
        total += coefficient * pixels ** int(of_pixels) * count ** int(of_frames)
    return total


def leanest(spec: ClipSpec) -> tuple[Layout, Footprint]:
    """The layout of the family that needs the least memory for `spec`, and that footprint."""
    layouts = family_named(spec.family).layouts
    return min(((layout, footprint(spec, layout)) for layout in layouts), key=lambda pair: pair[1].peak_bytes)


def leanest_of(family: Family, pixels: int, frames: int) -> tuple[Layout, Footprint]:
    """The family's layout that needs the least memory for clips of `frames` frames of `pixels` each, and how much."""
    return min(
        ((layout, footprint_of(family, pixels, frames, layout)) for layout in family.layouts),
        key=lambda pair: pair[1].peak_bytes,
    )


def plan(
    spec: ClipSpec, usable_bytes: int, correct: Callable[[Layout, Footprint], int] | None = None
) -> tuple[Layout, Footprint] | None:
    """The fastest layout whose peak fits in `usable_bytes`; None where none fits.

    `correct` gives the bytes to expect of a layout in place of its predicted peak, from what was measured before.
    That is experience and no proof: where nothing fits as corrected, the leanest is tried if it fits as predicted.
    """
    predicted = [(layout, footprint(spec, layout)) for layout in family_named(spec.family).layouts]
    for layout, expected in predicted:
        if (correct(layout, expected) if correct else expected.peak_bytes) <= usable_bytes:
            return layout, expected
    if correct:
        least = min(predicted, key=lambda pair: pair[1].peak_bytes)
        return least if least[1].peak_bytes <= usable_bytes else None
    return None


def leaner(layout: Layout, stage: Stage, family: Family) -> Layout | None:
    """The next layout for a clip whose `stage` took too much memory in `layout`; None where there is none.

    Only switches of that stage change, the cheapest exact one first: of denoising those that the family declares, in
    its order; of every stage networks that it does not need go off the card. Decoding ends with what is not exact: half
    precision where the family declares it, its tiles, then fewer frames at once than it declares. Ends after a few:
    each call switches one thing on that was off, or makes it smaller.
    """
    if memory_model(family) is None:
        return None
    if stage is Stage.DENOISE:
        switches = list(dict.fromkeys((known.split_guidance, known.chunk_feed_forward) for known in family.layouts))
        tried = (layout.split_guidance, layout.chunk_feed_forward)
        later = switches[switches.index(tried) + 1 :] if tried in switches else []
        if later:
            return layout.model_copy(update={"split_guidance": later[0][0], "chunk_feed_forward": later[0][1]})
    if not layout.evict_encoders:
        return layout.model_copy(update={"evict_encoders": True})
    if stage is Stage.DECODE:
        return _leaner_decode(layout, family)
    if not layout.stream_weights and any(known.stream_weights for known in family.layouts):
        return layout.model_copy(update={"stream_weights": True})
    return None


def leaner_fit(
    spec: ClipSpec,
    layout: Layout,
    stage: Stage,
    usable_bytes: int,
    expect: Callable[[Layout, Footprint], int] | None = None,
) -> tuple[Layout, Footprint] | None:
    """The first layout with `stage` leaner than in `layout` whose `stage` fits in `usable_bytes`; None where none does.

    `expect` gives the bytes to expect of that stage from what was measured before. As in `plan` it never refuses: where
    nothing fits by it, the leanest that fits as predicted is taken.
    """
    family, failed = family_named(spec.family), footprint(spec, layout).stages[stage]
    least: tuple[Layout, Footprint] | None = None
    following = leaner(layout, stage, family)
    while following is not None:
        predicted = footprint(spec, following)
        # Tiles as large as the frame, say, are no leaner.
        if predicted.stages[stage] < failed:
            if (expect(following, predicted) if expect else predicted.stages[stage]) <= usable_bytes:
                return following, predicted
            if predicted.stages[stage] <= usable_bytes:
                least = following, predicted
        following = leaner(following, stage, family)
    return least


def _leaner_decode(layout: Layout, family: Family) -> Layout | None:
    if not layout.evict_denoiser:
        return layout.model_copy(update={"evict_denoiser": True})
    fewer = layout.model_copy(update={"decode_frames": max(1, layout.decode_frames // 2)})
    if fewer.decode_frames < layout.decode_frames and any(
        known.decode_frames <= fewer.decode_frames for known in family.layouts
    ):
        return fewer
    if not layout.decode_half and any(known.decode_half for known in family.layouts):
        return layout.model_copy(update={"decode_half": True})
    smaller = [tile for tile in tiles(family) if not 0 < layout.decode_tile <= tile[0]]
    if smaller:
        return tiled(layout, smaller[0])
    return fewer if fewer != layout else None


def _read(name: str) -> dict[str, Any]:
    table = resources.files("pipeline.memory") / "footprints" / f"{name}.json"
    found: dict[str, Any] = json.loads(table.read_text(encoding="utf-8"))
    return found
