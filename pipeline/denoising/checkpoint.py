"""Checkpoints: a clip between two steps as one small file that another renderer can go on from.

    8 bytes magic, 32 bytes SHA-256 of the rest, then safetensors whose metadata holds one JSON document

Latents and scheduler state travel; noise comes from a counter and conditioning is named by hash, so neither does.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from pipeline.denoising.samplers import SchedulerState
from pipeline.devices.emulated import off_card

VERSION = 1
_MAGIC = b"CLIPMILL"
_T = TypeVar("_T")


class CheckpointError(ValueError):
    """The checkpoint cannot be used for this clip: it is damaged, or `found` and `expected` differ."""

    def __init__(self, what: str, found: str = "", expected: str = "") -> None:
        self.what, self.found, self.expected = what, found, expected
        sides = f": the checkpoint has {found}, this clip needs {expected}" if found or expected else ""
        super().__init__(f"{what}{sides}")

    def __reduce__(self) -> tuple[type[CheckpointError], tuple[str, str, str]]:
        return type(self), (self.what, self.found, self.expected)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A clip between two steps."""

    #: What the clip is; all of it must match where the checkpoint is used.
    identity: Mapping[str, Any]
    #: Which of the clip's phases (a smaller base rendering first, then the clip itself) it stands in.
    phase: int
    #: Index of that phase's next timestep.
    step_index: int
    #: Steps done, those of earlier phases included.
    done: int
    #: (1, channels, frames, height, width), float32 or wider.
    latents: torch.Tensor
    scheduler: SchedulerState
    #: SHA-256 over the conditions it was made under.
    conditions: str
    #: Where it was made: dtype, layout, library versions, kernels. A clip goes on from it whatever it says, and is
    #: called bit-equal only where all of that is equal (`pipeline.kernels.kernels.equality`).
    made: Mapping[str, Any] = field(default_factory=dict)


def dump(checkpoint: Checkpoint) -> bytes:
    """The checkpoint as bytes; tensors are copied from the card."""
    with off_card():
        return _dump(checkpoint)


def _dump(checkpoint: Checkpoint) -> bytes:
    tensors = {"latents": checkpoint.latents.detach().to("cpu").contiguous()}
    tensors |= {f"scheduler.{name}": tensor for name, tensor in checkpoint.scheduler.tensors.items()}
    document = {
        "version": VERSION,
        "identity": dict(checkpoint.identity),
        "phase": checkpoint.phase,
        "step_index": checkpoint.step_index,
        "done": checkpoint.done,
        "scheduler": {
            "kind": checkpoint.scheduler.kind,
            "schedule": checkpoint.scheduler.schedule,
            "values": dict(checkpoint.scheduler.values),
            "on_cpu": list(checkpoint.scheduler.on_cpu),
            "recipe": checkpoint.scheduler.recipe,
            "sums": list(checkpoint.scheduler.sums),
        },
        "conditions": checkpoint.conditions,
        "made": dict(checkpoint.made),
    }
    body = save(tensors, metadata={"checkpoint": json.dumps(document, sort_keys=True)})
    return _MAGIC + hashlib.sha256(body).digest() + body


def parse(data: bytes) -> Checkpoint:
    """The checkpoint in `data`. Raises `CheckpointError` for damaged bytes or another format version."""
    if data[: len(_MAGIC)] != _MAGIC:
        raise CheckpointError("not a checkpoint", repr(data[: len(_MAGIC)]), repr(_MAGIC))
    start = len(_MAGIC) + 32
    digest, body = data[len(_MAGIC) : start], data[start:]
    if hashlib.sha256(body).digest() != digest:
        raise CheckpointError(
            "the checkpoint is damaged", f"SHA-256 {hashlib.sha256(body).hexdigest()[:12]}", digest.hex()[:12]
        )
    try:
        (header_bytes,) = struct.unpack_from("<Q", body)
        document = json.loads(json.loads(body[8 : 8 + header_bytes])["__metadata__"]["checkpoint"])
        with off_card():
            tensors = load(body)
    # Whoever may write storage may write anything under a right hash: JSON of another form, or nested too deep.
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError, OverflowError, struct.error) as error:
        raise CheckpointError(f"the checkpoint cannot be read ({error})") from error
    if not isinstance(document, dict) or document.get("version") != VERSION:
        found = document.get("version") if isinstance(document, dict) else type(document).__name__
        raise CheckpointError("another version of checkpoints", f"version {found}", f"{VERSION}")
    try:
        return _checkpoint_of(document, tensors)
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"the checkpoint lacks {error}") from error


def _checkpoint_of(document: Mapping[str, Any], tensors: dict[str, torch.Tensor]) -> Checkpoint:
    """Raises `KeyError` for what is missing and `CheckpointError` for what is of another type, or not finite."""
    latents = tensors.pop("latents")
    state = _typed(document, "scheduler", dict)
    if latents.ndim != 5 or not latents.is_floating_point() or not bool(torch.isfinite(latents).all()):
        raise CheckpointError("the checkpoint has latents that are no clip", f"{tuple(latents.shape)}, {latents.dtype}")
    if strangers := sorted(name for name in tensors if not name.startswith("scheduler.")):
        raise CheckpointError("the checkpoint has tensors of something else", ", ".join(strangers)[:200])
    sums = tuple(state.get("sums", ()))
    if not all(isinstance(value, float) for value in sums):
        raise CheckpointError("the checkpoint's schedule is no list of numbers")
    return Checkpoint(
        identity=_typed(document, "identity", dict),
        phase=_natural(document, "phase"),
        step_index=_natural(document, "step_index"),
        done=_natural(document, "done"),
        latents=latents,
        scheduler=SchedulerState(
            kind=_typed(state, "kind", str),
            schedule=_typed(state, "schedule", str),
            tensors={name.removeprefix("scheduler."): tensor for name, tensor in tensors.items()},
            values=_typed(state, "values", dict),
            on_cpu=tuple(_typed(state, "on_cpu", list)),
            recipe=str(state.get("recipe", "")),
            sums=sums,
        ),
        conditions=_typed(document, "conditions", str),
        made=_typed(document, "made", dict),
    )


def _typed(table: Mapping[str, Any], name: str, kind: type[_T]) -> _T:
    value = table[name]
    if not isinstance(value, kind):
        raise CheckpointError(f"the checkpoint's {name} is no {kind.__name__}", type(value).__name__)
    return value


def _natural(table: Mapping[str, Any], name: str) -> int:
    value = table[name]
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise CheckpointError(f"the checkpoint's {name} is no count", repr(value)[:40])
    return value


def check(checkpoint: Checkpoint, identity: Mapping[str, Any]) -> None:
    """Raise `CheckpointError`, naming both sides, where the checkpoint is not one of the clip `identity` describes."""
    for name in sorted({*checkpoint.identity, *identity}):
        found, expected = checkpoint.identity.get(name), identity.get(name)
        if found != expected:
            raise CheckpointError(f"a checkpoint of another {name.replace('_', ' ')}", f"{found}", f"{expected}")
