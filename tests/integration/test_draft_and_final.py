"""Two stages with the small network itself: finals begin with the drafts' seeds, or with their very latents."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cluster.catalog.defaults import Defaults
from cluster.catalog.ingest import gather
from cluster.catalog.manifest import read_manifest
from cluster.dispatch.protocol import Assignment
from cluster.dispatch.retry import after_attempt
from cluster.jobs.model import Job, JobState
from cluster.jobs.outcomes import Completed
from cluster.jobs.review import in_review
from cluster.jobs.transitions import Verb
from pipeline.devices.emulated import HostDevice
from pipeline.units import GIB
from serve.renderer.active_clip import ActiveClip
from serve.renderer.cards import CardIdentity, LazyDevice
from serve.renderer.warm_model import WeightsPlace
from serve.renderer.worker import Worker
from tests.building import FLEET, claim_one
from tests.page_store import OWNER, PageFarm, page_farm
from tests.reviewing import picture

CATALOG = Path(__file__).parents[3] / "shared" / "catalog"
ROWS = 12


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def it(tmp_path: Path) -> Iterator[PageFarm]:
    with page_farm(tmp_path, films=False) as found:
        yield found


@pytest.fixture
def worker(tmp_path: Path, it: PageFarm) -> Iterator[Worker]:
    device = LazyDevice(8 * GIB, 7 * GIB, "cpu", HostDevice)
    weights = WeightsPlace(home=tmp_path / "home", folders={}, offline=True)
    made = Worker(CardIdentity(card="gpu0", card_class="c8", kind="test"), device, it.farm.storage, weights)
    yield made
    made.close()


def catalog(folder: Path) -> Path:
    """The first rows of the shared catalog, where there is one; else as many pictures of one colour."""
    folder.mkdir()
    if CATALOG.is_dir():
        with (CATALOG / "catalog.csv").open(encoding="utf-8", newline="") as file:
            rows = [row for _, row in zip(range(ROWS), csv.DictReader(file), strict=False)]
        for row in rows:
            (folder / Path(row["image"]).name).write_bytes((CATALOG / row["image"]).read_bytes())
        found = [(row["id"], Path(row["image"]).name, row["prompt"]) for row in rows]
    else:
        found = [(f"SKU-{n:03}", f"{n}.png", f"pan left across product {n}") for n in range(1, ROWS + 1)]
        for n, (_, name, _) in enumerate(found, start=1):
            (folder / name).write_bytes(picture(n))
    with (folder / "catalog.csv").open("w", encoding="utf-8", newline="") as file:
        # Short finals: what is shown is whose noise it is, not how it looks. Every second one starts from latents.
        latents = ("yes" if n % 2 == 0 else "no" for n in range(ROWS))
        rows_of = ((*one, 4, 4, start) for one, start in zip(found, latents, strict=True))
        csv.writer(file).writerows([("id", "image", "prompt", "frames", "steps", "from_draft"), *rows_of])
    return folder / "catalog.csv"


def render(it: PageFarm, worker: Worker, job: Job) -> None:
    """Render a job with the network."""
    claim = claim_one(it.dispatch, job, "gpu0")
    assert job.spec
    assignment = Assignment(
        attempt_id=claim.attempt_id,
        job_id=job.id,
        renderer="r",
        card_class="c8",
        owner=OWNER,
        still=str(job.still),
        spec=job.spec,
        content_key=str(job.content_key),
        row=job.row,
    )
    ended = worker.run(ActiveClip(assignment, lambda _event: None))
    assert isinstance(ended, Completed), ended
    it.dispatch.finish(claim, ended, after_attempt(it.dispatch.current_job(claim), ended, FLEET))


def test_twelve_drafts_four_approved_four_finals(tmp_path: Path, it: PageFarm, worker: Worker) -> None:
    given = Defaults(model="i2vgen-xl-tiny", rounds="draft,final", resolution_class="256p", tier="standard")
    rows = gather(read_manifest(catalog(tmp_path / "catalog")), it.farm.put_still)
    batch = it.farm.submit(rows, given, name="catalog.csv")
    assert batch.counts.total == ROWS
    drafts = {job.id: job for job in it.jobs(batch.id)}
    for job in drafts.values():
        render(it, worker, job)
    assert all(in_review(job) for job in it.jobs(batch.id))
    for place, job in enumerate(it.jobs(batch.id)):
        it.farm.command_job(job.id, Verb.APPROVE if place % 3 == 0 else Verb.REJECT)
    finals = [job for job in it.jobs(batch.id) if job.state is JobState.QUEUED]
    assert len(finals) == 4
    for place, job in enumerate(finals):
        draft, latents = drafts[job.id], place % 2 == 0
        assert job.spec
        assert draft.spec
        kept = {key: it.farm.storage.get_bytes(key) for key in latents_of(it)}
        render(it, worker, job)
        assert (job.spec.seed, job.spec.base_spec) == (draft.spec.seed, draft.spec if latents else None)
        # The draft's latents are taken as they are: nothing of them is made again.
        assert {key: it.farm.storage.get_bytes(key) for key in kept} == kept
        assert len(latents_of(it)) == len(kept) + 1
    assert it.farm.batch(batch.id).counts.by_state == {JobState.COMPLETED: 4, JobState.CANCELLED: 8}


def latents_of(it: PageFarm) -> list[str]:
    """Keys of what the cache has of finished denoising."""
    kinds = it.farm.storage.names_under("cache")
    return [entry.key for kind in kinds if "latent" in kind for entry in it.farm.storage.entries(f"cache/{kind}")]
