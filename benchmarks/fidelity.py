"""What is found of clips that were spoilt on purpose, how often good ones are alarmed, and how long a measure takes.

    python benchmarks/fidelity.py [--catalog DIR] [--clips N] [--half judged|learnt] [--fit] [--sheet FILE] [--check]

Camera clips of a catalog's stills are spoilt (`tests.fidelity.spoilt`), each fault in three strengths. Bounds were
chosen on stills of odd numbers (`learnt`); the figures are of the even ones (`judged`). The catalog is 101 pictures of
the sample shop dotnet/eShop (MIT); without it the eight of `examples/catalog` are taken. Aims: 90 % of each fault found
at the middle strength, with one of its own codes; an alarm at 5 % of the good clips at the most; a second of one core
for 48 frames of 512p. Small random networks make noise, and are left out by name
(`pipeline.fidelity.measured.measurable`).
"""

from __future__ import annotations

import random
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from pictures import CATALOG, EXAMPLES, halves, pictures_of
from report import Aim, Report, parser

from pipeline.fidelity.bounds import BOUNDS
from pipeline.fidelity.measured import Fidelity, compare
from pipeline.fidelity.score import FidelityPart
from tests.fidelity.spoilt import FAULTS, STRENGTHS, Frames, GoodClip, good_clip

#: The strength at which a fault has to be found.
MIDDLE = STRENGTHS[1]
#: Columns and side in pixels of a sheet of what was missed or alarmed.
SHEET_COLUMNS, SHEET_SIDE = 8, 180


def judged(clip: GoodClip, frames: Frames) -> Fidelity:
    """What is measured of `frames`, for which the clip's prompt and still were given."""
    return compare(frames, clip.still, prompt=clip.spec.prompt, flat=True, room=clip.room)


class Table:
    """What was found in the clips of one half of the stills."""

    def __init__(self, clips: list[GoodClip], most: int, strengths: Iterable[str] = STRENGTHS) -> None:
        self.clips = clips
        #: (made, found) by fault and strength, and what was missed or alarmed, with its frames.
        self.rows: dict[str, dict[str, tuple[int, int]]] = defaultdict(dict)
        self.shown: list[tuple[str, Frames]] = []
        self.alarms: dict[str, list[str]] = defaultdict(list)
        #: Values by part: of good clips, and of spoilt ones by fault at the middle strength.
        self.values: dict[str, dict[FidelityPart, list[float]]] = defaultdict(lambda: defaultdict(list))
        self._good()
        # The strength that is held to an aim first.
        for strength in sorted(strengths, key=lambda one: one != MIDDLE):
            for fault in FAULTS:
                self._fault(fault, STRENGTHS.index(strength), most)

    def _keep(self, kind: str, found: Fidelity) -> None:
        for part, one in found.parts.items():
            self.values[kind][part].append(one.value)

    def _good(self) -> None:
        for clip in self.clips:
            found = judged(clip, clip.frames)
            self._keep("good", found)
            for note in found.notes:
                self.alarms[note.code].append(f"{clip.name} ({clip.spec.prompt})")
            if found.notes:
                self.shown.append((f"! {clip.name} {found.notes[0].code}", clip.frames))

    def _fault(self, fault: str, strength: int, most: int) -> None:
        maker, codes = FAULTS[fault]
        made = found = 0
        for clip in self.clips:
            others = [other for other in self.clips if other.name != clip.name]
            frames = maker(clip, strength, random.Random(f"{fault} {strength} {clip.name}"), others)
            if frames is None:
                continue
            made += 1
            told = judged(clip, frames)
            if strength == STRENGTHS.index(MIDDLE):
                self._keep(fault, told)
            if codes & {note.code for note in told.notes}:
                found += 1
            else:
                self.shown.append((f"{clip.name} {fault} {strength}", frames))
            if made == most:
                break
        self.rows[fault][STRENGTHS[strength]] = (made, found)
        print(f"{fault} {STRENGTHS[strength]}: {found} of {made}", file=sys.stderr, flush=True)

    @property
    def alarmed(self) -> set[str]:
        """Good clips that were alarmed."""
        return {name for names in self.alarms.values() for name in names}

    def missed_share(self, fault: str) -> float:
        """Share of a fault's clips at the middle strength that was not found."""
        made, found = self.rows[fault][MIDDLE]
        return 1 - found / max(1, made)


def spread(values: list[float]) -> str:
    """Least, median, 95th percentile and most of some values."""
    return " ".join(f"{value:.3f}" for value in np.percentile(values, (0, 5, 50, 95, 100))) if values else "none"


