"""Queues that have run for a while, in three databases that differ in the planner's statistics.

In the mail queue nothing is due, so statements must read none of its rows. In the billing queue everything is due: a
statement reads its share and leaves the rest unread. Row n has the id `row(n)`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from uuid import UUID

from sqlalchemy import Connection, Engine, text

from tests.databases import end_sessions, throwaway
from tests.shop import Base

TERMINAL = range(1, 100_001)
UNKNOWN = range(100_001, 200_001)  # ready before all others, with names that no worker has
PENDING = range(200_001, 250_001)
RUNNING = range(250_001, 260_001)
SLEEPING = range(260_001, 360_001)

ENDED = range(1, 20_001)
DUE = range(20_001, 40_001)
OVERDUE = range(40_001, 60_001)
EXPIRED = range(60_001, 80_001)
HALF = range(80_001, 81_001)  # sleeping, and one of two awaited events is settled
ARRIVED = range(81_001, 120_001)  # sleeping, and the awaited event is settled


def row(n: int) -> UUID:
    return UUID(int=n << 80)


STATISTICS = ("analysed", "analysed before", "never analysed")

ROW = "(lpad(to_hex({n}), 12, '0') || '00000000000000000000')::uuid"

_HISTORY = [
    """
    INSERT INTO durable_mail_tasks
        (id, run_id, name, params, state, first_started_at, started_at, finished_at, claimed_by, token,
         parent_queue, parent_id, idempotency_key, key_hold)
    SELECT row(n), row(n), CASE WHEN n % 2 = 0 THEN 'send' ELSE 'remind' END, '{}',
        (ARRAY['completed', 'completed', 'completed', 'failed', 'cancelled'])[1 + n % 5],
        now(), now(), now() - interval '2 days' + n * interval '1 s', 'w1', 1,
        CASE WHEN n % 4 = 0 THEN 'mail' END, CASE WHEN n % 4 = 0 THEN row(n - 1) END,
        CASE WHEN n % 3 = 0 THEN 'key ' || n END, CASE WHEN n % 3 = 0 THEN 'active' END
    FROM generate_series(1, 100000) n
    """,
    """
    INSERT INTO durable_mail_events (id, name, payload, settled_at, dropped)
    SELECT row(n), 'event ' || n / 2, '{"n": 1}', now() - interval '2 days' + n * interval '1 s', n % 2 = 1
    FROM generate_series(1, 100000) n
    """,
    """
    INSERT INTO durable_mail_runs (id, task_id, attempt, state, worker)
    SELECT row(n), row(n), 1, 'failed', 'w1' FROM generate_series(1, 100000, 2) n
    """,
    """
    INSERT INTO durable_billing_tasks
        (id, run_id, name, params, state, first_started_at, started_at, finished_at, claimed_by, token)
    SELECT row(n), row(n), 'charge', '{}', 'completed', now(), now(), now() - interval '2 days', 'w1', 1
    FROM generate_series(1, 20000) n
    """,
]
_LIVE = [
    """
    INSERT INTO durable_mail_tasks
        (id, run_id, name, params, state, priority, available_at, first_started_at, started_at, claimed_by, token,
         lease_expires_at, parent_queue, parent_id, awaited, cancel_at, idempotency_key, key_hold)
    SELECT row(n), row(n), name, '{}', state, CASE WHEN name = 'unknown' THEN 0 ELSE 5 END,
        CASE WHEN state <> 'sleeping' THEN now() - interval '1 hour' + n * interval '1 ms'
             WHEN n % 2 = 0 THEN now() + interval '1 day' + n * interval '1 ms' END,
        CASE WHEN state = 'running' THEN now() END, CASE WHEN state = 'running' THEN now() END,
        CASE WHEN state = 'running' THEN 'w1' END, 1,
        CASE WHEN state = 'running' THEN now() + interval '1 hour' END,
        CASE WHEN n % 4 = 0 THEN 'mail' END, CASE WHEN n % 4 = 0 THEN row(n - 1) END, n % 16 = 1,
        CASE WHEN n % 5 = 0 THEN now() + interval '1 day' + n * interval '1 ms' END,
        CASE WHEN n % 3 = 0 THEN 'key ' || n END, CASE WHEN n % 3 = 0 THEN 'active' END
    FROM (
        SELECT n,
            CASE WHEN n <= 250000 THEN 'pending' WHEN n <= 260000 THEN 'running' ELSE 'sleeping' END AS state,
            CASE WHEN n <= 200000 THEN 'unknown' WHEN n % 2 = 0 THEN 'send' ELSE 'remind' END AS name
        FROM generate_series(100001, 360000) n
    ) made
    """,
    # Running tasks are about to sleep. One in eight joins a task of this queue, one a task of the other queue.
    """
    INSERT INTO durable_mail_waits (task_id, step, event_name, event_queue, timeout_at)
    SELECT row(n), 'arrived',
        CASE n % 8 WHEN 0 THEN '$task:' || row(n - 1) WHEN 1 THEN '$task:' || row(n + 100000)
                   ELSE 'never ' || n END,
        CASE n % 8 WHEN 1 THEN 'billing' ELSE 'mail' END,
        CASE WHEN n % 2 = 0 THEN now() + interval '1 day' END
    FROM generate_series(250001, 360000) n
    """,
    """
    INSERT INTO durable_mail_checkpoints (task_id, name, value, attempt)
    SELECT row(250000 + n / 4), 'step ' || n % 4, '{"n": 1}', 1 FROM generate_series(4, 100003) n
    """,
    """
    INSERT INTO durable_billing_tasks
        (id, run_id, name, params, state, available_at, first_started_at, started_at, claimed_by, token,
         lease_expires_at, cancel_at, awaited)
    SELECT row(n), row(n), 'charge', '{}',
        CASE WHEN n <= 40000 THEN 'sleeping' WHEN n <= 60000 THEN 'pending' WHEN n <= 80000 THEN 'running'
             ELSE 'sleeping' END,
        CASE WHEN n <= 80000 THEN now() - interval '1 hour' + n * interval '1 ms' END,
        now(), CASE WHEN n > 60000 THEN now() END, CASE WHEN n > 60000 THEN 'w1' END, 1,
        CASE WHEN n BETWEEN 60001 AND 80000 THEN now() - interval '1 hour' END,
        CASE WHEN n BETWEEN 40001 AND 60000 THEN now() - interval '1 hour' + n * interval '1 ms' END,
        n > 120000
    FROM generate_series(20001, 120000) n
    """,
    """
    INSERT INTO durable_billing_tasks (id, run_id, name, params, state, awaited)
    SELECT row(n), row(n), 'charge', '{}', 'sleeping', true FROM generate_series(350001, 460000, 8) n
    """,
    """
    INSERT INTO durable_billing_waits (task_id, step, event_name, event_queue, settled)
    SELECT row(n), 'join', 'event ' || n, 'billing', true FROM generate_series(80001, 120000) n
    """,
    """
    INSERT INTO durable_billing_waits (task_id, step, event_name, event_queue)
    SELECT row(n), 'join', 'never ' || n, 'billing' FROM generate_series(80001, 81000) n
    """,
    """
    INSERT INTO durable_billing_events (id, name, payload)
    SELECT row(n), 'event ' || n / 2, '{"n": 1}' FROM generate_series(1, 50000) n
    """,
]


def _fill(connection: Connection, rows: list[str]) -> None:
    for statement in rows:
        expanded = statement
        while "row(" in expanded:
            before, _, after = expanded.partition("row(")
            n, _, rest = after.partition(")")
            expanded = before + ROW.format(n=n) + rest
        connection.execute(text(expanded))


@contextmanager
def large_databases(server_url: str) -> Iterator[dict[str, Engine]]:
    """Yield the databases by the planner's statistics: current; from before any task was active; none."""
    with ExitStack() as stack:
        stale = stack.enter_context(throwaway(server_url, Base.metadata))
        fill(stale)
        template = str(stale.url.database)
        fresh = stack.enter_context(throwaway(server_url, template=template))
        unknown = stack.enter_context(throwaway(server_url, template=template))
        with autocommit(fresh) as connection:
            connection.execute(text("VACUUM ANALYZE"))
        with autocommit(unknown) as connection:
            forget_statistics(connection)
        yield dict(zip(STATISTICS, (fresh, stale, unknown), strict=True))


def fill(engine: Engine) -> None:
    tables = Base.metadata.sorted_tables
    indexes = [index for table in tables for index in table.indexes]
    with engine.begin() as connection:
        for table in tables:
            connection.execute(text(f"ALTER TABLE {table.name} SET (autovacuum_enabled = off)"))
        for index in indexes:  # created again at the end: half the time
            index.drop(connection)
        _fill(connection, _HISTORY)
        connection.execute(text("ANALYZE"))
        _fill(connection, _LIVE)
        for index in indexes:
            index.create(connection)
    end_sessions(engine)  # a template must have no connections


@contextmanager
def autocommit(engine: Engine) -> Iterator[Connection]:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        yield connection


def forget_statistics(connection: Connection) -> None:
    """Delete all statistics, as if the tables had never been analyzed."""
    ours = "(SELECT oid FROM pg_class WHERE relname LIKE '%durable_%')"
    connection.execute(text(f"DELETE FROM pg_statistic WHERE starelid IN {ours}"))
    connection.execute(text(f"UPDATE pg_class SET reltuples = -1, relpages = 0 WHERE oid IN {ours}"))
