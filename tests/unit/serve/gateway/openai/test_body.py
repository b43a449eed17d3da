"""Bodies of requests for videos: JSON and forms as clients write them, and the picture in them."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from fastapi import FastAPI, Request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from pipeline.problems import BadInputError
from serve.gateway.door import CheckedRoute, DoorError
from serve.gateway.openai.body import Reference, read_body, reference_of

PICTURE = b"\x89PNG\r\n\x1a\n\0\xff"
CODED = base64.b64encode(PICTURE).decode()


@pytest.fixture(scope="module")
def http():
    """Answers a body with what was read of it, bytes as a list of numbers."""
    api = FastAPI()
    api.router.route_class = CheckedRoute

    @api.exception_handler(BadInputError)
    async def refused(_request: Request, error: BadInputError) -> Any:
        from fastapi.responses import JSONResponse

        return JSONResponse({"param": error.problem.field, "message": str(error)}, status_code=400)

    @api.exception_handler(DoorError)
    async def at_the_door(_request: Request, error: DoorError) -> Any:
        return error.answer()

    @api.post("/")
    async def read(request: Request) -> dict[str, Any]:
        values = await read_body(request)
        return {name: list(one) if isinstance(one, bytes) else one for name, one in values.items()}

    with TestClient(api, raise_server_exceptions=False) as client:
        yield client


def test_json_and_forms_say_the_same(http) -> None:
    values = {"prompt": "x", "extra_params": {"tier": "draft"}, "input_reference": {"file_id": "file-1"}}
    assert http.post("/", json=values).json() == values
    packed = {"prompt": "x", "extra_params": '{"tier": "draft"}', "input_reference": '{"file_id": "file-1"}'}
    assert http.post("/", data=packed).json() == values
    assert http.post("/", data=packed, files={"none": (None, "")}).json() == values | {"none": ""}
    nested = {"prompt": "x", "extra_params[tier]": "draft", "input_reference[file_id]": "file-1"}
    assert http.post("/", data=nested).json() == values


def test_files_are_bytes_whatever_they_call_themselves(http) -> None:
    for name in ("a.png", "../../etc/passwd", "", "ä" * 300):
        if name:
            found = http.post("/", data={"prompt": "x"}, files={"input_reference": (name, PICTURE, "text/html")})
            assert found.json() == {"prompt": "x", "input_reference": list(PICTURE)}


@pytest.mark.parametrize(
    ("sent", "param"),
    [
        ({"json": [1]}, "body"),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, "body"),
        ({"content": b"", "headers": {"content-type": "application/json"}}, "body"),
        ({"content": b"--x", "headers": {"content-type": "multipart/form-data"}}, "body"),
        ({"content": b"--x\r\nabc", "headers": {"content-type": "multipart/form-data; boundary=x"}}, None),
        ({"files": {"other": ("a.png", PICTURE)}}, "other"),
        ({"files": [("input_reference", ("a", b"1")), ("input_reference", ("b", b"2"))]}, "input_reference"),
        ({"data": {"size": ["1", "2"]}}, "size"),
        ({"data": {"extra_params": "{broken"}}, "extra_params"),
        ({"data": {"metadata": "[" * 10}}, None),
        ({"data": {"extra_params": '{"a": "\\ud800"}'}}, "extra_params.a"),
        ({"data": {"extra_params": '{"a": 1e999}'}}, "extra_params.a"),
        ({"data": {"prompt": "a\0b"}}, "prompt"),
        ({"data": {f"f{n}": "1" for n in range(200)}}, "body"),
        ({"data": {"prompt": "x" * 2_000_000}, "files": {"input_reference": ("a", b"1")}}, "body"),
    ],
)
def test_bodies_that_cannot_be_read_are_told_what_is_wrong(http, sent, param) -> None:
    found = http.post("/", **sent)
    if param is None:
        assert found.status_code in (200, 400)
    else:
        assert (found.status_code, found.json()["param"]) == (400, param)


def test_another_media_type_is_named(http) -> None:
    found = http.post("/", content=b"x", headers={"content-type": "text/csv"})
    assert found.status_code == 415
    assert found.json()["error"]["code"] == "unsupported_media_type"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(
        ["multipart/form-data; boundary=x", "application/json", "application/x-www-form-urlencoded", "", "a/b", "\x85"]
    ),
    data=st.binary(max_size=200)
    | st.binary(max_size=60).map(
        lambda b: b'--x\r\nContent-Disposition: form-data; name="a"' + b + b"\r\n\r\n1\r\n--x--\r\n"
    ),
)
def test_no_body_is_an_error_of_the_server(http, kind: str, data: bytes) -> None:
    found = http.post("/", content=data, headers={"content-type": kind.encode("latin-1")})
    assert found.status_code < 500


def reference(value: Any, name: str = "input_reference") -> Reference:
    return reference_of({name: value, "prompt": "x"})


@pytest.mark.parametrize(
    "url",
    [
        f"data:image/png;base64,{CODED}",
        f"DATA:image/png;Base64,{CODED}",
        f"data:;base64,{CODED.rstrip('=')}",
        f"data:image/png;base64,{CODED[:4]}\n {CODED[4:]}",
        f"data:image/png;base64,{base64.urlsafe_b64encode(PICTURE).decode()}",
        "data:image/png," + "".join(f"%{byte:02x}" for byte in PICTURE),
    ],
)
def test_a_data_url_is_its_bytes(url) -> None:
    assert reference({"image_url": url}).data == PICTURE
    assert reference(url).data == PICTURE
    assert reference({"image_url": url}, "image_reference").data == PICTURE


def test_a_file_is_its_hash() -> None:
    assert reference({"file_id": "file-" + "ab" * 32}).sha256 == "ab" * 32


@pytest.mark.parametrize(
    ("values", "param"),
    [
        ({}, "input_reference"),
        ({"input_reference": ""}, "input_reference"),
        ({"input_reference": b"1", "image_reference": {"file_id": "x"}}, "image_reference"),
        ({"input_reference": 5}, "input_reference"),
        ({"input_reference": {}}, "input_reference"),
        ({"input_reference": {"file_id": "x", "image_url": "y"}}, "input_reference"),
        ({"input_reference": {"path": "/etc/passwd"}}, "input_reference"),
        ({"input_reference": {"file_id": "../../x"}}, "input_reference.file_id"),
        ({"input_reference": {"file_id": None}}, "input_reference.file_id"),
        ({"image_reference": {"image_url": "file:///etc/passwd"}}, "image_reference.image_url"),
        ({"image_reference": {"image_url": "gopher://169.254.169.254/"}}, "image_reference.image_url"),
        ({"image_reference": {"image_url": "data:image/png;base64"}}, "image_reference.image_url"),
        ({"image_reference": {"image_url": "data:image/png;base64,%%%"}}, "image_reference.image_url"),
        ({"image_reference": {"image_url": json.loads('"\\ud800"')}}, "image_reference.image_url"),
    ],
)
def test_what_is_no_picture_is_refused(values, param) -> None:
    with pytest.raises(BadInputError) as caught:
        reference_of(dict(values))
    assert caught.value.problem.field == param
