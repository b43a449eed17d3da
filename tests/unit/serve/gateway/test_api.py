"""The API over a real store and storage, and the client's port against it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from cluster.catalog.defaults import Defaults, FewStep
from cluster.catalog.ingest import IncomingRow, gather
from cluster.catalog.manifest import Row, read_manifest
from cluster.farm import Farm
from cluster.jobs.model import JobState
from cluster.jobs.transitions import Verb
from cluster.storage import Storage
from cluster.store import BatchStore, Database, DispatchStore
from cluster.store.batches import IdempotencyConflictError
from cluster.store.lookup import NoSuchBatchError
from pipeline.models.tokens import PromptLengths
from pipeline.problems import BadInputError
from serve.client import FarmUnreachableError, LocalClient, RemoteClient
from serve.gateway.api import create_api
from serve.gateway.views import card_view
from serve.settings import CardClassArgs, FarmArgs, Settings
from tests.building import beat, claim_one, completed, still_png


class Nudges:
    """Stands where the dispatcher's handle is."""

    def __init__(self) -> None:
        self.count = 0
        self.fault: Exception | None = None

    async def __call__(self) -> None:
        self.count += 1
        if self.fault:
            raise self.fault


@pytest.fixture
def farm(sqlite_database, tmp_path):
    lengths = PromptLengths(tmp_path / "home")
    return Farm(BatchStore(sqlite_database), Storage(tmp_path / "storage"), cut_texts=lengths.cut)


@pytest.fixture
def nudges():
    return Nudges()


