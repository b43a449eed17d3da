import contextlib
import io
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, features

from pipeline.clips.clip import Fit
from pipeline.clips.stills import (
    MAX_STILL_PIXELS,
    Margins,
    decode_still,
    extend,
    fit_still,
    open_still,
    plain_sides,
    still_size,
)
from pipeline.problems import BadInputError


def saved(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format=format, **options)
    return out.getvalue()


def noise(width: int = 64, height: int = 48, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(7)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode)


def refusal(data: bytes) -> str:
    with pytest.raises(BadInputError) as caught:
        open_still(data)
    assert caught.value.problem.field == "image"
    assert caught.value.problem.remedy
    return str(caught.value.problem)


# ------------------------------------------------------------------------------------------------ opening


@pytest.mark.parametrize(("format", "mode"), [("PNG", "RGB"), ("BMP", "RGB"), ("TIFF", "RGB"), ("WEBP", "RGB")])
def test_lossless_formats_come_back_exactly(format: str, mode: str) -> None:
    picture = noise(mode=mode)
    options = {"lossless": True} if format == "WEBP" else {}
    np.testing.assert_array_equal(open_still(saved(picture, format, **options)), picture)


@pytest.mark.parametrize("format", ["JPEG", "AVIF"])
def test_lossy_formats_come_back_closely(format: str) -> None:
    if format == "AVIF" and not features.check("avif"):
        pytest.skip("no AVIF here")
    smooth = Image.linear_gradient("L").convert("RGB")
    opened = open_still(saved(smooth, format, quality=90))
    assert opened.mode == "RGB"
    assert np.abs(np.asarray(opened, int) - np.asarray(smooth, int)).mean() < 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation: int) -> None:
    # A red corner, stored as each orientation stores an upright picture whose top left is red.
    upright = Image.new("RGB", (64, 32), "white")
    upright.paste("red", (0, 0, 16, 16))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    opened = open_still(saved(stored, "JPEG", quality=95, exif=exif))
    assert opened.size == (64, 32)
    red, green, _ = opened.getpixel((6, 6))
    assert red > 200
    assert green < 60
    assert min(opened.getpixel((57, 25))) > 200


def test_transparency_is_laid_over_white_in_every_mode() -> None:
    rgba = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    rgba.paste((200, 0, 0, 255), (0, 0, 16, 32))
    rgba.putpixel((20, 20), (0, 0, 0, 128))
    opened = open_still(saved(rgba))
    assert opened.getpixel((4, 4)) == (200, 0, 0)
    assert opened.getpixel((30, 4)) == (255, 255, 255)
    assert opened.getpixel((20, 20)) == pytest.approx((127, 127, 127), abs=1)

    la = Image.merge("LA", (Image.new("L", (32, 32), 40), Image.new("L", (32, 32), 0)))
    assert open_still(saved(la)).getpixel((4, 4)) == (255, 255, 255)

    palette = Image.new("P", (32, 32), 0)
    palette.putpalette([10, 20, 30, 0, 200, 0])
    palette.paste(1, (0, 0, 16, 32))
    opened = open_still(saved(palette, transparency=0))
    assert opened.getpixel((4, 4)) == (0, 200, 0)
    assert opened.getpixel((30, 4)) == (255, 255, 255)

    opened = open_still(saved(Image.new("RGB", (32, 32), (1, 2, 3)), transparency=(1, 2, 3)))
    assert opened.getpixel((4, 4)) == (255, 255, 255)


def test_sixteen_bit_greys_are_scaled_not_cut() -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(32, 0)
    expected = np.linspace(0, 255, 64)
    for data in (saved(Image.fromarray(ramp)), saved(Image.fromarray(ramp.astype(np.int32)), "TIFF")):
        opened = np.asarray(open_still(data))
        assert np.abs(opened[5, :, 1] - expected).max() <= 1


