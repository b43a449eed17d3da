"""Stills by pixel: a slice of the corpus against libvips, files of strangers, and what is noted on the way."""

from __future__ import annotations

import random
import struct
import zlib
from collections import defaultdict
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from pipeline.clips.still_notes import StillNoteCode
from pipeline.clips.stills import decode_still, open_still
from pipeline.problems import BadInputError
from tests.stills import files
from tests.stills.corpus import REASONS, Case, cases, is_excused

STRANGERS = Path(files.__file__).parent / "strangers"
FORMATS = {"PNG": 24, "TIFF": 16, "JPEG": 12, "WEBP": 4, "GIF": 2, "BMP": 1, "MPO": 1, "AVIF": 4}


@cache
def corpus() -> list[Case]:
    return cases(seed=26)


@pytest.mark.parametrize("format", FORMATS)
def test_every_pixel_is_what_an_independent_reader_sees(format: str) -> None:
    """A slice; `make stills-corpus` goes over all of it."""
    if format == "AVIF" and not features.check("avif"):
        pytest.skip("no AVIF here")
    of_format = [case for case in corpus() if case.format == format]
    wrong = []
    for case in random.Random(7).sample(of_format, FORMATS[format]):
        expected, shown = case.expected(), open_still(case.data)
        assert (shown.height, shown.width) == expected.low.shape[:2], case.name
        farthest = int(expected.distance(np.asarray(shown)).max())
        if farthest > case.tolerance:
            wrong.append(f"{case.name}: {farthest} levels off")
    assert wrong == []


def test_what_libvips_is_excused_for_it_really_does() -> None:
    by_reason = defaultdict(list)
    for case in corpus():
        if case.reason:
            by_reason[case.reason].append(case)
    assert set(by_reason) == set(REASONS)
    assert [reason for reason, found in by_reason.items() if not any(map(is_excused, found[:20]))] == []


#: Colours that a screen of sRGB shows near the top left, by hand or by LittleCMS, and the size.
SEEN = {
    "adobe.png": ((199, 121, 52), (192, 128)),
    "animated.webp": ((200, 30, 30), (192, 128)),
    "cicp_p3.png": ((190, 117, 45), (192, 128)),
    "cmyk.tif": ((235, 51, 51), (192, 128)),
    "cmyk_adobe.jpg": ((235, 51, 51), (192, 128)),
    "dcf_r03.jpg": ((199, 121, 52), (192, 128)),
    "gama_linear.png": ((122, 182, 229), (192, 128)),
    "gray16_trns.png": ((156, 156, 156), (192, 128)),
    "gray8_trns.png": ((156, 156, 156), (192, 128)),
    "iccp_big.png": ((199, 121, 52), (192, 128)),
    "linear_srgb_icc.png": ((122, 182, 229), (192, 128)),
    "o6_bad_float.jpg": ((200, 30, 30), (128, 192)),
    "o6_bad_rational.jpg": ((200, 30, 30), (128, 192)),
    "o6_bad_subifd.jpg": ((200, 30, 30), (128, 192)),
    "o9.jpg": ((200, 30, 30), (192, 128)),
    "p3_named_srgb.png": ((190, 117, 45), (192, 128)),
    "palette_trns.png": ((200, 30, 30), (192, 128)),
    "phone_mpo.jpg": ((200, 30, 30), (192, 128)),
    "srgb.png": ((50, 120, 200), (192, 128)),
    "thumb_page.tif": ((200, 30, 30), (192, 128)),
    "trailing.jpg": ((200, 30, 30), (192, 128)),
    "ycck_adobe.jpg": ((235, 51, 51), (64, 64)),
    "ztxt_big.png": ((50, 120, 200), (192, 128)),
    "mif1.avif": ((200, 30, 30), (192, 128)),
    "nclx_p3.avif": ((190, 117, 45), (192, 128)),
}


