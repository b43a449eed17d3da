"""Values that seldom give a good clip are noted before anything is rendered, for each family by its own figures."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from cluster.catalog import traps
from cluster.catalog.defaults import Defaults, FewStep
from cluster.catalog.manifest import Row
from cluster.catalog.resolve import resolve
from pipeline.clips.clip import ResolutionClass, Sampler, Tier
from pipeline.families import FAMILIES

DOCS = Path(__file__).parents[4] / "docs" / "parameters.md"
REAL = [family for family in FAMILIES.values() if family.repo is not None]
FAST = {"i2vgen-xl": FewStep(adapter="a.safetensors", sha256="ab" * 32)}


def codes(model: str, **fields: Any) -> list[str]:
    row = Row(**{"number": 1, "id": "a", "image": "a.png", "prompt": "pan left", **fields})
    found = resolve(row, (2048, 2048), Defaults(model=model, few_step=FAST), "ab" * 32).noted
    return [note.code for note in found if note.code != "prompt_unused"]


@pytest.mark.parametrize("family", REAL, ids=lambda family: family.name)
def test_each_bound_is_the_familys_own_and_what_is_on_it_is_fine(family) -> None:
    least, most = traps.few_steps(family), traps.high_guidance(family)
    assert codes(family.name, steps=least) == []
    assert codes(family.name, steps=least - 1) == ["few_steps"]
    assert codes(family.name, guidance=most) == []
    assert codes(family.name, guidance=most + 0.1) == ["guidance_high"]
    draft = family.tiers[Tier.DRAFT].steps
    assert codes(family.name, steps=draft, guidance=family.guidance + 1) == []
    assert codes(family.name, steps=draft - 1, guidance=family.guidance + 1) == ["few_steps_high_guidance"]
    assert codes(family.name, guidance=1) == ["guidance_off"]
    for tier in (Tier.DRAFT, Tier.STANDARD, Tier.HIGH):
        assert codes(family.name, tier=tier) == []


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"steps": 2, "guidance": 30}, ["few_steps", "guidance_high"]),
        ({"steps": 20, "guidance": 12}, ["few_steps_high_guidance"]),
        ({"tier": Tier.FAST}, []),
        ({"tier": Tier.FAST, "guidance": 7.5}, ["guidance_of_distilled"]),
        ({"sampler": Sampler.LCM, "steps": 4, "guidance": 1}, ["lcm_undistilled"]),
        ({"sampler": Sampler.LCM, "steps": 9, "guidance": 1}, ["lcm_undistilled", "lcm_many_steps"]),
        ({"step_cache": 10}, []),
        ({"step_cache": 11}, ["step_cache_long"]),
        ({"fps": 60}, ["clip_short"]),
        ({"fps": 32}, []),
        ({"motion_class": ResolutionClass.P256, "strength": 0.5}, []),
        ({"motion_class": ResolutionClass.P256, "strength": 1.0}, ["strength_whole"]),
        ({"motion_class": ResolutionClass.P256, "strength": 0.05}, ["few_refining_steps"]),
    ],
)
def test_traps_of_one_family(fields: dict[str, Any], expected: list[str]) -> None:
    assert codes("i2vgen-xl", **fields) == expected


@pytest.mark.parametrize("model", ["camera", "i2vgen-xl-tiny"])
def test_what_has_no_quality_of_denoising_has_no_traps(model: str) -> None:
    assert "few_steps" not in codes(model, steps=1)


def test_strict_refuses_no_trap() -> None:
    row = Row(number=1, id="a", image="a.png", prompt="pan left", steps=2, guidance=30)
    found = resolve(row, (2048, 2048), Defaults(model="i2vgen-xl", strict=True), "ab" * 32)
    assert [note.worth_a_look for note in found.noted] == [True, True]


def test_the_documented_bounds_are_those_that_are_used() -> None:
    text = DOCS.read_text()
    for title, value in (("steps fewer than", traps.few_steps), ("guidance above", traps.high_guidance)):
        (line,) = re.findall(rf"^\| {title} \|(.*)\|$", text, re.MULTILINE)
        head = next(line for line in text.splitlines() if line.startswith("| | `i2vgen-xl` |"))
        names = re.findall(r"`([^`]+)`", head)
        shown = dict(zip(names, (cell.strip() for cell in line.split("|")), strict=False))
        assert {family.name: f"{value(family):g}" for family in REAL} == {
            name: shown[name] for name in shown if shown[name]
        }
    said = set(re.findall(r"found\.note\(\s*\"([a-z_]+)\"", Path(traps.__file__).read_text()))
    assert len(said) == 13
    assert all(f"`{code}`" in text for code in said)
