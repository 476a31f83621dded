"""idempotency keys for every queue

Run it before the deploy: workers and spawners of the old release continue during the migration and after it. It
commits step by step. After an interruption, run it again.

Revision ID: 0002
Revises: 0001
Create Date: 2026-11-09 10:00:00.000000

"""

from collections.abc import Sequence

from alembic import op

import sa_durable.alembic  # noqa: F401 - op.durable_add_key

revision: str = "0002"
down_revision: str | Sequence[str] | None = "0001"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Upgrade schema."""
    op.durable_add_key(source="headers->>'idempotency_key'")


def downgrade() -> None:
    """Downgrade schema."""
    op.durable_drop_key()