@pytest.mark.parametrize("name", SEEN)
def test_files_of_strangers_show_the_colours_they_were_made_with(name: str) -> None:
    if name.endswith("avif") and not features.check("avif"):
        pytest.skip("no AVIF here")
    still = open_still((STRANGERS / name).read_bytes())
    colour, size = SEEN[name]
    assert still.size == size
    assert np.abs(np.subtract(still.getpixel((3, 3)), colour)).max() <= 3


# ---------------------------------------------------------------------------------------------- which one counts


def grey_page(level: int, side: int = 32, **tags: tuple[int, ...]) -> files.Page:
    numbers = {"subfile": 254, "orientation": 274}
    samples = np.full((side, side + 8, 1), level)
    return files.Page(samples=samples, depth=8, photometric=1, tags={numbers[k]: v for k, v in tags.items()})


def codes(data: bytes) -> set[StillNoteCode]:
    return {note.code for note in decode_still(data).notes}


def test_thumbnails_and_masks_are_no_pages() -> None:
    thumb, mask, first, second = (
        grey_page(9, 20, subfile=(1,)),
        grey_page(8, subfile=(4,)),
        grey_page(100),
        grey_page(7),
    )
    for pages in ([thumb, first], [first, thumb], [mask, first, thumb]):
        assert open_still(files.tiff(*pages)).getpixel((1, 1)) == (100, 100, 100)
        assert codes(files.tiff(*pages)) == set()
    still = decode_still(files.tiff(thumb, first, second))
    assert still.image.getpixel((1, 1)) == (100, 100, 100)
    assert [note.message for note in still.notes] == ["the first of 2 pages is shown"]


@pytest.mark.parametrize(
    ("pages", "said"), [(999, "999 pages"), (1000, "1,000 pages or more"), (1003, "1,000 pages or more")]
)
def test_pages_are_counted_up_to_a_limit(pages: int, said: str) -> None:
    """Forty thousand of them took ten seconds, for each is looked up among all before it."""
    still = decode_still(files.tiff(*[grey_page(100)] * pages))
    assert still.image.getpixel((1, 1)) == (100, 100, 100)
    assert [note.message for note in still.notes] == [f"the first of {said} is shown"]


def test_a_page_of_its_own_orientation_is_turned_by_that() -> None:
    turned = grey_page(100, orientation=(6,))
    assert open_still(files.tiff(grey_page(9, 20, subfile=(1,)), turned)).size == (32, 40)
    assert open_still(files.tiff(turned, grey_page(7))).size == (32, 40)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_taken_and_said(format: str) -> None:
    first, second = Image.new("RGB", (32, 24), (200, 30, 30)), Image.new("RGB", (32, 24), (0, 0, 200))
    options = {"lossless": True} if format == "WEBP" else {}
    still = decode_still(files.saved(first, format, save_all=True, append_images=[second], **options))
    assert np.abs(np.subtract(still.image.getpixel((3, 3)), (200, 30, 30))).max() <= 3
    assert [n.message for n in still.notes] == [f"the first of 2 frames of an animated {format} is shown"]


def test_the_default_image_of_an_animated_png_is_taken() -> None:
    first, moving = Image.new("RGB", (32, 24), (200, 30, 30)), Image.new("RGB", (32, 24), (0, 0, 200))
    data = files.saved(first, "PNG", save_all=True, default_image=True, append_images=[moving, moving.rotate(90)])
    assert open_still(data).getpixel((3, 3)) == (200, 30, 30)


@pytest.mark.parametrize("keyword", [b"transparency", b"icc_profile", b"gamma", b"srgb", b"chromaticity"])
def test_a_text_of_a_png_is_taken_for_nothing_else(keyword: bytes) -> None:
    samples = np.full((20, 20, 3), (10, 20, 30))
    data = files.png(samples, 8, 2, before=[files.chunk(b"tEXt", keyword + b"\0\x01\x02\x03")])
    still = decode_still(data)
    assert (still.image.getpixel((0, 0)), still.notes) == ((10, 20, 30), ())


