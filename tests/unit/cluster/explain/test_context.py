"""`why` from the store: what is read of it, by HTTP and on the command line."""

from __future__ import annotations

import json
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from cluster.explain import context as context_module
from cluster.explain.context import context_of, why
from cluster.explain.reasons import RemedyKind, Rules
from cluster.explain.trial import with_job
from cluster.farm import Farm
from cluster.fleet.cards import CardState, Fleet
from cluster.fleet.quotas import OwnerShare
from cluster.jobs.commands import CardVerb
from cluster.jobs.model import JobState
from cluster.jobs.transitions import Verb
from cluster.scheduling.placement import place
from cluster.scheduling.priority import AGEING_S
from cluster.scheduling.snapshot import Start
from cluster.storage import Storage
from cluster.store import BatchStore, Database, DispatchStore
from cluster.store.batches import Terms
from cluster.store.commands import CommandStore
from cluster.store.lookup import NoSuchJobError
from cluster.store.schema import jobs
from pipeline.units import GIB
from serve.cli.main import app
from serve.client import LocalClient, RemoteClient
from serve.embedded import FarmLock
from serve.gateway.api import create_api
from serve.settings import FarmArgs
from tests.building import FLEET, beat, card, draft, spec
from tests.unit.serve.gateway.test_api import Nudges, error_of

ME = "local"
RULES = Rules(fleet=FLEET)


def hand_in(batch_store: BatchStore, *drafts, owner: str = ME, **options) -> str:
    batch_id, _ = batch_store.open_batch(owner, name="catalog", **options)
    batch_store.add(owner, batch_id, drafts)
    batch_store.seal(owner, batch_id)
    return batch_id


def only(batch_store: BatchStore, batch_id: str, number: int = 1, owner: str = ME):
    return next(job for job in batch_store.jobs(owner, batch_id) if job.number == number)


def explained(database: Database, job_id: str, rules: Rules = RULES, owner: str = ME):
    return why(database, owner, job_id, rules)


def claim(dispatch_store: DispatchStore, job, name: str = "gpu0"):
    (one,) = dispatch_store.start([(job, card(name))], 60)
    return one


# -- on both stores ---------------------------------------------------------------------------------------------


def test_what_the_store_says_is_what_placement_sees(database, batch_store, dispatch_store, clock, truth):
    first = only(batch_store, hand_in(batch_store, draft(1, needs_bytes=GIB)))
    dispatch_store.record_cards([beat("gpu0")])
    before = truth.everything()
    found = explained(database, first.id)
    assert (found.reason, found.changes) == ("starts_now", ())
    assert "gpu0" in found.text
    assert truth.everything() == before, "whoever asks writes nothing, and takes no office"
    claim(dispatch_store, first)
    dispatch_store.record_cards([beat("gpu0", state=CardState.BUSY)])
    running = explained(database, first.id)
    assert (running.state, running.reason) == (JobState.RUNNING, "running")
    assert "on gpu0 (c8, test) since" in running.text
    second = only(batch_store, hand_in(batch_store, draft(1, "other", needs_bytes=GIB)))
    waits = explained(database, second.id)
    assert waits.reason == "all_fitting_cards_busy"
    assert "gpu0 is busy, and no card is idle" in waits.text
    assert [c.kind for c in waits.changes] == [RemedyKind.WAIT, RemedyKind.ADD]
    assert waits.changes[0].at > clock.now


def test_an_idle_beat_of_a_card_that_was_just_given_a_clip_is_no_idle_card(
    database, batch_store, dispatch_store, clock
):
    first = only(batch_store, hand_in(batch_store, draft(1, needs_bytes=GIB)))
    dispatch_store.record_cards([beat("gpu0")])
    attempt = claim(dispatch_store, first)
    second = only(batch_store, hand_in(batch_store, draft(1, "other", needs_bytes=GIB)))
    assert explained(database, second.id).reason == "all_fitting_cards_busy"
    # Its steps are done and its frames are off the card: it is being published, and the next one may come.
    dispatch_store.renew({attempt.attempt_id: (8, 8)}, 60)
    assert explained(database, second.id).reason == "starts_now"


