"""A seeded corpus of stills: formats × modes × depths × keys × profiles × orientations, each with its judge."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pyvips
from numpy.typing import NDArray
from PIL import Image, features

from tests.stills import files
from tests.stills.reference import (
    ADOBE,
    P3,
    REC2020,
    SRGB,
    Expected,
    Floats,
    Formula,
    by_libvips,
    by_samples,
    decoded_srgb,
    gamma_curve,
    inks,
    lab_d50,
    plain,
    rgb_formula,
)

#: What libvips does not read as the format means it; the still is judged by the samples that were put in instead, or by
#: libvips' pixels and the orientation that was put in.
REASONS = {
    "bmp": "libvips reads BMP only where it is built with ImageMagick.",
    "icc-deep": "LittleCMS, as libvips calls it, takes 16-bit colours through a table of 33³, too coarse near black.",
    "png-late": "libvips reads no eXIf chunk behind a PNG's pixels, where the third edition allows it.",
    "tiff-float": "libvips takes float greys for light of scRGB; TIFF Technical Note 3 says 1 is white, no more.",
    "tiff-lab": "libvips takes the white of every Lab for D65; CIE L*a*b* in TIFF 6.0 is of the ICC's D50.",
    "tiff-unspecified": "libvips takes an extra sample of unspecified meaning for alpha; TIFF 6.0 says it is none.",
    "xmp": "libvips reads the orientation from EXIF alone, not from XMP.",
}
_TURNED_ONLY = ("png-late", "xmp")
_HEIGHT, _WIDTH = 24, 36


@dataclass(frozen=True, kw_only=True)
class Case:
    """One still, and what decides how it must look."""

    name: str
    format: str
    data: bytes
    orientation: int = 1
    #: What its colours mean, where no ICC profile says it.
    formula: Formula | None = None
    #: The ICC profile that counts.
    profile: bytes | None = None
    #: The samples that were put in, 0 to 1, and their straight alpha; None for lossy files.
    samples: Floats | None = None
    alpha: Floats | None = None
    #: Key of `REASONS` where libvips alone is no judge.
    reason: str | None = None
    #: Levels of 255 that a pixel may differ by.
    tolerance: int = 2
    #: Levels of its samples that a still may be off by before a formula spreads them: two decoders of a lossy format
    #: differ by one, and deep colours are interpolated between those of 8 bits, where one may have left sRGB.
    rounding: int = 0

    def expected(self) -> Expected:
        """What an sRGB screen must show."""
        if self.reason is None:
            return by_libvips(self.data, self.formula, self.profile, rounding=self.rounding)
        if self.reason in _TURNED_ONLY:
            return by_libvips(
                self.data, self.formula, self.profile, orientation=self.orientation, rounding=self.rounding
            )
        assert self.samples is not None, self.name
        return by_samples(
            self.samples, self.alpha, self.orientation, self.formula, self.profile, rounding=self.rounding
        )


@dataclass(frozen=True, kw_only=True)
class Colours:
    """One way to say what RGB samples mean."""

    name: str
    formula: Formula | None = None
    profile: bytes | None = None
    #: The same as `profile`, exactly.
    exact: Formula | None = None
    #: Whether it has colours that sRGB lacks.
    wide: bool = False
    #: Chunks that say it in a PNG.
    chunks: tuple[bytes, ...] = ()


def _gamma(value: int) -> bytes:
    return files.chunk(b"gAMA", struct.pack(">I", value))


def _chromaticities(*values: int) -> bytes:
    return files.chunk(b"cHRM", struct.pack(">8I", *values))


def _cicp(primaries: int, transfer: int) -> bytes:
    return files.chunk(b"cICP", bytes((primaries, transfer, 0, 1)))


_SRGB_CHUNK = files.chunk(b"sRGB", b"\0")
_P3_CHRM = _chromaticities(31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)
_SRGB_CHRM = _chromaticities(31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)


@cache
def by_profile() -> tuple[Colours, ...]:
    """RGB spaces said by an ICC profile; all but libvips' own are called sRGB."""
    p3, swapped = files.vips_profile("p3"), files.changed_srgb(swapped=True)
    linear, steep = files.changed_srgb(gamma=1.0), files.changed_srgb(gamma=1.8)
    return (
        Colours(name="icc-srgb", profile=files.lcms_srgb(), exact=plain),
        Colours(name="icc-srgb-vips", profile=files.vips_profile("srgb"), exact=plain),
        Colours(name="icc-p3", profile=p3, exact=rgb_formula(P3, decoded_srgb), wide=True),
        Colours(name="icc-linear", profile=linear, exact=rgb_formula(SRGB, gamma_curve(1.0))),
        Colours(name="icc-1.8", profile=steep, exact=rgb_formula(SRGB, gamma_curve(1.8))),
        Colours(name="icc-swapped", profile=swapped, exact=rgb_formula(SRGB[:, [1, 0, 2]], decoded_srgb)),
    )


