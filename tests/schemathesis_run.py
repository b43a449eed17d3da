"""Every route of the API under schemathesis: requests made from the OpenAPI document, against the real application.

`make schemathesis` runs it longer than the unit tests do; SEED and EXAMPLES say with what.
"""

from __future__ import annotations

import copy
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis
import schemathesis
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import positive_data_acceptance

from cluster.catalog.defaults import Defaults
from cluster.catalog.ingest import IncomingRow
from cluster.catalog.manifest import Row
from cluster.catalog.uploads import ManifestUploads
from cluster.dispatch.retry import after_attempt
from cluster.farm import Farm
from cluster.jobs.model import Job
from cluster.jobs.outcomes import Completed
from cluster.jobs.review import in_review
from cluster.storage import Storage
from cluster.store import BatchStore, Database, DispatchStore
from cluster.store.access.keys import KeyStore
from cluster.store.webhooks.registry import WebhookStore
from pipeline.clips.encode import encode_mp4
from pipeline.problems import BadInputError
from serve.gateway.api import create_api
from serve.gateway.door import check_storable
from tests.building import FLEET, beat, claim_one, objects, still_png
from tests.unit.pipeline.delivery.clips import product_clip

#: Routes whose 422 may be about what no schema says: that names are unique, or how many pixels two sides make.
_JUDGED_BY_SENSE = {("POST", "/v1/batches"), ("POST", "/v1/forecast"), ("POST", "/v1/lint")}
#: Fields of a request for a video that go with any others.
_INDEPENDENT = {"prompt", "negative_prompt", "seed", "tier", "fit", "strict", "user", "metadata", "fps"}
#: What a request that has the form that the document asks for may still be answered with: a model that there is not, a
#: batch that there is not, a batch that has ended already.
_REFUSED_BY_SENSE = ["2xx", "400", "401", "404", "409", "415", "416"]


async def nobody() -> None:
    """Nobody is nudged."""


@contextmanager
def filled_farm(folder: Path) -> Iterator[tuple[Farm, dict[str, list[str]]]]:
    """A farm with a clip, rows that wait for cards and for people, a file, card, key and webhook; ids by parameter."""
    database = Database(f"sqlite:///{folder / 'store.db'}")
    database.migrate()
    farm = Farm(BatchStore(database), Storage(folder / "storage"))
    still = farm.put_still(still_png())
    rows = [
        IncomingRow(
            position=n,
            name=f"SKU-{n}",
            number=n,
            still=still,
            row=Row(number=n, id=f"SKU-{n}", image="a.png", prompt=f"pan {n}"),
        )
        for n in (1, 2, 3)
    ]
    batch = farm.submit(rows, Defaults(model="camera"), name="catalog")
    jobs = farm.jobs(batch.id)
    office = DispatchStore(database)
    office.take_office("test")
    _render(farm, office, jobs[0], folder)
    office.record_cards([beat("gpu-1")])
    # A stream of what has not ended would be followed for minutes.
    done = farm.submit([rows[0]], Defaults(model="camera"), name="done")
    assert farm.batch(done.id).done, farm.batch(done.id)
    review = farm.submit(rows[1:], Defaults(model="i2vgen-xl-tiny", rounds=("draft", "final")), name="review")
    for job in farm.jobs(review.id):
        _render(farm, office, job, folder)
    assert all(in_review(job) for job in farm.jobs(review.id))
    manifest = ManifestUploads(farm.storage, farm.owner).put(b"id,image,prompt\na,b,c\n", "a.csv")
    # Nobody asks for a key here, whatever keys there are.
    key, _ = KeyStore(database).create(farm.owner)
    webhook, _ = WebhookStore(database).create(farm.owner, "https://shop.example.com/told")
    drafts = [job.id for job in farm.jobs(review.id)]
    known = {
        "batch_id": [batch.id, done.id, review.id],
        "ended": [done.id],
        "job_id": [*(job.id for job in jobs), *drafts],
        "video_id": [*(job.id for job in jobs), *drafts],
        "file_id": [f"file-{still}", f"file-batch-{manifest}"],
        "name": ["camera"],
        "card": ["gpu-1"],
        "key_id": [key.id],
        "webhook_id": [webhook.id],
        "owner": [farm.owner],
        "profile": ["shop"],
    }
    try:
        yield farm, known
    finally:
        database.close()


def _render(farm: Farm, office: DispatchStore, job: Job, folder: Path) -> None:
    """Render a waiting job, as far as store and storage can tell; its clip is a film that can be delivered."""
    film = folder / "film.mp4"
    if not film.exists():
        encode_mp4(product_clip((96, 96), (30, 15, 66, 80), frames=6), 24, film)
    claim = claim_one(office, job)
    ended = Completed(objects=objects(claim.attempt_id))
    for name in (ended.objects.video, ended.objects.poster, ended.objects.spritesheet):
        farm.storage.put_bytes(name, film.read_bytes())
    farm.storage.put_bytes(ended.objects.provenance, b"{}")
    office.finish(claim, ended, after_attempt(office.current_job(claim), ended, FLEET))