def test_cards_are_locked_by_the_store_s_orders(database, batch_store, dispatch_store, clock):
    waits = only(batch_store, hand_in(batch_store, draft(1, needs_bytes=GIB)))
    dispatch_store.record_cards([beat("gpu0")])
    CommandStore(database).order("gpu0", CardVerb.LOCK, reason="fan", by="eve")
    found = explained(database, waits.id)
    assert found.reason == "fitting_cards_locked"
    assert "gpu0 locked by eve (fan)" in found.text
    assert found.changes[0].command == "clipmill cards release gpu0"
    CommandStore(database).order("gpu0", CardVerb.RELEASE)
    assert explained(database, waits.id).reason == "starts_now"


def test_limits_of_owners_are_the_configuration_s(database, batch_store, dispatch_store, clock):
    first, second = (only(batch_store, hand_in(batch_store, draft(1, key, needs_bytes=GIB))) for key in ("a", "b"))
    dispatch_store.record_cards([beat("gpu0", state=CardState.BUSY), beat("gpu1")])
    claim(dispatch_store, first)
    rules = Rules(fleet=FLEET, owners={ME: OwnerShare(max_running=1)})
    assert explained(database, second.id, rules).reason == "owner_at_limit"
    assert explained(database, second.id).reason == "starts_now"


def test_an_equal_clip_that_runs_is_named_though_the_queue_leaves_its_twin_out(
    database, batch_store, dispatch_store, clock
):
    first = only(batch_store, hand_in(batch_store, draft(1, "same", needs_bytes=GIB)))
    claim(dispatch_store, first)
    twin = only(batch_store, hand_in(batch_store, draft(1, "same", needs_bytes=GIB)))
    dispatch_store.record_cards([beat("gpu0", state=CardState.BUSY), beat("gpu1")])
    found = explained(database, twin.id)
    assert found.reason == "equal_clip_running"
    assert first.id in found.text


@pytest.mark.parametrize(
    ("terms", "reason", "command"),
    [
        (Terms(needs_approval=True), "approval", "clipmill approve {job}"),
        (Terms(paused=True), "paused", "clipmill resume {batch}"),
    ],
)
def test_held_batches_say_what_lets_them_go_and_obeying_it_does(
    database, batch_store, dispatch_store, clock, terms, reason, command
):
    batch_id = hand_in(batch_store, draft(1, needs_bytes=GIB), terms=terms)
    waits = only(batch_store, batch_id)
    dispatch_store.record_cards([beat("gpu0")])
    found = explained(database, waits.id)
    assert (found.state, found.reason) == (JobState.HELD, reason)
    (change,) = found.changes
    assert change.starts
    assert change.command == command.format(job=waits.id, batch=batch_id)
    verb, what = change.command.split()[1:]
    if what == batch_id:
        CommandStore(database).batch(ME, batch_id, Verb(verb))
    else:
        CommandStore(database).job(ME, what, Verb(verb))
    assert explained(database, waits.id).reason == "starts_now"


def test_a_row_after_another_and_one_for_later(database, batch_store, dispatch_store, clock):
    later = draft(3, needs_bytes=GIB, not_before=int(clock.now) + 600)
    batch_id = hand_in(batch_store, draft(1, needs_bytes=GIB), draft(2, needs_bytes=GIB, after="row1"), later)
    dispatch_store.record_cards([beat("gpu0")])
    found = explained(database, only(batch_store, batch_id, 2).id)
    assert found.reason == "after"
    assert only(batch_store, batch_id, 1).id in found.text
    found = explained(database, only(batch_store, batch_id, 3).id)
    assert (found.reason, len(found.changes)) == ("not_before", 1)
    assert found.changes[0].at >= clock.now + 600


def test_nobody_waits_for_an_abandoned_batch(database, batch_store, dispatch_store, clock):
    waits = only(batch_store, hand_in(batch_store, draft(1, needs_bytes=GIB), source="c.csv", attended_s=10))
    dispatch_store.record_cards([beat("gpu0")])
    assert explained(database, waits.id).reason == "starts_now"
    clock.now += 11
    assert explained(database, waits.id).reason == "abandoned"


