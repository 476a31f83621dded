"""A11, at the same time: retries of a task, spawns of its key, and clean-up."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import timedelta
from random import Random
from uuid import UUID

import pytest
from sqlalchemy import Engine, create_engine, func, select, text, update
from sqlalchemy.orm import Session

from sa_durable import Durable, InvalidState, KeyTaken, RetryTransaction, TaskNotFound
from sa_durable.models.predicates import HELD
from tests.races.racing import no_deadlock, race
from tests.services import state_changes
from tests.shop import BillingTask, charge
from tests.waiting import in_blocked_thread

pytestmark = pytest.mark.service

NEW = pytest.mark.parametrize("as_new", [False, True])
DAY = timedelta(days=1)


def failed(engine: Engine, **options: object) -> UUID:
    with Session(engine) as session, session.begin():
        task_id = Durable(session).spawn(charge.call(1), **options).task_id
        state_changes.live(session, task_id, "failed")
        return task_id


def spawn(session: Session):
    return Durable(session).spawn(charge.call(1), idempotency_key="k")


def retry(session: Session, task_id: UUID, **options: bool):
    return Durable(session).retry(BillingTask, task_id, **options)


def holders(engine: Engine) -> list[UUID]:
    with Session(engine) as session:
        return list(session.scalars(select(BillingTask.id).where(text(HELD))))


@NEW
def test_a_retry_waits_for_a_spawn_of_its_key_and_then_names_its_holder(engine, session, rival, as_new):
    task = failed(engine, idempotency_key="k")
    spawned = spawn(session)
    waiting = in_blocked_thread(engine, rival, retry, task, as_new=as_new)
    session.commit()
    with pytest.raises(KeyTaken) as refused:
        waiting.result(20)
    assert refused.value.task_id == spawned.task_id
    other = Durable(rival).spawn(charge.call(2))  # its transaction goes on
    rival.commit()
    assert holders(engine) == [spawned.task_id] and rival.get(BillingTask, other.task_id)
    assert rival.get(BillingTask, task).state == "failed"


@NEW
def test_detaching_retry_waits_for_a_spawn_of_its_key(engine, session, rival, as_new):
    task = failed(engine, idempotency_key="k")
    spawned = spawn(session)
    waiting = in_blocked_thread(engine, rival, retry, task, as_new=as_new, detach=True)
    session.commit()
    again = waiting.result(20)
    rival.commit()
    assert holders(engine) == [spawned.task_id]
    assert rival.get(BillingTask, again.task_id).state == "pending"


@NEW
@pytest.mark.parametrize("detach", [False, True])
def test_a_retry_takes_its_key_when_a_spawn_of_it_rolls_back(engine, session, rival, as_new, detach):
    task = failed(engine, idempotency_key="k")
    spawn(session)
    waiting = in_blocked_thread(engine, rival, retry, task, as_new=as_new, detach=detach)
    session.rollback()
    again = waiting.result(20)
    rival.commit()
    assert holders(engine) == [again.task_id] and again.created is as_new


@NEW
@pytest.mark.parametrize("hold", ["active", "forever"])
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_spawn_waits_for_a_retry_of_its_keys_task(engine, session, rival, as_new, hold, end):
    task = failed(engine, idempotency_key="k", hold=hold)
    again = retry(session, task, as_new=as_new)
    waiting = in_blocked_thread(engine, rival, spawn)
    getattr(session, end)()
    found = waiting.result(20)
    rival.commit()
    if end == "commit":
        assert (found.task_id, found.created) == (again.task_id, False)
    else:
        assert (found.created, found.task_id == task) == (hold == "active", hold == "forever")
    assert holders(engine) == [found.task_id]


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_of_two_retries_of_a_task_one_is_an_attempt(engine, session, rival, end):
    task = failed(engine)
    assert retry(session, task).attempt == 2
    waiting = in_blocked_thread(engine, rival, retry, task)
    getattr(session, end)()
    with pytest.raises(InvalidState) if end == "commit" else nullcontext():
        assert waiting.result(20).attempt == 2


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_retry_waits_for_a_clean_up_of_its_task(engine, session, rival, end):
    task = failed(engine)
    session.execute(update(BillingTask).values(finished_at=func.now() - 2 * DAY))
    session.commit()
    assert Durable(session).clean_up(BillingTask, older_than=DAY).tasks == 1
    waiting = in_blocked_thread(engine, rival, retry, task)
    getattr(session, end)()
    with pytest.raises(TaskNotFound) if end == "commit" else nullcontext():
        assert waiting.result(20).attempt == 2


@NEW
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_holder_invisible_to_a_strict_transaction_is_retryable(engine, session, as_new, level):
    task = failed(engine, idempotency_key="k")
    strict = create_engine(engine.url, isolation_level=level)
    with Session(strict) as rival:
        rival.scalar(text("SELECT count(*) FROM durable_billing_tasks"))
        spawned = spawn(session)
        session.commit()
        with pytest.raises(RetryTransaction):
            retry(rival, task, as_new=as_new)
    strict.dispose()
    assert holders(engine) == [spawned.task_id]


def test_many_that_spawn_and_retry_leave_one_holder_and_no_deadlock(engine):
    rounds, callers = 40, 8
    tasks = [failed(engine, idempotency_key=f"k{n}") for n in range(rounds)]

    def prepare(number: int, who: int):
        draw = Random(f"{number} {who}")
        as_new, detach, rolls_back = draw.random() < 0.3, draw.random() < 0.2, draw.random() < 0.3

        def step() -> UUID | None:
            with Session(engine) as session:
                try:
                    if who % 2:
                        got = Durable(session).spawn(charge.call(1), idempotency_key=f"k{number}")
                    else:
                        got = retry(session, tasks[number], as_new=as_new, detach=detach)
                except (KeyTaken, InvalidState):
                    got = None
                other = (
                    Durable(session).spawn(charge.call(2)).task_id
                )  # whatever it was, the transaction goes on
                if rolls_back:
                    session.rollback()
                    return None
                session.commit()
                assert session.get(BillingTask, other)
                return got.task_id if got else None

        return step

    with no_deadlock(engine):
        outcomes = race(rounds, callers, prepare)
    with Session(engine) as session:
        held = select(BillingTask.idempotency_key, BillingTask.id).where(text(HELD))
        by_key = dict(session.execute(held).all())
    for number, got in enumerate(outcomes):
        if f"k{number}" in by_key:
            assert by_key[f"k{number}"] in got
        else:
            assert not any(got[1::2]), number  # no spawn was committed
