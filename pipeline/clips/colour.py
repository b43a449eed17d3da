"""Colours of a still as its file means them, converted to sRGB by LittleCMS.

Which of several descriptions counts: PNG: cICP, then iCCP, then sRGB, then gAMA with cHRM (third edition, 4.3). AVIF:
the ICC profile, then nclx. Other files: the ICC profile, then EXIF (DCF 2.0: Adobe RGB is said by `R03`). Without any:
sRGB, for that is what the web shows. A description that is damaged, or of another kind of picture, gives way to the
next. Conversion is relative colorimetric with black point compensation: colours that a screen has stay what they are,
white stays white, and the darkest ink becomes black.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, features

from pipeline.clips import icc
from pipeline.clips.containers import PngFacts, bmp_profile, nclx
from pipeline.clips.still_notes import StillNoteCode
from pipeline.notes import Note
from pipeline.problems import BadInputError

#: What broken metadata of strangers makes Pillow raise.
BROKEN_METADATA = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, AttributeError,
                   struct.error, ArithmeticError, RecursionError)  # fmt: skip
_UNFIT = (ImageCms.PyCMSError, OSError, ValueError, TypeError)
#: Pixels of a deep picture that are converted at a time.
_STRIP_PIXELS = 2**20
#: sRGB's own gAMA and cHRM for readers that do not know the chunk (PNG, 11.3.2.5): where they stand alone, it was lost.
_SRGB_GAMMA = 0.45455
_SRGB_CHROMATICITIES = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
_KINDS = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab ": "LAB"}

Deep = NDArray[np.uint16]


@dataclass(frozen=True, kw_only=True)
class Description:
    """One thing by which a file describes its colours."""

    #: In words, such as "the ICC profile".
    name: str
    #: An ICC profile; None: sRGB.
    profile: bytes | None


# ---------------------------------------------------------------------------------------------- what the file says


def descriptions(image: Image.Image, data: bytes, png: PngFacts | None) -> Iterator[Description]:
    """How the file describes its colours, what counts most first.

    Raises `BadInputError` where it needs a screen of high dynamic range.
    """
    if png is not None:
        yield from _of_png(png)
        return
    profile = image.info.get("icc_profile") or (bmp_profile(data) if image.format == "BMP" else None)
    if profile:
        yield Description(name="the ICC profile", profile=profile)
    if image.format == "AVIF" and (code_points := nclx(data)):
        yield _of_code_points("nclx", *code_points)
    elif image.format in ("JPEG", "MPO", "TIFF", "WEBP") and _exif_says_adobe_rgb(image):
        yield Description(name="EXIF (Adobe RGB)", profile=icc.profile_of(icc.ADOBE_RGB))


def _of_png(png: PngFacts) -> Iterator[Description]:
    if png.cicp:
        yield _of_code_points("the cICP chunk", *png.cicp[:2])
    if png.profile is not None:
        yield Description(name="the ICC profile", profile=png.profile)
    if png.is_srgb:
        yield Description(name="the sRGB chunk", profile=None)
    elif png.gamma:
        # Chromaticities alone say nothing of the curve and are left out, as browsers do.
        where = png.chromaticities or _SRGB_CHROMATICITIES
        if abs(png.gamma - _SRGB_GAMMA) < 0.001 and np.allclose(where, _SRGB_CHROMATICITIES, atol=0.002):
            yield Description(name="gAMA and cHRM", profile=None)
            return
        white, red, green, blue = ((where[i], where[i + 1]) for i in range(0, 8, 2))
        curve = icc.Curve(gamma=1 / png.gamma)
        try:
            profile = icc.profile_of(icc.RgbSpace(white=white, red=red, green=green, blue=blue, curve=curve))
        except (*BROKEN_METADATA, np.linalg.LinAlgError):
            profile = b""
        yield Description(name="gAMA and cHRM", profile=profile)


def _of_code_points(name: str, primaries: int, transfer: int) -> Description:
    if transfer in icc.HIGH_DYNAMIC_RANGE:
        raise BadInputError(
            "image",
            f"the picture is of high dynamic range ({icc.HIGH_DYNAMIC_RANGE[transfer]}), which a clip cannot show",
            "Export it for standard screens: sRGB, 8 bits.",
        )
    space = icc.space_of_code_points(primaries, transfer)
    return Description(name=name, profile=None if space == icc.SRGB else icc.profile_of(space))


def _exif_says_adobe_rgb(image: Image.Image) -> bool:
    try:
        exif = image.getexif()
        space = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.ColorSpace)
        index = str(exif.get_ifd(ExifTags.IFD.Interop).get(1, "")).strip("\0 ")
    except BROKEN_METADATA:
        return False
    return space == 2 or (space != 1 and index == "R03")  # 2 is older than DCF 2.0, and Adobe's alone


# ---------------------------------------------------------------------------------------------- conversion


def to_srgb(
    image: Image.Image, described: Iterator[Description], deep: Callable[[], Deep | None], notes: list[Note]
) -> Image.Image:
    """`image` (L, RGB, CMYK or LAB) as RGB of 8 bits in sRGB, by the first of `described` that fits it; maybe itself.

    `deep` gives its samples at 16 bits where the file has them, (height, width) or (height, width, 3): they count where
    a conversion spreads the dark ones. What was decided is added to `notes`.
    """
    for description in described:
        if description.profile is None:
            if image.mode in ("L", "RGB"):
                return _as_rgb(image)
            continue
        converted = _by_profile(image, description.profile, deep)
        if converted is not None:
            _note_conversion(image, converted, description.name, notes)
            return converted
        text = f"{description.name} is damaged or of another kind of picture, and is left out"
        notes.append(Note(code=StillNoteCode.PROFILE_IGNORED, message=text))
    if image.mode == "CMYK":
        text = "CMYK inks without a profile: taken as pure cyan, magenta, yellow and black"
        notes.append(Note(code=StillNoteCode.PROFILE_ASSUMED, message=text))
        notes.append(Note(code=StillNoteCode.CMYK_CONVERTED, message="CMYK inks are converted to sRGB"))
    if image.mode == "LAB":
        converted = _by_profile(image, ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(), deep)
        if converted is not None:
            _note_conversion(image, converted, "CIE L*a*b* of D50", notes)
            return converted
        raise BadInputError("image", "the picture is in CIE L*a*b*, which is not read here", "Export it as sRGB.")
    return _as_rgb(image)


def _as_rgb(image: Image.Image) -> Image.Image:
    # `convert` would copy: of a large picture that is half of all memory.
    return image if image.mode == "RGB" else image.convert("RGB")


def _note_conversion(image: Image.Image, converted: Image.Image, name: str, notes: list[Note]) -> None:
    if image.mode == "CMYK":
        text = f"CMYK inks are converted to sRGB by {name}"
        notes.append(Note(code=StillNoteCode.CMYK_CONVERTED, message=text))
    elif converted is not image:
        text = f"colours are converted to sRGB by {name}"
        notes.append(Note(code=StillNoteCode.COLOURS_CONVERTED, message=text))


def _by_profile(image: Image.Image, profile: bytes, deep: Callable[[], Deep | None]) -> Image.Image | None:
    """`image` itself where the profile is sRGB in all but name; None where it is broken or of another kind."""
    if not features.check("littlecms2"):
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        kind = _KINDS.get(source.profile.xcolor_space)
        if image.mode == "L" and kind == "RGB":
            image = image.convert("RGB")  # greys as equal red, green and blue of that space
        if kind != image.mode:
            return None
        # LittleCMS would convert Lab through a table of 33³ colours: 35 levels off where colours leave sRGB.
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            image.mode,
            "RGB",
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION | (ImageCms.Flags.NOOPTIMIZE if image.mode == "LAB" else 0),
        )
        if image.mode == "RGB" and _changes_nothing(transform):
            return image
        samples = deep() if image.mode in ("L", "RGB") else None
        if samples is None:
            return ImageCms.applyTransform(image, transform)
        return Image.fromarray(
            _greys(samples, transform, image.mode) if samples.ndim == 2 else _tetrahedral(samples, transform)
        )
    except _UNFIT:
        return None


def _changes_nothing(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether 9³ colours all over the space, and all greys, come out within one level: profiles are judged by this,
    never by their names."""
    levels = np.linspace(0, 255, 9).round()
    grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, 3)
    probe = np.concatenate([grid, np.arange(256)[:, None].repeat(3, 1)]).astype(np.uint8)[None]
    shown = np.asarray(ImageCms.applyTransform(Image.fromarray(probe), transform), int)
    return bool(np.abs(shown - probe).max() <= 1)


