"""`/metrics` over stores whose contents are known, and its text read back by Prometheus' own parser."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from starlette.testclient import TestClient

from cluster.dispatch.retry import after_attempt
from cluster.farm import Farm
from cluster.fleet.cards import CardState, Fleet
from cluster.jobs.model import Outcome, Reason
from cluster.jobs.outcomes import Ended, Errored, Lost, OutOfMemory, Stopped, TooBig
from cluster.storage import Storage
from cluster.store import BatchStore, Claim, Database, DispatchStore
from cluster.store.gauges import Figures
from cluster.store.schema import attempts
from pipeline.clips.clip import ResolutionClass
from pipeline.units import GIB
from serve.gateway.api import create_api
from serve.gateway.metrics import exposition, store_registry
from tests.building import FLEET, PROBLEM, bad_draft, beat, card, claim_one, completed, draft, spec

ME = "local"
#: What a row of a large clip needs: only c24 of `FLEET` holds it.
LARGE = 10 * GIB


class Page:
    """A scrape: values by name and labels, and the types by family."""

    def __init__(self, text: str) -> None:
        self.types: dict[str, str] = {}
        self.values: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        for family in parse_text(text):
            self.types[family.name] = family.type
            for sample in family.samples:
                key = (sample.name, frozenset(sample.labels.items()))
                assert key not in self.values, f"{key} is there twice"
                self.values[key] = sample.value

    def get(self, name: str, **labels: str) -> float | None:
        """One series, or None where it is not there."""
        return self.values.get((name, frozenset(labels.items())))

    def sum(self, name: str, **labels: str) -> float:
        """All series of a name that have these labels among theirs."""
        return sum(v for (n, ls), v in self.values.items() if n == name and labels.items() <= dict(ls).items())

    def labels(self, name: str) -> set[frozenset[tuple[str, str]]]:
        return {ls for n, ls in self.values if n == name}


def scrape(database: Database, fleet: Fleet = FLEET) -> Page:
    body, content_type = exposition(store_registry(Figures(database, fleet)), "")
    assert content_type.startswith("text/plain")
    return Page(body.decode())


def hand_in(batch_store: BatchStore, *drafts, **options) -> str:
    batch_id, _ = batch_store.open_batch(ME, name="catalog", **options)
    batch_store.add(ME, batch_id, drafts)
    batch_store.seal(ME, batch_id)
    return batch_id


def end(dispatch_store: DispatchStore, claim: Claim, ended: Ended) -> None:
    assert dispatch_store.finish(claim, ended, after_attempt(dispatch_store.current_job(claim), ended, FLEET))


def diffusion(number: int, **changes):
    return draft(number, spec=spec("i2vgen-xl", resolution_class=ResolutionClass.P512), **changes)


WHERE = {"model": "i2vgen-xl", "resolution_class": "512p", "card_class": "c8"}
KIND = {"model": "i2vgen-xl", "resolution_class": "512p"}


def test_attempts_are_counted_by_their_endings(database, batch_store, dispatch_store, clock, truth):
    batch_id = hand_in(batch_store, *(diffusion(n) for n in range(1, 8)))
    jobs = batch_store.jobs(ME, batch_id)
    endings = [
        OutOfMemory(stage="decode", usable_bytes=1, measured_bytes=1),
        OutOfMemory(stage="denoise", usable_bytes=1, measured_bytes=1),
        TooBig(usable_bytes=1, predicted_bytes=2),
        Errored(),
        Lost(),
        Stopped(),
    ]
    for seconds, (job, ended) in enumerate(zip(jobs, endings, strict=False), start=1):
        claim = claim_one(dispatch_store, job)
        clock.now += seconds
        end(dispatch_store, claim, ended)
    claim = claim_one(dispatch_store, jobs[6])
    clock.now += 7
    end(dispatch_store, claim, completed(claim))

    page = scrape(database)
    by_table = dict(
        truth.rows(sa.select(attempts.c.outcome, sa.func.count()).group_by(attempts.c.outcome))  # type: ignore[arg-type]
    )
    assert by_table == {"oom": 2, "too_big": 1, "error": 1, "lost": 1, "stopped": 1, "completed": 1}
    for outcome in Outcome:
        found = page.get("clipmill_attempts_total", **WHERE, outcome=outcome.value)
        assert found == by_table.get(outcome.value, 0), outcome
    assert {s: page.get("clipmill_oom_total", **WHERE, stage=s) for s in ("encode", "denoise", "decode")} == {
        "encode": 0,
        "denoise": 1,
        "decode": 1,
    }
    assert page.get("clipmill_gpu_seconds_total", **WHERE) == 1 + 2 + 3 + 4 + 5 + 6 + 7
    assert page.get("clipmill_admissions_total", decision="admitted", card_class="c8") == 6
    assert page.get("clipmill_admissions_total", decision="too_big", card_class="c8") == 1
    assert page.get("clipmill_admissions_total", decision="admitted", card_class="c24") == 0
    assert page.get("clipmill_preemptions_total", reason="drain") == 1
    assert page.get("clipmill_clips_total", **KIND, outcome="completed") == 1


def test_a_cancelled_clip_is_no_preemption(database, batch_store, dispatch_store):
    batch_id = hand_in(batch_store, diffusion(1))
    claim = claim_one(dispatch_store, batch_store.jobs(ME, batch_id)[0])
    batch_store.cancel(ME, batch_id)
    end(dispatch_store, claim, Stopped())
    page = scrape(database)
    assert page.get("clipmill_preemptions_total", reason="drain") == 0
    assert page.get("clipmill_clips_total", **KIND, outcome="cancelled") == 1


def test_only_a_lease_that_ran_out_is_an_expired_one(database, batch_store, dispatch_store, clock):
    batch_id = hand_in(batch_store, diffusion(1), diffusion(2))
    claims = dispatch_store.start([(job, card(f"gpu{i}")) for i, job in enumerate(batch_store.jobs(ME, batch_id))], 10)
    end(dispatch_store, claims[0], Lost(detail="its node said goodbye"))
    assert scrape(database).get("clipmill_leases_expired_total") == 0
    clock.now += 11
    (expired,) = dispatch_store.expired()
    end(dispatch_store, expired, Lost())
    page = scrape(database)
    assert page.get("clipmill_leases_expired_total") == 1
    assert page.get("clipmill_attempts_total", **WHERE, outcome="lost") == 2


def test_rows_that_never_ran_are_counted_too(database, batch_store, dispatch_store):
    hand_in(batch_store, bad_draft(1))
    batch_id = hand_in(batch_store, diffusion(1, needs_bytes=99 * GIB), diffusion(2))
    first, second = batch_store.jobs(ME, batch_id)
    assert dispatch_store.refuse(first, Reason.NO_CARD_FITS, PROBLEM)
    claim = claim_one(dispatch_store, second)
    end(dispatch_store, claim, completed(claim))
    hand_in(batch_store, diffusion(5, key="key2"))
    page = scrape(database)
    assert page.get("clipmill_admissions_total", decision="refused", card_class="") == 1
    assert page.get("clipmill_clips_total", model="", resolution_class="", outcome="invalid") == 1
    assert page.get("clipmill_clips_total", **KIND, outcome="failed") == 1
    assert page.get("clipmill_clips_total", **KIND, outcome="shared") == 1


def test_states_and_waits_of_the_rows_that_have_not_ended(database, batch_store, dispatch_store, clock):
    hand_in(batch_store, diffusion(1), diffusion(2))
    clock.now += 30
    batch_id = hand_in(batch_store, diffusion(3), draft(4))
    hand_in(batch_store, diffusion(7), attended_s=5)
    claim_one(dispatch_store, batch_store.jobs(ME, batch_id)[0])
    clock.now += 12
    page = scrape(database)
    shown = {ls: v for (name, ls), v in page.values.items() if name == "clipmill_jobs" and v}
    assert shown == {
        frozenset({("state", "queued"), ("resolution_class", "512p")}): 2,
        frozenset({("state", "running"), ("resolution_class", "512p")}): 1,
        frozenset({("state", "queued"), ("resolution_class", "256p")}): 1,
        frozenset({("state", "stopped"), ("resolution_class", "512p")}): 1,
    }
    oldest = {size: page.get("clipmill_queue_oldest_seconds", resolution_class=size) for size in ("256p", "512p")}
    assert oldest == {"256p": 12, "512p": 42}
    assert page.get("clipmill_queue_oldest_seconds", resolution_class="1024p") == 0


def test_a_row_that_came_back_waits_since_then(database, batch_store, dispatch_store, clock):
    batch_id = hand_in(batch_store, diffusion(1))
    clock.now += 1000
    claim = claim_one(dispatch_store, batch_store.jobs(ME, batch_id)[0])
    end(dispatch_store, claim, Lost())
    clock.now += 3
    assert scrape(database).get("clipmill_queue_oldest_seconds", resolution_class="512p") == 3


def test_the_backlog_is_what_such_clips_took_before(database, batch_store, dispatch_store, clock):
    batch_id = hand_in(batch_store, diffusion(1), diffusion(2))
    for seconds, job in zip((20, 40), batch_store.jobs(ME, batch_id), strict=True):
        claim = claim_one(dispatch_store, job)
        clock.now += seconds
        end(dispatch_store, claim, completed(claim))
    hand_in(batch_store, *(diffusion(n, needs_bytes=GIB) for n in (3, 4, 5)), diffusion(6, needs_bytes=LARGE))
    page = scrape(database)
    assert page.get("clipmill_backlog_gpu_seconds", card_class="c8") == 3 * 30
    assert page.get("clipmill_backlog_gpu_seconds", card_class="c24") == 30


@pytest.mark.parametrize(
    ("cards", "expected"),
    [
        ([], {"c8": 1, "c24": 2}),
        ([("a", "c8", 7 * GIB)], {"c8": 0, "c24": 2}),
        ([("b", "c24", 21 * GIB)], {"c8": 0, "c24": 0}),
        # A card that another process fills does not hold the clip either.
        ([("b", "c24", 9 * GIB)], {"c8": 0, "c24": 2}),
    ],
)
def test_rows_without_a_card_to_hold_them(database, batch_store, dispatch_store, cards, expected):
    hand_in(batch_store, diffusion(1, needs_bytes=GIB), *(diffusion(n, needs_bytes=LARGE) for n in (2, 3)))
    dispatch_store.record_cards([beat(name, card_class=c, usable_bytes=usable) for name, c, usable in cards])
    page = scrape(database)
    assert {c: page.get("clipmill_jobs_without_card", card_class=c) for c in ("c8", "c24")} == expected


def test_storage_that_a_card_cannot_write_shows(database, dispatch_store):
    dispatch_store.record_cards([beat("gpu0")])
    assert scrape(database).get("clipmill_storage_writable") == 1
    dispatch_store.record_cards([beat("gpu1", storage_fault="no space is left")])
    assert scrape(database).get("clipmill_storage_writable") == 0


def test_cards_by_what_they_do(database, dispatch_store):
    dispatch_store.record_cards(
        [
            beat("a"),
            beat("b", state=CardState.BUSY),
            beat("c", state=CardState.BUSY),
            beat("d", card_class="c141"),
        ]
    )
    page = scrape(database)
    assert page.get("clipmill_cards", card_class="c8", state="idle") == 1
    assert page.get("clipmill_cards", card_class="c8", state="busy") == 2
    assert page.get("clipmill_cards", card_class="c24", state="idle") == 0
    assert page.get("clipmill_cards", card_class="c141", state="idle") == 1


def test_a_fault_has_its_counter_before_it_happens(database, batch_store):
    hand_in(batch_store, diffusion(1, needs_bytes=LARGE))
    page = scrape(database)
    # Only where it can happen: c8 never holds it.
    assert page.labels("clipmill_oom_total") == {
        frozenset({**WHERE, "card_class": "c24", "stage": stage}.items()) for stage in ("encode", "denoise", "decode")
    }
    assert page.get("clipmill_attempts_total", **WHERE | {"card_class": "c24"}, outcome="crashed") == 0
    assert page.get("clipmill_clips_total", **KIND, outcome="failed") == 0


def test_an_empty_store_has_every_family(database):
    page = scrape(database)
    assert page.types == {
        "clipmill_attempts": "counter",
        "clipmill_attempts_deleted": "counter",
        "clipmill_clips": "counter",
        "clipmill_oom": "counter",
        "clipmill_gpu_seconds": "counter",
        "clipmill_admissions": "counter",
        "clipmill_preemptions": "counter",
        "clipmill_leases_expired": "counter",
        "clipmill_webhook_messages": "counter",
        "clipmill_jobs": "gauge",
        "clipmill_queue_oldest_seconds": "gauge",
        "clipmill_backlog_gpu_seconds": "gauge",
        "clipmill_jobs_without_card": "gauge",
        "clipmill_cards": "gauge",
        "clipmill_storage_writable": "gauge",
        "clipmill_webhook_messages_pending": "gauge",
        "clipmill_webhooks_disabled": "gauge",
    }
    # Nobody has said otherwise of it.
    assert page.get("clipmill_storage_writable") == 1
    assert sum(page.values.values()) == 1


def test_no_id_is_ever_a_label(database, batch_store, dispatch_store):
    batch_id = hand_in(batch_store, diffusion(1), diffusion(2))
    first, _ = batch_store.jobs(ME, batch_id)
    claim = claim_one(dispatch_store, first)
    end(dispatch_store, claim, completed(claim))
    text = exposition(store_registry(Figures(database, FLEET)), "")[0].decode()
    for secret in (batch_id, first.id, claim.attempt_id, claim.renderer, claim.card, "row1", "key1"):
        assert secret not in text


def test_a_new_process_on_the_store_goes_on_counting(database, batch_store, dispatch_store):
    claim = claim_one(dispatch_store, batch_store.jobs(ME, hand_in(batch_store, diffusion(1)))[0])
    end(dispatch_store, claim, completed(claim))
    before = scrape(database)
    again = Database(database.url)
    DispatchStore(again).take_office("second")
    after = scrape(again)
    counters = {key: v for key, v in before.values.items() if key[0].endswith("_total")}
    assert counters
    assert all(after.values[key] >= value for key, value in counters.items() if value)
    again.close()


# -- over HTTP -------------------------------------------------------------------------------------------------


async def _nobody() -> None:
    return None


def test_the_gateway_answers_in_the_format_asked_for(sqlite_database, tmp_path):
    farm = Farm(BatchStore(sqlite_database), Storage(tmp_path / "storage"))
    registry = store_registry(Figures(sqlite_database, FLEET))
    with TestClient(create_api(farm, default_model="camera", nudge=_nobody, registry=registry)) as http:
        plain = http.get("/metrics")
        assert plain.headers["content-type"].startswith("text/plain")
        assert Page(plain.text).get("clipmill_leases_expired_total") == 0
        asked = http.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
        assert asked.headers["content-type"].startswith("application/openmetrics-text")
        assert {family.name for family in parse_openmetrics(asked.text)} >= {"clipmill_attempts", "clipmill_jobs"}


def test_a_store_that_is_gone_is_a_failed_scrape(tmp_path):
    gone = Database(f"sqlite:///{tmp_path / 'nowhere' / 'x.db'}")
    farm = Farm(BatchStore(gone), Storage(tmp_path))
    api = create_api(farm, default_model="camera", nudge=_nobody, registry=store_registry(Figures(gone, FLEET)))
    with TestClient(api, raise_server_exceptions=False) as http:
        assert http.get("/metrics").status_code == 503
