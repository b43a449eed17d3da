"""What the gateway refuses at its door, and that nothing anybody sends makes it fail: on both stores."""

from __future__ import annotations

import json
import string
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from cluster.farm import Farm
from cluster.storage import Storage
from cluster.store import BatchStore
from pipeline.problems import BadInputError
from pipeline.units import MIB
from serve.gateway.api import create_api
from serve.gateway.door import MAX_BODY_BYTES, MAX_DEPTH, Door, DoorError, check_storable
from tests.building import still_png
from tests.unit.serve.gateway.test_api import body

SETTINGS = settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


async def nobody() -> None:
    """Nobody is nudged."""


@pytest.fixture
def http(database, tmp_path):
    farm = Farm(BatchStore(database), Storage(tmp_path / "storage"))
    with TestClient(create_api(farm, default_model="camera", nudge=nobody), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def still(http):
    return http.put("/v1/stills", content=still_png()).json()["sha256"]


# -- bodies ------------------------------------------------------------------------------------------------------------


class Receive:
    """A body of `size` bytes that says how much of it was asked for."""

    def __init__(self, size: int, chunk: int = 65536) -> None:
        self.left, self.chunk, self.given = size, chunk, 0

    async def __call__(self) -> dict[str, Any]:
        some = min(self.left, self.chunk)
        self.left, self.given = self.left - some, self.given + some
        return {"type": "http.request", "body": bytes(some), "more_body": self.left > 0}


async def ask(app, receive: Receive, path: str, headers: list[tuple[bytes, bytes]]) -> int:
    sent: list[dict[str, Any]] = []

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
        "headers": headers, "http_version": "1.1", "scheme": "http", "client": ("127.0.0.1", 1), "root_path": "",
    }  # fmt: skip
    await app(scope, receive, send)
    return sent[0]["status"]


@pytest.mark.parametrize("path", ["/v1/batches/b1/pause", "/nowhere", "/v1/cards/gpu0/lock"])
async def test_a_body_that_says_it_is_too_large_is_not_read(http, path):
    receive = Receive(600 * MIB)
    length = [(b"content-length", str(600 * MIB).encode()), (b"content-type", b"application/json")]
    assert await ask(http.app, receive, path, length) == 413
    assert receive.given == 0


async def test_a_body_that_does_not_say_how_large_it_is_is_read_up_to_the_limit(http):
    receive = Receive(600 * MIB)
    assert await ask(http.app, receive, "/v1/batches/b1/pause", [(b"content-type", b"application/json")]) == 413
    assert receive.given <= MAX_BODY_BYTES + 65536


async def test_all_bodies_together_have_a_limit_and_their_room_is_free_again():
    async def reads_all(scope, receive, send):
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})

    door = Door(reads_all, held_bytes=100_000)
    with pytest.raises(DoorError) as refused:
        await ask(door, Receive(200_000), "/v1/batches", [])
    assert refused.value.status_code == 503
    for _ in range(5):
        assert await ask(door, Receive(90_000), "/v1/batches", []) == 200


# -- text and numbers --------------------------------------------------------------------------------------------------

SURROGATE, NUL = '"a\\ud800b"', '"a\\u0000b"'


@pytest.mark.parametrize(
    "value", [SURROGATE, NUL, "NaN", "Infinity", "-Infinity", "1e999", str(2**63), "9" * 5000, "[" * 400 + "]" * 400]
)
def test_what_no_store_holds_is_refused_and_burns_no_key(http, still, value):
    good = body(still)
    text = json.dumps(good).replace('"a.png"', f'"a.png", "extra": {{"x": {value}}}')
    headers = {"Content-Type": "application/json", "Idempotency-Key": "once"}
    answer = http.post("/v1/batches", content=text, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "validation_error"), answer.text
    assert answer.json()["error"]["clipmill"]["remedy"]
    assert http.get("/v1/batches").json()["data"] == []
    # The key was not used up.
    assert http.post("/v1/batches", json=good, headers={"Idempotency-Key": "once"}).status_code == 202
    assert len(http.get("/v1/batches").json()["data"]) == 1


