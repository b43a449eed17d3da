"""What crosses between dispatcher and renderers: plain dicts, so that no pickled class ties their versions."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import MISSING, asdict, fields
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from cluster.dispatch.protocol import CardFree, CheckpointFailed, CheckpointSaved, Event, StepDone
from cluster.jobs.model import Objects, Outcome, StoredCheckpoint
from cluster.jobs.outcomes import ENDINGS, Ended, Overflow, Peak
from pipeline.families.layouts import Layout
from pipeline.fidelity.score import score_from
from pipeline.kernels.measured import KernelRun
from pipeline.notes import as_json, notes_from
from pipeline.problems import Problem

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

log = logging.getLogger("clipmill.dispatcher")

#: First message of every stream: the renderer has the assignment.
ACCEPTED: dict[str, Any] = {"event": "accepted"}

#: Keys of an attempt's completion that only some outcomes have, with what they hold for the others.
_ALL_KEYS: dict[str, Any] = {
    field.name: None if field.default is MISSING else field.default
    for kind in ENDINGS.values()
    for field in fields(kind)
}


def event_to_wire(event: Event) -> dict[str, Any]:
    """A JSON-able dict of an event."""
    match event:
        case StepDone():
            return {"event": "step", "step": event.step, "steps": event.steps}
        case CardFree():
            return {"event": "card_free"}
        case CheckpointSaved():
            return {"event": "checkpoint", **asdict(event.checkpoint)}
        case CheckpointFailed():
            return {"event": "checkpoint_failed", "step": event.step, "detail": event.detail}
        case Ended():
            # Every key is there whatever the outcome, as renderers and dispatchers of other versions know them.
            body = _ALL_KEYS | asdict(event) | {"outcome": event.outcome.value}
            # Only the dispatcher's clock has it.
            del body["timed"]
            # Only where there are some: versions without it do not know the key.
            if notes := body.pop("notes"):
                body["notes"] = as_json(notes)
            if (fidelity := body.pop("fidelity")) is not None:
                body["fidelity"] = fidelity.model_dump()
            if body.pop("denoised"):
                body["denoised"] = True
            if problem := getattr(event, "problem", None):
                body["problem"] = problem.model_dump()
            body["kernel_runs"] = [run.model_dump(mode="json") for run in event.kernel_runs]
            body["peaks"] = [asdict(peak) | {"layout": peak.layout.model_dump(mode="json")} for peak in event.peaks]
            return {"event": "ended", **body}


def event_from_wire(message: dict[str, Any]) -> Event | None:
    """The event of a dict made by `event_to_wire`, of this version or another; None for a kind that is not known.

    Keys that are not known are ignored: a renderer may be newer than its dispatcher.
    """
    body = dict(message)
    match body.pop("event"):
        case "step":
            return StepDone(**_known(StepDone, body))
        case "card_free":
            return CardFree()
        case "checkpoint":
            return CheckpointSaved(StoredCheckpoint(**_known(StoredCheckpoint, body)))
        case "checkpoint_failed":
            return CheckpointFailed(**_known(CheckpointFailed, body))
        case "ended":
            kind = ENDINGS[Outcome(body.pop("outcome"))]
            for name, part in (("checkpoint", StoredCheckpoint), ("objects", Objects)):
                body[name] = part(**_known(part, body[name])) if body[name] else None
            problem = body["problem"]
            body["problem"] = Problem(**{name: problem[name] for name in Problem.model_fields}) if problem else None
            body["notes"] = notes_from(body.get("notes"))
            body["fidelity"] = score_from(body.get("fidelity"))
            body["peaks"] = tuple(_peaks(body.get("peaks", ())))
            body["kernel_runs"] = tuple(_kernel_runs(body.get("kernel_runs", ())))
            body["overflows"] = tuple(Overflow(**_known(Overflow, one)) for one in body.get("overflows", ()))
            ended: Ended = kind(**_known(kind, body))
            return ended
        case other:
            # Of a newer renderer: what it tells besides the rest.
            log.debug("an event of a kind that is not known: %r", other)
            return None


def _known(kind: type[DataclassInstance], body: Mapping[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(kind)}
    return {key: value for key, value in body.items() if key in names}


def _kernel_runs(messages: Iterable[Mapping[str, Any]]) -> Iterator[KernelRun]:
    for message in messages:
        # In a layout or a mode of a newer renderer it says nothing here.
        with suppress(ValidationError):
            yield KernelRun.model_validate(message)


def _peaks(messages: Iterable[Mapping[str, Any]]) -> Iterator[Peak]:
    for message in messages:
        try:
            layout = Layout.model_validate(message["layout"])
        except ValidationError:
            # A switch of a newer renderer: measured in another layout than any that is known here, it says nothing.
            continue
        yield Peak(**_known(Peak, message) | {"layout": layout})
