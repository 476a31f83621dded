"""payments and two queues, without idempotency keys

Revision ID: 0001
Revises:
Create Date: 2026-11-02 10:00:00.000000

"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0001"
down_revision: str | Sequence[str] | None = None
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Upgrade schema."""
    op.create_table(
        "durable_mail_events",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("payload", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column(
            "emitted_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("statement_timestamp()"),
            nullable=False,
        ),
        sa.Column("settled_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("dropped", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        comment="sa_durable:mail:events",
    )
    op.create_index(
        op.f("ix_durable_mail_events_name"),
        "durable_mail_events",
        ["name", "id"],
        unique=False,
        postgresql_where=sa.text("NOT dropped"),
    )
    op.create_index(
        op.f("ix_durable_mail_events_settled"),
        "durable_mail_events",
        ["settled_at"],
        unique=False,
        postgresql_where=sa.text("settled_at IS NOT NULL"),
    )
    op.create_index(
        op.f("ix_durable_mail_events_unsettled"),
        "durable_mail_events",
        ["id"],
        unique=False,
        postgresql_where=sa.text("settled_at IS NULL"),
    )
    op.create_table(
        "durable_mail_tasks",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("params", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("headers", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column("state", sa.Text(), server_default="pending", nullable=False),
        sa.Column("priority", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column(
            "available_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("statement_timestamp()"),
            nullable=True,
        ),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("statement_timestamp()"),
            nullable=False,
        ),
        sa.Column("first_started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("attempt", sa.Integer(), server_default="1", nullable=False),
        sa.Column("max_attempts", sa.Integer(), server_default="5", nullable=True),
        sa.Column("retry", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("claimed_by", sa.Text(), nullable=True),
        sa.Column("token", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("result", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("error", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column("parent_queue", sa.Text(), nullable=True),
        sa.Column("parent_id", sa.Uuid(), nullable=True),
        sa.Column("awaited", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("max_duration", sa.Interval(), nullable=True),
        sa.Column("cancel_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "state IN ('pending', 'running', 'sleeping', 'completed', 'failed', 'cancelled')",
            name=op.f("ck_durable_mail_tasks_state"),
        ),
        sa.PrimaryKeyConstraint("id"),
        comment="sa_durable:mail:tasks",
    )
    op.create_index(
        op.f("ix_durable_mail_tasks_cancel"),
        "durable_mail_tasks",
        ["cancel_at"],
        unique=False,
        postgresql_where=sa.text("cancel_at IS NOT NULL AND state IN ('pending', 'running', 'sleeping')"),
    )
    op.create_index(
        op.f("ix_durable_mail_tasks_due"),
        "durable_mail_tasks",
        ["available_at"],
        unique=False,
        postgresql_where=sa.text("state = 'sleeping'"),
    )
    op.create_index(
        op.f("ix_durable_mail_tasks_finished"),
        "durable_mail_tasks",
        ["finished_at"],
        unique=False,
        postgresql_where=sa.text("finished_at IS NOT NULL"),
    )
    op.create_index(
        op.f("ix_durable_mail_tasks_parent"),
        "durable_mail_tasks",
        ["parent_id"],
        unique=False,
        postgresql_where=sa.text("parent_id IS NOT NULL"),
    )
    op.create_index(
        op.f("ix_durable_mail_tasks_ready"),
        "durable_mail_tasks",
        ["name", "priority", "available_at", "id"],
        unique=False,
        postgresql_where=sa.text("state = 'pending'"),
    )
    op.create_index(
        op.f("ix_durable_mail_tasks_running"),
        "durable_mail_tasks",
        ["id"],
        unique=False,
        postgresql_where=sa.text("state = 'running'"),
    )
    op.create_table(
        "durable_payments_events",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("payload", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column(
            "emitted_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("statement_timestamp()"),
            nullable=False,
        ),
        sa.Column("settled_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("dropped", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        comment="sa_durable:payments:events",
    )
    op.create_index(
        op.f("ix_durable_payments_events_name"),
        "durable_payments_events",
        ["name", "id"],
        unique=False,
        postgresql_where=sa.text("NOT dropped"),
    )
    op.create_index(
        op.f("ix_durable_payments_events_settled"),
        "durable_payments_events",
        ["settled_at"],
        unique=False,
        postgresql_where=sa.text("settled_at IS NOT NULL"),
    )
    op.create_index(
        op.f("ix_durable_payments_events_unsettled"),
        "durable_payments_events",
        ["id"],
        unique=False,
        postgresql_where=sa.text("settled_at IS NULL"),
    )
    op.create_table(
        "durable_queues",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("paused_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("retention", sa.Interval(), nullable=True),
        sa.Column("notify_until", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("name"),
        comment="sa_durable::queues",
    )
    op.create_table(
        "payments",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("amount", sa.Numeric(precision=12, scale=2), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "ledger",
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("payment_id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("amount", sa.Numeric(precision=12, scale=2), nullable=False),
        sa.ForeignKeyConstraint(["payment_id"], ["payments.id"]),
        sa.PrimaryKeyConstraint("event_id"),
    )
    op.create_table(
        "step_runs",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("step", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "durable_mail_checkpoints",
        sa.Column("task_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("statement_timestamp()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(["task_id"], ["durable_mail_tasks.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("task_id", "name"),
        comment="sa_durable:mail:checkpoints",
    )
    op.create_table(
        "durable_mail_runs",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("task_id", sa.Uuid(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("worker", sa.Text(), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "ended_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("statement_timestamp()"),
            nullable=False,
        ),
        sa.Column("error", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.CheckConstraint("state IN ('failed', 'cancelled')", name=op.f("ck_durable_mail_runs_state")),
        sa.ForeignKeyConstraint(["task_id"], ["durable_mail_tasks.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        comment="sa_durable:mail:runs",
    )
    op.create_index(
        op.f("uq_durable_mail_runs_attempt"), "durable_mail_runs", ["task_id", "attempt"], unique=True
    )
    op.create_table(
        "durable_mail_waits",
        sa.Column("task_id", sa.Uuid(), nullable=False),
        sa.Column("step", sa.Text(), nullable=False),
        sa.Column("event_name", sa.Text(), nullable=False),
        sa.Column("event_queue", sa.Text(), nullable=False),
        sa.Column("timeout_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("statement_timestamp()"),
            nullable=False,
        ),
        sa.Column("settled", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.ForeignKeyConstraint(["task_id"], ["durable_mail_tasks.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("task_id", "step", "event_name"),
        comment="sa_durable:mail:waits",
    )
    op.create_index(
        op.f("ix_durable_mail_waits_event"),
        "durable_mail_waits",
        ["event_queue", "event_name"],
        unique=False,
        postgresql_where=sa.text("NOT settled"),
    )
    op.create_index(
        op.f("ix_durable_mail_waits_settled"),
        "durable_mail_waits",
        ["task_id", "step"],
        unique=False,
        postgresql_where=sa.text("settled"),
    )
    op.create_table(
        "durable_payments_tasks",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("params", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("headers", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column("state", sa.Text(), server_default="pending", nullable=False),
        sa.Column("priority", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column(
            "available_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("statement_timestamp()"),
            nullable=True,
        ),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("statement_timestamp()"),
            nullable=False,
        ),
        sa.Column("first_started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("attempt", sa.Integer(), server_default="1", nullable=False),
        sa.Column("max_attempts", sa.Integer(), server_default="5", nullable=True),
        sa.Column("retry", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("claimed_by", sa.Text(), nullable=True),
        sa.Column("token", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("result", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("error", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column("parent_queue", sa.Text(), nullable=True),
        sa.Column("parent_id", sa.Uuid(), nullable=True),
        sa.Column("awaited", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("max_duration", sa.Interval(), nullable=True),
        sa.Column("cancel_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("payment_id", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "state IN ('pending', 'running', 'sleeping', 'completed', 'failed', 'cancelled')",
            name=op.f("ck_durable_payments_tasks_state"),
        ),
        sa.ForeignKeyConstraint(["payment_id"], ["payments.id"]),
        sa.PrimaryKeyConstraint("id"),
        comment="sa_durable:payments:tasks",
    )
    op.create_index(
        op.f("ix_durable_payments_tasks_cancel"),
        "durable_payments_tasks",
        ["cancel_at"],
        unique=False,
        postgresql_where=sa.text("cancel_at IS NOT NULL AND state IN ('pending', 'running', 'sleeping')"),
    )
    op.create_index(
        op.f("ix_durable_payments_tasks_due"),
        "durable_payments_tasks",
        ["available_at"],
        unique=False,
        postgresql_where=sa.text("state = 'sleeping'"),
    )
    op.create_index(
        op.f("ix_durable_payments_tasks_finished"),
        "durable_payments_tasks",
        ["finished_at"],
        unique=False,
        postgresql_where=sa.text("finished_at IS NOT NULL"),
    )
    op.create_index(
        op.f("ix_durable_payments_tasks_parent"),
        "durable_payments_tasks",
        ["parent_id"],
        unique=False,
        postgresql_where=sa.text("parent_id IS NOT NULL"),
    )
    op.create_index(
        op.f("ix_durable_payments_tasks_ready"),
        "durable_payments_tasks",
        ["name", "priority", "available_at", "id"],
        unique=False,
        postgresql_where=sa.text("state = 'pending'"),
    )
    op.create_index(
        op.f("ix_durable_payments_tasks_running"),
        "durable_payments_tasks",
        ["id"],
        unique=False,
        postgresql_where=sa.text("state = 'running'"),
    )
    op.create_table(
        "durable_payments_checkpoints",
        sa.Column("task_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("statement_timestamp()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(["task_id"], ["durable_payments_tasks.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("task_id", "name"),
        comment="sa_durable:payments:checkpoints",
    )
    op.create_table(
        "durable_payments_runs",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("task_id", sa.Uuid(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("worker", sa.Text(), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "ended_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("statement_timestamp()"),
            nullable=False,
        ),
        sa.Column("error", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.CheckConstraint("state IN ('failed', 'cancelled')", name=op.f("ck_durable_payments_runs_state")),
        sa.ForeignKeyConstraint(["task_id"], ["durable_payments_tasks.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        comment="sa_durable:payments:runs",
    )
    op.create_index(
        op.f("uq_durable_payments_runs_attempt"), "durable_payments_runs", ["task_id", "attempt"], unique=True
    )
    op.create_table(
        "durable_payments_waits",
        sa.Column("task_id", sa.Uuid(), nullable=False),
        sa.Column("step", sa.Text(), nullable=False),
        sa.Column("event_name", sa.Text(), nullable=False),
        sa.Column("event_queue", sa.Text(), nullable=False),
        sa.Column("timeout_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("statement_timestamp()"),
            nullable=False,
        ),
        sa.Column("settled", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.ForeignKeyConstraint(["task_id"], ["durable_payments_tasks.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("task_id", "step", "event_name"),
        comment="sa_durable:payments:waits",
    )
    op.create_index(
        op.f("ix_durable_payments_waits_event"),
        "durable_payments_waits",
        ["event_queue", "event_name"],
        unique=False,
        postgresql_where=sa.text("NOT settled"),
    )
    op.create_index(
        op.f("ix_durable_payments_waits_settled"),
        "durable_payments_waits",
        ["task_id", "step"],
        unique=False,
        postgresql_where=sa.text("settled"),
    )


def downgrade() -> None:
    """Downgrade schema."""
    op.drop_index(
        op.f("ix_durable_payments_waits_settled"),
        table_name="durable_payments_waits",
        postgresql_where=sa.text("settled"),
    )
    op.drop_index(
        op.f("ix_durable_payments_waits_event"),
        table_name="durable_payments_waits",
        postgresql_where=sa.text("NOT settled"),
    )
    op.drop_table("durable_payments_waits")
    op.drop_index(op.f("uq_durable_payments_runs_attempt"), table_name="durable_payments_runs")
    op.drop_table("durable_payments_runs")
    op.drop_table("durable_payments_checkpoints")
    op.drop_index(
        op.f("ix_durable_payments_tasks_running"),
        table_name="durable_payments_tasks",
        postgresql_where=sa.text("state = 'running'"),
    )
    op.drop_index(
        op.f("ix_durable_payments_tasks_ready"),
        table_name="durable_payments_tasks",
        postgresql_where=sa.text("state = 'pending'"),
    )
    op.drop_index(
        op.f("ix_durable_payments_tasks_parent"),
        table_name="durable_payments_tasks",
        postgresql_where=sa.text("parent_id IS NOT NULL"),
    )
    op.drop_index(
        op.f("ix_durable_payments_tasks_finished"),
        table_name="durable_payments_tasks",
        postgresql_where=sa.text("finished_at IS NOT NULL"),
    )
    op.drop_index(
        op.f("ix_durable_payments_tasks_due"),
        table_name="durable_payments_tasks",
        postgresql_where=sa.text("state = 'sleeping'"),
    )
    op.drop_index(
        op.f("ix_durable_payments_tasks_cancel"),
        table_name="durable_payments_tasks",
        postgresql_where=sa.text("cancel_at IS NOT NULL AND state IN ('pending', 'running', 'sleeping')"),
    )
    op.drop_table("durable_payments_tasks")
    op.drop_index(
        op.f("ix_durable_mail_waits_settled"),
        table_name="durable_mail_waits",
        postgresql_where=sa.text("settled"),
    )
    op.drop_index(
        op.f("ix_durable_mail_waits_event"),
        table_name="durable_mail_waits",
        postgresql_where=sa.text("NOT settled"),
    )
    op.drop_table("durable_mail_waits")
    op.drop_index(op.f("uq_durable_mail_runs_attempt"), table_name="durable_mail_runs")
    op.drop_table("durable_mail_runs")
    op.drop_table("durable_mail_checkpoints")
    op.drop_table("step_runs")
    op.drop_table("ledger")
    op.drop_table("payments")
    op.drop_table("durable_queues")
    op.drop_index(
        op.f("ix_durable_payments_events_unsettled"),
        table_name="durable_payments_events",
        postgresql_where=sa.text("settled_at IS NULL"),
    )
    op.drop_index(
        op.f("ix_durable_payments_events_settled"),
        table_name="durable_payments_events",
        postgresql_where=sa.text("settled_at IS NOT NULL"),
    )
    op.drop_index(
        op.f("ix_durable_payments_events_name"),
        table_name="durable_payments_events",
        postgresql_where=sa.text("NOT dropped"),
    )
    op.drop_table("durable_payments_events")
    op.drop_index(
        op.f("ix_durable_mail_tasks_running"),
        table_name="durable_mail_tasks",
        postgresql_where=sa.text("state = 'running'"),
    )
    op.drop_index(
        op.f("ix_durable_mail_tasks_ready"),
        table_name="durable_mail_tasks",
        postgresql_where=sa.text("state = 'pending'"),
    )
    op.drop_index(
        op.f("ix_durable_mail_tasks_parent"),
        table_name="durable_mail_tasks",
        postgresql_where=sa.text("parent_id IS NOT NULL"),
    )
    op.drop_index(
        op.f("ix_durable_mail_tasks_finished"),
        table_name="durable_mail_tasks",
        postgresql_where=sa.text("finished_at IS NOT NULL"),
    )
    op.drop_index(
        op.f("ix_durable_mail_tasks_due"),
        table_name="durable_mail_tasks",
        postgresql_where=sa.text("state = 'sleeping'"),
    )
    op.drop_index(
        op.f("ix_durable_mail_tasks_cancel"),
        table_name="durable_mail_tasks",
        postgresql_where=sa.text("cancel_at IS NOT NULL AND state IN ('pending', 'running', 'sleeping')"),
    )
    op.drop_table("durable_mail_tasks")
    op.drop_index(
        op.f("ix_durable_mail_events_unsettled"),
        table_name="durable_mail_events",
        postgresql_where=sa.text("settled_at IS NULL"),
    )
    op.drop_index(
        op.f("ix_durable_mail_events_settled"),
        table_name="durable_mail_events",
        postgresql_where=sa.text("settled_at IS NOT NULL"),
    )
    op.drop_index(
        op.f("ix_durable_mail_events_name"),
        table_name="durable_mail_events",
        postgresql_where=sa.text("NOT dropped"),
    )
    op.drop_table("durable_mail_events")
