"""A transaction that the caller began is the caller's to run again: the library sends each statement of it once."""

from __future__ import annotations

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from sa_durable import Durable, RetryTransaction
from tests.services.observed import statements
from tests.shop import BillingTask, charge, refund

pytestmark = pytest.mark.service

VERBS = {
    "spawn": lambda durable, _: durable.spawn(charge.call(order_id=7), idempotency_key="k"),
    "spawn_many": lambda durable, _: durable.spawn_many([charge.call(order_id=7)]),
    "emit": lambda durable, _: durable.emit_event(BillingTask, "paid"),
    "cancel": lambda durable, task: durable.cancel(BillingTask, task),
    "result": lambda durable, task: durable.result(BillingTask, task),
    "find_by_key": lambda durable, _: durable.find_by_key(BillingTask, "k"),
    "count_ready": lambda durable, _: durable.count_ready(BillingTask),
}


@pytest.fixture
def waiting(engine):
    with Session(engine) as session, session.begin():
        return Durable(session).spawn(refund.call(order_id=1)).task_id


@pytest.mark.parametrize("verb", VERBS)
def test_a_lost_connection_is_the_callers_to_see_at_the_first_statement(client, engine, waiting, verb):
    client.durable.count_ready(BillingTask)  # connected, and the schema is known
    pid = client.session.scalar(text("SELECT pg_backend_pid()"))
    with engine.begin() as other:
        assert other.scalar(text("SELECT pg_terminate_backend(:pid, 60000)"), {"pid": pid})
    with statements(client.engine) as sent, pytest.raises(DBAPIError):
        VERBS[verb](client.durable, waiting)
    assert len(sent) == 1
    client.session.rollback()
    VERBS[verb](client.durable, waiting)  # once the caller wants it


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_lost_race_is_the_callers_to_run_again(client, engine, level):
    client.session.execute(text(f"SET TRANSACTION ISOLATION LEVEL {level}"))
    client.session.execute(select(BillingTask.id))
    with Session(engine) as other, other.begin():
        winner = Durable(other).spawn(charge.call(order_id=7), idempotency_key="k")
    with statements(client.engine) as sent, pytest.raises(RetryTransaction):
        client.durable.spawn(charge.call(order_id=7), idempotency_key="k")
    assert [statement.startswith("INSERT") for statement in sent].count(True) == 1
    with pytest.raises(DBAPIError):  # nobody has rolled it back either
        client.session.execute(text("SELECT 1"))
    client.session.rollback()
    assert client.durable.spawn(charge.call(order_id=7), idempotency_key="k").task_id == winner.task_id
