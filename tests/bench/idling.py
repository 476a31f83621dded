"""What a worker costs that has nothing to do."""

from __future__ import annotations

import time
from collections.abc import Iterator

import psutil
from sqlalchemy import Engine, text

from tests.bench.figures import Figure, at_most, figure
from tests.bench.serving import Base, served
from tests.bench.workload import Bench, Workload
from tests.waiting import wait_until

SECONDS = 40  # two renewals of its wish to be notified, eight sweeps

_COUNT = """
    SELECT coalesce(sum(calls), 0) FROM pg_stat_statements
    WHERE dbid = (SELECT oid FROM pg_database WHERE datname = :database)
"""
_MOST = """
    SELECT calls, query FROM pg_stat_statements
    WHERE dbid = (SELECT oid FROM pg_database WHERE datname = :database) ORDER BY calls DESC LIMIT 10
"""


def idle(bench: Bench) -> Iterator[Figure]:
    """Statements a second of a worker of five empty queues, transactions' ends included, and what share of a processor
    it takes itself, and its server processes do."""
    engine = bench.own_database(Base.metadata)
    database = engine.url.database
    with bench.engine.connect() as connection:
        connection.execute(text("CREATE EXTENSION IF NOT EXISTS pg_stat_statements"))
        connection.execute(text(f"ALTER DATABASE {database} SET pg_stat_statements.track = 'all'"))
        connection.commit()
    worker = bench.enter(served(engine, queues=5))
    backends = _idle_backends(bench.engine, str(database))

    def count() -> tuple[float, float, float, float]:
        with bench.engine.connect() as connection:
            statements = connection.scalar(text(_COUNT), {"database": database})
        served_by = sum(sum(backend.cpu_times()[:2]) for backend in backends)
        return time.perf_counter(), float(statements), worker.used().processor, served_by

    before = count()
    time.sleep(max(3.0, SECONDS * bench.scale))
    spent, statements, own, servers = (
        after - earlier for after, earlier in zip(count(), before, strict=True)
    )
    yield figure("/s", [statements / spent], name="statements")
    yield figure("%", [100 * own / spent], name="worker's processor")
    yield figure("%", [100 * servers / spent], name="server's processor")
    with bench.engine.connect() as connection:
        for calls, query in connection.execute(text(_MOST), {"database": database}):
            bench.say(f"      {calls / spent:6.2f}/s  {' '.join(query.split())[:100]}")


def _idle_backends(engine: Engine, database: str) -> list[psutil.Process]:
    """The processes that serve a worker which has become idle: one that asks for notifications."""
    time.sleep(2)
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        pids = text("SELECT pid FROM pg_stat_activity WHERE datname = :database")
        found = wait_until(lambda: connection.scalars(pids, {"database": database}).all())
    return [psutil.Process(pid) for pid in found]


IDLE = {"statements": at_most(5), "worker's processor": at_most(1)}
WORKLOADS = [Workload(16, "an idle worker of five queues", "", idle, IDLE)]
