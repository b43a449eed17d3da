"""Still and spec to frames, frames to the files of a clip. The same two calls serve the farm and a direct render."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.clips.arriving import FrameEncoder
from pipeline.clips.clip import RENDERER_VERSION, STILLS_VERSION, ClipSpec
from pipeline.clips.encode import encode_poster, encode_spritesheet
from pipeline.clips.frames import Frames, FrameSink
from pipeline.clips.inspection.autofix import fix_still
from pipeline.clips.prompts import read_motion
from pipeline.clips.review import review
from pipeline.clips.stills import open_still
from pipeline.families import Family, family_named
from pipeline.families.layouts import Layout
from pipeline.fidelity.report import FidelityReport, fidelity_of
from pipeline.fidelity.score import FidelityScore
from pipeline.marks.coded import coded_pictures
from pipeline.marks.likeness import likeness_of
from pipeline.models.model import Model, OnStep
from pipeline.notes import Note, as_json, distinct

#: Name of a clip's video in the folder of its files.
VIDEO = "video.mp4"


@dataclass(frozen=True, kw_only=True)
class ClipFiles:
    """The files of one finished clip, in a folder of their own."""

    video: Path
    poster: Path
    spritesheet: Path
    provenance: Path
    #: SHA-256 over the raw RGB frames, before encoding.
    frames_sha256: str
    #: What a person should know of the clip.
    notes: tuple[Note, ...] = ()
    #: How true it is to its still and prompt; None where that was not measured.
    fidelity: FidelityScore | None = None


def render_frames(
    model: Model,
    still: bytes | Image.Image,
    spec: ClipSpec,
    layout: Layout,
    on_step: OnStep,
    resume: bytes | None = None,
    sink: FrameSink | None = None,
) -> Frames:
    """Render `spec` from a still, as a file or decoded, or go on from a checkpoint: (frames, height, width, 3) uint8.

    A file is mended as the spec asks for; a picture is taken as it is. `sink` is told of frames as they come. Raises
    `BadInputError` for a still that cannot be used, and whatever `Model.render` raises.
    """
    picture = fix_still(open_still(still), spec.autofix).image if isinstance(still, bytes) else still
    frames = model.render(picture, spec, layout, on_step, resume, sink)
    expected = (spec.frames, spec.height, spec.width, 3)
    if frames.shape != expected:
        raise RuntimeError(f"{spec.family} returned frames of shape {frames.shape}, not {expected}")
    return frames


def write_clip(
    frames: Frames,
    spec: ClipSpec,
    folder: Path,
    facts: Mapping[str, Any],
    notes: Sequence[Note] = (),
    encoder: FrameEncoder | None = None,
    still: Image.Image | None = None,
) -> ClipFiles:
    """Review and encode `frames` into `folder`; `facts` go into the provenance beside what is known here.

    `notes` were made before there were frames; those of the review join them. `encoder`: what has taken these frames
    already and writes `folder / VIDEO`; without one they are encoded now. `still`: RGB, as the model was given it; the
    clip is measured against it (docs/fidelity.md), and without one it is not.

    Raises `pipeline.clips.encode.EncodeError`.
    """
    if encoder is None:
        with FrameEncoder(spec.fps, folder / VIDEO) as encoder:
            encoder.begin(frames)
            encoder.filled(len(frames))
            return write_clip(frames, spec, folder, facts, notes, encoder, still)
    family = family_named(spec.family)
    # Beside the encoder, which may be some frames behind.
    encode_poster(frames, folder / "poster.jpg")
    encode_spritesheet(frames, folder / "spritesheet.jpg")
    findings = review(frames)
    fidelity = _fidelity(frames, still, spec, facts)
    files = ClipFiles(
        video=folder / VIDEO,
        poster=folder / "poster.jpg",
        spritesheet=folder / "spritesheet.jpg",
        provenance=folder / "provenance.json",
        frames_sha256=encoder.finish(),
        notes=distinct([*notes, *_unasked(findings, family, spec), *fidelity.notes]),
        fidelity=fidelity.score,
    )
    provenance = {
        # By which a copy is known again, whatever became of its container.
        "video": {"stream_sha256": coded_pictures(files.video).sha256, "likeness": likeness_of(frames)},
        "spec": spec.model_dump(mode="json"),
        # What was asked for, and what the card was too small for otherwise.
        "lossy": [*spec.lossy, *(Layout.model_validate(facts["layout"]).lossy if "layout" in facts else ())],
        "family": {
            "name": family.name,
            "title": family.title,
            "revision": family.revision,
            "licence": family.licence,
            "licence_note": family.licence_note,
        },
        "frames_sha256": files.frames_sha256,
        "review": as_json(findings),
        **({"fidelity": fidelity.facts} if fidelity.facts else {}),
        "notes": as_json(files.notes),
        "versions": versions(),
        **facts,
    }
    files.provenance.write_text(json.dumps(provenance, indent=2, sort_keys=True), encoding="utf-8")
    return files


def _fidelity(frames: Frames, still: Image.Image | None, spec: ClipSpec, facts: Mapping[str, Any]) -> FidelityReport:
    if still is None:
        return FidelityReport(facts={})
    read = facts.get("model")
    return fidelity_of(frames, still, spec, read if isinstance(read, Mapping) else {})


def _unasked(findings: Sequence[Note], family: Family, spec: ClipSpec) -> list[Note]:
    """The findings but for the stillness of a camera that was asked to stand still."""
    still = family.engine == "camera" and not read_motion(spec.prompt).moves
    return [finding for finding in findings if not (still and finding.code == "no_motion")]


def versions() -> dict[str, str]:
    """Versions of what made a clip."""
    found = {"python": platform.python_version(), "renderer": RENDERER_VERSION, "stills": STILLS_VERSION}
    for name in ("clipmill", "pillow", "numpy", "imageio-ffmpeg"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
