"""How well the prompt help judges, and what it costs.

    python benchmarks/prompts.py [--check] [--json FILE]

Judged are the two halves of labelled prompts under `tests/unit/pipeline/lint`: `building.tsv`, on which the rules were
built, and `held_out.tsv`, which was written before the rules and looked at after. A false alarm is a good prompt with
any finding; a miss is a bad one without the finding that it is labelled with. Time is CPU time of one prompt that was
never seen, rewrites included: the median of several rounds over all prompts. Aims: at most 5 % false alarms and 10 %
missed on the held-out half, and one millisecond a prompt.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from report import Aim, Report, parser

from pipeline.families import FAMILIES
from pipeline.lint.lint import forget_prompts, lint_prompt

PROMPTS = Path(__file__).parent.parent / "tests" / "unit" / "pipeline" / "lint"
FAMILY = FAMILIES["i2vgen-xl"]
#: Counted by tokenizers, which come with weights.
COUNTED = "prompt_cut"


def labelled(name: str) -> list[tuple[str, str]]:
    """(label, prompt) of one half."""
    lines = (PROMPTS / f"{name}.tsv").read_text(encoding="utf-8").splitlines()
    return [(code, prompt) for code, prompt in (line.split("\t") for line in lines) if code != COUNTED]


def judged(prompts: list[tuple[str, str]]) -> tuple[float, float]:
    """(% of good prompts with a finding, % of bad ones without their own)."""
    good = [prompt for code, prompt in prompts if code == "ok"]
    bad = [(code, prompt) for code, prompt in prompts if code != "ok"]
    alarms = sum(bool(lint_prompt(FAMILY, prompt)) for prompt in good)
    missed = sum(code not in [note.code for note in lint_prompt(FAMILY, prompt)] for code, prompt in bad)
    return 100 * alarms / len(good), 100 * missed / len(bad)


def cost_ms(prompts: list[tuple[str, str]], rounds: int) -> float:
    """Milliseconds of CPU time a prompt."""
    taken = []
    for _ in range(rounds):
        forget_prompts()
        began = time.process_time()
        for _, prompt in prompts:
            lint_prompt(FAMILY, prompt)
        taken.append((time.process_time() - began) / len(prompts) * 1e3)
    return statistics.median(taken)


def main() -> int:
    """Judge, time and report."""
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=7)
    given = options.parse_args()
    building, held_out = labelled("building"), labelled("held_out")
    (alarms_built, missed_built), (alarms, missed) = judged(building), judged(held_out)
    cost = cost_ms([*building, *held_out], given.rounds)
    good = cost_ms([one for one in [*building, *held_out] if one[0] == "ok"], given.rounds)
    figures = {
        "prompts of the building half": len(building),
        "prompts of the held-out half": len(held_out),
        "false alarms, building half, %": alarms_built,
        "missed, building half, %": missed_built,
        "false alarms, held-out half, %": alarms,
        "missed, held-out half, %": missed,
        "ms of CPU a prompt": cost,
        "ms of CPU a good prompt": good,
    }
    aims = [
        Aim(name="false alarms", value=alarms, at_most=5, unit="%"),
        Aim(name="missed", value=missed, at_most=10, unit="%"),
        Aim(name="cost", value=cost, at_most=1, unit="ms"),
    ]
    return Report(name="prompts", figures=figures, aims=aims).finish(given)


if __name__ == "__main__":
    sys.exit(main())
