"""Samples of a decoded still, whatever their depth and kind, as greys, RGB, CMYK or Lab of 8 bits, with their alpha."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.clips.colour import BROKEN_METADATA, Deep
from pipeline.clips.containers import PngFacts
from pipeline.clips.still_notes import StillNoteCode
from pipeline.notes import Note

_WHITE_IS_ZERO, _PHOTOMETRIC = 0, 262
#: Float greys up to this factor over a scale's white are of that scale, with highlights beyond white.
_OVERSHOOT = 16.0
#: Samples that are scaled at a time.
_STRIP_SAMPLES = 2**20
#: Pillow's unpackers of 16-bit samples keep the high byte; the one of the other byte order keeps the low one. The
#: premultiplied ones divide what they keep, and are left out.
_HIGH_AND_LOW = {
    f"{mode};16{order}": (f"{plain};16{order}", f"{plain};16{other}")
    for mode, plain in (("RGB", "RGB"), ("RGBA", "RGBA"), ("RGBa", "RGBA"))
    for order, other in (("B", "L"), ("L", "B"), ("N", "B" if sys.byteorder == "little" else "L"))
}


@dataclass(frozen=True, kw_only=True)
class Samples:
    """A still's pixels before its colours are converted."""

    #: L, RGB, CMYK or LAB.
    colour: Image.Image
    #: L, or None where all is opaque.
    alpha: Image.Image | None
    #: Gives `colour` at 16 bits where the file has them, (height, width) or (height, width, 3), by decoding anew.
    deep: Callable[[], Deep | None]