def test_jobs_ahead_are_counted_as_placement_orders_them(database, batch_store, dispatch_store, clock, truth):
    clock.now += 10 * AGEING_S
    old = hand_in(batch_store, *(draft(n, f"old{n}", needs_bytes=GIB) for n in range(1, 4)))
    urgent = hand_in(
        batch_store, *(draft(n, f"urgent{n}", needs_bytes=GIB, priority=2) for n in range(1, 3)), owner="bob"
    )
    paused = hand_in(batch_store, draft(1, "paused", needs_bytes=GIB, priority=9), terms=Terms(paused=True))
    clock.now += 4 * AGEING_S
    mine = hand_in(
        batch_store, draft(1, "mine", needs_bytes=GIB, priority=5), draft(2, "mine2", needs_bytes=GIB, priority=5)
    )
    # Urgent: 2 + 4 = 6 goes before 5; old: 0 + 4 does not; paused does not start at all.
    assert context_of(database, ME, only(batch_store, mine, 2).id, RULES).known.ahead == 3
    assert context_of(database, ME, only(batch_store, mine, 1).id, RULES).known.ahead == 2
    assert context_of(database, ME, only(batch_store, old, 3).id, RULES).known.ahead == 2 + 2 + 2
    assert {urgent, paused} & {row.batch_id for row in truth.rows(sa.select(jobs))} == {urgent, paused}


def test_a_job_far_back_in_its_queue_is_explained_all_the_same(
    database, batch_store, dispatch_store, clock, monkeypatch
):
    monkeypatch.setattr(context_module, "PER_QUEUE", 4)
    monkeypatch.setattr(context_module, "AHEAD_MOST", 20)
    batch_id = hand_in(batch_store, *(draft(n, needs_bytes=GIB) for n in range(1, 31)))
    dispatch_store.record_cards([beat("gpu0")])
    last, tenth = only(batch_store, batch_id, 30), only(batch_store, batch_id, 10)
    seen = context_of(database, ME, last.id, RULES)
    assert (len(seen.snapshot.waiting), seen.known.hidden, seen.known.ahead) == (4, True, 20)
    found = explained(database, last.id)
    assert found.reason == "behind_others"
    assert "more than 19 jobs go before it" in found.text
    raised = next(c for c in found.changes if c.kind is RemedyKind.RAISE)
    CommandStore(database).job(ME, last.id, Verb.PRIORITIZE, priority=raised.priority)
    assert explained(database, last.id).reason == "starts_now"
    wait = next(c for c in explained(database, tenth.id).changes if c.kind is RemedyKind.WAIT)
    assert "jobs before it" in wait.text


def test_raising_the_priority_as_told_makes_the_dispatcher_s_own_look_start_it(
    database, batch_store, dispatch_store, clock
):
    """The dispatcher's look is `DispatchStore.waiting` and `place`, on its own snapshot."""
    batch_id = hand_in(batch_store, *(draft(n, needs_bytes=GIB) for n in range(1, 7)))
    dispatch_store.record_cards([beat("gpu0"), beat("gpu1")])
    last = only(batch_store, batch_id, 6)
    change = next(c for c in explained(database, last.id).changes if c.kind is RemedyKind.RAISE)
    CommandStore(database).job(ME, last.id, Verb.PRIORITIZE, priority=change.priority)
    cards = [card("gpu0"), card("gpu1")]
    seen = context_of(database, ME, last.id, RULES).snapshot
    looked = with_job(
        type(seen).of(waiting=dispatch_store.waiting(4), cards=cards, fleet=FLEET), only(batch_store, batch_id, 6)
    )
    assert last.id in {d.job.id for d in place(looked, clock.now) if isinstance(d, Start)}


def test_what_is_another_owner_s_is_not_explained(database, batch_store, clock):
    theirs = only(batch_store, hand_in(batch_store, draft(1, needs_bytes=GIB), owner="bob"), owner="bob")
    with pytest.raises(NoSuchJobError):
        explained(database, theirs.id)


def test_a_farm_that_says_nothing_of_its_cards_is_guessed_from_the_roster(database, batch_store, dispatch_store, clock):
    waits = only(batch_store, hand_in(batch_store, draft(1, needs_bytes=30 * GIB)))
    dispatch_store.record_cards([beat("gpu0", usable_bytes=5 * GIB)])
    fleet = context_of(database, ME, waits.id, Rules()).snapshot.fleet
    assert fleet.usable_bytes["c8"] == 5 * GIB
    assert explained(database, waits.id, Rules()).changes[-1].text == "one c48 card"
    dispatch_store.record_cards([beat("gpu0", kind="emulated", usable_bytes=5 * 2**20)])
    assert context_of(database, ME, waits.id, Rules()).snapshot.fleet.usable_bytes["c24"] < GIB


