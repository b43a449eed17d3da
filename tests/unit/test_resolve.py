"""From a row and its still to the final specification."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.manifest import Row
from cluster.resolve import MAX_PROMPT_CHARACTERS, Defaults, RowProblems, nearest_frames, resolve
from pipeline.clip import ClipSpec, Fit, ResolutionClass, Tier, content_key
from pipeline.families import FAMILIES, FrameRule

STILL = "ab" * 32
XL = Defaults(model="i2vgen-xl")
CAMERA = Defaults(model="camera")


def row(**fields: Any) -> Row:
    return Row(**{"number": 1, "id": "a", "image": "a.png", "prompt": "pan left", **fields})


def spec(defaults: Defaults = XL, size: tuple[int, int] = (600, 600), still: str = STILL, **fields: Any) -> ClipSpec:
    return resolve(row(**fields), size, defaults, still)


def faults(defaults: Defaults = XL, **fields: Any) -> dict[str, str]:
    with pytest.raises(RowProblems) as caught:
        spec(defaults, **fields)
    return {problem.field: str(problem) for problem in caught.value.problems}


def test_a_silent_row_takes_the_family_s_standard() -> None:
    made = spec(seed=7)
    assert made == ClipSpec(
        family="i2vgen-xl",
        revision=FAMILIES["i2vgen-xl"].revision,
        prompt="pan left",
        resolution_class=ResolutionClass.P512,
        width=512,
        height=512,
        frames=16,
        fps=8,
        steps=50,
        guidance=9.0,
        seed=7,
    )


def test_what_a_row_says_goes_before_the_defaults() -> None:
    defaults = Defaults(model="camera", resolution_class=ResolutionClass.P256, tier=Tier.DRAFT, fit=Fit.COVER, seed=1)
    assert (spec(defaults).frames, spec(defaults).size, spec(defaults).fit) == (24, (256, 256), Fit.COVER)
    made = spec(
        defaults,
        model="i2vgen-xl",
        resolution_class=ResolutionClass.P768,
        aspect="1:1",
        tier=Tier.HIGH,
        fps=12,
        guidance=11.0,
        fit=Fit.CONTAIN,
        prompt="  tilt up ",
        negative_prompt=" blur ",
        seed=3,
    )
    assert (made.size, made.frames, made.steps, made.fps, made.guidance) == ((768, 768), 24, 80, 12, 11.0)
    assert (made.fit, made.prompt, made.negative_prompt, made.seed) == (Fit.CONTAIN, "tilt up", "blur", 3)
    assert spec(frames=9, steps=7).frames == 9
    assert spec(frames=9, steps=7).steps == 7


@given(
    width=st.integers(1, 10_000),
    height=st.integers(1, 10_000),
    resolution_class=st.sampled_from(ResolutionClass),
    model=st.sampled_from(sorted(FAMILIES)),
)
def test_sizes_follow_the_still_within_the_class(
    width: int, height: int, resolution_class: ResolutionClass, model: str
) -> None:
    made = spec(Defaults(model=model, resolution_class=resolution_class), (width, height))
    stride = FAMILIES[model].stride
    assert made.width % stride == made.height % stride == 0
    assert made.width * made.height <= int(resolution_class.value[:-1]) ** 2
    wanted = min(max(math.log2(width / height), -1.0), 1.0)
    # Half a stride of either side, at the coarsest: 64 pixels on 256².
    assert abs(math.log2(made.width / made.height) - wanted) <= 64 / int(resolution_class.value[:-1]) * 2.2


def test_a_row_s_aspect_goes_before_the_still_s() -> None:
    assert spec(CAMERA, (600, 600), aspect="1:3").width * 2.5 < spec(CAMERA, (600, 600), aspect="1:3").height
    assert spec(CAMERA, (100, 1000)).height == pytest.approx(2 * spec(CAMERA, (100, 1000)).width, rel=0.1)


def test_a_family_that_does_not_denoise_shares_clips() -> None:
    rich = spec(CAMERA, steps=50, guidance=9.0, seed=5, negative_prompt="blur", candidates=2, candidate=1, id="b")
    assert rich == spec(CAMERA)
    assert (rich.steps, rich.guidance, rich.seed, rich.frames, rich.fps) == (1, 1.0, 0, 48, 24)


def test_seeds() -> None:
    assert spec(seed=5, candidate=2, candidates=3).seed == 7
    assert spec(seed=0).seed == 0
    assert spec(Defaults(model="i2vgen-xl", seed=40), candidate=1, candidates=2).seed == 41
    assert spec(Defaults(model="i2vgen-xl", seed=40), seed=5).seed == 5
    assert spec(seed=2**63 - 1, candidate=1, candidates=2).seed == 0


def test_a_missing_seed_comes_from_the_content() -> None:
    # As sha256sum prints it for the JSON text: a change would render every unseeded clip of every user again.
    assert spec().seed == 986337310
    base = spec()
    assert spec(id="other", image="elsewhere/b.png", number=9) == base
    assert content_key(STILL, spec(id="other")) == content_key(STILL, base)
    others = {spec(prompt="pan right").seed, spec(still="cd" * 32).seed, spec(candidate=1, candidates=2).seed}
    assert len(others | {base.seed}) == 4
    assert spec(candidate=0, candidates=4).seed == base.seed


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({"frames": 65}, "frames", "The nearest it can do is 64."),
        ({"frames": 1}, "frames", "The nearest it can do is 2."),
        ({"frames": 601, "model": "camera"}, "frames", "2 to 600 frames"),
        ({"steps": 1001}, "steps", "Choose 1 to 1000."),
        ({"steps": 0}, "steps", "Choose 1 to 1000."),
        ({"guidance": 0.5}, "guidance", "Choose 1 to 30."),
        ({"guidance": 30.5}, "guidance", "Choose 1 to 30."),
        ({"guidance": float("nan")}, "guidance", "Choose 1 to 30."),
        ({"fps": 0}, "fps", "Choose 1 to 60."),
        ({"fps": 61}, "fps", "Choose 1 to 60."),
        ({"prompt": "  "}, "prompt", "empty"),
        ({"prompt": None}, "prompt", "empty"),
        ({"prompt": "x" * (MAX_PROMPT_CHARACTERS + 1)}, "prompt", "2001 characters"),
        ({"negative_prompt": "x" * (MAX_PROMPT_CHARACTERS + 1)}, "negative_prompt", "2001 characters"),
        ({"aspect": "4:1"}, "aspect", "'4:1' is not an aspect ratio"),
        ({"model": "sora"}, "model", "'sora' is not a model"),
    ],
)
def test_one_problem(fields: dict[str, Any], field: str, message: str) -> None:
    told = faults(**fields)
    assert list(told) == [field]
    assert message in told[field]


def test_every_problem_is_told_at_once() -> None:
    assert set(faults(frames=1000, steps=0, guidance=99.0, fps=99, aspect="x", prompt="")) == {
        "frames",
        "steps",
        "guidance",
        "fps",
        "aspect",
        "prompt",
    }
    with pytest.raises(RowProblems, match="sora"):
        spec(Defaults(model="sora"))


def test_a_class_the_family_does_not_render(monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    import cluster.resolve

    small = dataclasses.replace(FAMILIES["i2vgen-xl"], classes=(ResolutionClass.P256, ResolutionClass.P512))
    monkeypatch.setattr(cluster.resolve, "family_named", lambda _: small)
    assert "Choose one of: 256p, 512p." in faults(resolution_class=ResolutionClass.P768)["resolution_class"]
    assert spec().width == 512


@given(
    minimum=st.integers(1, 20),
    span=st.integers(20, 60),
    multiple=st.integers(1, 8),
    offset=st.integers(0, 7),
    frames=st.integers(1, 120),
)
def test_the_nearest_frames_by_exhaustion(minimum: int, span: int, multiple: int, offset: int, frames: int) -> None:
    rule = FrameRule(minimum=minimum, maximum=minimum + span, multiple=multiple, offset=offset)
    allowed = [n for n in range(minimum, minimum + span + 1) if n % multiple == offset % multiple]
    assert nearest_frames(rule, frames) == min(allowed, key=lambda n: (abs(n - frames), n))
