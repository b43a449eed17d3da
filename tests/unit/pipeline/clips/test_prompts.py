import csv
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.clips.prompts import CameraMove, Motion, Speed, read_motion
from pipeline.lint.reading import read_parts

CATALOG = Path(__file__).parents[5] / "shared/catalog/catalog.csv"
M = CameraMove
WORDS = ["camera", "pan", "zoom", "in", "out", "left", "right", "slowly", "and", ",", "the", ".", "orbit", "é", "loop"]


@pytest.mark.parametrize(
    ("prompt", "moves", "speed"),
    [
        ("camera slowly zooming in, soft studio light", (M.ZOOM_IN,), Speed.SLOW),
        ("Zoom out quickly", (M.ZOOM_OUT,), Speed.FAST),
        ("slow pan left", (M.PAN_LEFT,), Speed.SLOW),
        ("panning to the left across the shoe", (M.PAN_LEFT,), Speed.NORMAL),
        ("pan across the left shoe", (M.PAN_RIGHT,), Speed.NORMAL),
        ("tracking shot from right to left", (M.PAN_LEFT,), Speed.NORMAL),
        ("camera gently glides to the right", (M.PAN_RIGHT,), Speed.SLOW),
        ("tilting up", (M.TILT_UP,), Speed.NORMAL),
        ("the camera tilts down over the jacket", (M.TILT_DOWN,), Speed.NORMAL),
        ("rotating clockwise", (M.ROLL_CLOCKWISE,), Speed.NORMAL),
        ("camera rolls counter-clockwise", (M.ROLL_COUNTERCLOCKWISE,), Speed.NORMAL),
        ("dolly shot", (M.DOLLY_IN,), Speed.NORMAL),
        ("dolly out, fast", (M.DOLLY_OUT,), Speed.FAST),
        ("the camera pulls back", (M.DOLLY_OUT,), Speed.NORMAL),
        ("camera pushes in", (M.DOLLY_IN,), Speed.NORMAL),
        ("camera moves closer to the bag", (M.DOLLY_IN,), Speed.NORMAL),
        ("orbit around the watch", (M.ORBIT_RIGHT,), Speed.NORMAL),
        ("camera rotating around the shoe to the left", (M.ORBIT_LEFT,), Speed.NORMAL),
        ("watch spinning on a turntable", (M.ORBIT_RIGHT,), Speed.NORMAL),
        ("zoom in while panning right", (M.ZOOM_IN, M.PAN_RIGHT), Speed.NORMAL),
        ("camera tilts up and pans right", (M.TILT_UP, M.PAN_RIGHT), Speed.NORMAL),
        ("without zooming, pan right", (M.PAN_RIGHT,), Speed.NORMAL),
        # Names of things are no speed: only words beside the move and adverbs count.
        ("slow orbit to the right around the raven swift snowboard", (M.ORBIT_RIGHT,), Speed.SLOW),
        ("pan left across the fast-drying jacket", (M.PAN_LEFT,), Speed.NORMAL),
    ],
)
def test_moves_and_speed_are_read(prompt: str, moves: tuple[CameraMove, ...], speed: Speed) -> None:
    motion = read_motion(prompt)
    assert (motion.moves, motion.speed, motion.assumed) == (moves, speed, False)


@pytest.mark.parametrize(
    "prompt",
    [
        "a frying pan on the stove",
        "frying pan left on the stove",
        "the left shoe in focus",
        "a tilted roof in the rain",
        "zoom lens on a table",
        "Person turning head to the right, gentle breeze",
        "beautiful scene",
        "the camera does not zoom",
        "pushing a shopping cart in the rain",
        "waves crashing",
    ],
)
def test_things_and_denials_are_no_moves(prompt: str) -> None:
    motion = read_motion(prompt)
    assert motion == Motion(moves=(M.ZOOM_IN,), speed=Speed.SLOW, assumed=True)
    assert "assumed" in str(motion)


def test_contradictions_cancel_and_are_told() -> None:
    motion = read_motion("Zoom in and out simultaneously")
    assert set(motion.cancelled) == {M.ZOOM_IN, M.ZOOM_OUT}
    assert motion.assumed
    assert "cancel" in str(motion)
    mixed = read_motion("pan left and right while tilting up")
    assert mixed.moves == (M.TILT_UP,)
    assert set(mixed.cancelled) == {M.PAN_LEFT, M.PAN_RIGHT}
    assert not mixed.assumed


@pytest.mark.parametrize(
    "prompt",
    [
        "static shot, no zoom",
        "motionless view of a bag",
        "locked-off camera",
        "locked-down shot of a shoe",
        "camera remains perfectly still",
        "the camera doesn't move, steam rises",
        "no camera movement",
        "a fixed frame, leaves falling",
    ],
)
def test_a_static_camera_is_not_given_a_move_and_lint_knows_it_as_one(prompt: str) -> None:
    motion = read_motion(prompt)
    assert motion.moves == ()
    assert not motion.assumed
    assert read_parts(prompt).static


@pytest.mark.parametrize(
    ("prompt", "loop"),
    [
        ("zoom in, looping", True),
        ("seamless loop, orbit left", True),
        ("a seamless pan left", True),
        ("zoom in on a seamless white background", False),
        ("zoom in on the hook-and-loop straps", False),
        ("zoom in on the belt loops", False),
    ],
)
def test_loops(prompt: str, loop: bool) -> None:
    assert read_motion(prompt).loop is loop


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.sampled_from(WORDS) | st.text(max_size=5),
        max_size=12,
    )
)
def test_any_text_is_read_and_never_left_contradictory(words: list[str]) -> None:
    motion = read_motion(" ".join(words))
    opposites = [(M.ZOOM_IN, M.ZOOM_OUT), (M.PAN_LEFT, M.PAN_RIGHT), (M.ORBIT_LEFT, M.ORBIT_RIGHT)]
    assert not any(a in motion.moves and b in motion.moves for a, b in opposites)
    assert len(set(motion.moves)) == len(motion.moves)


@pytest.mark.skipif(not CATALOG.is_file(), reason="the sample catalog is not here")
def test_every_prompt_of_the_sample_catalog_is_read_right() -> None:
    # What the six phrasings of the catalog ask for, by their opening words.
    expected = {
        "camera slowly zooming in": (M.ZOOM_IN, Speed.SLOW),
        "camera slowly zooming out": (M.ZOOM_OUT, Speed.SLOW),
        "camera panning left": (M.PAN_LEFT, Speed.NORMAL),
        "camera tilting up": (M.TILT_UP, Speed.NORMAL),
        "slow orbit to the right": (M.ORBIT_RIGHT, Speed.SLOW),
        "dolly shot toward": (M.DOLLY_IN, Speed.NORMAL),
    }
    with CATALOG.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    assert rows
    for row in rows:
        move, speed = next(value for start, value in expected.items() if row["prompt"].startswith(start))
        assert read_motion(row["prompt"]) == Motion(moves=(move,), speed=speed), row["id"]
