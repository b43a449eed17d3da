"""`clipmill keys`, `login`, `logout` and `whoami`, against a gateway that asks for keys; no key is printed twice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cluster.access.scopes import Scope
from cluster.store import BatchStore, Database
from cluster.store.access.keys import KeyStore
from cluster.store.access.quotas import QuotaStore
from serve.cli.main import app
from serve.credentials import Credentials
from tests.building import draft
from tests.served import served
from tests.unit.serve.gateway.access.conftest import gated


@pytest.fixture(autouse=True)
def _own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPMILL_CONFIG", str(tmp_path / "config"))
    monkeypatch.setenv("CLIPMILL_HOME", str(tmp_path / "home"))
    for name in ("CLIPMILL_KEY", "CLIPMILL_URL"):
        monkeypatch.delenv(name, raising=False)


def run(*args: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, list(args), input=stdin)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    found = Database.in_folder(tmp_path / "home")
    yield found
    found.close()


@pytest.fixture
def url(database: Database, tmp_path: Path) -> Iterator[str]:
    api, *_ = gated(database, tmp_path / "storage")
    with served(api) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(params=["store", "url"])
def there(request: pytest.FixtureRequest, database: Database, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options that name the farm: none for the store of this home, or its address, with an administrator's key."""
    if request.param == "store":
        return []
    _, text = KeyStore(database).create("root", {Scope.ADMIN})
    monkeypatch.setenv("CLIPMILL_KEY", text.text)
    return ["--url", request.getfixturevalue("url")]


def made(*args: str) -> dict[str, Any]:
    done = run("keys", "create", "--json", *args)
    assert done.exit_code == 0, done.output
    return dict(json.loads(done.stdout))


def test_a_key_is_made_listed_rotated_and_revoked(there):
    key = made("--owner", "team", "--scope", "read", "--scope", "metrics", "--name", "ci", "--expires", "90d", *there)
    assert (key["owner"], key["scopes"], key["name"]) == ("team", ["metrics", "read"], "ci")
    assert key["expires_at"] - key["created_at"] == 90 * 86_400
    rotated = json.loads(run("keys", "rotate", key["id"][:9], "--grace", "1h", "--json", *there).stdout)
    assert rotated["replaces"]["expires_at"] - rotated["created_at"] == 3600
    assert run("keys", "revoke", rotated["id"], *there).exit_code == 0
    listed = run("keys", "list", "--json", "--owner", "team", *there)
    found = {one["id"]: one["status"] for one in json.loads(listed.stdout)["data"]}
    assert found == {key["id"]: "active", rotated["id"]: "revoked"}
    assert run("keys", "revoke", "key_", *there).exit_code == 2, "several begin so"
    for shown in (listed, run("keys", "list", *there), run("keys", "list", "--owner", "team", *there)):
        assert key["key"] not in shown.output
        assert key["key"][22:] not in shown.output


def test_the_text_stands_alone_on_standard_output():
    done = run("keys", "create", "--scope", "metrics")
    assert done.stdout.startswith("clipmill_")
    assert done.stdout.count("\n") == 1
    assert "shown this once" in done.stderr


@pytest.mark.parametrize(
    "args",
    [
        ("create", "--scope", "root"),
        ("create", "--owner", "a b"),
        ("create", "--expires", "soon"),
        ("create", "--expires", "0d"),
        ("revoke", "key_nothere"),
        ("quota", "team", "--queued-jobs", "many"),
        ("quota", "--queued-jobs", "3"),
    ],
)
def test_what_cannot_be_done_is_a_line_and_exit_2(args, there):
    done = run("keys", *args, *there)
    assert done.exit_code == 2
    assert "Traceback" not in done.output


