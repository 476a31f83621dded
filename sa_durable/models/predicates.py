"""Predicates of the partial indexes, as literal SQL. Statements use the same strings.

They are literal because the `ON CONFLICT` of a spawn repeats the key's predicate, and PostgreSQL recognizes
the two as the same only if they hold constants. With bind parameters a spawn works about ten times, until its
prepared statement gets a generic plan, and then fails with 42P10 (docs/decisions/0003).
"""

PENDING = "state = 'pending'"
SLEEPING = "state = 'sleeping'"
RUNNING = "state = 'running'"
TERMINAL = "state IN ('completed', 'failed', 'cancelled')"
ACTIVE = "state IN ('pending', 'running', 'sleeping')"
LIMITED = f"cancel_at IS NOT NULL AND {ACTIVE}"

HELD = (
    "idempotency_key IS NOT NULL AND ("
    "key_hold = 'forever'"
    " OR key_hold = 'succeeded' AND state NOT IN ('failed', 'cancelled')"
    " OR key_hold = 'active' AND state NOT IN ('completed', 'failed', 'cancelled')"
    " OR key_hold = 'queued' AND state NOT IN ('completed', 'failed', 'cancelled')"
    " AND first_started_at IS NULL"
    ")"
)
"""The task holds its key.

Monotone: once false, it stays false until the task is retried. So `queued` asks whether the task was ever
started, not whether it is pending: a retried or woken task is pending again.
"""

TAKES_KEY_BACK = (
    "idempotency_key IS NOT NULL AND ("
    "key_hold IN ('succeeded', 'active')"
    " OR key_hold = 'queued' AND first_started_at IS NULL"
    ")"
)
"""A retry of the failed or cancelled task must acquire its key again: HELD is false now, and true once it is
pending.
"""
