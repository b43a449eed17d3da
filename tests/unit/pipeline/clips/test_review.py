import numpy as np

from pipeline.clips.review import review


def codes(frames: np.ndarray) -> list[str]:
    return [finding.code for finding in review(frames)]


def test_a_lively_clip_has_no_findings() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    assert codes(frames) == []


def test_black_uniform_and_motionless_clips_are_told_apart() -> None:
    black = np.zeros((3, 16, 16, 3), np.uint8)
    assert codes(black) == ["black", "no_motion"]
    pulsing = np.stack([np.full((16, 16, 3), level, np.uint8) for level in (90, 120, 200)])
    assert codes(pulsing) == ["uniform"]
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    assert codes(np.stack([picture] * 3)) == ["no_motion"]


def test_one_good_frame_is_enough_against_black_and_one_pixel_against_no_motion() -> None:
    frames = np.zeros((3, 16, 16, 3), np.uint8)
    frames[1, 4, 4] = 200
    assert codes(frames) == []


def test_one_frame_cannot_move() -> None:
    assert codes(np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), dtype=np.uint8)) == []
