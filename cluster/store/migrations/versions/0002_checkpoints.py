"""Checkpoints: where a job goes on, and from which attempt an attempt did."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Columns that SQLite can add in place: a table rebuilt would lose the indexes Alembic cannot reflect.
    op.add_column("jobs", sa.Column("checkpoint_key", sa.String(length=255), nullable=True))
    op.add_column("jobs", sa.Column("checkpoint_step", sa.Integer(), nullable=True))
    op.create_index(
        "ix_jobs_checkpointed",
        "jobs",
        ["state"],
        unique=False,
        sqlite_where=sa.text("checkpoint_key IS NOT NULL"),
        postgresql_where=sa.text("checkpoint_key IS NOT NULL"),
    )
    op.add_column("attempts", sa.Column("resumed_from", sa.String(length=64), nullable=True))
    op.add_column("attempts", sa.Column("resumed_step", sa.Integer(), nullable=False, server_default=sa.text("0")))


def downgrade() -> None:
    raise NotImplementedError("Checkpoints are not taken back: use the clipmill that wrote this database.")
