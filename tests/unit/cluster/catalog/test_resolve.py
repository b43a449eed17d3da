"""From a row and its still to the final specification."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cluster.catalog.resolve
from cluster.catalog.adjust import nearest_frames
from cluster.catalog.defaults import Defaults, FewStep
from cluster.catalog.manifest import Row
from cluster.catalog.resolve import MAX_PROMPT_CHARACTERS, Resolved, RowProblems, resolve
from pipeline.clips.clip import (
    NO_PROMPT,
    Adapter,
    BaseClip,
    ClipSpec,
    Fit,
    ResolutionClass,
    Sampler,
    Tier,
    Upscale,
    content_key,
)
from pipeline.families import FAMILIES, Family

STILL = "ab" * 32
XL = Defaults(model="i2vgen-xl")
CAMERA = Defaults(model="camera")
STRICT = Defaults(model="i2vgen-xl", strict=True)
VIDEO = FAMILIES["wan2.2-5b"]


def row(**fields: Any) -> Row:
    return Row(**{"number": 1, "id": "a", "image": "a.png", "prompt": "pan left", **fields})


def made(defaults: Defaults = XL, size: tuple[int, int] = (600, 600), still: str = STILL, **fields: Any) -> Resolved:
    return resolve(row(**fields), size, defaults, still)


def spec(defaults: Defaults = XL, size: tuple[int, int] = (600, 600), still: str = STILL, **fields: Any) -> ClipSpec:
    return made(defaults, size, still, **fields).spec


@pytest.fixture
def rendering_with(monkeypatch: pytest.MonkeyPatch) -> Callable[[Family], None]:
    """Makes every model name mean one family."""
    return lambda family: monkeypatch.setattr(cluster.catalog.resolve, "family_named", lambda _name: family)


def faults(defaults: Defaults = XL, **fields: Any) -> dict[str, str]:
    with pytest.raises(RowProblems) as caught:
        spec(defaults, **fields)
    return {problem.field: str(problem) for problem in caught.value.problems}


def test_a_silent_row_takes_the_family_s_standard() -> None:
    resolved = made(seed=7)
    assert (resolved.adjusted, resolved.notes) == ((), ())
    assert resolved.spec == ClipSpec(
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
        sampler=Sampler.DDIM,
    )


def test_what_a_row_says_goes_before_the_defaults() -> None:
    defaults = Defaults(model="camera", resolution_class=ResolutionClass.P256, tier=Tier.DRAFT, fit=Fit.COVER, seed=1)
    assert (spec(defaults).frames, spec(defaults).size, spec(defaults).fit) == (24, (256, 256), Fit.COVER)
    clip = spec(
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
    assert (clip.size, clip.frames, clip.steps, clip.fps, clip.guidance) == ((768, 768), 24, 80, 12, 11.0)
    assert (clip.fit, clip.prompt, clip.negative_prompt, clip.seed) == (Fit.CONTAIN, "tilt up", "blur", 3)
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
    clip = spec(Defaults(model=model, resolution_class=resolution_class), (width, height))
    stride = FAMILIES[model].stride
    assert clip.width % stride == clip.height % stride == 0
    assert clip.width * clip.height <= int(resolution_class.value[:-1]) ** 2
    wanted = min(max(math.log2(width / height), -1.0), 1.0)
    # Half a stride of either side, at the coarsest: 64 pixels on 256².
    assert abs(math.log2(clip.width / clip.height) - wanted) <= 64 / int(resolution_class.value[:-1]) * 2.2


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
        ({"frames": 0}, "frames", "at least 1"),
        ({"steps": 1001}, "steps", "Choose 1 to 998."),
        ({"steps": 0}, "steps", "Choose 1 to 998."),
        ({"guidance": 0.5}, "guidance", "Choose 1 to 30."),
        ({"guidance": 30.5}, "guidance", "Choose 1 to 30."),
        ({"guidance": float("nan")}, "guidance", "Choose 1 to 30."),
        ({"fps": 0}, "fps", "Choose 1 to 60."),
        ({"fps": 61}, "fps", "Choose 1 to 60."),
        ({"prompt": "  "}, "prompt", "empty"),
        ({"prompt": None}, "prompt", "empty"),
        ({"prompt": "x" * (MAX_PROMPT_CHARACTERS + 1)}, "prompt", "2001 characters"),
        ({"negative_prompt": "x" * (MAX_PROMPT_CHARACTERS + 1)}, "negative_prompt", "2001 characters"),
        ({"aspect": "wide"}, "aspect", "'wide' is not an aspect ratio"),
        ({"sampler": "lcm", "model": "camera", "fps": 0}, "fps", "Choose 1 to 60."),
        ({"window": -1}, "window", "0 for none"),
        ({"window": 16, "frames": 40, "window_overlap": 16}, "window_overlap", "windows of 16 frames cannot share 16"),
        ({"window": 16, "frames": 40, "step_cache": 2}, "step_cache", "windows"),
        ({"step_cache": 0}, "step_cache", "1 (none)"),
        ({"motion_class": "512p"}, "motion_class", "Choose one of: 256p."),
        ({"motion_class": "256p", "from_draft": True}, "from_draft", "not from both"),
        ({"motion_class": "256p", "strength": 0.0}, "strength", "above 0"),
        ({"motion_class": "256p", "frames": 100, "window": 16}, "motion_class", "at most 64 frames"),
        ({"tier": "fast"}, "tier", "--few-step FILE"),
        ({"tier": "fast", "model": "camera"}, "tier", "Choose draft."),
        ({"model": "sora"}, "model", "'sora' is not a model"),
    ],
)
def test_one_problem(fields: dict[str, Any], field: str, message: str) -> None:
    problems = faults(**fields)
    assert list(problems) == [field]
    assert message in problems[field]


def test_every_problem_is_told_at_once() -> None:
    assert set(faults(STRICT, frames=1000, steps=0, guidance=99.0, fps=99, aspect="x", prompt="")) == {
        "frames",
        "steps",
        "guidance",
        "fps",
        "aspect",
        "prompt",
    }
    with pytest.raises(RowProblems, match="sora"):
        spec(Defaults(model="sora"))


ADJUSTED = [
    ({"frames": 65}, {"frames": 64}, "frames 65 -> 64: i2vgen-xl takes 2 to 64 frames (up to 512 with a window)", "64"),
    ({"frames": 1}, {"frames": 2}, "frames 1 -> 2: i2vgen-xl takes 2 to 64 frames", "2."),
    ({"frames": 601, "model": "camera"}, {"frames": 600}, "frames 601 -> 600: camera takes 2 to 600 frames", "600."),
    ({"aspect": "4:1"}, {"size": (896, 256)}, "aspect 4:1 -> 3:1: the widest a clip can be", "between 1:3 and 3:1"),
    ({"aspect": "1:9"}, {"size": (256, 896)}, "aspect 1:9 -> 1:3: the tallest a clip can be", "between 1:3 and 3:1"),
    (
        {"frames": 600, "window": 16},
        {"frames": 512, "window": 16},
        "frames 600 -> 512: i2vgen-xl takes 2 to 512 frames in windows",
        "512.",
    ),
    (
        {"frames": 100, "window": 80},
        {"frames": 100, "window": 64},
        "window 80 -> 64: i2vgen-xl takes 2 to 64 frames at once",
        "64.",
    ),
]


@pytest.mark.parametrize(("fields", "becomes", "note", "remedy"), ADJUSTED)
def test_what_a_family_cannot_take_is_adjusted_or_refused(
    fields: dict[str, Any], becomes: dict[str, Any], note: str, remedy: str
) -> None:
    resolved = made(**fields)
    assert {name: getattr(resolved.spec, name) for name in becomes} == becomes
    assert len(resolved.adjusted) == 1
    assert resolved.adjusted[0].startswith(note)
    problems = faults(STRICT, **fields)
    assert list(problems) == [note.split()[0]]
    assert remedy in problems[note.split()[0]]
    # What the family takes is taken as it is, strict or not.
    sized = {"aspect": "3:1" if becomes["size"][0] > 256 else "1:3"} if "size" in becomes else becomes
    taken = made(STRICT, **(fields | sized))
    assert (taken.spec, taken.adjusted) == (resolved.spec, ())


def test_frames_of_a_form_are_adjusted_to_the_nearest() -> None:
    resolved = made(frames=16, model="wan2.2-5b")
    assert resolved.spec.frames == 17
    assert "frames 16 -> 17: wan2.2-5b takes 5 to 121 frames of the form 4n+1" in resolved.adjusted[0]


def test_a_class_the_family_does_not_render(rendering_with: Callable[[Family], None]) -> None:
    rendering_with(dataclasses.replace(FAMILIES["i2vgen-xl"], classes=(ResolutionClass.P256, ResolutionClass.P512)))
    assert "Choose one of: 256p, 512p." in faults(STRICT, resolution_class=ResolutionClass.P768)["resolution_class"]
    resolved = made(resolution_class=ResolutionClass.P768)
    assert (resolved.spec.resolution_class, resolved.spec.width) == (ResolutionClass.P512, 512)
    assert resolved.adjusted == ("resolution_class 768p -> 512p: i2vgen-xl renders 256p, 512p",)
    assert spec().width == 512


# -- samplers ------------------------------------------------------------------------------------------------


def test_samplers(rendering_with: Callable[[Family], None]) -> None:
    assert spec(sampler="unipc").sampler is Sampler.UNIPC
    assert spec(Defaults(model="i2vgen-xl", sampler=Sampler.EULER)).sampler is Sampler.EULER
    assert spec(Defaults(model="i2vgen-xl", sampler=Sampler.EULER), sampler="ddim").sampler is Sampler.DDIM
    rendering_with(VIDEO)
    assert spec().sampler is Sampler.UNIPC
    assert "Choose one of: unipc, dpmpp-2m, euler." in faults(sampler="ddim")["sampler"]


def test_a_family_that_does_not_denoise_says_what_it_leaves_out() -> None:
    asked = {"steps": 9, "sampler": "ddim", "window": 8, "motion_class": "256p", "from_draft": True}
    resolved = made(CAMERA, **asked)
    assert resolved.spec == spec(CAMERA)
    assert resolved.notes == ("camera does not denoise: steps, sampler, window, motion_class, from_draft unused",)
    many = Defaults(model="camera", window=8, step_cache=3, from_draft=True, sampler=Sampler.DDIM, strict=True)
    assert made(many).spec == spec(CAMERA)
    assert made(many).notes == ("camera does not denoise: sampler, window, step_cache, from_draft unused",)


def test_without_guidance_a_negative_prompt_changes_nothing() -> None:
    resolved = made(guidance=1.0, negative_prompt="blur")
    assert resolved.spec == spec(guidance=1.0)
    assert resolved.notes[0] == "negative_prompt unused: guidance is 1"


# -- windows -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"frames": 40, "window": 16}, (40, 16, 4)),
        ({"frames": 40, "window": 16, "window_overlap": 0}, (40, 16, 0)),
        ({"frames": 40, "window": 16, "window_overlap": 15}, (40, 16, 15)),
        ({"frames": 40, "window": 2}, (40, 2, 1)),
        # All frames fit into one window: the clip that needs none.
        ({"frames": 16, "window": 16, "window_overlap": 4}, (16, 0, 0)),
        ({"frames": 512, "window": 64}, (512, 64, 16)),
        ({"frames": 40, "window": 0}, (40, 0, 0)),
    ],
)
def test_windows(fields: dict[str, Any], expected: tuple[int, int, int]) -> None:
    resolved = made(STRICT, **fields)
    assert (resolved.spec.frames, resolved.spec.window, resolved.spec.window_overlap) == expected
    assert bool(resolved.spec.lossy) == bool(expected[1])


@given(window=st.integers(2, 130), frames=st.integers(1, 600), overlap=st.none() | st.integers(0, 130))
def test_windows_are_cut_at_latent_frames(window: int, frames: int, overlap: int | None) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster.catalog.resolve, "family_named", lambda _name: VIDEO)
        fields = {"window": window, "frames": frames, "window_overlap": overlap}
        fitted = nearest_frames(VIDEO.frame_rule, window)
        if overlap is not None and overlap >= fitted and frames > fitted + 2:
            assert list(faults(**fields)) == ["window_overlap"]
            return
        clip = spec(**fields)
    assert (clip.frames - 1) % 4 == 0
    assert clip.frames <= 481
    if clip.window:
        assert VIDEO.frame_rule.allows(clip.window)
        assert clip.window < clip.frames
        assert clip.window_overlap % 4 == 0
        assert 0 <= clip.window_overlap < clip.window
        if overlap is None:
            assert abs(clip.window_overlap - clip.window / 4) <= 4


def test_a_family_without_windows(rendering_with: Callable[[Family], None]) -> None:
    rendering_with(dataclasses.replace(FAMILIES["i2vgen-xl"], max_windowed_frames=0))
    assert "at most 64 frames" in faults(window=16, frames=100)["window"]
    assert spec(Defaults(model="i2vgen-xl", window=16), window=0).window == 0


def test_step_cache(rendering_with: Callable[[Family], None]) -> None:
    assert spec(step_cache=3).step_cache == 3
    assert spec(Defaults(model="i2vgen-xl", step_cache=3), step_cache=1) == spec()
    # All frames in one window is no window, so the two go together.
    assert spec(step_cache=3, window=16, frames=16).step_cache == 3
    rendering_with(VIDEO)
    assert list(faults(step_cache=2)) == ["step_cache"]
    assert spec(step_cache=1).step_cache == 1


# -- from a smaller rendering --------------------------------------------------------------------------------


def test_motion_of_a_smaller_class() -> None:
    resolved = made(STRICT, (900, 600), motion_class="256p", sampler="unipc", seed=3, steps=12, resolution_class="768p")
    clip = resolved.spec
    alone = spec(STRICT, (900, 600), sampler="unipc", seed=3, steps=12, resolution_class="256p")
    assert clip.base_spec == alone
    assert (clip.strength, clip.upscale, clip.total_steps) == (0.5, Upscale.LATENTS, 12 + 6)
    plain = spec(STRICT, (900, 600), sampler="unipc", seed=3, steps=12, resolution_class="768p")
    assert clip == plain.model_copy(update={"base": clip.base, "strength": 0.5})
    other = spec(motion_class="256p", strength=0.25, upscale="frames")
    assert (other.strength, other.upscale) == (0.25, Upscale.FRAMES)
    by_batch = Defaults(model="i2vgen-xl", motion_class=ResolutionClass.P256, strength=0.25, upscale=Upscale.FRAMES)
    assert spec(by_batch) == other


def test_motion_that_would_be_stretched_is_told_of() -> None:
    stretched = made(size=(800, 600), motion_class="256p")
    assert stretched.spec.base is not None
    assert (stretched.spec.size, stretched.spec.base.width, stretched.spec.base.height) == ((576, 448), 320, 192)
    assert len(stretched.notes) == 1
    assert "320×192 is stretched to 576×448" in stretched.notes[0]
    assert made(size=(800, 600), motion_class="256p", aspect="320:192").notes == ()
    assert made(motion_class="256p").notes == ()


def test_strength_without_a_start_changes_nothing() -> None:
    resolved = made(strength=0.2, upscale="frames")
    assert resolved.spec == spec()
    assert resolved.notes == ("strength, upscale unused: the clip starts from noise",)


def test_from_draft_starts_from_the_very_clip_that_was_approved(rendering_with: Callable[[Family], None]) -> None:
    for family, fps in ((FAMILIES["i2vgen-xl"], 24), (VIDEO, 88)):
        rendering_with(family)
        fields = {"guidance": 4.0, "negative_prompt": "blur", "candidate": 1, "candidates": 2}
        draft = spec(size=(900, 600), tier="draft", **fields)
        resolved = made(STRICT, (900, 600), tier="high", from_draft=True, **fields)
        clip = resolved.spec
        assert content_key(STILL, clip.base_spec or clip) == content_key(STILL, draft)
        assert clip.fps == fps
        assert resolved.adjusted == ()
        assert resolved.notes[0].startswith(f"fps {family.tiers[Tier.HIGH].fps} -> {fps}: ")
        plain = spec(size=(900, 600), tier="high", **fields)
        assert clip == plain.model_copy(update={"base": clip.base, "strength": 0.5, "fps": fps})
        assert isinstance(clip.base, BaseClip)
        assert clip.seconds == draft.seconds


def test_the_draft_of_a_row_that_starts_from_its_draft_is_just_a_draft() -> None:
    assert made(tier="draft", from_draft=True) == made(tier="draft")
    batch = Defaults(model="i2vgen-xl", from_draft=True, tier=Tier.HIGH)
    assert spec(batch).base_spec == spec(tier="draft")
    assert spec(batch, from_draft=False) == spec(tier="high")


def test_an_fps_asked_for_gives_way_to_the_draft_s_length() -> None:
    resolved = made(tier="high", from_draft=True, fps=12)
    assert (resolved.spec.fps, resolved.spec.seconds) == (36, 8 / 12)
    assert resolved.adjusted == ("fps 12 -> 36: 24 frames of 0.667 s, as the draft's 0.667 s",)
    assert "Leave it empty for 36." in faults(STRICT, tier="high", from_draft=True, fps=12)["fps"]


def test_a_draft_that_would_be_another_clip_is_refused(rendering_with: Callable[[Family], None]) -> None:
    # The draft of 100 frames is rendered in windows, which a start has not.
    assert "another window" in faults(tier="high", from_draft=True, frames=100, window=16)["from_draft"]
    fast = Defaults(model="i2vgen-xl", few_step={"i2vgen-xl": FEW})
    assert "adapter" in faults(fast, tier="fast", from_draft=True)["from_draft"]
    rendering_with(dataclasses.replace(FAMILIES["i2vgen-xl"], refinable=False))
    assert "cannot start from" in faults(from_draft=True)["from_draft"]
    assert "cannot start from" in faults(motion_class="256p")["motion_class"]


# -- few steps -----------------------------------------------------------------------------------------------

FEW = FewStep(adapter="/adapters/lcm.safetensors", sha256="ab" * 32, scale=0.8, steps=6, guidance=1.5)


def test_the_fast_tier_is_what_the_farm_says() -> None:
    fast = Defaults(model="i2vgen-xl", tier=Tier.FAST, few_step={"i2vgen-xl": FEW})
    clip = spec(fast)
    assert clip == spec(tier="draft").model_copy(
        update={
            "steps": 6,
            "guidance": 1.5,
            "sampler": Sampler.LCM,
            "adapter": Adapter(name="lcm", sha256="ab" * 32, scale=0.8),
        }
    )
    assert len(clip.lossy) == 2
    assert spec(fast, tier="standard") == spec()
    own = spec(fast, steps=8, guidance=2.0, sampler="euler")
    assert (own.steps, own.guidance, own.sampler) == (8, 2.0, Sampler.EULER)
    moved = fast.model_copy(
        update={"few_step": {"i2vgen-xl": FEW.model_copy(update={"adapter": "/b/lcm.safetensors"})}}
    )
    assert content_key(STILL, spec(moved)) == content_key(STILL, clip)


def test_the_sampler_said_nearest_to_the_row_goes_first() -> None:
    fast = Defaults(model="i2vgen-xl", tier=Tier.FAST, sampler=Sampler.EULER, few_step={"i2vgen-xl": FEW})
    assert spec(fast).sampler is Sampler.EULER
    assert spec(fast, tier="fast").sampler is Sampler.LCM
    assert spec(fast, tier="fast", sampler="ddim").sampler is Sampler.DDIM


# -- families that read no prompt ----------------------------------------------------------------------------


def test_a_family_that_reads_no_prompts() -> None:
    svd = Defaults(model="svd-xt", strict=True)
    silent = made(svd, prompt=None)
    assert silent.spec.prompt == NO_PROMPT
    assert silent.notes == ()
    resolved = made(svd, prompt="pan left", negative_prompt="blur")
    assert resolved.spec == silent.spec
    assert resolved.notes == (
        "svd-xt does not read prompts",
        "negative_prompt unused: svd-xt does not read prompts",
    )
