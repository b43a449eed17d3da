"""What a finished clip says of its fidelity: measured where that can be done here, and never at the clip's cost."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from pipeline.clips.clip import ClipSpec
from pipeline.clips.frames import Frames
from pipeline.families import family_named
from pipeline.fidelity.libraries import REMEDY, why_not
from pipeline.fidelity.measured import measurable, measure
from pipeline.fidelity.score import FidelityScore
from pipeline.notes import Note

log = logging.getLogger("clipmill.fidelity")


@dataclass(frozen=True, kw_only=True)
class FidelityReport:
    """What is kept of one measure."""

    #: For provenance: what was measured, or why nothing was.
    facts: Mapping[str, Any]
    #: None where nothing was measured.
    score: FidelityScore | None = None
    notes: tuple[Note, ...] = field(default=())


def fidelity_of(frames: Frames, still: Image.Image, spec: ClipSpec, model: Mapping[str, Any]) -> FidelityReport:
    """Measure a finished clip; never raises.

    `still`: RGB, as the model was given it; `model`: what it says of how it read the clip (`Model.notes`).
    """
    family = family_named(spec.family)
    if why := measurable(family) or why_not():
        remedy = "" if measurable(family) else f". {REMEDY}"
        return FidelityReport(facts={"not_measured": why + remedy})
    try:
        flat = family.engine == "camera"
        found = measure(frames, still, spec, flat=flat, room=float(model.get("move_share", 1.0)))
    except Exception as error:
        # A clip that was paid for is not thrown away because nobody could say how good it is.
        log.exception("a clip could not be measured")
        return FidelityReport(facts={"not_measured": f"{type(error).__name__}: {error}"})
    return FidelityReport(facts=found.to_json(), score=found.score, notes=found.notes)
