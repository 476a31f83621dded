"""What a task leaves behind in the database by the time it is completed, and what heartbeats do to it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from sa_durable import Durable
from tests.bench import draining
from tests.bench.figures import Figure, at_least, figure
from tests.bench.serving import (
    NOOPS,
    Base,
    FirstTask,
    Served,
    hold,
    left,
    served,
    spawn,
    wait_until_done,
)
from tests.bench.workload import Bench, Workload
from tests.waiting import wait_until

_COUNTERS = """
    SELECT pg_current_wal_lsn() - '0/0' AS wal, (SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()),
        sum(n_tup_ins), sum(n_tup_upd), sum(n_tup_del), sum(n_tup_hot_upd)
    FROM pg_stat_user_tables
"""


@dataclass(frozen=True)
class Counters:
    """What the server has counted in this database so far."""

    wal: float  # bytes, of the whole server
    commits: float
    inserted: float
    updated: float
    deleted: float
    updated_hot: float

    def since(self, earlier: Counters) -> Counters:
        return Counters(*(now - then for now, then in zip(_values(self), _values(earlier), strict=True)))

    def of_each(self, tasks: int) -> Counters:
        return Counters(*(value / tasks for value in _values(self)))


def _values(counters: Counters) -> Any:
    return vars(counters).values()


def counters(engine: Engine) -> Counters:
    """All that sessions which have ended, or have been idle for a second, have told."""
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(text("SELECT pg_stat_force_next_flush()"))
        connection.execute(text("SELECT 1"))
        return Counters(*(float(value) for value in connection.execute(text(_COUNTERS)).one()))


def per_task(bench: Bench) -> Iterator[Figure]:
    """WAL, commits and dead rows of a task's whole life: in a batch of many that one worker runs as fast as it can, and
    one after the other, each spawned once the one before is completed. In new databases: there is no page whose first
    change since a checkpoint would be written whole. The limit is the loop of workload 7, with the same spawns."""
    many, few = bench.times(20_000), bench.times(300, least=20)
    batch, singly, bare = [], [], []
    for _ in range(min(bench.rounds, 3)):  # WAL is counted, not timed: rounds differ little
        batch.append(_cost(bench.own_database(Base.metadata), many, _as_a_batch))
        singly.append(_cost(bench.own_database(Base.metadata), few, _singly))
        bare.append(_bare(bench.own_database(draining.Base.metadata), many))
    limits = [cost.wal for cost in bare]
    for name, costs, limit in (("in a batch", batch, limits), ("one by one", singly, [])):
        yield figure("bytes", [cost.wal for cost in costs], limit, name=f"WAL, {name}")
        yield figure("", [cost.commits for cost in costs], name=f"commits, {name}")
        yield figure("", [cost.updated + cost.deleted for cost in costs], name=f"dead rows, {name}")


def _bare(engine: Engine, tasks: int) -> Counters:
    loop, before = draining.Bare(engine, tasks), counters(engine)
    loop.prepare()
    loop.drain()
    return counters(engine).since(before).of_each(tasks)


def _cost(engine: Engine, tasks: int, run: Callable[[Engine, int], int]) -> Counters:
    """Of each task. `run` runs so many and returns how many statements of its own are none of theirs."""
    spawn(engine, 1000)
    with served(engine):
        wait_until_done(engine)
    engine.dispose()
    before = counters(engine)
    looks = run(engine, tasks)
    engine.dispose()
    return replace(spent := counters(engine).since(before), commits=spent.commits - looks).of_each(tasks)


def _as_a_batch(engine: Engine, tasks: int) -> int:
    spawn(engine, tasks)
    with served(engine):
        return _looks_until_done(engine, 0.1)


def _singly(engine: Engine, tasks: int) -> int:
    with served(engine):
        return sum(_one(engine) for _ in range(tasks))


def _one(engine: Engine) -> int:
    with Session(engine) as session, session.begin():
        Durable(session).spawn(NOOPS[FirstTask].call(number=1))
    return _looks_until_done(engine, 0.002)


def _looks_until_done(engine: Engine, pause: float) -> int:
    looks = 1
    while left(engine):
        looks += 1
        time.sleep(pause)
    return looks


HELD, LEASE = 200, 2.0


def heartbeats(bench: Bench) -> Iterator[Figure]:
    """How many of the heartbeats' updates are HOT: they write no index, and leave what vacuum needn't see. Of tasks that are
    held among many that have just been run; the lease is short, and heartbeats come four times in it."""
    engine = bench.own_database(Base.metadata)
    seconds = max(4.0, 20 * bench.scale)
    with Session(engine) as session, session.begin():
        mixed = [
            hold.call(seconds=seconds + 60) if n % 20 == 0 else NOOPS[FirstTask].call(number=n)
            for n in range(20 * HELD)
        ]
        Durable(session).spawn_many(mixed)
    worker = bench.enter(served(engine, concurrency=HELD + 10, lease=LEASE))
    wait_until(lambda: left(engine) == HELD, 60)
    yield from _beats(engine, worker, seconds)
    with engine.begin() as connection:  # or the worker would wait for them
        connection.execute(
            text(f"UPDATE {FirstTask.__table__.name} SET state = 'cancelled', token = token + 1")
        )


def _claimed_and_ended(engine: Engine) -> Counters | None:
    """Once all that is counted which isn't HOT: a session that has nothing to do tells of it only after ten seconds."""
    so_far = counters(engine)
    return so_far if so_far.updated - so_far.updated_hot >= 39 * HELD else None


def _beats(engine: Engine, worker: Served, seconds: float) -> Iterator[Figure]:
    before = wait_until(lambda: _claimed_and_ended(engine), 60, "the server to have counted what came before")
    time.sleep(seconds)
    beats = counters(engine).since(before)
    assert beats.updated >= HELD * seconds / LEASE
    yield figure("%", [100 * beats.updated_hot / beats.updated], name="HOT")
    yield figure("bytes", [beats.wal / beats.updated], name="WAL of one")


WORKLOADS = [
    Workload(17, "what a completed task costs the database", "bare loop", per_task),
    Workload(17, "heartbeats", "", heartbeats, {"HOT": at_least(95)}),
]