def test_quotas_are_set_changed_and_taken_away(database, there):
    assert run("keys", "quota", "team", "--queued-jobs", "5", "--cost-month", "2.5", *there).exit_code == 0
    shown = json.loads(run("keys", "quota", "team", "--cost-month", "none", "--json", *there).stdout)
    assert (shown["queued_jobs"], shown["cost_month"]) == (5, None)
    assert [one["owner"] for one in json.loads(run("keys", "quota", "--json", *there).stdout)["data"]] == ["team"]
    assert QuotaStore(database).quota("team").queued_jobs == 5


def test_keys_of_a_farm_elsewhere_are_for_its_administrators(database, url, monkeypatch):
    for key in (None, KeyStore(database).create("team")[1].text):
        if key:
            monkeypatch.setenv("CLIPMILL_KEY", key)
        done = run("keys", "create", "--scope", "admin", "--url", url)
        assert (done.exit_code, done.stdout) == (2, "")
    assert len(KeyStore(database).listed(None)) == 1
    assert run("keys", "list", "--url", url, "--database", database.url).exit_code == 2


def test_login_keeps_a_key_that_opens_the_farm_and_every_verb_shows_it(database, url, tmp_path):
    KeyStore(database).create("other")
    store = BatchStore(database)
    batch_id, _ = store.open_batch("team", name="catalog")
    store.add("team", batch_id, [draft(1)])
    store.seal("team", batch_id)
    key = made("--owner", "team")["key"]
    closed = run("status", batch_id, "--url", url)
    assert closed.exit_code == 2
    assert f"clipmill login {url}" in " ".join(closed.output.split())
    done = run("login", url, stdin=key + "\n")
    assert done.exit_code == 0, done.output
    assert "as team" in done.output
    shown = json.loads(run("status", batch_id, "--url", url, "--json").stdout)
    assert batch_id in json.dumps(shown)
    assert json.loads(run("whoami", "--url", url, "--json").stdout)["owner"] == "team"
    assert run("pause", batch_id, "--url", url).exit_code == 0
    assert run("logout", url).exit_code == 0
    assert run("status", batch_id, "--url", url).exit_code == 2
    assert key not in done.output + closed.output


def test_a_key_comes_by_a_file_or_the_environment_too(url, tmp_path, monkeypatch):
    key = made("--owner", "team")["key"]
    file = tmp_path / "key"
    file.write_text(key + "\n")
    assert run("login", url, "--key-file", str(file)).exit_code == 0
    assert Credentials().key_of(url) == key
    assert run("logout", url).exit_code == 0
    monkeypatch.setenv("CLIPMILL_KEY", key)
    assert json.loads(run("whoami", "--url", url, "--json").stdout)["owner"] == "team"


@pytest.mark.parametrize("wrong", ["", "hello", "clipmill_aaaaaaaaaaaa_" + "A" * 49])
def test_a_text_that_is_no_key_is_not_sent_and_not_repeated(url, wrong):
    done = run("login", url, stdin=wrong + "\n")
    assert done.exit_code == 2
    assert wrong == "" or wrong not in done.output
    assert not Credentials().path.exists()


def test_a_key_that_the_farm_does_not_know_is_not_kept(database, url):
    store = KeyStore(database)
    key, text = store.create("team")
    store.revoke(key.id)
    done = run("login", url, stdin=text.text + "\n")
    assert done.exit_code == 2
    assert "is revoked" in done.output
    assert text.text not in done.output
    assert not Credentials().path.exists()


def test_what_a_key_may_not_do_is_said_with_the_scope(database, url, monkeypatch):
    _, text = KeyStore(database).create("team", {Scope.READ})
    monkeypatch.setenv("CLIPMILL_KEY", text.text)
    done = run("cards", "lock", "gpu0", "--url", url)
    assert done.exit_code == 2
    assert "operate" in done.output


def test_beyond_loopback_up_does_not_start_without_a_key(database):
    key, _ = KeyStore(database).create("team")
    KeyStore(database).revoke(key.id)
    done = run("up", "--host", "0.0.0.0", "--cards", "c8")
    assert done.exit_code == 2
    assert "clipmill keys create" in " ".join(done.output.split())
