"""The tables of the two reference systems, with the columns that they have there."""

from __future__ import annotations

from sa_durable.alembic.importing.references import System

_EXTRA = {
    System.DURABLE: ("parent_task_id uuid", ""),
    System.ABSURD: ("idempotency_key text UNIQUE", ", status text NOT NULL DEFAULT 'committed'"),
}


def tables(system: System, queue: str) -> list[str]:
    """Statements that make a schema, and the tables of a queue in it."""
    s = system.value
    task, checkpoint = _EXTRA[system]
    return [
        f"CREATE SCHEMA {s}",
        f"""CREATE TABLE {s}.t_{queue} (
            task_id uuid PRIMARY KEY, task_name text NOT NULL, params jsonb NOT NULL, headers jsonb,
            retry_strategy jsonb, max_attempts integer, cancellation jsonb, {task},
            enqueue_at timestamptz NOT NULL DEFAULT now(), first_started_at timestamptz, state text NOT NULL,
            attempts integer NOT NULL DEFAULT 1, last_attempt_run uuid, completed_payload jsonb, cancelled_at timestamptz)""",
        f"""CREATE TABLE {s}.r_{queue} (
            run_id uuid PRIMARY KEY, task_id uuid NOT NULL, attempt integer NOT NULL, state text NOT NULL,
            claimed_by text, claim_expires_at timestamptz, available_at timestamptz NOT NULL DEFAULT now(),
            wake_event text, event_payload jsonb, started_at timestamptz, completed_at timestamptz,
            failed_at timestamptz, result jsonb, failure_reason jsonb, created_at timestamptz NOT NULL DEFAULT now())""",
        f"""CREATE TABLE {s}.c_{queue} (
            task_id uuid, checkpoint_name text, state jsonb, owner_run_id uuid,
            updated_at timestamptz NOT NULL DEFAULT now(){checkpoint}, PRIMARY KEY (task_id, checkpoint_name))""",
        f"""CREATE TABLE {s}.e_{queue} (
            event_name text PRIMARY KEY, payload jsonb, emitted_at timestamptz NOT NULL DEFAULT now())""",
        f"""CREATE TABLE {s}.w_{queue} (
            task_id uuid, run_id uuid, step_name text, event_name text NOT NULL, timeout_at timestamptz,
            created_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (run_id, step_name))""",
    ]
