"""Two owners on one farm: over every route, neither learns of the other's work or changes it; an operator does both."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from cluster.access.scopes import Scope
from cluster.store import Database
from serve.gateway.access.gate import OWNER_COOKIE, OWNER_HEADER
from serve.gateway.access.scopes import ROUTE_SCOPES
from tests.building import Truth
from tests.unit.serve.gateway.access.conftest import Gated, Work, hand_in, opened

#: Parameters that name somebody's work.
NAMED = ("batch_id", "job_id", "video_id", "file_id")
VERBS = ("pause", "resume", "cancel", "retry", "prioritize", "hold", "approve")
#: Every route that names somebody's work.
OWNED = [route for route in sorted(ROUTE_SCOPES) if any(f"{{{name}}}" in route[1] for name in NAMED)]
#: Every route that lists somebody's work, or finds it.
LISTS = ("/v1/batches", "/v1/batches?everything=true", "/v1/videos", "/v1/files", "/v1/files?purpose=batch")


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("owners")
    database = Database.in_folder(folder / "home")
    with opened(database, folder / "storage") as found:
        yield found
    database.close()


@pytest.fixture(scope="module")
def works(gate) -> dict[str, Work]:
    return {owner: hand_in(gate, gate.key(owner), seed) for seed, owner in enumerate(("ann", "bob"), 1)}


def paths_of(path: str, work: Work) -> list[str]:
    """The path with all of the work's ids, all verbs, and a delivery profile."""
    choices = work.ids() | {"verb": list(VERBS), "profile": ["shop"]}
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    return [
        path.format(**dict(zip(names, values, strict=True)))
        for values in itertools.product(*(choices[name] for name in names))
    ]


def state_of(gate: Gated) -> dict[str, list[tuple[Any, ...]]]:
    return Truth(gate.database).everything() | {"access_keys": []}


def test_the_routes_are_found():
    assert len(OWNED) > 15


@pytest.mark.parametrize(("method", "path"), OWNED)
def test_to_another_owner_it_is_not_there_and_nothing_changes(gate, works, method, path):
    stranger = gate.key("bob")
    for one in paths_of(path, works["ann"]):
        before = state_of(gate)
        answer = gate.ask(
            method, one, stranger, content=b'{"priority": 1}', headers={"Content-Type": "application/json"}
        )
        assert answer.status_code == 404, (one, answer.text)
        # As of what never was.
        never = one
        for name in [name for values in works["ann"].ids().values() for name in values]:
            never = never.replace(name, name[:-2] + ("00" if name[-2:] != "00" else "11"))
        unknown = gate.ask(
            method, never, stranger, content=b'{"priority": 1}', headers={"Content-Type": "application/json"}
        )
        assert unknown.status_code == 404
        assert unknown.json()["error"]["code"] == answer.json()["error"]["code"]
        assert state_of(gate) == before


@pytest.mark.parametrize("path", LISTS)
def test_lists_show_the_own_work_only(gate, works, path):
    for owner, other in (("ann", "bob"), ("bob", "ann")):
        shown = gate.ask("GET", path, gate.key(owner)).text
        theirs = {name for values in works[other].ids().values() for name in values}
        assert not any(name in shown for name in theirs)
        own = {name for values in works[owner].ids().values() for name in values}
        assert any(name in shown for name in own)


def test_no_id_of_another_owner_is_found_by_its_beginning(gate, works):
    for name in (works["ann"].batch, works["ann"].job):
        assert gate.ask("GET", f"/v1/ids?begins={name}", gate.key("ann")).json()["id"] == name
        assert gate.ask("GET", f"/v1/ids?begins={name}", gate.key("bob")).status_code == 404


def test_what_another_owner_handed_in_cannot_be_named(gate, works):
    theirs, sha256 = works["ann"], works["ann"].file.removeprefix("file-")
    row = {"still": sha256, "name": "X", "prompt": "x"}
    batch = gate.ask("POST", "/v1/batches", gate.key("bob"), json={"name": "x", "rows": [row]}).json()
    assert batch["refused"][0]["problems"]
    asked = {"prompt": "x", "input_reference": {"file_id": theirs.file}, "model": "camera"}
    assert gate.ask("POST", "/v1/videos", gate.key("bob"), json=asked).status_code == 400
    named = {"name": "x", "input_file_id": theirs.manifest}
    assert gate.ask("POST", "/v1/batches", gate.key("bob"), json=named).status_code == 404
    waits = {"name": "x", "rows": [row | {"after": theirs.job}]}
    assert theirs.job not in gate.ask("POST", "/v1/batches", gate.key("bob"), json=waits).json().get("status", "")


def test_an_idempotency_key_is_its_owner_s(gate, works):
    ids = set()
    for owner, work in works.items():
        row = {"still": work.file.removeprefix("file-"), "name": "I", "prompt": "x"}
        answer = gate.ask(
            "POST",
            "/v1/batches",
            gate.key(owner),
            json={"name": "same", "rows": [row]},
            headers={"Idempotency-Key": "same"},
        )
        assert answer.status_code == 202
        ids.add(answer.json()["id"])
    assert len(ids) == 2


