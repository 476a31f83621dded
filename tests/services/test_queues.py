"""Operators pause and resume queues, and set their retention."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from sa_durable import Durable, InvalidOptions, SchemaOutdated, UnknownQueue
from sa_durable.services import cleanup, notifications
from tests.databases import throwaway
from tests.services.claiming import claim, spawn
from tests.services.observed import statements
from tests.shop import Base, BillingTask, MailTask

pytestmark = [pytest.mark.service, pytest.mark.owner]

DAY = timedelta(days=1)


def paused_at(client, model=MailTask):
    return client.session.scalar(select(model.Queue.paused_at).where(model.Queue.name == model.__queue__))


def test_second_pause_or_resume_changes_nothing_and_says_so(client):
    durable = client.durable
    assert durable.resume(MailTask) is False
    assert durable.pause(MailTask) is True
    client.session.commit()
    first = paused_at(client)
    assert durable.pause(MailTask) is False
    assert paused_at(client) == first
    assert durable.resume(MailTask) is True
    assert paused_at(client) is None
    assert durable.resume(MailTask) is False
    assert durable.pause(MailTask) is True


def test_workers_stop_claiming_after_the_commit_and_claim_after_a_resume(engine):
    first, *_ = spawn(engine, 3)
    with Session(engine) as session, session.begin():
        assert Durable(session).pause(MailTask)
        assert [c.task_id for c in claim(engine, 1)] == [first]
    assert claim(engine, 10) == []
    with Session(engine) as session, session.begin():
        assert Durable(session).count_ready(MailTask) == 0
        assert Durable(session).resume(MailTask)
        assert claim(engine, 10) == []
    assert len(claim(engine, 10)) == 2


def test_a_retention_is_set_changed_and_cleared(client):
    durable = client.durable
    answers = [durable.set_retention(MailTask, days) for days in (None, DAY, DAY, 2 * DAY, None, None)]
    assert answers == [False, True, False, True, True, False]


def test_workers_read_the_retention_after_the_commit(engine):
    with Session(engine) as session, session.begin():
        Durable(session).set_retention(MailTask, DAY)
    with Session(engine) as session:
        assert cleanup.retentions(session, [MailTask, BillingTask]) == {MailTask: DAY}


def test_operations_of_a_queue_leave_each_other_and_other_queues_alone(engine):
    with Session(engine) as session, session.begin():
        notifications.enable(session, [MailTask], time=DAY, echo="echo")
    with Session(engine) as session, session.begin():
        durable = Durable(session)
        assert durable.set_retention(MailTask, DAY) and durable.pause(MailTask)
        assert durable.set_retention(BillingTask, 2 * DAY)
    with Session(engine) as session:
        mail, billing = session.get(MailTask.Queue, "mail"), session.get(MailTask.Queue, "billing")
        assert (mail.retention, mail.paused_at is not None, mail.notify_until is not None) == (
            DAY,
            True,
            True,
        )
        assert (billing.retention, billing.paused_at, billing.notify_until) == (2 * DAY, None, None)


def test_loaded_objects_show_the_new_values(engine):
    with Session(engine) as session:
        durable = Durable(session)
        durable.pause(MailTask)
        queue = session.get(MailTask.Queue, "mail")
        assert queue.paused_at is not None
        durable.resume(MailTask)
        assert queue.paused_at is None
        durable.set_retention(MailTask, DAY)
        assert queue.retention == DAY
        durable.set_retention(MailTask, None)
        assert queue.retention is None
        durable.pause(MailTask)
        assert queue.paused_at is not None


def test_a_rollback_takes_it_back_and_each_operation_is_one_statement(engine):
    with Session(engine) as session:
        Durable(session).resume(MailTask)  # the pool has seen the table
        operations = [
            lambda d: d.pause(MailTask),
            lambda d: d.set_retention(MailTask, DAY),
            lambda d: d.set_retention(MailTask, None),
            lambda d: d.resume(MailTask),
        ]
        for operate in operations:
            with statements(engine) as sent:
                assert operate(Durable(session)) is True
            assert len(sent) == 1
        Durable(session).pause(MailTask)
        session.rollback()
        assert session.scalars(select(MailTask.Queue)).all() == []


@pytest.mark.parametrize("value", [timedelta(0), -DAY, 30, "30 days"])
def test_invalid_retention_is_refused_before_anything_is_sent(client, value):
    with pytest.raises(InvalidOptions, match="retention="):
        client.durable.set_retention(MailTask, value)


def test_what_is_no_queue_is_refused(client):
    for operate in (
        client.durable.pause,
        client.durable.resume,
        lambda queue: client.durable.set_retention(queue, DAY),
    ):
        with pytest.raises(UnknownQueue):
            operate(Base)


def test_missing_tables_are_named_and_the_transaction_goes_on(server_url):
    with throwaway(server_url) as empty, Session(empty) as session:
        for operate in (
            lambda d: d.pause(MailTask),
            lambda d: d.resume(MailTask),
            lambda d: d.set_retention(MailTask, DAY),
        ):
            with pytest.raises(SchemaOutdated, match="alembic upgrade head"):
                operate(Durable(session))
        assert session.scalar(text("SELECT 1")) == 1
