"""What each marketplace takes, as data: `profiles.yaml` beside this module, and a file of one's own over it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from datetime import date
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from pipeline.problems import BadInputError
from pipeline.small_files import read_small_file

#: Raised whenever the same clip and profile would give another file: files of before are made anew.
DELIVERY_VERSION = 1

#: Names of profiles: part of file names and URLs.
PROFILE_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
#: Profiles that one row may ask for, and that one file may hold.
MAX_PROFILES = 16
MAX_PROFILES_OF_FILE = 200
#: Bytes of a file of profiles that are read.
MAX_FILE_BYTES = 1 << 20
_BUILT_IN = Path(__file__).with_name("profiles.yaml")
_FIELD = "deliver"
#: What says where a rule comes from and decides no file.
_WORDS = {"title", "source", "checked", "note"}


class BackgroundFill(StrEnum):
    """What fills a frame beside the clip where a crop would cut the product."""

    #: The smooth background at the clip's own border, continued outward.
    PLAIN = "plain"
    #: What is smooth of the clip's border, else the clip mirrored, the more blurred the further from it.
    BLURRED = "blurred"


class Lengthening(StrEnum):
    """How a clip becomes longer."""

    #: Repeated where it ends as it begins, else played to its end and back.
    AUTO = "auto"
    #: Repeated from its first frame.
    LOOP = "loop"
    #: Forward to the end and backward to the beginning.
    PING_PONG = "ping-pong"
    #: Repeated, its end faded into its beginning.
    CROSS_FADE = "cross-fade"


class Audio(StrEnum):
    """What a file has to be heard."""

    #: No track at all.
    NONE = "none"
    #: A track that is silent.
    SILENT = "silent"


class SafeArea(BaseModel):
    """How much of each side of a frame the marketplace's own signs may cover, as shares of width and height."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    left: float = Field(default=0.0, ge=0, lt=0.5)
    top: float = Field(default=0.0, ge=0, lt=0.5)
    right: float = Field(default=0.0, ge=0, lt=0.5)
    bottom: float = Field(default=0.0, ge=0, lt=0.5)