@cache
def by_chunk() -> tuple[Colours, ...]:
    """RGB spaces said by chunks of PNG, alone and against chunks that count less."""
    p3 = rgb_formula(P3, decoded_srgb)
    linear = rgb_formula(SRGB, gamma_curve(1.0))
    icc_p3, icc_linear = files.iccp(files.vips_profile("p3")), files.iccp(files.changed_srgb(gamma=1.0))
    return (
        Colours(name="srgb", formula=plain, chunks=(_SRGB_CHUNK,)),
        Colours(name="srgb>gama", formula=plain, chunks=(_SRGB_CHUNK, _gamma(100_000), _P3_CHRM)),
        Colours(name="gama-linear", formula=linear, chunks=(_gamma(100_000),)),
        Colours(name="gama-1.8", formula=rgb_formula(SRGB, gamma_curve(1.8)), chunks=(_gamma(55_556), _SRGB_CHRM)),
        Colours(
            name="gama-chrm-p3", wide=True, formula=rgb_formula(P3, gamma_curve(2.2)), chunks=(_gamma(45_455), _P3_CHRM)
        ),
        Colours(name="gama-of-srgb", formula=plain, chunks=(_gamma(45_455), _SRGB_CHRM)),
        Colours(name="chrm-alone", formula=plain, chunks=(_P3_CHRM,)),
        Colours(name="cicp-srgb", formula=plain, chunks=(_cicp(1, 13),)),
        Colours(name="cicp-p3", wide=True, formula=p3, chunks=(_cicp(12, 13),)),
        Colours(name="cicp-2020", wide=True, formula=rgb_formula(REC2020, decoded_srgb), chunks=(_cicp(9, 13),)),
        Colours(name="cicp-linear", formula=linear, chunks=(_cicp(1, 8),)),
        Colours(name="cicp>icc", wide=True, formula=p3, chunks=(_cicp(12, 13), icc_linear)),
        Colours(
            name="icc>srgb>gama",
            wide=True,
            profile=files.vips_profile("p3"),
            exact=p3,
            chunks=(icc_p3, _SRGB_CHUNK, _gamma(100_000)),
        ),
        Colours(
            name="icc>gama",
            profile=files.changed_srgb(gamma=1.0),
            exact=linear,
            chunks=(icc_linear, _gamma(45_455)),
        ),
        Colours(name="broken-icc>srgb", formula=plain, chunks=(files.iccp(b"no profile"), _SRGB_CHUNK)),
        Colours(name="broken-icc>gama", formula=linear, chunks=(files.iccp(bytes(300)), _gamma(100_000))),
    )


_NOTHING = Colours(name="none", formula=plain)
_GREY_GAMMAS = (1.0, 1.8, 2.2)


def _levels(rng: np.random.Generator, bands: int, depth: int) -> NDArray[np.int64]:
    """Samples of whole numbers: noise, a ramp, black and white."""
    top = (1 << depth) - 1
    out = rng.integers(0, top + 1, (_HEIGHT, _WIDTH, bands))
    out[:4] = np.linspace(0, top, _WIDTH).round().astype(np.int64)[None, :, None]
    out[4, :9], out[5, :9] = 0, top
    return out


