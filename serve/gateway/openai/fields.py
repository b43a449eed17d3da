"""The fields of a request for a video, by the names that OpenAI and vLLM-Omni give them, as the columns of a row."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.catalog.cells import READERS, depth_of, number_of, shown, text_of
from cluster.catalog.manifest import Row
from cluster.catalog.tables import MAX_JSON_DEPTH
from cluster.jobs.strict import refusals
from cluster.webhooks.model import check_webhook_url
from pipeline.clips.clip import ResolutionClass
from pipeline.families import FAMILIES, Family, family_named, size_for
from pipeline.notes import ADJUSTED, Note
from pipeline.problems import BadInputError

#: Names of clients' fields for columns that are called otherwise here.
RENAMED = {
    "num_frames": "frames",
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "aspect_ratio": "aspect",
}
#: Columns that are fields under their own names: what OpenAI has too, and what only this farm has.
PLAIN = (
    *("prompt", "negative_prompt", "seconds", "fps", "seed"),
    *(
        "tier",
        "resolution_class",
        "aspect",
        "priority",
        "interactive",
        "not_before",
        "fit",
        "autofix",
        "sampler",
        "window",
        "window_overlap",
    ),
    *("step_cache", "motion_class", "from_draft", "strength", "upscale", "min_fidelity", "rerolls"),
)
#: Fields of other servers that change nothing here, with the values that ask for nothing.
UNUSED: Mapping[str, tuple[object, ...]] = {
    "guidance_scale_2": (),
    "boundary_ratio": (),
    "flow_shift": (),
    "true_cfg_scale": (),
    "generate_sound": (False, "false", "False", "0", 0),
    "sound_duration": (),
    "enable_frame_interpolation": (False, "false", "False", "0", 0),
    "frame_interpolation_exp": (),
    "frame_interpolation_scale": (),
    "frame_interpolation_model_path": (),
    "lora": (),
    "video_reference": (),
    "audio_reference": (),
    "quality": ("default", "standard", "auto"),
    "style": (),
    "response_format": ("url", "b64_json"),
    "output_format": ("mp4",),
    "n": (1, "1"),
    "num_outputs_per_prompt": (1, "1"),
}
#: Unused fields that ask for several videos.
_COUNTS = ("n", "num_outputs_per_prompt")
#: Fields that are no column: what a request is about, and how it is dealt with.
OTHERS = (
    *("model", "size", "width", "height", "input_reference", "image_reference", "video_params", "extra_params"),
    *("user", "metadata", "strict", "timeout_s", "webhook_url"),
)
#: All fields of a request.
FIELDS = frozenset((*RENAMED, *PLAIN, *UNUSED, *OTHERS))

_COLUMN_OF = {name: name for name in PLAIN} | RENAMED
_NAME_OF = {column: name for name, column in RENAMED.items() if column not in PLAIN} | {"image": "input_reference"}
_SIZE = re.compile(r"([1-9][0-9]{0,4})\s*[x×*]\s*([1-9][0-9]{0,4})", re.IGNORECASE)
#: Characters of what is only kept with a video, as JSON.
_MAX_KEPT = 16_384
#: The longest side that may be asked for, in pixels.
_MAX_SIDE = 16_384


@dataclass(frozen=True, kw_only=True)
class VideoRequest:
    """A request's fields, read one by one."""

    #: The row without its picture.
    row: Row
    family: Family
    #: Refuse what the family cannot take, instead of adjusting it.
    strict: bool
    #: Seconds that `/v1/videos/sync` waits.
    timeout_s: float | None
    #: Where the video's end is told, besides the owner's webhooks.
    webhook_url: str | None = None
    notes: tuple[Note, ...] = field(default=())


def param_of(column: str) -> str:
    """What a request calls a column; other names as they are."""
    return _NAME_OF.get(column, column)