class DeliveryProfile(BaseModel):
    """One kind of file that a marketplace takes. Every rule is checked on the finished file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=rf"^{PROFILE_NAME.pattern}$")
    #: For people.
    title: str
    #: Where the rules stand, and when they were read there.
    source: str
    checked: date
    #: What a person should know besides.
    note: str = ""
    #: Pixels.
    width: int = Field(ge=64, le=7680, multiple_of=2)
    height: int = Field(ge=64, le=7680, multiple_of=2)
    #: Length in seconds.
    min_seconds: float = Field(default=0.0, ge=0)
    max_seconds: float = Field(gt=0, le=3600)
    #: Constant frame rates that files are made with, the preferred one first; and what the marketplace takes.
    rates: tuple[int, ...] = Field(min_length=1)
    min_fps: float = Field(gt=0)
    max_fps: float = Field(gt=0)
    #: Bits a second of the pictures alone; 0 and None: any.
    min_bit_rate: int = Field(default=0, ge=0)
    max_bit_rate: int | None = Field(default=None, gt=0)
    max_bytes: int = Field(gt=0)
    audio: Audio = Audio.NONE
    #: Samples a second, channels and bits a second of the silent track.
    audio_rate: int = 48_000
    audio_channels: int = 2
    audio_bit_rate: int = 192_000
    #: What may fill the frame beside the clip, the preferred one first; (): nothing may.
    backgrounds: tuple[BackgroundFill, ...] = (BackgroundFill.PLAIN, BackgroundFill.BLURRED)
    #: Largest share of the frame that such a background may take.
    most_continued: float = Field(default=0.7, ge=0, lt=1)
    #: Whether players repeat the file, so that its end should lead to its beginning.
    loops: bool = False
    #: Preferred way to lengthen.
    lengthening: Lengthening = Lengthening.AUTO
    #: Whether overlays are taken at all.
    overlays: bool = True
    safe_area: SafeArea = SafeArea()

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.width, self.height

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of all that decides a file; where the rules come from is not part of it."""
        rules = self.model_dump(mode="json", exclude=_WORDS)
        content = json.dumps([DELIVERY_VERSION, rules], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()

    @model_validator(mode="after")
    def _can_be_met(self) -> Self:
        if self.min_seconds > self.max_seconds:
            raise ValueError(f"min_seconds {self.min_seconds:g} is more than max_seconds {self.max_seconds:g}")
        if self.min_fps > self.max_fps or not all(self.min_fps <= rate <= self.max_fps for rate in self.rates):
            raise ValueError(
                f"rates {self.rates} are not all from {self.min_fps:g} to {self.max_fps:g} frames a second"
            )
        if self.max_bit_rate is not None and self.min_bit_rate * 1.1 > self.max_bit_rate:
            raise ValueError("max_bit_rate has to be a tenth above min_bit_rate at least")
        if self.min_bit_rate / 8 * self.min_seconds > self.max_bytes:
            raise ValueError("min_bit_rate for min_seconds is more than max_bytes")
        return self


class DeliveryProfiles:
    """Profiles by name."""

    def __init__(self, profiles: Iterable[DeliveryProfile]) -> None:
        self._by_name = {profile.name: profile for profile in profiles}

    @property
    def names(self) -> list[str]:
        """The names of all profiles, sorted."""
        return sorted(self._by_name)

    def named(self, name: str) -> DeliveryProfile:
        """The profile of that name. Raises `BadInputError` where there is none."""
        if name not in self._by_name:
            remedy = f"Choose some of: {', '.join(self.names)}; or describe your own in profiles.yaml."
            raise BadInputError(_FIELD, f"{name[:40]!r} is no delivery profile", remedy)
        return self._by_name[name]


def profile_names_of(value: object) -> tuple[str, ...]:
    """Names of profiles, each once, in their order: a list of names, or a text with commas between them.

    `none` names nothing. Raises `ValueError` for what cannot be a name; whether there is such a profile is for
    `DeliveryProfiles`.
    """
    names = value.replace(",", " ").replace(";", " ").split() if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise ValueError("name profiles such as google, with commas between them")
    found = tuple(dict.fromkeys(name.strip().lower().replace("_", "-") for name in names))
    if bad := next((name for name in found if not PROFILE_NAME.fullmatch(name)), None):
        raise ValueError(f"{bad[:40]!r} cannot be the name of a delivery profile")
    found = tuple(name for name in found if name != "none")
    if len(found) > MAX_PROFILES:
        raise ValueError(f"{len(found)} delivery profiles are more than {MAX_PROFILES}")
    return found


#: A field of a model for what `profile_names_of` reads.
ProfileNames = Annotated[tuple[str, ...], BeforeValidator(profile_names_of)]


@cache
def built_in() -> DeliveryProfiles:
    """The profiles that come with clipmill."""
    return DeliveryProfiles(profiles_of(_BUILT_IN.read_bytes(), _BUILT_IN.name))


def read_profiles(path: Path | None) -> DeliveryProfiles:
    """The built-in profiles, and those of the file at `path` over them: one of a known name takes its place.

    Raises `BadInputError` where the file cannot be read, or a profile in it cannot be.
    """
    if path is None:
        return built_in()
    remedy = "Name the file with --profiles, or write profiles.yaml into the farm's home."
    large = "Leave out what is no profile."
    data = read_small_file(path, MAX_FILE_BYTES, _FIELD, unreadable=remedy, too_large=large)
    known = built_in()
    own = profiles_of(data, str(path), known)
    return DeliveryProfiles([*(known.named(name) for name in known.names), *own])


def profiles_of(data: bytes, source: str, known: DeliveryProfiles | None = None) -> list[DeliveryProfile]:
    """The profiles that the YAML text `data` holds; `source` names it in errors. Raises `BadInputError`.

    One that says `like: NAME` has everything it does not say from that one of `known`.
    """
    form = "Write `name:` and its rules below it, as docs/deliveries.md shows."
    try:
        found: Any = yaml.safe_load(data.decode("utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise BadInputError(_FIELD, f"{source} is no YAML: {str(error).splitlines()[0][:200]}", form) from error
    if not isinstance(found, dict) or len(found) > MAX_PROFILES_OF_FILE:
        raise BadInputError(_FIELD, f"{source} is no table of up to {MAX_PROFILES_OF_FILE} profiles", form)
    return [_profile(str(name), rules, source, form, known) for name, rules in found.items()]


def _profile(name: str, rules: object, source: str, form: str, known: DeliveryProfiles | None) -> DeliveryProfile:
    if not isinstance(rules, Mapping):
        raise BadInputError(_FIELD, f"{source}: {name[:40]}: no table of rules", form)
    said = {str(key): value for key, value in rules.items()}
    like = said.pop("like", None)
    base = known.named(str(like)).model_dump() if known is not None and like is not None else {}
    try:
        return DeliveryProfile.model_validate(base | said | {"name": name})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join([name[:40], *map(str, first["loc"])])
        raise BadInputError(_FIELD, f"{source}: {where}: {first['msg']}", form) from error
