"""Licences that somebody has to accept before a family is used. No torch here."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pipeline.families.family import Family
from pipeline.problems import Problem


def licence_problem(family: Family, accepted: Collection[str]) -> Problem | None:
    """What stands between `family` and its use; None where its licence is permissive or `accepted` names it."""
    if not family.licence_gate or family.name in accepted:
        return None
    return Problem(
        field="model",
        message=f"the licence of {family.name} ({family.licence}) has not been accepted",
        remedy=(
            f"Read {family.licence_url or 'it'}, then accept it with `--accept-license {family.name}`, "
            f"CLIPMILL_ACCEPT_LICENSES={family.name}, or accept_licenses in the farm's configuration."
        ),
    )


def acceptances_file(home: Path) -> Path:
    """Where acceptances given on the command line are kept."""
    return home / "licences.json"


def remember_acceptance(family: Family, home: Path) -> None:
    """Write down that the licence of `family`, as it is named here, was accepted. Raises `OSError`."""
    known = _read(home)
    known[family.name] = {"licence": family.licence, "url": family.licence_url, "accepted_at": int(time.time())}
    path = acceptances_file(home)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
    draft.replace(path)


def remembered_acceptances(families: Collection[Family], home: Path) -> frozenset[str]:
    """Names of those of `families` whose licence was accepted, and is still the same one."""
    known = _read(home)
    return frozenset(
        family.name
        for family in families
        if isinstance(entry := known.get(family.name), dict)
        and (entry.get("licence"), entry.get("url")) == (family.licence, family.licence_url)
    )


def _read(home: Path) -> dict[str, Any]:
    try:
        found = json.loads(acceptances_file(home).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # Not there, or damaged: nothing was accepted, and asking again harms nobody.
        return {}
    return found if isinstance(found, dict) else {}
