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
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from pipeline.models.devices import off_card
from pipeline.samplers import SchedulerState

VERSION = 1
_MAGIC = b"CLIPMILL"


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
    #: Where it was made: dtype, layout, library versions. Told in the provenance, not compared.
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
    except (SafetensorError, ValueError, KeyError, struct.error) as error:
        raise CheckpointError(f"the checkpoint cannot be read ({error})") from error
    if document.get("version") != VERSION:
        raise CheckpointError("another version of checkpoints", f"version {document.get('version')}", f"{VERSION}")
    try:
        latents = tensors.pop("latents")
        state = document["scheduler"]
        return Checkpoint(
            identity=document["identity"],
            phase=document["phase"],
            step_index=document["step_index"],
            done=document["done"],
            latents=latents,
            scheduler=SchedulerState(
                kind=state["kind"],
                schedule=state["schedule"],
                tensors={name.removeprefix("scheduler."): tensor for name, tensor in tensors.items()},
                values=state["values"],
                on_cpu=tuple(state["on_cpu"]),
            ),
            conditions=document["conditions"],
            made=document["made"],
        )
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"the checkpoint lacks {error}") from error


def check(checkpoint: Checkpoint, identity: Mapping[str, Any]) -> None:
    """Raise `CheckpointError`, naming both sides, where the checkpoint is not one of the clip `identity` describes."""
    for name in sorted({*checkpoint.identity, *identity}):
        found, expected = checkpoint.identity.get(name), identity.get(name)
        if found != expected:
            raise CheckpointError(f"a checkpoint of another {name.replace('_', ' ')}", f"{found}", f"{expected}")
