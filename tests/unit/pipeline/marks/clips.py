"""Small clips to be marked, and what is done to them by people who mean no good."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from PIL import Image

from pipeline.clips.encode import encode_mp4, encode_poster
from pipeline.clips.frames import Frames
from pipeline.marks.carriers import C2PA_UUID, Carrier, Part, is_uuid, parts_of
from pipeline.marks.facts import ClipFacts
from pipeline.marks.identity import SigningIdentity, make_test_identity

FRAMES, SIDE, FPS = 12, 96, 12
FACTS = ClipFacts(
    content_key="c" * 64, family="wan2.2-5b", revision="r1", still_sha256="d" * 64, rendered_at="2026-11-29T15:55:23Z"
)


def frames(seed: int = 0) -> Frames:
    """A disc that wanders over a gradient; where and which depends on the seed."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE]
    angle, radius = rng.uniform(0, 2 * np.pi), rng.integers(SIDE // 5, SIDE // 3)
    background = (np.cos(angle) * x + np.sin(angle) * y) * 1.2 + 120
    colour = rng.integers(0, 255, 3)
    made = np.empty((FRAMES, SIDE, SIDE, 3), np.uint8)
    for number in range(FRAMES):
        disc = (x - SIDE // 3 - 2 * number) ** 2 + (y - SIDE // 2) ** 2 < radius**2
        made[number] = np.where(disc[..., None], colour, np.clip(background, 0, 255)[..., None])
    return made


@cache
def identity() -> SigningIdentity:
    """One certificate for all tests."""
    return make_test_identity("Somebody")


def make_files(folder: Path, seed: int = 0) -> dict[str, Path]:
    """A clip as MP4, JPEG and PNG."""
    made = frames(seed)
    paths = {kind: folder / f"clip-{seed}.{kind}" for kind in ("mp4", "jpg", "png")}
    encode_mp4(made, FPS, paths["mp4"])
    encode_poster(made, paths["jpg"])
    Image.fromarray(made[0]).save(paths["png"])
    return paths


def ffmpeg(source: Path, target: Path, *options: str) -> Path:
    """What ffmpeg makes of a file."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-i", str(source), *options, str(target)]
    subprocess.run(command, check=True, capture_output=True)
    return target


def manifest_box(path: Path) -> tuple[Part, bytes]:
    """The box of an MP4 that has its manifest."""
    with path.open("rb") as file:
        [part] = [part for part in parts_of(file, Carrier.MP4) if is_uuid(file, part, C2PA_UUID)]
        file.seek(part.start)
        return part, file.read(part.stop - part.start)


def with_manifest_of(path: Path, other: Path, target: Path) -> Path:
    """An MP4 with another one's manifest in the place of its own, which must be as long or longer."""
    part, _ = manifest_box(path)
    _, box = manifest_box(other)
    left = part.stop - part.start - len(box)
    assert left == 0 or left >= 8
    filling = left.to_bytes(4, "big") + b"free" + bytes(left - 8) if left else b""
    data = path.read_bytes()
    target.write_bytes(data[: part.start] + box + filling + data[part.stop :])
    return target


def without_manifest(path: Path, target: Path) -> Path:
    """An MP4 whose manifest was overwritten by nothing, in place."""
    part, _ = manifest_box(path)
    data = bytearray(path.read_bytes())
    data[part.start + 4 : part.start + 8] = b"free"
    data[part.body : part.stop] = bytes(part.stop - part.body)
    target.write_bytes(data)
    return target


def flipped(path: Path, at: int, target: Path) -> Path:
    """The file with one bit of one byte turned round."""
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    target.write_bytes(data)
    return target
