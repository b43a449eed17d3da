"""How true stills are decoded: a seeded corpus of some 750 files, every pixel against libvips.

    python benchmarks/stills_corpus.py [--seed N] [--seeds COUNT] [--check] [--json FILE]

PNG, JPEG, MPO, TIFF, WebP, GIF, BMP and AVIF in every mode and depth that is read, with colour keys and alpha, ICC
profiles, chunks, code points and EXIF that say what their colours mean, and orientations said in five ways. The judge
is libvips (`autorot`, `icc_transform` to sRGB) or, for what it leaves out, a published formula on its samples; where
libvips reads a format otherwise than its specification, a named reason says so (`tests.stills.corpus.REASONS`).
Aim: no still with a pixel further off than 2 of 255 (3 for CMYK).
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from report import Aim, Report, parser

from pipeline.clips.stills import decode_still
from pipeline.problems import BadInputError
from tests.stills.corpus import REASONS, Case, cases


def farthest(case: Case) -> tuple[int, str]:
    """By how many levels the worst pixel is off, and what is wrong; 255 where a still is refused or of other size."""
    expected = case.expected()
    try:
        shown = np.asarray(decode_still(case.data).image)
    except BadInputError as error:
        return 255, str(error)
    if shown.shape != expected.low.shape:
        return 255, f"{shown.shape} instead of {expected.low.shape}"
    worst = int(expected.distance(shown).max())
    return worst, f"{worst} levels off"


def main() -> int:
    """Judge the corpus of every seed."""
    arguments = parser(__doc__)
    arguments.add_argument("--seed", type=int, default=0, help="seed of the first corpus")
    arguments.add_argument("--seeds", type=int, default=1, metavar="COUNT", help="how many corpora")
    options = arguments.parse_args()
    formats: Counter[str] = Counter()
    levels: Counter[int] = Counter()
    reasons: Counter[str] = Counter()
    wrong: list[str] = []
    for seed in range(options.seed, options.seed + options.seeds):
        for case in cases(seed):
            worst, what = farthest(case)
            formats[case.format] += 1
            levels[worst] += 1
            reasons[case.reason or "libvips alone"] += 1
            if worst > case.tolerance:
                wrong.append(f"{case.name} of seed {seed}: {what}")
    figures = {
        "stills": formats.total(),
        "by format": dict(formats),
        "stills by their farthest pixel's levels": dict(sorted(levels.items())),
        "judged by": dict(reasons),
        "reasons": REASONS,
        "wrong": wrong,
    }
    aims = [Aim(name="stills with a wrong pixel", value=len(wrong), at_most=0)]
    return Report(name="stills corpus", figures=figures, aims=aims).finish(options)


if __name__ == "__main__":
    sys.exit(main())
