"""Figures of the results under `benchmarks/results`, and what there is no result of: `docs/benchmarks.md`.

    python benchmarks/benchmarks_page.py --write     # writes docs/benchmarks.md
    python benchmarks/benchmarks_page.py --check     # exit 1 where the page is not what this prints

A result is what a benchmark wrote by `--json`; copy it there under a name of its own (`gpu-h200.json`, say). Results
are shown as they are, each with its machine; nothing is computed from two of them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGE = HERE.parent / "docs" / "benchmarks.md"
GIB = 2**30

#: Benchmarks that need no card, by the name in their results: the command, and what it is about.
ON_CPUS: Mapping[str, tuple[str, str]] = {
    "seed claims": ("python benchmarks/seed_claims.py --check", "claims of articles beside what the network says"),
    "farm": ("python benchmarks/farm.py", "a whole farm on emulated cards"),
    "forecast": ("python benchmarks/forecast.py --rounds 3 --check", "forecasts against what then happened"),
    "from_draft": ("python benchmarks/from_draft.py --rounds 1", "final clips that start from their drafts"),
    "oom_grid": ("python benchmarks/oom_grid.py --check", "cards that take more than predicted"),
    "store": ("python benchmarks/store.py --check", "claims and completions a second"),
    "scale": ("python benchmarks/scale.py --check", "placement with very many waiting clips"),
    "prompts": ("python benchmarks/prompts.py --check", "how well prompts are judged, and what it costs"),
    "interactive": ("python benchmarks/interactive.py --check", "clips that somebody waits for, and others one by one"),
}


def results(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """The committed results by the name of their file. Raises `ValueError` for one that is none."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        if "benchmark" not in content:
            raise ValueError(f"{path} is no result of a benchmark: it names none")
        found[path.stem] = content
    return found


def page(found: Mapping[str, dict[str, Any]]) -> str:
    """The whole page."""
    gpu = {name: content for name, content in found.items() if content["benchmark"] == "gpu"}
    other = {name: content for name, content in found.items() if content["benchmark"] != "gpu"}
    lines = [
        "# Benchmarks",
        "",
        "Figures that were measured, with the machine beside them. This page is written by",
        "`python benchmarks/benchmarks_page.py --write` from the results under `benchmarks/results`; what is not there",
        "was not measured, and is said to be so.",
        "",
        "## On a GPU",
        "",
        *_gpu(gpu),
        "",
        "## On CPUs",
        "",
        *_cpu(other),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _gpu(found: Mapping[str, dict[str, Any]]) -> Iterator[str]:
    if not found:
        yield from (
            "**No result of a GPU is committed: nothing in this repository says yet how long a clip takes on a real",
            "card, or that its memory is what was predicted.** Where the documentation names such figures, they are",
            "predictions, or claims of others that are marked as theirs.",
            "",
            "To have one, on a machine with an NVIDIA GPU that nobody else uses:",
            "",
            "```sh",
            "python benchmarks/gpu.py --budget 420 --json benchmarks/results/gpu-NAME.json --check",
            "python benchmarks/benchmarks_page.py --write",
            "```",
            "",
            "`--tiny` runs the same script to its end with small networks on a CPU; its figures say nothing.",
        )
    for name, content in found.items():
        about = content["about"]
        if about["cuda"] == "none":
            raise ValueError(f"{name}: a result without a GPU is none of a GPU")
        yield f"### {about['gpu']}"
        yield ""
        yield _about(about, ("driver", "cuda", "cudnn", "torch", "diffusers", "triton", "python", "machine"))
        if not content["finished"]:
            yield "**The run was ended before its end.**"
        yield ""
        yield from table(("aim", "bound", "measured", ""), [_aim(aim) for aim in content["aims"]])
        for part, cases in content["parts"].items():
            yield from ("", f"#### {part}", "")
            yield from _cells(cases) if part == "grid" else _cases(cases)
        for words, names in (("Failed", content["failed"]), ("Left out", content["left_out"])):
            if names:
                yield from ("", f"{words}:", "", *(f"- {case}: {why}" for case, why in names.items()))
        yield ""


def _cpu(found: Mapping[str, dict[str, Any]]) -> Iterator[str]:
    measured = {content["benchmark"] for content in found.values()}
    for content in found.values():
        about = ON_CPUS.get(content["benchmark"], ("", ""))[1]
        yield from (f"### {content['benchmark']}{f': {about}' if about else ''}", "")
        yield _about(content, ("machine",))
        yield ""
        yield from table(("figure", "value"), [(name, text(value)) for name, value in content["figures"].items()])
        if content["aims"]:
            yield ""
            yield from table(("aim", "bound", "measured", ""), [_aim(aim) for aim in content["aims"]])
        yield ""
    absent = {name: of for name, of in ON_CPUS.items() if name not in measured}
    if absent:
        yield from ("No result is committed of:", "")
        yield from table(("benchmark", "about", "command"), [(n, of[1], f"`{of[0]}`") for n, of in absent.items()])


def _about(about: Mapping[str, Any], names: Sequence[str]) -> str:
    found = ", ".join(f"{name} {about[name]}" if name != "machine" else about[name] for name in names if name in about)
    return f"{found}. Commit `{about['commit'][:12]}`, {about['date'][:10]}, `{about['command']}`."


def _aim(aim: Mapping[str, Any]) -> tuple[str, ...]:
    """Both forms: of a card, which may be a least and not measured, and of `report.Aim`, which is a most."""
    unit = f" {aim['unit'].strip()}" if aim.get("unit") else ""
    bound = aim.get("bound", aim.get("at_most"))
    wanted = f"{'≥' if aim.get('at_least') else '≤'} {bound:g}{unit}"
    if aim["value"] is None:
        return aim["name"], wanted, "not measured", ""
    return aim["name"], wanted, f"{aim['value']:.4g}{unit}", "met" if aim["met"] else "**missed**"


def _cases(cases: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    rows = [
        (case, "; ".join(f"{name} {text(value)}" for name, value in found.items())) for case, found in cases.items()
    ]
    yield from table(("case", "figures"), rows)


def _cells(cells: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    rows = []
    for case, cell in cells.items():
        if not cell["admitted"]:
            rows.append((case, "not admitted", "", "", "", "", ""))
            continue
        layout = cell["layout"] if cell["done"] else f"out of memory in {cell['layout']}"
        for stage, taken in cell.get("stages", {"": None}).items():
            sizes = [
                f"{taken[name] / GIB:.2f}" if taken else "" for name in ("predicted", "allocated", "taken", "promised")
            ]
            rows.append((case, layout, stage, *sizes))
            case, layout = "", ""
    yield from table(("case", "layout", "stage", "predicted", "allocated", "of the card", "promised, GiB"), rows)


def text(value: Any) -> str:
    """A figure for people."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return "(" + ", ".join(f"{name} {text(each)}" for name, each in value.items()) + ")"
    if isinstance(value, list):
        return ", ".join(map(text, value))
    return str(value)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of a table in Markdown."""
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"


def main() -> int:
    """Write the page, or compare."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--write", action="store_true", help="write docs/benchmarks.md")
    options.add_argument("--check", action="store_true", help="exit 1 where the page is another")
    chosen = options.parse_args()
    wanted = page(results())
    if chosen.write:
        PAGE.write_text(wanted, encoding="utf-8")
        return 0
    current = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == wanted
    print(
        wanted if not chosen.check else f"docs/benchmarks.md is {'current' if current else 'not current: --write it'}"
    )
    return int(chosen.check and not current)


if __name__ == "__main__":
    sys.exit(main())
