"""Keys, sessions, quotas and use in both stores."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from cluster.access.keys import KeyState, new_key_text
from cluster.access.quotas import NO_QUOTA, OwnerQuota, QuotaExceededError
from cluster.access.scopes import USUAL_SCOPES, Scope
from cluster.dispatch.retry import after_attempt
from cluster.jobs.outcomes import Lost
from cluster.store.access.keys import KeyStore, NoSuchKeyError
from cluster.store.access.quotas import QuotaStore
from cluster.store.access.sessions import SESSION_S, SessionStore
from cluster.store.schema import access_sessions, jobs, owner_use
from pipeline.problems import BadInputError
from tests.building import FLEET, Truth, claim_one, completed, draft

DAY = 86_400


@pytest.fixture
def keys(database, clock) -> KeyStore:
    return KeyStore(database)


def test_a_key_is_found_by_its_whole_text_only(keys, clock):
    key, text = keys.create("team", {Scope.READ}, name="ci", expires_s=60)
    assert (key.owner, key.name, key.scopes, key.expires_at) == ("team", "ci", {Scope.READ}, clock.now + 60)
    assert keys.by_text(text) == (key, clock.now)
    other = new_key_text()
    # Another secret under the same id.
    forged = type(text)(text=other.text, key_id=text.key_id)
    assert keys.by_text(forged)[0] is None
    assert keys.by_text(other)[0] is None


def test_no_text_of_a_key_or_session_is_anywhere_in_the_store(keys, database, truth):
    key, text = keys.create("team")
    secret, _ = SessionStore(database).open(key)
    everything = repr(truth.everything())
    assert key.id in everything
    assert text.text not in everything
    assert text.text[-49:-6] not in everything
    assert secret not in everything


def test_a_look_at_a_key_writes_once_an_hour(keys, clock, truth):
    key, text = keys.create("team")
    keys.note_use(key, int(clock.now))
    seen = truth.everything()
    for later in (1, 1800, 3599):
        found, now = keys.by_text(text)
        assert found is not None
        keys.note_use(found, now + later)
        assert truth.everything() == seen
    found, now = keys.by_text(text)
    assert found is not None
    assert found.used_at == clock.now
    keys.note_use(found, now + 3600)
    assert keys.key(key.id).used_at == clock.now + 3600


def test_a_revoked_key_stays_in_lists_and_says_since_when(keys, clock):
    key, text = keys.create("team")
    clock.now += 5
    revoked = keys.revoke(key.id[:8])
    clock.now += 5
    # The first time counts.
    assert keys.revoke(key.id).revoked_at == revoked.revoked_at == clock.now - 5
    found, now = keys.by_text(text)
    assert found is not None
    assert found.state(now) is KeyState.REVOKED
    assert [one.id for one in keys.listed()] == [key.id]
    assert keys.listed("other") == []
    assert keys.any()


def test_after_a_rotation_both_keys_work_until_the_grace_is_over(keys, clock):
    old, old_text = keys.create("team", {Scope.OPERATE}, name="ci", expires_s=30 * DAY)
    clock.now += DAY
    new, new_text, replaced = keys.rotate(old.id, grace_s=3600)
    assert (new.owner, new.name, new.scopes) == ("team", "ci", {Scope.OPERATE})
    assert new.expires_at == clock.now + 30 * DAY
    assert (replaced.replaced_by, replaced.expires_at) == (new.id, clock.now + 3600)

    def states() -> list[KeyState]:
        found = [keys.by_text(text) for text in (old_text, new_text)]
        return [key.state(now) for key, now in found if key]

    assert states() == [KeyState.ACTIVE, KeyState.ACTIVE]
    clock.now += 3600
    assert states() == [KeyState.EXPIRED, KeyState.ACTIVE]
    with pytest.raises(BadInputError, match="expired"):
        keys.rotate(old.id)


def test_a_rotation_never_makes_a_key_live_longer(keys, clock):
    old, _ = keys.create("team", expires_s=60)
    assert keys.rotate(old.id, grace_s=3600)[2].expires_at == clock.now + 60
    with pytest.raises(BadInputError, match="replaced before"):
        keys.rotate(old.id)
    gone, _ = keys.create("team")
    keys.revoke(gone.id)
    with pytest.raises(BadInputError, match="revoked"):
        keys.rotate(gone.id)


def test_keys_that_cannot_be_made_and_keys_that_there_are_not(keys):
    for wrong in ({"owner": "a b"}, {"owner": "a", "expires_s": 0}, {"owner": "a", "name": "two\nlines"}):
        with pytest.raises(BadInputError):
            keys.create(**wrong)
    for name in ("key_nothere", "%", "key_%"):
        with pytest.raises(NoSuchKeyError):
            keys.revoke(name)
    assert not keys.any()


def test_a_session_is_its_key_until_either_ends(keys, database, clock, truth):
    sessions = SessionStore(database)
    key, _ = keys.create("team", expires_s=DAY)
    secret, lasts_s = sessions.open(key)
    assert lasts_s == SESSION_S
    assert sessions.key_of(secret)[0] == key
    assert sessions.key_of(secret + "x")[0] is None
    short, _ = keys.create("team", expires_s=60)
    assert sessions.open(short)[1] == 60
    keys.revoke(key.id)
    found, now = sessions.key_of(secret)
    assert found is not None
    assert found.state(now) is KeyState.REVOKED
    sessions.close(secret)
    assert sessions.key_of(secret)[0] is None
    clock.now += 60
    # Those that are over go when the next one is opened.
    another, _ = sessions.open(keys.create("team")[0])
    assert len(truth.rows(sa.select(access_sessions))) == 1
    clock.now += SESSION_S
    assert sessions.key_of(another)[0] is None


# -- quotas -------------------------------------------------------------------------------------------------------


def add(batch_store, count: int, owner: str = "team") -> list[str]:
    batch_id, _ = batch_store.open_batch(owner, name="catalog")
    batch_store.add(owner, batch_id, [draft(n, f"{owner}{batch_id}{n}") for n in range(1, count + 1)])
    batch_store.seal(owner, batch_id)
    return [job.id for job in batch_store.jobs(owner, batch_id)]


def test_a_quota_is_set_read_changed_and_forgotten(database, clock):
    quotas = QuotaStore(database)
    assert quotas.quota("team") == NO_QUOTA
    first = OwnerQuota(queued_jobs=3, requests_minute=60)
    quotas.set("team", first)
    quotas.set("other", OwnerQuota(cost_month=2.5))
    assert quotas.quotas() == {"other": OwnerQuota(cost_month=2.5), "team": first}
    quotas.set("team", OwnerQuota(gpu_seconds_day=7))
    assert quotas.quota("team") == OwnerQuota(gpu_seconds_day=7)
    quotas.set("team", NO_QUOTA)
    assert list(quotas.quotas()) == ["other"]
    with pytest.raises(BadInputError):
        quotas.set("no owner", first)


def test_rows_that_wait_are_those_queued_and_held_of_one_owner(database, batch_store, dispatch_store, clock, truth):
    quotas = QuotaStore(database)
    first, *_ = add(batch_store, 4)
    add(batch_store, 9, "other")
    assert quotas.use("team").queued_jobs == 4
    claim_one(dispatch_store, batch_store.job("team", first))
    waits = truth.rows(sa.select(jobs.c.id).where(jobs.c.owner == "team", jobs.c.state.in_(["queued", "held"])))
    assert quotas.use("team").queued_jobs == len(waits) == 3
    quotas.set("team", OwnerQuota(queued_jobs=5))
    quotas.check("team", 2)
    with pytest.raises(QuotaExceededError, match="3 rows of team wait, and 5 may: 3 more"):
        quotas.check("team", 3)
    quotas.check("other", 1000)


def test_the_index_that_counts_waiting_rows_is_used(database, batch_store):
    add(batch_store, 3)
    query = "SELECT count(*) FROM (SELECT 1 FROM jobs WHERE owner = 'team' AND state IN ('queued', 'held') LIMIT 9) x"
    with database.engine.connect() as c:
        if database.is_sqlite:
            plan = " ".join(str(row) for row in c.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}"))
            assert "COVERING INDEX ix_jobs_owner_waits" in plan
        else:
            # On so few rows a server would read the table.
            c.exec_driver_sql("SET enable_seqscan = off")
            plan = " ".join(str(row) for row in c.exec_driver_sql(f"EXPLAIN {query}"))
            assert "ix_jobs_owner_waits" in plan


def test_what_was_used_is_counted_as_attempts_end_however_they_do(database, batch_store, dispatch_store, clock):
    clock.now = 20_000 * DAY + 100
    prices = {"test": 3600.0}
    quotas = QuotaStore(database, prices.__getitem__)
    first, second, third = add(batch_store, 3)
    claims = [claim_one(dispatch_store, batch_store.job("team", one)) for one in (first, second)]
    clock.now += 10
    ended = Lost()
    assert dispatch_store.finish(claims[0], ended, after_attempt(dispatch_store.current_job(claims[0]), ended, FLEET))
    # A day later: the month's money, not this day's seconds.
    clock.now += DAY
    done = completed(claims[1])
    assert dispatch_store.finish(claims[1], done, after_attempt(dispatch_store.current_job(claims[1]), done, FLEET))
    use = quotas.use("team")
    assert (use.gpu_seconds_day, use.cost_month) == (DAY + 10, DAY + 20)
    assert quotas.use("other").cost_month == 0
    clock.now += DAY
    assert quotas.use("team").gpu_seconds_day == 0
    quotas.set("team", OwnerQuota(cost_month=DAY + 20))
    with pytest.raises(QuotaExceededError, match="this month"):
        quotas.check("team", 1)
    clock.now += 31 * DAY
    quotas.check("team", 1)
    assert quotas.use("team").cost_month == 0
    assert third


def test_the_kept_seconds_are_those_of_the_attempts(database, batch_store, dispatch_store, clock):
    """Added up from the attempts, as nothing in the program does."""
    for seconds, owner in ((3, "team"), (50_000, "team"), (7, "other"), (90_000, "team")):
        (job_id,) = add(batch_store, 1, owner)
        claim = claim_one(dispatch_store, batch_store.job(owner, job_id))
        clock.now += seconds
        done = completed(claim)
        assert dispatch_store.finish(claim, done, after_attempt(dispatch_store.current_job(claim), done, FLEET))
        # The second of two ends counts for nothing.
        assert not dispatch_store.finish(claim, done, after_attempt(claim.job, done, FLEET))
    truth = Truth(database)
    kept = {(row.owner, row.day, row.kind): row.gpu_seconds for row in truth.rows(sa.select(owner_use))}
    expected: dict[tuple[str, int, str], float] = {}
    for row in truth.attempts():
        key = (row.owner, row.ended_at // DAY, row.kind)
        expected[key] = expected.get(key, 0) + row.ended_at - row.started_at
    assert kept == expected
    assert sum(kept.values()) == 3 + 50_000 + 7 + 90_000


def test_the_usual_scopes_are_those_of_a_program_that_hands_in(keys):
    assert keys.create("team")[0].scopes == USUAL_SCOPES == {Scope.SUBMIT, Scope.READ}
