"""A1: many processes see the same event, all spawn, one task is created."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

import pytest
from sqlalchemy import Engine, func, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from sa_durable import Durable, RetryTransaction, SpawnResult
from tests.races.racing import no_deadlock, race
from tests.services import state_changes
from tests.shop import BillingTask, charge

pytestmark = pytest.mark.service

CALLERS = 16


@dataclass
class Outcome:
    spawned: SpawnResult[Any] | None
    committed: bool
    retryable: bool = False


def caller(engine: Engine, key: str, draw: Random, *, snapshot: bool):
    """A transaction that spawns `key` and then commits or rolls back; `snapshot`: it has looked around before."""
    session = Session(engine)
    if snapshot:
        session.scalar(text("SELECT 1"))
    rolls_back = draw.random() < 0.3

    def step() -> Outcome:
        with session:
            try:
                spawned = Durable(session).spawn(charge.call(1), idempotency_key=key)
                assert spawned.task.params == {"order_id": 1}  # the row is there for whoever got its id
                if rolls_back:
                    session.rollback()
                    return Outcome(spawned, committed=False)
                session.commit()
            except RetryTransaction as error:
                assert error.sqlstate == "40001"
                return Outcome(None, committed=False, retryable=True)
            except OperationalError as error:  # the caller's own commit, at SERIALIZABLE
                assert error.orig.sqlstate == "40001"
                return Outcome(None, committed=False, retryable=True)
            return Outcome(spawned, committed=True)

    return step


@pytest.mark.parametrize(
    ("level", "rounds"), [("READ COMMITTED", 80), ("REPEATABLE READ", 60), ("SERIALIZABLE", 60)]
)
def test_sixteen_sessions_that_spawn_one_key_at_once_get_one_task(engine, level, rounds):  # A1
    racing = engine.execution_options(isolation_level=level)

    def prepare(number: int, who: int):
        return caller(racing, f"{number}", Random(f"{number} {who}"), snapshot=who % 2 == 1)

    with no_deadlock(engine):
        outcomes = race(rounds, CALLERS, prepare)

    with Session(engine) as session:
        rows = session.execute(select(BillingTask.idempotency_key, BillingTask.id, BillingTask.run_id)).all()
    tasks = {key: (id_, run_id) for key, id_, run_id in rows}
    assert len(tasks) == len(rows)  # never two
    for number, callers in enumerate(outcomes):
        committed = [o.spawned for o in callers if o.committed]
        assert bool(committed) is (str(number) in tasks)
        assert not committed or {(s.task_id, s.run_id) for s in committed} == {tasks[str(number)]}
        assert sum(s.created for s in committed) == bool(committed)
        if level == "READ COMMITTED":
            assert not any(o.retryable for o in callers)
    # The race was one: there were winners, losers and quitters.
    everyone = [o for callers in outcomes for o in callers]
    assert any(o.committed and not o.spawned.created for o in everyone)
    assert any(o.spawned and o.spawned.created and not o.committed for o in everyone)
    if level != "READ COMMITTED":
        assert any(o.retryable for o in everyone)


def test_callers_that_retry_transactions_all_get_the_one_task(engine):  # A1
    racing = engine.execution_options(isolation_level="SERIALIZABLE")

    def prepare(number: int, _: int):
        def step():
            while True:
                with Session(racing) as session:
                    try:
                        spawned = Durable(session).spawn(charge.call(1), idempotency_key=f"{number}")
                        session.commit()
                    except RetryTransaction:
                        continue
                    except OperationalError as error:
                        assert error.orig.sqlstate == "40001"
                        continue
                    return spawned.task_id

        return step

    for ids in race(10, 8, prepare):
        assert len(set(ids)) == 1


def test_all_operations_on_few_keys_make_no_error_nor_second_holder(engine):
    """Spawns of every kind, releases, claims and endings, batches: READ COMMITTED, one key a transaction."""
    options = [
        {},
        {"hold": "queued"},
        {"hold": "succeeded"},
        {"on_duplicate": "update"},
        {"on_duplicate": "replace"},
    ]

    def prepare(number: int, who: int):
        draw = Random(f"{number} {who}")
        key, what = f"{draw.randrange(3)}", draw.choice([*options, *options, "release", "batch", "work"])

        def step():
            with Session(engine) as session, session.begin():
                durable = Durable(session)
                if what == "release":
                    durable.release_key(BillingTask, key)
                elif what == "batch":
                    durable.spawn_many([charge.call(n).using(idempotency_key=f"{n}") for n in (2, 0, 1)])
                elif what == "work":
                    due = select(BillingTask.id).where(BillingTask.state == "pending").limit(1)
                    for id_ in session.scalars(due.with_for_update(skip_locked=True)):
                        state_changes.live(
                            session, id_, draw.choice(["running", "completed", "failed", "retried"])
                        )
                else:
                    spawned = durable.spawn(charge.call(who), idempotency_key=key, **what)
                    assert spawned.task.idempotency_key == key
                if draw.random() < 0.2:
                    session.rollback()

        return step

    with no_deadlock(engine):
        race(25, 10, prepare)
    with Session(engine) as session:
        active = (BillingTask.key_hold == "active", BillingTask.finished_at.is_(None))
        per_key = select(func.count()).where(*active).group_by(BillingTask.idempotency_key)
        assert set(session.scalars(per_key)) <= {1}
