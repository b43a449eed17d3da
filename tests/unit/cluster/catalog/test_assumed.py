"""What a row's clip assumes, drops, rounds or enlarges is a note of its own, once."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.catalog.defaults import Defaults
from cluster.catalog.manifest import Row
from cluster.catalog.resolve import Resolved, RowProblems, resolve
from pipeline.clips.clip import ResolutionClass, Sampler
from pipeline.families import FAMILIES, family_named


def made(
    model: str = "camera", size: tuple[int, int] = (900, 900), defaults: dict[str, Any] | None = None, **fields: Any
) -> Resolved:
    row = Row(**{"number": 1, "id": "a", "image": "a.png", "prompt": "pan left", **fields})
    return resolve(row, size, Defaults(model=model, **defaults or {}), "ab" * 32)


def noted(resolved: Resolved) -> dict[str, str]:
    """Messages by code; no code twice."""
    found = {note.code: note.message for note in resolved.noted}
    assert len(found) == len(resolved.noted)
    return found


@pytest.mark.parametrize("model", sorted(FAMILIES))
def test_a_plain_row_of_a_good_still_has_no_notes(model: str) -> None:
    prompt = None if not family_named(model).uses_prompt else "pan left"
    assert made(model, prompt=prompt).noted == ()


@pytest.mark.parametrize("prompt", ["make it nice", "Das Produkt langsam drehen", "商品をゆっくり"])
def test_a_prompt_without_a_camera_move_is_said_by_the_camera_only(prompt: str) -> None:
    assert "a slow zoom in is made" in noted(made(prompt=prompt))["no_camera_move"]
    assert "no_camera_move" not in noted(made("i2vgen-xl", prompt=prompt))


def test_moves_that_undo_each_other_are_said() -> None:
    assert (
        "pan left and pan right cancel each other: a slow zoom in"
        in noted(made(prompt="pan left, pan right"))["moves_cancelled"]
    )
    one = noted(made(prompt="pan left, pan right, tilt up"))
    assert list(one) == ["moves_cancelled"]
    assert "slow zoom" not in one["moves_cancelled"]
    assert made(prompt="static camera").noted == ()


def test_a_still_that_is_enlarged_is_said_with_the_class_that_suits_it() -> None:
    found = noted(made(size=(90, 60)))
    assert list(found) == ["enlarged"]
    # 512 pixels squared at 3:2 are 624 × 416 in multiples of 16.
    assert found["enlarged"].startswith("the still of 90×60 pixels is enlarged 6.9 times and will look soft: a larger")
    assert "resolution_class 256p shows all of it" in noted(made(size=(300, 300)))["enlarged"]
    # A long thin still fills the frame only where it covers it.
    assert made(size=(1000, 300), aspect="1:1").noted == ()
    assert "1.7 times" in noted(made(size=(1000, 300), aspect="1:1", fit="cover"))["enlarged"]


@given(
    width=st.integers(1, 5000),
    height=st.integers(1, 5000),
    side=st.sampled_from(list(ResolutionClass)),
    model=st.sampled_from(["camera", "i2vgen-xl", "wan2.2-5b", "svd-xt"]),
)
def test_enlargement_is_what_the_fit_makes(width: int, height: int, side: ResolutionClass, model: str) -> None:
    resolved = made(model, (width, height), resolution_class=side)
    scale = min(resolved.spec.width / width, resolved.spec.height / height)
    assert ("enlarged" in {note.code for note in resolved.noted}) == (scale > 1.5)


def test_a_very_wide_still_is_not_followed_in_silence() -> None:
    assert "20000×500 pixels is made 2:1" in noted(made(size=(20_000, 500)))["aspect_limited"]
    assert "1:2" in noted(made(size=(500, 20_000)))["aspect_limited"]
    assert "aspect_limited" not in noted(made(size=(2000, 1000)))
    assert "aspect_limited" not in noted(made(size=(2000, 500), aspect="3:1"))


def test_an_aspect_that_the_stride_rounds_is_said() -> None:
    assert noted(made("svd-xt", resolution_class="512p", aspect="3:1", prompt=None, size=(3000, 1000))) == {
        "size_rounded": "aspect 3:1 is made 896×256, 3.5:1: sides are multiples of 64 pixels"
    }
    assert made(aspect="1:1").noted == ()


def test_candidates_and_seeds_where_nothing_is_left_to_chance() -> None:
    assert set(noted(made(candidates=4))) == {"candidates_equal"}
    assert noted(made(seed=3)) == {"unused": "seed unused: camera leaves nothing to chance"}
    assert made("i2vgen-xl", candidates=4, seed=3).noted == ()


def test_options_of_the_batch_without_effect_are_said_too() -> None:
    assert noted(made(defaults={"sampler": Sampler.DDIM})) == {"unused": "camera does not denoise: sampler unused"}


def test_a_window_that_is_not_needed_is_said() -> None:
    assert "window 16 unused" in noted(made("i2vgen-xl", frames=16, window=16))["unused"]
    assert noted(made("i2vgen-xl", window_overlap=4)) == {"unused": "window_overlap unused: the clip has no windows"}


# -- seconds -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "fields", "frames", "said"),
    [
        ("camera", {"seconds": 3.0}, 72, None),
        ("camera", {"seconds": 0.5, "fps": 30}, 15, None),
        ("camera", {"seconds": 2.51}, 60, "seconds 2.51 -> 2.5: 60 whole frames at 24 fps"),
        ("i2vgen-xl", {"seconds": 2.0}, 16, None),
        ("i2vgen-xl", {"seconds": 30.0}, 64, "seconds 30 -> 8: i2vgen-xl takes 2 to 64 frames, at 8 fps 0.25 to 8 s"),
        ("i2vgen-xl", {"seconds": 30.0, "window": 16}, 240, None),
        ("wan2.2-5b", {"seconds": 5.0}, 121, "of the form 4n+1, at 24 fps 0.208 to 5.04 s"),
        ("svd-xt", {"seconds": 10.0}, 32, "seconds 10 -> 4.57: svd-xt takes 2 to 32 frames, at 7 fps"),
        ("camera", {"seconds": 0.01}, 2, "seconds 0.01 -> 0.0833"),
    ],
)
def test_seconds_are_frames_at_the_familys_pace(
    model: str, fields: dict[str, Any], frames: int, said: str | None
) -> None:
    prompt = None if model == "svd-xt" else "pan left"
    resolved = made(model, prompt=prompt, **fields)
    assert resolved.spec.frames == frames
    found = noted(resolved)
    if said is None:
        assert found == {}
    else:
        code = "seconds_rounded" if "whole frames" in said else "seconds_adjusted"
        assert list(found) == [code]
        assert said in found[code]
        assert resolved.adjusted == ((found[code],) if code == "seconds_adjusted" else ())


def test_seconds_that_cannot_be_are_refused_where_asked() -> None:
    with pytest.raises(RowProblems) as caught:
        made("i2vgen-xl", seconds=30.0, defaults={"strict": True})
    (problem,) = caught.value.problems
    assert problem.field == "seconds"
    assert "The nearest it can do is 8 s" in problem.remedy


@pytest.mark.parametrize("seconds", [0.0, -1.0, 601.0, 1e308, float("nan")])
def test_seconds_out_of_range_are_refused_with_the_range(seconds: float) -> None:
    with pytest.raises(RowProblems) as caught:
        made(seconds=seconds)
    assert "above 0, at most 600" in str(caught.value)


@given(
    seconds=st.floats(0.01, 600), fps=st.integers(1, 60), model=st.sampled_from(["camera", "i2vgen-xl", "wan2.2-5b"])
)
def test_seconds_become_what_the_family_allows_and_never_silently(seconds: float, fps: int, model: str) -> None:
    resolved = made(model, seconds=seconds, fps=fps)
    assert family_named(model).frame_rule.allows(resolved.spec.frames)
    differs = abs(resolved.spec.seconds - seconds) > 1e-6 * seconds
    assert differs == any(code in ("seconds_adjusted", "seconds_rounded") for code in noted(resolved))
