"""Keys of the API with their sessions, quotas of owners and what they have used."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

WAITS = sa.text("state IN ('queued', 'held')")


def upgrade() -> None:
    op.create_table(
        "access_keys",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.Column("used_at", sa.BigInteger(), nullable=True),
        sa.Column("replaced_by", sa.String(length=32), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_access_keys")),
    )
    op.create_index("ix_access_keys_owner", "access_keys", ["owner"])
    op.create_table(
        "access_sessions",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("key_id", sa.String(length=32), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_access_sessions")),
        sa.ForeignKeyConstraint(["key_id"], ["access_keys.id"], name=op.f("fk_access_sessions_key_id")),
    )
    op.create_index("ix_access_sessions_expires", "access_sessions", ["expires_at"])
    op.create_table(
        "owner_quotas",
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.Column("queued_jobs", sa.BigInteger(), nullable=True),
        sa.Column("gpu_seconds_day", sa.Float(), nullable=True),
        sa.Column("cost_month", sa.Float(), nullable=True),
        sa.Column("requests_minute", sa.Integer(), nullable=True),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("owner", name=op.f("pk_owner_quotas")),
    )
    op.create_table(
        "owner_use",
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.Column("day", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("kind", sa.String(length=128), nullable=False),
        sa.Column("gpu_seconds", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("owner", "day", "kind", name=op.f("pk_owner_use")),
    )
    # What was used before: of as many attempts as there still are.
    op.execute(
        "INSERT INTO owner_use (owner, day, kind, gpu_seconds)"
        " SELECT owner, ended_at / 86400, kind, sum(ended_at - started_at) FROM attempts"
        " WHERE ended_at IS NOT NULL AND ended_at >= started_at GROUP BY owner, ended_at / 86400, kind"
    )
    op.create_index("ix_jobs_owner_waits", "jobs", ["owner"], sqlite_where=WAITS, postgresql_where=WAITS)


def downgrade() -> None:
    raise NotImplementedError("Keys are not taken back: use the clipmill that wrote this database.")
