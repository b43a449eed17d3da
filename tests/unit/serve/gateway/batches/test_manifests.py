"""Manifests over HTTP: read as `clipmill submit` reads them, and never from the gateway's own disk."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from cluster.catalog.ingest import gather
from cluster.catalog.manifest import read_manifest
from cluster.farm import Farm
from cluster.maintenance.keep import Keep
from cluster.maintenance.retention import Sweeper
from cluster.remote.manifests import RemoteManifests
from cluster.remote.policy import FetchPolicy
from cluster.remote.stills import RemoteStills
from cluster.storage import Storage
from cluster.store import BatchStore
from serve.client import LocalClient
from serve.gateway.api import create_api, protect
from tests.building import still_png
from tests.served import served
from tests.unit.cluster.remote.hosts import PICTURE, Asked, host

ROWS = [
    {"id": "BAG-1", "image": "bag-1.png", "prompt": "pan left", "fps": "12", "price": "19.90"},
    {"id": "BAG-2", "image": "bag-2.png", "prompt": "zoom in", "fps": "twelve", "price": "1"},
    {"id": "", "image": "bag-1.png", "prompt": "zoom out", "fps": "", "price": ""},
    {"id": "../etc", "image": "bag-1.png", "prompt": "zoom out", "fps": "", "price": ""},
    {"id": "BAG-1", "image": "missing.png", "prompt": "tilt", "fps": "", "price": ""},
]
KINDS = {
    "csv": "text/csv; charset=utf-8",
    "tsv": "text/tab-separated-values",
    "jsonl": "application/jsonl",
    "parquet": "application/vnd.apache.parquet",
}


async def nobody() -> None:
    """Nobody is nudged."""


@pytest.fixture
def farm(sqlite_database: Any, tmp_path: Path) -> Farm:
    return Farm(BatchStore(sqlite_database), Storage(tmp_path / "storage"))


@pytest.fixture
def http(farm: Farm) -> Iterator[TestClient]:
    api = protect(create_api(farm, default_model="camera", nudge=nobody))
    with TestClient(api, base_url="http://localhost", raise_server_exceptions=False) as client:
        yield client


def written(kind: str, rows: list[dict[str, str]] = ROWS) -> bytes:
    """The rows as a manifest of a kind."""
    if kind == "jsonl":
        return "".join(json.dumps({k: v for k, v in row.items() if v}) + "\n" for row in rows).encode()
    if kind == "parquet":
        file = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), file)
        return file.getvalue()
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter="\t" if kind == "tsv" else ",")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def pictures() -> dict[str, bytes]:
    return {"bag-1.png": still_png(), "bag-2.png": PICTURE}


def jobs_of(farm: Farm, batch_id: str) -> list[tuple[Any, ...]]:
    """What is the same however a row came in."""
    return [
        (job.number, job.name, job.state, job.still, job.spec, job.problems, job.notes, job.row)
        for job in farm.jobs(batch_id)
    ]


def refusal(answer: httpx.Response, status: int, param: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert (error["param"], bool(error["remedy"])) == (param, True)
    return error


@pytest.mark.parametrize("kind", KINDS)
def test_a_form_is_read_as_submit_reads_the_file_beside_its_pictures(http, farm, tmp_path, kind) -> None:
    for name, data in pictures().items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / f"catalog.{kind}").write_bytes(written(kind))
    manifest = read_manifest(tmp_path / f"catalog.{kind}", model="camera")
    beside = LocalClient(farm, "camera").submit(
        gather(manifest, farm.put_still), {"tier": "draft"}, name="catalog", source="", key=None
    )
    files = [("manifest", (f"catalog.{kind}", written(kind)))]
    files += [("images", (name, data)) for name, data in pictures().items()]
    answer = http.post("/v1/batches", data={"tier": "draft"}, files=files)
    assert answer.status_code == 202, answer.text
    ours, theirs = jobs_of(farm, answer.json()["id"]), jobs_of(farm, beside["id"])
    # Where the picture is missing, each says where it looked.
    assert ours[:4] == theirs[:4]
    assert [row[:3] for row in ours] == [row[:3] for row in theirs]
    assert answer.json()["name"] == f"catalog.{kind}"
    assert {one["name"] for one in answer.json()["refused"]} >= {"BAG-2", "../etc"}
    assert "price" in answer.json()["notes"][0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_raw_body_names_stills_that_were_handed_in_and_says_the_rest_in_the_query(http, farm, kind) -> None:
    sha = http.put("/v1/stills", content=still_png()).json()["sha256"]
    rows = [{"id": f"A{n}", "image": f"{prefix}{sha}"} for n, prefix in enumerate(("", "file-", "sha256:"))]
    asked = {"prompt": "pan left", "resolution_class": "256p", "paused": "true", "max_failures": "2", "name": "bags"}
    answer = http.post("/v1/batches", params=asked, content=written(kind, rows), headers={"Content-Type": KINDS[kind]})
    assert answer.status_code == 202, answer.text
    batch = answer.json()
    assert (batch["name"], batch["status"], batch["limits"]["failures"]) == ("bags", "paused", 2)
    jobs = farm.jobs(batch["id"])
    assert [(job.name, job.still, job.spec.prompt) for job in jobs] == [(f"A{n}", sha, "pan left") for n in range(3)]
    assert {job.spec.resolution_class.value for job in jobs} == {"256p"}


@pytest.mark.parametrize(
    "image", ["/etc/passwd", "../storage/stills", "storage", "file:///etc/passwd", "~/.ssh/id_rsa", "manifest.csv"]
)
def test_nothing_of_the_gateway_s_disk_is_read(http, farm, image, tmp_path, monkeypatch) -> None:
    (tmp_path / "storage").mkdir(exist_ok=True)
    (tmp_path / "manifest.csv").write_bytes(PICTURE)
    monkeypatch.chdir(tmp_path)
    body = written("csv", [{"id": "A", "image": image, "prompt": "pan"}])
    answer = http.post("/v1/batches", content=body, headers={"Content-Type": "text/csv"})
    assert answer.status_code == 202
    (problem,) = answer.json()["refused"][0]["problems"]
    assert problem["field"] == "image"
    assert "did not come with the manifest" in problem["message"], "it was looked for elsewhere"
    assert farm.batch_store.stills(farm.owner) == []


def test_a_picture_s_file_that_is_no_picture_is_that_row_s_problem(http) -> None:
    rows = [{"id": "A", "image": "a.png", "prompt": "pan"}, {"id": "B", "image": "b.png", "prompt": "pan"}]
    files = [
        ("manifest", ("c.csv", written("csv", rows))),
        ("images", ("a.png", b"no")),
        ("images", ("b.png", PICTURE)),
    ]
    answer = http.post("/v1/batches", files=files).json()
    assert [one["name"] for one in answer["refused"]] == ["A"]
    assert answer["counts"]["queued"] == 1


@pytest.mark.parametrize(
    ("kind", "status"),
    [("application/pdf", 415), ("text/plain", 415), ("application/x-www-form-urlencoded", 415), ("", 415)],
)
def test_another_media_type_is_a_415_that_lists_those_that_are_read(http, kind, status) -> None:
    error = refusal(http.post("/v1/batches", content=b"x", headers={"Content-Type": kind}), status, "content-type")
    assert "text/csv" in error["message"]
    assert http.get("/v1/batches").json()["data"] == []


@pytest.mark.parametrize(("kind", "length", "status"), [("application/pdf", 1000, 415), ("text/csv", 2**40, 413)])
def test_what_is_refused_is_refused_before_the_body_comes(farm, kind, length, status) -> None:
    with (
        served(protect(create_api(farm, default_model="camera", nudge=nobody))) as port,
        socket.create_connection(("127.0.0.1", port), timeout=30) as connection,
    ):
        head = (
            f"POST /v1/batches HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
        )
        connection.sendall(head.encode())
        assert connection.recv(100).split(b"\r\n")[0].split()[1] == str(status).encode()


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"surprise": "1"}, "query.surprise"),
        ({"tier": "best"}, "query.defaults.tier"),
        ({"max_failures": str(2**70)}, None),
        ({"step_cache": str(2**70)}, None),
        ({"max_cost": "nan"}, "query.max_cost"),
        ({"seed": str(2**70)}, "query.defaults.seed"),
    ],
)
def test_options_are_checked_and_named(http, query, param) -> None:
    body = written("csv", [{"id": "A", "image": "a.png", "prompt": "pan"}])
    answer = http.post("/v1/batches", params=query, content=body, headers={"Content-Type": "text/csv"})
    if param is None:
        assert answer.status_code in (202, 422), answer.text
    else:
        assert param.rpartition(".")[2] in refusal(answer, 422, param)["message"]


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "csv"),
        (b"id,prompt\nA,pan\n", "csv"),
        (b"x", "jsonl"),
        (b"PAR1nothing", "parquet"),
        (b"\xff\xfe\x00", "csv"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_a_400_without_a_path(http, data, kind) -> None:
    answer = http.post("/v1/batches", content=data, headers={"Content-Type": KINDS[kind]})
    error = refusal(answer, 400, "manifest")
    assert "/" not in error["clipmill"]["message"]
    assert http.get("/v1/batches").json()["data"] == []


def test_the_same_key_and_manifest_are_the_same_batch_and_another_manifest_a_422(http, farm) -> None:
    def send(data: bytes, picture: bytes) -> httpx.Response:
        files = [("manifest", ("c.csv", data)), ("images", ("a.png", picture))]
        return http.post("/v1/batches", files=files, headers={"Idempotency-Key": "k"})

    first = written("csv", [{"id": "A", "image": "a.png", "prompt": "pan"}])
    assert send(first, PICTURE).json()["id"] == send(first, PICTURE).json()["id"]
    assert len(farm.batch_store.batches(farm.owner, 9)) == 1
    refusal(send(first, still_png()), 422, "Idempotency-Key")
    refusal(send(first + b"B,a.png,tilt\n", PICTURE), 422, "Idempotency-Key")


# -- files --------------------------------------------------------------------------------------------------------


def test_a_manifest_is_a_file_of_purpose_batch_and_a_batch_is_made_of_it_by_openai_s_client(farm) -> None:
    still = f"file-{farm.put_still(still_png())}"
    body = {"prompt": "pan", "input_reference": {"file_id": still}, "size": "256x256", "fps": 8}
    lines = [
        {"custom_id": "a", "method": "POST", "url": "/v1/videos", "body": body},
        {"custom_id": "b", "method": "POST", "url": "/v1/videos", "body": body | {"fps": 7, "strict": True}},
        {"custom_id": "c", "method": "GET", "url": "/v1/videos", "body": body},
        {"custom_id": "d", "method": "POST", "url": "/v1/videos", "body": body | {"surprise": 1}},
        {"custom_id": "a", "method": "POST", "url": "/v1/videos", "body": body | {"seed": 2}},
        {"custom_id": "e", "method": "POST", "url": "/v1/videos", "body": body | {"seed": 2**70}},
        {"custom_id": "f", "method": "POST", "url": "/v1/embeddings", "body": body},
        {"custom_id": "g", "method": "POST", "url": "/v1/videos", "body": {"prompt": "pan"}},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines).encode()
    with served(protect(create_api(farm, default_model="camera", nudge=nobody))) as port:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        file = client.files.create(file=("requests.jsonl", text), purpose="batch")
        assert (file.purpose, file.filename, file.bytes) == ("batch", "requests.jsonl", len(text))
        assert client.files.content(file.id).read() == text
        assert [one.id for one in client.files.list()] == [still, file.id]
        assert [one.id for one in client.files.list(purpose="batch")] == [file.id]
        batch = client.batches.create(
            input_file_id=file.id, endpoint="/v1/videos", completion_window="24h", metadata={"shop": "bags"}
        )
        assert client.files.delete(file.id).deleted
        with pytest.raises(openai.NotFoundError):
            client.batches.create(input_file_id=file.id, endpoint="/v1/videos", completion_window="24h")
    assert json.loads(farm.batch(batch.id).comment) == {"shop": "bags"}
    jobs = farm.jobs(batch.id)
    assert [(job.name, job.state.value) for job in jobs] == [
        ("a", "queued"), ("b", "queued"), ("c", "failed"), ("d", "failed"),
        ("a", "failed"), ("e", "failed"), ("f", "failed"), ("g", "failed"),
    ]  # fmt: skip
    assert jobs[0].spec.fps == 8
    named = ["method", "surprise", "id", "row.body.seed", "url", "input_reference"]
    assert [job.problems[0].field for job in jobs[2:]] == named


def test_a_picture_without_its_folder_is_taken_for_one_path_and_not_for_two(http, farm) -> None:
    rows = [("A", "red/bag.png"), ("B", "blue/bag.png"), ("C", "green/hat.png"), ("D", "green/hat.png")]
    rows += [("E", "https://shop.example/hat.png")]
    body = written("csv", [{"id": name, "image": image, "prompt": f"pan {name}"} for name, image in rows])
    files = [("manifest", ("c.csv", body)), ("images", ("bag.png", PICTURE)), ("images", ("hat.png", still_png()))]
    batch = http.post("/v1/batches", files=files).json()
    assert [job.state.value for job in farm.jobs(batch["id"])] == ["failed", "failed", "queued", "queued", "failed"]
    (problem,) = batch["refused"][0]["problems"]
    assert problem["field"] == "image"
    assert "red/bag.png" in problem["message"]
    whole = [*files[:1], ("images", ("red/bag.png", PICTURE)), ("images", ("bag.png", still_png())), files[2]]
    batch = http.post("/v1/batches", files=whole).json()
    assert [job.state.value for job in farm.jobs(batch["id"])] == ["queued", "failed", "queued", "queued", "failed"]


def test_two_files_that_are_one_name_to_a_manifest_are_refused(http) -> None:
    body = written("csv", [{"id": "A", "image": "bag.png", "prompt": "pan"}])
    files = [("manifest", ("c.csv", body)), ("images", ("bag.png", PICTURE)), ("images", ("./bag.png", still_png()))]
    refusal(http.post("/v1/batches", files=files), 400, "images")


@pytest.mark.parametrize("name", ["rows.dat", "catalog.2026", "shop.v1/rows", "rows", ""])
def test_a_file_whose_media_type_says_what_it_is_is_read_as_that_later(http, farm, name) -> None:
    data = b"image,prompt\n" + farm.put_still(still_png()).encode() + b",pan\n"
    file = http.post("/v1/files", data={"purpose": "batch"}, files={"file": (name or "x", data, "text/csv")})
    answer = http.post("/v1/batches", json={"input_file_id": file.json()["id"]})
    assert answer.status_code == 202, answer.text
    assert answer.json()["counts"]["queued"] == 1


def test_a_line_is_the_video_that_the_same_body_makes(http, farm) -> None:
    still = f"file-{farm.put_still(still_png())}"
    body = {"prompt": "pan left", "input_reference": {"file_id": still}, "size": "512x384", "num_frames": 16}
    alone = http.post("/v1/videos", json=body).json()["id"]
    line = json.dumps({"custom_id": "x", "method": "POST", "url": "/v1/videos", "body": body})
    answer = http.post("/v1/batches", content=line, headers={"Content-Type": "application/x-ndjson"}).json()
    (job,) = farm.jobs(answer["id"])
    assert job.spec == farm.batch_store.job(farm.owner, alone).spec
    assert job.notes == farm.batch_store.job(farm.owner, alone).notes


def test_a_strict_line_is_refused_where_its_model_would_adjust(http, farm) -> None:
    still = f"file-{farm.put_still(still_png())}"
    body = {"prompt": "pan", "model": "i2vgen-xl-tiny", "num_frames": 65, "input_reference": {"file_id": still}}
    lines = [{"custom_id": name, "body": body | {"strict": name == "s"}} for name in "sl"]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    batch = http.post("/v1/batches", content=text, headers={"Content-Type": "application/jsonl"}).json()["id"]
    assert [(job.name, job.state.value) for job in farm.jobs(batch)] == [("s", "failed"), ("l", "queued")]


def test_a_strict_line_whose_text_is_not_counted_here_is_strict_to_its_renderer(http, farm) -> None:
    # Longer than what is sure to fit, shorter than what is sure to be cut.
    body = {"prompt": "a bag " * 30, "model": "i2vgen-xl-tiny"}
    body |= {"input_reference": {"file_id": f"file-{farm.put_still(still_png())}"}}
    lines = [{"custom_id": name, "body": body | {"seed": n, "strict": name == "s"}} for n, name in enumerate("sl")]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    batch = http.post("/v1/batches", content=text, headers={"Content-Type": "application/jsonl"}).json()["id"]
    assert [(job.state.value, job.row.get("strict")) for job in farm.jobs(batch)] == [
        ("queued", True),
        ("queued", None),
    ]


@pytest.mark.parametrize(("said", "query", "waits"), [
    ({}, {}, False), ({"interactive": True}, {}, True), ({}, {"interactive": "true"}, True),
    ({"interactive": False}, {"interactive": "true"}, False),
])  # fmt: skip
def test_nobody_waits_for_the_lines_of_a_batch_unless_it_is_said(http, farm, said, query, waits) -> None:
    body = {"prompt": "pan", "input_reference": {"file_id": f"file-{farm.put_still(still_png())}"}, **said}
    text = json.dumps({"custom_id": "x", "body": body})
    answer = http.post("/v1/batches", params=query, content=text, headers={"Content-Type": "application/jsonl"})
    (job,) = farm.jobs(answer.json()["id"])
    assert job.interactive is waits


def test_files_of_another_owner_are_not_there_and_old_ones_are_swept(http, farm) -> None:
    file = http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("c.csv", b"image\nx\n")}).json()
    other = Farm(farm.batch_store, farm.storage, owner="somebody-else")
    with TestClient(create_api(other, default_model="camera", nudge=nobody)) as theirs:
        assert theirs.get(f"/v1/files/{file['id']}").status_code == 404
        assert theirs.get("/v1/files").json()["data"] == []
        assert theirs.post("/v1/batches", json={"input_file_id": file["id"]}).status_code == 404
    database = farm.batch_store.database
    Sweeper(database, farm.storage, Keep(outputs_days=1)).run()
    assert http.get(f"/v1/files/{file['id']}").json() == file
    later = file["created_at"] + 2 * 86_400
    Sweeper(database, farm.storage, Keep(outputs_days=1), clock=lambda: later).run()
    refusal(http.get(f"/v1/files/{file['id']}"), 404, "file_id")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input_file_id": "file-batch-" + "0" * 64}, "file_id"),
        ({"input_file_id": "../../etc"}, "file_id"),
        ({"input_file_id": "x", "manifest_url": "y"}, "body"),
        ({"input_file_id": "x", "endpoint": "/v1/responses"}, "body.endpoint"),
        ({"manifest_url": "https://shop.example/c.csv"}, "manifest_url"),
    ],
)
def test_what_is_not_there_is_refused(http, body, param) -> None:
    answer = http.post("/v1/batches", json=body)
    assert 400 <= answer.status_code < 500
    refusal(answer, answer.status_code, param)


def test_a_flat_row_of_json_names_a_still_by_its_file_too(http, farm) -> None:
    sha = farm.put_still(still_png())
    rows = [{"still": sha, "name": "a", "prompt": "pan"}, {"still": f"file-{sha}", "name": "b", "prompt": "pan"}]
    answer = http.post("/v1/batches", json={"name": "two", "rows": rows}).json()
    assert [job.still for job in farm.jobs(answer["id"])] == [sha, sha]


def test_several_prompts_and_candidates_of_flat_rows_are_those_of_a_manifest(http, farm) -> None:
    sha = farm.put_still(still_png())
    rows = [
        {"name": "A", "prompt": ["pan left", "zoom in", "pan left "], "candidates": 2, "price": "19"},
        {"name": "B", "prompt": "tilt up"},
        {"name": "C", "prompt": ["orbit right"], "seed": 7},
        {"name": "D", "prompt": "zoom out", "candidates": 3},
    ]
    flat = [{name: one for name, one in row.items() if name != "price"} | {"still": sha} for row in rows]
    made = http.post("/v1/batches", json={"name": "flat", "rows": flat})
    assert made.status_code == 202, made.text
    lines = [{"id" if name == "name" else name: one for name, one in row.items()} for row in rows]
    manifest = "\n".join(json.dumps(line | {"image": f"file-{sha}"}) for line in lines)
    headers = {"Content-Type": "application/jsonl"}
    read = http.post("/v1/batches", content=manifest, headers=headers)

    def told(batch_id: str) -> list[tuple[object, ...]]:
        jobs = farm.jobs(batch_id)
        return [(job.number, job.name, job.row["number"], job.row_number, job.content_key) for job in jobs]

    assert told(made.json()["id"]) == told(read.json()["id"])
    assert [job.name for job in farm.jobs(made.json()["id"])][:5] == ["A-p1-c1", "A-p1-c2", "A-p2-c1", "A-p2-c2", "B"]


@pytest.mark.parametrize("prompt", [[], ["pan", ""], [1.5, None], [["pan"]], [f"pan {n}" for n in range(33)]])
def test_a_list_that_is_no_prompts_is_a_problem_of_its_row(http, farm, prompt) -> None:
    sha = farm.put_still(still_png())
    rows = [{"still": sha, "name": "a", "prompt": prompt}, {"still": sha, "name": "b", "prompt": "pan"}]
    answer = http.post("/v1/batches", json={"name": "two", "rows": rows})
    assert answer.status_code == 202, answer.text
    (refused,) = answer.json()["refused"]
    assert (refused["name"], refused["problems"][0]["field"]) == ("a", "prompt")
    assert farm.batch(answer.json()["id"]).counts.total == 2


def test_lists_of_prompts_make_no_more_rows_than_a_batch_may_have(http) -> None:
    row = {"still": "ab" * 32, "prompt": [f"pan {n}" for n in range(32)], "candidates": 16}
    answer = http.post("/v1/batches", json={"name": "many", "rows": [row | {"name": f"n{n}"} for n in range(200)]})
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == "body.rows"


# -- elsewhere ----------------------------------------------------------------------------------------------------


def shop(asked: Asked) -> None:
    port = asked.server.port
    if asked.path.startswith("/a.png"):
        asked.send(200, PICTURE)
    elif asked.path.startswith("/c.csv"):
        rows = [{"id": "A", "image": f"http://127.0.0.1:{port}/a.png?sig=secret", "prompt": "pan"}]
        asked.send(200, written("csv", [*rows, {"id": "B", "image": "http://169.254.169.254/x.png", "prompt": "pan"}]))
    elif asked.path.startswith("/unnamed"):
        asked.send(200, written("jsonl", [{"id": "A", "image": f"http://127.0.0.1:{port}/a.png", "prompt": "pan"}]))
    else:
        asked.send(302, Location="http://169.254.169.254/latest/meta-data/")


def test_a_manifest_and_its_pictures_are_fetched_by_the_guarded_fetcher(farm) -> None:
    with host(shop) as server:
        policy = FetchPolicy(private_hosts=(f"127.0.0.1:{server.port}",))
        remotes = {"remote": RemoteStills(policy), "remote_manifests": RemoteManifests(policy)}
        api = create_api(farm, default_model="camera", nudge=nobody, **remotes)
        with TestClient(api) as http:
            base = f"http://127.0.0.1:{server.port}"
            answer = http.post("/v1/batches", json={"manifest_url": f"{base}/c.csv?sig=secret"})
            assert answer.status_code == 202, answer.text
            first, second = farm.jobs(answer.json()["id"])
            assert first.still == hashlib.sha256(PICTURE).hexdigest()
            assert "169.254.169.254" in second.problems[0].message
            assert "secret" not in answer.text + str(first.row)
            assert answer.json()["name"] == "c.csv"
            named = http.post("/v1/batches", json={"manifest_url": f"{base}/unnamed", "format": "jsonl"})
            assert named.json()["counts"]["queued"] == 1
            refusal(http.post("/v1/batches", json={"manifest_url": f"{base}/unnamed"}), 415, "content-type")
            moved = refusal(http.post("/v1/batches", json={"manifest_url": f"{base}/moved.csv"}), 400, "manifest_url")
            assert "169.254.169.254, which is never asked" in moved["message"]


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}/c.csv?sig=secret", "s3://bucket/c.csv", "file:///etc/passwd"])
def test_by_default_nothing_near_is_asked(farm, url) -> None:
    with host(shop) as server:
        api = create_api(farm, default_model="camera", nudge=nobody, remote_manifests=RemoteManifests(FetchPolicy()))
        with TestClient(api) as http:
            asked = {"manifest_url": url.replace("{port}", str(server.port))}
            error = refusal(http.post("/v1/batches", json=asked), 400, "manifest_url")
            assert "secret" not in str(error)
            assert "picture" not in str(error)
        assert server.connections == 0


HOSTILE = [
    '{"custom_id": "a", "body": {"prompt": "pan", "seed": NaN, "input_reference": {"file_id": "FILE"}}}',
    '{"custom_id": "a", "body": {"prompt": "pan", "fps": 1e400, "input_reference": {"file_id": "FILE"}}}',
    '{"custom_id": "a", "body": {"prompt": "pan\\u0000", "input_reference": {"file_id": "FILE"}}}',
    '{"custom_id": "a", "body": {"prompt": "pan\\ud800", "input_reference": {"file_id": "FILE"}}}',
    '{"custom_id": "a", "body": {"prompt": "pan", "metadata": {"n": 1180591620717411303424}, "seed": 1}}',
    '{"custom_id": "a", "body": {"prompt": "pan", "metadata": ' + "[" * 5000 + "]" * 5000 + "}}",
    '{"custom_id": "a", "body": []}',
    '{"custom_id": 7, "body": {"prompt": "pan"}}',
    '{"custom_id": "a\\ud800", "body": {"prompt": "pan", "input_reference": {"file_id": "FILE"}}}',
    '{"custom_id": "a\\u0000", "body": {"prompt": "pan", "input_reference": {"file_id": "FILE"}}}',
    '{"custom_id": "a/b", "body": {"prompt": "pan", "input_reference": {"file_id": "FILE"}}}',
    '{"custom_id": "a", "body": {"prompt": "pan", "input_reference": {"image_url": "data:image/png;base64,xx"}}}',
    '{"custom_id": "a", "body": {"prompt": "pan", "input_reference": {"image_url": "file:///etc/passwd"}}}',
    '{"custom_id": "a", "method": ["POST"], "url": {}, "body": {"prompt": "pan"}}',
    '{"image": "FILE", "prompt": "pan", "seed": 1180591620717411303424}',
    '{"image": "FILE", "prompt": "pan", "price": ' + "[" * 5000 + "]" * 5000 + "}",
    '{"image": ["FILE"], "prompt": {"a": 1}}',
    '{"image": "https://[::1", "prompt": "pan"}',
    '{"image": "s3://", "prompt": "pan"}',
]


@pytest.mark.parametrize("line", HOSTILE)
def test_a_hostile_line_is_its_row_s_problem_and_the_next_row_is_made(http, farm, line) -> None:
    file = f"file-{farm.put_still(still_png())}"
    good = {"prompt": "pan", "input_reference": {"file_id": file}}
    right = {"custom_id": "z", "body": good} if "custom_id" in line else {"id": "z", "image": file, "prompt": "pan"}
    text = line.replace("FILE", file) + "\n" + json.dumps(right) + "\n"
    answer = http.post("/v1/batches", content=text.encode(), headers={"Content-Type": "application/jsonl"})
    assert answer.status_code == 202, answer.text
    first, second = farm.jobs(answer.json()["id"])
    assert (first.state.value, second.name, second.state.value) == ("failed", "z", "queued")
    assert all(problem.remedy for problem in first.problems)
    # PostgreSQL holds no NUL.
    assert "\0" not in first.name
    assert len(http.get(f"/v1/batches/{answer.json()['id']}/jobs").json()["data"]) == 2


@pytest.mark.parametrize(
    ("method", "path", "sent"),
    [
        ("GET", "/v1/nothing", {}),
        ("PATCH", "/v1/batches", {}),
        ("GET", "/v1/batches/batch_x", {}),
        ("GET", "/v1/jobs/video_x", {}),
        ("GET", "/v1/videos/video_x/content", {}),
        ("GET", "/v1/files/file-x", {}),
        ("GET", "/v1/models/x", {}),
        ("POST", "/v1/cards/x/lock", {}),
        ("GET", "/v1/batches?limit=1180591620717411303424", {}),
        ("POST", "/v1/jobs/video_x/prioritize", {"json": {"priority": True}}),
        ("POST", "/v1/batches", {"content": b"{", "headers": {"Content-Type": "application/json"}}),
        ("POST", "/v1/batches", {"content": b"[" * 9000, "headers": {"Content-Type": "application/json"}}),
        ("POST", "/v1/batches", {"json": {"name": "a", "rows": [], "surprise": 1}}),
        ("POST", "/v1/videos", {"json": {"prompt": "pan"}}),
        ("POST", "/v1/files", {"data": {"purpose": "fine-tune"}, "files": {"file": b"x"}}),
        ("POST", "/v1/files", {"data": {"purpose": "batch"}, "files": {"file": ("a.exe", b"x")}}),
    ],
)
def test_every_refusal_has_a_code_a_param_and_a_remedy(http, method, path, sent) -> None:
    answer = http.request(method, path, **sent)
    assert 400 <= answer.status_code < 500, answer.text
    error = answer.json()["error"]
    assert error["code"]
    assert error["remedy"].endswith((".", "…"))
    assert "param" in error


FEED = (
    '<?xml version="1.0"?><rss xmlns:g="http://base.google.com/ns/1.0"><channel>'
    "<item><g:id>BAG-1</g:id><g:image_link>bag-1.png</g:image_link><g:price>9.90 EUR</g:price></item>"
    "<item><g:id>BAG-2</g:id><g:image_link>https://tea & mug</g:image_link></item>"
    "</channel></rss>"
)


@pytest.mark.parametrize("name", ["feed.xml", "feed.rss"])
def test_a_product_feed_is_read_wherever_a_manifest_is(http, farm, name) -> None:
    form = {"manifest": (name, FEED, "application/xml"), "images": ("bag-1.png", still_png(), "image/png")}
    answer = http.post("/v1/batches", files=form)
    assert answer.status_code == 202, answer.text
    assert "taken for a Google Merchant feed (RSS 2.0)" in answer.json()["notes"][0]
    done, bad = farm.jobs(answer.json()["id"])
    assert (done.name, done.problems, done.row["extra"]["price"]) == ("BAG-1", (), "9.90 EUR")
    assert (bad.name, bad.problems[0].field) == ("BAG-2", "row")
    # As the whole body, by its media type.
    answer = http.post("/v1/batches", content=FEED.encode(), headers={"content-type": "text/xml"})
    assert answer.status_code == 202, answer.text
    assert answer.json()["counts"]["total"] == 2


def test_a_feed_that_grows_is_refused_by_the_gateway_too(http) -> None:
    bomb = FEED.replace("<rss", '<!DOCTYPE rss [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><rss', 1)
    answer = http.post("/v1/batches", content=bomb.encode(), headers={"content-type": "application/xml"})
    assert "entities" in refusal(answer, 400, "manifest")["message"]
