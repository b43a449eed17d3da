"""Tier `fast`: from a person's file to the farm's arguments."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cluster.catalog.defaults import FewStep
from pipeline.clips.clip import Adapter, Sampler
from pipeline.problems import BadInputError
from serve.cli.options import few_step_of
from serve.cli.render import farm_args
from serve.embedded import FarmLock
from serve.few_step import read_few_step
from serve.settings import FarmArgs, Settings

WEIGHTS = b"not read, only hashed"
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "loras").mkdir()
    (tmp_path / "loras" / "lcm-i2v.safetensors").write_bytes(WEIGHTS)
    return tmp_path


def write(folder: Path, table: dict[str, Any] | str, name: str = "few.json") -> Path:
    path = folder / name
    path.write_text(table if isinstance(table, str) else json.dumps(table))
    return path


def test_toml_and_json_say_the_same(folder: Path) -> None:
    toml = '[i2vgen-xl]\nadapter = "loras/lcm-i2v.safetensors"\nsteps = 6\nguidance = 1.5\nsampler = "euler"\n'
    table = {"adapter": "loras/lcm-i2v.safetensors", "steps": 6, "guidance": 1.5, "sampler": "euler", "sha256": SHA256}
    read = read_few_step(write(folder, toml, "few.toml"))
    assert read == read_few_step(write(folder, {"i2vgen-xl": table}))
    few = read["i2vgen-xl"]
    assert few.adapter == str(folder / "loras" / "lcm-i2v.safetensors")
    assert (few.steps, few.guidance, few.sampler) == (6, 1.5, Sampler.EULER)
    assert few.lora == Adapter(name="lcm-i2v", sha256=SHA256)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "neither TOML nor JSON"),
        ("[1]", "no table per model"),
        ({"i2vgen-xl": {}}, "names no adapter"),
        ({"i2vgen-xl": {"adapter": "loras/gone.safetensors"}}, "gone.safetensors, cannot be read"),
        ({"i2vgen-xl": {"adapter": "few.json"}}, "not a .safetensors file"),
        ({"i2vgen-xl": {"adapter": "loras/lcm-i2v.safetensors", "sha256": "0" * 64}}, f"has the SHA-256 {SHA256}"),
        ({"i2vgen-xl": {"adapter": "loras/lcm-i2v.safetensors", "steps": 0}}, "i2vgen-xl.steps"),
        ({"i2vgen-xl": {"adapter": "loras/lcm-i2v.safetensors", "stepps": 4}}, "i2vgen-xl.stepps"),
        ({"camera": {"adapter": "loras/lcm-i2v.safetensors"}}, "no model that denoises"),
        ({"sora": {"adapter": "loras/lcm-i2v.safetensors"}}, "choose from i2vgen-xl"),
    ],
)
def test_a_bad_file_is_refused_with_the_place(folder: Path, content: dict[str, Any] | str, message: str) -> None:
    with pytest.raises(BadInputError) as refused:
        read_few_step(write(folder, content))
    assert message in refused.value.problem.message
    assert refused.value.problem.field == "few_step"


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="cannot be read"):
        read_few_step(tmp_path / "gone.toml")


def test_renderers_find_adapters_by_their_content(folder: Path) -> None:
    file = write(folder, {"i2vgen-xl": {"adapter": "loras/lcm-i2v.safetensors"}})
    args = farm_args(Settings(home=folder), "i2vgen-xl", "c8", None, read_few_step(file))
    # Through Ray the arguments go as JSON.
    arrived = FarmArgs.model_validate(json.loads(json.dumps(args.model_dump(mode="json"))))
    assert arrived.adapters == {SHA256: str(folder / "loras" / "lcm-i2v.safetensors")}
    assert arrived.few_step == args.few_step


def test_a_farm_s_arguments_name_the_content() -> None:
    classes = {"c8": {}}
    good = {"adapter": "/adapters/lcm.safetensors", "sha256": SHA256}
    assert FarmArgs.model_validate({"card_classes": classes, "few_step": {"i2vgen-xl": good}}).adapters
    for name, table in (("i2vgen-xl", {"adapter": "/adapters/lcm.safetensors"}), ("camera", good)):
        with pytest.raises(ValidationError, match="few_step"):
            FarmArgs.model_validate({"card_classes": classes, "few_step": {name: table}})


def test_a_running_farm_says_what_fast_means(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    assert few_step_of(settings, None) == {}
    few = FewStep(adapter="/adapters/lcm.safetensors", sha256=SHA256)
    lock = FarmLock(tmp_path)
    assert lock.try_acquire()
    try:
        lock.note(url="", few_step={"i2vgen-xl": few.model_dump(mode="json")})
        assert few_step_of(settings, None) == {"i2vgen-xl": few}
    finally:
        lock.release()
