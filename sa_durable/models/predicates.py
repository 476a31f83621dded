"""Which rows an index holds, as literal SQL.

Literal, because the `ON CONFLICT` of a spawn repeats the key's predicate: PostgreSQL proves that the two are the
same only between constants. With bind parameters it works about ten times, until the prepared statement gets a
generic plan, and then fails with 42P10 (docs/decisions/0003). Statements use these very strings.
"""

PENDING = "state = 'pending'"
SLEEPING = "state = 'sleeping'"
RUNNING = "state = 'running'"
TERMINAL = "state IN ('completed', 'failed', 'cancelled')"
ACTIVE = "state IN ('pending', 'running', 'sleeping')"
LIMITED = f"cancel_at IS NOT NULL AND {ACTIVE}"

# Monotone: a row leaves the index and never comes back by itself. Each arm is over once it is over; so `queued`
# asks whether the task was ever started, not whether it is pending (a retried or woken task is pending again).
HELD = (
    "idempotency_key IS NOT NULL AND ("
    "key_hold = 'forever'"
    " OR key_hold = 'succeeded' AND state NOT IN ('failed', 'cancelled')"
    " OR key_hold = 'active' AND state NOT IN ('completed', 'failed', 'cancelled')"
    " OR key_hold = 'queued' AND state NOT IN ('completed', 'failed', 'cancelled') AND first_started_at IS NULL"
    ")"
)

# What of a failed or cancelled task's key a retry has to win again: HELD is true once the task is pending, and isn't now.
TAKES_KEY_BACK = (
    "idempotency_key IS NOT NULL AND ("
    "key_hold IN ('succeeded', 'active')"
    " OR key_hold = 'queued' AND first_started_at IS NULL"
    ")"
)
