"""Bodies of requests that are read by hand, being JSON or forms, as OpenAPI describes them."""

from __future__ import annotations

from typing import Any

from pipeline.clips.clip import Autofix, Fit, ResolutionClass, Sampler, Tier, Upscale
from serve.gateway.openai.fields import PLAIN, RENAMED, UNUSED

_NUMBER = {"type": "number"}
_WHOLE = {"type": "integer", "minimum": 1}
_TEXT = {"type": "string"}
_REFERENCE = {
    "type": "object",
    "properties": {"image_url": {"type": "string", "format": "uri"}, "file_id": _TEXT},
    "description": "An https URL that the farm may ask, a `data:` URL, or the id of a file that was handed in.",
}
#: Field → (schema, what it says). Fields that are not here are texts.
_FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "prompt": (_TEXT, "What moves, and how. Models that do not read prompts do without."),
    "negative_prompt": (_TEXT, "What the clip shall not show."),
    "model": (_TEXT, "A model of `GET /v1/models`, or its weights' name on their hub; default: the farm's."),
    "size": ({"type": "string", "examples": ["1280x720"]}, "Width and height; the nearest that the model renders."),
    "width": (_WHOLE, "With `height`, in place of `size`."),
    "height": (_WHOLE, "With `width`, in place of `size`."),
    "seconds": ({"type": ["string", "number"]}, "Length of the clip."),
    "num_frames": (_WHOLE, "Length of the clip in frames, in place of `seconds`."),
    "fps": (_WHOLE, "Frames a second."),
    "seed": ({"type": "integer", "minimum": 0}, "The same request with the same seed is the same clip."),
    "num_inference_steps": (_WHOLE, "Denoising steps."),
    "guidance_scale": (_NUMBER, "How closely the clip follows the prompt; 1: not."),
    "input_reference": (_REFERENCE, "The picture that the video is made of; in a form also a file."),
    "image_reference": (_REFERENCE, "The picture, in place of `input_reference`."),
    "extra_params": ({"type": "object"}, "Any other field."),
    "video_params": ({"type": "object"}, "width, height, num_frames and fps."),
    "user": (_TEXT, "Kept with the video."),
    "metadata": ({"type": "object"}, "Kept with the video."),
    "strict": ({"type": "boolean"}, "Refuse what the model cannot take, instead of taking the nearest that it can."),
    "timeout_s": (_NUMBER, "Seconds that `/v1/videos/sync` waits."),
    "webhook_url": (
        {"type": "string", "format": "uri"},
        "An https or http URL that is told of the video's end (docs/webhooks.md).",
    ),
    "tier": ({"enum": [one.value for one in Tier]}, "Quality and time: steps, frames and frames a second."),
    "resolution_class": ({"enum": [one.value for one in ResolutionClass]}, "Pixels, in place of `size`."),
    "aspect": ({"type": "string", "examples": ["16:9"]}, "With `resolution_class`; default: the picture's."),
    "aspect_ratio": ({"type": "string", "examples": ["16:9"]}, "The same as `aspect`."),
    "priority": ({"type": "integer"}, "Higher starts earlier."),
    "interactive": (
        {"type": "boolean", "default": True},
        "Go before batches, as far as the farm's share for such clips goes; `false`: wait as a row of a batch.",
    ),
    "not_before": (_TEXT, "A time before which it does not start."),
    "fit": ({"enum": [one.value for one in Fit]}, "How the picture fills the frame."),
    "autofix": (_TEXT, "What of the picture is mended first: " + ", ".join(Autofix) + ", with commas between them."),
    "sampler": ({"enum": [one.value for one in Sampler]}, "Solver."),
    "window": ({"type": "integer", "minimum": 0}, "Frames denoised at once, of a longer clip."),
    "window_overlap": ({"type": "integer", "minimum": 0}, "Frames that neighbouring windows share."),
    "step_cache": (_WHOLE, "Steps for which deep layers are reused; 1: none."),
    "motion_class": ({"enum": [one.value for one in ResolutionClass]}, "Smaller class that the motion is made in."),
    "from_draft": ({"type": "boolean"}, "Start from the clip's own draft."),
    "strength": (_NUMBER, "With `motion_class` or `from_draft`: share of the steps done on the enlarged clip."),
    "upscale": ({"enum": [one.value for one in Upscale]}, "With these: what is enlarged."),
    "min_fidelity": (_NUMBER, "0 to 1: a clip that is less true to the picture is made again from another seed."),
    "rerolls": (
        {"type": "integer", "minimum": 0},
        "With `min_fidelity`: clips that may be made besides the first one.",
    ),
}
_OTHERS = tuple(name for name in _FIELDS if name not in PLAIN and name not in RENAMED)


def _properties() -> dict[str, Any]:
    names = dict.fromkeys((*RENAMED, *PLAIN, *_OTHERS))
    known = {name: {**_FIELDS[name][0], "description": _FIELDS[name][1]} for name in names}
    unused = {name: {"description": "Read by other servers; taken, and noted as unused."} for name in UNUSED}
    return known | unused


def _body(properties: dict[str, Any], required: list[str], *kinds: str) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return {"requestBody": {"required": True, "content": {kind: {"schema": schema} for kind in kinds}}}


_PROPERTIES = _properties()
_AS_FORM = _PROPERTIES | {
    name: {"type": "string", "format": "binary", "description": _FIELDS[name][1]}
    for name in ("input_reference", "image_reference")
}
#: The body of a request for a video.
VIDEO_BODY = _body(_PROPERTIES, [], "application/json")
VIDEO_BODY["requestBody"]["content"] |= _body(_AS_FORM, [], "multipart/form-data")["requestBody"]["content"]
#: The body of a request that hands a still in.
FILE_BODY = _body(
    {"file": {"type": "string", "format": "binary"}, "purpose": {"enum": ["vision", "user_data", "batch"]}},
    ["file"],
    "multipart/form-data",
)