def test_greys_that_eight_bits_cannot_tell_from_the_key_stay() -> None:
    samples = np.full((20, 20, 1), 0x4321)
    samples[:, :10] = 0x4322
    key = files.chunk(b"tRNS", struct.pack(">H", 0x4321))
    still = open_still(files.png(samples, 16, 0, before=[key]))
    assert (still.getpixel((3, 3)), still.getpixel((15, 3))) == ((67, 67, 67), (255, 255, 255))
    three = files.png(samples.repeat(3, 2), 16, 2, before=[files.chunk(b"tRNS", struct.pack(">3H", *[0x4321] * 3))])
    still = open_still(three)
    assert (still.getpixel((3, 3)), still.getpixel((15, 3))) == ((67, 67, 67), (255, 255, 255))


def test_floats_on_other_scales_and_beyond_white_are_greys_all_the_same() -> None:
    for white, code in ((1.0, {"tones_clipped"}), (255.0, {"tones_clipped"}), (65_535.0, {"tones_clipped"})):
        samples = np.full((32, 32, 1), white / 2)
        samples[0] = white * 1.2
        page = files.Page(samples=samples, depth=32, photometric=1)
        still = decode_still(files.tiff(page))
        assert still.image.getpixel((5, 5)) == pytest.approx((128,) * 3, abs=1)
        assert {note.code for note in still.notes} == code
        samples[0] = white
        assert codes(files.tiff(page)) == set()


@pytest.mark.parametrize("bands", [1, 2, 3, 4])
def test_dark_light_of_sixteen_bits_keeps_its_steps(bands: int) -> None:
    """One level of 8 bits of linear light is thirteen of sRGB: between them nothing may be lost."""
    ramp = np.linspace(0, 1_200, 40).round().astype(int)[None, :, None].repeat(20, 0).repeat(bands, 2)
    if bands in (2, 4):
        ramp[..., -1] = 65_535
    linear = files.chunk(b"gAMA", struct.pack(">I", 100_000))
    shown = open_still(files.png(ramp, 16, {1: 0, 2: 4, 3: 2, 4: 6}[bands], before=[linear]))
    light = ramp[0, :, 0] / 65_535
    by_hand = 255 * np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    assert np.abs(np.asarray(shown)[7, :, 1] - by_hand).max() <= 1


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16, 32])
def test_where_white_is_zero_nothing_is_a_negative(depth: int) -> None:
    samples = np.zeros((32, 32, 1))
    samples[:, 16:] = 1 if depth == 32 else (1 << depth) - 1
    still = open_still(files.tiff(files.Page(samples=samples, depth=depth, photometric=0)))
    assert (still.getpixel((3, 3)), still.getpixel((29, 3))) == ((255,) * 3, (0,) * 3)


# ---------------------------------------------------------------------------------------------- notes


def test_what_was_decided_is_noted() -> None:
    inks = Image.new("CMYK", (32, 32), (0, 200, 200, 20))
    assert codes(files.saved(inks, "JPEG")) == {"profile_assumed", "cmyk_converted"}
    assert codes(files.saved(inks, "JPEG", icc_profile=files.vips_profile("cmyk"))) == {"cmyk_converted"}
    rgb = Image.new("RGB", (32, 32), (10, 200, 90))
    assert codes(files.saved(rgb, "PNG")) == set()
    assert codes(files.saved(rgb, "PNG", icc_profile=files.lcms_srgb())) == set()
    assert codes(files.saved(rgb, "PNG", icc_profile=files.changed_srgb(gamma=1.0))) == {"colours_converted"}
    assert codes(files.saved(rgb, "PNG", icc_profile=b"no profile")) == {"profile_ignored"}
    assert codes(files.saved(rgb, "JPEG", icc_profile=files.vips_profile("cmyk"))) == {"profile_ignored"}
    clear = Image.new("RGBA", (32, 32), (10, 200, 90, 254))
    assert codes(files.saved(clear, "PNG")) == {"alpha_flattened"}
    clear.putalpha(255)
    assert codes(files.saved(clear, "PNG")) == set()


def test_a_profile_of_colours_describes_greys_too() -> None:
    grey = Image.new("L", (32, 32), 100)
    shown = open_still(files.saved(grey, "JPEG", icc_profile=files.changed_srgb(gamma=1.0)))
    assert shown.getpixel((5, 5)) == pytest.approx((168,) * 3, abs=1)  # sRGB's curve of 100/255, by hand