def read_fields(values: Mapping[str, Any], default_model: str) -> VideoRequest:
    """The fields of a request as a row. Raises `BadInputError`, its field named as the request names it."""
    values = _flat(values)
    if unknown := sorted(set(values) - FIELDS):
        raise BadInputError(unknown[0], "there is no such field", _remedy_for(unknown[0]))
    notes: list[Note] = []
    family = _family(values.get("model"), default_model)
    strict = bool(_read("strict", "from_draft", values["strict"], notes)) if "strict" in values else False
    columns = {
        column: _read(name, column, values[name], notes) for name, column in _COLUMN_OF.items() if name in values
    }
    if "frames" in columns and columns.pop("seconds", None) is not None:
        notes.append(Note(code="unused", message="seconds unused: num_frames was given"))
    if "aspect" in values and "aspect_ratio" in values:
        raise BadInputError("aspect_ratio", "aspect says it too", "Give one of them.")
    columns |= _size(values, columns, family, strict, notes)
    notes += _unused(values, strict)
    if strict and (problems := refusals(notes)):
        found = problems[0]
        raise BadInputError("guidance_scale" if found.field == "guidance" else found.field, found.message, found.remedy)
    timeout = values.get("timeout_s")
    if timeout is not None:
        timeout = number_of("timeout_s", timeout, notes, minimum=0, maximum=3600)
    webhook_url = values.get("webhook_url")
    if webhook_url is not None:
        if not isinstance(webhook_url, str):
            raise BadInputError("webhook_url", f"{shown(webhook_url)} is no URL", "Send it as text.")
        check_webhook_url(webhook_url, "webhook_url")
    extra = {name: values[name] for name in ("user", "metadata") if name in values}
    for name, value in extra.items():
        if len(json.dumps(value)) > _MAX_KEPT:
            raise BadInputError(name, f"more than {_MAX_KEPT:,} characters", "Send less: it is only kept.")
        if depth_of(value) > MAX_JSON_DEPTH:
            raise BadInputError(name, f"values more than {MAX_JSON_DEPTH} deep in each other", "Send flat values.")
    # What a text of a form or a number of JSON was read as is no news to a program.
    told = tuple(note for note in notes if note.code != "number_read")
    row = Row(number=1, id="video", image="input_reference", model=family.name, extra=extra, notes=told, **columns)
    return VideoRequest(row=row, family=family, strict=strict, timeout_s=timeout, webhook_url=webhook_url, notes=told)


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the request and of its blocks `video_params` and `extra_params`; what is null is left out."""
    found = {name: value for name, value in values.items() if value is not None and value != ""}
    for block in ("video_params", "extra_params"):
        inner = found.pop(block, None)
        if inner is None:
            continue
        if not isinstance(inner, Mapping):
            raise BadInputError(block, f"{shown(inner)} is no object", 'Send fields and values, as {"tier": "draft"}.')
        # The request's own fields go first, as vLLM-Omni has it.
        found = {name: value for name, value in inner.items() if value is not None and value != ""} | found
    return found


def _read(name: str, column: str, value: object, notes: list[Note]) -> Any:
    if name == "guidance_scale":
        value = _guidance(value, notes)
    # One video has one prompt, where a row of a manifest may have several.
    reader = text_of if column == "prompt" else READERS[column]
    try:
        return reader(name, value, notes)
    except BadInputError as error:
        # Some readers name a column of theirs.
        raise BadInputError(name, error.problem.message, error.problem.remedy) from error


def _guidance(value: object, notes: list[Note]) -> object:
    """A scale below 1 is that of a request without guidance, which is 1 here."""
    try:
        scale = number_of("guidance_scale", value, [], minimum=0, maximum=math.inf)
    except BadInputError:
        return value
    if scale >= 1:
        return value
    notes.append(Note(code="guidance" + ADJUSTED, message=f"guidance_scale {scale:g} -> 1: no guidance"))
    return 1


def _family(model: object, default_model: str) -> Family:
    """The family of this name, or whose weights are called so on their hub."""
    if model is None:
        return family_named(default_model)
    text = model.strip() if isinstance(model, str) else model
    if text == "auto":
        return family_named(default_model)
    of_hub = [family for family in FAMILIES.values() if isinstance(text, str) and family.repo == text]
    if of_hub:
        return of_hub[0]
    if not isinstance(text, str) or text.lower() not in FAMILIES:
        remedy = f"Choose one of: {', '.join(FAMILIES)}; or leave it out for {default_model}."
        raise BadInputError("model", f"{shown(model)} is not a model of this farm", remedy)
    return FAMILIES[text.lower()]


def _size(
    values: Mapping[str, Any], columns: Mapping[str, Any], family: Family, strict: bool, notes: list[Note]
) -> dict[str, Any]:
    """Class and aspect of the size that is asked for, as `size` or as `width` and `height`; {} where none is."""
    found = _pixels(values)
    if found is None:
        return {}
    name, (width, height) = found
    if clash := [column for column in ("resolution_class", "aspect") if columns.get(column) is not None]:
        raise BadInputError(clash[0], f"{name} says it too", f"Give {name}, or resolution_class and aspect.")
    sizes = {one: size_for(one, width / height, family.stride, family.native_sizes) for one in family.classes}
    nearest = min(sizes, key=lambda one: abs(math.log(sizes[one][0] * sizes[one][1] / (width * height))))
    there = sizes[nearest]
    if there != (width, height):
        change = f"{width}x{height} -> {there[0]}x{there[1]}: the nearest that {family.name} renders"
        if strict:
            raise BadInputError(
                name, f"{family.name} does not render {width}x{height}", f"Ask for {there[0]}x{there[1]}."
            )
        notes.append(Note(code="size" + ADJUSTED, message=f"size {change}"))
    return {"resolution_class": ResolutionClass(nearest), "aspect": f"{width}:{height}"}


def _pixels(values: Mapping[str, Any]) -> tuple[str, tuple[int, int]] | None:
    size = values.get("size")
    if size is not None and size != "auto":
        match = _SIZE.fullmatch(size.strip()) if isinstance(size, str) else None
        if not match:
            raise BadInputError("size", f"{shown(size)} is not a size", "Write it as 1280x720, width first.")
        return "size", _within("size", int(match[1]), int(match[2]))
    sides = {name: values[name] for name in ("width", "height") if name in values}
    if not sides:
        return None
    if len(sides) == 1:
        (there,) = sides
        missing = "height" if there == "width" else "width"
        raise BadInputError(missing, f"{there} alone says no size", f"Give {missing} as well, or neither.")
    read = [int(number_of(name, sides[name], [], minimum=1, maximum=_MAX_SIDE, whole=True)) for name in sides]
    by_name = dict(zip(sides, read, strict=True))
    return "width", _within("width", by_name["width"], by_name["height"])


def _within(name: str, width: int, height: int) -> tuple[int, int]:
    if max(width, height) > _MAX_SIDE:
        raise BadInputError(name, f"{width}x{height} is larger than any clip", "Ask for 1024 pixels a side or so.")
    return width, height


def _unused(values: Mapping[str, Any], strict: bool) -> list[Note]:
    notes = []
    for name, nothing in UNUSED.items():
        if name not in values or values[name] in nothing:
            continue
        if name in _COUNTS:
            raise BadInputError(name, "one request is for one video", "Send as many requests, each with a seed.")
        if strict:
            raise BadInputError(name, "this farm cannot do what it asks for", "Leave it out, or strict.")
        notes.append(Note(code="unused", message=f"{name} unused: this farm has nothing that it changes"))
    return notes


def _remedy_for(name: str) -> str:
    close = difflib.get_close_matches(name.lower(), sorted(FIELDS), n=1, cutoff=0.7)
    return f"Did you mean {close[0]}?" if close else "Leave it out; GET /docs lists the fields there are."
