"""A product still: opened safely as upright 8-bit RGB, and brought to a clip's size."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError, features

from pipeline.clip import Fit
from pipeline.problems import BadInputError

#: Largest still that is decoded, in pixels. Larger ones are refused from their header alone.
MAX_STILL_PIXELS = 100_000_000
#: Smallest side of a still, in pixels.
MIN_STILL_SIDE = 16

# Pillow's own guard is process-wide: it refuses above twice this figure and warns above it. Ours is stricter; the
# two are aligned so that a still within our limit never warns.
Image.MAX_IMAGE_PIXELS = MAX_STILL_PIXELS

_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", *(("AVIF",) if features.check("avif") else ()))
_READABLE = "PNG, JPEG, WebP, TIFF, BMP" + (", AVIF" if features.check("avif") else "")
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"II*\0", b"MM\0*", b"BM")
#: What Pillow's decoders raise on damaged data, besides `OSError`.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error)
_BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)

_Array = NDArray[np.float32]


# ---------------------------------------------------------------------------------------------- opening


def open_still(data: bytes) -> Image.Image:
    """The still in `data` as an upright RGB picture of 8 bits a channel in sRGB.

    EXIF rotation is applied, transparency is laid over white, CMYK and wide-gamut pictures are converted by their
    embedded profile, deep greys are scaled. Safe to call from several threads.

    Raises `BadInputError` for field `image` where the data is no still picture that can be used.
    """
    if not data:
        raise BadInputError("image", "the file is empty (0 bytes)", "Upload or export the picture again.")
    _refuse_by_signature(data)
    try:
        opened = Image.open(io.BytesIO(data), formats=_FORMATS)
    except _BOMB:
        raise _too_many_pixels("more than twice the limit") from None
    except UnidentifiedImageError:
        if data.startswith(_MAGIC) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP"[: len(data[8:12])]):
            raise _truncated(data, "its header is cut off or damaged") from None
        raise BadInputError(
            "image", f"the file ({len(data):,} bytes) is not a picture", f"Give a {_READABLE} file."
        ) from None
    except _DAMAGED as error:
        raise _truncated(data, str(error)) from error
    with opened:
        _check_header(opened)
        try:
            _refuse_animation(opened)
            opened.load()
            return _to_srgb(_upright(opened))
        except BadInputError:
            raise
        except _BOMB:
            raise _too_many_pixels("more than twice the limit") from None
        except _DAMAGED as error:
            raise _truncated(data, str(error)) from error


def _refuse_by_signature(data: bytes) -> None:
    head = data[:4096].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith(b"<svg") or (head.startswith((b"<?xml", b"<!--", b"<!doctype")) and b"<svg" in head):
        raise BadInputError(
            "image", "the file is an SVG drawing, not a picture of pixels", "Export it as PNG or JPEG, 1024 px or more."
        )
    if head.startswith(b"%pdf"):
        raise BadInputError("image", "the file is a PDF document", "Export the page as PNG or JPEG.")
    if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1"):
        raise BadInputError("image", "the file is a HEIC photo, which is not read", "Export it as JPEG or PNG.")


def _check_header(opened: Image.Image) -> None:
    width, height = opened.size
    if width * height > MAX_STILL_PIXELS:
        raise _too_many_pixels(f"{width}×{height} pixels")
    if min(width, height) < MIN_STILL_SIDE:
        raise BadInputError(
            "image",
            f"the picture is too small ({width}×{height} pixels)",
            f"Give one of at least {MIN_STILL_SIDE} pixels a side; 512 or more look good.",
        )


def _refuse_animation(opened: Image.Image) -> None:
    frames = getattr(opened, "n_frames", 1)
    # MPO is what many phones and cameras write as .jpg: the further pictures are previews or the other eye.
    if frames <= 1 or opened.format == "MPO":
        return
    if opened.format == "TIFF":
        raise BadInputError("image", f"the TIFF has {frames} pages", "Export one page as its own file.")
    raise BadInputError(
        "image", f"the {opened.format} is animated ({frames} frames)", "Export one frame as PNG or JPEG."
    )


def _too_many_pixels(what: str) -> BadInputError:
    limit = f"the limit is {MAX_STILL_PIXELS // 1_000_000} megapixels"
    return BadInputError("image", f"the picture is too large ({what}; {limit})", "Scale it down, 4096 px are plenty.")


def _truncated(data: bytes, reason: str) -> BadInputError:
    return BadInputError(
        "image",
        f"the picture is truncated or damaged ({len(data):,} bytes: {reason})",
        "Upload or export it again.",
    )


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except _DAMAGED:
        return image  # broken EXIF says nothing about the pixels


def _to_srgb(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    alpha: Image.Image | None = None
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or image.has_transparency_data:
        # A colour key needs the original mode; everything else passes through RGBA.
        whole = image.convert("RGBA")
        alpha = whole.getchannel("A")
        image = image.convert("L") if image.mode in ("L", "LA", "La") else whole.convert("RGB")
    elif image.mode.startswith("I") or image.mode == "F":
        image = _deep_grey(image)
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("RGB")
    rgb = _by_profile(image, profile) if profile else image.convert("RGB")
    flat = Image.new("RGB", rgb.size, "white")
    flat.paste(rgb, mask=alpha)
    return flat


def _deep_grey(image: Image.Image) -> Image.Image:
    """Greys of 16 or 32 bits, or floating, scaled to 8 bits by the range their values need."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    top = values.max(initial=0)
    if image.mode == "F":
        white = next((limit for limit in (1.0, 255.0, 65535.0) if top <= limit), top)
    else:
        white = 65535.0 if top <= 65535 else 2.0**31 - 1
    return Image.fromarray(np.rint(np.clip(values / white, 0, 1) * 255).astype(np.uint8))


