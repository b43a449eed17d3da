"""From latents to a clip's files: Wan's decoder without its copies, and frames encoded while later ones are decoded.

    python benchmarks/decode.py [--repeats 3] [--threads 1] [--check] [--json FILE]

Everything is a ratio to the plain way, measured in the same run, so that the machine does not decide.

Decoder, against diffusers' own: highest memory, operations that move bytes and the bytes they move, of two chunks at
full size (1280×704) on tensors without data; the time of a narrower one on the CPU, in turn, its bits compared; the
time at full size where there is a CUDA card, in float32 as it is rendered.

Lossy decoders, against ours in float32: memory, bytes moved and arithmetic of one in bfloat16 and of one whose
convolutions lie channels last, on tensors without data; and how far the small network's frames are from the exact ones,
by a decoder in bfloat16 and in tiles. Its weights are random: bounds of the code, nothing about quality.

Clip, against decoding all frames, then putting them together, hashing and encoding them: the time from latents to the
clip's files, and the most host memory that frames take. Once with a decoder on the CPU, which leaves the encoder only
what cores are over, and once with one that takes as long and leaves the CPU alone, as a card does.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d
from report import Aim, Report, parser
from similarity import psnr
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.clips.arriving import FrameEncoder
from pipeline.clips.clip import ClipSpec
from pipeline.clips.frames import Frames
from pipeline.devices.emulated import HostDevice
from pipeline.dryrun.device import DryDevice
from pipeline.dryrun.run import clip_of
from pipeline.families import FAMILIES
from pipeline.families.layouts import RESIDENT, Layout
from pipeline.models.build import build, configs_of
from pipeline.models.hooks.causal_decoding import CausalDecoder
from pipeline.models.stages.decoding import decode_once
from pipeline.render import VIDEO, write_clip

WAN = FAMILIES["wan2.2-5b"]
#: Latent rows and columns of 1280×704.
FULL = (44, 80)
#: Channels of its decoder's last layers.
FULL_WIDTH = 256
#: What a CUDA card is to do in the time of the stock decoder.
CARD_AIM = 1.8

Decode = Callable[[Any, torch.Tensor], list[torch.Tensor]]


def stock(decoder: Any, latents: torch.Tensor) -> list[torch.Tensor]:
    """Chunk by chunk as `AutoencoderKLWan.decode` does, without its growing output."""
    kept: list[Any] = [None] * sum(isinstance(module, WanCausalConv3d) for module in decoder.modules())
    return [
        decoder(latents[:, :, n : n + 1], feat_cache=kept, feat_idx=[0], first_chunk=n == 0)
        for n in range(latents.shape[2])
    ]


def ours(decoder: Any, latents: torch.Tensor) -> list[torch.Tensor]:
    """Chunk by chunk without the copies."""
    decode = CausalDecoder(decoder)
    return [decode(latents[:, :, n : n + 1]) for n in range(latents.shape[2])]


#: Operations whose first argument is only written.
_OVERWRITES = frozenset({"copy_", "zero_", "fill_"})


class Moved(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations that make or change a tensor, and the bytes they read and write."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations, self.bytes = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view and "empty" not in str(func):
            self.operations += 1
            # What is written over is not read.
            given = args[1:] if func._overloadpacket.__name__ in _OVERWRITES else args
            read = [leaf for leaf in tree_leaves((given, kwargs)) if isinstance(leaf, torch.Tensor)]
            written = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
            # Filled with zeros first, all of it, then written.
            written *= 2 if func._overloadpacket.__name__ == "constant_pad_nd" else 1
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in read + written)
        return result


def dry(decoder: Any, way: Decode) -> dict[str, float]:
    """Peak besides weights and the frames themselves, operations and bytes moved, of two chunks at full size."""
    card = DryDevice()
    dtype = decoder.conv_in.weight.dtype
    latents = torch.empty(1, decoder.z_dim, 3, *FULL, device="meta", dtype=dtype)
    with card.work():
        card.reset_peak()
        before = card.used_bytes()
        parts = way(decoder, latents)
        peak = card.peak_bytes() - before - sum(part.untyped_storage().nbytes() for part in parts)
    with Moved() as moved:
        way(decoder, latents)
    return {
        "peak_gib": peak / 2**30,
        "operations": float(moved.operations),
        "moved_gib": moved.bytes / 2**30,
        "tflop": card.flops / 1e12,
    }


def in_turn(ways: list[Callable[[], object]], repeats: int) -> list[float]:
    """Median seconds of each, run one after the other in every repeat, after one that warms up."""
    found: list[list[float]] = [[] for _ in ways]
    for repeat in range(repeats + 1):
        for times, way in zip(found, ways, strict=True):
            began = time.perf_counter()
            way()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat:
                times.append(time.perf_counter() - began)
    return [statistics.median(times) for times in found]


def narrow_vae(width: int) -> Any:
    """Wan2.2's autoencoder with `width` channels where it has `FULL_WIDTH`, random, in float32 as it is rendered."""
    vae: Any = AutoencoderKLWan.from_config({**configs_of(WAN)["vae"], "decoder_base_dim": width, "base_dim": 8})
    return vae.eval().requires_grad_(False)


