"""Pages of a farm that asks for keys: a person is led to the log-in, sees their own work and what they may do."""

from __future__ import annotations

from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.access.scopes import Scope
from serve.gateway.page.login import own_path
from tests.building import beat
from tests.unit.serve.gateway.access.conftest import Gated, gate, hand_in
from tests.unit.serve.gateway.page.test_pages import Markup, buttons

__all__ = ["gate"]

PERSON = {"Accept": "text/html,application/xhtml+xml"}


def log_in(gate: Gated, key: str) -> None:
    gate.http.cookies.clear()
    assert gate.http.post("/v1/session", json={"key": key}).status_code == 200


def seen(gate: Gated, path: str, status: int = 200) -> str:
    answer = gate.http.get(path, headers=PERSON)
    assert answer.status_code == status, answer.text[:300]
    return answer.text


def test_without_a_session_a_person_is_led_to_the_log_in_and_a_script_is_not(gate: Gated) -> None:
    gate.key("a")
    answer = gate.http.get("/batches/batch_1?state=failed", headers=PERSON, follow_redirects=False)
    assert answer.status_code == 303
    assert answer.headers["location"] == "/login?next=%2Fbatches%2Fbatch_1%3Fstate%3Dfailed"
    page = gate.http.get(answer.headers["location"], headers=PERSON)
    assert page.status_code == 200
    [form] = [a for tag, a in Markup(page.text).elements if tag == "form"]
    assert (form["data-next"], form["action"]) == ("/batches/batch_1?state=failed", "/v1/session")
    # What the page of the log-in loads is open, and nothing else is.
    for tag, attributes in Markup(page.text).elements:
        if tag in ("script", "link"):
            assert gate.http.get(attributes.get("src") or attributes["href"]).status_code == 200
    for path, headers in (("/", PERSON | {"HX-Request": "true"}), ("/", {}), ("/batches/x/rows", {"Accept": "*/*"})):
        gate.refused(gate.http.get(path, headers=headers), 401, "no_key")
    gate.refused(gate.http.post("/new/check", headers=PERSON), 401, "no_key")


def test_a_person_sees_their_own_work_and_none_of_anothers(gate: Gated) -> None:
    mine, theirs = hand_in(gate, gate.key("a"), 1), hand_in(gate, gate.key("b"), 2)
    log_in(gate, gate.key("a"))
    text = seen(gate, "/")
    assert mine.batch in text
    assert theirs.batch not in text
    assert "End the session of a" in text
    for path in (f"/batches/{theirs.batch}", f"/clips/{theirs.job}"):
        assert "There is no such thing here" in seen(gate, path, 404)
    assert gate.http.get(f"/batches/{theirs.batch}/rows").status_code == 404
    assert "of 1" in seen(gate, f"/batches/{mine.batch}")


def test_verbs_are_there_for_those_who_may(gate: Gated) -> None:
    from cluster.store import DispatchStore

    work = hand_in(gate, gate.key("a"), 1)
    cards = DispatchStore(gate.database)
    cards.take_office("test")
    cards.record_cards([beat("gpu0")])
    paths = (f"/batches/{work.batch}", f"/clips/{work.job}", "/cards")

    def offered(*scopes: Scope) -> list[bool]:
        log_in(gate, gate.key("a", *scopes))
        return [bool(buttons(seen(gate, path))) for path in paths]

    assert offered(Scope.READ) == [False, False, False]
    assert "/new" not in [a.get("href") for _, a in Markup(seen(gate, "/")).elements]
    assert "missing_scope" not in seen(gate, "/new", 403)
    assert offered(Scope.READ, Scope.SUBMIT) == [True, True, False]
    assert offered(Scope.OPERATE) == [True, True, True]


ELSEWHERE = ["//evil.example", "/\\evil.example", "https://evil.example", "javascript:x", "", "/\n/x"]


@pytest.mark.parametrize("target", ELSEWHERE)
def test_nobody_is_led_elsewhere_after_the_log_in(gate: Gated, target: str) -> None:
    assert own_path(target) == "/"
    page = gate.http.get("/login", params={"next": target}, headers=PERSON).text
    assert [a["data-next"] for tag, a in Markup(page).elements if tag == "form"] == ["/"]


@given(st.text(max_size=30))
def test_a_path_to_go_on_to_is_one_of_this_gateway(target: str) -> None:
    found: Any = urlsplit(urljoin("http://farm.example/login", own_path(target)))
    assert (found.scheme, found.netloc) == ("http", "farm.example")