@pytest.fixture
def http(farm, nudges):
    with TestClient(create_api(farm, default_model="camera", nudge=nudges), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def still(http):
    return http.put("/v1/stills", content=still_png()).json()["sha256"]


def body(still: str | None, count: int = 1, **changes: Any) -> dict[str, Any]:
    rows = [
        {
            "position": n,
            "name": f"SKU-{n}",
            "number": n,
            "still": still,
            "row": {"number": n, "id": f"SKU-{n}", "image": "a.png", "prompt": f"zoom in {n}"},
        }
        for n in range(1, count + 1)
    ]
    return {"name": "catalog", "rows": rows, "defaults": {"resolution_class": "256p"}, **changes}


def error_of(response: httpx.Response, status: int, code: str, param: str | None) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    kind = "server_error" if status >= 500 else "invalid_request_error"
    assert (error["type"], error["code"], error["param"]) == (kind, code, param)
    assert error["message"]
    return error


# -- stills ----------------------------------------------------------------------------------------------------


def test_a_still_is_stored_under_its_sha256(http, farm):
    expected = hashlib.sha256(still_png()).hexdigest()
    for _ in range(2):
        response = http.put("/v1/stills", content=still_png())
        assert response.json() == {"object": "still", "sha256": expected}
    assert farm.storage.get_still(expected) == still_png()
    assert farm.batch_store.still_size("local", expected) == (160, 120)


@pytest.mark.parametrize("data", [b"", b"no picture"])
def test_a_bad_still_is_refused_with_what_to_do(http, data):
    error = error_of(http.put("/v1/stills", content=data), 400, "bad_input", "image")
    assert error["clipmill"]["field"] == "image"
    assert error["clipmill"]["remedy"] in error["message"]


def test_a_still_too_large_is_refused_before_it_is_read_whole(http, monkeypatch):
    monkeypatch.setattr("serve.gateway.routes_batches.MAX_STILL_BYTES", 1000)
    error_of(http.put("/v1/stills", content=b"x" * 1001), 400, "bad_input", "image")


def test_a_full_storage_is_the_server_s_fault(http, farm, monkeypatch):
    def full(_data: bytes) -> str:
        raise farm.storage._unknown("stills/x", "written", OSError("disk"))

    monkeypatch.setattr(Storage, "put_still", lambda _self, data: full(data))
    error_of(http.put("/v1/stills", content=still_png()), 503, "storage", "storage")


# -- batches ---------------------------------------------------------------------------------------------------


def test_a_batch_is_taken_and_shown(http, still, nudges):
    response = http.post("/v1/batches", json=body(still, 3, source="/catalog.csv"))
    assert response.status_code == 202
    batch = response.json()
    assert batch["id"].startswith("batch_")
    assert (batch["object"], batch["name"], batch["source"]) == ("batch", "catalog", "/catalog.csv")
    assert (batch["status"], batch["attended"], batch["attempts"]) == ("running", False, 0)
    assert batch["counts"] == dict.fromkeys(JobState, 0) | {"queued": 3, "total": 3}
    assert nudges.count == 1
    assert http.get(f"/v1/batches/{batch['id']}").json() == batch
    assert http.get("/v1/batches").json() == {"object": "list", "data": [batch], "has_more": False}
    jobs = http.get(f"/v1/batches/{batch['id']}/jobs").json()
    assert [(j["number"], j["name"], j["state"], j["model"], j["size"]) for j in jobs["data"]] == [
        (n, f"SKU-{n}", "queued", "camera", "272x208") for n in (1, 2, 3)
    ]
    assert not jobs["has_more"]


def wish(still: str, defaults: dict[str, Any], **row: Any) -> dict[str, Any]:
    request = body(still)
    request["rows"][0]["row"] |= row
    return request | {"defaults": {"resolution_class": "256p", **defaults}}


def only_job(http: Any, request: dict[str, Any]) -> dict[str, Any]:
    response = http.post("/v1/batches", json=request)
    assert response.status_code == 202, response.text
    (job,) = http.get(f"/v1/batches/{response.json()['id']}/jobs").json()["data"]
    return job


def test_a_job_shows_what_was_adjusted_and_strict_refuses_it(http, still):
    asked = {"model": "i2vgen-xl-tiny", "frames": 65, "step_cache": 2, "strength": 0.3}
    job = only_job(http, wish(still, {}, **asked))
    assert (job["state"], len(job["adjusted"])) == ("queued", 1)
    assert job["adjusted"][0].startswith("frames 65 -> 64: ")
    unused, enlarged = job["notes"]
    assert unused == "strength unused: the clip starts from noise"
    assert "pixels is enlarged" in enlarged
    assert [note["code"] for note in job["noted"]] == ["frames_adjusted", "unused", "enlarged"]
    assert [note["message"] for note in job["noted"]] == [*job["adjusted"], *job["notes"]]
    assert job["lossy"] == ["deep layers reused for 2 steps"]
    job = only_job(http, wish(still, {"strict": True}, **asked))
    assert (job["state"], [p["field"] for p in job["problems"]]) == ("failed", ["frames"])


def test_a_strict_row_whose_prompt_will_be_cut_is_refused(http, still):
    long = {"model": "i2vgen-xl-tiny", "prompt": "word " * 100}
    assert only_job(http, wish(still, {}, **long))["state"] == "queued"
    job = only_job(http, wish(still, {"strict": True}, **long))
    assert (job["state"], [p["field"] for p in job["problems"]]) == ("failed", ["prompt"])
    assert "at least 25 tokens longer than its encoder reads" in job["problems"][0]["message"]


def test_a_batch_says_how_its_silent_rows_are_made(http, still, farm):
    said = {"sampler": "unipc", "motion_class": "256p", "strength": 0.25, "upscale": "frames", "step_cache": 2}
    said |= {
        "window": 0,
        "window_overlap": 4,
        "from_draft": False,
        "resolution_class": "512p",
        "model": "i2vgen-xl-tiny",
    }
    response = http.post("/v1/batches", json=body(still) | {"defaults": said})
    (job,) = farm.jobs(response.json()["id"])
    assert (job.spec.sampler, job.spec.strength, job.spec.upscale, job.spec.step_cache) == ("unipc", 0.25, "frames", 2)
    assert job.spec.base.resolution_class == "256p"
    error_of(
        http.post("/v1/batches", json=wish(still, {"sampler": "magic"})),
        422,
        "validation_error",
        "body.defaults.sampler",
    )


def test_what_fast_means_is_the_farm_s_to_say(farm, still, nudges):
    few = FewStep(adapter="/adapters/lcm.safetensors", sha256="ab" * 32)
    wanted = wish(still, {"model": "i2vgen-xl-tiny", "tier": "fast"})
    with TestClient(create_api(farm, default_model="camera", nudge=nudges, few_step={"i2vgen-xl-tiny": few})) as http:
        job = only_job(http, wanted)
        assert job["state"] == "queued"
        assert "adapter lcm at 1" in job["lossy"]
        own = wish(still, {"few_step": {"i2vgen-xl-tiny": few.model_dump(mode="json")}})
        assert http.post("/v1/batches", json=own).status_code == 422
    with TestClient(create_api(farm, default_model="camera", nudge=nudges)) as http:
        assert [p["field"] for p in only_job(http, wanted | {"name": "again"})["problems"]] == ["tier"]


def test_any_replica_answers_for_any_other(http, still, farm, nudges):
    batch = http.post("/v1/batches", json=body(still)).json()
    other = Farm(BatchStore(Database(farm.batch_store.database.url)), farm.storage)
    replica = TestClient(create_api(other, default_model="camera", nudge=nudges))
    assert replica.get(f"/v1/batches/{batch['id']}").json() == batch


def test_a_row_whose_still_was_never_handed_in_fails_alone(http, still):
    given = body(still, 2)
    given["rows"][0]["still"] = "00" * 32
    batch = http.post("/v1/batches", json=given).json()
    first, second = http.get(f"/v1/batches/{batch['id']}/jobs").json()["data"]
    assert (first["state"], first["reason"], first["problems"][0]["field"]) == ("failed", "invalid", "image")
    assert second["state"] == "queued"


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", ".hidden", "x" * 300, "", "line\nbreak"])
def test_a_name_that_is_no_file_name_never_becomes_one(http, still, name):
    given = body(still)
    given["rows"][0]["name"] = name
    batch = http.post("/v1/batches", json=given).json()
    (job,) = http.get(f"/v1/batches/{batch['id']}/jobs").json()["data"]
    assert (job["state"], job["problems"][0]["field"]) == ("failed", "id")


def test_jobs_come_in_pages(http, still):
    batch = http.post("/v1/batches", json=body(still, 5)).json()
    url, found, after = f"/v1/batches/{batch['id']}/jobs", [], 0
    pages = 0
    while True:
        page = http.get(url, params={"after": after, "limit": 2}).json()
        found += [job["number"] for job in page["data"]]
        pages += 1
        if not page["has_more"]:
            break
        after = found[-1]
    assert (found, pages) == ([1, 2, 3, 4, 5], 3)
    exactly = http.get(url, params={"limit": 5}).json()
    assert not exactly["has_more"]
    assert http.get(url, params={"state": "failed"}).json()["data"] == []


def test_cancelling_a_batch(http, still, nudges):
    batch = http.post("/v1/batches", json=body(still, 2)).json()
    cancelled = http.post(f"/v1/batches/{batch['id']}/cancel").json()
    assert (cancelled["status"], cancelled["counts"]["cancelled"]) == ("cancelled", 2)
    assert nudges.count == 2


def test_work_that_is_in_the_store_is_taken_even_if_no_dispatcher_answers(http, still, nudges):
    nudges.fault = RuntimeError("the dispatcher is being replaced")
    assert http.post("/v1/batches", json=body(still)).status_code == 202
    assert len(http.get("/v1/batches").json()["data"]) == 1


def test_the_same_key_again_hands_in_nothing(http, still):
    key = {"Idempotency-Key": "k1"}
    first = http.post("/v1/batches", json=body(still), headers=key)
    again = http.post("/v1/batches", json=body(still), headers=key)
    assert (again.status_code, again.json()) == (202, first.json())
    conflict = http.post("/v1/batches", json=body(still, 2), headers=key)
    error_of(conflict, 422, "idempotency_conflict", "Idempotency-Key")
    assert len(http.get("/v1/batches").json()["data"]) == 1
    http.post("/v1/batches", json=body(still), headers={"Idempotency-Key": "k2"})
    assert len(http.get("/v1/batches").json()["data"]) == 2


def test_a_request_that_broke_off_is_finished_by_the_same_request_again(http, still, farm, monkeypatch):
    real, chunks = BatchStore.add, []

    def dies_at_the_second_chunk(self, owner, batch_id, drafts):
        chunks.append(1)
        if len(chunks) == 2:
            raise RuntimeError("the gateway was killed")
        real(self, owner, batch_id, drafts)

    key = {"Idempotency-Key": "k"}
    monkeypatch.setattr(BatchStore, "add", dies_at_the_second_chunk)
    assert http.post("/v1/batches", json=body(still, 100), headers=key).status_code == 500
    monkeypatch.setattr(BatchStore, "add", real)
    batch = http.post("/v1/batches", json=body(still, 100), headers=key).json()
    assert (batch["status"], batch["counts"]["total"]) == ("running", 100)
    assert len(http.get("/v1/batches").json()["data"]) == 1


# -- errors ----------------------------------------------------------------------------------------------------


def test_what_is_not_there_is_404_in_the_api_s_shape(http):
    for response in (
        http.get("/v1/batches/batch_x"),
        http.get("/v1/batches/batch_x/jobs"),
        http.post("/v1/batches/batch_x/cancel"),
    ):
        assert "batch_x" in error_of(response, 404, "not_found", "batch_id")["message"]
    error_of(http.get("/v1/nothing"), 404, "no_such_route", None)
    error_of(http.delete("/v1/batches"), 405, "http", None)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"rows": []}, "body.rows"),
        ({"name": ""}, "body.name"),
        ({"surprise": 1}, "body.surprise"),
        ({"defaults": {"tier": "best"}}, "body.defaults.tier"),
        ({"name": "a\0b"}, "body.name"),
    ],
)
def test_a_bad_body_is_422_and_names_the_field(http, still, change, param):
    error = error_of(http.post("/v1/batches", json=body(still) | change), 422, "validation_error", param)
    assert error["message"].startswith(param)
    assert http.get("/v1/batches").json()["data"] == []


