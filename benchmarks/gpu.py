"""What this version does on one NVIDIA GPU, in one loan of it: ceilings, memory, steps, clips, decoding, resuming.

    python benchmarks/gpu.py --json FILE [--out DIR] [--budget SECONDS] [--only PART ...] [--check]
    python benchmarks/gpu.py --tiny          # all of it with the small networks on the CPU, to try the script

Parts run in this order, each is printed and written as it goes, so a run that is killed keeps what it measured:

    ceilings  copies, matrix products, convolutions and attention, as fast as the card does them
    grid      predicted, allocated and reserved memory by stage, in budgets of 8 to 80 GiB
    steps     each speed-up alone and all together, diffusers' own loop, streamed weights
    clips     whole clips from the still to frames on the host
    decode    this project's decoding and diffusers', and whether the pictures are equal
    resume    a clip that was interrupted and went on, against the uninterrupted one

Full-size networks get random weights on the card itself: nothing is downloaded. Speed and memory are real, pictures
are not. `--budget` takes the cases first that an aim is read from, by their known cost, and says what it left out;
without it all of them run. On an H200 `--budget 420` fits a loan of 8 minutes with its start. Use a card on which
nobody else works.

Exit codes: 0 done; 1 with `--check` an aim that was measured on a card is missed, or a case failed (always with
`--tiny`); 2 wrong arguments; 3 no CUDA card here; 4 packages are lacking, and how to bring them is printed.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
# Of a checkout that is not installed too.
sys.path[:0] = [str(HERE), str(HERE.parent)]

# As a renderer has it, and before CUDA starts: blocks of one stage do not hold the segments of the next.
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

from gpu_parts.cases import PARTS, Case, Planned, Results, plan_cases, run_cases  # noqa: E402
from gpu_parts.needs import about, how_to_bring, lacking  # noqa: E402

NO_CARD, NO_PACKAGES = 3, 4


def options() -> argparse.ArgumentParser:
    """Command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", type=Path, metavar="FILE", help="write the figures here, after every case")
    made.add_argument("--out", type=Path, metavar="DIR", help="write one file a part, and all of it, here")
    made.add_argument("--only", action="append", choices=PARTS, help="again for more (default: all)")
    made.add_argument("--case", action="append", metavar="WORDS", help="only cases with these words in their name")
    made.add_argument("--budget", type=float, metavar="SECONDS", help="what the cases may take in all")
    made.add_argument("--check", action="store_true", help="exit 1 where a measured aim is missed or a case failed")
    made.add_argument("--list", action="store_true", help="print what would run, and its cost, and exit")
    made.add_argument("--tiny", action="store_true", help="small networks on the CPU, to try the script")
    return made


def cases_of(bench: Any, only: Sequence[str], words: Sequence[str]) -> list[Case]:
    """The cases of the parts `only` whose names have any of `words`; all where there are none."""
    from gpu_parts import ceilings, grid, speed

    made = {
        "ceilings": ceilings.cases,
        "grid": grid.cases,
        "steps": speed.step_cases,
        "clips": speed.clip_cases,
        "decode": speed.decode_cases,
        "resume": speed.resume_cases,
    }
    cases = [case for part in PARTS if part in only for case in made[part](bench)]
    return [case for case in cases if not words or any(word in str(case) for word in words)]


def no_card() -> str:
    """Why there is no card to measure, and what to do; empty where there is one."""
    import torch

    if torch.cuda.is_available():
        return ""
    built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for the CPU only"
    return (
        f"no CUDA card here (torch {torch.__version__}, built {built}): run this where `nvidia-smi` lists one, or try "
        "the script with --tiny"
    )


def show(planned: Planned) -> None:
    """What runs, what it costs, and what does not fit."""
    for case in planned.runs:
        print(f"  {case.cost_s:5.0f} s  {case}")
    print(f"  {sum(case.cost_s for case in planned.runs):5.0f} s  in all, by costs estimated for an H200")
    for case in planned.left_out:
        print(f"  left out, does not fit the budget: {case} ({case.cost_s:.0f} s)")


def judge(results: Results, *, tiny: bool, check: bool) -> int:
    """Print the aims and give the exit code."""
    from gpu_parts.aims import aims_of

    aims = aims_of(results.content["parts"])
    failed = results.content["failed"]
    results.content["aims"] = [asdict(aim) | {"met": aim.met} for aim in aims]
    results.content["finished"] = True
    results.write()
    print("aims" + (" (of small networks on a CPU: they say nothing of a card)" if tiny else ""))
    for aim in aims:
        print(f"  {aim}")
    for case, words in failed.items():
        print(f"  FAILED {case}: {words}")
    missed = any(aim.met is False for aim in aims) and not tiny
    return int((bool(failed) and (check or tiny)) or (missed and check))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write, compare with the aims."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    chosen = options().parse_args(given)
    began = time.monotonic()
    if missing := lacking():
        print(how_to_bring(missing), file=sys.stderr)
        return NO_PACKAGES
    if not (chosen.tiny or chosen.list) and (why := no_card()):
        print(why, file=sys.stderr)
        return NO_CARD
    from gpu_parts.bench import Bench

    bench = Bench(tiny=chosen.tiny or (chosen.list and bool(no_card())))
    planned = plan_cases(cases_of(bench, chosen.only or PARTS, chosen.case or ()), chosen.budget)
    show(planned)
    if chosen.list:
        return 0
    results = Results(about(given), chosen.json, chosen.out)
    print("; ".join(f"{name} {value}" for name, value in results.content["about"].items()), flush=True)
    deadline = None if chosen.budget is None else began + chosen.budget
    run_cases(planned, results, deadline=deadline, after_failure=bench.recover)
    results.content["seconds"] = round(time.monotonic() - began, 1)
    return judge(results, tiny=chosen.tiny, check=chosen.check)


if __name__ == "__main__":
    sys.exit(main())
