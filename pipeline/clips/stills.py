"""A product still: opened safely as upright 8-bit RGB, and brought to a clip's size."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError, features

from pipeline.clips.clip import Fit
from pipeline.clips.colour import BROKEN_METADATA, descriptions, to_srgb
from pipeline.clips.containers import MAX_PROFILE_BYTES, PNG_SIGNATURE, png_facts, png_without_texts
from pipeline.clips.inspection.background import Pixels, background_of
from pipeline.clips.jpeg_end import with_end
from pipeline.clips.refusals import (
    MAX_STILL_PIXELS,
    check_size,
    refuse_by_signature,
    refuse_raw,
    too_many_pixels,
    unreadable,
)
from pipeline.clips.samples import samples_of
from pipeline.clips.still_notes import StillNoteCode
from pipeline.notes import Note
from pipeline.problems import BadInputError

# Pillow's own guard is process-wide: it refuses above twice this figure and warns above it. Ours is stricter; the
# two are aligned so that a still within our limit never warns.
Image.MAX_IMAGE_PIXELS = MAX_STILL_PIXELS
# So is its limit for texts and profiles in PNGs, one megabyte: editors write longer histories, and printers' profiles
# are longer.
PngImagePlugin.MAX_TEXT_CHUNK = MAX_PROFILE_BYTES

_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", *(("AVIF",) if features.check("avif") else ()))
#: What Pillow's decoders raise on damaged data, besides `OSError`.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error)
_BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
#: Orientations that exchange width and height.
_ON_ITS_SIDE = frozenset((5, 6, 7, 8))
#: Side in pixels of the part whose colours stand for all where a still is only checked.
_PROBE_SIDE = 64
#: Bits of TIFF's tag NewSubfileType: a smaller copy, a mask.
_SUBFILE_TYPE, _NO_PAGE = 254, 1 | 4
#: Pages of a TIFF that are looked at.
_MOST_PAGES = 1_000

_Found = TypeVar("_Found")


# ---------------------------------------------------------------------------------------------- opening


@dataclass(frozen=True, kw_only=True)
class DecodedStill:
    """A still as the renderer sees it, and what was decided on the way."""

    #: Upright RGB of 8 bits a channel in sRGB.
    image: Image.Image
    notes: tuple[Note, ...] = ()


def open_still(data: bytes) -> Image.Image:
    """The still in `data` as an upright RGB picture of 8 bits a channel in sRGB: `decode_still` without its notes.

    Raises `BadInputError` for field `image` where the data is no still picture that can be used.
    """
    return decode_still(data).image


def decode_still(data: bytes) -> DecodedStill:
    """The still in `data`, and notes of what was decided for it.

    The orientation that EXIF, XMP or the container gives is applied, transparency is laid over white, colours are
    converted as `pipeline.clips.colour` says, deeper samples are scaled. Of pages and frames the first whole one, or
    the one that the file declares as its primary, is taken. Safe to call from several threads.

    Raises `BadInputError` for field `image` where the data is no still picture that can be used.
    """
    noted: list[Note] = []
    still = _read(data, _decoded, noted)
    return replace(still, notes=(*noted, *still.notes)) if noted else still


@dataclass(frozen=True, kw_only=True)
class DeclaredSize:
    """How large a still says that it is, as it lies in its file: known before anything is decoded."""

    width: int
    height: int


def declared_size(data: bytes) -> DeclaredSize:
    """What the header of the page or frame that `decode_still` takes says of its size.

    Raises `BadInputError` for field `image` where `decode_still` would refuse it for that.
    """

    def of_header(data: bytes, original: bytes) -> DeclaredSize:
        with _opened(data, None) as opened:
            return DeclaredSize(width=opened.width, height=opened.height)

    return _read(data, of_header)


def still_size(data: bytes) -> tuple[int, int]:
    """(width, height) in pixels of the still in `data`, upright, without what `decode_still` does beyond decoding.

    All samples are decoded, so what is missing or damaged is found; of what follows, colours and transparency, a small
    part of them goes through it. So it takes the memory of one picture instead of several.

    Raises `BadInputError` for field `image` where `decode_still` does.
    """

    def of_samples(data: bytes, original: bytes) -> tuple[int, int]:
        with _opened(data, None) as opened:
            png = png_facts(original) if opened.format == "PNG" else None
            opened.load()
            part = opened.crop((0, 0, min(_PROBE_SIDE, opened.width), min(_PROBE_SIDE, opened.height)))
            samples = samples_of(part, data, png, [])
            to_srgb(samples.colour, descriptions(opened, data, png), lambda: None, [])
            turned = opened.format != "TIFF" and _orientation(opened) in _ON_ITS_SIDE
            return opened.size[::-1] if turned else opened.size

    return _read(data, of_samples)


def _read(data: bytes, reader: Callable[[bytes, bytes], _Found], notes: list[Note] | None = None) -> _Found:
    """What `reader` finds in `data`; it is given the file to decode, and the one that says what its colours mean.

    A JPEG that lacks its end marker and nothing else is read with one; `notes`, where given, tells.

    Raises `BadInputError` for whatever `reader` raises of a picture that cannot be used.
    """
    if not data:
        raise BadInputError("image", "the file is empty (0 bytes)", "Upload or export the picture again.")
    refuse_by_signature(data)
    try:
        try:
            return reader(data, data)
        except ValueError as error:
            # Texts of a PNG count for nothing here, and Pillow refuses whole pictures for their length.
            if isinstance(error, BadInputError) or not data.startswith(PNG_SIGNATURE) or "too large" not in str(error):
                raise
            return reader(png_without_texts(data), data)
    except BadInputError:
        raise
    except _BOMB:
        raise too_many_pixels("more than twice the limit") from None
    except UnidentifiedImageError:
        raise unreadable(data, "its header is cut off or damaged") from None
    except _DAMAGED as error:
        ended = with_end(data) if "truncated" in str(error) else None
        if ended is None:
            raise unreadable(data, str(error)) from error
    if notes is not None:
        text = "the file lacks its end marker; the picture in it is whole"
        notes.append(Note(code=StillNoteCode.END_MISSING, message=text))
    return _read(ended, reader)


@contextmanager
def _opened(data: bytes, notes: list[Note] | None) -> Iterator[Image.Image]:
    """The page or frame of `data` that is the still, not loaded yet; its size is one that is read."""
    with Image.open(io.BytesIO(data), formats=_FORMATS) as opened:
        check_size(opened.size)
        refuse_raw(opened)
        _choose_page(opened, notes)
        check_size(opened.size)
        yield opened


def _decoded(data: bytes, original: bytes) -> DecodedStill:
    """The still in `data`; `original`: the file that it was made of, which says what its colours mean."""
    notes: list[Note] = []
    with _opened(data, notes) as opened:
        png = png_facts(original) if opened.format == "PNG" else None
        opened.load()
        # Only now: metadata may stand behind the pixels. A TIFF's orientation is applied by Pillow as it loads.
        orientation = 1 if opened.format == "TIFF" else _orientation(opened)
        samples = samples_of(opened, data, png, notes)
        rgb = to_srgb(samples.colour, descriptions(opened, data, png), samples.deep, notes)
        if samples.alpha is not None:
            flat = Image.new("RGB", rgb.size, "white")
            flat.paste(rgb, mask=samples.alpha)
            rgb = flat
            notes.append(Note(code=StillNoteCode.ALPHA_FLATTENED, message="transparent parts are shown white"))
        turn = _UPRIGHT.get(orientation)
        if turn is not None:
            rgb = rgb.transpose(turn)
        elif rgb is opened:
            rgb = rgb.copy()  # what was opened is closed here
        rgb.info = {}  # the file's metadata are no longer true of these pixels
        return DecodedStill(image=rgb, notes=tuple(notes))


def _choose_page(opened: Image.Image, notes: list[Note] | None) -> None:
    """Seek the first page that is no thumbnail and no mask; a note where there are more, or an animation."""
    # MPO is what many phones and cameras write as .jpg: the further pictures are previews or the other eye.
    if opened.format == "MPO" or (notes is None and opened.format != "TIFF"):
        return  # frames of animations are counted for the note alone
    if opened.format == "TIFF":
        _choose_tiff_page(opened, notes)
        return
    assert notes is not None
    try:
        frames = int(getattr(opened, "n_frames", 1))
    except _DAMAGED:
        return  # the first one may still be whole
    if frames > 1:
        text = f"the first of {frames} frames of an animated {opened.format} is shown"
        notes.append(Note(code=StillNoteCode.FIRST_FRAME, message=text))


def _choose_tiff_page(opened: Image.Image, notes: list[Note] | None) -> None:
    # Page by page: to count all of them takes time that grows with the square of their number.
    pages = []
    for number in range(_MOST_PAGES):
        try:
            opened.seek(number)
        except EOFError:
            break
        except _DAMAGED:
            continue  # a page of a kind that is not read
        if not int(getattr(opened, "tag_v2", {}).get(_SUBFILE_TYPE, 0)) & _NO_PAGE:
            pages.append(number)
    else:
        number += 1
    opened.seek(pages[0] if pages else 0)
    if notes is not None and len(pages) > 1:
        count = f"{_MOST_PAGES:,} pages or more" if number == _MOST_PAGES else f"{len(pages)} pages"
        notes.append(Note(code=StillNoteCode.FIRST_PAGE, message=f"the first of {count} is shown"))


def _orientation(image: Image.Image) -> int:
    """1 to 8 (EXIF 2.32, tag 0x112), from EXIF, else from XMP; what is broken around it does not matter."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except BROKEN_METADATA:
        return 1