def _smooth(rng: np.random.Generator, bands: int) -> NDArray[np.uint8]:
    """Patches of one colour with soft borders, as lossy formats are made for."""
    coarse = rng.integers(0, 256, (3, 4, bands), dtype=np.uint8)
    channels = [Image.fromarray(coarse[..., i]).resize((64, 48), Image.Resampling.BILINEAR) for i in range(bands)]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1)


# ---------------------------------------------------------------------------------------------- PNG


def png_cases(rng: np.random.Generator) -> Iterator[Case]:
    """Every colour type and depth, with and without keys, under every description of its colours."""
    kinds = [(0, d) for d in (1, 2, 4, 8, 16)] + [(2, 8), (2, 16)] + [(3, d) for d in (1, 2, 4, 8)]
    kinds += [(4, 8), (4, 16), (6, 8), (6, 16)]
    number = 0
    for colour_type, depth in kinds:
        for keyed in (False, True) if colour_type in (0, 2, 3) else (False,):
            ways = [_NOTHING, *by_chunk()]
            if colour_type not in (0, 4):
                ways += [replace(c, chunks=(files.iccp(c.profile or b""),)) for c in by_profile()]
            else:
                ways = [way for way in ways if way.profile is None]
                for gamma in _GREY_GAMMAS:
                    profile = files.grey_profile(gamma)
                    ways.append(Colours(name=f"icc-grey-{gamma}", profile=profile, chunks=(files.iccp(profile),)))
            for way in ways if not keyed else [ways[i] for i in rng.permutation(len(ways))[:5]]:
                number += 1
                yield _png_case(rng, colour_type, depth, keyed, way, number)