def _by_profile(image: Image.Image, profile: bytes) -> Image.Image:
    """Converted from its embedded ICC profile to sRGB; a broken or unfitting profile is ignored."""
    if not features.check("littlecms2"):
        return image.convert("RGB")
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if image.mode == "RGB" and "srgb" in ImageCms.getProfileDescription(source).lower():
            return image
        converted = ImageCms.profileToProfile(
            image,
            source,
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image.convert("RGB")
    return converted if converted is not None else image.convert("RGB")


# ---------------------------------------------------------------------------------------------- borders


@dataclass(frozen=True, kw_only=True)
class Margins:
    """Pixels (or, for `plain_sides`, truth values) at the four sides."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0


def border_colour(image: Image.Image) -> tuple[int, int, int]:
    """The still's own border colour: the median of its outermost pixels, per channel."""
    pixels = np.asarray(image.convert("RGB"))
    rim = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    red, green, blue = (round(float(v)) for v in np.median(rim, axis=0))
    return red, green, blue


def plain_sides(image: Image.Image) -> Margins:
    """Which sides (1 or 0) show nothing but background, so that the picture can be continued there unseen."""
    edges = _edges(np.asarray(image.convert("RGB"), dtype=np.float32))
    left, top, right, bottom = (int(_is_plain(edge, _profile(edge))) for edge in edges)
    return Margins(left=left, top=top, right=right, bottom=bottom)


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
    edges = _edges(pixels)
    profiles = [_profile(edge) for edge in edges]
    strips = [
        _strip(edge, profile, depth)
        for edge, profile, depth in zip(edges, profiles, (left, top, right, bottom), strict=True)
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


def _edges(pixels: _Array) -> list[_Array]:
    """The border colours of the left, top, right and bottom side, each (length, 3), noise averaged inward."""
    depth = max(1, min(4, *(side // 16 for side in pixels.shape[:2])))
    return [
        pixels[:, :depth].mean(axis=1),
        pixels[:depth].mean(axis=0),
        pixels[:, -depth:].mean(axis=1),
        pixels[-depth:].mean(axis=0),
    ]


def _profile(edge: _Array) -> _Array:
    """The background along an edge: a polynomial of degree 5 fitted by iteratively reweighted least squares.

    Weights are Tukey's biweight (Beaton & Tukey, 1974) on the distance from the median first, from the curve after.
    Where less than half of the edge follows the curve there is no background to speak of: the median it is.
    """
    length = len(edge)
    median = np.broadcast_to(np.median(edge, axis=0), edge.shape).astype(np.float32)
    if length < 8:
        return median
    basis = np.polynomial.legendre.legvander(np.linspace(-1, 1, length), 5)
    curve, reach = median, 48.0
    for _ in range(8):
        distance = np.abs(edge - curve).max(axis=1) / reach
        weight = np.where(distance < 1, (1 - distance**2) ** 2, 0.0)
        if np.count_nonzero(weight) < length / 2:
            return median
        root = np.sqrt(weight)[:, None]
        curve = (basis @ np.linalg.lstsq(basis * root, edge * root, rcond=None)[0]).astype(np.float32)
        reach = max(20.0, reach * 0.75)
    # A polynomial may swing wide where a product hides the background: stay within the colours that are there.
    inside = np.abs(edge - curve).max(axis=1) < reach
    if np.count_nonzero(inside) < length / 2:
        return median
    bounded: _Array = np.clip(curve, edge[inside].min(axis=0), edge[inside].max(axis=0))
    return bounded


def _is_plain(edge: _Array, profile: _Array) -> bool:
    return bool(np.mean(np.abs(edge - profile).max(axis=1) <= 8) >= 0.98)


def _strip(edge: _Array, profile: _Array, depth: int) -> _Array:
    """(depth, length, 3): the continuation of one side, nearest row first.

    What little the curve misses of the background fades out over the first rows; larger misses belong to the
    product and are dropped.
    """
    miss = edge - profile
    small: _Array = miss * np.exp(-((np.abs(miss).max(axis=1, keepdims=True) / 24) ** 2))
    fade = np.exp(-np.arange(depth, dtype=np.float32) / max(4.0, len(edge) / 12))
    strip: _Array = (profile[None] + small[None] * fade[:, None, None]).astype(np.float32)
    return strip


def _corner(beside: _Array, above: _Array) -> _Array:
    """(rows, columns, 3): between the end of a vertical side (columns, 3) and of a horizontal one (rows, 3).

    Each reaches its neighbour unchanged and they are mixed by direction in between.
    """
    across = np.arange(1, len(beside) + 1, dtype=np.float32)[None, :, None]
    down = np.arange(1, len(above) + 1, dtype=np.float32)[:, None, None]
    share: _Array = across / (across + down)
    mixed: _Array = (share * beside[None] + (1 - share) * above[:, None]).astype(np.float32)
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
