"""Queues of the same shape: one stays nearly empty, one holds a million tasks, and three have workers."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Engine, text

from sa_durable import DurableTask
from tests.apps import application
from tests.bench.workload import Bench

Base, SmallTask, BigTask, QuietTask, ToldTask, ClamorousTask = application(
    SmallTask="small",
    BigTask="big",
    QuietTask="quiet",  # its worker enables no notifications
    ToldTask="told",  # its worker enables notifications while it is idle
    ClamorousTask="clamorous",  # every spawn notifies its worker, idle or not
)


def charge(ctx: object, order_id: int, note: str = "") -> None: ...


HANDLERS = {
    model: model.handler()(charge) for model in (SmallTask, BigTask, QuietTask, ToldTask, ClamorousTask)
}


def queues(bench: Bench) -> Engine:
    """The run's database, with these queues, all empty but for what other workloads of the run left there."""
    Base.metadata.create_all(bench.engine)
    return bench.engine


def big_queue(bench: Bench) -> Engine:
    """The same with tasks in the big queue, all of them with keys: `bench.rows` completed ones, a tenth as many
    sleeping for a year, and as many pending."""
    engine = bench.once(queues)
    fill(bench, engine, BigTask)
    return engine


def fill(bench: Bench, engine: Engine, model: type[DurableTask]) -> None:
    """With tasks called charge, as `big_queue` says."""
    table, rows = model.__table__.name, bench.rows
    bench.say(f"    filling {rows:,} rows")
    with engine.begin() as connection:
        for state, number in (("completed", rows), ("sleeping", rows // 10), ("pending", rows // 10)):
            connection.execute(text(_FILL.format(table=table)), {"state": state, "number": number})
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"VACUUM ANALYZE {table}"))
        connection.execute(text("CHECKPOINT"))


def filled(model: type[DurableTask]) -> Callable[[Bench], Engine]:
    """What makes the database that has the queue of `model`, as full as it is meant to be."""
    return big_queue if model is BigTask else queues


_FILL = """
    INSERT INTO {table} (
        id, name, params, state, available_at, run_id, idempotency_key, key_hold, finished_at, first_started_at
    )
    SELECT gen_random_uuid(), 'charge', jsonb_build_object('order_id', n), :state,
           CASE :state WHEN 'sleeping' THEN statement_timestamp() + interval '1 year'
                       WHEN 'pending' THEN statement_timestamp() END,
           gen_random_uuid(), 'filled:' || :state || n, CASE WHEN n % 2 = 0 THEN 'forever' ELSE 'active' END,
           CASE :state WHEN 'completed' THEN statement_timestamp() END,
           CASE :state WHEN 'completed' THEN statement_timestamp() END
    FROM generate_series(1, :number) AS n
"""