# ---------------------------------------------------------------------------------------------- true reasons


def refusal(data: bytes) -> str:
    with pytest.raises(BadInputError) as caught:
        open_still(data)
    return str(caught.value.problem)


def test_whole_pictures_of_kinds_that_are_not_read_are_not_called_damaged() -> None:
    five = files.Page(samples=np.full((32, 32, 5), 9), depth=8, photometric=5, tags={338: (2,)})
    floats = files.Page(samples=np.full((32, 32, 3), 0.5), depth=32, photometric=2)
    two = files.Page(samples=np.full((32, 32, 2), 9), depth=16, photometric=1, tags={338: (2,)})
    assert "a TIFF of 5 ink samples of 8 bits (whole numbers, raw)" in refusal(files.tiff(five))
    assert "a TIFF of 3 RGB samples of 32 bits (float, raw)" in refusal(files.tiff(floats))
    assert "a TIFF of 2 grey samples of 16 bits" in refusal(files.tiff(two, order=">"))
    counts = struct.pack("<HHI", 279, 4, 1)
    for page in (five, floats, two):
        # The directory is whole, and says that a sample lies behind the file's end.
        cut = bytearray(files.tiff(page))
        place = cut.index(counts) + len(counts)
        cut[place : place + 4] = struct.pack("<I", len(cut))
        assert "truncated" in refusal(bytes(cut))
    jpeg = bytearray(files.saved(Image.new("RGB", (32, 32)), "JPEG"))
    jpeg[jpeg.index(b"\xff\xc0") + 4] = 12
    assert "a JPEG of 12 bits a sample" in refusal(bytes(jpeg))
    # Whole but for its end marker: read. Half of it is not.
    no_end = (STRANGERS / "no_eoi.jpg").read_bytes()
    assert [note.code for note in decode_still(no_end).notes] == ["end_missing"]
    assert "truncated" in refusal(no_end[: len(no_end) // 2])


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isomavc1", "video"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "raw file"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\xff\x0a" + bytes(30), "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"\xff\x4f\xff\x51\0\x29", "JPEG 2000"),
        (b"\x76\x2f\x31\x01\2", "OpenEXR"),
        (b"%PDF-1.7", "PDF"),
        (b"8BPS\0\1", "Photoshop"),
        (b"PK\x03\x04", "ZIP"),
        (b"<!DOCTYPE html><html>", "web page"),
    ],
)
def test_other_files_are_called_what_they_are(data: bytes, what: str) -> None:
    assert what in refusal(data + bytes(64))


def test_a_raw_file_is_not_taken_for_its_preview() -> None:
    preview = files.Page(samples=np.full((32, 32, 1), 9), depth=8, photometric=1, tags={254: (1,), 50706: b"\1\4\0\0"})
    assert "raw file" in refusal(files.tiff(preview))


@pytest.mark.parametrize("transfer", [16, 18])
def test_high_dynamic_range_is_refused_by_name(transfer: int) -> None:
    tag = files.chunk(b"cICP", bytes((9, transfer, 0, 1)))
    assert "high dynamic range" in refusal(files.png(np.full((20, 20, 3), 90), 8, 2, before=[tag]))


def test_long_texts_and_large_profiles_do_not_hide_a_picture() -> None:
    text = files.chunk(b"zTXt", b"history\0\0" + zlib.compress(bytes(40 * 2**20)))
    samples = np.full((20, 20, 3), (10, 20, 30))
    assert open_still(files.png(samples, 8, 2, before=[text])).getpixel((0, 0)) == (10, 20, 30)
    profile = files.iccp(files.changed_srgb(gamma=1.0) + bytes(40 * 2**20))
    still = decode_still(files.png(samples, 8, 2, before=[profile]))
    assert still.image.getpixel((0, 0)) == (10, 20, 30)
    assert [note.code for note in still.notes] == ["profile_ignored"]
