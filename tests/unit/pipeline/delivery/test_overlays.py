"""Brand files and what is laid over: in the safe area, off the product, readable; what cannot be is refused early."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from pipeline.delivery.brands import Brand, filled, read_brand, texts_of
from pipeline.delivery.contrast import contrast
from pipeline.delivery.overlays import draw_overlays
from pipeline.delivery.profiles import built_in
from pipeline.problems import BadInputError
from tests.unit.pipeline.delivery.clips import profile

MIDDLE = (0.4, 0.3, 0.6, 0.7)


def brand_file(folder: Path, text: str, **files: bytes) -> Path:
    for name, data in files.items():
        (folder / name.replace("_", ".")).write_bytes(data)
    path = folder / "brand.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def logo_png(folder: Path, colour: tuple[int, int, int] = (10, 30, 90)) -> None:
    logo = Image.new("RGBA", (80, 40))
    logo.paste((*colour, 255), (8, 4, 72, 36))
    logo.save(folder / "logo.png")


FULL = """
colours: {ink: "#ffffff", price: "#b00020"}
logo: logo.png
margin: 0.03
overlays:
  - {kind: logo, place: top-left, size: 0.18}
  - {kind: badge, text: "{price} {currency|EUR}", colour: ink, background: price, size: 0.08}
  - {kind: caption, text: "{title}", place: bottom, size: 0.05}
