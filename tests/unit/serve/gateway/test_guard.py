"""Who is answered: names of the gateway, programs, its own pages; no page of another origin, however it asks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from cluster.farm import Farm
from cluster.jobs.commands import CardVerb
from cluster.storage import Storage
from cluster.store import BatchStore, Database, DispatchStore
from serve.gateway.api import create_api, protect
from serve.settings import FarmArgs
from tests.building import beat, still_png

HERE = "http://127.0.0.1:8500"


async def nobody() -> None:
    """Nobody is nudged."""


@pytest.fixture(scope="module")
def farm(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    database = Database.in_folder(home)
    yield Farm(BatchStore(database), Storage(home / "storage"))
    database.close()


@pytest.fixture(scope="module")
def http(farm):
    api = protect(create_api(farm, default_model="camera", nudge=nobody), allowed_hosts=["farm.shop", "*.cards.shop"])
    with TestClient(api, base_url=HERE, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def card(farm):
    dispatch_store = DispatchStore(farm.batch_store.database)
    dispatch_store.take_office("first")
    dispatch_store.record_cards([beat("gpu0")])
    yield "gpu0"
    if farm.commands.orders():
        farm.command_card("gpu0", CardVerb.RELEASE)


def refused(response, status, code):
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["code"] == code
    assert error["clipmill"]["remedy"] in error["message"]


# Every kind of thing a browser can be made to ask for.
ASKED = [
    ("GET", "/v1/batches"),
    ("GET", "/healthz"),
    ("GET", "/openapi.json"),
    ("GET", "/nowhere"),
    ("HEAD", "/v1/batches"),
    ("OPTIONS", "/v1/batches"),
    ("POST", "/v1/batches"),
    ("POST", "/v1/batches/batch_x/cancel"),
    ("POST", "/v1/cards/gpu0/lock"),
    ("PUT", "/v1/stills"),
    ("DELETE", "/v1/batches"),
]


@pytest.mark.parametrize(("method", "path"), ASKED)
@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8500",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "evil.localhost.example",
        "farm.shop.evil.example",
        "evilfarm.shop",
        "cards.shop",
        "evil@127.0.0.1",
        "127.0.0.1/evil.example",
        "127.0.0.1:8500, evil.example",
        "[::1].evil.example",
        "",
    ],
)
def test_no_other_host_is_answered(http, method, path, host):
    response = http.request(method, path, headers={"Host": host})
    assert response.status_code == 421
    if method != "HEAD":
        refused(response, 421, "unknown_host")


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1:8500",
        "127.5.5.5:1",
        "localhost:8500",
        "LOCALHOST",
        "[::1]:8500",
        # Prometheus and kubelet name pods by their address; a name server cannot take one over.
        "10.1.2.3:8000",
        "farm.shop",
        "Farm.Shop:443",
        "a.cards.shop",
        "b.a.cards.shop:8500",
    ],
)
def test_addresses_and_configured_names_are_answered(http, host):
    assert http.get("/healthz", headers={"Host": host}).status_code == 200


def test_two_hosts_are_none(http):
    response = http.get("/healthz", headers=[("Host", "127.0.0.1:8500"), ("Host", "evil.example")])
    refused(response, 421, "unknown_host")


@pytest.mark.parametrize(("method", "path"), ASKED)
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        # Another port of this machine is another origin, and to a browser the same site.
        {"Origin": "http://127.0.0.1:3000"},
        {"Origin": "http://localhost:8500"},
        {"Origin": "http://127.0.0.1:8500.evil.example"},
        {"Origin": "file://127.0.0.1:8500"},
        {"Origin": "http://127.0.0.1:8500@evil.example"},
        {"Origin": "chrome-extension://abc"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "none", "Origin": "http://evil.example"},
    ],
)
def test_no_page_of_another_origin_is_obeyed(http, method, path, headers):
    response = http.request(method, path, headers=headers)
    assert response.status_code == 403
    if method != "HEAD":
        refused(response, 403, "foreign_origin")


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_a_form_that_opens_a_page_writes_nothing(http, method):
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    refused(http.request(method, "/v1/cards/gpu0/lock", headers=headers), 403, "foreign_origin")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": HERE},
        {"Origin": HERE, "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},
        # A link in a chat; what it opens is a page of its own.
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},
        {"Host": "farm.shop", "Origin": "https://farm.shop"},
        {"Host": "farm.shop:443", "Origin": "https://farm.shop"},
        {"Host": "farm.shop", "Origin": "http://farm.shop:80"},
    ],
)
def test_programs_links_and_own_pages_are_answered(http, headers):
    assert http.get("/v1/batches", headers=headers).status_code == 200


def test_a_command_without_a_body_is_obeyed_from_a_program_and_not_from_a_page(http, farm, card):
    refused(http.post(f"/v1/cards/{card}/lock", headers={"Origin": "http://evil.example"}), 403, "foreign_origin")
    assert farm.commands.orders() == {}
    assert http.post(f"/v1/cards/{card}/lock").json()["card"] == card
    assert set(farm.commands.orders()) == {card}


def test_a_still_of_a_page_is_not_read(http, farm):
    response = http.put("/v1/stills", content=still_png(), headers={"Origin": "http://evil.example"})
    refused(response, 403, "foreign_origin")
    assert not list(Path(farm.storage.url).rglob("*"))


@pytest.mark.parametrize("path", ["/docs", "/healthz", "/nowhere", "/v1/batches"])
def test_answers_cannot_be_framed_or_guessed_at(http, path):
    headers = http.get(path).headers
    assert headers["x-frame-options"] == "DENY"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"


def test_the_page_of_the_api_needs_nobody_else_and_lists_every_route(http):
    assert 'href="/docs"' in http.get("/").text
    page = http.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    # Nothing is loaded, whoever serves it: no script, no style sheet, no picture.
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert not re.search(r"""<(script|link|img|iframe|style)|(src|href|action)\s*=\s*["']?https?:|url\(""", page.text)
    for path in http.get("/openapi.json").json()["paths"]:
        assert f"<td>{path}</td>" in page.text


def test_there_are_no_websockets(http):
    with pytest.raises(WebSocketDisconnect), http.websocket_connect("/v1/batches"):
        pass


def test_every_name_is_answered_only_where_that_is_asked_for(farm):
    api = protect(create_api(farm, default_model="camera", nudge=nobody), allowed_hosts=["*"])
    assert TestClient(api, base_url="http://anything.example").get("/healthz").status_code == 200
    assert FarmArgs(card_classes={"c8": {}}).allowed_hosts == ()


# -- cards ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["lock", "drain", "quarantine", "release"])
def test_a_card_is_commanded_by_its_whole_id_over_http(http, farm, card, verb):
    response = http.post(f"/v1/cards/{card[:-1]}/{verb}")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "not_found"
    assert farm.commands.orders() == {}
