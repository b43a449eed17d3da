"""What people can say of batches, jobs and cards: pause, approve, limits, what waits for what, orders about cards."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

LIMITED = sa.text("max_failures IS NOT NULL OR max_gpu_seconds IS NOT NULL OR max_cost IS NOT NULL")
WAITS = sa.text('"after" IS NOT NULL')
LEAVING = sa.text("hold_requested IS NOT NULL")


def upgrade() -> None:
    op.add_column("batches", sa.Column("held", sa.String(length=16), nullable=True))
    op.add_column("batches", sa.Column("needs_approval", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("batches", sa.Column("proof", sa.Integer(), nullable=False, server_default=sa.text("0")))
    op.add_column("batches", sa.Column("max_failures", sa.Integer(), nullable=True))
    op.add_column("batches", sa.Column("max_gpu_seconds", sa.Float(), nullable=True))
    op.add_column("batches", sa.Column("max_cost", sa.Float(), nullable=True))
    op.add_column("batches", sa.Column("comment", sa.Text(), nullable=True))
    op.create_index("ix_batches_limited", "batches", ["id"], sqlite_where=LIMITED, postgresql_where=LIMITED)
    op.add_column("jobs", sa.Column("hold_requested", sa.String(length=16), nullable=True))
    op.add_column("jobs", sa.Column("not_before", sa.BigInteger(), nullable=True))
    op.add_column("jobs", sa.Column("after", sa.Text(), nullable=True))
    op.create_index("ix_jobs_after", "jobs", ["after"], sqlite_where=WAITS, postgresql_where=WAITS)
    op.create_index("ix_jobs_leaving", "jobs", ["id"], sqlite_where=LEAVING, postgresql_where=LEAVING)
    op.add_column("attempts", sa.Column("kind", sa.String(length=128), nullable=False, server_default=sa.text("''")))
    op.drop_index("ix_attempts_batch", table_name="attempts")
    op.create_index("ix_attempts_batch_ended", "attempts", ["batch_id", "ended_at"])
    op.create_table(
        "card_orders",
        sa.Column("card", sa.String(length=128), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("given_by", sa.String(length=64), nullable=False),
        sa.Column("since", sa.BigInteger(), nullable=False),
        sa.Column("until", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("card", name=op.f("pk_card_orders")),
    )


def downgrade() -> None:
    raise NotImplementedError("What was held is not let go: use the clipmill that wrote this database.")
