"""A page that somebody visits, and a farm on the same machine: a browser reads nothing from it and changes nothing.

The guard judges what browsers send; here a browser sends it. The gateway is the real application behind a real server.
Two pages try: one of another origin, and one of a name that was made to point to the gateway (DNS rebinding), which to
the browser is of one origin with it.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.responses import HTMLResponse
from starlette.types import Receive, Scope, Send

from cluster.dispatch.retry import after_attempt
from cluster.farm import Farm
from cluster.jobs.commands import CardVerb
from cluster.jobs.outcomes import Completed
from cluster.storage import Storage
from cluster.store import BatchStore, Database, DispatchStore
from serve.gateway.api import create_api, protect
from tests.building import FLEET, beat, claim_one, draft, objects, still_png
from tests.integration.test_contact_sheet_browser import ARGUMENTS
from tests.served import served

pytestmark = pytest.mark.browser

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("chromium is not installed", allow_module_level=True)

OWNER, CARD = "local", "gpu0"
#: Names that the browser is told to find on this machine.
FOREIGN, REBOUND = "shop.example", "rebound.example"
RESOLVER = f"--host-resolver-rules=MAP {FOREIGN} 127.0.0.1, MAP {REBOUND} 127.0.0.1"

PAGE = "<!doctype html><title>A shop</title><body>"
#: Where the page of a name lies that still meant somebody's server when it was opened.
BEFORE = "/before-it-was-rebound"

#: Tries everything that a page can; tells what it read, and what was loaded.
ATTACK = """
async ({gateway, batch, job, still}) => {
    const read = {}, loaded = [];
    const row = {number: 1, id: "x", image: "x.png", prompt: "pan"};
    const body = JSON.stringify({name: "from a page", rows: [{position: 1, name: "x", number: 1, row, still}]});
    const calls = [
        ["GET", "/v1/batches"], ["GET", `/v1/batches/${batch}`], ["GET", `/v1/batches/${batch}/jobs`],
        ["GET", "/v1/files"], ["GET", "/v1/videos"], ["GET", `/v1/videos/${job}/content`], ["GET", "/healthz"],
        ["GET", "/openapi.json"], ["POST", "/v1/batches", body], ["POST", `/v1/batches/${batch}/cancel`],
        ["POST", `/v1/batches/${batch}/pause`, "{}"], ["POST", "/v1/cards/gpu0/lock"],
        ["POST", "/v1/videos", JSON.stringify({prompt: "pan", input_reference: "x"})],
        ["PUT", "/v1/stills", "bytes"], ["DELETE", `/v1/batches/${batch}`], ["DELETE", `/v1/videos/${job}`],
    ];
    await new Promise((done) => {
        const events = new EventSource(`${gateway}/v1/batches/${batch}/events`);
        const told = (event) => { read[`event ${event.type}`] = event.data; events.close(); done(); };
        for (const name of ["message", "batch", "job", "state"]) events.addEventListener(name, told);
        events.onopen = () => { read.events = "open"; events.close(); done(); };
        events.onerror = () => { events.close(); done(); };
    });
    for (const [method, path, data] of calls) {
        for (const mode of ["cors", "no-cors", "same-origin"]) {
            for (const type of ["text/plain", "application/json"]) {
                try {
                    const headers = data ? {"Content-Type": type} : {};
                    const answer = await fetch(gateway + path, {method, mode, body: data, headers});
                    const text = await answer.text();
                    if (answer.ok || text) read[`${method} ${path} ${mode}`] = `${answer.status} ${text.slice(0, 300)}`;
                } catch (error) { /* the browser kept it from the page */ }
            }
        }
    }
    for (const kind of ["img", "video", "audio", "script", "iframe"]) {
        const content = `/v1/videos/${job}/content`;
        for (const path of [content, `${content}?variant=thumbnail`, "/v1/batches"]) {
            await new Promise((done) => {
                const element = document.createElement(kind);
                element.onload = element.onloadeddata = element.onloadedmetadata = () => {
                    // A frame loads an error's page as well, and says nothing of it.
                    if (kind !== "iframe") loaded.push(`${kind} ${path}`);
                    done();
                };
                element.onerror = () => done();
                element.src = gateway + path;
                document.body.append(element);
            });
        }
    }
    return {read, loaded};
}
"""
#: Forms that open their answer in a frame: they need no script, and no browser asks before it sends them.
FORMS = """
async ({gateway, batch}) => {
    const frame = document.createElement("iframe");
    frame.name = "answer";
    document.body.append(frame);
    const paths = [`/v1/batches/${batch}/cancel`, `/v1/batches/${batch}/pause`, "/v1/cards/gpu0/lock", "/v1/batches"];
    for (const path of paths) {
        for (const kind of ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data"]) {
            const form = document.createElement("form");
            form.action = gateway + path;
            form.method = "post";
            form.enctype = kind;
            form.target = "answer";
            const field = document.createElement("input");
            field.name = '{"reason": "';
            field.value = '"}';
            form.append(field);
            document.body.append(form);
            await new Promise((done) => {
                frame.onload = () => done();
                form.submit();
            });
        }
    }
}
"""


@dataclass(frozen=True)
class Running:
    """A gateway, its farm, and what a page would like to have."""

    farm: Farm
    batch: str
    job: str
    still: str
    port: int
    #: Method and path of every request that came to it.
    asked: list[tuple[str, str]]

    def state(self) -> str:
        """All that a request could have changed."""
        store = self.farm.batch_store
        batches = [(one.id, one.status, one.comment, str(one.held)) for one in store.batches(OWNER, 100)]
        jobs = [(job.id, str(job.state), job.priority) for job in store.jobs(OWNER, self.batch)]
        orders = {name: str(order) for name, order in self.farm.commands.orders().items()}
        objects_there = [entry.key for entry in self.farm.storage.entries("stills")]
        return json.dumps([batches, jobs, orders, objects_there])


async def nobody() -> None:
    """Nobody is nudged."""


@contextmanager
def running(folder: Any, *, guarded: bool = True) -> Iterator[Running]:
    """A gateway with a batch of a finished and a waiting clip, and a card; not `guarded`: without its guard."""
    database = Database.in_folder(folder / "home")
    farm = Farm(BatchStore(database), Storage(folder / "storage"))
    cards = DispatchStore(database)
    cards.take_office("test")
    cards.record_cards([beat(CARD)])
    still = farm.put_still(still_png())
    batch, _ = farm.batch_store.open_batch(OWNER, name="autumn")
    farm.batch_store.add(OWNER, batch, [draft(number, f"{number}" * 64, still=still) for number in (1, 2)])
    farm.batch_store.seal(OWNER, batch)
    job, *_ = farm.batch_store.jobs(OWNER, batch)
    claim = claim_one(cards, job)
    ended = Completed(objects=objects(f"{job.id}/{claim.attempt_id}"))
    farm.storage.put_bytes(ended.objects.video, b"a film")
    # A picture that an <img> would show.
    farm.storage.put_bytes(ended.objects.poster, still_png())
    cards.finish(claim, ended, after_attempt(cards.current_job(claim), ended, FLEET))
    api = create_api(farm, default_model="camera", nudge=nobody)
    asked: list[tuple[str, str]] = []
    lock = threading.Lock()
    inner = protect(api) if guarded else api

    async def counted(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == BEFORE:
            await HTMLResponse(PAGE)(scope, receive, send)
            return
        if scope["type"] == "http":
            with lock:
                asked.append((scope["method"], scope["path"]))
        await inner(scope, receive, send)

    with served(counted) as port:
        yield Running(farm=farm, batch=batch, job=job.id, still=still, port=port, asked=asked)
    database.close()


@pytest.fixture(scope="module")
def shop() -> Iterator[int]:
    """The server of somebody's page; yields its port."""
    pages = FastAPI()

    @pages.get("/")
    def page() -> HTMLResponse:
        return HTMLResponse(PAGE)

    with served(pages) as port:
        yield port


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*ARGUMENTS, RESOLVER])
        yield browser
        browser.close()


