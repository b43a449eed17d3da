"""Every out-of-memory is counted, also those that an attempt recovered from on its card."""

from __future__ import annotations

import pytest

from cluster.dispatch.retry import after_attempt
from cluster.jobs.model import Outcome
from cluster.jobs.outcomes import Overflow
from tests.building import draft, ended_with, spec
from tests.unit.cluster.store.test_store import FLEET, ME, claim_one, completed, hand_in


def overflow(stage: str) -> Overflow:
    return Overflow(
        stage=stage,
        layout="batched",
        step=1,
        predicted_bytes=2,
        measured_bytes=1,
        usable_bytes=2,
        card="gpu0",
    )


@pytest.mark.parametrize(
    ("outcome", "stage", "stages", "expected"),
    [
        (Outcome.COMPLETED, "", ("denoise", "denoise", "decode"), {"denoise": 2, "decode": 1}),
        # The last one ended the attempt, and is among them.
        (Outcome.OOM, "decode", ("denoise", "decode"), {"denoise": 1, "decode": 1}),
        # A renderer that told of no more than its end.
        (Outcome.OOM, "decode", (), {"denoise": 0, "decode": 1}),
        (Outcome.ERROR, "", ("denoise",), {"denoise": 1, "decode": 0}),
        (Outcome.COMPLETED, "", (), {"denoise": 0, "decode": 0}),
    ],
)
def test_every_oom_is_counted_once_in_its_stage(batch_store, dispatch_store, truth, outcome, stage, stages, expected):
    batch_id = hand_in(batch_store, draft(1, spec=spec("i2vgen-xl")))
    claim = claim_one(dispatch_store, batch_store.jobs(ME, batch_id)[0])
    ended = completed(claim) if outcome is Outcome.COMPLETED else ended_with(outcome, stage=stage, usable_bytes=9)
    ended = ended.__class__(**{**vars(ended), "overflows": tuple(overflow(name) for name in stages)})
    assert dispatch_store.finish(claim, ended, after_attempt(dispatch_store.current_job(claim), ended, FLEET))
    where = {"model": "i2vgen-xl", "resolution_class": "256p", "card_class": "c8"}
    assert {name: truth.tally("oom", **where, outcome=name) for name in expected} == expected
