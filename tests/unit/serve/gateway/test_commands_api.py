"""Verbs over HTTP and on the command line, on a store and no farm: who may say what, and what is answered."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from cluster.farm import Farm
from cluster.jobs.commands import CardVerb
from cluster.jobs.model import JobState
from cluster.jobs.outcomes import Ended
from cluster.jobs.transitions import RefusedError, Verb
from cluster.storage import Storage
from cluster.store import BatchStore, Database, DispatchStore
from cluster.store.lookup import NoSuchBatchError, NoSuchCardError, NoSuchJobError
from serve.cli.main import app
from serve.client import LocalClient, RemoteClient
from serve.embedded import FarmLock
from serve.gateway.api import create_api
from serve.gateway.events import SharedLooks, follow
from tests.building import Clock, beat, claim_one, completed, draft, still_png
from tests.unit.serve.gateway.test_api import Nudges, body, error_of


@pytest.fixture
def farm(sqlite_database, tmp_path):
    return Farm(BatchStore(sqlite_database), Storage(tmp_path / "storage"))


@pytest.fixture
def nudges():
    return Nudges()


@pytest.fixture
def http(farm, nudges):
    with TestClient(create_api(farm, default_model="camera", nudge=nudges), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def dispatch_store(sqlite_database) -> DispatchStore:
    dispatch_store = DispatchStore(sqlite_database)
    dispatch_store.take_office("first")
    return dispatch_store


@pytest.fixture(params=["local", "remote"])
def port(request, farm, http):
    if request.param == "local":
        return LocalClient(farm, "camera")
    port = RemoteClient("http://testserver")
    port._http = http
    return port


def hand_in(farm: Farm, count: int = 3, owner: str = "local") -> str:
    batch_id, _ = farm.batch_store.open_batch(owner, name="catalog")
    farm.batch_store.add(owner, batch_id, [draft(n) for n in range(1, count + 1)])
    farm.batch_store.seal(owner, batch_id)
    return batch_id


def states(farm: Farm, batch_id: str) -> list[str]:
    return [job.state.value for job in farm.jobs(batch_id)]


# -- HTTP ------------------------------------------------------------------------------------------------------


def test_every_verb_has_a_route_for_batches_and_jobs(http, farm, nudges):
    batch_id = hand_in(farm)
    job = farm.jobs(batch_id)[0].id
    for path in (f"/v1/batches/{batch_id}", f"/v1/jobs/{job}"):
        said = [("pause", {}), ("resume", {}), ("hold", {}), ("approve", {}), ("prioritize", {"priority": 3})]
        for verb, given in [*said, ("cancel", {})]:
            before = nudges.count
            response = http.post(f"{path}/{verb}", json=given)
            assert response.status_code == 200, (path, verb, response.text)
            assert response.json()["id"] == path.split("/")[-1]
            assert nudges.count == before + 1
        retried = http.post(f"{path}/retry", json={"cancelled": True} if "batches" in path else {})
        assert retried.status_code == 200, retried.text
    assert http.get(f"/v1/jobs/{job}").json()["priority"] == 3


def test_a_paused_batch_shows_its_rows_as_held(http, farm):
    batch_id = hand_in(farm)
    batch = http.post(f"/v1/batches/{batch_id}/pause").json()
    assert batch["status"] == "paused"
    assert batch["held"] == {"batch": "paused", "rows": {"paused": 3}}
    assert (batch["counts"]["queued"], batch["counts"]["held"]) == (0, 3)
    listed = http.get(f"/v1/batches/{batch_id}/jobs").json()["data"]
    assert {(job["state"], job["reason"]) for job in listed} == {("held", "paused")}
    assert http.get(f"/v1/batches/{batch_id}/jobs", params={"name": "row2"}).json()["data"][0]["number"] == 2


def test_a_refused_verb_is_409_with_what_to_do(http, farm):
    batch_id = hand_in(farm)
    job = farm.jobs(batch_id)[0].id
    error = error_of(http.post(f"/v1/jobs/{job}/retry"), 409, "refused", "retry")
    assert "nothing to retry" in error["message"]
    error = error_of(http.post(f"/v1/batches/{batch_id}/approve"), 409, "refused", "approve")
    assert "nothing of it waits for an approval" in error["message"]


def test_what_is_another_owner_s_is_not_found(http, farm):
    batch_id = hand_in(farm, owner="bob")
    job = farm.batch_store.jobs("bob", batch_id)[0].id
    for verb in Verb:
        given = {"priority": 1} if verb is Verb.PRIORITIZE else {}
        error_of(http.post(f"/v1/batches/{batch_id}/{verb}", json=given), 404, "not_found", "batch_id")
        error_of(http.post(f"/v1/jobs/{job}/{verb}", json=given), 404, "not_found", "job_id")
    error_of(http.get(f"/v1/jobs/{job}"), 404, "not_found", "job_id")
    error_of(http.get(f"/v1/batches/{batch_id}/events"), 404, "not_found", "batch_id")
    error_of(http.get("/v1/ids", params={"begins": batch_id}), 404, "not_found", "batch_id")
    assert [job.state for job in farm.batch_store.jobs("bob", batch_id)] == [JobState.QUEUED] * 3


@pytest.mark.parametrize(
    ("path", "given"),
    [
        ("pause", {"colour": "red"}),
        ("prioritize", {"priority": 10**6}),
        ("resume", {"max_failures": 0}),
        ("resume", {"max_cost": -1}),
        ("fly", {}),
    ],
)
def test_a_bad_body_or_verb_is_422(http, farm, path, given):
    response = http.post(f"/v1/batches/{hand_in(farm)}/{path}", json=given)
    assert response.status_code == 422
    assert response.json()["error"]["message"]


def test_prioritize_without_a_priority_says_so(http, farm):
    error_of(http.post(f"/v1/batches/{hand_in(farm)}/prioritize"), 400, "bad_input", "priority")


def test_a_batch_is_handed_in_with_terms(http, farm):
    still = http.put("/v1/stills", content=still_png()).json()["sha256"]
    terms = {"needs_approval": True, "proof": 1, "max_failures": 5, "max_gpu_hours": 2, "max_cost": 9, "comment": "Q4"}
    batch = http.post("/v1/batches", json=body(still, 3, **terms)).json()
    assert batch["limits"] == {"failures": 5, "gpu_hours": 2.0, "cost": 9.0}
    assert (batch["comment"], batch["needs_approval"], batch["proof"]) == ("Q4", True, 1)
    assert states(farm, batch["id"]) == ["queued", "held", "held"]
    paused = http.post("/v1/batches", json=body(still, 1, name="other", paused=True)).json()
    assert paused["status"] == "paused"
    rows = body(still, 2)
    rows["rows"][1]["row"]["after"] = "SKU-1"
    rows["defaults"]["not_before"] = 2**33
    chained = http.post("/v1/batches", json=rows).json()
    first, second = farm.jobs(chained["id"])
    assert (first.not_before, second.after, second.reason) == (2**33, first.id, "after")


def test_cards_are_locked_and_released(http, farm, dispatch_store):
    dispatch_store.record_cards([beat("gpu0"), beat("gpu1")])
    said = http.post("/v1/cards/gpu0/lock", json={"reason": "new fan", "for_s": 3600}).json()
    assert (said["card"], said["order"]["kind"], said["order"]["reason"]) == ("gpu0", "lock", "new fan")
    assert said["order"]["until"] == said["order"]["since"] + 3600
    shown = {card["card"]: card["order"] for card in http.get("/v1/cards").json()["data"]}
    assert (shown["gpu0"]["kind"], shown["gpu1"]) == ("lock", None)
    assert dispatch_store.enforce().closed == {"gpu0"}
    assert http.post("/v1/cards/gpu0/drain").json()["order"]["kind"] == "drain"
    assert http.post("/v1/cards/gpu0/release").json()["order"] is None
    error_of(http.post("/v1/cards/gpu0/release"), 409, "refused", "release")
    error_of(http.post("/v1/cards/nothing/lock"), 404, "not_found", "card")
    # Two begin so, and over HTTP not even one would be meant.
    error_of(http.post("/v1/cards/gpu/lock"), 404, "not_found", "card")


# -- events ----------------------------------------------------------------------------------------------------


class Stream:
    """Reads server-sent events as a browser does."""

    def __init__(self, farm: Farm, batch_id: str, since: int | None) -> None:
        self._text = follow(farm, batch_id, since, every_s=0)

    async def until(self, kind: str) -> list[tuple[str, dict[str, Any], int]]:
        """Events up to the text that has one of this kind; to the end where none does."""
        found = []
        async for text in self._text:
            told = [part for part in text.split("\n\n") if part and not part.startswith(":")]
            for part in told:
                fields = dict(line.split(": ", 1) for line in part.split("\n"))
                found.append((fields["event"], json.loads(fields["data"]), int(fields["id"])))
            if any(part.startswith(f"event: {kind}\n") for part in told):
                return found
        return found


async def test_a_batch_is_followed_to_its_end(farm, dispatch_store):
    batch_id = hand_in(farm, 2)
    stream = Stream(farm, batch_id, None)
    [*_, (_, batch, _)] = await stream.until("batch")
    assert batch["status"] == "running"
    first, second = farm.jobs(batch_id)
    claim = claim_one(dispatch_store, first)
    dispatch_store.renew({claim.attempt_id: (3, 8)}, 10)
    [*_, (_, progress, _)] = await stream.until("progress")
    assert progress == {"id": first.id, "name": "row1", "step": 3, "steps": 8}
    dispatch_store.finish(claim, ended := completed(claim), _after(dispatch_store, claim, ended))
    told = await stream.until("batch")
    assert [(event["name"], event["state"]) for kind, event, _ in told if kind == "job"][-1] == ("row1", "completed")
    farm.command_job(second.id, Verb.CANCEL)
    told = await stream.until("end")
    assert ("row2", "cancelled") in [(event["name"], event["state"]) for kind, event, _ in told if kind == "job"]
    assert told[-1][1] == {"status": "cancelled"}


async def test_a_client_that_comes_back_misses_nothing(farm, dispatch_store):
    batch_id = hand_in(farm, 4)
    whole = Stream(farm, batch_id, 0)
    told = await whole.until("batch")
    assert sorted(event["name"] for kind, event, _ in told if kind == "job") == ["row1", "row2", "row3", "row4"]
    last_id = told[-1][2]
    farm.command_batch(batch_id, Verb.CANCEL)
    again = await Stream(farm, batch_id, last_id).until("end")
    assert {event["name"]: event["state"] for kind, event, _ in again if kind == "job"} == dict.fromkeys(
        ["row1", "row2", "row3", "row4"], "cancelled"
    )


async def test_more_jobs_than_a_look_holds_are_all_told_of(farm, monkeypatch):
    monkeypatch.setattr("serve.gateway.events._MOST", 3)
    clock = Clock().set_on(farm.batch_store.database)
    batch_id = hand_in(farm, 10)
    for number, job in enumerate(farm.jobs(batch_id)):
        # Two in every second, so that a look ends in the middle.
        clock.now += number % 2
        farm.command_job(job.id, Verb.CANCEL)
    clock.now += 10
    told = await asyncio.wait_for(Stream(farm, batch_id, 0).until("end"), 20)
    names = [event["name"] for kind, event, _ in told if kind == "job"]
    assert sorted(names) == sorted({f"row{n}" for n in range(1, 11)}), "each once"


def test_events_come_as_a_stream(http, farm):
    batch_id = hand_in(farm, 1)
    farm.command_batch(batch_id, Verb.CANCEL)
    response = http.get(f"/v1/batches/{batch_id}/events", headers={"Last-Event-ID": "0"})
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.count("event: job") == 1
    assert response.text.rstrip().endswith('data: {"status": "cancelled"}')


def _after(dispatch_store: DispatchStore, claim, ended: Ended):
    from cluster.dispatch.retry import after_attempt
    from tests.building import FLEET

    return after_attempt(dispatch_store.current_job(claim), ended, FLEET)


def counted(farm: Farm, monkeypatch: pytest.MonkeyPatch, asked: list[str]) -> None:
    """Write down each time that a store is asked for changes, by all streams (`changes`) or by one (`changed`)."""
    store = type(farm.batch_store)
    for name in ("changes", "changed"):
        given = getattr(store, name)
        monkeypatch.setattr(
            store, name, lambda self, *words, given=given, name=name: asked.append(name) or given(self, *words)
        )


async def test_streams_that_look_together_ask_once_and_are_told_all(farm, monkeypatch):
    batch_id = hand_in(farm, 12)
    clock, asked, moments = Clock().set_on(farm.batch_store.database), [], Clock(0.0)
    moments.monotonic = moments.__call__
    counted(farm, monkeypatch, asked)
    looks = SharedLooks(farm, clock=moments, kept_s=0.5)
    streams = [follow(farm, batch_id, None, every_s=0, clock=moments, looks=looks) for _ in range(8)]
    # One that went on from before anything was handed in asks for itself, and then with the others.
    streams.append(follow(farm, batch_id, 0, every_s=0, clock=moments, looks=looks))
    told = [[] for _ in streams]

    async def look() -> int:
        before = len(asked)
        for text, stream in zip(told, streams, strict=True):
            text.append(await anext(stream))
        moments.now += 1
        return len(asked) - before

    assert await look() == 2
    jobs = farm.jobs(batch_id)
    for number in range(5):
        # Two of one second, at the end of which somebody looks.
        for job in jobs[2 * number : 2 * number + 2]:
            farm.command_job(job.id, Verb.CANCEL)
        assert await look() == 1
        clock.now += number
    for text in told[:-1]:
        assert text == told[0]
    ended = [json.loads(line[6:])["name"] for line in "".join(told[0]).split("\n") if '"state": "cancelled"' in line]
    assert ended == [job.name for job in jobs[:10]]
    # Those that follow from now on are not told of what was there.
    assert told[0][0].startswith("event: batch\n")
    assert all(job.name in told[-1][0] for job in jobs)


async def test_more_than_a_look_holds_is_asked_for_once_by_all(farm, monkeypatch):
    monkeypatch.setattr("serve.gateway.events._MOST", 3)
    clock, asked, moments = Clock().set_on(farm.batch_store.database), [], Clock(0.0)
    moments.monotonic = moments.__call__
    counted(farm, monkeypatch, asked)
    batch_id = hand_in(farm, 12)
    looks = SharedLooks(farm, clock=moments, kept_s=0.5)
    streams = [follow(farm, batch_id, None, every_s=0, clock=moments, looks=looks) for _ in range(6)]
    told = [[await anext(stream)] for stream in streams]
    assert (asked, told[0][0].count("event:")) == (["changes"], 1)
    clock.now += 10
    moments.now += 10
    for job in farm.jobs(batch_id):
        farm.command_job(job.id, Verb.CANCEL)
        clock.now += 1
    looked = 0
    while not told[0][-1].rstrip().endswith('"cancelled"}'):
        clock.now += 1
        moments.now += 1
        looked += 1
        for text, stream in zip(told, streams, strict=True):
            text.append(await anext(stream))
    names = [json.loads(line[6:])["name"] for line in "".join(told[0]).split("\n") if '"state": "cancelled"' in line]
    assert names == [f"row{number}" for number in range(1, 13)]
    assert all(text == told[0] for text in told)
    assert asked == ["changes"] * len(asked)
    assert len(asked) <= looked + 1


async def test_however_many_change_in_one_second_all_are_told_and_the_end_too(farm, monkeypatch):
    monkeypatch.setattr("serve.gateway.events._MOST", 3)
    clock, moments = Clock().set_on(farm.batch_store.database), Clock(0.0)
    moments.monotonic = moments.__call__
    batch_id = hand_in(farm, 50)
    stream = follow(farm, batch_id, None, every_s=0, clock=moments, looks=SharedLooks(farm, clock=moments, kept_s=0.5))
    told = [await anext(stream)]
    clock.now += 10
    farm.command_batch(batch_id, Verb.CANCEL)
    # More looks than changes are kept for seconds.
    for _ in range(60):
        clock.now += 1
        moments.now += 1
        if (text := await anext(stream, None)) is None:
            break
        told.append(text)
    names = [json.loads(line[6:])["name"] for line in "".join(told).split("\n") if '"state": "cancelled"' in line]
    assert names == [f"row{number}" for number in range(1, 51)]
    assert told[-1].rstrip().endswith('data: {"status": "cancelled"}')


# -- by store and by URL ---------------------------------------------------------------------------------------


def test_a_port_says_verbs_and_tells_what_is_wrong(port, farm, dispatch_store):
    batch_id = hand_in(farm)
    dispatch_store.record_cards([beat("gpu0")])
    assert port.find(batch_id[:-1]) == batch_id
    assert port.command_batch(batch_id, Verb.PAUSE)["status"] == "paused"
    assert len(port.jobs(batch_id, state="held")) == 3
    assert port.command_batch(batch_id, Verb.RESUME, max_failures=4)["limits"]["failures"] == 4
    (job,) = port.jobs(batch_id, name="row2")
    assert port.command_job(job["id"], Verb.PRIORITIZE, priority=7)["priority"] == 7
    assert port.job(job["id"])["priority"] == 7
    assert port.command_card("gpu", CardVerb.DRAIN, reason="fan")["order"]["kind"] == "drain"
    assert port.cards()[0]["order"]["reason"] == "fan"
    with pytest.raises(RefusedError, match="nothing to retry"):
        port.command_job(job["id"], Verb.RETRY)
    with pytest.raises(NoSuchJobError):
        port.command_job("video_0", Verb.RETRY)
    with pytest.raises(NoSuchBatchError):
        port.command_batch("batch_0", Verb.PAUSE)
    with pytest.raises(NoSuchCardError):
        port.command_card("rtx/../x", CardVerb.LOCK)


# -- command line ----------------------------------------------------------------------------------------------


@pytest.fixture
def shell(tmp_path, monkeypatch):
    """Runs commands on a home whose farm is this test; returns (exit code, JSON or text)."""
    home = tmp_path / "home"
    monkeypatch.setenv("CLIPMILL_HOME", str(home))
    (tmp_path / "a.png").write_bytes(still_png())
    rows = [f"SKU-{n},a.png,zoom in {n},{'SKU-1' if n == 3 else ''}" for n in range(1, 4)]
    (tmp_path / "c.csv").write_text("\n".join(["id,image,prompt,after", *rows]) + "\n")
    lock = FarmLock(home)
    assert lock.try_acquire()

    def run(*words: str) -> Any:
        result = CliRunner().invoke(app, [*words, "--json"])
        text = result.stdout if result.exit_code == 0 else result.stderr
        return result.exit_code, json.loads(text) if result.exit_code == 0 else text

    yield run
    lock.release()


def test_the_command_line_says_every_verb(shell, tmp_path):
    options = ["--model", "camera", "--class", "256p", "--hold", "--proof", "1", "--max-failures", "2"]
    code, made = shell("submit", str(tmp_path / "c.csv"), *options, "--comment", "spring")
    assert code == 0, made
    batch = made["batch"]["id"]
    assert [(job["name"], job["state"], job["reason"]) for job in made["jobs"]] == [
        ("SKU-1", "queued", None), ("SKU-2", "held", "approval"), ("SKU-3", "held", "approval"),
    ]  # fmt: skip
    assert shell("approve", batch[:-2], "--row", "SKU-2")[1]["job"]["state"] == "queued"
    assert shell("approve", batch)[1]["batch"]["held"]["rows"] == {"after": 1}
    assert shell("pause", batch)[1]["batch"]["status"] == "paused"
    assert shell("status", batch)[1]["batch"]["held"]["rows"] == {"after": 1, "paused": 2}
    assert shell("resume", batch, "--max-failures", "9")[1]["batch"]["limits"]["failures"] == 9
    first = made["jobs"][0]["id"]
    assert shell("pause", first)[1]["job"]["reason"] == "paused"
    code, told = shell("approve", first)
    assert (code, "clipmill resume" in told) == (2, True)
    assert shell("resume", first)[1]["job"]["state"] == "queued"
    assert shell("prioritize", "--row", "SKU-2", batch, "5")[1]["job"]["priority"] == 5
    assert shell("hold", first)[1]["job"]["reason"] == "approval"
    assert shell("cancel", batch)[1]["batch"]["status"] == "cancelled"
    code, told = shell("retry", batch)
    assert (code, "--cancelled" in told) == (2, True)
    counts = shell("retry", batch, "--cancelled")[1]["batch"]["counts"]
    assert (counts["queued"], counts["held"], counts["cancelled"]) == (2, 1, 0)


def test_the_command_line_names_what_it_does_not_know(shell, tmp_path):
    shell("submit", str(tmp_path / "c.csv"), "--model", "camera", "--class", "256p")
    for words in (["pause", "batch_ffff"], ["cancel", "video_ffff"], ["cards", "lock", "gpu9"], ["status", "nothing"]):
        code, told = shell(*words)
        assert code == 2, (words, told)
        assert words[-1] in told
        assert "clipmill" in told


def test_an_unreachable_farm_is_exit_3(shell):
    assert shell("pause", "batch_1234", "--url", "http://127.0.0.1:9")[0] == 3
    assert shell("cards", "lock", "gpu0", "--url", "http://127.0.0.1:9")[0] == 3


def test_cards_are_locked_on_the_command_line(shell, tmp_path):
    database = Database.in_folder(tmp_path / "home")
    dispatch_store = DispatchStore(database)
    dispatch_store.take_office("first")
    dispatch_store.record_cards([beat("gpu0")])
    code, said = shell("cards", "quarantine", "gpu0", "--reason", "artefacts", "--for", "0.5")
    assert (code, said["order"]["kind"], said["order"]["until"] - said["order"]["since"]) == (0, "quarantine", 1800)
    assert shell("cards")[1]["cards"][0]["order"]["reason"] == "artefacts"
    assert shell("cards", "unlock", "gpu0")[1]["order"] is None
    database.close()


def test_watch_shows_every_change_until_the_end(shell, tmp_path):
    _, made = shell("submit", str(tmp_path / "c.csv"), "--model", "camera", "--class", "256p")
    shell("cancel", made["batch"]["id"])
    result = CliRunner().invoke(app, ["watch", made["batch"]["id"], "--json"])
    (line,) = result.stdout.splitlines()
    assert json.loads(line)["batch"]["status"] == "cancelled"
    plain = CliRunner().invoke(app, ["watch", made["batch"]["id"]])
    assert "cancelled · 0 of 3 done · 3 cancelled" in plain.stderr


def test_a_time_that_is_none_is_refused_before_anything_is_handed_in(shell, tmp_path):
    code, told = shell("submit", str(tmp_path / "c.csv"), "--not-before", "tea time")
    assert (code, "22:00" in told) == (2, True)
    assert shell("status")[1]["batches"] == []


def test_streams_of_one_batch_look_together_and_one_that_ends_ends_no_other_s_look(farm, monkeypatch):
    batch_id, _ = farm.batch_store.open_batch("local", name="catalog")
    farm.batch_store.add("local", batch_id, [draft(1, "a")])
    farm.batch_store.seal("local", batch_id)
    asked: list[str] = []
    batch = Farm.batch
    monkeypatch.setattr(Farm, "batch", lambda self, which: asked.append(which) or batch(self, which))

    async def look() -> None:
        moments = Clock(0.0)
        moments.monotonic = moments.__call__
        looks = SharedLooks(farm, clock=moments, kept_s=0.5)
        waiting = [asyncio.create_task(looks.at("local", batch_id)) for _ in range(20)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        found = await asyncio.gather(*waiting[1:])
        assert len(asked) == 1
        assert all(one is found[0] for one in found)
        moments.now += 0.6
        assert await looks.at("local", batch_id) is not found[0]
        assert len(asked) == 2
        with pytest.raises(NoSuchBatchError):
            await looks.at("local", "batch_that_is_not_there")

    asyncio.run(look())
