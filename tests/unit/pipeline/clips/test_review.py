import io
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from pipeline.clips.inspection.judge import judge_still
from pipeline.clips.inspection.tones import edge_softness
from pipeline.clips.review import review
from pipeline.clips.stills import open_still


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


# -- stills ----------------------------------------------------------------------------------------------------------

EXAMPLES = sorted(
    path for path in (Path(__file__).parents[4] / "examples" / "catalog").iterdir() if path.suffix in (".jpg", ".webp")
)


def told(still: Image.Image) -> list[str]:
    return [note.code for note in judge_still(still)]


def jpeg(still: Image.Image, quality: int) -> Image.Image:
    out = io.BytesIO()
    still.save(out, "JPEG", quality=quality)
    return open_still(out.getvalue())


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_product_pictures_are_told_from_what_spoils_them(path: Path) -> None:
    still = open_still(path.read_bytes())
    unit = max(still.size) / 512
    assert told(still) == told(still.resize((200, 200))) == told(jpeg(still, 60)) == []
    for sigma in (2.5, 4):
        blurred = still.filter(ImageFilter.GaussianBlur(sigma * unit))
        assert told(blurred) == told(blurred.resize((2048, 2048))) == ["still_blurred"]
    enlarged = still.resize((64, 64)).resize((1024, 1024), Image.Resampling.BICUBIC)
    assert told(enlarged) == ["still_blurred"]
    dimmed = told(ImageEnhance.Brightness(still).enhance(0.6))
    assert not {"still_dark", "still_blurred", "still_uniform"}.intersection(dimmed)
    assert told(ImageEnhance.Brightness(still).enhance(0.15)) == ["still_dark"]
    assert told(Image.eval(still, lambda level: 200 + level // 64)) == ["still_uniform"]


@pytest.mark.parametrize(
    ("colour", "code"), [("black", "still_dark"), ("white", "still_uniform"), ((255, 0, 0), "still_uniform")]
)
def test_empty_stills_are_told_whatever_their_size(colour: str, code: str) -> None:
    for size in ((16, 16), (1024, 512), (20, 3000)):
        assert told(Image.new("RGB", size, colour)) == [code]


def test_a_small_product_on_a_plain_ground_is_no_empty_still() -> None:
    still = Image.new("RGB", (1000, 1000), "white")
    still.paste((120, 40, 40), (480, 480, 530, 530))
    assert told(still) == []


@pytest.mark.parametrize("sigma", [1.0, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("contrast", [30.0, 200.0])
def test_softness_of_an_edge_is_that_of_the_gaussian_that_made_it(sigma: float, contrast: float) -> None:
    """Against the error function, which is what a Gaussian makes of a step; pixels add a little of their own."""
    x = np.arange(-64, 64)
    edge = contrast * np.array([0.5 * (1 + math.erf(one / sigma / math.sqrt(2))) for one in x])
    found = edge_softness(np.tile(edge, (128, 1)).astype(np.float32))
    assert found == pytest.approx(sigma, rel=0.12)
