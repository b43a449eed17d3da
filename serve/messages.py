"""What crosses between dispatcher and renderers: plain dicts, so that no pickled class ties their versions."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from cluster.jobs import Checkpoint, Ended, Objects, Outcome, Overflow
from cluster.lessons import Peak
from cluster.renderers import CardFree, CheckpointFailed, CheckpointSaved, Event, StepDone
from pipeline.layouts import Layout
from pipeline.problems import Problem

#: First message of every stream: the renderer has the assignment.
ACCEPTED: dict[str, Any] = {"event": "accepted"}


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
            body = asdict(event)
            body["outcome"] = event.outcome.value
            body["problem"] = event.problem.model_dump() if event.problem else None
            # Only the dispatcher's clock has it.
            del body["timed"]
            body["peaks"] = [asdict(peak) | {"layout": peak.layout.model_dump(mode="json")} for peak in event.peaks]
            return {"event": "ended", **body}


def event_from_wire(message: dict[str, Any]) -> Event:
    """The event of a dict made by `event_to_wire`. Raises `ValueError` for an unknown one."""
    body = dict(message)
    match body.pop("event"):
        case "step":
            return StepDone(**body)
        case "card_free":
            return CardFree()
        case "checkpoint":
            return CheckpointSaved(Checkpoint(**body))
        case "checkpoint_failed":
            return CheckpointFailed(**body)
        case "ended":
            body["outcome"] = Outcome(body["outcome"])
            body["problem"] = Problem.model_validate(body["problem"]) if body["problem"] else None
            body["checkpoint"] = Checkpoint(**body["checkpoint"]) if body["checkpoint"] else None
            body["objects"] = Objects(**body["objects"]) if body["objects"] else None
            body["peaks"] = tuple(
                Peak(**peak | {"layout": Layout.model_validate(peak["layout"])}) for peak in body.get("peaks", ())
            )
            body["overflows"] = tuple(Overflow(**overflow) for overflow in body.get("overflows", ()))
            return Ended(**body)
        case other:
            raise ValueError(f"unknown event {other!r} from a renderer: is it of another version?")
