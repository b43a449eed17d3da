"""Product pictures made bad on purpose, each in one way and three strengths: what poor stills are judged against.

Every maker takes an RGB picture, a strength (0 mild, 1 plain, 2 strong) and a seeded `random.Random`; those that need
other pictures take them as well. All give an RGB picture, or None where a picture cannot have that fault.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from pipeline.clips.inspection.product import product_area

STRENGTHS = ("mild", "plain", "strong")
Maker = Callable[[Image.Image, int, random.Random, Sequence[Image.Image]], Image.Image | None]
_Array = NDArray[np.float64]


def _linear(still: Image.Image) -> _Array:
    """Light of an sRGB picture, 0 to 1 (IEC 61966-2-1)."""
    value = np.asarray(still, np.float64) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def _encoded(light: _Array) -> Image.Image:
    light = np.clip(light, 0, 1)
    value = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    return Image.fromarray(np.rint(value * 255).astype(np.uint8))


def too_small(still: Image.Image, strength: int, rng: random.Random, others: Sequence[Image.Image]) -> Image.Image:
    """A thumbnail of 400, 256 or 128 pixels; a clip of 768p shows it 1.9 times its size and more."""
    side = (400, 256, 128)[strength]
    scale = side / max(still.size)
    return still.resize((round(still.width * scale), round(still.height * scale)), Image.Resampling.LANCZOS)


def blurred(still: Image.Image, strength: int, rng: random.Random, others: Sequence[Image.Image]) -> Image.Image:
    """Out of focus: a Gaussian of 1.5, 2.5 or 4 of 512 pixels."""
    return still.filter(ImageFilter.GaussianBlur((1.5, 2.5, 4)[strength] * max(still.size) / 512))


def dark(still: Image.Image, strength: int, rng: random.Random, others: Sequence[Image.Image]) -> Image.Image:
    """Underexposed by 2.5, 3.5 or 5 stops."""
    return _encoded(_linear(still) / 2 ** (2.5, 3.5, 5)[strength])


def burnt(still: Image.Image, strength: int, rng: random.Random, others: Sequence[Image.Image]) -> Image.Image:
    """Overexposed by 1.5, 2.5 or 3.5 stops and cut."""
    return _encoded(_linear(still) * 2 ** (1.5, 2.5, 3.5)[strength])


def pale(still: Image.Image, strength: int, rng: random.Random, others: Sequence[Image.Image]) -> Image.Image:
    """Low contrast: 40, 30 or 20 percent of it, about a level that is not dark."""
    share = (0.4, 0.3, 0.2)[strength]
    middle = rng.uniform(0.45, 0.8) * 255 * (1 - share)
    return Image.eval(still, lambda level: round(middle + share * level))


def bordered(still: Image.Image, strength: int, rng: random.Random, others: Sequence[Image.Image]) -> Image.Image:
    """Bars above and below, beside, or a frame, of 4, 8 or 14 percent of a side; black or a colour."""
    across, down = (round(side * (0.04, 0.08, 0.14)[strength]) for side in still.size)
    kind = rng.choice(("letterbox", "pillarbox", "frame"))
    colour = rng.choice(((0, 0, 0), (0, 0, 0), (30, 60, 120), (200, 30, 30), (255, 255, 255)))
    pixels = np.asarray(still)
    if (
        colour == (255, 255, 255)
        and np.median(np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])) > 200
    ):
        colour = (0, 0, 0)  # white bars beside white are seen by nobody
    x, y = (0 if kind == "letterbox" else across), (0 if kind == "pillarbox" else down)
    framed = Image.new("RGB", (still.width + 2 * x, still.height + 2 * y), colour)
    framed.paste(still, (x, y))
    return framed


def several(still: Image.Image, strength: int, rng: random.Random, others: Sequence[Image.Image]) -> Image.Image | None:
    """Two, three or four products in one picture: beside each other before white, or a collage of whole pictures."""
    pictures = [still, *rng.sample(list(others), strength + 1)]
    side = 600
    columns = 2 if len(pictures) in (2, 4) else 3
    rows = (len(pictures) + columns - 1) // columns
    width, height = side // columns, side // columns
    sheet = Image.new("RGB", (side, max(side, rows * height)), "white")
    cut_out = rng.random() < 0.7
    for number, picture in enumerate(pictures):
        x, y = number % columns * width, number // columns * height + (sheet.height - rows * height) // 2
        if not cut_out:
            sheet.paste(picture.resize((width, height), Image.Resampling.LANCZOS), (x, y))
            continue
        area = product_area(picture)
        if area.box is None:
            return None
        box = [round(share * length) for share, length in zip(area.box, picture.size * 2, strict=True)]
        mask = Image.fromarray(area.mask).convert("L").resize(picture.size, Image.Resampling.BILINEAR)
        product, mask = (one.crop((box[0], box[1], box[2], box[3])) for one in (picture, mask))
        scale = min(0.84 * width / product.width, 0.84 * height / product.height)
        size = max(1, round(product.width * scale)), max(1, round(product.height * scale))
        place = x + (width - size[0]) // 2, y + (height - size[1]) // 2
        sheet.paste(product.resize(size, Image.Resampling.LANCZOS), place, mask.resize(size))
    return sheet


def watermarked(still: Image.Image, strength: int, rng: random.Random, others: Sequence[Image.Image]) -> Image.Image:
    """Letters laid over all of it again and again, level or slanting, at 15, 25 or 40 percent."""
    side = max(still.size)
    text, font = rng.choice(_TEXTS), ImageFont.load_default(side / rng.uniform(14, 22))
    letters = Image.new("L", (2 * side, 2 * side))
    draw = ImageDraw.Draw(letters)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    step_x, step_y = (right - left) * rng.uniform(1.2, 1.6), (bottom - top) * rng.uniform(2.2, 4)
    for row in range(int(2 * side / step_y) + 1):
        for column in range(int(2 * side / step_x) + 2):
            draw.text((column * step_x - (row % 2) * step_x / 2, row * step_y), text, 255, font=font)
    return _laid_over(still, letters.rotate(rng.choice((0, 20, 30, 45)), Image.Resampling.BICUBIC), strength, rng)


def one_line(still: Image.Image, strength: int, rng: random.Random, others: Sequence[Image.Image]) -> Image.Image:
    """One large line of letters across the middle, level or slanting, at 15, 25 or 40 percent."""
    side = max(still.size)
    text = rng.choice(_TEXTS)
    letters = Image.new("L", (2 * side, 2 * side))
    font = ImageFont.load_default(1.1 * side / max(6, len(text)))
    ImageDraw.Draw(letters).text((side, side), text, 255, font=font, anchor="mm")
    return _laid_over(still, letters.rotate(rng.choice((0, 30)), Image.Resampling.BICUBIC), strength, rng)


_TEXTS = ("SAMPLE", "© shop.example", "PREVIEW", "DO NOT COPY", "stockphoto")


def _laid_over(still: Image.Image, letters: Image.Image, strength: int, rng: random.Random) -> Image.Image:
    opacity = (0.15, 0.25, 0.4)[strength]
    x, y = (letters.width - still.width) // 2, (letters.height - still.height) // 2
    letters = letters.crop((x, y, x + still.width, y + still.height))
    # Shops' letters are grey, or white with a shadow, so that they are seen on white as well.
    if rng.random() < 0.5:
        mask = letters.point([round(v * opacity) for v in range(256)])
        return Image.composite(Image.new("RGB", still.size, (110, 110, 110)), still, mask)
    away = max(1, max(still.size) // 300)
    shadow = ImageChops.offset(letters, away, away).point([round(v * opacity) for v in range(256)])
    dimmed = Image.composite(Image.new("RGB", still.size, "black"), still, shadow)
    mask = letters.point([round(v * min(1.0, 1.5 * opacity)) for v in range(256)])
    return Image.composite(Image.new("RGB", still.size, "white"), dimmed, mask)


def cut_off(still: Image.Image, strength: int, rng: random.Random, others: Sequence[Image.Image]) -> Image.Image | None:
    """A side of the picture runs through the product: 8, 18 or 35 percent of its length are missing."""
    box = product_area(still).box
    if box is None:
        return None
    share = (0.08, 0.18, 0.35)[strength]
    left, top, right, bottom = (round(at * side) for at, side in zip(box, still.size * 2, strict=True))
    side = rng.choice(("left", "top", "right", "bottom"))
    x, y = round((right - left) * share), round((bottom - top) * share)
    match side:
        case "left":
            return still.crop((left + x, 0, still.width, still.height))
        case "top":
            return still.crop((0, top + y, still.width, still.height))
        case "right":
            return still.crop((0, 0, right - x, still.height))
    return still.crop((0, 0, still.width, bottom - y))


def busy(still: Image.Image, strength: int, rng: random.Random, others: Sequence[Image.Image]) -> Image.Image:
    """A product before noise of all sizes and things with edges, of a contrast of 35, 60 or 100 percent."""
    contrast = (0.35, 0.6, 1.0)[strength]
    noise = np.random.default_rng(rng.randrange(2**32))
    width, height = still.size
    ground = np.full((height, width, 3), noise.uniform(90, 190, 3))
    for size in (4, 8, 16, 32, 64):
        coarse = Image.fromarray(noise.integers(0, 256, (size, size, 3)).astype(np.uint8))
        ground += (np.asarray(coarse.resize(still.size, Image.Resampling.BICUBIC), np.float64) - 128) * 0.35
    things = Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(things)
    for _ in range(rng.randrange(15, 30)):
        x, y = rng.randrange(width), rng.randrange(height)
        w, h = rng.randrange(width // 20, width // 4), rng.randrange(height // 20, height // 4)
        shape = draw.rectangle if rng.random() < 0.6 else draw.ellipse
        shape((x - w // 2, y - h // 2, x + w // 2, y + h // 2), tuple(rng.randrange(256) for _ in range(3)))
    ground = np.asarray(things, np.float64)
    ground = ground.mean() + contrast * (ground - ground.mean())
    mask = Image.fromarray(product_area(still).mask).convert("L").resize(still.size, Image.Resampling.BILINEAR)
    return Image.composite(still, Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8)), mask)


def noisy(still: Image.Image, strength: int, rng: random.Random, others: Sequence[Image.Image]) -> Image.Image:
    """Grain of 12, 20 or 30 levels."""
    sigma = (12, 20, 30)[strength]
    grain = np.random.default_rng(rng.randrange(2**32)).normal(0, sigma, (still.height, still.width, 3))
    return Image.fromarray(np.clip(np.rint(np.asarray(still) + grain), 0, 255).astype(np.uint8))


#: Faults by the code of the note that tells them, and a kind of it where there are several.
FAULTS: dict[str, Maker] = {
    "enlarged": too_small,
    "still_blurred": blurred,
    "still_dark": dark,
    "still_overexposed": burnt,
    "still_low_contrast": pale,
    "still_bordered": bordered,
    "still_several_products": several,
    "still_watermarked": watermarked,
    "still_watermarked:one_line": one_line,
    "still_cut_off": cut_off,
    "still_busy_background": busy,
    "still_noisy": noisy,
}
#: Faults that nothing here is made to find: what is told of them is told, but promised nowhere.
UNDECIDED = frozenset({"still_watermarked:one_line"})


def product_picture(seed: int = 0, side: int = 480) -> Image.Image:
    """A made product picture: something round with a coloured pattern, whole, before a grey that fades to the rim."""
    noise = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side] / side - 0.5
    ground = 236 - 60 * (x**2 + y**2)
    pixels = np.repeat(ground[..., None], 3, axis=2) + noise.uniform(-4, 4, 3)
    tiles = noise.integers(20, 200, (12, 12, 3)).astype(np.uint8)
    pattern = np.asarray(Image.fromarray(tiles).resize((side, side), Image.Resampling.NEAREST), np.float64)
    wide, high = noise.uniform(0.2, 0.32, 2)
    inside = (x / wide) ** 2 + (y / high) ** 2 < 1
    pixels[inside] = pattern[inside] * (0.8 + 0.3 * (x[inside, None] + 0.5))
    soft = Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
    return soft.filter(ImageFilter.GaussianBlur(0.5))
