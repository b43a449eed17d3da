"""When it was told of a batch that its drafts wait for a review."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("batches", sa.Column("review_told_at", sa.BigInteger(), nullable=True))
    # What waited before anybody could ask to be told is no news.
    op.execute(
        "UPDATE batches SET review_told_at = created_at WHERE EXISTS (SELECT 1 FROM jobs"
        " WHERE jobs.batch_id = batches.id AND jobs.state = 'held' AND jobs.reason = 'review')"
    )


def downgrade() -> None:
    raise NotImplementedError("Use the clipmill that wrote this database.")
