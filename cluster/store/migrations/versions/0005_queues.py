"""Waiting jobs by queue and lane, clips that expire, batches that know how many rows they have."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

QUEUE = ["owner", "family", "resolution_class", "needs_bytes", "priority", "created_at", "number"]
QUEUED = sa.text("state = 'queued' AND not_before IS NULL")
TIMED = sa.text("state = 'queued' AND not_before IS NOT NULL")
HELD = sa.text("held IS NOT NULL")
KEPT = sa.text("expired_at IS NULL")


def upgrade() -> None:
    op.add_column("jobs", sa.Column("lane", sa.String(length=64), nullable=False, server_default=sa.text("''")))
    op.execute(
        "UPDATE jobs SET lane = batch_id WHERE number > 16"
        " OR batch_id IN (SELECT id FROM batches WHERE attended_until IS NOT NULL)"
    )
    op.drop_index("ix_jobs_waiting", table_name="jobs")
    op.create_index("ix_jobs_state", "jobs", ["state"])
    op.create_index("ix_jobs_queues", "jobs", ["lane", *QUEUE], sqlite_where=QUEUED, postgresql_where=QUEUED)
    op.create_index("ix_jobs_timed", "jobs", ["lane", "not_before", *QUEUE], sqlite_where=TIMED, postgresql_where=TIMED)
    op.add_column("batches", sa.Column("rows_sealed", sa.Integer(), nullable=True))
    op.execute(
        "UPDATE batches SET rows_sealed = (SELECT count(*) FROM jobs WHERE jobs.batch_id = batches.id) WHERE sealed"
    )
    op.create_index("ix_batches_held", "batches", ["id"], sqlite_where=HELD, postgresql_where=HELD)
    op.add_column("clips", sa.Column("expired_at", sa.BigInteger(), nullable=True))
    op.create_index("ix_clips_kept", "clips", ["created_at", "id"], sqlite_where=KEPT, postgresql_where=KEPT)


def downgrade() -> None:
    raise NotImplementedError("What has expired is gone: use the clipmill that wrote this database.")
