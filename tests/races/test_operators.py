"""Operators share a queue's row with idle workers and with each other: they wait, and never get a unique violation."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import delete, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from sa_durable import Durable, RetryTransaction
from sa_durable.services import notifications
from tests.races.racing import no_deadlock, race
from tests.shop import BillingTask, MailTask
from tests.waiting import in_blocked_thread, in_thread, pid_of, wait_until_blocked

pytestmark = [pytest.mark.service, pytest.mark.owner]

MINUTE = timedelta(minutes=1)
OPERATIONS = {
    "pause": lambda session: Durable(session).pause(BillingTask),
    "set_retention": lambda session: Durable(session).set_retention(BillingTask, MINUTE),
}


def enable(session: Session) -> None:
    """What an idle worker does."""
    notifications.enable(session, [BillingTask, MailTask], time=MINUTE, echo="echo")


def billing(session: Session):
    return session.scalars(select(BillingTask.Queue).where(BillingTask.Queue.name == "billing")).one()


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_an_operator_waits_for_a_worker_that_inserts_the_row(engine, session, rival, operation, end):
    enable(session)
    waiting = in_blocked_thread(engine, rival, OPERATIONS[operation])
    getattr(session, end)()
    assert waiting.result(20) is True
    rival.commit()
    queue = billing(session)
    assert (queue.notify_until is not None) is (end == "commit")
    assert (queue.paused_at or queue.retention) is not None


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_second_operator_waits_for_the_first_and_learns_what_it_did(engine, session, rival, operation, end):
    assert OPERATIONS[operation](session) is True
    waiting = in_blocked_thread(engine, rival, OPERATIONS[operation])
    getattr(session, end)()
    assert waiting.result(20) is (end == "rollback")


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_second_resume_waits_for_the_first(engine, session, rival, end):
    Durable(session).pause(BillingTask)
    session.commit()
    assert Durable(session).resume(BillingTask) is True
    pid = pid_of(rival)
    waiting = in_thread(Durable(rival).resume, BillingTask)
    wait_until_blocked(engine, pid)
    getattr(session, end)()
    assert waiting.result(20) is (end == "rollback")
    rival.commit()
    assert billing(session).paused_at is None


def test_a_resume_beside_an_uncommitted_pause_changes_nothing(session, rival):
    Durable(session).pause(BillingTask)
    assert Durable(rival).resume(BillingTask) is False  # as if it had come first
    session.commit()
    assert billing(session).paused_at is not None


def test_worker_does_not_wait_for_an_operators_open_transaction(engine, session, rival):
    Durable(session).pause(BillingTask)
    with pytest.raises(OperationalError, match="lock timeout"):
        enable(rival)
    rival.rollback()
    session.commit()
    enable(rival)
    rival.commit()
    assert billing(session).paused_at is not None


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
@pytest.mark.parametrize("operation", [*OPERATIONS, "resume"])
def test_with_an_old_snapshot_an_operator_is_asked_to_retry(engine, session, operation, level):
    operations = {**OPERATIONS, "resume": lambda session: Durable(session).resume(BillingTask)}
    operate = operations[operation]
    if operation == "resume":
        Durable(session).pause(BillingTask)
        session.commit()
    with Session(engine.execution_options(isolation_level=level)) as operator:
        pid_of(operator)  # its snapshot
        enable(session)
        session.commit()
        with pytest.raises(RetryTransaction) as refused:
            operate(operator)
        assert refused.value.sqlstate == "40001"
        operator.rollback()
        assert operate(operator) is True
        operator.commit()


def test_operators_and_idle_workers_at_once_never_fail_or_deadlock(engine):
    changed: list[bool] = []

    def prepare(number: int, caller: int):
        if caller == 0 and number % 5 == 0:
            with Session(engine) as session, session.begin():
                session.execute(delete(BillingTask.Queue))

        def operate() -> str:
            with Session(engine) as session, session.begin():
                durable = Durable(session)
                if caller % 2:
                    changed.append(durable.pause(BillingTask))
                    changed.append(durable.resume(BillingTask))
                else:
                    changed.append(durable.set_retention(BillingTask, MINUTE))
                    changed.append(durable.set_retention(BillingTask, None))
            return "operated"

        def work() -> str:
            try:
                with Session(engine) as session, session.begin():
                    enable(session)
            except OperationalError as error:
                assert "lock timeout" in str(error)  # a worker polls then
                return "polls"
            return "enabled"

        return work if caller >= 3 else operate

    with no_deadlock(engine):
        outcomes = race(60, 5, prepare)
    assert all(outcome[:3] == ["operated"] * 3 for outcome in outcomes)
    assert len(changed) == 60 * 3 * 2 and all(changed)
    assert any("enabled" in outcome for outcome in outcomes)
