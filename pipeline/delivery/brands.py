"""A brand file: fonts, colours, logo and margins, and the overlays that are laid over delivered clips."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import yaml
from PIL import Image, ImageColor, ImageFont
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from pipeline.delivery.contrast import LEAST_CONTRAST, contrast
from pipeline.problems import BadInputError
from pipeline.small_files import read_small_file

#: Bytes of a brand file, a font and a logo that are read.
MAX_BRAND_BYTES, MAX_FONT_BYTES, MAX_LOGO_BYTES = 1 << 20, 64 << 20, 32 << 20
#: Pixels of a logo, and overlays of a brand.
MAX_LOGO_PIXELS, MAX_OVERLAYS = 16_000_000, 8
_FIELD = "brand"
_PLACE = re.compile(r"\{(?P<column>[^{}|]+)(?:\|(?P<instead>[^{}]*))?\}")


class OverlayKind(StrEnum):
    """What is laid over a clip."""

    #: The brand's picture.
    LOGO = "logo"
    #: A short text on a coloured plate, such as a price.
    BADGE = "badge"
    #: A text in lines, on a plate as wide as they are.
    CAPTION = "caption"


class OverlayPlace(StrEnum):
    """Where in the safe area an overlay stands."""

    #: The corner that has least of the product behind it.
    AUTO = "auto"
    TOP_LEFT = "top-left"
    TOP = "top"
    TOP_RIGHT = "top-right"
    BOTTOM_LEFT = "bottom-left"
    BOTTOM = "bottom"
    BOTTOM_RIGHT = "bottom-right"


def _colour(text: str) -> str:
    try:
        ImageColor.getrgb(text)
    except ValueError:
        raise ValueError(f"{text!r} is no colour: write #rrggbb or a name such as white") from None
    return text


Colour = Annotated[str, AfterValidator(_colour)]


class OverlayStyle(BaseModel):
    """One overlay of a brand."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: OverlayKind
    place: OverlayPlace = OverlayPlace.AUTO
    #: What a badge or a caption says; `{column}` and `{column|instead}` are filled from the row. Where nothing is left
    #: of it, nothing is laid over.
    text: str = Field(default="", max_length=500)
    #: Name of a font and of two colours of the brand, or colours.
    font: str = "text"
    colour: str = "text"
    background: str = "plate"
    #: Height of the letters, or width of a logo, as a share of the frame's shorter side.
    size: float = Field(default=0.05, gt=0.01, le=0.5)
    #: Lines of a caption at most.
    lines: int = Field(default=2, ge=1, le=4)


class Brand(BaseModel):
    """What a brand file says. Paths are beside it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Font files (TrueType or OpenType) by name; `text` is taken where an overlay names none.
    fonts: dict[str, Path] = Field(default_factory=dict, max_length=16)
    #: Colours by name; `text` and `plate` are taken where an overlay names none.
    colours: dict[str, Colour] = Field(default_factory=dict, max_length=64)
    #: A picture, best a PNG with transparency.
    logo: Path | None = None
    #: Air between an overlay and the edge of the safe area, as a share of the frame's shorter side.
    margin: float = Field(default=0.04, ge=0, le=0.2)
    #: Corners of plates, as a share of the letters' height.
    rounding: float = Field(default=0.35, ge=0, le=1)
    overlays: tuple[OverlayStyle, ...] = Field(default=(), max_length=MAX_OVERLAYS)

    def colour(self, name: str) -> tuple[int, int, int]:
        """The colour of that name, or that the text itself is, as levels. Raises `BadInputError`."""
        text = self.colours.get(name, {"text": "#111111", "plate": "#ffffff"}.get(name, name))
        try:
            red, green, blue = ImageColor.getrgb(text)[:3]
        except ValueError:
            remedy = f"Name one of {', '.join(sorted({*self.colours, 'text', 'plate'}))}, or write #rrggbb."
            raise BadInputError(_FIELD, f"{name[:40]!r} is no colour of the brand", remedy) from None
        return red, green, blue

    def font(self, name: str, pixels: int) -> ImageFont.FreeTypeFont:
        """The font of that name with letters of so many pixels; Pillow's own where the brand names no `text`.

        Raises `BadInputError`.
        """
        if name == "text" and name not in self.fonts:
            own = ImageFont.load_default(pixels)
            assert isinstance(own, ImageFont.FreeTypeFont)
            return own
        if name not in self.fonts:
            there = ", ".join(sorted(self.fonts)) or "none"
            raise BadInputError(_FIELD, f"the brand has no font {name[:40]!r}", f"There are: {there}.")
        try:
            return ImageFont.truetype(str(self.fonts[name]), pixels)
        except OSError as error:
            message = f"fonts.{name}: {self.fonts[name]} is no font that can be read ({error})"
            raise BadInputError(_FIELD, message, "Name a TrueType or OpenType file beside the brand file.") from error

    @property
    def columns(self) -> list[str]:
        """Columns that the texts have places for, each once."""
        found = [place["column"].strip() for style in self.overlays for place in _PLACE.finditer(style.text)]
        return list(dict.fromkeys(found))

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of all that decides overlays, the content of fonts and logo included, their places not."""
        files = {name: _digest(path) for name, path in self.fonts.items()}
        content = self.model_dump(mode="json", exclude={"fonts", "logo"})
        content |= {"fonts": files, "logo": _digest(self.logo) if self.logo else None}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def filled(text: str, values: Mapping[str, object]) -> str:
    """`text` with `{column}` and `{column|instead}` filled from a row; columns are found however they are spelt."""
    known = {_letters(name): value for name, value in values.items()}

    def fill(place: re.Match[str]) -> str:
        value = known.get(_letters(place["column"]))
        told = "" if value is None or isinstance(value, (dict, list, tuple)) else str(value).strip()
        return told or (place["instead"] or "").strip()

    return " ".join(_PLACE.sub(fill, text).split())