def fitted(table: Table) -> dict[str, object]:
    """By part: what good clips have, what clips with its faults have, and the bound between the two."""
    by_part: dict[FidelityPart, list[str]] = defaultdict(list)
    for fault, (_, codes) in FAULTS.items():
        for part, measured in table.values[fault].items():
            if measured and _PARTS.get(part) in codes:
                by_part[part].append(f"{fault}: {spread(measured)}")
    return {
        part.value: {"good": spread(table.values["good"][part]), "faults": by_part[part], "now": BOUNDS[part].told}
        for part in FidelityPart
        if table.values["good"].get(part)
    }


_PARTS = {
    FidelityPart.FIRST_FRAME: "first_frame_off",
    FidelityPart.TRACK: "product_lost",
    FidelityPart.COLOUR: "colour_drift",
    FidelityPart.OUTLINE: "outline_drift",
    FidelityPart.STRUCTURE: "structure_lost",
    FidelityPart.FLICKER: "flicker",
    FidelityPart.FROZEN: "frozen",
    FidelityPart.BLACK: "black_frames",
    FidelityPart.CUT: "cut",
    FidelityPart.SECOND_PRODUCT: "second_product",
    FidelityPart.MOTION: "motion_opposite",
}


def seconds_a_clip(still: Image.Image) -> float:
    """Least CPU time of measuring 48 frames of 512p, in seconds."""
    clip = good_clip("timed", still, 0, side=512, frames=48)
    took = []
    for _ in range(3):
        began = time.thread_time()
        judged(clip, clip.frames)
        took.append(time.thread_time() - began)
    return min(took)


def contact_sheet(shown: Iterable[tuple[str, Frames]], path: Path) -> None:
    """Write the middle and the last frame of clips with their names."""
    tiles = list(shown)
    rows = (len(tiles) * 2 + SHEET_COLUMNS - 1) // SHEET_COLUMNS
    sheet = Image.new("RGB", (SHEET_COLUMNS * SHEET_SIDE, max(1, rows) * (SHEET_SIDE + 14)), "black")
    draw = ImageDraw.Draw(sheet)
    for place, (name, frame) in enumerate(
        (name, frame) for name, frames in tiles for frame in (frames[0], frames[2 * len(frames) // 3])
    ):
        x, y = place % SHEET_COLUMNS * SHEET_SIDE, place // SHEET_COLUMNS * (SHEET_SIDE + 14)
        small = Image.fromarray(frame)
        small.thumbnail((SHEET_SIDE - 2, SHEET_SIDE - 2))
        sheet.paste(small, (x, y + 14))
        draw.text((x + 2, y + 1), name, "yellow")
    sheet.save(path)


def main() -> int:
    """Judge the judge."""
    arguments = parser(__doc__)
    arguments.add_argument("--catalog", type=Path, default=CATALOG, help="folder of pictures")
    arguments.add_argument("--clips", type=int, default=50, metavar="N", help="at most, of each fault and strength")
    arguments.add_argument("--half", choices=("judged", "learnt"), default="judged", help="of which half")
    arguments.add_argument(
        "--fit", action="store_true", help="print values of good and of spoilt clips by part, and end"
    )
    arguments.add_argument("--sheet", type=Path, metavar="FILE", help="contact sheet of what was missed and alarmed")
    options = arguments.parse_args()
    folder = options.catalog if options.catalog.is_dir() else EXAMPLES
    learnt, others = halves(pictures_of(folder))
    stills = learnt if options.half == "learnt" or options.fit else others
    clips = [good_clip(name, still, place) for place, (name, still) in enumerate(stills.items())]
    table = Table(clips, options.clips, (MIDDLE,) if options.fit else STRENGTHS)
    if options.sheet:
        contact_sheet(table.shown, options.sheet)
    if options.fit:
        for part, found in fitted(table).items():
            print(part, found, sep="\n  ")
        print("alarms", dict(table.alarms), sep="\n  ")
        return 0
    took_s = seconds_a_clip(next(iter(stills.values())))
    figures = {
        "catalog": folder.name if folder == EXAMPLES else "eShop, 101 pictures",
        "half": options.half,
        "good clips": len(clips),
        "found": {
            fault: {strength: f"{found} of {made}" for strength, (made, found) in rows.items()}
            for fault, rows in table.rows.items()
        },
        "alarms of good clips": dict(table.alarms),
        "seconds of a core for 48 frames of 512p": round(took_s, 3),
    }
    aims = [
        Aim(name=f"missed of {fault}", value=100 * table.missed_share(fault), at_most=10, unit="%") for fault in FAULTS
    ]
    aims.append(Aim(name="good clips alarmed", value=100 * len(table.alarmed) / len(clips), at_most=5, unit="%"))
    aims.append(Aim(name="time of 48 frames of 512p", value=took_s, at_most=1, unit="s of a core"))
    return Report(name="fidelity", figures=figures, aims=aims).finish(options)


if __name__ == "__main__":
    sys.exit(main())
