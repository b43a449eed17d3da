"""The tables. Owner is part of every row; times are UTC epoch seconds of the store's own clock."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
    text,
)

from cluster.jobs.model import QUEUE_BY

#: Condition on a row of `batches`: the batch can stop by itself.
LIMITED = "max_failures IS NOT NULL OR max_gpu_seconds IS NOT NULL OR max_cost IS NOT NULL"

#: Condition on a row of `batches`: its end was not told yet.
UNTOLD = "end_told_at IS NULL"

#: What queues are told apart by, then the order of their jobs.
QUEUE = (*QUEUE_BY, "created_at", "number")
#: Condition on a row of `jobs`: it waits. A query counts by its index where it says exactly so.
WAITS = "state IN ('queued', 'held')"
_QUEUED = "state = 'queued' AND not_before IS NULL"
_TIMED = "state = 'queued' AND not_before IS NOT NULL"
_PENDING = "state = 'pending'"
_LEASED = "lease IS NOT NULL"

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

#: Stills already checked: content hash to upright size, so that a second ingest decodes nothing.
stills = Table(
    "stills",
    metadata,
    Column("owner", String(64), primary_key=True),
    Column("sha256", String(64), primary_key=True),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("created_at", BigInteger, nullable=False),
)

batches = Table(
    "batches",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("owner", String(64), nullable=False),
    Column("name", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("sealed", Boolean, nullable=False),
    # NULL: detached, rendered whether anybody waits or not.
    Column("attended_until", BigInteger, nullable=True),
    # Why nothing of it starts (`paused`, `failures`, `budget`); NULL: it may. A flag, so that pausing a million rows
    # writes one. Its queued jobs are shown as held.
    Column("held", String(16), nullable=True),
    # Rows wait for an approval, all but the first `proof`.
    Column("needs_approval", Boolean, nullable=False, server_default=false()),
    Column("proof", Integer, nullable=False, server_default=text("0")),
    # Where it stops by itself; NULL: nowhere. Money in the unit of the table of rates.
    Column("max_failures", Integer, nullable=True),
    Column("max_gpu_seconds", Float, nullable=True),
    Column("max_cost", Float, nullable=True),
    Column("comment", Text, nullable=True),
    # How many rows it had when all were in.
    Column("rows_sealed", Integer, nullable=True),
    # Where its events are sent, besides its owner's webhooks.
    Column("webhook_url", Text, nullable=True),
    # When its end, its first failure, and that its drafts wait became events or were passed over; NULL: that is still
    # to come (`cluster.store.webhooks.telling`).
    Column("end_told_at", BigInteger, nullable=True),
    Column("failure_told_at", BigInteger, nullable=True),
    Column("review_told_at", BigInteger, nullable=True),
    Index("ix_batches_owner_created", "owner", "created_at"),
    Index("ix_batches_held", "id", sqlite_where=text("held IS NOT NULL"), postgresql_where=text("held IS NOT NULL")),
    # What the dispatcher looks at once a second: the few that can stop by themselves.
    Index(
        "ix_batches_limited",
        "id",
        sqlite_where=text(LIMITED),
        postgresql_where=text(LIMITED),
    ),
    # What is looked at for events: those that have not ended, or just have.
    Index("ix_batches_untold", "id", sqlite_where=text(UNTOLD), postgresql_where=text(UNTOLD)),
)

#: A finished clip. Jobs point here, so that equal rows of one owner share it.
clips = Table(
    "clips",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("owner", String(64), nullable=False),
    Column("content_key", String(64), nullable=False),
    Column("attempt_id", String(64), nullable=False),
    Column("objects", JSON, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    # Its objects were deleted because they were old; an equal clip rendered later takes its place.
    Column("expired_at", BigInteger, nullable=True),
    Index(
        "ix_clips_kept",
        "created_at",
        "id",
        sqlite_where=text("expired_at IS NULL"),
        postgresql_where=text("expired_at IS NULL"),
    ),
    # Which of an attempt's objects are still shown.
    Index("ix_clips_attempt", "attempt_id"),
    UniqueConstraint("owner", "content_key"),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("owner", String(64), nullable=False),
    Column("batch_id", ForeignKey("batches.id"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("name", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", String(32), nullable=True),
    Column("problems", JSON, nullable=False),
    Column("row", JSON, nullable=False),
    Column("still", String(64), nullable=True),
    Column("spec", JSON, nullable=True),
    Column("content_key", String(64), nullable=True),
    Column("family", String(64), nullable=False),
    Column("resolution_class", String(16), nullable=False),
    Column("needs_bytes", BigInteger, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("releases", Integer, nullable=False),
    Column("fence", Integer, nullable=False),
    Column("cancel_requested", Boolean, nullable=False),
    Column("clip_id", ForeignKey("clips.id"), nullable=True),
    # Both or neither. On a job that has ended: its objects are still to be deleted.
    Column("checkpoint_key", String(255), nullable=True),
    Column("checkpoint_step", Integer, nullable=True),
    # Of a running job: why it is held once its attempt has saved a checkpoint and stopped.
    Column("hold_requested", String(16), nullable=True),
    # It does not start before this time.
    Column("not_before", BigInteger, nullable=True),
    # Id of the job it waits for; until its batch is sealed, what the manifest calls it.
    Column("after", Text, nullable=True),
    UniqueConstraint("batch_id", "number"),
    # The rounds of a clip that is reviewed, and what was decided of it; NULL: it has one only, and nothing was.
    Column("review", JSON(none_as_null=True), nullable=True),
    # Rounds to come after this one; more than none: what it renders is a draft.
    Column("rounds_left", Integer, nullable=False, server_default=text("0")),
    # Number of the manifest's row, where that asks for several clips; NULL: this is its only one.
    Column("row_number", Integer, nullable=True),
    # Whether it was chosen of those of its row; NULL: nothing was said.
    Column("picked", Boolean, nullable=True),
    # Where it waits: its batch, or the common lane of the first few rows of detached batches (`cluster.store.queues`).
    Column("lane", String(64), nullable=False, server_default=text("''")),
    Index("ix_jobs_state", "state"),
    Index("ix_jobs_queues", "lane", *QUEUE, sqlite_where=text(_QUEUED), postgresql_where=text(_QUEUED)),
    Index("ix_jobs_timed", "lane", "not_before", *QUEUE, sqlite_where=text(_TIMED), postgresql_where=text(_TIMED)),
    Index("ix_jobs_batch_state", "batch_id", "state"),
    # How many rows of an owner wait, which a quota may limit.
    Index("ix_jobs_owner_waits", "owner", "state", sqlite_where=text(WAITS), postgresql_where=text(WAITS)),
    # The guarantee that no clip is rendered twice at once, kept by the store itself.
    Index(
        "uq_jobs_running_content",
        "owner",
        "content_key",
        unique=True,
        sqlite_where=text("state = 'running'"),
        postgresql_where=text("state = 'running'"),
    ),
    Index("ix_jobs_content", "owner", "content_key"),
    Index(
        "ix_jobs_after",
        "after",
        sqlite_where=text('"after" IS NOT NULL'),
        postgresql_where=text('"after" IS NOT NULL'),
    ),
    # Clips of one row of a manifest.
    Index(
        "ix_jobs_row_number",
        "batch_id",
        "row_number",
        sqlite_where=text("row_number IS NOT NULL"),
        postgresql_where=text("row_number IS NOT NULL"),
    ),
    # Requests to running jobs, read at every renewal of leases.
    Index(
        "ix_jobs_leaving",
        "id",
        sqlite_where=text("hold_requested IS NOT NULL"),
        postgresql_where=text("hold_requested IS NOT NULL"),
    ),
    Index(
        "ix_jobs_checkpointed",
        "state",
        sqlite_where=text("checkpoint_key IS NOT NULL"),
        postgresql_where=text("checkpoint_key IS NOT NULL"),
    ),
)

attempts = Table(
    "attempts",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("owner", String(64), nullable=False),
    Column("job_id", ForeignKey("jobs.id"), nullable=False),
    Column("batch_id", ForeignKey("batches.id"), nullable=False),
    Column("fence", Integer, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("renderer", String(128), nullable=False),
    Column("card", String(128), nullable=False),
    Column("card_class", String(16), nullable=False),
    # Class of the clip that it renders, which a job has another of in its next round; NULL: the job's.
    Column("resolution_class", String(16), nullable=True),
    # Card kind, which prices are for; empty in attempts of earlier versions.
    Column("kind", String(128), nullable=False, server_default=text("''")),
    # NULL while running.
    Column("outcome", String(16), nullable=True),
    Column("started_at", BigInteger, nullable=False),
    Column("lease_until", BigInteger, nullable=False),
    Column("ended_at", BigInteger, nullable=True),
    Column("step", Integer, nullable=False),
    Column("steps", Integer, nullable=False),
    Column("predicted_bytes", BigInteger, nullable=False),
    Column("measured_bytes", BigInteger, nullable=False),
    Column("detail", Text, nullable=False),
    # The attempt whose checkpoint it goes on from, and the step it stands at.
    Column("resumed_from", String(64), nullable=True),
    Column("resumed_step", Integer, nullable=False, server_default=text("0")),
    UniqueConstraint("job_id", "fence"),
    Index(
        "ix_attempts_running",
        "lease_until",
        sqlite_where=text("outcome IS NULL"),
        postgresql_where=text("outcome IS NULL"),
    ),
    # By its end, so that what a batch has used is added up from where the last look ended.
    Index("ix_attempts_batch_ended", "batch_id", "ended_at"),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("owner", String(64), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("fingerprint", String(64), nullable=False),
    Column("batch_id", ForeignKey("batches.id"), nullable=False),
    Column("created_at", BigInteger, nullable=False),
)

#: Counters, incremented in the transaction that makes them true, so that retention never makes one fall.
tallies = Table(
    "tallies",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("model", String(64), primary_key=True),
    Column("resolution_class", String(16), primary_key=True),
    Column("card_class", String(16), primary_key=True),
    Column("outcome", String(32), primary_key=True),
    Column("value", Float, nullable=False),
)

#: `cluster.estimates.memory.MemoryMeasurements`: one row a key, however many clips were rendered.
peaks = Table(
    "peaks",
    metadata,
    Column("family", String(64), primary_key=True),
    Column("resolution_class", String(16), primary_key=True),
    Column("frames", Integer, primary_key=True, autoincrement=False),
    Column("layout", String(255), primary_key=True),
    Column("dtype", String(16), primary_key=True),
    Column("kind", String(128), primary_key=True),
    # Hash of the coefficients that the ratios compare with.
    Column("footprint", String(16), nullable=False),
    Column("count", Integer, nullable=False),
    Column("ooms", Integer, nullable=False),
    Column("largest", Float, nullable=False),
    Column("recent", JSON, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
)

#: `cluster.estimates.times.TimeMeasurements`: one row a key, however many clips were rendered.
rates = Table(
    "rates",
    metadata,
    Column("part", String(16), primary_key=True),
    Column("family", String(64), primary_key=True),
    # These are empty where the part is the same for every clip of the family.
    Column("resolution_class", String(16), primary_key=True),
    Column("frames", Integer, primary_key=True, autoincrement=False),
    Column("pixels", Integer, primary_key=True, autoincrement=False),
    Column("layout", String(255), primary_key=True),
    Column("kind", String(128), primary_key=True),
    # Hash of what the expected times follow from.
    Column("prior", String(16), nullable=False),
    Column("count", Integer, nullable=False),
    Column("recent", JSON, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
)

#: One row: the epoch of the dispatcher in office. A write under another epoch is refused.
dispatcher = Table(
    "dispatcher",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("epoch", BigInteger, nullable=False),
    Column("holder", String(128), nullable=False),
    Column("since", BigInteger, nullable=False),
)

#: The roster as the dispatcher last heard it, so that any gateway can answer `GET /v1/cards`.
cards = Table(
    "cards",
    metadata,
    Column("renderer", String(128), primary_key=True),
    Column("beat", JSON, nullable=False),
    Column("seen_at", BigInteger, nullable=False),
)

#: URLs that an owner's events are sent to.
webhooks = Table(
    "webhooks",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("owner", String(64), nullable=False),
    Column("url", Text, nullable=False),
    # Types of events that it is told of; empty: all.
    Column("events", JSON, nullable=False),
    Column("description", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("disabled_at", BigInteger, nullable=True),
    Column("disabled_why", Text, nullable=True),
    # When it last took a message.
    Column("delivered_at", BigInteger, nullable=True),
    Index("ix_webhooks_owner", "owner"),
)

#: What an owner's messages are signed with. As text: whoever signs needs it.
webhook_secrets = Table(
    "webhook_secrets",
    metadata,
    Column("owner", String(64), primary_key=True),
    Column("secret", String(128), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    # The secret before, which signs as well until then.
    Column("previous", String(128), nullable=True),
    Column("previous_until", BigInteger, nullable=True),
)

#: The outbox: messages of events, each to one URL.
webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("event_id", String(64), nullable=False),
    Column("owner", String(64), nullable=False),
    Column("type", String(32), nullable=False),
    # The batch or video that it is about.
    Column("subject", String(64), nullable=False),
    # NULL: the URL was given with the batch.
    Column("webhook_id", String(64), nullable=True),
    Column("url", Text, nullable=False),
    Column("payload", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    # `pending`, `delivered` or `failed`.
    Column("state", String(16), nullable=False),
    Column("attempts", Integer, nullable=False),
    # How often a sender took it, those that died before they could say how it went among them.
    Column("takes", Integer, nullable=False),
    # When it is tried next; of one that is being sent: when its sender is taken for dead.
    Column("next_at", BigInteger, nullable=False),
    # Names the attempt that is being made: only that one may say how it went.
    Column("lease", String(64), nullable=True),
    Column("last_at", BigInteger, nullable=True),
    Column("status", Integer, nullable=True),
    Column("error", Text, nullable=True),
    Column("delivered_at", BigInteger, nullable=True),
    Index("ix_webhook_deliveries_due", "next_at", sqlite_where=text(_PENDING), postgresql_where=text(_PENDING)),
    # The few that are being sent.
    Index("ix_webhook_deliveries_leased", "id", sqlite_where=text(_LEASED), postgresql_where=text(_LEASED)),
    Index("ix_webhook_deliveries_owner", "owner", "id"),
)

#: Orders of people (or a breaker) about cards; one a card, the last one counts. A card without a row is free.
card_orders = Table(
    "card_orders",
    metadata,
    Column("card", String(128), primary_key=True),
    # `lock`, `drain` or `quarantine`.
    Column("kind", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("given_by", String(64), nullable=False),
    Column("since", BigInteger, nullable=False),
    # NULL: until somebody releases it.
    Column("until", BigInteger, nullable=True),
)

#: Keys of the API; of a key's text there is a hash only. A row stays when the key is revoked.
access_keys = Table(
    "access_keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("owner", String(64), nullable=False),
    # For people.
    Column("name", Text, nullable=False),
    Column("scopes", JSON, nullable=False),
    # SHA-256 of the whole text, in hex digits.
    Column("digest", String(64), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    # NULL: never.
    Column("expires_at", BigInteger, nullable=True),
    Column("revoked_at", BigInteger, nullable=True),
    # Written at most once an hour.
    Column("used_at", BigInteger, nullable=True),
    # The key that was made in its place.
    Column("replaced_by", String(32), nullable=True),
    Index("ix_access_keys_owner", "owner"),
)

#: Sessions of browsers, each opened by a key and over when the key is.
access_sessions = Table(
    "access_sessions",
    metadata,
    # SHA-256 of the cookie's value, in hex digits.
    Column("digest", String(64), primary_key=True),
    Column("key_id", ForeignKey("access_keys.id"), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Index("ix_access_sessions_expires", "expires_at"),
)

#: What an owner may hand in; NULL: as much as they like. An owner without a row has no quota.
owner_quotas = Table(
    "owner_quotas",
    metadata,
    Column("owner", String(64), primary_key=True),
    Column("queued_jobs", BigInteger, nullable=True),
    Column("gpu_seconds_day", Float, nullable=True),
    Column("cost_month", Float, nullable=True),
    Column("requests_minute", Integer, nullable=True),
    Column("updated_at", BigInteger, nullable=False),
)

#: Seconds between start and end of owners' attempts, kept in the transaction that ends them, so that no look at a
#: quota adds up attempts. `day` is of their end, in days since the epoch (UTC); `kind` is a card's, as prices are for.
owner_use = Table(
    "owner_use",
    metadata,
    Column("owner", String(64), primary_key=True),
    Column("day", Integer, primary_key=True, autoincrement=False),
    Column("kind", String(128), primary_key=True),
    Column("gpu_seconds", Float, nullable=False),
)