@pytest.mark.parametrize("scope", [Scope.OPERATE, Scope.ADMIN])
def test_an_operator_sees_and_changes_the_work_of_every_owner(gate, works, scope):
    key = gate.key("op", scope)
    for owner, work in works.items():
        assert gate.ask("GET", f"/v1/batches/{work.batch}", key).json()["owner"] == owner
        assert gate.ask("GET", f"/v1/jobs/{work.job}/why", key).json()["job"] == work.job
        assert gate.ask("GET", f"/v1/videos/{work.video}", key).json()["id"] == work.video
        assert gate.ask("POST", f"/v1/batches/{work.batch}/pause", key).json()["held"]["batch"] == "paused"
        assert gate.ask("POST", f"/v1/batches/{work.batch}/resume", key).json()["held"]["batch"] is None
        # Lists and files are one owner's: whose, a header says.
        listed = gate.ask("GET", "/v1/batches", key, headers={OWNER_HEADER: owner}).json()["data"]
        assert work.batch in {one["id"] for one in listed}
        assert {one["owner"] for one in listed} == {owner}
        assert gate.ask("GET", f"/v1/files/{work.file}", key, headers={OWNER_HEADER: owner}).status_code == 200
    assert gate.ask("GET", "/v1/batches", key).json()["data"] == []
    assert gate.ask("GET", "/v1/batches/batch_" + "0" * 32, key).status_code == 404


def test_an_operator_hands_in_for_another_owner_and_nobody_else_does(gate, works):
    body = {"name": "for ann", "rows": [{"still": works["ann"].file.removeprefix("file-"), "name": "A", "prompt": "z"}]}
    made = gate.ask("POST", "/v1/batches", gate.key("op", Scope.OPERATE), json=body, headers={OWNER_HEADER: "ann"})
    assert made.json()["owner"] == "ann"
    assert gate.ask("GET", f"/v1/batches/{made.json()['id']}", gate.key("ann")).status_code == 200
    before = state_of(gate)
    refused = gate.ask("POST", "/v1/batches", gate.key("bob"), json=body, headers={OWNER_HEADER: "ann"})
    error = gate.refused(refused, 403, "wrong_owner")
    assert error["param"] == OWNER_HEADER
    assert "operate" in error["remedy"]
    # Nor is it a field of the body.
    gate.refused(
        gate.ask("POST", "/v1/batches", gate.key("bob"), json=body | {"owner": "ann"}), 422, "validation_error"
    )
    assert state_of(gate) == before
    own = gate.ask("GET", "/v1/batches", gate.key("bob"), headers={OWNER_HEADER: "bob"})
    assert own.status_code == 200
    bad = gate.ask("GET", "/v1/batches", gate.key("op", Scope.OPERATE), headers={OWNER_HEADER: "a b"})
    gate.refused(bad, 400, "bad_input")


def test_cards_and_models_are_everybody_s_and_orders_are_an_operator_s(gate):
    for path in ("/v1/cards", "/v1/models"):
        assert gate.ask("GET", path, gate.key("bob")).status_code == 200
    gate.refused(gate.ask("POST", "/v1/cards/gpu0/lock", gate.key("bob")), 403, "missing_scope")
    assert gate.ask("POST", "/v1/cards/gpu0/lock", gate.key("op", Scope.OPERATE)).status_code == 404


def test_the_page_of_an_administrator_shows_the_owners_and_the_work_of_the_chosen_one(gate, works):
    """Also what scripts of the page ask; a named batch goes before, and a cookie opens nothing to anybody else."""
    key = gate.key("root", Scope.ADMIN)
    page = gate.ask("GET", "/", key).text
    assert all(f'<option value="{owner}"' in page for owner in (*works, "root"))
    for owner, work in works.items():
        cookie = {"Cookie": f"{OWNER_COOKIE}={owner}"}
        assert work.batch in gate.ask("GET", "/", key, headers=cookie).text
        assert {one["owner"] for one in gate.ask("GET", "/v1/batches", key, headers=cookie).json()["data"]} == {owner}
        other = next(found for name, found in works.items() if name != owner)
        assert gate.ask("GET", f"/v1/batches/{other.batch}", key, headers=cookie).status_code == 200
        header = cookie | {OWNER_HEADER: "root"}
        assert gate.ask("GET", "/v1/batches", key, headers=header).json()["data"] == []


@pytest.mark.parametrize("scopes", [(Scope.SUBMIT, Scope.READ), (Scope.READ, Scope.OPERATE)])
def test_a_cookie_that_names_an_owner_is_nothing_to_others(gate, works, scopes):
    key = gate.key("bob", *scopes)
    answer = gate.ask("GET", "/", key, headers={"Cookie": f"{OWNER_COOKIE}=ann"})
    assert answer.status_code == 200
    assert works["ann"].batch not in answer.text
    assert 'id="owner"' not in answer.text


@pytest.mark.parametrize("value", ["%22%3Cscript%3E", "a" * 5000, "", "ann;bob"])
def test_a_cookie_that_names_no_owner_is_left_out(gate, works, value):
    answer = gate.ask("GET", "/", gate.key("root", Scope.ADMIN), headers={"Cookie": f"{OWNER_COOKIE}={value}"})
    assert answer.status_code == 200
    assert "<script>" not in answer.text