"""


def test_overlays_lie_in_the_safe_area_and_not_on_each_other(tmp_path: Path) -> None:
    logo_png(tmp_path)
    brand = read_brand(brand_file(tmp_path, FULL))
    texts = texts_of(brand, {"Price": "19.90", "title": "A mug for the long winter evenings"})
    assert texts == ("", "19.90 EUR", "A mug for the long winter evenings")
    for name in built_in().names:
        rules = built_in().named(name)
        drawn = draw_overlays(brand, texts, rules, MIDDLE)
        assert drawn.picture is not None
        seen = np.asarray(drawn.picture)[..., 3] > 0
        rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
        area = rules.safe_area
        assert columns[0] >= int(area.left * rules.width)
        assert columns[-1] < rules.width * (1 - area.right) + 1
        assert rows[0] >= int(area.top * rules.height)
        assert rows[-1] < rules.height * (1 - area.bottom) + 1
        assert all(check.passed for check in drawn.checks)


def test_the_corner_with_least_of_the_product_is_taken() -> None:
    brand = Brand.model_validate({"overlays": [{"kind": "badge", "text": "Sale", "size": 0.15}]})
    wanted = profile()
    for product, corner in {(0.0, 0.5, 0.6, 1.0): (1, 1), (0.0, 0.4, 1.0, 1.0): (0, 0)}.items():
        drawn = draw_overlays(brand, ("Sale",), wanted, product)
        assert drawn.picture is not None
        seen = np.asarray(drawn.picture)[..., 3] > 0
        x, y = float(np.nonzero(seen)[1].mean()), float(np.nonzero(seen)[0].mean())
        assert (int(x > wanted.width / 2), int(y > wanted.height / 2)) == corner


def test_texts_are_filled_from_columns_however_they_are_spelt() -> None:
    assert filled("{Sale Price|ask us} now", {"sale_price": 9.5}) == "9.5 now"
    assert filled("{Sale Price|ask us} now", {}) == "ask us now"
    assert filled("{price}", {"price": None}) == ""


def test_nothing_is_laid_over_where_a_row_has_no_price() -> None:
    brand = Brand.model_validate({"overlays": [{"kind": "badge", "text": "{price}"}]})
    assert draw_overlays(brand, texts_of(brand, {}), profile(), MIDDLE).picture is None


def test_a_logo_that_does_not_stand_out_is_told_with_its_contrast(tmp_path: Path) -> None:
    logo_png(tmp_path, (205, 205, 205))
    brand = read_brand(brand_file(tmp_path, "logo: logo.png\noverlays: [{kind: logo, size: 0.3, background: '#ccc'}]"))
    light, dark = (np.full((90, 160, 3), level, np.uint8) for level in (214, 20))
    [check] = [c for c in draw_overlays(brand, ("",), profile(), MIDDLE, [light]).checks if c.rule == "logo_contrast"]
    assert not check.passed
    assert re.search(r"contrast 1\.\d", check.found)
    assert all(check.passed for check in draw_overlays(brand, ("",), profile(), MIDDLE, [dark]).checks)


def test_a_logo_that_does_not_stand_out_is_put_on_a_plate_that_it_stands_out_from(tmp_path: Path) -> None:
    logo_png(tmp_path, (20, 20, 60))
    brand = read_brand(brand_file(tmp_path, "logo: logo.png\noverlays: [{kind: logo, size: 0.3, background: '#fff'}]"))
    dark, light = (np.full((90, 160, 3), level, np.uint8) for level in (20, 230))
    areas = []
    for frame in (dark, light):
        drawn = draw_overlays(brand, ("",), profile(), MIDDLE, [frame])
        assert all(check.passed for check in drawn.checks)
        areas.append(int((np.asarray(drawn.picture)[..., 3] > 0).sum()))
    assert areas[0] > areas[1] * 1.2


BAD = {
    "fonts: {text: missing.ttf}": r"fonts\.text: .*missing\.ttf is missing",
    "fonts: {text: broken.ttf}": r"fonts\.text: .*is no font",
    "logo: nowhere.png\noverlays: [{kind: logo}]": r"logo: .*nowhere\.png is missing",
    "logo: broken.ttf\noverlays: [{kind: logo}]": r"logo: .*no picture",
    "overlays: [{kind: logo}]": "names no logo",
    "overlays: [{kind: badge}]": "has no text",
    "overlays: [{kind: badge, text: x, font: bold}]": "no font 'bold'",
    "overlays: [{kind: badge, text: x, colour: '#777', background: '#888'}]": r"contrast of 1\.\d, less than 4\.5",
    "colours: {ink: blurple}": "blurple",
    "margin: 3": "margin",
    "- a list": "no table",
    "a: [": "no YAML",
}


@pytest.mark.parametrize("text", BAD)
def test_a_brand_file_that_cannot_be_followed_is_refused_when_it_is_read(text: str, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=BAD[text]) as raised:
        read_brand(brand_file(tmp_path, text, broken_ttf=b"no font"))
    assert raised.value.problem.field == "brand"
    assert raised.value.problem.remedy


def test_a_text_too_long_for_its_place_and_letters_that_a_font_lacks_are_refused() -> None:
    brand = Brand.model_validate({"overlays": [{"kind": "badge", "text": "{t}", "size": 0.3}]})
    with pytest.raises(BadInputError, match="does not fit"):
        draw_overlays(brand, ("word " * 40,), profile(), MIDDLE)
    with pytest.raises(BadInputError, match="no letters for 椅"):
        draw_overlays(brand, ("椅",), profile(), MIDDLE)


def test_contrast_is_that_of_the_standard() -> None:
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert contrast((118, 118, 118), (255, 255, 255)) == pytest.approx(4.54, abs=0.01)
    assert contrast((9, 9, 9), (9, 9, 9)) == 1


def test_the_digest_follows_contents_and_not_places(tmp_path: Path) -> None:
    digests = []
    for name, colour in (("a", (1, 1, 1)), ("b", (1, 1, 1)), ("c", (2, 2, 2))):
        (tmp_path / name).mkdir()
        logo_png(tmp_path / name, colour)
        digests.append(read_brand(brand_file(tmp_path / name, "logo: logo.png")).digest)
    assert digests[0] == digests[1] != digests[2]


def test_a_font_of_ones_own_is_used(tmp_path: Path) -> None:
    own = Path("/usr/share/fonts/truetype/dejavu/DejaVuSans-Bold.ttf")
    if not own.exists():
        pytest.skip("no DejaVu here")
    text = "fonts: {text: own.ttf}\noverlays: [{kind: badge, text: x}]"
    brand = read_brand(brand_file(tmp_path, text, own_ttf=own.read_bytes()))
    assert brand.font("text", 20).getname() == ImageFont.truetype(str(own), 20).getname()
