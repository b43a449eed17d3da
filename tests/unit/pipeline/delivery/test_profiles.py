"""Profiles are data: each says where its rules come from, and one's own stand beside them or in their place."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from pipeline.clips.clip import ClipSpec, Fit, ResolutionClass
from pipeline.delivery.preflight import StillProduct, length_notes, product_in_clip, refusals
from pipeline.delivery.profiles import (
    Audio,
    BackgroundFill,
    DeliveryProfiles,
    built_in,
    profile_names_of,
    profiles_of,
    read_profiles,
)
from pipeline.problems import BadInputError

#: What marketplaces publish, written down a second time.
PUBLISHED = {
    "google": {"min_seconds": 6, "max_seconds": 240, "max_bytes": 500_000_000},
    "amazon-sb": {"width": 1920, "height": 1080, "backgrounds": (BackgroundFill.PLAIN,)},
    "amazon-olv": {"min_seconds": 6, "max_seconds": 120, "min_bit_rate": 4_000_000, "min_fps": 23.976, "max_fps": 30},
    "tiktok": {"min_seconds": 5, "max_seconds": 60, "min_bit_rate": 516_000, "max_bytes": 500_000_000},
    "reels": {"min_seconds": 3, "min_fps": 23, "max_fps": 60, "max_bit_rate": 25_000_000},
    "shop": {"audio": Audio.NONE},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_profiles_keep_what_is_published(name: str) -> None:
    profile = built_in().named(name)
    assert {rule: getattr(profile, rule) for rule in PUBLISHED[name]} == PUBLISHED[name]


def test_every_profile_says_where_and_when_its_rules_were_read() -> None:
    for name in built_in().names:
        profile = built_in().named(name)
        assert profile.source.startswith("https://")
        assert date(2026, 1, 1) <= profile.checked <= date.today()
        assert min(profile.size) >= 720
        assert (
            profile.width * 9 == profile.height * 16
            or profile.width * 16 == profile.height * 9
            or name
            in (
                "shop",
                "google-square",
            )
        )


def test_where_rules_come_from_decides_no_file() -> None:
    profile = built_in().named("google")
    assert profile.model_copy(update={"title": "x", "source": "y", "note": "z"}).digest == profile.digest
    assert profile.model_copy(update={"max_seconds": 239.0}).digest != profile.digest


def test_ones_own_profiles_stand_beside_the_others_and_in_their_place(tmp_path: Path) -> None:
    path = tmp_path / "profiles.yaml"
    path.write_text(
        "google: {like: google, max_seconds: 30}\n"
        "kiosk: {like: shop, title: Kiosk, source: ours, checked: 2026-11-01, width: 720, height: 1280}\n"
    )
    profiles = read_profiles(path)
    assert profiles.named("google").max_seconds == 30
    assert profiles.named("google").min_seconds == 6
    assert profiles.named("kiosk").size == (720, 1280)
    assert set(built_in().names) < set(profiles.names)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kiosk: {like: nobody}", "no delivery profile"),
        ("kiosk: {like: shop, width: 721}", "kiosk.width"),
        ("kiosk: {like: shop, min_seconds: 700}", "more than max_seconds"),
        ("kiosk: {like: shop, min_fps: 50, max_fps: 40}", "rates"),
        ("kiosk: {like: shop, min_bit_rate: 6000000}", "tenth above"),
        ("kiosk: {like: shop, colour: red}", "kiosk.colour"),
        ("'No Name': {like: shop}", "name"),
        ("kiosk: 7", "no table of rules"),
        ("- kiosk", "no table"),
        ("{", "no YAML"),
    ],
)
def test_profiles_that_cannot_be_are_refused_and_named(text: str, words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        profiles_of(text.encode(), "profiles.yaml", built_in())


def test_names_are_read_as_people_write_them() -> None:
    assert profile_names_of("google, Amazon_SB;reels google") == ("google", "amazon-sb", "reels")
    assert profile_names_of("none") == profile_names_of("") == profile_names_of([]) == ()
    for bad in ("../up", "a" * 40, 7, ["x", 1], ",".join(f"p{n}" for n in range(17))):
        with pytest.raises(ValueError, match=r"profile"):
            profile_names_of(bad)


def spec(size: tuple[int, int], frames: int = 48, fit: Fit = Fit.CONTAIN) -> ClipSpec:
    return ClipSpec(
        family="camera",
        revision="1",
        prompt="zoom in",
        resolution_class=ResolutionClass.P512,
        width=size[0],
        height=size[1],
        frames=frames,
        fps=24,
        steps=1,
        guidance=1,
        seed=0,
        fit=fit,
    )


PLAIN = (True, True, True, True)
BANNER = StillProduct(box=(0.02, 0.1, 0.98, 0.9), found=True, plain=PLAIN)


def test_a_product_lies_in_the_clip_as_its_still_is_fitted() -> None:
    middle = StillProduct(box=(0.25, 0.25, 0.75, 0.75), found=True, plain=PLAIN)
    contained = product_in_clip(middle, (400, 200), spec((200, 200)))
    assert contained.box == pytest.approx((0.25, 0.375, 0.75, 0.625))
    covered = product_in_clip(middle, (400, 200), spec((200, 200), fit=Fit.COVER))
    assert covered.box == pytest.approx((0.0, 0.25, 1.0, 0.75))
    assert product_in_clip(middle, (400, 200), spec((200, 200), fit=Fit.STRETCH)).box == middle.box


def test_what_no_crop_can_meet_is_refused_before_rendering_with_numbers() -> None:
    wide = spec((768, 256))
    refused = refusals(["reels", "google"], wide, (3000, 1000), BANNER, built_in())
    assert set(refused) == {"reels"}
    assert "81% of the frame" in refused["reels"].message
    assert "3:1" in refused["reels"].message


def test_lengths_and_names_are_judged_without_a_still() -> None:
    long = spec((512, 512), frames=24 * 70)
    assert set(refusals(["tiktok", "google", "nobody"], long, (1, 1), None, built_in())) == {"tiktok", "nobody"}


def test_a_short_clip_is_noted_and_may_be_rendered_longer() -> None:
    [note] = length_notes(["google", "reels"], spec((512, 512)), built_in(), longer=True)
    assert note.code == "delivery_repeated"
    assert "google 6 s" in note.message
    assert note.fix == {"seconds": 6.0, "frames": None}
    assert length_notes(["reels"], spec((512, 512), frames=200), built_in(), longer=True) == []
    assert length_notes(["google"], spec((512, 512)), DeliveryProfiles([]), longer=False) == []