@pytest.mark.parametrize(
    ("field", "value"), [("position", 0), ("position", 2**40), ("row", {"id": "a"}), ("surprise", 1)]
)
def test_a_bad_row_of_the_body_is_422(http, still, field, value):
    given = body(still)
    given["rows"][0][field] = value
    response = http.post("/v1/batches", json=given)
    assert response.status_code == 422
    assert f"body.rows.0.{field}" in response.json()["error"]["param"]


@pytest.mark.parametrize("field", ["position", "name"])
def test_two_rows_of_one_place_or_name_are_422(http, still, field):
    given = body(still, 3)
    given["rows"][2][field] = given["rows"][0][field]
    assert (
        str(given["rows"][0][field])
        in error_of(http.post("/v1/batches", json=given), 422, "validation_error", "body")["message"]
    )


@pytest.mark.parametrize("number", [10**12, -(10**12)])
def test_numbers_beyond_the_store_s_columns_are_422(http, still, number):
    given = body(still)
    given["rows"][0]["row"]["priority"] = number
    assert http.post("/v1/batches", json=given).status_code == 422


def test_text_that_is_no_unicode_is_no_server_error(http, still):
    given = json.dumps(body(still)).replace('"catalog"', '"cata\\ud800log"')
    response = http.post("/v1/batches", content=given, headers={"Content-Type": "application/json"})
    assert response.status_code == 422