def decoders(repeats: int) -> tuple[dict[str, Any], list[Aim]]:
    """The decoder against diffusers' own."""
    figures: dict[str, Any] = {}
    with torch.device("meta"):
        meta = narrow_vae(FULL_WIDTH).decoder
    found = {way.__name__: dry(meta, way) for way in (stock, ours)}
    for name in found["stock"]:
        for way, counted in found.items():
            figures[f"full size, {way}: {name}"] = counted[name]
    ratios = {name: found["ours"][name] / found["stock"][name] for name in found["stock"]}
    decoder = narrow_vae(32).decoder
    latents = torch.randn(1, decoder.z_dim, 3, 8, 10, generator=torch.Generator().manual_seed(0))
    equal = all(map(torch.equal, stock(decoder, latents), ours(decoder, latents)))
    plain_s, ours_s = in_turn([lambda: stock(decoder, latents), lambda: ours(decoder, latents)], repeats)
    figures |= {"CPU, stock: s": plain_s, "CPU, ours: s": ours_s, "CPU: times as fast": plain_s / ours_s}
    aims = [
        Aim(name="frames that differ from the stock decoder's", value=float(not equal), at_most=0.0),
        Aim(name="decoder's memory, of the stock's", value=ratios["peak_gib"], at_most=0.7),
        Aim(name="decoder's bytes moved, of the stock's", value=ratios["moved_gib"], at_most=0.8),
        Aim(name="decoder's arithmetic, of the stock's", value=ratios["tflop"], at_most=1.0),
        Aim(name="decoder's time on the CPU, of the stock's", value=ours_s / plain_s, at_most=1.0),
    ]
    if torch.cuda.is_available():
        with torch.device("cuda"):
            card = narrow_vae(FULL_WIDTH).decoder
        large = torch.randn(1, card.z_dim, 5, *FULL, device="cuda")
        plain_s, ours_s = in_turn([lambda: stock(card, large), lambda: ours(card, large)], repeats)
        figures |= {"card, stock: s": plain_s, "card, ours: s": ours_s, "card: times as fast": plain_s / ours_s}
        aims.append(
            Aim(name="decoder's time on the card, of the stock's", value=ours_s / plain_s, at_most=1 / CARD_AIM)
        )
    return figures, aims


#: Ways to decode that are not exact.
HALF, TILES = Layout(decode_half=True), Layout(decode_tile=8, decode_overlap=2)


def lossy() -> tuple[dict[str, Any], list[Aim]]:
    """What decoders that round otherwise take, and what that changes in the small network's frames."""
    figures: dict[str, Any] = {}
    found: dict[str, dict[str, float]] = {}
    for name in ("float32", "bfloat16", "channels last"):
        with torch.device("meta"):
            decoder = narrow_vae(FULL_WIDTH).decoder
        if name == "bfloat16":
            decoder = decoder.bfloat16()
        elif name == "channels last":
            for module in decoder.modules():
                if isinstance(module, (torch.nn.Conv2d, torch.nn.Conv3d)):
                    last = torch.channels_last_3d if module.weight.ndim == 5 else torch.channels_last
                    module.weight.data = module.weight.data.contiguous(memory_format=last)
        found[name] = dry(decoder, ours)
        if name != "float32":
            for figure, value in found[name].items():
                figures[f"{name}, of float32: {figure}"] = value / found["float32"][figure]
    small = FAMILIES["wan2.2-5b-tiny"]
    model = build(small, HostDevice(), torch.float32)
    shape = model.latent_shape(clip_of(small, 512, 384, 9))
    latents = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    exact = model.decode(latents, RESIDENT)
    for name, layout in (("bfloat16", HALF), ("tiles", TILES)):
        frames = model.decode(latents, layout)
        apart = np.abs(frames.astype(int) - exact)
        figures[f"small network, {name}: largest difference of 255"] = int(apart.max())
        figures[f"small network, {name}: PSNR of the exact frames, dB"] = psnr(frames, exact)
    return figures, [
        Aim(name="memory of a decoder in bfloat16", value=figures["bfloat16, of float32: peak_gib"], at_most=0.51),
        Aim(name="arithmetic of a decoder in bfloat16", value=figures["bfloat16, of float32: tflop"], at_most=1.0),
    ]


class Chunks:
    """What decodes for `decode_once`: latents of a clip to chunks of four frames, by `decode`."""

    def __init__(self, decode: Callable[[int], torch.Tensor]) -> None:
        self.family: Any = SimpleNamespace(name="benchmark", pixels_per_latent=16, frames_per_latent=4)
        self.parts: Any = SimpleNamespace(of=lambda _stage: [SimpleNamespace(dtype=torch.float32)])
        self._decode = decode

    def decode_chunks(self, latents: torch.Tensor, _layout: Any) -> Iterator[torch.Tensor]:
        """(frames, 3, height, width) in -1…1, the first of one frame."""
        for place in range(latents.shape[2]):
            yield self._decode(place).clone()


