"""Resume = uninterrupted, bit for bit: every step × every sampler × every small network, in a fresh process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.clips.clip import ClipSpec, ResolutionClass
from pipeline.clips.encode import frames_sha256
from pipeline.devices.emulated import HostDevice
from pipeline.families import FAMILIES, Family
from pipeline.families.layouts import RESIDENT
from pipeline.models.loading import load_model
from pipeline.models.model import Model

STEPS = 4
SMALL = [family for family in FAMILIES.values() if family.repo is None and family.resumable]


def model_of(family: Family, home: Path) -> Model:
    return load_model(family, HostDevice(), weights_dir=None, home=home, offline=True, on_load=lambda _text: None)


def specs_of(family: Family) -> list[ClipSpec]:
    rule = family.frame_rule
    frames = next(n for n in range(max(3, rule.minimum), rule.maximum + 1) if rule.allows(n))
    side = max(64, family.stride)
    return [
        ClipSpec(
            family=family.name,
            revision=family.revision,
            prompt="a lamp turns slowly",
            negative_prompt="blurred",
            resolution_class=ResolutionClass.P256,
            width=2 * side,
            height=side,
            frames=frames,
            fps=8,
            steps=STEPS,
            guidance=family.guidance,
            seed=7,
            sampler=sampler,
        )
        for sampler in family.samplers
    ]


def still() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))


def interrupted(family: Family, home: Path, folder: Path) -> dict[str, str]:
    """Render whole, leaving a checkpoint of every step; the hash of each sampler's frames."""
    model, hashes = model_of(family, home), {}
    for spec in specs_of(family):

        def keep(done: int, _total: int, snapshot: Any, spec: ClipSpec = spec) -> None:
            (folder / f"{spec.sampler}-{done}").write_bytes(snapshot())

        hashes[str(spec.sampler)] = frames_sha256(model.render(still(), spec, RESIDENT, keep))
    return hashes


def resumed(family: Family, home: Path, folder: Path) -> dict[str, tuple[str, int]]:
    """Go on from every checkpoint in `folder`: frame hash and steps done by checkpoint."""
    model, found = model_of(family, home), {}
    for spec in specs_of(family):
        for path in sorted(folder.glob(f"{spec.sampler}-*")):
            seen: list[int] = []

            def count(done: int, _total: int, _snapshot: Any, seen: list[int] = seen) -> None:
                seen.append(done)

            frames = model.render(still(), spec, RESIDENT, count, path.read_bytes())
            found[path.name] = frames_sha256(frames), len(seen)
    return found


@pytest.mark.parametrize("family", SMALL, ids=lambda family: family.name)
def test_a_fresh_process_goes_on_to_the_same_frames(family: Family, tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    whole = interrupted(family, tmp_path, checkpoints)
    assert len(set(whole.values())) == len(whole), "each sampler gives its own clip"
    # Alone in its process, the child must compute in as many threads: bits are claimed for equal thread counts.
    child = subprocess.run(
        [sys.executable, __file__, family.name, str(tmp_path), str(checkpoints)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ,
        cwd=Path(__file__).parents[4],
    )
    assert child.returncode == 0, child.stderr
    found = json.loads(child.stdout.splitlines()[-1])
    assert len(found) == len(family.samplers) * STEPS
    for name, (frames, steps) in found.items():
        sampler, done = name.rsplit("-", 1)
        assert frames == whole[sampler], name
        assert steps == STEPS - int(done), name


if __name__ == "__main__":
    print(json.dumps(resumed(FAMILIES[sys.argv[1]], Path(sys.argv[2]), Path(sys.argv[3]))))