def texts_of(brand: Brand, values: Mapping[str, object]) -> tuple[str, ...]:
    """What each overlay of the brand says for a row with these columns; empty for logos, and where nothing is left."""
    return tuple(filled(style.text, values) for style in brand.overlays)


def read_brand(path: Path) -> Brand:
    """The brand in the YAML file at `path`, its fonts and logo opened once. Raises `BadInputError`.

    Texts on plates have to stand out from them by a contrast of 4.5 (WCAG 2.2, success criterion 1.4.3).
    """
    form = "Write fonts, colours, logo and overlays as docs/deliveries.md shows."
    data = read_small_file(path, MAX_BRAND_BYTES, _FIELD, unreadable="Name it with --brand.", too_large=form)
    try:
        found: Any = yaml.safe_load(data.decode("utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise BadInputError(_FIELD, f"{path} is no YAML: {str(error).splitlines()[0][:200]}", form) from error
    if not isinstance(found, dict):
        raise BadInputError(_FIELD, f"{path} is no table", form)
    try:
        brand = Brand.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        raise BadInputError(_FIELD, f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}", form) from error
    folder = path.parent
    fonts = {name: _there(f"fonts.{name}", folder / font, MAX_FONT_BYTES) for name, font in brand.fonts.items()}
    logo = _there("logo", folder / brand.logo, MAX_LOGO_BYTES) if brand.logo else None
    brand = brand.model_copy(update={"fonts": fonts, "logo": logo})
    _check(brand)
    return brand


def logo_of(brand: Brand) -> Image.Image:
    """The brand's logo as RGBA. Raises `BadInputError` where there is none that can be read."""
    if brand.logo is None:
        raise BadInputError(_FIELD, "an overlay of kind logo, and the brand names no logo", "Say `logo: logo.png`.")
    try:
        with Image.open(brand.logo, formats=("PNG", "JPEG", "WEBP")) as opened:
            if opened.width * opened.height > MAX_LOGO_PIXELS:
                message = (
                    f"logo: {opened.width}×{opened.height} pixels are more than {MAX_LOGO_PIXELS / 1e6:.0f} million"
                )
                raise BadInputError(_FIELD, message, "Export it smaller: 1000 pixels are plenty.")
            return opened.convert("RGBA")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        message = f"logo: {brand.logo} is no picture that can be read"
        raise BadInputError(_FIELD, message, "Export it as a PNG with transparency.") from error


def _check(brand: Brand) -> None:
    """What would fail for every row fails before any is rendered."""
    for name in brand.fonts:
        brand.font(name, 20)
    for number, style in enumerate(brand.overlays, start=1):
        if style.kind is OverlayKind.LOGO:
            logo_of(brand)
            continue
        if not style.text.strip():
            raise BadInputError(_FIELD, f"overlay {number} ({style.kind}) has no text", "Say `text:`, such as {price}.")
        brand.font(style.font, 20)
        ratio = contrast(brand.colour(style.colour), brand.colour(style.background))
        if ratio < LEAST_CONTRAST:
            raise BadInputError(
                _FIELD,
                f"overlay {number} ({style.kind}): {style.colour} on {style.background} has a contrast of {ratio:.1f}, "
                f"less than {LEAST_CONTRAST:g}",
                "Take a darker or a lighter colour for one of them.",
            )


def _there(what: str, path: Path, most: int) -> Path:
    try:
        size = path.stat().st_size
    except OSError as error:
        remedy = "Put the file there, or name another, beside the brand file."
        raise BadInputError(_FIELD, f"{what}: {path} is missing: {error.strerror}", remedy) from error
    if not path.is_file() or size > most:
        raise BadInputError(_FIELD, f"{what}: {path} is no file of up to {most >> 20} MiB", "Name another file.")
    return path


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _letters(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())