def faults(seed: int, examples: int, folder: Path, only: str = "") -> list[str]:
    """What schemathesis finds wrong, operation by operation, with `examples` requests for each kind of data."""
    config = SchemathesisConfig.from_dict(
        {"checks": {"positive_data_acceptance": {"expected-statuses": _REFUSED_BY_SENSE}}}
    )
    found: list[str] = []
    with filled_farm(folder) as (farm, known):
        api = create_api(farm, default_model="camera", nudge=nobody)
        schema = schemathesis.openapi.from_asgi("/openapi.json", api, config=config)
        for result in schema.get_all_operations():
            operation = result.ok()
            if only and only not in f"{operation.method.upper()} {operation.path}":
                continue
            found += _faults_of(operation, seed, examples, known)
    return found


def _faults_of(operation: Any, seed: int, examples: int, known: dict[str, list[str]]) -> list[str]:
    draw = random.Random(seed)
    found: list[str] = []
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
        settings = hypothesis.settings(
            max_examples=examples,
            deadline=None,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
            phases=(hypothesis.Phase.generate,),
            report_multiple_bugs=False,
        )
        cases = operation.as_strategy(generation_mode=mode)
        check = _check_of(operation, mode, known, draw)
        try:
            hypothesis.seed(seed)(settings(hypothesis.given(cases)(check)))()
        except hypothesis.errors.Unsatisfiable:
            # Nothing of a request without parameters and body can be wrong.
            continue
        except BaseExceptionGroup as error:
            found.append(f"{operation.method.upper()} {operation.path} ({mode.value}): {error}")
    return found


def _check_of(
    operation: Any, mode: GenerationMode, known: dict[str, list[str]], draw: random.Random
) -> Callable[[Any], None]:
    """Sends one request and looks at the answer; half of the requests are for what there is."""

    def check(case: Any) -> None:
        for name, values in known.items():
            if name in (case.path_parameters or {}) and draw.random() < 0.5:
                streamed = name == "batch_id" and operation.path.endswith("/events")
                case.path_parameters[name] = draw.choice(known["ended"] if streamed else values)
        if isinstance(case.body, dict):
            # What is drawn may be part of the document, and so of what is drawn next.
            case.body = copy.deepcopy(case.body)
            if mode is GenerationMode.POSITIVE and draw.random() < 0.5:
                name_what_is_there(case.body, known["file_id"], operation.path)
            if operation.path.endswith("/sync"):
                # What is waited for is never rendered here.
                case.body.setdefault("timeout_s", 0)
        by_sense = (operation.method.upper(), operation.path) in _JUDGED_BY_SENSE or not storable(case.body)
        answer = case.call()
        # A key may have come before, with another body.
        by_sense |= answer.status_code == 422 and "idempotency_conflict" in answer.text
        excluded = [positive_data_acceptance] if by_sense else []
        if answer.status_code == 504:
            # The documented answer to whoever waited for what is not done; only that route has it.
            assert operation.path == "/v1/videos/sync"
            excluded = [positive_data_acceptance, not_a_server_error]
        case.validate_response(answer, excluded_checks=excluded)

    return check


def name_what_is_there(body: dict[str, Any], files: list[str], path: str) -> None:
    """Let a right body name stills and a manifest that were handed in, so that something is made of it."""
    still, manifest = files
    if "prompt" in body and path.startswith("/v1/videos"):
        # Fields that go with each other only as no schema says are left out.
        for name in body.keys() - _INDEPENDENT:
            del body[name]
        body |= {"model": "camera", "input_reference": {"file_id": still}}
    if "input_file_id" in body and body["input_file_id"] is not None:
        body["input_file_id"] = manifest
    for row in body.get("rows") or ():
        if isinstance(row, dict) and row.get("still"):
            row["still"] = still.removeprefix("file-")


def storable(body: Any) -> bool:
    """Whether a body has none of what no schema can forbid and no store can hold, such as half a character."""
    try:
        check_storable(body)
    except BadInputError:
        return False
    return True


def main() -> int:
    """Run all of it and print what was found."""
    seed, examples = int(os.environ.get("SEED", "1")), int(os.environ.get("EXAMPLES", "100"))
    with tempfile.TemporaryDirectory(prefix="clipmill-schemathesis-") as folder:
        found = faults(seed, examples, Path(folder), only=os.environ.get("ONLY", ""))
    for fault in found:
        sys.stdout.write(f"{fault}\n\n")
    sys.stdout.write(f"{len(found)} faults with seed {seed}, {examples} requests of each kind\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
