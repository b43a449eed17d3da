"""`clipmill delete` and `DELETE /v1/batches/{id}`: asked first, refused while it lives, harmless when repeated."""

from __future__ import annotations

import json

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from cluster.farm import Farm
from cluster.storage import Storage
from cluster.store import BatchStore, Database
from serve.cli import commands as command
from serve.cli.main import app
from serve.client import LocalClient, RemoteClient
from serve.gateway.api import create_api
from tests.building import bad_draft, draft
from tests.unit.serve.gateway.test_api import Nudges

ME = "local"


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture
def farm(home):
    database = Database.in_folder(home)
    yield Farm(BatchStore(database), Storage(home / "storage"))
    database.close()


@pytest.fixture(params=["local", "remote"])
def client(request, farm, monkeypatch):
    if request.param == "local":
        found = LocalClient(farm, "camera")
        monkeypatch.setattr(command, "connect", lambda *_: found)
        yield found
        return
    with TestClient(create_api(farm, default_model="camera", nudge=Nudges()), raise_server_exceptions=False) as http:
        found = RemoteClient("http://testserver")
        found._http = http
        monkeypatch.setattr(command, "connect", lambda *_: found)
        yield found


def hand_in(farm: Farm, *drafts) -> str:
    batch_id, _ = farm.batch_store.open_batch(ME, name="catalog")
    farm.batch_store.add(ME, batch_id, drafts)
    farm.batch_store.seal(ME, batch_id)
    return batch_id


def run(*args: str):
    return CliRunner().invoke(app, ["delete", *args])


def test_it_says_what_goes_asks_and_deletes(farm, client, monkeypatch):
    gone, kept = hand_in(farm, bad_draft(1)), hand_in(farm, bad_draft(1))
    shown = run(gone, "--dry-run")
    assert (shown.exit_code, "1 row, 0 clips (0 MiB)" in shown.stderr) == (0, True), shown.stderr
    refused = run(gone)
    assert (refused.exit_code, "give --yes" in refused.stderr) == (2, True), "nobody can be asked"
    assert len(client.batches()) == 2
    deleted = run(gone, "--yes", "--json")
    assert deleted.exit_code == 0
    (view,) = json.loads(deleted.stdout)["batches"]
    assert (view["id"], view["deleted"], view["rows"]) == (gone, True, 1)
    assert [batch["id"] for batch in client.batches(everything=True)] == [kept]
    again = run(gone, "--yes")
    assert (again.exit_code, "nothing is left to delete" in again.stderr) == (0, True), again.stderr


def test_no_answer_deletes_nothing(farm, client, monkeypatch):
    batch_id = hand_in(farm, bad_draft(1))

    class Terminal:
        @staticmethod
        def isatty() -> bool:
            return True

    monkeypatch.setattr(command.sys, "stdin", Terminal())
    monkeypatch.setattr(command.typer, "confirm", lambda _text: False)
    command.delete([batch_id[:20] + batch_id[20:]], yes=True, dry_run=True)
    with pytest.raises(command.typer.Exit):
        command.delete([batch_id])
    assert [batch["id"] for batch in client.batches()] == [batch_id]


def test_where_one_cannot_go_none_does(farm, client):
    over, lives = hand_in(farm, bad_draft(1)), hand_in(farm, draft(1, "a"))
    result = run(over, lives, "--yes")
    assert result.exit_code == 2
    assert "have not ended" in result.stderr
    assert "clipmill cancel" in result.stderr
    assert len(client.batches()) == 2
    for text, words in (("batch_ffff", "there is no batch"), (farm.jobs(over)[0].id, "is a job")):
        result = run(text, "--yes")
        assert (result.exit_code, words in result.stderr) == (2, True), result.stderr


def test_the_api_answers_as_it_does_elsewhere(farm):
    over, lives = hand_in(farm, bad_draft(1)), hand_in(farm, draft(1, "a"))
    with TestClient(create_api(farm, default_model="camera", nudge=Nudges()), raise_server_exceptions=False) as http:
        assert http.delete(f"/v1/batches/{over}", params={"dry_run": True}).json()["deleted"] is False
        assert http.delete(f"/v1/batches/{over}").json() == {
            "id": over,
            "object": "batch.deleted",
            "deleted": True,
            "rows": 1,
            "clips": 0,
            "shared_clips": 0,
            "freed_bytes": 0,
        }
        assert http.delete(f"/v1/batches/{over}").status_code == 404
        refused = http.delete(f"/v1/batches/{lives}")
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "refused")