def samples_of(image: Image.Image, data: bytes, png: PngFacts | None, notes: list[Note]) -> Samples:
    """The samples of `image`, loaded from `data`; `png`: what the chunks say, where it is a PNG.

    Notes of what had to be cut are added to `notes`.
    """
    if png is not None:
        _only_its_own_key(image, png)
    if image.mode.startswith("I") or image.mode == "F":
        greys = _deep_greys(image, notes)
        alpha = _alpha_by_key(greys, png)
        return Samples(colour=_to_8_bits(greys), alpha=alpha, deep=lambda: greys)

    def deep() -> Deep | None:
        whole = _deep_samples(image, data)
        return None if whole is None else whole.colours

    key_alpha = _key_alpha_8_bits(image, png, deep)
    if key_alpha is not None:
        return Samples(colour=image.convert("L" if image.mode == "1" else image.mode), alpha=key_alpha, deep=deep)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or image.has_transparency_data:
        return _with_alpha(image, data)
    if image.mode not in ("L", "RGB", "CMYK", "LAB"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    return Samples(colour=image, alpha=None, deep=deep)


def _with_alpha(image: Image.Image, data: bytes) -> Samples:
    # At 16 bits right away: cut to 8, colours and alpha are off by up to one level each, and white shows through more.
    whole = _deep_samples(image, data)
    if whole is not None:
        colour, alpha = _to_8_bits(whole.colours), _to_8_bits(whole.alpha)
        return Samples(colour=colour, alpha=_unless_opaque(alpha), deep=lambda: whole.colours)
    image = image if image.mode == "RGBA" else image.convert("LA" if image.mode in ("La", "LA") else "RGBA")
    colour = image.getchannel("L") if image.mode == "LA" else image.convert("RGB")
    return Samples(colour=colour, alpha=_unless_opaque(image.getchannel("A")), deep=lambda: None)


def _unless_opaque(alpha: Image.Image) -> Image.Image | None:
    return None if alpha.getextrema() == (255, 255) else alpha


# ---------------------------------------------------------------------------------------------- greys


def _deep_greys(image: Image.Image, notes: list[Note]) -> Deep:
    """Greys of more than 8 bits, whole or floating, on the scale 0 to 65535."""
    values: NDArray[Any] = np.asarray(image)
    inverted = image.format == "TIFF" and getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    if values.dtype == np.uint16 or values.dtype == np.dtype(">u2"):
        greys = values.astype(np.uint16)
    else:
        greys = _scaled(values, image.mode == "F", notes)
    return np.asarray(65_535 - greys if inverted else greys, np.uint16)


def _scaled(values: NDArray[Any], floating: bool, notes: list[Note]) -> Deep:
    if floating:
        # No numbers are black; beyond all numbers is what `nan_to_num` makes of it.
        values = np.nan_to_num(values)
    top = values.max(initial=0)
    if floating:
        # 1 is white (Adobe's TIFF Technical Note 3); scales of 8 and 16 bits kept in floats are met too.
        white = next((limit for limit in (1.0, 255.0) if top <= limit * _OVERSHOOT), 65_535.0)
        if top > white or values.min(initial=0) < 0:
            text = f"values beyond black (0) or white ({white:g}) are cut"
            notes.append(Note(code=StillNoteCode.TONES_CLIPPED, message=text))
    else:
        white = 65_535.0 if top <= 65_535 else 2.0**31 - 1
    greys: Deep = _by_rows(
        lambda rows: np.rint(np.clip(rows.astype(np.float64) / white, 0, 1) * 65_535), values, np.dtype(np.uint16)
    )
    return greys


def _to_8_bits(samples: Deep) -> Image.Image:
    return Image.fromarray(
        _by_rows(lambda rows: (rows.astype(np.uint32) * 2 + 257) // 514, samples, np.dtype(np.uint8))
    )


def _by_rows(function: Callable[[NDArray[Any]], NDArray[Any]], values: NDArray[Any], kind: np.dtype[Any]) -> Any:
    """`function` of `values`, sample by sample, as `kind`: of few rows at a time, whatever it needs in between."""
    out = np.empty(values.shape, kind)
    rows = max(1, _STRIP_SAMPLES // max(1, values[:1].size))
    for top in range(0, len(values), rows):
        out[top : top + rows] = function(values[top : top + rows])
    return out


# ---------------------------------------------------------------------------------------------- colour keys of PNG


def _only_its_own_key(image: Image.Image, png: PngFacts) -> None:
    """Pillow reads keys at the wrong depth, and takes a text chunk of that name for one."""
    image.info.pop("transparency", None)
    if png.colour_type == 3 and (table := png.chunks.get(b"tRNS")):
        image.info["transparency"] = table


def _alpha_by_key(greys: Deep, png: PngFacts | None) -> Image.Image | None:
    if png is None or png.colour_key is None:
        return None
    return _mask(greys == png.colour_key[0])


def _key_alpha_8_bits(image: Image.Image, png: PngFacts | None, deep: Callable[[], Deep | None]) -> Image.Image | None:
    if png is None or png.colour_key is None or image.mode not in ("1", "L", "RGB"):
        return None
    if png.depth == 16:
        samples = deep()
        return None if samples is None else _mask((samples == png.colour_key).all(axis=-1))
    values = np.asarray(image.convert("L") if image.mode == "1" else image)
    # Pillow has stretched samples of fewer bits to 255.
    key = tuple(sample * 255 // ((1 << png.depth) - 1) for sample in png.colour_key)
    return _mask((values == key).all(axis=-1) if values.ndim == 3 else values == key[0])


def _mask(transparent: NDArray[np.bool_]) -> Image.Image | None:
    return Image.fromarray(np.where(transparent, 0, 255).astype(np.uint8)) if transparent.any() else None


# ---------------------------------------------------------------------------------------------- deep colours


@dataclass(frozen=True, kw_only=True)
class _DeepSamples:
    #: (height, width) or (height, width, 3), straight.
    colours: Deep
    #: (height, width); white where the file has none.
    alpha: Deep


def _deep_samples(image: Image.Image, data: bytes) -> _DeepSamples | None:
    """Samples of 16 bits, by decoding `data` twice again; None where it has no such samples that can be had."""
    modes = {_raw_mode(tile.args) for tile in getattr(image, "tile", [])} or _modes_of(image, data)
    if image.format not in ("PNG", "TIFF") or len(modes) != 1:
        return None
    mode = modes.pop()
    try:
        if mode == "LA;16B":
            # As four samples of 8 bits these are both bytes of the grey and both of the alpha.
            four = _decoded_as(image, data, "RGBA").astype(np.uint16)
            grey, alpha = (np.asarray(four[..., i] << 8 | four[..., i + 1], np.uint16) for i in (0, 2))
            return _DeepSamples(colours=grey, alpha=alpha)
        if mode not in _HIGH_AND_LOW:
            return None
        high, low = _HIGH_AND_LOW[mode]
        samples: Deep = _decoded_as(image, data, high).astype(np.uint16)
        samples <<= 8
        samples |= _decoded_as(image, data, low)
    except BROKEN_METADATA:
        return None
    if samples.shape[-1] == 3:
        return _DeepSamples(colours=samples, alpha=np.full(samples.shape[:2], 65_535, np.uint16))
    colours, alpha = samples[..., :3], samples[..., 3]
    if mode.startswith("RGBa"):
        share = np.maximum(alpha, 1)[..., None].astype(np.float32) / 65_535
        colours = np.rint(np.minimum(colours / share, 65_535)).astype(np.uint16)
    return _DeepSamples(colours=colours, alpha=alpha)


def _reopened(image: Image.Image, data: bytes) -> Image.Image:
    again = Image.open(io.BytesIO(data), formats=(image.format or "",))
    again.seek(image.tell())
    return again


def _raw_mode(arguments: Any) -> str:
    """How a tile's bytes become samples, from the arguments of its decoder."""
    mode = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return mode if isinstance(mode, str) else ""


def _modes_of(image: Image.Image, data: bytes) -> set[str]:
    if image.format not in ("PNG", "TIFF"):
        return set()
    with _reopened(image, data) as again:
        return {_raw_mode(tile.args) for tile in getattr(again, "tile", [])}


def _decoded_as(image: Image.Image, data: bytes, mode: str) -> NDArray[np.uint8]:
    """`image` decoded anew, its bytes taken for samples of the raw mode `mode`."""
    with _reopened(image, data) as again:
        tiles = getattr(again, "tile", [])
        again.tile = [  # type: ignore[attr-defined]
            tile._replace(args=(mode, *tile.args[1:]) if isinstance(tile.args, tuple) else mode) for tile in tiles
        ]
        return np.asarray(again)