def scene(spec: ClipSpec) -> torch.Tensor:
    """(frames, 3, height, width): a picture that wanders, with some grain."""
    source = torch.Generator().manual_seed(0)
    rows = torch.linspace(0, 12, spec.height).view(1, 1, -1, 1)
    columns = torch.linspace(0, 20, spec.width).view(1, 1, 1, -1)
    times = torch.arange(spec.frames).view(-1, 1, 1, 1) * 0.07
    hues = torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1)
    grain = torch.randn(spec.frames, 3, spec.height, spec.width, generator=source) * 0.02
    return (torch.sin(rows + times) * torch.cos(columns - times + hues) * 0.8 + grain).clamp_(-1, 1)


def one_after_the_other(model: Any, latents: torch.Tensor, spec: ClipSpec, folder: Path) -> str:
    """All chunks, then one array of them, then its hash and its files."""
    chunks: list[Frames] = []
    for decoded in model.decode_chunks(latents, RESIDENT):
        wide = decoded.mul_(0.5).add_(0.5).clamp_(0, 1).mul_(255).round_().permute(0, 2, 3, 1)
        chunks.append(np.array(wide.to(torch.uint8).numpy()))
    frames: Frames = np.concatenate(chunks)
    del chunks
    return write_clip(frames, spec, folder, {}).frames_sha256


def as_they_come(model: Any, latents: torch.Tensor, spec: ClipSpec, folder: Path) -> str:
    """As a renderer does it."""
    with FrameEncoder(spec.fps, folder / VIDEO) as encoder:
        frames = decode_once(model, latents, RESIDENT, encoder)
        return write_clip(frames, spec, folder, {}, encoder=encoder).frames_sha256


def clips(repeats: int) -> tuple[dict[str, Any], list[Aim]]:
    """Time from latents to files, and host memory."""
    spec = clip_of(WAN, 320, 192, 121)
    pixels = scene(spec)
    latents = torch.empty(1, 48, 31, 12, 20)
    cut: list[torch.Tensor] = [pixels[:1], *torch.split(pixels[1:], 4)]
    decoder = narrow_vae(16).decoder
    small = torch.randn(1, decoder.z_dim, 1, 6, 8)

    def by_cpu(place: int) -> torch.Tensor:
        # Some decoder's arithmetic, and the picture that an encoder would get of a trained one.
        stock(decoder, small)
        return cut[place]

    chunk_s = in_turn([lambda: by_cpu(0)], repeats)[0]

    def by_card(place: int) -> torch.Tensor:
        time.sleep(chunk_s)
        return cut[place]

    figures: dict[str, Any] = {"clip": f"{spec.width}×{spec.height} × {spec.frames}", "decoding a chunk: s": chunk_s}
    aims: list[Aim] = []
    differing = 0
    with tempfile.TemporaryDirectory(prefix="decode-") as place:
        ways = (one_after_the_other, as_they_come)
        folders = {way: Path(place) / way.__name__ for way in ways}
        for folder in folders.values():
            folder.mkdir()
        for name, decode in (("decoder on the CPU", by_cpu), ("decoder beside the CPU", by_card)):
            model = Chunks(decode)
            times = in_turn([partial(way, model, latents, spec, folders[way]) for way in ways], repeats)
            # On top of decoding, which neither can save.
            rest = [took - len(cut) * chunk_s for took in times]
            figures |= {f"{name}, one after the other: s": times[0], f"{name}, as they come: s": times[1]}
            figures[f"{name}: from the last frame to the files, s"] = f"{rest[0]:.3g} before, {rest[1]:.3g} now"
            aims.append(
                Aim(name=f"{name}: time from latents to files, of before", value=times[1] / times[0], at_most=1.0)
            )
        peaks, hashes = [], []
        for way in ways:
            tracemalloc.start()
            hashes.append(way(Chunks(lambda n: cut[n]), latents, spec, folders[way]))
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        videos = [(folders[way] / VIDEO).read_bytes() for way in ways]
        differing = int(hashes[0] != hashes[1]) + int(videos[0] != videos[1])
    clip_bytes = spec.frames * spec.width * spec.height * 3
    figures["host memory of frames, in clips"] = f"{peaks[0] / clip_bytes:.3g} before, {peaks[1] / clip_bytes:.3g} now"
    aims.append(Aim(name="host memory of frames, of before", value=peaks[1] / peaks[0], at_most=0.7))
    aims.append(Aim(name="hashes and videos that differ", value=float(differing), at_most=0.0))
    return figures, aims


def main() -> int:
    """Measure both; returns the exit status."""
    options = parser(__doc__)
    options.add_argument("--repeats", type=int, default=3, help="how often each way is timed, in turn")
    options.add_argument("--threads", type=int, default=1, help="threads of arithmetic on the CPU")
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    with torch.no_grad():
        figures, aims = decoders(chosen.repeats)
        rounded, bounds = lossy()
        more, further = clips(chosen.repeats)
    return Report(name="decode", figures=figures | rounded | more, aims=aims + bounds + further).finish(chosen)


if __name__ == "__main__":
    sys.exit(main())