def _greys(samples: Deep, transform: ImageCms.ImageCmsTransform, mode: str) -> NDArray[np.uint8]:
    """(height, width, 3): LittleCMS on the 256 greys of 8 bits, linear between them."""
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None]).convert(mode)
    known = np.asarray(ImageCms.applyTransform(ramp, transform), np.float64)[0]
    places = np.arange(65_536) / 257
    table = np.stack([np.interp(places, np.arange(256), known[:, i]) for i in range(3)], axis=1)
    levels: NDArray[np.uint8] = np.rint(table).astype(np.uint8)
    return np.asarray(levels[samples])


def _tetrahedral(samples: Deep, transform: ImageCms.ImageCmsTransform) -> NDArray[np.uint8]:
    """(height, width, 3): LittleCMS on colours of 8 bits, tetrahedral interpolation (Sakamoto, 1981) between them.

    Pillow hands it no deeper pictures. A sample of linear light needs the depth: one level of 8 bits in the dark is
    thirteen of sRGB.
    """
    out = np.empty(samples.shape, np.uint8)
    rows = max(1, _STRIP_PIXELS // samples.shape[1])
    for top in range(0, len(samples), rows):
        # In whole numbers: the colour of 8 bits below, and how many 257ths each channel is above it.
        corner, above = np.divmod(samples[top : top + rows], np.uint16(257))
        corner = corner.astype(np.uint8)
        most, least = above.max(axis=-1, keepdims=True), above.min(axis=-1, keepdims=True)
        middle = above.sum(axis=-1, keepdims=True, dtype=np.uint16) - most - least
        # From corner to corner, the channel that is farthest above goes up first. Where two are equally far, the corner
        # between them has no weight, and neither has one that would lie beyond white.
        steps = (
            (257 - most, np.zeros_like(above, np.bool_)),
            (most - middle, above >= most),
            (middle - least, above >= middle),
            (least, np.ones_like(above, np.bool_)),
        )
        mixed = np.full(above.shape, 128, np.uint32)
        for weight, up in steps:
            shown = ImageCms.applyTransform(Image.fromarray(corner + up.view(np.uint8)), transform)
            mixed += np.asarray(shown, np.uint32) * weight
        out[top : top + rows] = mixed // 257
    return out