def test_query_parameters_are_checked(http, still):
    batch = http.post("/v1/batches", json=body(still)).json()
    url = f"/v1/batches/{batch['id']}/jobs"
    error_of(http.get(url, params={"limit": 0}), 422, "validation_error", "query.limit")
    error_of(http.get(url, params={"after": -1}), 422, "validation_error", "query.after")
    error_of(http.get(url, params={"state": "lost"}), 422, "validation_error", "query.state")


# -- health ----------------------------------------------------------------------------------------------------


def test_healthy_while_the_store_answers(http, farm):
    assert http.get("/healthz").json() == {"status": "ok", "cards": 0}
    dispatch_store = DispatchStore(farm.batch_store.database)
    dispatch_store.take_office("x")
    dispatch_store.record_cards([beat()])
    assert http.get("/healthz").json() == {"status": "ok", "cards": 1}
    assert http.get("/v1/cards").json() == {"object": "list", "data": [card_view(beat())], "kernels": []}


def test_health_cards_and_why_say_that_storage_cannot_be_written(http, farm, still):
    batch = http.post("/v1/batches", json=body(still)).json()
    dispatch_store = DispatchStore(farm.batch_store.database)
    dispatch_store.take_office("x")
    dispatch_store.record_cards([beat(storage_fault="no space is left")])
    told = http.get("/healthz")
    assert (told.status_code, told.json()["status"], told.json()["detail"]) == (
        200, "storage unwritable", "no space is left",
    )  # fmt: skip
    assert http.get("/v1/cards").json()["data"][0]["storage_fault"] == "no space is left"
    job = http.get(f"/v1/batches/{batch['id']}/jobs").json()["data"][0]
    why = http.get(f"/v1/jobs/{job['id']}/why").json()
    assert why["reason"] == "storage_unwritable"
    assert "no space is left" in why["text"]