def test_text_in_a_problem_is_looked_at_too(http):
    text = json.dumps(body(None)).replace(
        '"still": null', '"problems": [{"field": "x", "message": "\\ud800", "remedy": ""}], "still": null'
    )
    answer = http.post("/v1/batches", content=text, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422


def test_whole_characters_of_two_halves_pass(http, still):
    text = json.dumps(body(still, name="\N{GRINNING FACE}"))
    assert "\\ud83d" in text
    assert http.post("/v1/batches", content=text, headers={"Content-Type": "application/json"}).status_code == 202
    assert http.get("/v1/batches").json()["data"][0]["name"] == "\N{GRINNING FACE}"


@pytest.mark.parametrize(
    "path", ["/v1/batches/a%00b", "/v1/jobs/%00", "/v1/ids?begins=a%00", "/v1/batches/x/jobs?name=%00"]
)
def test_a_nul_in_a_path_is_refused(http, path):
    assert http.get(path).status_code == 400


def test_numbers_larger_than_any_row_find_nothing(http, still):
    batch = http.post("/v1/batches", json=body(still, max_failures=2**62)).json()
    for after in (2**31, 2**63 - 1, 2**63, 2**200):
        answer = http.get(f"/v1/batches/{batch['id']}/jobs", params={"after": after})
        assert (answer.status_code, answer.json()["data"]) == (200, [])


@pytest.mark.parametrize("size", [[0, 0], [0, 100], [-5, 20], [10**9, 10**9]])
def test_a_still_of_no_size_is_forecast_by_nobody(http, size):
    row = {"row": {"number": 1, "id": "a", "image": "a.png", "prompt": "x"}, "still_size": size}
    fleet = {"cards": [{"kind": "L4"}]}
    assert http.post("/v1/forecast", json={"rows": [row], "fleet": fleet}).status_code == 422


# -- nothing makes it fail ---------------------------------------------------------------------------------------------

HARD = ["\0", "a\0b", "\ud800", "\udfffx", "\u202ex", "\x1b[2J", "\ufffe", "x" * 300]
texts = (
    st.text(max_size=20) | st.sampled_from(HARD) | st.text(string.printable + "\0\ud800\udfff\u202e\x1b", max_size=20)
)
scalars = (
    st.none() | st.booleans() | texts | st.integers(-(2**70), 2**70) | st.floats()
    | st.sampled_from([2**31, 2**63, -1, 0, 1e308, 10**400])
)  # fmt: skip
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=8
)