FAULT = "card: the NVIDIA driver 550.54.15 is too old. Update the driver."


def test_a_card_that_cannot_be_used_takes_what_needs_no_memory_and_all_else_hears_its_fault(
    database, batch_store, dispatch_store, clock
):
    batch_id = hand_in(batch_store, draft(1), draft(2, needs_bytes=5 * GIB))
    camera, diffusion = (only(batch_store, batch_id, number) for number in (1, 2))
    dispatch_store.record_cards([beat("gpu0", card_class="c24", usable_bytes=0, fault=FAULT)])
    for rules in (RULES, Rules()):
        assert explained(database, camera.id, rules).reason == "starts_now"
        answer = explained(database, diffusion.id, rules)
        assert answer.reason == "cards_unusable"
        assert "no card here can be used: gpu0 (c24)" in answer.text
        assert FAULT in answer.text
    # A card of another class that works: what only the broken one's class holds still waits for that.
    dispatch_store.record_cards([beat("gpu1", usable_bytes=7 * GIB)])
    assert explained(database, diffusion.id).reason == "starts_now"
    large = only(batch_store, hand_in(batch_store, draft(1, key="large", needs_bytes=20 * GIB)))
    answer = explained(database, large.id)
    assert answer.reason == "cards_unusable"
    assert "what could hold it cannot be used: gpu0 (c24)" in answer.text
    # One of its class that works, however busy, is what it waits for.
    dispatch_store.record_cards([beat("gpu2", card_class="c24", usable_bytes=21 * GIB, state=CardState.BUSY)])
    assert explained(database, large.id).reason == "all_fitting_cards_busy"


def test_the_plan_of_a_tail_is_worked_out_where_the_farm_has_one(database, batch_store, dispatch_store, clock):
    clip = spec("i2vgen-xl", width=512, height=512, frames=16, steps=500, guidance=9.0)
    batch_id = hand_in(batch_store, *(draft(n, spec=clip, needs_bytes=GIB) for n in range(1, 4)))
    dispatch_store.record_cards(
        [beat("fast", kind="NVIDIA H100", usable_bytes=20 * GIB), beat("slow", kind="NVIDIA T4")]
    )
    plans = Rules(fleet=Fleet(usable_bytes={"c8": 20 * GIB}), plans=True)
    waits = only(batch_store, batch_id, 3)
    assert context_of(database, ME, waits.id, plans).snapshot.plan is not None
    assert context_of(database, ME, waits.id, RULES).snapshot.plan is None
    # An H100 does three clips sooner than a T4 does one.
    found = explained(database, waits.id, plans)
    assert found.reason == "planned_later"
    assert (found.changes[0].kind, found.changes[0].card) == (RemedyKind.WAIT, "fast")


# -- by HTTP and on the command line ----------------------------------------------------------------------------


@pytest.fixture
def farm(sqlite_database, tmp_path):
    return Farm(BatchStore(sqlite_database), Storage(tmp_path / "storage"))