def attack(browser: Any, page_url: str, gateway: str, target: Running) -> dict[str, Any]:
    """What a page at `page_url` got from the gateway, which it calls `gateway`."""
    context = browser.new_context()
    try:
        page = context.new_page()
        page.goto(page_url)
        wanted = {"gateway": gateway, "batch": target.batch, "job": target.job, "still": target.still}
        found: dict[str, Any] = page.evaluate(ATTACK, wanted)
        page.evaluate(FORMS, wanted)
        return found
    finally:
        context.close()


def test_a_page_of_another_origin_reads_and_changes_nothing(browser: Any, shop: int, tmp_path: Any) -> None:
    with running(tmp_path) as target:
        before = target.state()
        for gateway in (f"http://127.0.0.1:{target.port}", f"http://localhost:{target.port}"):
            found = attack(browser, f"http://{FOREIGN}:{shop}/", gateway, target)
            assert found == {"read": {}, "loaded": []}
        # A page of this very machine, at another port: to the browser of the same site.
        found = attack(browser, f"http://127.0.0.1:{shop}/", f"http://127.0.0.1:{target.port}", target)
        assert found == {"read": {}, "loaded": []}
        assert target.state() == before
        # They did arrive: it was not the browser alone that kept them.
        assert {("GET", "/v1/batches"), ("POST", "/v1/batches"), ("POST", f"/v1/cards/{CARD}/lock")} <= set(
            target.asked
        )
        assert ("GET", f"/v1/batches/{target.batch}/events") in target.asked


def test_a_name_that_was_rebound_reads_and_changes_nothing(browser: Any, tmp_path: Any) -> None:
    with running(tmp_path) as target:
        before = target.state()
        own = f"http://{REBOUND}:{target.port}"
        found = attack(browser, f"{own}{BEFORE}", own, target)
        # Of one origin with its own page, it reads the refusals, and nothing but these.
        assert found["loaded"] == []
        assert "GET /v1/batches cors" in found["read"]
        assert all(answer.startswith("421 ") and "unknown_host" in answer for answer in found["read"].values())
        assert target.state() == before


def test_without_the_guard_the_same_pages_read_and_change(browser: Any, shop: int, tmp_path: Any) -> None:
    """What the tests above would look like if they could not fail."""
    with running(tmp_path, guarded=False) as target:
        before = target.state()
        attack(browser, f"http://{FOREIGN}:{shop}/", f"http://127.0.0.1:{target.port}", target)
        assert target.state() != before
        assert set(target.farm.commands.orders()) == {CARD}
        target.farm.command_card(CARD, CardVerb.RELEASE)
        own = f"http://{REBOUND}:{target.port}"
        found = attack(browser, f"{own}{BEFORE}", own, target)
        assert target.batch in found["read"]["GET /v1/batches cors"]
        assert found["read"]["events"] == "open"
