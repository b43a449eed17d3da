"""Who is let in: 401 without a key, 403 with too small a one, for every route there is; sessions, revocation, rates."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from cluster.access.quotas import OwnerQuota
from cluster.access.scopes import Scope
from cluster.store import Database
from cluster.store.access.keys import KeyStore
from cluster.store.access.quotas import QuotaStore
from serve.gateway.access.gate import PLAIN_COOKIE, SECURE_COOKIE
from serve.gateway.access.rates import RequestRates
from serve.gateway.access.scopes import OPEN, ROUTE_SCOPES, scope_of
from serve.gateway.api import create_api
from tests.building import Truth
from tests.served import served
from tests.unit.serve.gateway.access.conftest import KEPT_S, Gated, Ticks, gated, hand_in, nobody, opened

#: Routes that the document leaves out: pages, and what monitoring asks.
PAGES = {"/", "/batches/{batch_id}", "/batches/{batch_id}/rows", "/clips/{job_id}", "/cards", "/new", "/login", "/docs"}
HIDDEN = {("POST", "/new/check"), *(("GET", path) for path in PAGES | {"/openapi.json", "/metrics"})}
ROUTES = sorted(ROUTE_SCOPES)


def plain(path: str) -> str:
    return path.replace(":path}", "}")


def filled(path: str) -> str:
    """The path with something in the place of every parameter."""
    verb = "lock" if path.startswith("/v1/cards") else "cancel"
    return "/".join({"{verb}": verb}.get(part, "nothing" if part.startswith("{") else part) for part in path.split("/"))


def too_small_for(needed: Scope) -> tuple[Scope, ...]:
    """All scopes that do not have the needed one within them."""
    within = {Scope.READ: {Scope.READ, Scope.OPERATE, Scope.ADMIN}, Scope.SUBMIT: {Scope.SUBMIT, Scope.OPERATE}}
    return tuple(scope for scope in Scope if scope not in within.get(needed, {needed}) | {needed, Scope.ADMIN})


# -- every route --------------------------------------------------------------------------------------------------


def test_every_route_has_an_entry_and_every_entry_a_route(gate):
    there = set(HIDDEN)
    for path, methods in gate.http.get("/openapi.json", headers=_bearer(gate.key("a"))).json()["paths"].items():
        there |= {(method.upper(), path) for method in methods}
    assert {(method, plain(path)) for method, path in {*ROUTE_SCOPES, *OPEN}} == there


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("shared")
    database = Database.in_folder(folder / "home")
    with opened(database, folder / "storage") as found:
        yield found
    database.close()


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_without_a_key_nothing_is_answered(shared, method, path):
    shared.key("a")
    answer = shared.ask(method, filled(path), content=b"{}")
    shared.refused(answer, 401, "no_key")
    assert answer.headers["www-authenticate"] == 'Bearer realm="clipmill"'
    wrong = shared.ask(method, filled(path), "clipmill_nothere", content=b"{}")
    shared.refused(wrong, 401, "invalid_key")
    assert 'error="invalid_token"' in wrong.headers["www-authenticate"]


@pytest.mark.parametrize(("method", "path"), [route for route in ROUTES if ROUTE_SCOPES[route] is not None])
def test_a_key_without_the_scope_is_refused_before_anything_is_looked_at(shared, method, path):
    needed = scope_of(method, path)
    assert needed is not None
    before = Truth(shared.database).everything()
    for scope in too_small_for(needed):
        text = shared.key("a", scope)
        before = Truth(shared.database).everything() | {"access_keys": []}
        answer = shared.ask(method, filled(path), text, content=b"no JSON at all")
        error = shared.refused(answer, 403, "missing_scope")
        assert needed.value in error["message"]
        assert f'scope="{needed.value}"' in answer.headers["www-authenticate"]
        assert Truth(shared.database).everything() | {"access_keys": []} == before


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_a_key_with_the_scope_reaches_the_route(shared, method, path):
    needed = scope_of(method, path)
    for scope in {needed or Scope.METRICS, Scope.ADMIN}:
        answer = shared.ask(method, filled(path), shared.key("a", scope), content=b"no JSON at all")
        assert answer.status_code not in (401, 403), (scope, answer.text)


def test_a_route_that_the_table_does_not_know_is_closed(gate, monkeypatch):
    monkeypatch.delitem(ROUTE_SCOPES, ("GET", "/v1/cards"))
    gate.refused(gate.ask("GET", "/v1/cards", gate.key("a", Scope.ADMIN)), 403, "missing_scope")


def test_health_and_paths_that_there_are_not(gate):
    key = gate.key("a")
    assert gate.ask("GET", "/healthz").json() == {"status": "ok", "cards": 0}
    # Nobody learns without a key which routes there are.
    gate.refused(gate.ask("GET", "/v1/nothing"), 401, "no_key")
    gate.refused(gate.ask("GET", "/v1/nothing", key), 404, "no_such_route")
    assert gate.ask("PATCH", "/v1/batches", key).status_code == 405


# -- what is shown ------------------------------------------------------------------------------------------------


def _bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


@pytest.mark.parametrize(
    "header", ["{}", "Basic {}", "bearer", "Bearer", "Bearer {} {}", "Bearer  ", "Bearer {}x", "Token {}", "Bearer é"]
)
def test_headers_that_show_no_key(gate, header):
    text = gate.key("a")
    given = [(b"authorization", header.replace("{}", text).encode("latin-1"))]
    gate.refused(gate.http.get("/v1/batches", headers=given), 401, "invalid_key")


def test_two_authorizations_are_none_and_the_scheme_is_read_in_any_case(gate):
    text = gate.key("a")
    two = [(b"authorization", f"Bearer {text}".encode())] * 2
    gate.refused(gate.http.get("/v1/batches", headers=two), 401, "invalid_key")
    assert gate.http.get("/v1/batches", headers={"Authorization": f"bEaReR   {text}"}).status_code == 200


def test_no_answer_to_a_wrong_key_repeats_it(gate):
    text = gate.key("a")[:-1]
    assert text not in gate.ask("GET", "/v1/batches", text).text


@pytest.mark.parametrize("state", ["revoked", "expired"])
def test_a_key_that_is_over_says_so(gate, state, monkeypatch):
    key, text = gate.keys.create("a", expires_s=3600)
    if state == "revoked":
        gate.keys.revoke(key.id)
    else:
        monkeypatch.setattr(gate.database, "now", lambda _c: key.created_at + 3600)
    error = gate.refused(gate.ask("GET", "/v1/batches", text.text), 401, "invalid_key")
    assert f"{key.id} is {state}" in error["message"]


def test_a_revoked_key_opens_nothing_within_the_time_that_is_stated(gate):
    key, text = gate.keys.create("a")
    assert gate.ask("GET", "/v1/batches", text.text).status_code == 200
    # As by the command line, or on another replica.
    gate.keys.revoke(key.id)
    gate.ticks.now += KEPT_S - 0.01
    assert gate.ask("GET", "/v1/batches", text.text).status_code == 200
    gate.ticks.now += 0.01
    gate.refused(gate.ask("GET", "/v1/batches", text.text), 401, "invalid_key")


def test_a_key_that_is_revoked_here_is_known_here_at_once(gate):
    key, text = gate.keys.create("a")
    assert gate.ask("GET", "/v1/batches", text.text).status_code == 200
    assert gate.ask("DELETE", f"/v1/keys/{key.id}", gate.key("root", Scope.ADMIN)).json()["status"] == "revoked"
    gate.refused(gate.ask("GET", "/v1/batches", text.text), 401, "invalid_key")


def test_polls_ask_the_store_for_the_key_once_in_a_while_and_write_nothing(gate, monkeypatch):
    text, looks = gate.key("a"), []
    look = gate.lookup._look
    monkeypatch.setattr(gate.lookup, "_look", lambda credential: looks.append(credential) or look(credential))
    gate.ask("GET", "/v1/batches", text)
    before = Truth(gate.database).everything()
    for _ in range(20):
        gate.ticks.now += 0.1
        assert gate.ask("GET", "/v1/batches", text).status_code == 200
    assert len(looks) == 1
    gate.ticks.now += KEPT_S
    assert gate.ask("GET", "/v1/batches", text).status_code == 200
    assert len(looks) == 2
    assert Truth(gate.database).everything() == before


# -- a farm without keys -------------------------------------------------------------------------------------------


def test_on_loopback_a_farm_asks_for_keys_from_the_first_one_on(sqlite_database, tmp_path):
    api, _, ticks, _ = gated(sqlite_database, tmp_path / "storage", required=False)
    with TestClient(api, base_url="http://localhost") as http:
        assert http.get("/v1/session").json()["owner"] == "local"
        assert http.get("/v1/keys").status_code == 200
        key, text = KeyStore(sqlite_database).create("local")
        ticks.now += KEPT_S
        assert http.get("/v1/batches").status_code == 401
        assert http.get("/v1/batches", headers=_bearer(text.text)).status_code == 200
        # Whoever revokes the last key does not open the farm.
        KeyStore(sqlite_database).revoke(key.id)
        ticks.now += KEPT_S
        assert http.get("/v1/batches").status_code == 401


def test_beyond_loopback_a_farm_without_keys_says_how_to_make_one(gate):
    error = gate.refused(gate.ask("GET", "/v1/batches"), 401, "no_keys_yet")
    assert "clipmill keys create" in error["remedy"]
    assert gate.ask("GET", "/healthz").status_code == 200


def test_without_terms_nobody_is_asked(sqlite_database, gate):
    gate.key("a")
    with TestClient(create_api(gate.farm, default_model="camera", nudge=nobody)) as http:
        assert http.get("/v1/batches").status_code == 200


def test_a_store_that_cannot_be_asked_is_a_503_in_the_usual_form(gate, monkeypatch):
    text = gate.key("a")

    def gone(*_args: object) -> None:
        import sqlalchemy.exc

        raise sqlalchemy.exc.OperationalError("SELECT", None, Exception("gone"))

    with monkeypatch.context() as away:
        away.setattr(gate.lookup, "_look", gone)
        answer = gate.ask("GET", "/v1/batches", text)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unreachable")
    # And is asked again at once.
    assert gate.ask("GET", "/v1/batches", text).status_code == 200


def test_health_is_told_whatever_becomes_of_the_table_of_keys(sqlite_database, tmp_path):
    api, _, _, lookup = gated(sqlite_database, tmp_path / "storage", required=False)

    def gone() -> bool:
        import sqlalchemy.exc

        raise sqlalchemy.exc.OperationalError("SELECT", None, Exception("gone"))

    lookup._keys.any = gone  # type: ignore[method-assign]
    with TestClient(api, base_url="http://localhost") as http:
        assert http.get("/healthz").json()["status"] == "ok"
        # Nobody is let in without a key because it cannot be seen whether keys are needed.
        assert http.get("/v1/batches").status_code == 503


# -- sessions -----------------------------------------------------------------------------------------------------


def test_a_browser_gets_a_session_for_a_key_and_ends_it(gate):
    key = gate.key("a")
    opened = gate.http.post("/v1/session", json={"key": key})
    cookie = opened.headers["set-cookie"]
    assert cookie.startswith(f"{PLAIN_COOKIE}=")
    for mark in ("HttpOnly", "SameSite=strict", "Path=/"):
        assert mark in cookie
    assert "Secure" not in cookie
    assert key not in opened.text + cookie
    assert opened.json()["owner"] == "a"
    assert gate.http.get("/v1/batches").status_code == 200
    assert gate.http.get("/v1/session").json()["scopes"] == ["read", "submit"]
    secret = gate.http.cookies[PLAIN_COOKIE]
    assert gate.http.delete("/v1/session").json() == {"object": "session", "deleted": True}
    assert PLAIN_COOKIE not in gate.http.cookies
    again = gate.http.get("/v1/batches", headers={"Cookie": f"{PLAIN_COOKIE}={secret}"})
    gate.refused(again, 401, "invalid_key")


@pytest.mark.parametrize("how", [{"base_url": "https://localhost"}, {"headers": {"X-Forwarded-Proto": "https"}}])
def test_over_https_the_cookie_is_secure(gate, how):
    client = TestClient(gate.api, **{"base_url": "http://localhost", **how})
    cookie = client.post("/v1/session", json={"key": gate.key("a")}).headers["set-cookie"]
    assert cookie.startswith(f"{SECURE_COOKIE}=")
    assert "Secure" in cookie
    value = cookie.partition("=")[2].partition(";")[0]
    assert gate.http.get("/v1/batches", headers={"Cookie": f"{SECURE_COOKIE}={value}"}).status_code == 200


def test_a_session_has_no_more_scopes_than_its_key_and_ends_with_it(gate):
    key, text = gate.keys.create("a", {Scope.READ})
    gate.http.post("/v1/session", json={"key": text.text})
    gate.refused(gate.http.put("/v1/stills", content=b"x"), 403, "missing_scope")
    gate.keys.revoke(key.id)
    gate.ticks.now += KEPT_S
    gate.refused(gate.http.get("/v1/batches"), 401, "invalid_key")


def test_no_page_of_another_origin_uses_a_session(gate):
    gate.http.post("/v1/session", json={"key": gate.key("a")})
    foreign = {"Origin": "http://evil.example"}
    gate.refused(gate.http.delete("/v1/session", headers=foreign), 403, "foreign_origin")
    gate.refused(gate.http.post("/v1/session", json={"key": "x"}, headers=foreign), 403, "foreign_origin")
    assert gate.http.get("/v1/batches").status_code == 200


@pytest.mark.parametrize("cookie", [f"{PLAIN_COOKIE}=", f"{PLAIN_COOKIE}=x", "\x01=;;", "a=b", f"{PLAIN_COOKIE}=é"])
def test_cookies_that_open_nothing(gate, cookie):
    gate.key("a")
    answer = gate.http.get("/v1/batches", headers=[(b"cookie", cookie.encode("latin-1"))])
    assert answer.status_code == 401


def test_a_wrong_key_opens_no_session(gate):
    gate.key("a")
    gate.refused(gate.http.post("/v1/session", json={"key": "clipmill_no"}), 401, "invalid_key")
    assert not gate.http.cookies


# -- long answers -------------------------------------------------------------------------------------------------


def test_a_stream_of_events_ends_when_its_key_is_revoked(sqlite_database: Database, tmp_path: Path):
    api, farm, ticks, lookup = gated(sqlite_database, tmp_path / "storage")
    key, text = KeyStore(sqlite_database).create("a")
    with served(api) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=_bearer(text.text)) as http:
        gate = Gated(http=http, database=sqlite_database, farm=farm, ticks=ticks, lookup=lookup, api=api)  # type: ignore[arg-type]
        work = hand_in(gate, text.text, 1)
        with http.stream("GET", f"/v1/batches/{work.batch}/events", timeout=60) as stream:
            lines = stream.iter_lines()
            while next(lines) != "event: batch":
                pass
            KeyStore(sqlite_database).revoke(key.id)
            ticks.now += KEPT_S
            # Something is sent about a change, and the gate looks at whoever gets it.
            farm.of("a").command_batch(work.batch, _verb("pause"))
            rest = list(lines)
        # The batch as it was before, and nothing after that.
        assert not [line for line in rest if line.startswith("event:")]
        assert http.get("/v1/batches").status_code == 401


def _verb(name: str) -> Any:
    from cluster.jobs.transitions import Verb

    return Verb(name)


# -- rates --------------------------------------------------------------------------------------------------------


def test_a_bucket_holds_a_minute_and_fills_evenly():
    ticks = Ticks()
    rates = RequestRates(ticks)
    assert [rates.take("a", 3) for _ in range(4)] == [None, None, None, 20]
    # Another owner has a bucket of their own.
    assert rates.take("b", 3) is None
    ticks.now += 19
    assert rates.take("a", 3) == 1
    ticks.now += 1
    assert rates.take("a", 3) is None
    ticks.now += 3600
    assert [rates.take("a", 3) for _ in range(4)] == [None, None, None, 20]


def test_an_owner_who_asks_too_often_is_told_when_to_come_back(gate):
    QuotaStore(gate.database).set("a", OwnerQuota(requests_minute=2))
    answers = [gate.ask("GET", "/v1/batches", gate.key("a")) for _ in range(3)]
    assert [one.status_code for one in answers[:2]] == [200, 200]
    error = gate.refused(answers[2], 429, "quota_exceeded")
    assert error["param"] == "requests_minute"
    assert 1 <= int(answers[2].headers["retry-after"]) <= 30
    # All keys of an owner share the bucket; others have theirs, and health is always told.
    gate.refused(gate.ask("GET", "/v1/batches", gate.key("a", Scope.READ)), 429, "quota_exceeded")
    assert gate.ask("GET", "/v1/batches", gate.key("b")).status_code == 200
    assert gate.ask("GET", "/healthz").status_code == 200


def test_too_many_rows_are_a_429_and_none_of_them_is_in(gate):
    QuotaStore(gate.database).set("a", OwnerQuota(queued_jobs=3))
    work = hand_in(gate, gate.key("a"), 1)
    rows = [{"still": work.file.removeprefix("file-"), "name": f"R{n}", "prompt": f"{n}"} for n in range(2)]
    before = Truth(gate.database).everything()
    body = {"name": "more", "rows": rows}
    answer = gate.ask("POST", "/v1/batches", gate.key("a"), json=body, headers={"Idempotency-Key": "one"})
    error = gate.refused(answer, 429, "quota_exceeded")
    assert (error["param"], answer.headers["retry-after"]) == ("queued_jobs", "60")
    assert Truth(gate.database).everything() == before
    # The key is free: the same body goes through once there is room.
    QuotaStore(gate.database).set("a", OwnerQuota(queued_jobs=4))
    taken = gate.ask("POST", "/v1/batches", gate.key("a"), json=body, headers={"Idempotency-Key": "one"})
    assert taken.status_code == 202
    # What was taken before is told again, whatever the quota says by now.
    again = gate.ask("POST", "/v1/batches", gate.key("a"), json=body, headers={"Idempotency-Key": "one"})
    assert again.json()["id"] == taken.json()["id"]
    video = {"prompt": "x", "input_reference": {"file_id": work.file}, "model": "camera"}
    gate.refused(gate.ask("POST", "/v1/videos", gate.key("a"), json=video), 429, "quota_exceeded")


# -- keys and quotas over HTTP ------------------------------------------------------------------------------------


def test_keys_are_made_rotated_and_revoked_over_http(gate):
    admin = gate.key("root", Scope.ADMIN)
    body = {"owner": "shop", "name": "ci", "scopes": ["read"], "expires_s": 3600}
    made = gate.ask("POST", "/v1/keys", admin, json=body)
    assert (made.status_code, made.headers["cache-control"]) == (201, "no-store")
    key = made.json()
    assert gate.ask("GET", "/v1/session", key["key"]).json()["owner"] == "shop"
    shown = gate.ask("GET", f"/v1/keys/{key['id']}", admin).json()
    assert shown == {name: value for name, value in key.items() if name != "key"} | {"used_at": shown["used_at"]}
    rotated = gate.ask("POST", f"/v1/keys/{key['id']}/rotate", admin, json={"grace_s": 60}).json()
    assert rotated["replaces"]["id"] == key["id"]
    for text in (key["key"], rotated["key"]):
        assert gate.ask("GET", "/v1/batches", text).status_code == 200
    listed = gate.ask("GET", "/v1/keys?owner=shop", admin)
    assert {one["id"] for one in listed.json()["data"]} == {key["id"], rotated["id"]}
    assert key["key"] not in listed.text
    gate.refused(gate.ask("DELETE", "/v1/keys/key_nothere", admin), 404, "not_found")
    gate.refused(gate.ask("POST", "/v1/keys", admin, json={"owner": "a b"}), 400, "bad_input")
    gate.refused(gate.ask("POST", "/v1/keys", admin, json={"owner": "a", "scopes": ["root"]}), 422, "validation_error")


def test_quotas_are_set_and_shown_over_http(gate):
    admin = gate.key("root", Scope.ADMIN)
    set_ = gate.ask("PUT", "/v1/quotas/shop", admin, json={"queued_jobs": 5})
    assert set_.json()["queued_jobs"] == 5
    assert set_.json()["used"] == {"queued_jobs": 0, "gpu_seconds_day": 0, "cost_month": 0}
    assert [one["owner"] for one in gate.ask("GET", "/v1/quotas", admin).json()["data"]] == ["shop"]
    assert gate.ask("GET", "/v1/quotas/other", admin).json()["queued_jobs"] is None
    gate.refused(gate.ask("PUT", "/v1/quotas/shop", admin, json={"queued_jobs": -1}), 422, "validation_error")


def test_a_thousand_requests_at_once_look_a_key_up_once(sqlite_database: Database, tmp_path: Path):
    _, _, _, lookup = gated(sqlite_database, tmp_path / "storage")
    _, text = KeyStore(sqlite_database).create("a")
    looks: list[Any] = []
    look: Callable[[Any], Any] = lookup._look
    inside = threading.Event()

    def slow(credential: Any) -> Any:
        looks.append(credential)
        inside.wait(0.05)
        return look(credential)

    lookup._look = slow  # type: ignore[method-assign]

    async def ask() -> set[str]:
        from serve.gateway.access.callers import Caller, Credential

        found = await asyncio.gather(*(lookup.find(Credential(secret=text.text)) for _ in range(1000)))
        return {one.owner for one in found if isinstance(one, Caller)}

    assert asyncio.run(ask()) == {"a"}
    assert len(looks) == 1
