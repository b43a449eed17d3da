"""Measured times: what they say of expected ones."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "rates",
        sa.Column("part", sa.String(length=16), nullable=False),
        sa.Column("family", sa.String(length=64), nullable=False),
        sa.Column("resolution_class", sa.String(length=16), nullable=False),
        sa.Column("frames", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("pixels", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("layout", sa.String(length=255), nullable=False),
        sa.Column("kind", sa.String(length=128), nullable=False),
        sa.Column("prior", sa.String(length=16), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("recent", sa.JSON(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint(
            "part", "family", "resolution_class", "frames", "pixels", "layout", "kind", name=op.f("pk_rates")
        ),
    )


def downgrade() -> None:
    raise NotImplementedError("What was measured is not taken back: use the clipmill that wrote this database.")
