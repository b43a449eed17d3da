"""Fields of a request for a video, by the names that OpenAI and vLLM-Omni give them."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.catalog.defaults import Defaults
from cluster.catalog.resolve import resolve
from pipeline.families import FAMILIES
from pipeline.problems import BadInputError
from serve.gateway.openai.fields import FIELDS, read_fields
from serve.gateway.openai.schema import VIDEO_BODY

WAN = "wan2.2-5b"


def asked(**values: Any) -> Any:
    return read_fields({"prompt": "the bag turns slowly"} | values, WAN)


def clip(**values: Any) -> Any:
    found = asked(**values)
    return resolve(found.row, (1280, 720), Defaults(model=found.family.name), "ab" * 32).spec


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def refused(**values: Any) -> BadInputError:
    with pytest.raises(BadInputError) as caught:
        asked(**values)
    return caught.value


def test_what_vllm_omni_calls_things_is_what_they_are_called_here() -> None:
    found = clip(
        negative_prompt="blurry", width="832", height="480", num_frames="33", fps="16", num_inference_steps="40",
        guidance_scale="3.5", seed="42",
    )  # fmt: skip
    assert (found.negative_prompt, found.frames, found.fps) == ("blurry", 33, 16)
    assert (found.steps, found.guidance, found.seed) == (40, 3.5, 42)


@pytest.mark.parametrize(
    ("name", "size", "there"),
    [
        (WAN, "1280x704", (1280, 704)),
        (WAN, "704x1280", (704, 1280)),
        ("i2vgen-xl", "1280x704", (1280, 704)),
        ("svd-xt", "1024x576", (1024, 576)),
        ("camera", "512x512", (512, 512)),
    ],
)
def test_a_size_that_a_model_renders_is_that_size(name, size, there) -> None:
    found = read_fields({"prompt": "x", "model": name, "size": size}, WAN)
    spec = resolve(found.row, (640, 640), Defaults(model=name), "ab" * 32).spec
    assert (spec.width, spec.height) == there
    assert not [note for note in found.notes if note.code == "size_adjusted"]


@given(width=st.integers(64, 4096), height=st.integers(64, 4096), name=st.sampled_from(sorted(FAMILIES)))
def test_what_is_said_of_a_size_is_what_is_rendered(width: int, height: int, name: str) -> None:
    found = read_fields({"prompt": "x", "model": name, "width": width, "height": height}, WAN)
    spec = resolve(found.row, (640, 480), Defaults(model=name), "ab" * 32).spec
    said = [note.message for note in found.notes if note.code == "size_adjusted"]
    if (spec.width, spec.height) == (width, height):
        assert not said
    else:
        assert said[0].startswith(f"size {width}x{height} -> {spec.width}x{spec.height}:")
    # No class of the model is nearer in pixels, by the model's own sizes at that aspect.
    others = [
        resolve(
            found.row.model_copy(update={"resolution_class": one}), (640, 480), Defaults(model=name), "ab" * 32
        ).spec
        for one in FAMILIES[name].classes
    ]
    pixels = width * height
    best = min(abs(math.log(one.width * one.height / pixels)) for one in others)
    assert abs(math.log(spec.width * spec.height / pixels)) == pytest.approx(best)


def test_strict_refuses_whatever_would_be_adjusted() -> None:
    assert [note.code for note in asked(guidance_scale=0.5).notes] == ["guidance_adjusted"]
    assert refused(guidance_scale=0.5, strict=True).problem.field == "guidance_scale"


def test_strict_refuses_a_size_that_is_not_rendered_and_names_the_nearest() -> None:
    error = refused(size="1279x701", strict=True)
    assert error.problem.field == "size"
    assert error.problem.remedy == "Ask for 1280x704."


def test_weights_name_their_model() -> None:
    assert asked(model="Wan-AI/Wan2.2-TI2V-5B-Diffusers").family.name == WAN
    assert read_fields({"prompt": "x"}, "camera").family.name == "camera"
    assert read_fields({"prompt": "x", "model": "auto"}, "camera").family.name == "camera"


def test_seconds_are_frames_and_frames_go_first() -> None:
    assert clip(seconds="4", fps=24).frames == 97
    found = asked(seconds="4", num_frames=81)
    assert (found.row.frames, found.row.seconds) == (81, None)
    assert "seconds unused: num_frames was given" in [note.message for note in found.notes]


def test_blocks_are_fields_and_the_requests_own_go_first() -> None:
    blocks = {"extra_params": {"tier": "draft", "num_inference_steps": 7}, "video_params": {"num_frames": 33}}
    row = asked(**blocks, num_inference_steps=9).row
    assert (row.tier, row.steps, row.frames) == ("draft", 9, 33)


def test_what_other_servers_read_is_taken_and_noted() -> None:
    found = asked(guidance_scale_2="1.0", boundary_ratio="0.875", flow_shift="12.0", generate_sound="false", n=1)
    assert [note.message.split()[0] for note in found.notes] == ["guidance_scale_2", "boundary_ratio", "flow_shift"]
    assert refused(flow_shift=5, strict="true").problem.field == "flow_shift"


def test_no_guidance_is_no_guidance() -> None:
    found = asked(guidance_scale=0)
    assert found.row.guidance == 1
    assert found.notes[0].message == "guidance_scale 0 -> 1: no guidance"


@pytest.mark.parametrize(
    ("values", "param", "says"),
    [
        ({"sized": "1x1"}, "sized", "Did you mean size?"),
        ({"num_inference_step": 5}, "num_inference_step", "Did you mean num_inference_steps?"),
        ({"zzz": 5}, "zzz", "GET /docs"),
        ({"size": "big"}, "size", "1280x720"),
        ({"size": 5}, "size", "1280x720"),
        ({"size": "0x4"}, "size", "1280x720"),
        ({"size": "99999x4"}, "size", "larger than any clip"),
        ({"width": 512}, "height", "Give height"),
        ({"width": 512, "height": "x"}, "height", "whole number"),
        ({"size": "512x512", "resolution_class": "512p"}, "resolution_class", "size says it too"),
        ({"size": "512x512", "aspect": "1:1"}, "aspect", "size says it too"),
        ({"aspect": "1:1", "aspect_ratio": "1:1"}, "aspect_ratio", "aspect says it too"),
        ({"model": "sora-2"}, "model", "is not a model of this farm"),
        ({"model": ["x"]}, "model", "is not a model of this farm"),
        ({"num_frames": 0}, "num_frames", "from 1"),
        ({"num_frames": 2**70}, "num_frames", "from 1"),
        ({"seconds": "soon"}, "seconds", "is not a number"),
        ({"seconds": math.nan}, "seconds", "is not a number"),
        ({"seconds": math.inf}, "seconds", "is not a number"),
        ({"fps": 1000}, "fps", "from 1 to 60"),
        ({"seed": -1}, "seed", "from 0"),
        ({"num_inference_steps": True}, "num_inference_steps", "is not a whole number"),
        ({"guidance_scale": 1e9}, "guidance_scale", "from 1 to 30"),
        ({"guidance_scale": -1}, "guidance_scale", "from 1 to 30"),
        ({"tier": "best"}, "tier", "Choose one of"),
        ({"priority": {}}, "priority", "whole number"),
        ({"prompt": []}, "prompt", "is not text"),
        ({"n": 2}, "n", "one video"),
        ({"extra_params": [1]}, "extra_params", "is no object"),
        ({"extra_params": {"tire": 1}}, "tire", "Did you mean tier?"),
        ({"strict": "perhaps"}, "strict", "neither yes nor no"),
        ({"timeout_s": 1e9}, "timeout_s", "from 0 to 3600"),
        ({"metadata": {"a": nested(40)}}, "metadata", "deep"),
        ({"metadata": {"a": "x" * 20_000}}, "metadata", "16,384"),
        ({"user": "x" * 20_000}, "user", "16,384"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_by_its_own_name(values, param, says) -> None:
    problem = refused(**values).problem
    assert problem.field == param
    assert says in str(problem)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(values=st.dictionaries(st.sampled_from(sorted(FIELDS)) | st.text(max_size=8), JSON, max_size=6))
def test_whatever_is_sent_is_read_or_refused(values: dict[str, Any]) -> None:
    # Nothing else is raised, whatever it is.
    with contextlib.suppress(BadInputError):
        read_fields(values, WAN)


def test_every_field_is_described() -> None:
    for content in VIDEO_BODY["requestBody"]["content"].values():
        described = content["schema"]["properties"]
        assert set(described) == FIELDS
        assert all(one["description"] for one in described.values())


@pytest.mark.parametrize(
    ("said", "read"), [({}, None), ({"interactive": "false"}, False), ({"interactive": True}, True)]
)
def test_whether_somebody_waits_is_read_as_it_is_said(said, read) -> None:
    assert asked(**said).row.interactive is read
    assert clip(**said) == clip()
