"""The same scenarios through every client: Session, and AsyncSession on psycopg and on asyncpg."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy import func, inspect, make_url, select
from sqlalchemy.ext.asyncio import (
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session

from sa_durable import (
    AsyncDurable,
    DuplicateTask,
    Durable,
    IdempotencyConflict,
    InvalidKey,
    InvalidOptions,
    TaskNotFound,
    TaskState,
)
from sa_durable.ids import uuid7
from tests.services.observed import statements
from tests.shop import BillingTask, Invoice, MailTask, Order, charge, refund, remind, send_mail

pytestmark = pytest.mark.service


def stored(client, model: type = BillingTask) -> int:
    return client.session.scalar(select(func.count()).select_from(model))


def test_a_key_is_one_task_and_a_duplicate_gets_its_ids(client):
    first = client.durable.spawn(charge.call(1), idempotency_key="k")
    client.session.commit()
    second = client.durable.spawn(charge.call(2), idempotency_key="k")
    assert (first.created, second.created, second.params_match) == (True, False, False)
    assert (second.task_id, second.run_id, second.attempt) == (first.task_id, first.run_id, 1)
    assert all(isinstance(id_, UUID) for id_ in (first.task_id, second.task_id, second.run_id))
    assert stored(client) == 1


def test_without_a_key_every_spawn_is_a_task(client):
    assert len({client.durable.spawn(charge.call(1)).task_id for _ in range(3)}) == stored(client) == 3


def test_only_once_is_one_task(client):
    first = client.durable.spawn(charge.call(7), only_once=True)
    assert (
        client.durable.spawn(BillingTask, "charge", {"order_id": "7"}, only_once=True).task_id
        == first.task_id
    )
    assert client.durable.spawn(charge.call(8), only_once=True).created


def test_a_rollback_takes_the_spawn_back(client):
    client.durable.spawn(charge.call(1), idempotency_key="k")
    client.session.rollback()
    assert stored(client) == 0
    assert client.durable.spawn(charge.call(1), idempotency_key="k").created


def test_a_savepoint_takes_back_its_own(client):
    client.durable.spawn(charge.call(1), idempotency_key="outer")
    savepoint = client.savepoint()
    client.durable.spawn(charge.call(1), idempotency_key="inner")
    savepoint.rollback()
    assert client.durable.spawn(charge.call(1), idempotency_key="inner").created
    assert not client.durable.spawn(charge.call(1), idempotency_key="outer").created
    client.session.commit()
    assert stored(client) == 2


def test_every_type_of_option_travels(client):
    client.session.add(Order(id=7))
    ahead = datetime(2200, 1, 1, 12, 30, 1, 5, tzinfo=UTC)
    options = {
        "idempotency_key": "ключ 🦊 'quoted'",
        "hold": "forever",
        "key_ttl": timedelta(days=3, microseconds=1),
        "max_attempts": None,
        "priority": -32768,
        "headers": {"trace": ["🦊", 1.5, None]},
        "run_at": ahead,
        "columns": {"order_id": 7},
    }
    single = client.durable.spawn(charge.call(7, "1.50"), **options)
    [batched] = client.durable.spawn_many([charge.call(7, "1.50")], **{**options, "idempotency_key": "other"})
    for spawned in (single, batched):
        task = spawned.task
        client.session.refresh(task)
        assert (task.state, task.available_at, task.priority) == ("sleeping", ahead, -32768)
        assert (task.params, task.headers) == (
            {"order_id": 7, "amount": "1.50"},
            {"trace": ["🦊", 1.5, None]},
        )
        assert (task.max_attempts, task.key_hold, task.order_id) == (None, "forever", 7)
        assert task.key_expires_at - task.created_at == timedelta(days=3, microseconds=1)
        assert task.retry["kind"] == "exponential"


def test_a_delay_counts_from_the_databases_now(client):
    spawned = client.durable.spawn(remind.call("ada"))
    batched = client.durable.spawn_many(
        [remind.call("ada"), remind.call("bob").using(delay=timedelta(hours=2))]
    )
    tasks = [s.task for s in (spawned, *batched)]
    for task, hours in zip(tasks, (1, 1, 2), strict=True):
        client.session.refresh(task)
        assert task.available_at - task.created_at == timedelta(hours=hours)
        assert task.state == "sleeping"


def test_a_batch_gives_each_call_its_own_result(client):
    held = client.durable.spawn(charge.call(0), idempotency_key="held")
    batch = client.durable.spawn_many(
        [
            charge.call(1).using(idempotency_key="new"),
            send_mail.call("ada"),
            charge.call(2).using(idempotency_key="held"),
            charge.call(3).using(idempotency_key="new"),
            charge.call(4).using(delay=timedelta(hours=1)),
        ]
    )
    assert [s.created for s in batch] == [True, True, False, False, True]
    assert (batch[2].task_id, batch[3].task_id) == (held.task_id, batch[0].task_id)
    assert batch[4].state is TaskState.SLEEPING
    assert (stored(client), stored(client, MailTask)) == (3, 1)


def test_a_large_batch_of_mixed_keys(client):
    calls = [charge.call(i).using(idempotency_key=f"k{i % 700}") for i in range(1200)]
    batch = client.durable.spawn_many(calls)
    assert [s.created for s in batch] == [True] * 700 + [False] * 500
    assert stored(client) == 700


def test_what_is_asked_for_on_a_duplicate_happens(client):
    holder = client.durable.spawn(charge.call(1), idempotency_key="k")
    with pytest.raises(DuplicateTask):
        client.durable.spawn(charge.call(1), idempotency_key="k", on_duplicate="raise")
    with pytest.raises(IdempotencyConflict):
        client.durable.spawn(charge.call(2), idempotency_key="k", strict=True)
    with pytest.raises(IdempotencyConflict):
        client.durable.spawn_many([refund.call(2)], idempotency_key="k")
    updated = client.durable.spawn(
        charge.call(2), idempotency_key="k", on_duplicate="update", delay=timedelta(hours=1)
    )
    assert (updated.task_id, updated.state) == (holder.task_id, TaskState.SLEEPING)
    replaced = client.durable.spawn(charge.call(3), idempotency_key="k", on_duplicate="replace")
    assert replaced.created
    assert client.durable.result(holder).state is TaskState.CANCELLED
    client.session.commit()  # no error aborted the transaction
    assert stored(client) == 2


def test_a_key_past_its_ttl_is_free(client):
    options = {"idempotency_key": "k", "hold": "succeeded", "key_ttl": timedelta(microseconds=1)}
    task = client.durable.spawn(charge.call(1), **options).task
    client.session.refresh(task)
    task.state = "completed"
    client.session.flush()
    assert client.durable.spawn(charge.call(1), **options).created
    [batched] = client.durable.spawn_many([charge.call(1)], **options)
    assert not batched.created


def test_keys_are_found_and_released(client):
    spawned = client.durable.spawn(charge.call(1), idempotency_key="k", hold="forever")
    found = client.durable.find_by_key(BillingTask, "k")
    assert found is spawned.task
    assert client.durable.find_by_key(BillingTask, "nobody's") is None
    assert (client.durable.release_key(BillingTask, "k"), client.durable.release_key(BillingTask, "k")) == (
        True,
        False,
    )
    assert client.durable.find_by_key(BillingTask, "k") is None


@pytest.mark.parametrize("ask", ["find_by_key", "release_key"])
def test_asking_for_an_impossible_key_leaves_the_transaction_usable(client, ask):
    client.durable.spawn(charge.call(1), idempotency_key="k")
    with suppress(InvalidKey):
        assert not getattr(client.durable, ask)(BillingTask, "a\0b")
    client.session.commit()
    assert stored(client) == 1


def test_a_task_is_cancelled_with_its_children(client):
    root, child = client.durable.spawn(charge.call(1)), client.durable.spawn(send_mail.call("ada"))
    task = child.task
    client.session.refresh(task)
    task.parent_queue, task.parent_id = "billing", root.task_id
    client.session.flush()
    assert client.durable.cancel(root) is True
    assert client.durable.cancel(BillingTask, root.task_id) is False
    assert {client.durable.result(s).state for s in (root, child)} == {TaskState.CANCELLED}
    with pytest.raises(TaskNotFound):
        client.durable.cancel(BillingTask, uuid7())


def test_a_spawned_task_goes_into_relationships(client):
    spawned = client.durable.spawn(charge.call(1))
    client.session.add(Invoice(id=1, task=spawned.task))
    client.session.flush()
    assert client.session.scalar(select(Invoice.task_id)) == spawned.task_id


def test_a_task_object_is_spawned_at_flush(client):
    order = Order(id=7)
    order.tasks.append(charge.task(7))
    client.session.add(order)
    client.session.add(remind.task("ada"))
    client.session.commit()
    assert (stored(client), stored(client, MailTask)) == (1, 1)


def test_a_bad_option_is_refused_before_anything_is_sent(client):
    with statements(client.engine) as sent, pytest.raises(InvalidOptions):
        client.durable.spawn(charge.call(1), priority="high")
    assert sent == []


def on_asyncpg(database_url: str, scenario) -> None:
    async def run() -> None:
        engine = create_async_engine(make_url(database_url).set(drivername="postgresql+asyncpg"))
        try:
            await scenario(engine)
        finally:
            await engine.dispose()

    asyncio.run(run())


def test_async_durable_takes_an_async_scoped_session(engine, database_url):
    async def scenario(engine):
        scoped = async_scoped_session(async_sessionmaker(engine), scopefunc=asyncio.current_task)
        spawned = await AsyncDurable(scoped).spawn(charge.call(1), idempotency_key="k")
        assert spawned.task in scoped()
        await scoped.commit()
        assert not (await AsyncDurable(scoped).spawn(charge.call(1), idempotency_key="k")).created
        await scoped.remove()

    on_asyncpg(database_url, scenario)


def test_tasks_of_an_async_session_are_refreshed_before_they_are_read(engine, database_url):
    async def scenario(engine):
        async with AsyncSession(engine) as session:
            spawned = await AsyncDurable(session).spawn(charge.call(1))
            assert "state" in inspect(spawned.task).unloaded  # reading it here would need a statement
            await session.refresh(spawned.task)
            assert spawned.task.state == "pending"

    on_asyncpg(database_url, scenario)


def test_concurrent_sessions_of_one_loop_get_one_task(engine, database_url):
    async def scenario(engine):
        async def spawn() -> UUID:
            async with AsyncSession(engine) as session, session.begin():
                return (await AsyncDurable(session).spawn(charge.call(1), idempotency_key="k")).task_id

        ids = await asyncio.gather(*(spawn() for _ in range(10)))
        assert len(set(ids)) == 1

    on_asyncpg(database_url, scenario)


def test_durable_and_async_durable_refuse_the_others_session(engine, database_url):
    async def scenario(engine):
        async with AsyncSession(engine) as session:
            with pytest.raises(InvalidOptions, match="AsyncDurable"):
                Durable(session)
            scoped = async_scoped_session(async_sessionmaker(engine), scopefunc=asyncio.current_task)
            with pytest.raises(InvalidOptions, match="AsyncDurable"):
                Durable(scoped)

    on_asyncpg(database_url, scenario)
    with pytest.raises(InvalidOptions, match="there is Durable"):
        AsyncDurable(Session())
    for nothing in (None, engine):
        with pytest.raises(InvalidOptions):
            Durable(nothing)
        with pytest.raises(InvalidOptions):
            AsyncDurable(nothing)