# ---------------------------------------------------------------------------------------------- borders


@dataclass(frozen=True, kw_only=True)
class Margins:
    """Pixels (or, for `plain_sides`, truth values) at the four sides."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0


def plain_sides(image: Image.Image) -> Margins:
    """Which sides (1 or 0) show nothing but background, so that the picture can be continued there unseen."""
    left, top, right, bottom = background_of(np.asarray(image.convert("RGB"), dtype=np.float32)).plain
    return Margins(left=int(left), top=int(top), right=int(right), bottom=int(bottom))


def extend(image: Image.Image, margins: Margins) -> Image.Image:
    """`image` (RGB) with its background continued outward by `margins` pixels.

    Each side continues as a smooth curve through its own border colours that ignores whatever else touches the
    border, so a gradient or a vignette goes on without a seam and a product at the edge leaves no streaks.
    """
    left, top, right, bottom = margins.left, margins.top, margins.right, margins.bottom
    if not any((left, top, right, bottom)):
        return image
    pixels = np.asarray(image, dtype=np.float32)
    height, width = pixels.shape[:2]
    out = np.empty((height + top + bottom, width + left + right, 3), dtype=np.float32)
    out[top : top + height, left : left + width] = pixels
    background = background_of(pixels)
    strips = [
        _strip(edge, profile, depth)
        for edge, profile, depth in zip(background.edges, background.curves, (left, top, right, bottom), strict=True)
    ]
    rows, columns = slice(top, top + height), slice(left, left + width)
    out[rows, :left] = strips[0].swapaxes(0, 1)[:, ::-1]
    out[:top, columns] = strips[1][::-1]
    out[rows, left + width :] = strips[2].swapaxes(0, 1)
    out[top + height :, columns] = strips[3]
    out[:top, :left] = _corner(strips[0][:, 0], strips[1][:, 0])[::-1, ::-1]
    out[:top, left + width :] = _corner(strips[2][:, 0], strips[1][:, -1])[::-1]
    out[top + height :, :left] = _corner(strips[0][:, -1], strips[3][:, 0])[:, ::-1]
    out[top + height :, left + width :] = _corner(strips[2][:, -1], strips[3][:, -1])
    return Image.fromarray(np.rint(np.clip(out, 0, 255)).astype(np.uint8))


def _strip(edge: Pixels, profile: Pixels, depth: int) -> Pixels:
    """(depth, length, 3): the continuation of one side, nearest row first.

    What little the curve misses of the background fades out over the first rows; larger misses belong to the
    product and are dropped.
    """
    miss = edge - profile
    small: Pixels = miss * np.exp(-((np.abs(miss).max(axis=1, keepdims=True) / 24) ** 2))
    fade = np.exp(-np.arange(depth, dtype=np.float32) / max(4.0, len(edge) / 12))
    strip: Pixels = (profile[None] + small[None] * fade[:, None, None]).astype(np.float32)
    return strip


def _corner(beside: Pixels, above: Pixels) -> Pixels:
    """(rows, columns, 3): between the end of a vertical side (columns, 3) and of a horizontal one (rows, 3).

    Each reaches its neighbour unchanged and they are mixed by direction in between.
    """
    across = np.arange(1, len(beside) + 1, dtype=np.float32)[None, :, None]
    down = np.arange(1, len(above) + 1, dtype=np.float32)[:, None, None]
    share: Pixels = across / (across + down)
    mixed: Pixels = (share * beside[None] + (1 - share) * above[:, None]).astype(np.float32)
    return mixed


# ---------------------------------------------------------------------------------------------- fitting


def resize(
    image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float] | None = None
) -> Image.Image:
    """`box` of `image` (default: all of it) at `size`, by Lanczos with antialiasing."""
    # A box-filter reduction first makes huge stills cheap; at 3 its error cannot be seen.
    return image.resize(size, Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)


def fit_still(image: Image.Image, size: tuple[int, int], fit: Fit) -> Image.Image:
    """`image` (RGB) as a picture of exactly `size` (width, height) pixels.

    `Fit.CONTAIN` keeps the whole picture, centred, and continues its background around it (`extend`);
    `Fit.COVER` crops to the centre; `Fit.STRETCH` distorts.
    """
    width, height = size
    if fit is Fit.STRETCH:
        return resize(image, size)
    if fit is Fit.COVER:
        scale = max(width / image.width, height / image.height)
        crop_w, crop_h = min(image.width, width / scale), min(image.height, height / scale)
        x, y = (image.width - crop_w) / 2, (image.height - crop_h) / 2
        return resize(image, size, (x, y, x + crop_w, y + crop_h))
    scale = min(width / image.width, height / image.height)
    inner_w = min(width, max(1, round(image.width * scale)))
    inner_h = min(height, max(1, round(image.height * scale)))
    left, top = (width - inner_w) // 2, (height - inner_h) // 2
    margins = Margins(left=left, top=top, right=width - inner_w - left, bottom=height - inner_h - top)
    return extend(resize(image, (inner_w, inner_h)), margins)
