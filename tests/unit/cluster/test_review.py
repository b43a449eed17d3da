"""Two stages and three rounds, from handing in to the last clip: what people decide, and what comes of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from cluster.jobs.model import HoldReason, JobState, Pick
from cluster.jobs.review import ReviewChange, in_review
from cluster.jobs.transitions import RefusedError, Verb
from cluster.maintenance.audit import check
from cluster.maintenance.keep import Keep
from cluster.maintenance.retention import Sweeper
from cluster.results.export import provenance_of
from cluster.results.rows import results_of
from cluster.store.batches import Terms
from pipeline.clips.clip import ResolutionClass, content_key
from pipeline.notes import Note
from pipeline.problems import BadInputError
from tests.building import Clock
from tests.page_store import OWNER, PageFarm, page_farm
from tests.reviewing import hand_in, named, render, waiting

FLAT = Note(code="uniform", message="all 8 frames are one flat colour")


@pytest.fixture
def it(tmp_path: Any) -> Iterator[PageFarm]:
    with page_farm(tmp_path, films=False) as found:
        yield found
        # Whatever a test has done, the store is one that a farm could have made.
        assert check(found.database) == []


def states(it: PageFarm, batch_id: str) -> dict[str, int]:
    return {state.value: number for state, number in it.farm.batch(batch_id).counts.by_state.items() if number}


@pytest.mark.parametrize("latents", [False, True])
def test_of_twelve_drafts_four_are_approved_and_exactly_four_finals_are_made_of_them(it: PageFarm, latents: bool):
    batch = hand_in(it, 12, rounds="draft,final", from_draft=latents, resolution_class="768p", tier="standard")
    drafts = {job.id: job.spec for job in render(it, batch.id)}
    assert (len(drafts), states(it, batch.id)) == (12, {"held": 12})
    assert it.farm.batch(batch.id).held_by == {HoldReason.REVIEW: 12}
    jobs = it.jobs(batch.id)
    for job in jobs[:4]:
        it.farm.command_job(job.id, Verb.APPROVE)
    for job in jobs[4:]:
        it.farm.command_job(job.id, Verb.REJECT)
    finals = render(it, batch.id)
    assert [job.id for job in finals] == [job.id for job in jobs[:4]]
    assert states(it, batch.id) == {"completed": 4, "cancelled": 8}
    # Nobody cancelled anything: what was let go was let go by its review.
    assert it.farm.batch(batch.id).status == "completed"
    for job in finals:
        draft, final = drafts[job.id], job.spec
        assert draft
        assert final
        assert draft.resolution_class is ResolutionClass.P512
        assert (final.resolution_class, final.seed, final.prompt) == (ResolutionClass.P768, draft.seed, draft.prompt)
        assert final.steps > draft.steps
        # From its latents: the start is the very content of the draft that was looked at. Else there is no start.
        base = final.base_spec
        assert (base and content_key(str(job.still), base)) == (content_key(str(job.still), draft) if latents else None)


def test_the_drafts_cost_is_counted_with_the_batch(it: PageFarm):
    batch = hand_in(it, 2, rounds="draft,final")
    render(it, batch.id)
    it.farm.command_batch(batch.id, Verb.APPROVE)
    render(it, batch.id)
    assert it.farm.batch(batch.id).status == "completed"
    assert it.farm.batch(batch.id).attempts == 4


def test_three_rounds_follow_each_other_and_the_tuned_guidance_goes_into_the_last(it: PageFarm):
    batch = hand_in(it, 1, rounds="quick,tune,final", tier="high", resolution_class="768p")
    seen = []
    for _ in range(2):
        [job] = render(it, batch.id)
        seen.append(job)
        it.farm.command_job(job.id, Verb.APPROVE)
    job = named(it, batch.id, "SKU-001")
    assert (job.round, job.rounds_left, job.state) == ("final", 0, JobState.QUEUED)
    assert [one.round for one in seen] == ["quick", "tune"]
    quick, tune, final = seen[0].spec, seen[1].spec, job.spec
    assert quick
    assert tune
    assert final
    assert quick.steps < tune.steps < final.steps
    assert (tune.frames, tune.resolution_class) == (16, ResolutionClass.P512)
    assert len({quick.seed, tune.seed, final.seed}) == 1
    assert [step.verb for step in job.reviewed] == ["approve", "approve"]


def test_a_reroll_is_another_seed_in_all_rounds_to_come(it: PageFarm):
    batch = hand_in(it, 1, rounds="draft,final", from_draft=True)
    [first] = render(it, batch.id)
    it.farm.command_job(first.id, Verb.REROLL)
    [second] = render(it, batch.id)
    assert first.spec
    assert second.spec
    assert second.id == first.id
    assert second.spec == first.spec.model_copy(update={"seed": second.spec.seed})
    assert second.spec.seed != first.spec.seed
    assert second.content_key != first.content_key
    it.farm.command_job(second.id, Verb.REROLL, change=ReviewChange(seed=first.spec.seed))
    # That draft is there already: nothing is rendered again.
    again = named(it, batch.id, "SKU-001")
    assert in_review(again)
    assert (again.content_key, render(it, batch.id)) == (first.content_key, [])
    it.farm.command_job(second.id, Verb.REROLL, change=ReviewChange(guidance=5.0))
    [third] = render(it, batch.id)
    it.farm.command_job(third.id, Verb.APPROVE)
    [final] = render(it, batch.id)
    assert final.spec
    assert final.spec.base
    assert (final.spec.guidance, final.spec.base.guidance, final.spec.seed) == (5.0, 5.0, first.spec.seed)
    assert content_key(str(final.still), final.spec.base_spec) == third.content_key


def test_a_rejection_with_a_prompt_makes_another_draft_of_the_same_row(it: PageFarm):
    batch = hand_in(it, 1, rounds="draft,final", model="i2vgen-xl")
    [first] = render(it, batch.id)
    it.farm.command_job(first.id, Verb.REJECT, change=ReviewChange(prompt="  make it alive "))
    [second] = render(it, batch.id)
    assert first.spec
    assert second.spec
    assert (second.spec.prompt, second.spec.seed) == ("make it alive", first.spec.seed)
    assert second.row["prompt"] == "make it alive"
    # What is said of the new prompt is said of the row.
    assert {note.code for note in second.notes} != {note.code for note in first.notes}
    assert [step.verb for step in named(it, batch.id, "SKU-001").reviewed] == ["reject"]


@pytest.mark.parametrize(
    "change",
    [ReviewChange(prompt=" "), ReviewChange(prompt="x" * 2001), ReviewChange(guidance=31), ReviewChange(seed=-1)],
)
def test_what_the_model_does_not_take_changes_nothing(it: PageFarm, change: ReviewChange):
    batch = hand_in(it, 1, rounds="draft,final")
    [job] = render(it, batch.id)
    before = named(it, batch.id, "SKU-001")
    with pytest.raises(BadInputError):
        it.farm.command_job(job.id, Verb.REROLL, change=change)
    assert named(it, batch.id, "SKU-001") == before


def test_a_model_without_chance_is_not_rolled_again(it: PageFarm):
    batch = hand_in(it, 1, rounds="draft,final", model="camera", resolution_class="512p")
    [job] = render(it, batch.id)
    with pytest.raises(BadInputError, match="leaves nothing to chance"):
        it.farm.command_job(job.id, Verb.REROLL)
    assert in_review(named(it, batch.id, "SKU-001"))


def test_whoever_approves_second_changes_nothing_and_hears_why(it: PageFarm):
    batch = hand_in(it, 1, rounds="quick,tune,final")
    [job] = render(it, batch.id)
    it.farm.command_job(job.id, Verb.APPROVE)
    # It waits for a card by now: the second approval is no approval of the round that nobody has seen.
    it.farm.command_job(job.id, Verb.APPROVE)
    assert named(it, batch.id, "SKU-001").round == "tune"
    with pytest.raises(RefusedError, match="nothing to look at yet"):
        it.farm.command_job(job.id, Verb.REJECT)


def test_a_draft_that_was_cancelled_before_it_came_is_over_and_can_be_put_back(it: PageFarm):
    batch = hand_in(it, 2, rounds="draft,final")
    first, second = it.jobs(batch.id)
    claim = it.claim(first)
    it.farm.command_job(first.id, Verb.CANCEL)
    it.complete(first, claim=claim)
    assert named(it, batch.id, "SKU-001").state is JobState.CANCELLED
    it.farm.command_job(first.id, Verb.RETRY)
    assert [job.id for job in render(it, batch.id)] == [first.id, second.id]
    assert waiting(it, batch.id) == ["SKU-001", "SKU-002"]


def test_a_rejected_draft_comes_back_with_its_clip(it: PageFarm):
    batch = hand_in(it, 1, rounds="draft,final")
    [job] = render(it, batch.id)
    it.farm.command_job(job.id, Verb.REJECT)
    rejected = named(it, batch.id, "SKU-001")
    assert (rejected.state, rejected.pick, rejected.clip_id) == (JobState.CANCELLED, Pick.LET_GO, None)
    it.farm.command_job(job.id, Verb.RETRY)
    assert in_review(named(it, batch.id, "SKU-001"))
    assert render(it, batch.id) == []


def test_a_rejected_candidate_is_taken_back_and_one_that_was_passed_over_is_not(it: PageFarm):
    batch = hand_in(it, 1, candidates=3)
    first, second, third = render(it, batch.id)
    it.farm.command_job(first.id, Verb.REJECT)
    looked_at = [job.name for job in it.farm.batch_store.in_review(OWNER, batch.id)]
    assert looked_at == [second.name, third.name]
    it.farm.command_job(first.id, Verb.RETRY)
    again = it.farm.batch_store.in_review(OWNER, batch.id)
    assert [(job.name, job.state, job.clip_id) for job in again] == [
        (job.name, JobState.COMPLETED, named(it, batch.id, job.name).clip_id) for job in (first, second, third)
    ]
    assert render(it, batch.id) == []
    # Nothing was rejected of it: there is nothing to take back.
    with pytest.raises(RefusedError, match="it has completed"):
        it.farm.command_job(second.id, Verb.RETRY)
    it.farm.command_job(second.id, Verb.APPROVE)
    with pytest.raises(RefusedError, match="another candidate of its row was picked"):
        it.farm.command_job(first.id, Verb.RETRY)
    assert [named(it, batch.id, job.name).pick for job in (first, second, third)] == [
        Pick.LET_GO, Pick.PICKED, Pick.LET_GO
    ]  # fmt: skip


def test_a_batch_that_is_put_back_leaves_what_was_passed_over_and_brings_back_what_was_rejected(it: PageFarm):
    batch = hand_in(it, 3, candidates=2, rounds="draft,final")
    render(it, batch.id)
    it.farm.command_job(named(it, batch.id, "SKU-001-c1").id, Verb.APPROVE)
    it.farm.command_job(named(it, batch.id, "SKU-002-c1").id, Verb.REJECT)
    it.farm.command_job(named(it, batch.id, "SKU-003-c1").id, Verb.CANCEL)
    it.farm.command_batch(batch.id, Verb.RETRY, cancelled=True)
    assert waiting(it, batch.id) == ["SKU-002-c1", "SKU-002-c2", "SKU-003-c1", "SKU-003-c2"]
    left = named(it, batch.id, "SKU-001-c2")
    assert (left.state, left.pick) == (JobState.CANCELLED, Pick.LET_GO)
    # Whatever came back can be decided on.
    for name in ("SKU-002-c1", "SKU-003-c1"):
        it.farm.command_job(named(it, batch.id, name).id, Verb.APPROVE)
    assert [job.name for job in render(it, batch.id)] == ["SKU-001-c1", "SKU-002-c1", "SKU-003-c1"]


def test_rows_that_are_equal_share_a_draft_and_are_decided_on_by_themselves(it: PageFarm):
    first = hand_in(it, 1, rounds="draft,final", name="one")
    second = hand_in(it, 1, rounds="draft,final", name="two")
    assert len(render(it, first.id)) == 1
    assert waiting(it, first.id) == waiting(it, second.id) == ["SKU-001"]
    third = hand_in(it, 1, rounds="draft,final", name="three")
    # On arrival too: the clip is there.
    assert waiting(it, third.id) == ["SKU-001"]
    it.farm.command_batch(first.id, Verb.APPROVE)
    it.farm.command_batch(second.id, Verb.REJECT)
    assert len(render(it, first.id)) == 1
    assert (states(it, first.id), states(it, second.id)) == ({"completed": 1}, {"cancelled": 1})
    it.farm.command_batch(third.id, Verb.APPROVE)
    # Its final is there as well.
    assert states(it, third.id) == {"completed": 1}


def test_approving_and_reviewing_are_two_things(it: PageFarm):
    batch = hand_in(it, 3, rounds="draft,final", terms=Terms(needs_approval=True, proof=1))
    assert len(render(it, batch.id)) == 1
    assert it.farm.batch(batch.id).held_by == {HoldReason.REVIEW: 1, HoldReason.APPROVAL: 2}
    it.farm.command_batch(batch.id, Verb.APPROVE)
    # The draft goes on to its final, the others begin with their drafts.
    assert [job.round for job in render(it, batch.id)] == ["final", "draft", "draft"]


@pytest.mark.parametrize("verb", [Verb.PAUSE, Verb.HOLD, Verb.RESUME])
def test_a_draft_in_review_is_neither_paused_nor_let_go(it: PageFarm, verb: Verb):
    batch = hand_in(it, 1, rounds="draft,final")
    [job] = render(it, batch.id)
    with pytest.raises(RefusedError, match="its draft waits for a review"):
        it.farm.command_job(job.id, verb)
    it.farm.command_batch(batch.id, Verb.PAUSE)
    it.farm.command_batch(batch.id, Verb.RESUME)
    assert in_review(named(it, batch.id, "SKU-001"))


def test_one_of_several_is_picked_and_the_results_have_one_line(it: PageFarm):
    batch = hand_in(it, 2, candidates=3)
    render(it, batch.id, {"SKU-001-c1": [FLAT]})
    assert len(results_of(it.farm.batch_store, OWNER, batch.id)) == 6
    picked, other = named(it, batch.id, "SKU-001-c2"), named(it, batch.id, "SKU-001-c3")
    it.farm.command_job(picked.id, Verb.APPROVE)
    lines = [one.row for one in results_of(it.farm.batch_store, OWNER, batch.id)]
    assert [row.id for row in lines] == ["SKU-001-c2", "SKU-002-c1", "SKU-002-c2", "SKU-002-c3"]
    assert b'"picked": true' in (provenance_of(lines[0], b"{}", {}) or b"")
    assert b'"picked": false' in (provenance_of(lines[1], b"{}", {}) or b"")
    # The same once more changes nothing; another one is refused until the first is let go.
    it.farm.command_job(picked.id, Verb.APPROVE)
    with pytest.raises(RefusedError, match="another candidate of its row was picked"):
        it.farm.command_job(other.id, Verb.APPROVE)
    it.farm.command_job(picked.id, Verb.REJECT)
    it.farm.command_job(other.id, Verb.APPROVE)
    assert next(one.row.id for one in results_of(it.farm.batch_store, OWNER, batch.id)) == "SKU-001-c3"
    # Files of those that were not picked stay until retention takes them.
    assert states(it, batch.id) == {"completed": 6}


def test_picking_a_draft_ends_the_others_wherever_they_are(it: PageFarm):
    batch = hand_in(it, 1, candidates=4, rounds="draft,final")
    first, second, third, _ = it.jobs(batch.id)
    it.complete(first)
    it.complete(second)
    claim = it.claim(third)
    it.farm.command_job(second.id, Verb.APPROVE)
    now = {job.name: (job.state.value, job.pick.value) for job in it.jobs(batch.id)}
    assert now == {
        "SKU-001-c1": ("cancelled", "let_go"),
        "SKU-001-c2": ("queued", "picked"),
        "SKU-001-c3": ("running", "let_go"),
        "SKU-001-c4": ("cancelled", "let_go"),
    }
    it.complete(third, claim=claim)
    assert [job.name for job in render(it, batch.id)] == ["SKU-001-c2"]
    assert states(it, batch.id) == {"completed": 1, "cancelled": 3}
    assert [one.row.id for one in results_of(it.farm.batch_store, OWNER, batch.id)] == ["SKU-001-c2"]


def test_whoever_was_picked_and_then_cancelled_or_failed_makes_room_for_another(it: PageFarm):
    batch = hand_in(it, 1, candidates=2, rounds="draft,final")
    first, second = render(it, batch.id)
    it.farm.command_job(first.id, Verb.APPROVE)
    it.farm.command_job(second.id, Verb.RETRY)
    # Its draft is there again, and still it is not the one.
    assert waiting(it, batch.id) == ["SKU-001-c2"]
    with pytest.raises(RefusedError, match="another candidate of its row was picked"):
        it.farm.command_job(second.id, Verb.APPROVE)
    it.fail(named(it, batch.id, "SKU-001-c1"))
    with pytest.raises(RefusedError, match="another candidate of its row was picked"):
        it.farm.command_job(second.id, Verb.APPROVE)
    it.farm.command_job(first.id, Verb.RETRY)
    assert named(it, batch.id, "SKU-001-c1").pick is Pick.PICKED
    it.farm.command_job(first.id, Verb.CANCEL)
    it.farm.command_job(second.id, Verb.APPROVE)
    assert [job.name for job in render(it, batch.id)] == ["SKU-001-c2"]
    assert [one.row.id for one in results_of(it.farm.batch_store, OWNER, batch.id)] == ["SKU-001-c2"]


def test_files_of_what_was_let_go_are_swept_and_those_of_the_picked_and_undecided_stay(it: PageFarm):
    clock = Clock(it.farm.batch_store.now()).set_on(it.database)
    batch = hand_in(it, 2, candidates=2)
    render(it, batch.id)
    drafts = hand_in(it, 1, rounds="draft,final", name="drafts", seed=77)
    render(it, drafts.id)
    it.farm.command_job(named(it, drafts.id, "SKU-001").id, Verb.REROLL)
    it.farm.command_job(named(it, batch.id, "SKU-001-c1").id, Verb.APPROVE)
    clock.now += 8 * 86_400
    swept = Sweeper(it.database, it.farm.storage, Keep(let_go_days=7), clock=clock).run()
    # The candidate that was not picked, and the draft that was made again.
    assert swept.clips == 2
    clips = it.farm.clips(batch.id)
    gone = {job.name for job in it.jobs(batch.id) if clips[str(job.clip_id)].expired_at is not None}
    assert gone == {"SKU-001-c2"}
    assert Sweeper(it.database, it.farm.storage, Keep(), clock=clock).run().clips == 0


def test_every_prompt_has_its_candidates_and_one_of_all_is_picked(it: PageFarm):
    batch = hand_in(it, 1, candidates=2, prompts=["pan left slowly", "steam rises from the cup"])
    assert [job.name for job in it.jobs(batch.id)] == [f"SKU-001-p{p}-c{c}" for p in (1, 2) for c in (1, 2)]
    render(it, batch.id)
    assert len(it.farm.batch_store.in_review(OWNER, batch.id)) == 4
    it.farm.command_job(named(it, batch.id, "SKU-001-p2-c1").id, Verb.APPROVE)
    assert it.farm.batch_store.in_review(OWNER, batch.id) == []


def test_approving_a_batch_picks_none_of_several(it: PageFarm):
    batch = hand_in(it, 1, candidates=2, rounds="draft,final")
    render(it, batch.id)
    it.farm.command_batch(batch.id, Verb.APPROVE)
    assert len(waiting(it, batch.id)) == 2


def test_another_owner_decides_nothing(it: PageFarm):
    batch = hand_in(it, 1, rounds="draft,final")
    [job] = render(it, batch.id)
    with pytest.raises(LookupError):
        it.farm.of("somebody").command_job(job.id, Verb.APPROVE)
    assert in_review(named(it, batch.id, "SKU-001"))


def test_a_draft_whose_file_is_lost_is_rendered_again(it: PageFarm):
    batch = hand_in(it, 1, rounds="draft,final")
    [job] = render(it, batch.id)
    clip = named(it, batch.id, "SKU-001").clip_id
    it.farm.batch_store.forget_clips(OWNER, [str(clip)])
    assert [one.id for one in render(it, batch.id)] == [job.id]
    assert in_review(named(it, batch.id, "SKU-001"))