def dumped(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


@given(values)
def test_whatever_passes_the_check_is_stored_and_read(value):
    try:
        check_storable(value)
    except BadInputError:
        return
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    assert "\0" not in text.encode("utf-8").decode("utf-8")
    assert "\\u0000" not in text
    assert json.loads(text) == value


def test_depth_is_counted():
    deep: Any = 1
    for _ in range(MAX_DEPTH):
        deep = [deep]
    check_storable(deep)
    with pytest.raises(BadInputError):
        check_storable([deep])


FIELDS = [
    "number",
    "line",
    "id",
    "image",
    "prompt",
    "negative_prompt",
    "model",
    "resolution_class",
    "aspect",
    "tier",
    "frames",
    "fps",
    "steps",
    "guidance",
    "seed",
    "candidates",
    "candidate",
    "priority",
    "after",
    "not_before",
    "fit",
    "sampler",
    "window",
    "window_overlap",
    "step_cache",
    "motion_class",
    "from_draft",
    "strength",
    "upscale",
    "extra",
]
WHOLE = [
    "name",
    "source",
    "comment",
    "paused",
    "needs_approval",
    "proof",
    "max_failures",
    "max_gpu_hours",
    "max_cost",
    "defaults",
    "rows",
    "x",
]
MODELS = st.sampled_from(["camera", "i2vgen-xl", "svd-xt", "wan2.2-5b"])


@SETTINGS
@given(
    changes=st.dictionaries(st.sampled_from(FIELDS), values, max_size=3),
    whole=st.dictionaries(st.sampled_from(WHOLE), values, max_size=2),
    numbers=st.dictionaries(
        st.sampled_from(FIELDS), st.sampled_from([0, -1, 1, 2**31, 2**62, 2**63 - 1, 1e308]), max_size=2
    ),
    model=MODELS,
    name=texts,
    extra=st.dictionaries(texts, values, max_size=2),
)
def test_no_batch_makes_it_fail_and_every_one_can_be_read_again(
    http, still, changes, whole, numbers, model, name, extra
):
    sent = body(still)
    sent["rows"][0]["row"] |= {"model": model, "extra": extra} | changes | numbers
    sent["rows"][0]["name"] = name
    headers = {"Content-Type": "application/json"}
    answer = http.post("/v1/batches", content=dumped(sent | whole), headers=headers)
    assert answer.status_code in (202, 400, 422), answer.text
    forecast = {"rows": [{"row": sent["rows"][0]["row"]}], "fleet": {"cards": [{"kind": "L4"}]}}
    told = http.post("/v1/forecast", content=dumped(forecast), headers=headers)
    assert told.status_code in (200, 400, 422), told.text
    assert http.get("/v1/batches").status_code == 200
    if answer.status_code == 202:
        batch_id = answer.json()["id"]
        jobs = http.get(f"/v1/batches/{batch_id}/jobs")
        assert jobs.status_code == 200
        for job in jobs.json()["data"]:
            assert http.get(f"/v1/jobs/{job['id']}").status_code == 200
            assert http.get(f"/v1/jobs/{job['id']}/why").status_code == 200


PATHS = [
    "/v1/batches",
    "/v1/batches/{}",
    "/v1/batches/{}/jobs",
    "/v1/batches/{}/{}",
    "/v1/jobs/{}",
    "/v1/jobs/{}/why",
    "/v1/jobs/{}/{}",
    "/v1/cards",
    "/v1/cards/{}/{}",
    "/v1/ids",
    "/v1/stills",
    "/v1/forecast",
    "/v1/lint",
    "/healthz",
    "/docs",
    "/{}",
]
WORDS = texts | st.sampled_from(["pause", "cancel", "retry", "prioritize", "resume", "lock", "drain", "batch_x"])


@SETTINGS
@given(
    method=st.sampled_from(["GET", "PUT", "POST", "DELETE"]),
    path=st.sampled_from(PATHS),
    words=st.lists(WORDS, min_size=2, max_size=2),
    query=st.dictionaries(
        st.sampled_from(["after", "limit", "name", "state", "begins", "since"]),
        WORDS | st.integers(-(2**70), 2**70).map(str),
        max_size=3,
    ),
    content=values.map(dumped) | st.binary(max_size=40),
    kind=st.sampled_from(["application/json", "text/plain", "multipart/form-data", ""]),
    key=st.none() | st.text(string.printable[:95], max_size=10),
)
def test_no_request_makes_it_fail(http, method, path, words, query, content, kind, key):
    whole = path.format(*(quote(word.encode("utf-8", "surrogatepass"), safe="") for word in words))
    asked = urlencode({name: value.encode("utf-8", "surrogatepass") for name, value in query.items()})
    headers = {"Content-Type": kind} | (
        {"Idempotency-Key": key.encode()} if key and "\n" not in key and "\r" not in key else {}
    )
    answer = http.request(method, f"{whole}?{asked}", content=content, headers=headers, follow_redirects=False)
    assert answer.status_code < 500, (answer.status_code, answer.text)
    assert "Traceback" not in answer.text