def _png_case(rng: np.random.Generator, colour_type: int, depth: int, keyed: bool, way: Colours, number: int) -> Case:
    stored = _levels(rng, {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour_type], depth)
    top = (1 << depth) - 1
    chunks, alpha = list(way.chunks), None
    if colour_type == 3:
        palette = rng.integers(0, 256, (1 << depth, 3), dtype=np.uint8)
        chunks.append(files.chunk(b"PLTE", palette.tobytes()))
        samples = palette[stored[..., 0]] / 255
        if keyed:
            table = rng.integers(0, 256, rng.integers(1, (1 << depth) + 1), dtype=np.uint8)
            chunks.append(files.chunk(b"tRNS", table.tobytes()))
            alpha = np.concatenate([table, np.full(256 - len(table), 255)])[stored[..., 0]] / 255
    else:
        bands = {0: 1, 2: 3, 4: 1, 6: 3}[colour_type]
        samples = stored[..., :bands] / top
        if colour_type in (4, 6):
            alpha = stored[..., bands] / top
        elif keyed:
            key = stored[9, 9]
            # Neighbours that eight bits cannot tell from the key stay opaque.
            stored[10, :9] = key ^ (1 if depth == 16 else 0)
            samples = stored / top
            chunks.append(files.chunk(b"tRNS", struct.pack(f">{bands}H", *key)))
            alpha = 1.0 - (stored == key).all(axis=-1)
    orientation, reason = int(rng.integers(1, 9)), None
    said = ("exif", "xmp", "late-exif", "none")[number % 4]
    late = []
    if said == "none":
        orientation = 1
    elif said == "xmp":
        packet = b"XML:com.adobe.xmp\0\0\0\0\0" + files.xmp(orientation)
        chunks.insert(0, files.chunk(b"iTXt", packet))
        reason = "xmp"
    else:
        late.append(files.chunk(b"eXIf", files.exif([files.orientation_entry(orientation)])[6:]))
        reason = "png-late" if said == "late-exif" else None
    if said == "exif":
        chunks, late = late + chunks, []
    formula, profile = way.formula, way.profile
    if depth == 16 and profile and way.exact:
        formula, profile, reason = way.exact, None, "icc-deep"
    rounding = int(way.wide and depth == 16 and colour_type in (2, 6))
    data = files.png(stored, depth, colour_type, before=chunks, interlaced=bool(rng.integers(2)))
    if late:
        data = data[:-12] + late[0] + data[-12:]
    return Case(
        name=f"png-{number}-type{colour_type}-{depth}bit{'-key' if keyed else ''}-{way.name}-{said}{orientation}",
        format="PNG", data=data, orientation=orientation, formula=formula, profile=profile,
        samples=samples, alpha=alpha, reason=reason, rounding=rounding,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------- JPEG


def jpeg_cases(rng: np.random.Generator) -> Iterator[Case]:
    """Greys, colours and inks, with orientations said soundly, amid rubble and in XMP."""
    broken = {
        "rational": (0x011A, 10, 1, struct.pack("<I", 400)),
        "pointer": (0x8769, 2, 4, b"\xff\xff\xff\x7f"),
        "float": (0x0128, 11, 1, struct.pack("<f", float("nan"))),
    }
    for number in range(130):
        mode = ("RGB", "RGB", "L", "CMYK")[number % 4]
        picture = Image.fromarray(_smooth(rng, len(mode)).squeeze(), mode=None if mode != "CMYK" else "CMYK")
        orientation, said = int(rng.integers(1, 9)), ("plain", "xmp", *broken)[int(rng.integers(5))]
        options: dict[str, object] = {
            "quality": int(rng.integers(60, 98)), "progressive": bool(rng.integers(2)),
            "subsampling": int(rng.integers(3)),
        }  # fmt: skip
        entries = [files.orientation_entry(orientation)]
        if said == "xmp":
            options["xmp"] = files.xmp(orientation)
        else:
            options["exif"] = files.exif(entries + ([broken[said]] if said in broken else []))
        formula: Formula | None = plain
        profile, way = None, "none"
        if mode == "CMYK":
            formula = inks
            if number % 8 == 3:
                formula, profile, way = None, files.vips_profile("cmyk"), "icc"
        elif mode == "L":
            if number % 8 == 2:
                formula, profile, way = None, files.grey_profile(_GREY_GAMMAS[number % 3]), "icc"
        elif number % 3 == 0:
            chosen = by_profile()[number // 3 % len(by_profile())]
            formula, profile, way = None, chosen.profile, chosen.name
        elif number % 3 == 1:
            said, way = "dcf", "adobe"
            options["exif"], formula = files.adobe_rgb_exif(orientation), rgb_formula(ADOBE, gamma_curve(563 / 256))
            options.pop("xmp", None)
        if profile:
            options["icc_profile"] = profile
        yield Case(
            name=f"jpeg-{number}-{mode}-{way}-{said}{orientation}", format="JPEG",
            data=files.saved(picture, "JPEG", **options), orientation=orientation, formula=formula, profile=profile,
            tolerance=3 if mode == "CMYK" else 2, reason="xmp" if said == "xmp" else None,
        )  # fmt: skip


# ---------------------------------------------------------------------------------------------- TIFF


def tiff_cases(rng: np.random.Generator) -> Iterator[Case]:
    """Every photometric interpretation and depth that is read, in both byte orders, with pages and thumbnails."""
    kinds = [(photometric, depth, "") for photometric in (0, 1) for depth in (1, 2, 4, 8, 16, 32)]
    kinds += [(2, depth, extra) for depth in (8, 16) for extra in ("", "unspecified", "associated", "straight")]
    kinds += [(1, 8, "straight"), (1, 8, "unspecified"), (3, 4, ""), (3, 8, ""), (5, 8, ""), (5, 16, ""), (8, 8, "")]
    number = 0
    for round_ in range(6):
        for photometric, depth, extra in kinds:
            number += 1
            order = "<>"[(number + round_) % 2]
            if order == ">" and photometric == 0 and depth == 16:
                order = "<"  # Pillow does not read it
            yield _tiff_case(rng, photometric, depth, extra, order, number)


def _tiff_case(rng: np.random.Generator, photometric: int, depth: int, extra: str, order: str, number: int) -> Case:
    bands = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 8: 3}[photometric]
    whole = _levels(rng, bands + bool(extra), min(depth, 16))
    top = (1 << min(depth, 16)) - 1
    tags: dict[int, tuple[int, ...] | bytes] = {}
    orientation = int(rng.integers(1, 9))
    tags[274] = (orientation,)
    values, alpha, reason = whole / top, None, None
    formula: Formula | None = {5: inks, 8: lab_d50}.get(photometric, plain)
    profile, rounding = None, 0
    stored: NDArray[Any] = whole
    if extra:
        tags[338] = ({"unspecified": 0, "associated": 1, "straight": 2}[extra],)
        alpha = values[..., -1] if extra != "unspecified" else None
        values = values[..., :-1]
        if alpha is not None and extra == "associated":
            stored = np.rint(np.concatenate([values * alpha[..., None], alpha[..., None]], -1) * top).astype(int)
        reason = "tiff-unspecified" if extra == "unspecified" else None
    if photometric == 0:
        stored = top - whole
    elif photometric == 3:
        table = rng.integers(0, 256, (1 << depth, 3))
        tags[320] = tuple(int(v) for v in (table * 257).T.ravel())
        values = table[whole[..., 0]] / 255
    elif photometric == 8:
        # CIELab's a and b are stored with a sign (TIFF 6.0, section 23).
        stored = np.concatenate([whole[..., :1], whole[..., 1:] ^ 128], axis=-1)
        reason = "tiff-lab"
    if depth == 32:
        stored, reason = stored / top, "tiff-float"
    way = "none"
    if photometric in (2, 3) and number % 3:
        chosen = by_profile()[number % len(by_profile())]
        way, profile, formula, tags[34675] = chosen.name, chosen.profile, None, chosen.profile or b""
        if depth == 16:
            formula, profile, reason = chosen.exact, None, reason or "icc-deep"
            rounding = int(chosen.wide)
    elif photometric == 5 and number % 2:
        way, profile, formula = "icc-cmyk", files.vips_profile("cmyk"), None
        tags[34675] = profile
    elif photometric == 1 and depth in (8, 16) and number % 3:
        way, profile, formula = "icc-grey", files.grey_profile(_GREY_GAMMAS[number % 3]), None
        tags[34675] = profile
    page = files.Page(samples=stored, depth=depth, photometric=photometric, tags=tags, deflate=bool(rng.integers(2)))
    small = files.Page(samples=np.full((20, 20, 1), 200), depth=8, photometric=1, tags={254: (1,)})
    other = files.Page(samples=np.full((30, 30, 1), 90), depth=8, photometric=1)
    pages = ([page], [page, small], [page, other, other])[number % 3]
    return Case(
        name=f"tiff-{number}-photometric{photometric}-{depth}bit-{extra or 'opaque'}-{way}-{len(pages)}pages{order}",
        format="TIFF", data=files.tiff(*pages, order=order), orientation=orientation, formula=formula,
        profile=profile, samples=values, alpha=alpha, reason=reason, rounding=rounding,
        tolerance=3 if photometric == 5 else 2,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------- the others


def other_cases(rng: np.random.Generator) -> Iterator[Case]:
    """WebP, GIF, BMP, MPO and, where Pillow writes it, AVIF."""
    for number in range(40):
        lossless, mode = bool(number % 2), ("RGB", "RGBA")[number // 2 % 2]
        picture = Image.fromarray(_smooth(rng, len(mode)))
        if lossless:
            picture = Image.fromarray(_levels(rng, len(mode), 8).astype(np.uint8))
        orientation = int(rng.integers(1, 9))
        way = by_profile()[number % len(by_profile())] if number % 3 else _NOTHING
        options: dict[str, object] = {"exif": files.exif([files.orientation_entry(orientation)])[6:]}
        if way.profile:
            options["icc_profile"] = way.profile
        if number % 10 == 9:
            options |= {"save_all": True, "append_images": [picture.rotate(180)]}
        data = files.saved(picture, "WEBP", lossless=lossless, exact=True, quality=90, **options)
        yield Case(
            name=f"webp-{number}-{mode}-{way.name}-exif{orientation}", format="WEBP", data=data,
            orientation=orientation, formula=way.formula, profile=way.profile,
        )  # fmt: skip
    yield from _palette_cases(rng)
    for number in range(6):
        orientation = int(rng.integers(1, 9))
        pictures = [Image.fromarray(_smooth(rng, 3)) for _ in range(2)]
        entry = files.exif([files.orientation_entry(orientation)])
        data = files.saved(pictures[0], "MPO", save_all=True, append_images=pictures[1:], exif=entry, quality=90)
        yield Case(name=f"mpo-{number}-exif{orientation}", format="MPO", data=data, orientation=orientation,
                   formula=plain)  # fmt: skip
    if features.check("avif"):
        yield from _avif_cases(rng)


def _palette_cases(rng: np.random.Generator) -> Iterator[Case]:
    for number in range(12):
        picture = Image.fromarray(_levels(rng, 1, 8)[..., 0].astype(np.uint8)).convert("P")
        picture.putpalette(rng.integers(0, 256, 768, dtype=np.uint8).tobytes())
        options: dict[str, object] = {"transparency": int(np.asarray(picture)[9, 9])} if number % 2 else {}
        if number % 4 == 3:
            options |= {"save_all": True, "append_images": [picture.rotate(180)]}
        yield Case(name=f"gif-{number}", format="GIF", data=files.saved(picture, "GIF", **options), formula=plain)
    for number, mode in enumerate(("1", "L", "P", "RGB", "RGBA", "RGB")):
        levels = _levels(rng, 4 if mode == "RGBA" else 3, 8).astype(np.uint8)
        picture = Image.fromarray(levels).convert(mode)
        if mode == "RGBA":
            levels[..., 3] = 255
            picture = Image.fromarray(levels)
        samples = np.asarray(picture.convert("RGB")) / 255
        yield Case(name=f"bmp-{number}-{mode}", format="BMP", data=files.saved(picture, "BMP"), formula=plain,
                   samples=samples, reason="bmp")  # fmt: skip


def _avif_cases(rng: np.random.Generator) -> Iterator[Case]:
    spaces = {
        (12, 13): rgb_formula(P3, decoded_srgb), (9, 13): rgb_formula(REC2020, decoded_srgb),
        (1, 8): rgb_formula(SRGB, gamma_curve(1.0)), (1, 1): plain, (2, 2): plain,
    }  # fmt: skip
    for number in range(32):
        mode = ("RGB", "RGBA", "RGB", "L")[number % 4]
        picture = Image.fromarray(_smooth(rng, len(mode)).squeeze())
        orientation = int(rng.integers(1, 9))
        options: dict[str, object] = {"exif": files.exif([files.orientation_entry(orientation)])[6:]}
        formula: Formula | None = plain
        way, profile, code_points = "none", None, None
        if mode != "L" and number % 3 == 1:
            chosen = by_profile()[number % len(by_profile())]
            way, formula, profile = chosen.name, None, chosen.profile
            options["icc_profile"] = profile
        elif mode != "L" and number % 3 == 2:
            code_points, formula = list(spaces.items())[number // 3 % len(spaces)]
            way = f"nclx-{code_points[0]}-{code_points[1]}"
        data = files.saved(picture, "AVIF", quality=90, subsampling="4:4:4", speed=10, max_threads=1, **options)
        if code_points:
            place = data.index(b"colrnclx") + 8
            data = data[:place] + struct.pack(">HH", *code_points) + data[place + 4 :]
        yield Case(name=f"avif-{number}-{mode}-{way}-irot{orientation}", format="AVIF", data=data,
                   orientation=orientation, formula=formula, profile=profile, rounding=1)  # fmt: skip


def is_excused(case: Case) -> bool:
    """Whether libvips alone sees anything else in a still than its judge does, as its reason says."""
    expected = case.expected()
    try:
        seen = by_libvips(case.data, case.formula, case.profile).low
    except pyvips.Error:
        return True
    return seen.shape != expected.low.shape or int(expected.distance(seen).max()) > case.tolerance


def cases(seed: int) -> list[Case]:
    """The whole corpus of a seed."""
    rng = np.random.default_rng(seed)
    makers = (png_cases, jpeg_cases, tiff_cases, other_cases)
    return [case for maker in makers for case in maker(rng)]
