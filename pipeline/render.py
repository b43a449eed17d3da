"""Still and spec to frames, frames to the files of a clip. The same two calls serve the farm and a direct render."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.clip import RENDERER_VERSION, ClipSpec
from pipeline.encode import encode_mp4, encode_poster, encode_spritesheet, frames_sha256
from pipeline.families import family_named
from pipeline.layouts import Layout
from pipeline.models.model import Frames, Model, OnStep
from pipeline.review import review
from pipeline.stills import open_still


@dataclass(frozen=True, kw_only=True)
class ClipFiles:
    """The files of one finished clip, in a folder of their own."""

    video: Path
    poster: Path
    spritesheet: Path
    provenance: Path
    #: SHA-256 over the raw RGB frames, before encoding.
    frames_sha256: str


def render_frames(
    model: Model, still: bytes, spec: ClipSpec, layout: Layout, on_step: OnStep, resume: bytes | None = None
) -> Frames:
    """Render `spec` from the bytes of a still, or go on from a checkpoint: (frames, height, width, 3) uint8.

    Raises `BadInputError` for a still that cannot be used, and whatever `Model.render` raises.
    """
    frames = model.render(open_still(still), spec, layout, on_step, resume)
    expected = (spec.frames, spec.height, spec.width, 3)
    if frames.shape != expected:
        raise RuntimeError(f"{spec.family} returned frames of shape {frames.shape}, not {expected}")
    return frames


def write_clip(frames: Frames, spec: ClipSpec, folder: Path, facts: Mapping[str, Any]) -> ClipFiles:
    """Review and encode `frames` into `folder`; `facts` go into the provenance beside what is known here.

    Raises `pipeline.encode.EncodeError`.
    """
    files = ClipFiles(
        video=folder / "video.mp4",
        poster=folder / "poster.jpg",
        spritesheet=folder / "spritesheet.jpg",
        provenance=folder / "provenance.json",
        frames_sha256=frames_sha256(frames),
    )
    encode_mp4(frames, spec.fps, files.video)
    encode_poster(frames, files.poster)
    encode_spritesheet(frames, files.spritesheet)
    family = family_named(spec.family)
    provenance = {
        "spec": spec.model_dump(mode="json"),
        "lossy": list(spec.lossy),
        "family": {
            "name": family.name,
            "title": family.title,
            "revision": family.revision,
            "licence": family.licence,
            "licence_note": family.licence_note,
        },
        "frames_sha256": files.frames_sha256,
        "review": [finding.model_dump(mode="json") for finding in review(frames)],
        "versions": versions(),
        **facts,
    }
    files.provenance.write_text(json.dumps(provenance, indent=2, sort_keys=True), encoding="utf-8")
    return files


def versions() -> dict[str, str]:
    """Versions of what made a clip."""
    found = {"python": platform.python_version(), "renderer": RENDERER_VERSION}
    for name in ("clipmill", "pillow", "numpy", "imageio-ffmpeg"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