@pytest.fixture
def http(farm):
    api = create_api(farm, default_model="camera", nudge=Nudges(), rules=RULES)
    with TestClient(api, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(params=["local", "remote"])
def port(request, farm, http):
    if request.param == "local":
        return LocalClient(farm, "camera", rules=RULES)
    port = RemoteClient("http://testserver")
    port._http = http
    return port


def test_both_ports_explain_alike(port, farm, sqlite_database):
    dispatch_store = DispatchStore(sqlite_database)
    dispatch_store.take_office("first")
    waits = only(farm.batch_store, hand_in(farm.batch_store, draft(1, needs_bytes=10 * GIB)))
    dispatch_store.record_cards([beat("gpu0")])
    view = port.why(waits.id)
    assert {key: view[key] for key in ("object", "job", "state", "reason")} == {
        "object": "why", "job": waits.id, "state": "queued", "reason": "no_card_of_this_size",
    }  # fmt: skip
    assert view["changes"] == [
        {
            "kind": "add_cards", "text": "one c24 card", "command": "", "at": None, "starts": True,
            "card_class": "c24", "number": 1,
        }
    ]  # fmt: skip
    with pytest.raises(NoSuchJobError):
        port.why("video_0")


def test_http_says_why_or_404(http, farm):
    waits = only(farm.batch_store, hand_in(farm.batch_store, draft(1, needs_bytes=GIB)))
    answer = http.get(f"/v1/jobs/{waits.id}/why")
    assert answer.status_code == 200
    assert "clipmill up" in answer.json()["text"]
    error_of(http.get("/v1/jobs/video_0/why"), 404, "not_found", "job_id")
    theirs = only(farm.batch_store, hand_in(farm.batch_store, draft(1, needs_bytes=GIB), owner="bob"), owner="bob")
    error_of(http.get(f"/v1/jobs/{theirs.id}/why"), 404, "not_found", "job_id")


@pytest.fixture
def shell(tmp_path, monkeypatch):
    """Runs commands on a home whose farm is this test; returns (exit code, JSON or what was printed)."""
    home = tmp_path / "home"
    monkeypatch.setenv("CLIPMILL_HOME", str(home))
    lock = FarmLock(home)
    assert lock.try_acquire()
    lock.note(rules=FarmArgs(card_classes={"c24": {}}).rules().model_dump(mode="json"))

    def run(*words: str) -> Any:
        result = CliRunner().invoke(app, list(words))
        if result.exit_code or "--json" not in words:
            return result.exit_code, result.stderr
        return result.exit_code, json.loads(result.stdout)

    yield run
    lock.release()


def test_the_command_line_says_why(shell, sqlite_database):
    batch_store, dispatch_store = BatchStore(sqlite_database), DispatchStore(sqlite_database)
    dispatch_store.take_office("first")
    batch_id = hand_in(batch_store, draft(1, needs_bytes=10 * GIB), draft(2, needs_bytes=10 * GIB))
    dispatch_store.record_cards([beat("gpu0")])
    job = only(batch_store, batch_id, 2)
    code, view = shell("why", job.id, "--json")
    assert (code, view["why"]["job"], view["why"]["reason"]) == (0, job.id, "no_card_of_this_size")
    assert shell("why", batch_id[:-1], "--row", "row2", "--json")[1]["why"]["job"] == job.id
    # What the farm that runs here says of its cards, not a guess: it has no class smaller than c24.
    assert view["why"]["changes"][-1]["card_class"] == "c24"
    code, text = shell("why", job.id)
    assert code == 0
    assert "is queued (no_card_of_this_size)" in text
    assert "10.0 GiB" in text
    assert "c24 cards" in text
    CommandStore(sqlite_database).job(ME, job.id, Verb.HOLD)
    text = shell("why", job.id)[1]
    assert "what has to come first:" in text
    assert f"approve it: clipmill approve {job.id}" in text


def test_the_command_line_names_what_it_does_not_know(shell, sqlite_database):
    batch_id = hand_in(BatchStore(sqlite_database), draft(1, needs_bytes=GIB))
    job = only(BatchStore(sqlite_database), batch_id)
    for words, part in [
        (["why", "video_ffff"], "video_ffff"),
        (["why", batch_id], "--row"),
        (["why", job.id, "--row", "row1"], "leave --row out"),
        (["why", batch_id, "--row", "row9"], "row9"),
    ]:
        code, text = shell(*words)
        assert code == 2, (words, text)
        assert part in text
    assert shell("why", job.id, "--url", "http://127.0.0.1:9")[0] == 3


def test_the_command_line_names_cards_that_cannot_be_used(shell, sqlite_database):
    batch_store, dispatch_store = BatchStore(sqlite_database), DispatchStore(sqlite_database)
    dispatch_store.take_office("first")
    batch_id = hand_in(batch_store, draft(1, needs_bytes=10 * GIB))
    dispatch_store.record_cards([beat("gpu0", usable_bytes=0, fault=FAULT), beat("gpu1")])
    for command in (["status"], ["status", batch_id]):
        text = shell(*command)[1]
        assert "1 of 2 cards cannot be used" in text
        assert f"gpu0: {FAULT}" in text
    dispatch_store.record_cards([beat("gpu1", usable_bytes=0, fault=FAULT)])
    assert "no card of this farm can be used" in shell("status", batch_id)[1]
    assert shell("status", batch_id, "--json")[1]["card_faults"] == {"gpu0": FAULT, "gpu1": FAULT}
    dispatch_store.record_cards([beat("gpu0"), beat("gpu1")])
    assert "cannot be used" not in shell("status")[1] + shell("status", batch_id)[1]
