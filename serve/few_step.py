"""The file of `--few-step`: which adapter makes tier `fast` of which family."""

from __future__ import annotations

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

from cluster.catalog.defaults import FewStep, check_few_step
from pipeline.problems import BadInputError


def read_few_step(path: Path) -> dict[str, FewStep]:
    """The tables of a TOML or JSON file by family, as `FarmArgs.few_step` has them.

    An adapter's path is taken from beside the file, and its SHA-256 is worked out; one that the file gives must agree.
    Raises `BadInputError` on the field `few_step`.
    """
    try:
        text = path.read_text(encoding="utf-8")
        tables = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except OSError as error:
        _refuse(f"{path} cannot be read: {error.strerror}")
    except ValueError as error:
        _refuse(f"{path} is neither TOML nor JSON: {error}")
    if not isinstance(tables, dict):
        _refuse(f"{path} holds no table per model")
    return {name: _read_table(path, name, table) for name, table in tables.items()}


def _read_table(path: Path, name: str, table: Any) -> FewStep:
    if not isinstance(table, dict) or not isinstance(table.get("adapter"), str):
        _refuse(f"{path}: {name} names no adapter")
    adapter = (path.parent / Path(table["adapter"]).expanduser()).absolute()
    try:
        with adapter.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        _refuse(f"{path}: the adapter of {name}, {adapter}, cannot be read: {error.strerror}")
    if table.get("sha256", sha256) != sha256:
        _refuse(f"{path}: {adapter} has the SHA-256 {sha256}, not {table['sha256']}")
    try:
        few = FewStep.model_validate({**table, "adapter": str(adapter), "sha256": sha256})
        check_few_step(name, few)
    except ValidationError as error:
        first = error.errors()[0]
        _refuse(f"{path}: {'.'.join([name, *map(str, first['loc'])])}: {first['msg']}")
    except ValueError as error:
        _refuse(f"{path}: {error}")
    return few


def _refuse(message: str) -> NoReturn:
    remedy = "Give a table per model: adapter (path of a LoRA), and sampler, steps, guidance, scale where they differ."
    raise BadInputError("few_step", message, remedy)