def test_health_cards_and_why_name_the_fault_of_cards_that_cannot_be_used(http, farm, still):
    dispatch_store = DispatchStore(farm.batch_store.database)
    dispatch_store.take_office("x")
    broken = {"usable_bytes": 0, "fault": "card: the driver is too old. Update it."}
    dispatch_store.record_cards([beat("gpu0", **broken), beat("gpu1")])
    assert http.get("/healthz").json() == {"status": "ok", "cards": 2}
    dispatch_store.record_cards([beat("gpu1", **broken)])
    told = http.get("/healthz")
    assert (told.status_code, told.json()["status"]) == (200, "no usable card")
    assert "gpu0: card: the driver is too old" in told.json()["detail"]
    assert http.get("/v1/cards").json()["data"][0]["fault"] == broken["fault"]


def test_unhealthy_when_the_store_is_gone(tmp_path, nudges):
    gone = Farm(BatchStore(Database(f"sqlite:///{tmp_path / 'nowhere' / 'x.db'}")), Storage(tmp_path))
    http = TestClient(create_api(gone, default_model="camera", nudge=nudges), raise_server_exceptions=False)
    assert http.get("/healthz").status_code == 503
    error_of(http.get("/v1/batches"), 503, "store_unreachable", None)


# -- the client's ports ----------------------------------------------------------------------------------------


@pytest.fixture(params=["local", "remote"])
def port(request, http, farm):
    """Both ways to a farm must answer alike."""
    if request.param == "local":
        return LocalClient(farm, "camera")
    port = RemoteClient("http://testserver/")
    port._http = http
    return port


def rows_of(still: str, count: int = 1) -> list[IncomingRow]:
    return [IncomingRow.model_validate(row) for row in body(still, count)["rows"]]


def test_a_port_hands_in_a_catalog(port, farm, tmp_path):
    catalog = tmp_path / "catalog"
    catalog.mkdir()
    (catalog / "a.png").write_bytes(still_png())
    (catalog / "bad.png").write_bytes(b"no picture")
    (catalog / "catalog.csv").write_text("id,image,prompt\nSKU-1,a.png,zoom in\nSKU-2,bad.png,zoom in\nSKU-3,a.png,\n")
    manifest = read_manifest(catalog / "catalog.csv")
    rows = gather(manifest, port.put_still)
    batch = port.submit(rows, {"resolution_class": "256p"}, name="catalog", source="s", key="k")
    assert port.batch(batch["id"]) == batch
    assert port.batches() == [batch]
    assert [(job["name"], job["state"]) for job in port.jobs(batch["id"])] == [
        ("SKU-1", "queued"),
        ("SKU-2", "failed"),
        ("SKU-3", "failed"),
    ]
    # What is wrong is said once, whichever way it came.
    (problem,) = port.jobs(batch["id"])[1]["problems"]
    assert problem["field"] == "image"
    assert not problem["message"].startswith("image")
    assert "Correct the request" not in problem["remedy"]
    assert port.command_batch(batch["id"], Verb.CANCEL)["status"] == "failed"


