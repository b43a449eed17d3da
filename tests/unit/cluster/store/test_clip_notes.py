"""What was judged of a clip reaches every row that has it; what a row says itself stays the row's own."""

from __future__ import annotations

import dataclasses
import json

import sqlalchemy as sa

from cluster.catalog.defaults import Defaults
from cluster.catalog.ingest import IncomingRow, draft
from cluster.catalog.manifest import Row
from cluster.dispatch.retry import after_attempt
from cluster.jobs.model import Objects
from cluster.jobs.outcomes import Completed
from cluster.store.schema import clips, jobs
from pipeline.notes import Note
from serve.gateway.views import job_view
from tests.building import objects
from tests.unit.cluster.store.test_store import FLEET, ME, claim_one, hand_in

STILL_CLIP = Note(code="no_motion", message="all 24 frames are the same picture")
QUIET = Note(code="id_made", message="'a' names another row already: this one is called 'a-2'")


def row(number: int, prompt: str, *notes: Note) -> IncomingRow:
    made = Row(number=number, id=f"a-{number}", image="a.png", prompt=prompt, notes=notes)
    return IncomingRow(position=number, name=made.id, row=made, still="ab" * 32, number=number)


def drafted(one: IncomingRow):  # type: ignore[no-untyped-def]
    return draft(one, Defaults(model="camera"), lambda _still: (300, 300))


def finish(dispatch_store, job, *notes: Note) -> None:  # type: ignore[no-untyped-def]
    claim = claim_one(dispatch_store, job)
    ended = Completed(objects=objects(claim.attempt_id), notes=notes)
    assert dispatch_store.finish(claim, ended, after_attempt(job, ended, FLEET))


def test_notes_of_a_clip_are_those_of_all_rows_that_share_it(batch_store, dispatch_store):
    batch_id = hand_in(batch_store, drafted(row(1, "make it nice")), drafted(row(2, "make it nice", QUIET)))
    first, second = batch_store.jobs(ME, batch_id)
    assert [note.code for note in first.notes] == ["no_camera_move", "enlarged"]
    # The clip's own finding that it is enlarged would say the same again.
    finish(dispatch_store, first, STILL_CLIP, Note(code="enlarged", message="by the renderer"))
    first, second = batch_store.jobs(ME, batch_id)
    assert [note.code for note in first.notes] == ["no_camera_move", "enlarged", "no_motion"]
    assert [note.code for note in second.notes] == ["id_made", "no_camera_move", "enlarged", "no_motion"]
    (shared_later,) = batch_store.jobs(ME, hand_in(batch_store, drafted(row(3, "make it nice"))))
    assert shared_later.notes == first.notes
    assert batch_store.job(ME, second.id).notes == second.notes
    assert batch_store.changed(ME, batch_id, 0, 100)[0].notes == first.notes
    (clip,) = batch_store.clips_of(ME, batch_id).values()
    assert [note.code for note in clip.notes] == ["no_motion", "enlarged"]
    assert clip.objects == objects(clip.attempt_id)


def test_a_view_has_the_sentences_of_before_and_the_typed_notes_beside_them(batch_store, dispatch_store):
    batch_id = hand_in(batch_store, drafted(row(1, "make it nice", QUIET)))
    finish(dispatch_store, batch_store.jobs(ME, batch_id)[0], STILL_CLIP)
    view = json.loads(json.dumps(job_view(batch_store.jobs(ME, batch_id)[0])))
    assert [note["code"] for note in view["noted"]] == ["id_made", "no_camera_move", "enlarged", "no_motion"]
    assert view["notes"] == [note["message"] for note in view["noted"]]
    assert view["adjusted"] == []
    assert "noted" not in view["row"]


def test_a_clip_and_a_row_without_notes_are_stored_as_before(batch_store, dispatch_store, database):
    silent = draft(row(1, "pan left"), Defaults(model="camera"), lambda _still: (900, 900))
    batch_id = hand_in(batch_store, silent)
    finish(dispatch_store, batch_store.jobs(ME, batch_id)[0])
    with database.read() as c:
        stored, of_row = c.scalar(sa.select(clips.c.objects)), c.scalar(sa.select(jobs.c.row))
    assert set(stored) == {field.name for field in dataclasses.fields(Objects)}
    assert {"noted", "notes", "adjusted"}.isdisjoint(of_row)
    assert "noted" not in job_view(batch_store.jobs(ME, batch_id)[0])


def test_a_row_that_an_earlier_version_wrote_keeps_its_sentences(batch_store):
    one = drafted(row(1, "pan left"))
    old = dataclasses.replace(
        one, row={"number": 1, "adjusted": ["frames 16 -> 17: why"], "notes": ["reads no prompts"]}
    )
    (job,) = batch_store.jobs(ME, hand_in(batch_store, old))
    assert [(note.adjusted, note.message) for note in job.notes] == [
        (True, "frames 16 -> 17: why"),
        (False, "reads no prompts"),
    ]
    view = job_view(job)
    assert (view["adjusted"], view["notes"]) == (["frames 16 -> 17: why"], ["reads no prompts"])
    assert "noted" not in view
