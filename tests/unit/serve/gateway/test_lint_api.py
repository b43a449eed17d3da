"""`POST /v1/lint` judges prompts and rows, and batches tell what is found of their prompts."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from cluster.farm import Farm
from cluster.storage import Storage
from cluster.store import BatchStore
from serve.gateway.api import create_api
from tests.building import still_png


async def nobody() -> None:
    """Nobody is nudged."""


@pytest.fixture
def http(sqlite_database: Any, tmp_path: Any) -> Any:
    farm = Farm(BatchStore(sqlite_database), Storage(tmp_path / "storage"))
    with TestClient(create_api(farm, default_model="i2vgen-xl", nudge=nobody)) as client:
        yield client


def row(number: int, **fields: Any) -> dict[str, Any]:
    return {"row": {"number": number, "id": f"SKU-{number}", "image": "a.png", **fields}}


def test_prompts_are_judged_for_the_farms_model_or_another(http: Any) -> None:
    told = http.post("/v1/lint", json={"prompts": ["pan left, soft light", "no people, waves crashing"]}).json()
    assert (told["default_model"], told["prompts_judged"], told["rows_warned"]) == ("i2vgen-xl", True, 1)
    first, second = told["rows"]
    assert (first["findings"], first["fixed"], first["id"]) == ([], {}, "prompt-1")
    assert second["fixed"] == {"prompt": "waves crashing", "negative_prompt": "people"}
    wan = {"prompts": ["镜头缓慢向左平移"], "defaults": {"model": "wan2.2-5b"}}
    assert http.post("/v1/lint", json=wan).json()["rows_warned"] == 0
    assert http.post("/v1/lint", json={"prompts": ["镜头缓慢向左平移"]}).json()["rows_warned"] == 1
    tiny = {"prompts": ["beautiful"], "defaults": {"model": "i2vgen-xl-tiny"}}
    assert http.post("/v1/lint", json=tiny).json()["prompts_judged"] is False


def test_rows_are_judged_with_their_parameters_and_their_still(http: Any) -> None:
    sent = [row(1, prompt="tilt up", steps=20, guidance=12) | {"still_size": [100, 100]}, row(2, prompt="pan", fps=999)]
    first, second = http.post("/v1/lint", json={"rows": sent}).json()["rows"]
    codes = [finding["code"] for finding in first["findings"]]
    assert codes == ["enlarged", "few_steps_high_guidance"]
    assert first["fixed"] == {"guidance": 9.0}
    assert [problem["field"] for problem in second["problems"]] == ["fps"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 422),
        ({"prompts": ["a"], "rows": [row(1)]}, 422),
        ({"prompts": ["a"] * 1001}, 422),
        ({"prompts": ["a" * 2001]}, 422),
        ({"prompts": ["a" * 2000] * 101}, 422),
        ({"rows": [row(1) | {"still_size": [0, 5]}]}, 422),
        ({"prompts": ["a"], "defaults": {"model": "none"}}, 400),
    ],
)
def test_what_is_too_much_or_no_request_is_refused_in_openais_form(http: Any, body: Any, status: int) -> None:
    answer = http.post("/v1/lint", json=body)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]


def test_a_batch_tells_what_is_found_of_its_prompts_and_takes_it_all_the_same(http: Any) -> None:
    still = http.put("/v1/stills", content=still_png()).json()["sha256"]
    rows = [
        {"position": n, "name": f"SKU-{n}", "number": n, "still": still} | row(n, prompt=prompt)
        for n, prompt in enumerate(["pan left", "make it alive", "beautiful scene"], start=1)
    ]
    answer = http.post("/v1/batches", json={"name": "c", "rows": rows})
    assert answer.status_code == 202
    (note,) = answer.json()["notes"]
    assert note.startswith("2 rows (SKU-2, SKU-3): the prompt asks for motion")
    jobs = http.get(f"/v1/batches/{answer.json()['id']}/jobs").json()["data"]
    codes = [[note["code"] for note in job["noted"] if note["code"] != "enlarged"] for job in jobs]
    assert codes == [[], ["prompt_vague"], ["prompt_vague"]]
    assert jobs[1]["noted"][0]["fix"] == {"prompt": "Camera slowly zooming in, soft light"}
    assert {job["state"] for job in jobs} == {"queued"}
    strict = http.post("/v1/batches", json={"name": "c", "rows": rows, "defaults": {"strict": True}}).json()
    assert strict["counts"]["failed"] == 0
