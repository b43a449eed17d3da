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
    text,
)

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
    Index("ix_batches_owner_created", "owner", "created_at"),
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
    UniqueConstraint("batch_id", "number"),
    Index("ix_jobs_waiting", "state", text("priority DESC"), "created_at", "number"),
    Index("ix_jobs_batch_state", "batch_id", "state"),
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
    Index("ix_attempts_batch", "batch_id"),
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

#: What measured peaks say of predicted ones: `cluster.lessons`. One row a key, however many clips were rendered.
peaks = Table(
    "peaks",
    metadata,
    Column("family", String(64), primary_key=True),
    Column("resolution_class", String(16), primary_key=True),
    Column("frames", Integer, primary_key=True, autoincrement=False),
    Column("layout", String(255), primary_key=True),
    Column("dtype", String(16), primary_key=True),
    Column("kind", String(128), primary_key=True),
    # Of the coefficients that the factors compare with.
    Column("footprint", String(16), nullable=False),
    Column("count", Integer, nullable=False),
    Column("ooms", Integer, nullable=False),
    Column("largest", Float, nullable=False),
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