def test_a_port_tells_errors_as_themselves(port, still):
    with pytest.raises(NoSuchBatchError, match="batch_x"):
        port.batch("batch_x")
    with pytest.raises(BadInputError) as refused:
        port.put_still(b"no picture")
    assert refused.value.problem.field == "image"
    first = port.submit(rows_of(still), {}, name="c", source="", key="k")
    assert port.submit(rows_of(still), {}, name="c", source="", key="k")["id"] == first["id"]
    with pytest.raises(IdempotencyConflictError):
        port.submit(rows_of(still, 2), {}, name="c", source="", key="k")


def test_a_remote_port_reads_all_pages(http, still, monkeypatch):
    port = RemoteClient("http://testserver")
    port._http = http
    batch = port.submit(rows_of(still, 1001), {"resolution_class": "256p"}, name="c", source="", key=None)
    assert [job["number"] for job in port.jobs(batch["id"])] == list(range(1, 1002))


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, text="<html>a proxy</html>"),
        httpx.Response(404, text="not found"),
        httpx.Response(404, json={"detail": "Not Found"}),
        httpx.Response(502, text="bad gateway"),
        httpx.Response(500, text="Internal Server Error"),
        httpx.Response(
            503, json={"error": {"message": "no store", "type": "server_error", "param": None, "code": "x"}}
        ),
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("slow"),
    ],
)
def test_whatever_else_answers_is_no_farm(answer):
    def handler(_request: httpx.Request) -> httpx.Response:
        if isinstance(answer, Exception):
            raise answer
        return answer

    port = RemoteClient("http://farm:8500")
    port._http = httpx.Client(base_url=port.url, transport=httpx.MockTransport(handler))
    with pytest.raises(FarmUnreachableError, match="http://farm:8500"):
        port.batch("batch_1")


# -- the farm beneath ------------------------------------------------------------------------------------------


def test_a_clip_whose_video_is_gone_from_storage_is_rendered_again(farm):
    still = farm.put_still(still_png())

    def submit(rows: list[IncomingRow]):
        return farm.submit(rows, Defaults(model="camera"), name="c")

    first = submit(rows_of(still))
    dispatch_store = DispatchStore(farm.batch_store.database)
    dispatch_store.take_office("x")
    claim = claim_one(dispatch_store, farm.jobs(first.id)[0])
    from cluster.dispatch.retry import after_attempt
    from tests.building import FLEET

    ended = completed(claim)
    farm.storage.put_bytes(ended.objects.video, b"mp4")
    dispatch_store.finish(claim, ended, after_attempt(dispatch_store.current_job(claim), ended, FLEET))
    assert submit(rows_of(still)).status == "completed"
    farm.storage.delete(ended.objects.video)
    seen: list[str] = []
    real = farm.batch_store.add

    def add(*args) -> None:
        real(*args)
        # Whoever waits looks at any moment: a row must never show a clip that cannot be fetched.
        seen.extend(job.state.value for job in farm.jobs(args[1]))

    farm.batch_store.add = add
    again = submit(rows_of(still))
    assert (again.status, seen) == ("running", ["queued"])
    assert farm.batch(first.id).status == "running", "its row lost its clip too"


def test_rows_can_start_while_later_ones_are_read(farm):
    still, seen = farm.put_still(still_png()), []

    def rows():
        for row in rows_of(still, 130):
            if row.position in (5, 65, 130):
                (batch,) = farm.batch_store.batches("local")
                seen.append((batch.status, batch.counts.total))
            yield row

    assert farm.submit(rows(), Defaults(model="camera"), name="c").counts.total == 130
    # The first four at once, then twice as many each time, 64 at most.
    assert seen == [("validating", 4), ("validating", 60), ("validating", 124)]