def test_one_bit_grey_palette_and_cmyk_become_rgb() -> None:
    checker = Image.fromarray(((np.indices((32, 32)).sum(0) // 8 % 2) * 255).astype(np.uint8))
    for picture in (checker, checker.convert("1"), checker.convert("P")):
        np.testing.assert_array_equal(np.asarray(open_still(saved(picture)))[..., 0], np.asarray(checker))
    cyan = Image.new("CMYK", (32, 32), (255, 0, 0, 0))
    red, green, blue = open_still(saved(cyan, "TIFF")).getpixel((5, 5))
    assert red < 60
    assert green > 150
    assert blue > 200


def test_embedded_profiles_are_converted_and_broken_ones_ignored() -> None:
    # A profile with another white and gamma than sRGB must change the pixels the way LittleCMS says.
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    picture = Image.new("RGB", (32, 32), (200, 100, 50))
    # LAB describes no RGB picture: unfitting, thus ignored.
    assert open_still(saved(picture, icc_profile=lab.tobytes())).getpixel((3, 3)) == (200, 100, 50)
    assert open_still(saved(picture, icc_profile=b"not a profile")).getpixel((3, 3)) == (200, 100, 50)
    swapped = open_still(saved(picture, icc_profile=swapped_primaries()))
    red, green, _ = swapped.getpixel((3, 3))
    assert green > red  # red and green primaries change places in this profile


def swapped_primaries() -> bytes:
    """sRGB with the colorants of red and green exchanged and its description renamed."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack(">I", profile[128:132])[0]
    where = {bytes(profile[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    red, green = where[b"rXYZ"], where[b"gXYZ"]
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    return (
        bytes(profile).replace("sRGB".encode("utf-16-be"), "test".encode("utf-16-be")).replace(b"sRGB bu", b"test bu")
    )


def test_refusals_say_which_and_what_to_do() -> None:
    texts = {
        "empty": refusal(b""),
        "nonsense": refusal(b"hello, this is a text file " * 10),
        "svg": refusal(b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg" width="10"/>'),
        "pdf": refusal(b"%PDF-1.7 ..."),
        "heic": refusal(b"\0\0\0\x18ftypheic" + bytes(40)),
        "small": refusal(saved(noise(15, 400))),
        "truncated": refusal(saved(noise())[:-3000]),
    }
    assert "0 bytes" in texts["empty"]
    assert "not a picture" in texts["nonsense"]
    assert "PNG or JPEG" in texts["svg"]
    assert "15×400" in texts["small"]
    assert len(set(texts.values())) == len(texts)


def test_a_single_frame_gif_is_a_still() -> None:
    assert open_still(saved(noise().convert("P"), "GIF")).size == (64, 48)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"])
def test_any_cut_ends_in_a_refusal_never_in_another_error(format: str) -> None:
    data = saved(noise(96, 96), format)
    for share in (0.01, 0.1, 0.5, 0.9):
        assert "truncated" in refusal(data[: max(4, int(len(data) * share))]) or format in ("GIF",)


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_bytes_never_raise_anything_else(data: st.DataObject) -> None:
    format = data.draw(st.sampled_from(["PNG", "JPEG", "WEBP", "TIFF", "GIF"]))
    raw = bytearray(saved(noise(20, 20), format))
    for place in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=8)):
        raw[place] = data.draw(st.integers(0, 255))
    with contextlib.suppress(BadInputError):
        assert open_still(bytes(raw)).mode == "RGB"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bombs_are_refused_from_their_header() -> None:
    def png(width: int, height: int) -> bytes:
        def chunk(kind: bytes, body: bytes) -> bytes:
            return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")

    assert "too large" in refusal(png(50_000, 50_000))
    side = int(MAX_STILL_PIXELS**0.5)
    assert "too large" in refusal(png(side, side + 1))
    # Exactly at the limit the header passes and the (missing) pixels are what is wrong.
    assert "truncated" in refusal(png(side, side))


def test_threads_open_stills_side_by_side() -> None:
    pictures = [saved(noise(), "PNG"), saved(noise(mode="L"), "JPEG"), saved(noise(mode="CMYK"), "TIFF"), b"x" * 90]
    barrier = threading.Barrier(4)

    def work(data: bytes) -> str:
        barrier.wait(10)
        try:
            return str(np.asarray(open_still(data)).sum())
        except BadInputError as error:
            return str(error)

    with ThreadPoolExecutor(4) as pool:
        rounds = [list(pool.map(work, pictures)) for _ in range(5)]
    assert all(r == rounds[0] for r in rounds)


# ------------------------------------------------------------------------------------------------ fitting


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(8, 120), st.integers(8, 120), st.sampled_from(list(Fit)))
def test_every_fit_gives_exactly_the_size(width: int, height: int, to_w: int, to_h: int, fit: Fit) -> None:
    fitted = fit_still(Image.new("RGB", (width, height), (12, 200, 99)), (to_w, to_h), fit)
    assert fitted.size == (to_w, to_h)
    # One colour stays one colour: no fill, seam or resampling adds another.
    assert np.abs(np.asarray(fitted, int) - (12, 200, 99)).max() <= 1


def test_contain_keeps_all_and_centres_cover_cuts_stretch_distorts() -> None:
    still = Image.new("RGB", (200, 100), "white")
    still.paste("black", (50, 10, 150, 90))
    dark = {fit: np.asarray(fit_still(still, (128, 128), fit).convert("L")) < 128 for fit in Fit}
    rows, columns = np.nonzero(dark[Fit.CONTAIN])
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == pytest.approx((38, 89, 32, 95), abs=1)
    rows, columns = np.nonzero(dark[Fit.COVER])
    assert columns.max() - columns.min() == 127
    assert rows.max() - rows.min() == pytest.approx(102, abs=1)
    rows, columns = np.nonzero(dark[Fit.STRETCH])
    assert columns.max() - columns.min() == pytest.approx(63, abs=1)
    assert rows.max() - rows.min() == pytest.approx(102, abs=1)


def test_padding_continues_a_gradient_without_a_seam() -> None:
    y, x = np.mgrid[0:120, 0:120] / 119
    shade = 235 - 60 * y**2 - 20 * (x - 0.5) ** 2
    still = Image.fromarray(shade.round().astype(np.uint8)).convert("RGB")
    fitted = np.asarray(fit_still(still, (240, 120), Fit.CONTAIN), int)[..., 0]
    seam = np.abs(np.diff(fitted, axis=1))[:, [59, 179]]
    assert seam.max() <= 3
    # And each row keeps its own shade far out, rather than one flat colour.
    assert np.abs(fitted[:, 2] - shade[:, 0]).max() <= 4


def test_a_product_at_the_edge_leaves_no_streak() -> None:
    still = Image.new("RGB", (100, 100), (240, 240, 240))
    still.paste((10, 10, 10), (0, 60, 100, 80))
    fitted = np.asarray(fit_still(still, (200, 100), Fit.CONTAIN), int)
    assert fitted[:, :50].min() >= 235
    assert fitted[:, 150:].min() >= 235


def test_plain_sides_names_the_sides_without_product() -> None:
    still = Image.new("RGB", (100, 80), (250, 240, 230))
    still.paste((0, 0, 0), (40, 30, 100, 50))
    assert plain_sides(still) == Margins(left=1, top=1, right=0, bottom=1)


def test_extend_keeps_the_picture_inside_untouched() -> None:
    picture = noise(40, 30)
    grown = extend(picture, Margins(left=5, top=6, right=7, bottom=8))
    assert grown.size == (52, 44)
    np.testing.assert_array_equal(np.asarray(grown)[6:36, 5:45], np.asarray(picture))


# ------------------------------------------------------------------------------------------------ a missing end


@pytest.mark.parametrize("content", ["noise", "white"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"progressive": True},
        {"restart_marker_rows": 1},
        {"restart_marker_blocks": 1},
        {"optimize": True, "subsampling": 0},
    ],
)
def test_a_jpeg_that_lacks_its_end_marker_alone_is_read_and_half_a_picture_is_not(
    content: str, options: dict[str, object]
) -> None:
    picture = noise(100, 75) if content == "noise" else Image.new("RGB", (100, 75), "white")
    data = saved(picture, "JPEG", **options)
    whole = decode_still(data)
    assert [note.code for note in whole.notes] == []
    for missing in (1, 2):
        still = decode_still(data[:-missing])
        assert [note.code for note in still.notes] == ["end_missing"]
        np.testing.assert_array_equal(still.image, whole.image)
        assert still_size(data[:-missing]) == (100, 75)
    for missing in (*range(3, 40), len(data) // 3, len(data) // 2):
        # What is read is the picture; what is not is refused.
        with contextlib.suppress(BadInputError):
            np.testing.assert_array_equal(decode_still(data[:-missing]).image, whole.image)
    assert "truncated" in refusal(data[: len(data) // 2])


def test_a_jpeg_without_its_last_scans_is_no_whole_picture() -> None:
    """They add the finest bits: what is there decodes to the same blurred picture, whatever follows."""
    data = saved(noise(100, 75), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    assert "truncated" in refusal(data[:last])
