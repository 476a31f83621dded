"""Who is notified of what, and who isn't: NOTIFY is for queues that an idle worker asked for."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine, text, update
from sqlalchemy.orm import Session

from sa_durable import Durable, SchemaOutdated
from sa_durable.services import notifications
from tests.databases import throwaway
from tests.listening import Ear, listening
from tests.services.observed import statements
from tests.shop import Base, BillingTask, MailTask, Order, charge, remind, send_mail

pytestmark = pytest.mark.service

QUEUES = (BillingTask, MailTask)
LONG = timedelta(hours=1)
PAST = datetime(2026, 1, 1, tzinfo=UTC)
READY, ASLEEP = ("r", "billing"), ("s", "billing")


def ask(engine: Engine, *models: type, time: timedelta = LONG) -> set[tuple[str, str]]:
    with Session(engine) as session, session.begin():
        return notifications.enable(session, models, time=time, echo="echo")


@pytest.fixture
def ear(engine: Engine) -> Iterator[Ear]:
    with listening(engine) as ear:
        yield ear


def awaited(client) -> None:
    """Cancel a task that somebody waits for."""
    spawned = client.durable.spawn(charge.call(1), delay=LONG)
    client.session.execute(update(BillingTask).where(BillingTask.id == spawned.task_id).values(awaited=True))
    client.durable.cancel(spawned)


def cancelled(client):
    """A task to retry."""
    spawned = client.durable.spawn(charge.call(1), delay=LONG, idempotency_key="k")
    client.durable.cancel(spawned)
    return spawned


KEY = {"idempotency_key": "k"}
WAYS = {
    "spawn": (lambda d: d.durable.spawn(charge.call(1)), [READY]),
    "a retry": (lambda d: d.durable.retry(cancelled(d)), [READY]),
    "a retry as new": (lambda d: d.durable.retry(cancelled(d), as_new=True), [READY]),
    "several spawns": (lambda d: [d.durable.spawn(charge.call(n)) for n in range(3)], [READY]),
    "a key": (lambda d: d.durable.spawn(charge.call(1), **KEY), [READY]),
    "columns": (lambda d: d.durable.spawn(charge.call(1), columns={"order_id": None}), [READY]),
    "run_at, in the past": (lambda d: d.durable.spawn(charge.call(1), run_at=PAST), [READY]),
    "a short delay": (lambda d: d.durable.spawn(charge.call(1), delay=timedelta(seconds=1)), [ASLEEP]),
    "a long delay": (lambda d: d.durable.spawn(charge.call(1), delay=LONG), []),
    "a batch": (lambda d: d.durable.spawn_many([charge.call(n) for n in range(3)]), [READY]),
    "a batch, keys": (
        lambda d: d.durable.spawn_many(charge.call(1).using(idempotency_key=k) for k in "aba"), [READY]
    ),
    "a batch, columns": (
        lambda d: d.durable.spawn_many([charge.call(1), charge.call(2)], columns={"order_id": None}), [READY]
    ),
    "a batch, some later": (
        lambda d: d.durable.spawn_many(
            charge.call(1).using(delay=timedelta(seconds=n)) for n in (0, 1, 0, 3600)
        ),
        [READY, ASLEEP],
    ),
    "a batch of two queues": (
        lambda d: d.durable.spawn_many([send_mail.call("ada"), charge.call(1)]), [READY, ("r", "mail")]
    ),
    "objects": (lambda d: d.session.add_all([charge.task(n) for n in range(3)]), [READY]),
    "an object, in a relationship": (lambda d: d.session.add(Order(id=1, tasks=[charge.task(1)])), [READY]),
    "an object, later": (lambda d: d.session.add(remind.task("ada")), [("s", "mail")]),
    "emit": (lambda d: d.durable.emit_event(BillingTask, "paid", 1), [ASLEEP]),
    "the end of what somebody waits for": (awaited, [ASLEEP]),
    "nothing of ours": (lambda d: d.session.add(Order(id=1)), []),
}  # fmt: skip


def act_after_asking(engine, ear, client, way):
    """Give the queues work, not yet committed. Returns the payloads that the commit is expected to send."""
    act, expected = WAYS[way]
    ask(engine, *QUEUES)
    ear.payloads()
    act(client)
    client.session.flush()
    return expected


@pytest.mark.parametrize("way", WAYS)
def test_new_work_notifies_subscribers_once_at_the_commit(engine, ear, client, way):
    expected = act_after_asking(engine, ear, client, way)
    assert ear.hints() == []
    client.session.commit()
    assert sorted(ear.hints()) == sorted(expected)


@pytest.mark.parametrize("way", WAYS)
def test_no_subscription_or_an_expired_one_gets_no_notification(engine, ear, client, way):
    act, _ = WAYS[way]
    ask(engine, BillingTask, time=timedelta(microseconds=1))
    ear.payloads()
    act(client)
    client.session.commit()
    assert ear.payloads() == []


@pytest.mark.parametrize("way", WAYS)
def test_rolled_back_work_notifies_no_worker(engine, ear, client, way):
    act_after_asking(engine, ear, client, way)
    client.session.rollback()
    assert ear.payloads() == []


@pytest.mark.parametrize("way", ["spawn", "objects", "a batch", "emit"])
def test_rolled_back_savepoint_drops_only_its_own_notification(engine, ear, client, way):
    act, expected = WAYS[way]
    ask(engine, *QUEUES)
    ear.payloads()
    savepoint = client.savepoint()
    act(client)
    client.session.flush()
    savepoint.rollback()
    act(client)
    client.session.commit()
    assert ear.hints() == expected


def test_duplicate_notifies_only_if_it_makes_the_holder_ready(engine, ear, client):
    client.durable.spawn(charge.call(1), **KEY, delay=LONG)
    client.session.commit()
    ask(engine, *QUEUES)
    ear.payloads()
    assert not client.durable.spawn(charge.call(1), **KEY).created
    client.session.commit()
    assert ear.payloads() == []
    client.durable.spawn(charge.call(2), **KEY, on_duplicate="update")
    client.session.commit()
    assert ear.hints() == [READY]


def test_notifications_can_be_disabled(engine, ear):
    ask(engine, *QUEUES)
    with Session(engine) as session, session.begin():
        notifications.disable(session, [BillingTask])
        session.commit()
    ear.payloads()
    with Session(engine) as session, session.begin():
        Durable(session).spawn_many([charge.call(1), send_mail.call("ada")])
    assert ear.hints() == [("r", "mail")]


@pytest.mark.owner
def test_asking_keeps_what_operators_say_and_does_not_wait_for_their_locks(engine):
    with Session(engine) as session, session.begin():
        Durable(session).set_retention(BillingTask, LONG)
    ask(engine, *QUEUES)
    with Session(engine) as operator, operator.begin():
        queue = operator.get(BillingTask.Queue, "billing", with_for_update=True)
        assert queue.retention == LONG and queue.notify_until is not None
        with pytest.raises(Exception, match="lock timeout"):
            ask(engine, *QUEUES)


def test_objects_cost_one_statement_a_transaction_and_other_sessions_none(engine):
    with Session(engine) as session, statements(engine) as sent:
        for n in range(3):
            session.add(charge.task(n))
            session.flush()
        session.add(Order(id=1))
        session.flush()
    assert sum("pg_notify" in sql for sql in sent) == 1 and len(sent) == 5


# PostgreSQL can't prepare a transaction that has notified.
@pytest.mark.parametrize("way", ["spawn", "objects", "a batch", "emit", "the end of what somebody waits for"])
def test_two_phase_transaction_sends_no_notification(engine, ear, way):
    class Client:
        pass

    ask(engine, *QUEUES)
    ear.payloads()
    with engine.connect() as connection:
        transaction = connection.begin_twophase()
        with Session(connection) as session:
            client = Client()
            client.session, client.durable = session, Durable(session)
            WAYS[way][0](client)
            session.flush()
        transaction.commit()
    assert ear.payloads() == []


def test_same_queue_in_two_schemas_is_notified_separately(server_url):
    with throwaway(server_url) as engine, listening(engine) as ear:
        asked = {}
        tenants = {}
        for schema in "ab":
            with engine.begin() as connection:
                connection.execute(text(f"CREATE SCHEMA {schema}"))
            tenants[schema] = engine.execution_options(schema_translate_map={None: schema})
            Base.metadata.create_all(tenants[schema])
            asked[schema] = ask(tenants[schema], BillingTask)
        assert not asked["a"] & asked["b"]
        ear.payloads()
        with Session(tenants["b"]) as session, session.begin():
            Durable(session).spawn(charge.call(1))
        [payload] = ear.payloads()
        assert tuple(payload.split(" ")[1:]) in asked["b"]


@pytest.mark.owner
def test_missing_notify_until_column_is_a_schema_outdated_error(server_url):
    with throwaway(server_url, Base.metadata) as engine:
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE durable_queues DROP COLUMN notify_until"))
        with Session(engine) as session, session.begin():
            for spawn in (
                lambda: Durable(session).spawn(charge.call(1)),
                lambda: Durable(session).spawn_many([charge.call(1)]),
                lambda: Durable(session).emit_event(BillingTask, "paid"),
            ):
                with pytest.raises(SchemaOutdated, match=r"notify_until.*alembic upgrade head"):
                    spawn()
            session.add(Order(id=1))
        with Session(engine) as session, pytest.raises(SchemaOutdated, match="alembic upgrade head"):
            session.add(charge.task(1))
            session.flush()
