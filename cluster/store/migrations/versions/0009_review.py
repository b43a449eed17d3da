"""Rounds of a clip and what was decided of it, clips of one row, and the class that an attempt rendered."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

OF_ROWS = sa.text("row_number IS NOT NULL")


def upgrade() -> None:
    op.add_column("jobs", sa.Column("review", sa.JSON(), nullable=True))
    op.add_column("jobs", sa.Column("rounds_left", sa.Integer(), nullable=False, server_default=sa.text("0")))
    op.add_column("jobs", sa.Column("row_number", sa.Integer(), nullable=True))
    op.add_column("jobs", sa.Column("picked", sa.Boolean(), nullable=True))
    op.create_index(
        "ix_jobs_row_number", "jobs", ["batch_id", "row_number"], sqlite_where=OF_ROWS, postgresql_where=OF_ROWS
    )
    op.create_index("ix_clips_attempt", "clips", ["attempt_id"])
    op.add_column("attempts", sa.Column("resolution_class", sa.String(length=16), nullable=True))