def test_equal_rows_of_a_manifest_have_one_content_key(farm):
    still = farm.put_still(still_png())
    row = Row(number=1, id="a", image="a.png", prompt="zoom in")
    rows = [
        IncomingRow(position=n, name=f"r{n}", number=n, still=still, row=row.model_copy(update={"id": f"r{n}"}))
        for n in (1, 2)
    ]
    one, other = farm.jobs(farm.submit(rows, Defaults(model="i2vgen-xl"), name="c").id)
    assert one.content_key == other.content_key
    assert one.spec == other.spec


# -- settings --------------------------------------------------------------------------------------------------


def test_the_renderer_s_own_environment_counts_where_the_farm_says_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("CLIPMILL_OFFLINE", "1")
    monkeypatch.setenv("CLIPMILL_HOME", str(tmp_path))
    farm = FarmArgs(card_classes={"c24": CardClassArgs()})
    settings = farm.settings()
    assert settings.offline
    assert settings.home == tmp_path
    assert settings.database_url == f"sqlite:///{tmp_path}/clipmill.db"
    assert FarmArgs(card_classes={"c24": CardClassArgs()}, home="/elsewhere").settings().storage_url == (
        "/elsewhere/storage"
    )
    assert Settings(home=tmp_path / "x").storage_url == str(tmp_path / "x" / "storage")


def test_an_unknown_card_class_is_refused_by_name():
    with pytest.raises(ValueError, match="c7"):
        FarmArgs(card_classes={"c7": CardClassArgs()})
    with pytest.raises(ValueError, match="empty"):
        FarmArgs(card_classes={})


def test_a_row_needs_its_still_and_what_it_asks_for(http, farm, still) -> None:
    rows = [
        {"still": still, "prompt": "zoom in"},
        {"still": still, "name": "SKU-7", "prompt": "pan left", "frames": 12},
    ]
    made = http.post("/v1/batches", json={"name": "shop", "rows": rows, "defaults": {"resolution_class": "256p"}})
    assert made.status_code == 202
    first, second = farm.jobs(made.json()["id"])
    assert (first.name, first.number, first.row["prompt"], first.state) == ("row-1", 1, "zoom in", JobState.QUEUED)
    assert (second.name, second.number, second.spec.frames) == ("SKU-7", 2, 12)
    assert "refused" not in made.json()


def test_rows_that_cannot_be_rendered_are_told_at_once(http, farm, still) -> None:
    rows = [
        {"still": still, "prompt": "zoom in"},
        {"still": still, "prompt": "x", "fps": 0},
        {"still": "ab" * 32, "prompt": "x"},
    ]
    made = http.post("/v1/batches", json={"name": "shop", "rows": rows}).json()
    assert [(one["name"], one["problems"][0]["field"]) for one in made["refused"]] == [
        ("row-2", "fps"),
        ("row-3", "image"),
    ]


def test_all_faults_of_a_body_are_named_at_once(http, still) -> None:
    rows = [{"still": still, "position": "x", "frames": "many", "sized": 1}]
    answer = http.post("/v1/batches", json={"name": "", "rows": rows})
    assert answer.status_code == 422
    message = answer.json()["error"]["message"]
    for name in ("body.name", "rows.0.position", "rows.0.row.frames", "rows.0.row.sized"):
        assert name in message
    many = http.post(
        "/v1/batches", json={"name": "x", "rows": [{"row": None, "position": 1, "name": "a"}] * 30}
    ).json()["error"]["message"]
    assert "; and 20 more" in many


@pytest.mark.parametrize("rows", [[None], [1], ["x"], [[]], [{}], [{"row": 1}], [{"row": []}], [{"name": 5}], {"a": 1}])
def test_what_is_no_row_is_refused(http, rows) -> None:
    assert http.post("/v1/batches", json={"name": "x", "rows": rows}).status_code in (202, 422)
