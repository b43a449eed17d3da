"""Webhooks over HTTP, through both clients and on the command line, on a store and no farm."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from cluster.farm import Farm
from cluster.jobs.transitions import Verb
from cluster.storage import Storage
from cluster.store import BatchStore, Database
from cluster.store.lookup import AmbiguousIdError
from cluster.store.webhooks.registry import NoSuchWebhookError, WebhookStore
from cluster.store.webhooks.telling import tell
from cluster.webhooks.events import EventType
from pipeline.problems import BadInputError
from serve.cli.main import app
from serve.client import FarmClient, LocalClient, RemoteClient
from serve.gateway.api import create_api
from serve.webhook_client import whole_webhook
from tests.building import draft, still_png
from tests.unit.serve.gateway.test_api import Nudges

URL = "https://shop.example/hook"


@pytest.fixture
def farm(sqlite_database: Database, tmp_path: Any) -> Farm:
    return Farm(BatchStore(sqlite_database), Storage(tmp_path / "storage"))


@pytest.fixture
def http(farm: Farm) -> Any:
    api = create_api(farm, default_model="camera", nudge=Nudges())
    with TestClient(api, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(params=["local", "remote"])
def client(request: pytest.FixtureRequest, farm: Farm, http: Any) -> FarmClient:
    if request.param == "local":
        return LocalClient(farm, "camera")
    client = RemoteClient("http://testserver")
    client._http = http
    return client


def test_a_webhook_s_life(client):
    hooks = client.webhooks
    made = hooks.create(f"{URL}?token=1", [EventType.BATCH_COMPLETED], "staging")
    assert made["secret"].startswith("whsec_")
    assert (made["url"], made["enabled"], made["description"]) == (f"{URL}?…", True, "staging")
    second = hooks.create("https://b.example/", [], "")
    assert "secret" not in second
    assert [view["id"] for view in hooks.all()] == [made["id"], second["id"]]
    assert "secret" not in hooks.all()[0]
    sent = hooks.test(made["id"])
    assert (sent["type"], sent["state"], sent["attempts"]) == ("webhook.test", "pending", 0)
    assert hooks.deliveries(made["id"], 10) == hooks.deliveries(None, 10) == [sent]
    assert hooks.deliveries(second["id"], 10) == []
    assert hooks.enable(made["id"])["enabled"]
    rotated = hooks.rotate(60)
    assert rotated["secret"] not in ("", made["secret"])
    assert rotated["previous_until"] == rotated["created_at"] + 60
    hooks.delete(made["id"])
    assert [view["id"] for view in hooks.all()] == [second["id"]]
    for call in (hooks.delete, hooks.test, hooks.enable):
        with pytest.raises(NoSuchWebhookError):
            call(made["id"])
    for url in ("file:///etc/passwd", "https://b.example/"):
        with pytest.raises(BadInputError):
            hooks.create(url, [], "")


def test_a_page_of_deliveries_goes_on_behind_the_last(http, farm):
    hook = http.post("/v1/webhooks", json={"url": URL}).json()
    sent = [http.post(f"/v1/webhooks/{hook['id']}/test").json()["id"] for _ in range(3)]
    first = http.get("/v1/webhooks/deliveries", params={"limit": 2}).json()
    assert ([one["id"] for one in first["data"]], first["has_more"]) == (sent[:0:-1], True)
    rest = http.get("/v1/webhooks/deliveries", params={"limit": 2, "after": first["data"][-1]["id"]}).json()
    assert ([one["id"] for one in rest["data"]], rest["has_more"]) == ([sent[0]], False)
    about = http.get("/v1/webhooks/deliveries", params={"subject": "batch_1"}).json()
    assert about["data"] == []


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/webhooks", {"url": "https://me:pw@shop.example/"}, 400),
        ("POST", "/v1/webhooks", {"url": URL, "events": ["webhook.test"]}, 400),
        ("POST", "/v1/webhooks", {"url": URL, "events": ["batch.never"]}, 422),
        ("POST", "/v1/webhooks", {}, 422),
        ("GET", "/v1/webhooks/webhook_1", None, 404),
        ("POST", "/v1/webhooks/webhook_1/test", None, 404),
        ("GET", "/v1/webhooks/deliveries?webhook=webhook_1", None, 404),
        ("POST", "/v1/webhooks/rotate", {"grace_s": -1}, 422),
    ],
)
def test_refusals_have_the_form_of_all_others_and_a_remedy(http, method, path, body, status):
    response = http.request(method, path, json=body)
    assert response.status_code == status, response.text
    assert response.json()["error"]["remedy"]


def error_of(response: Any) -> dict[str, Any]:
    assert response.status_code == 400, response.text
    return dict(response.json()["error"])


def new_batch(http: Any, **more: Any) -> Any:
    sha256 = http.put("/v1/stills", content=still_png()).json()["sha256"]
    return http.post(
        "/v1/batches", json={"name": "bags", "rows": [{"still": sha256, "name": "BAG-1", "prompt": "pan left"}], **more}
    )


def test_a_batch_names_its_own_url(http, farm):
    refused = new_batch(http, webhook_url=f"{URL}?job=17")
    assert refused.status_code == 400
    assert error_of(refused)["param"] == "webhook_url"
    assert "rotate" in error_of(refused)["remedy"]
    http.post("/v1/webhooks/rotate")
    assert new_batch(http, webhook_url="gopher://x/").status_code == 400
    batch = new_batch(http, webhook_url=f"{URL}?job=17").json()
    assert batch["webhook_url"] == f"{URL}?…"
    farm.command_batch(batch["id"], Verb.CANCEL)
    assert tell(farm.batch_store.database) == 1
    (found,) = http.get("/v1/webhooks/deliveries", params={"subject": batch["id"]}).json()["data"]
    assert (found["type"], found["webhook"], found["url"]) == ("batch.cancelled", None, f"{URL}?…")


def test_a_video_names_its_own_url(http, farm):
    sha256 = http.put("/v1/stills", content=still_png()).json()["sha256"]
    asked = {"prompt": "pan left", "input_reference": {"file_id": f"file-{sha256}"}, "webhook_url": URL}
    assert error_of(http.post("/v1/videos", json=asked))["param"] == "webhook_url"
    http.post("/v1/webhooks/rotate")
    for wrong in ("gopher://x/", 7, ["https://a.example/"]):
        assert error_of(http.post("/v1/videos", json=asked | {"webhook_url": wrong}))["param"] == "webhook_url"
    video = http.post("/v1/videos", json=asked).json()
    http.post(f"/v1/videos/{video['id']}/cancel")
    assert tell(farm.batch_store.database) == 1
    (found,) = http.get("/v1/webhooks/deliveries", params={"subject": video["id"]}).json()["data"]
    assert (found["type"], found["url"]) == ("video.failed", URL)


def test_beginnings_of_ids_are_enough_where_only_one_begins_so():
    known = [{"id": "webhook_aab"}, {"id": "webhook_aac"}]
    assert whole_webhook("aab", known) == whole_webhook("webhook_aab", known) == "webhook_aab"
    with pytest.raises(AmbiguousIdError, match="2 webhooks"):
        whole_webhook("aa", known)
    with pytest.raises(NoSuchWebhookError):
        whole_webhook("b", known)


def run(*words: str, code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["webhooks", *words])
    assert result.exit_code == code, result.output
    return result.output


def test_commands(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPMILL_HOME", str(tmp_path / "home"))
    assert "no webhooks yet" in run("list")
    made = json.loads(run("create", URL, "--event", "batch.completed", "--json"))["webhook"]
    assert made["secret"].startswith("whsec_")
    assert "told of everything" in run("create", "https://b.example/")
    (first, second) = json.loads(run("list", "--json"))["webhooks"]
    assert (first["id"], first["last"], second["url"]) == (made["id"], None, "https://b.example/")
    assert made["id"][:12] in run("list").replace("\n", "")
    assert "whsec_" in run("rotate", "--grace-hours", "1")
    assert "no farm runs" in run("test", made["id"], code=3)
    assert "no messages yet" in run("deliveries", made["id"])
    assert "is enabled" in run("enable", made["id"])
    assert "deleted" in run("delete", made["id"])
    assert "no webhook" in run("delete", made["id"], code=2)
    database = Database.in_folder(tmp_path / "home")
    try:
        assert [one.id for one in WebhookStore(database).all("local")] == [second["id"]]
        batch_store = BatchStore(database)
        batch_id, _ = batch_store.open_batch("local", name="c")
        batch_store.add("local", batch_id, [draft(1)])
        batch_store.cancel("local", batch_id)
        assert tell(database) == 1
    finally:
        database.close()
    shown = run("deliveries")
    assert "not sent yet" in shown.replace("\n", " ")
