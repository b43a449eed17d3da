"""Measured peaks: what they say of predicted ones."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "peaks",
        sa.Column("family", sa.String(length=64), nullable=False),
        sa.Column("resolution_class", sa.String(length=16), nullable=False),
        sa.Column("frames", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("layout", sa.String(length=255), nullable=False),
        sa.Column("dtype", sa.String(length=16), nullable=False),
        sa.Column("kind", sa.String(length=128), nullable=False),
        sa.Column("footprint", sa.String(length=16), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("ooms", sa.Integer(), nullable=False),
        sa.Column("largest", sa.Float(), nullable=False),
        sa.Column("recent", sa.JSON(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint(
            "family", "resolution_class", "frames", "layout", "dtype", "kind", name=op.f("pk_peaks")
        ),
    )


def downgrade() -> None:
    raise NotImplementedError("What was learned is not taken back: use the clipmill that wrote this database.")
