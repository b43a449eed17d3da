"""Webhooks, the secrets that sign their messages, and messages on their way."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

UNTOLD = sa.text("end_told_at IS NULL")
PENDING = sa.text("state = 'pending'")
LEASED = sa.text("lease IS NOT NULL")


def upgrade() -> None:
    op.add_column("batches", sa.Column("webhook_url", sa.Text(), nullable=True))
    op.add_column("batches", sa.Column("end_told_at", sa.BigInteger(), nullable=True))
    op.add_column("batches", sa.Column("failure_told_at", sa.BigInteger(), nullable=True))
    # What was over before anybody could register is no news.
    op.execute(
        "UPDATE batches SET end_told_at = created_at WHERE sealed AND NOT EXISTS (SELECT 1 FROM jobs"
        " WHERE jobs.batch_id = batches.id AND jobs.state IN ('queued', 'running', 'held'))"
    )
    op.execute(
        "UPDATE batches SET failure_told_at = created_at WHERE EXISTS (SELECT 1 FROM jobs"
        " WHERE jobs.batch_id = batches.id AND jobs.state = 'failed')"
    )
    op.create_index("ix_batches_untold", "batches", ["id"], sqlite_where=UNTOLD, postgresql_where=UNTOLD)
    op.create_table(
        "webhooks",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("events", sa.JSON(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("disabled_at", sa.BigInteger(), nullable=True),
        sa.Column("disabled_why", sa.Text(), nullable=True),
        sa.Column("delivered_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhooks")),
    )
    op.create_index("ix_webhooks_owner", "webhooks", ["owner"])
    op.create_table(
        "webhook_secrets",
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.Column("secret", sa.String(length=128), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("previous", sa.String(length=128), nullable=True),
        sa.Column("previous_until", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("owner", name=op.f("pk_webhook_secrets")),
    )
    op.create_table(
        "webhook_deliveries",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("event_id", sa.String(length=64), nullable=False),
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.Column("type", sa.String(length=32), nullable=False),
        sa.Column("subject", sa.String(length=64), nullable=False),
        sa.Column("webhook_id", sa.String(length=64), nullable=True),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("takes", sa.Integer(), nullable=False),
        sa.Column("next_at", sa.BigInteger(), nullable=False),
        sa.Column("lease", sa.String(length=64), nullable=True),
        sa.Column("last_at", sa.BigInteger(), nullable=True),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("delivered_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_deliveries")),
    )
    due, leased = "ix_webhook_deliveries_due", "ix_webhook_deliveries_leased"
    op.create_index(due, "webhook_deliveries", ["next_at"], sqlite_where=PENDING, postgresql_where=PENDING)
    op.create_index(leased, "webhook_deliveries", ["id"], sqlite_where=LEASED, postgresql_where=LEASED)
    op.create_index("ix_webhook_deliveries_owner", "webhook_deliveries", ["owner", "id"])


def downgrade() -> None:
    raise NotImplementedError("Messages on their way are not taken back: use the clipmill that wrote this database.")
