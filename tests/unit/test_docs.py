"""Pages that a command writes are what it writes today."""

import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_claims_of_articles_stand_beside_what_the_tables_say_today(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    import seed_claims

    assert seed_claims.PAGE.read_text(encoding="utf-8") == seed_claims.page(), (
        "python benchmarks/seed_claims.py --write"
    )


def test_figures_of_benchmarks_are_those_of_the_committed_results(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    import benchmarks_page

    written = benchmarks_page.PAGE.read_text(encoding="utf-8")
    assert written == benchmarks_page.page(benchmarks_page.results()), "python benchmarks/benchmarks_page.py --write"


def test_without_a_result_of_a_gpu_the_page_says_so_and_with_one_it_shows_what_was_not_measured(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    import benchmarks_page

    assert "No result of a GPU is committed" in benchmarks_page.page({})
    about = {"gpu": "NVIDIA H200", "cuda": "13.0", "commit": "0123456789abcdef", "date": "2026-12-01", "command": "x"}
    aims = [
        {"name": "steps", "value": None, "bound": 1.8, "at_least": True, "unit": " times as fast", "met": None},
        {"name": "memory", "value": 7.0, "bound": 5.0, "at_least": False, "unit": " %", "met": False},
    ]
    content = {
        "benchmark": "gpu",
        "about": about,
        "finished": False,
        "aims": aims,
        "parts": {"ceilings": {"gemm": {"bf16_tflops": 788.123}}},
        "failed": {"grid: a": "RuntimeError: no"},
        "left_out": {"steps: b": "no time was left"},
    }
    shown = benchmarks_page.page({"gpu-h200": content})
    assert "No result of a GPU" not in shown
    assert "| steps | ≥ 1.8 times as fast | not measured |  |" in shown
    assert "| memory | ≤ 5 % | 7 % | **missed** |" in shown
    assert "bf16_tflops 788.1" in shown
    assert "ended before its end" in shown
    assert "- grid: a: RuntimeError: no" in shown
    assert "- steps: b: no time was left" in shown
