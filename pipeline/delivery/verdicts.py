"""What a judge says of a file: every rule of its profile, what was found and what is wanted."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict

from pipeline.problems import Problem


class RuleCheck(BaseModel):
    """One rule of a profile, checked on a file."""

    model_config = ConfigDict(use_attribute_docstrings=True, frozen=True, extra="ignore")

    rule: str
    """Machine name such as `seconds`, `bit_rate` or `bars`: stable, for counting."""
    passed: bool
    """Whether the file keeps it."""
    found: str
    """What the file has, in words with units."""
    wanted: str
    """What the profile asks for, in words with units."""

    def __str__(self) -> str:
        return f"{self.rule.replace('_', ' ')}: {self.found}, wanted {self.wanted}"


class ProfileVerdict(BaseModel):
    """A file judged against its profile. A file that breaks one rule is not delivered."""

    model_config = ConfigDict(use_attribute_docstrings=True, frozen=True, extra="ignore")

    profile: str
    """Name of the profile."""
    passed: bool
    """Whether every rule is kept."""
    checks: tuple[RuleCheck, ...] = ()
    """Each rule, in a fixed order; () where no file could be made at all."""
    problem: Problem | None = None
    """Why the file was not delivered; None where it was."""
    facts: dict[str, str | int | float | bool] = {}
    """How the file was made: crop or background, lengthening, rate, bit rate, bytes."""

    @property
    def broken(self) -> list[str]:
        """The rules that are not kept, by name."""
        return [check.rule for check in self.checks if not check.passed]


def verdict_of(
    profile: str, checks: Iterable[RuleCheck], facts: dict[str, str | int | float | bool] | None = None
) -> ProfileVerdict:
    """The verdict that follows from these checks."""
    all_checks = tuple(checks)
    broken = [check for check in all_checks if not check.passed]
    problem = None
    if broken:
        message = f"the file for {profile} breaks {len(broken)} of its rules: {'; '.join(map(str, broken))}"
        remedy = "Change what the rule names (aspect, seconds, fps, the still), or deliver with a profile of your own."
        problem = Problem(field="deliver", message=message, remedy=remedy)
    return ProfileVerdict(profile=profile, passed=not broken, checks=all_checks, problem=problem, facts=facts or {})


def refused(profile: str, problem: Problem) -> ProfileVerdict:
    """The verdict where no file could be made."""
    return ProfileVerdict(profile=profile, passed=False, problem=problem)
