"""Bad input (design, section 8): a typed error, nothing sent where it can be known before, nothing lost."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import func, make_url, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from sa_durable import (
    AsyncDurable,
    Durable,
    DurableError,
    Fixed,
    InvalidKey,
    InvalidOptions,
    InvalidParams,
    RetryTransaction,
    SchemaOutdated,
    UnknownQueue,
)
from tests.databases import throwaway
from tests.services.observed import statements
from tests.shop import Base, BillingTask, Invoice, MailTask, Order, charge, refund, send_mail

pytestmark = pytest.mark.service

Attempt = Callable[[Durable], Any]


def option(**options: Any) -> Attempt:
    return lambda durable: durable.spawn(charge.call(1), **options)


def named(params: Any, name: Any = "by name") -> Attempt:
    return lambda durable: durable.spawn(BillingTask, name, params)


def called(*args: Any, **kwargs: Any) -> Attempt:
    return lambda durable: durable.spawn(charge.call(*args, **kwargs))


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


itself: list[Any] = []
itself.append(itself)

# What is tried, and the error that says so.
REFUSED: dict[str, tuple[Attempt, type[DurableError]]] = {
    # queues and tasks
    "a queue by name": (lambda d: d.spawn("billing", "charge", {}), UnknownQueue),
    "an application's model": (lambda d: d.spawn(Order, "charge", {}), UnknownQueue),
    "a sibling": (lambda d: d.spawn(BillingTask.Run, "charge", {}), UnknownQueue),
    "no queue": (lambda d: d.spawn(None, "charge", {}), UnknownQueue),
    "a function": (lambda d: d.spawn(charge.fn), InvalidOptions),
    "a handler": (lambda d: d.spawn(charge), InvalidOptions),
    "nothing": (lambda d: d.spawn(), InvalidOptions),
    "an object": (lambda d: d.spawn(charge.task(1)), InvalidOptions),
    "the key of no queue": (lambda d: d.find_by_key(Order, "k"), UnknownQueue),
    "releasing in no queue": (lambda d: d.release_key("billing", "k"), UnknownQueue),
    "the result of no task": (lambda d: d.result("x"), UnknownQueue),
    "cancelling an application's row": (lambda d: d.cancel(Order(id=1)), UnknownQueue),
    "an empty task name": (named({}, ""), InvalidParams),
    "a long task name": (named({}, "x" * 256), InvalidParams),
    "NUL in a task name": (named({}, "a\0b"), InvalidParams),
    "a surrogate in a task name": (named({}, "\ud800"), InvalidParams),
    # params
    "a missing argument": (called(), InvalidParams),
    "an unknown argument": (called(1, colour="red"), InvalidParams),
    "an argument of the wrong type": (called("not a number"), InvalidParams),
    "too many arguments": (called(1, 2, 3), InvalidParams),
    "wrong params by name": (named({"order_id": "x"}, "charge"), InvalidParams),
    "unknown params by name": (named({"order_id": 1, "colour": "red"}, "charge"), InvalidParams),
    "params that are a list": (named([1]), InvalidParams),
    "params that are None": (named(None), InvalidParams),
    "NUL in params": (named({"a": "x\0y"}), InvalidParams),
    "NUL in a params key": (named({"x\0y": 1}), InvalidParams),
    "NUL in a typed argument": (lambda d: d.spawn(send_mail.call("a\0b")), InvalidParams),
    "a surrogate in params": (named({"a": ["\udfff"]}), InvalidParams),
    "NaN": (named({"a": float("nan")}), InvalidParams),
    "an infinity": (named({"a": {"b": float("-inf")}}), InvalidParams),
    "NaN as a decimal": (called(1, Decimal("NaN")), InvalidParams),
    "a params key that is no string": (named({"a": {1: 2}}), InvalidParams),
    "a set": (named({"a": {1, 2}}), InvalidParams),
    "bytes": (named({"a": b"x"}), InvalidParams),
    "a datetime without a type to go by": (named({"a": datetime(2026, 1, 1, tzinfo=UTC)}), InvalidParams),
    "a megabyte": (named({"a": "x" * 1024 * 1024}), InvalidParams),
    "deep nesting": (named({"a": nested(100_000)}), InvalidParams),
    "a cycle": (named({"a": itself}), InvalidParams),
    "an integer of 5000 digits": (named({"a": 10**5000}), InvalidParams),
    # keys
    "an empty key": (option(idempotency_key=""), InvalidKey),
    "a key of 256 characters": (option(idempotency_key="x" * 256), InvalidKey),
    "NUL in a key": (option(idempotency_key="a\0b"), InvalidKey),
    "a surrogate in a key": (option(idempotency_key="\ud800"), InvalidKey),
    "a reserved key": (option(idempotency_key="~x"), InvalidKey),
    "a key that is no string": (option(idempotency_key=7), InvalidKey),
    # options
    "an unknown option": (option(colour="red"), InvalidOptions),
    "an unknown hold": (option(idempotency_key="k", hold="sometimes"), InvalidOptions),
    "an unknown on_duplicate": (option(idempotency_key="k", on_duplicate="panic"), InvalidOptions),
    "a ttl of an active key": (option(idempotency_key="k", key_ttl=timedelta(1)), InvalidOptions),
    "a ttl of a queued key": (
        option(idempotency_key="k", hold="queued", key_ttl=timedelta(1)),
        InvalidOptions,
    ),
    "a ttl of zero": (option(idempotency_key="k", hold="forever", key_ttl=timedelta(0)), InvalidOptions),
    "a negative ttl": (option(idempotency_key="k", hold="forever", key_ttl=-timedelta(1)), InvalidOptions),
    "a ttl that is a number": (option(idempotency_key="k", hold="forever", key_ttl=60), InvalidOptions),
    "a ttl beyond any calendar": (
        option(idempotency_key="k", hold="forever", key_ttl=timedelta.max),
        InvalidOptions,
    ),
    "strict and update": (
        option(idempotency_key="k", strict=True, on_duplicate="update"),
        InvalidOptions,
    ),
    "on_duplicate without a key": (option(on_duplicate="raise"), InvalidOptions),
    "a negative delay": (option(delay=-timedelta(seconds=1)), InvalidOptions),
    "a delay that is a number": (option(delay=60), InvalidOptions),
    "a delay beyond any calendar": (option(delay=timedelta.max), InvalidOptions),
    "a naive run_at": (option(run_at=datetime(2026, 1, 1)), InvalidOptions),  # noqa: DTZ001 - that is the point
    "a run_at that is text": (option(run_at="2026-01-01"), InvalidOptions),
    "a run_at that is a date": (option(run_at=date(2026, 1, 1)), InvalidOptions),
    "delay and run_at": (option(delay=timedelta(1), run_at=datetime(2026, 1, 1, tzinfo=UTC)), InvalidOptions),
    "no attempts": (option(max_attempts=0), InvalidOptions),
    "too many attempts": (option(max_attempts=2**31), InvalidOptions),
    "attempts that are text": (option(max_attempts="3"), InvalidOptions),
    "attempts that are true": (option(max_attempts=True), InvalidOptions),
    "a priority that is too high": (option(priority=2**15), InvalidOptions),
    "a priority that is text": (option(priority="high"), InvalidOptions),
    "a retry that is none": (option(retry="often"), InvalidOptions),
    "a negative retry": (option(retry=Fixed(-timedelta(1))), InvalidOptions),
    "a jitter over one": (option(retry=Fixed(jitter=1.5)), InvalidOptions),
    "a reserved header": (option(headers={"durable:x": 1}), InvalidOptions),
    "a header name that is no text": (option(headers={1: 1}), InvalidOptions),
    "headers that are text": (option(headers="abc"), InvalidOptions),
    "headers that are a list": (option(headers=[("a", 1)]), InvalidOptions),
    "NaN in headers": (option(headers={"a": float("nan")}), InvalidOptions),
    "NUL in headers": (option(headers={"a": "x\0y"}), InvalidOptions),
    "large headers": (option(headers={"a": "x" * 70_000}), InvalidOptions),
    "an unknown column": (option(columns={"colour": "red"}), InvalidOptions),
    "a column of the library": (option(columns={"state": "completed"}), InvalidOptions),
    "columns that are a list": (option(columns=["order_id"]), InvalidOptions),
}


OPTIONS = "key_ttl|delay|run_at|max_attempts|priority|retry|header|column|hold|on_duplicate|strict|option|spawn takes"


@pytest.mark.parametrize("how", REFUSED)
def test_bad_input_is_refused_before_anything_is_sent(shared_engine, scratch, how):
    attempt, error = REFUSED[how]
    durable = Durable(scratch)
    kept = durable.spawn(charge.call(1), idempotency_key="kept")
    scratch.add(Order(id=1))  # unflushed: it stays so
    with statements(shared_engine) as sent, pytest.raises(error) as refused:
        attempt(durable)
    assert sent == []
    assert 20 <= len(str(refused.value)) < 1000  # it says what is wrong, and is no dump
    assert error is not InvalidOptions or re.search(OPTIONS, str(refused.value))
    scratch.flush()
    assert scratch.scalars(select(BillingTask.id)).all() == [kept.task_id]


def test_invalid_headers_of_a_handler_are_refused_with_its_object():
    try:
        with pytest.raises(DurableError):

            @MailTask.handler("bad headers", headers={"a": float("nan")})
            def bad(ctx: object) -> None: ...

            bad.task()
    finally:
        MailTask.__handlers__.pop("bad headers", None)


def test_database_errors_about_application_values_pass_through(engine, session):
    session.add(Order(id=1))
    with pytest.raises(IntegrityError, match="foreign key"), session.begin_nested():
        Durable(session).spawn(charge.call(1), columns={"order_id": 404})
    with pytest.raises(IntegrityError, match="foreign key"):
        Durable(session).spawn_many([charge.call(1)], columns={"order_id": 404})
    session.commit()  # the batch has a savepoint of its own
    assert session.get(Order, 1) is not None


# A database behind the schema
BEHIND = {
    "no key index": "DROP INDEX uq_durable_billing_tasks_key",
    "no key column": "ALTER TABLE durable_billing_tasks DROP COLUMN idempotency_key",
    "no other column": "ALTER TABLE durable_billing_tasks DROP COLUMN parent_queue",
    "no table": "DROP TABLE durable_billing_tasks CASCADE",
    "an index that a failed concurrent build has left behind": (
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'uq_durable_billing_tasks_key'::regclass"
    ),
}
SAYS = {
    "no key index": "valid index uq_durable_billing_tasks_key",
    "no key column": "column idempotency_key",
    "no other column": "column parent_queue",
    "no table": "table durable_billing_tasks of queue 'billing' is missing in the database",
    "an index that a failed concurrent build has left behind": "valid index uq_durable_billing_tasks_key",
}


@pytest.mark.parametrize("how", BEHIND)
@pytest.mark.owner
def test_outdated_schema_is_a_typed_error_and_the_transaction_goes_on(server_url, how):
    with throwaway(server_url, Base.metadata) as engine:
        with engine.begin() as connection:
            connection.execute(text(BEHIND[how]))
        with Session(engine) as session, session.begin():
            session.add(Order(id=1))
            durable = Durable(session)
            for attempt in (
                lambda: durable.spawn(charge.call(1), idempotency_key="k"),
                lambda: durable.spawn(charge.call(1)),
                lambda: durable.spawn_many([charge.call(1)]),
                lambda: durable.find_by_key(BillingTask, "k"),
                lambda: durable.release_key(BillingTask, "k"),
            ):
                with pytest.raises(SchemaOutdated, match="alembic upgrade head") as refused:
                    attempt()
                assert SAYS[how] in str(refused.value)
            assert durable.spawn(
                send_mail.call("ada"), idempotency_key="k"
            ).created  # the other queue is well
        with Session(engine) as session:
            assert session.get(Order, 1) is not None


@pytest.mark.owner
def test_async_session_gets_the_schema_outdated_error_too(server_url):
    async def scenario(url) -> None:
        engine = create_async_engine(url)
        try:
            async with AsyncSession(engine) as session, session.begin():
                session.add(Order(id=1))
                with pytest.raises(SchemaOutdated, match="alembic upgrade head"):
                    await AsyncDurable(session).spawn(charge.call(1))
                await session.flush()
        finally:
            await engine.dispose()

    with throwaway(server_url, Base.metadata) as engine:
        with engine.begin() as connection:
            connection.execute(text(BEHIND["no key index"]))
        asyncio.run(scenario(make_url(engine.url).set(drivername="postgresql+asyncpg")))


def test_an_upgrade_is_noticed_without_a_restart(server_url):
    with throwaway(server_url) as engine:
        with Session(engine) as session, pytest.raises(SchemaOutdated):
            Durable(session).spawn(charge.call(1))
        Base.metadata.create_all(engine)
        with Session(engine) as session:
            assert Durable(session).spawn(charge.call(1)).created


@pytest.mark.owner
def test_a_schema_that_falls_behind_later_is_still_a_typed_error(server_url):
    with throwaway(server_url, Base.metadata) as engine:
        with Session(engine) as session, session.begin():
            Durable(session).spawn(charge.call(1), idempotency_key="k")
        with engine.begin() as connection:
            connection.execute(text(BEHIND["no key index"]))
        with Session(engine) as session:
            with pytest.raises(SchemaOutdated, match="alembic upgrade head"):
                Durable(session).spawn(charge.call(1), idempotency_key="k")
            session.rollback()
        with engine.begin() as connection:
            connection.execute(text("DROP TABLE durable_billing_runs"))
        with Session(engine) as session:
            [id_] = session.scalars(select(BillingTask.id))
            with pytest.raises(SchemaOutdated, match="alembic upgrade head"):
                Durable(session).cancel(BillingTask, id_)


@pytest.mark.parametrize("how", ["spawn", "spawn_many"])
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_holder_that_the_snapshot_cant_see_is_a_retryable_error(engine, level, how):
    strict, call = engine.execution_options(isolation_level=level), charge.call(1).using(idempotency_key="k")
    with Session(strict) as late, Session(engine) as early:
        durable = Durable(late)
        late.scalar(select(func.count()).select_from(Order))  # its snapshot is taken
        winner = Durable(early).spawn(call)
        early.commit()
        with pytest.raises(RetryTransaction, match="retry the transaction") as refused:
            durable.spawn(call) if how == "spawn" else durable.spawn_many([call])
        assert (refused.value.sqlstate, refused.value.retryable) == ("40001", True)
        late.rollback()
        again = durable.spawn(call)
        assert (again.created, again.task_id) == (False, winner.task_id)


def test_a_conflict_names_key_queue_and_holder_and_what_to_do(scratch):
    durable = Durable(scratch)
    holder = durable.spawn(charge.call(1), idempotency_key="k")
    with pytest.raises(DurableError) as refused:
        durable.spawn(refund.call(1), idempotency_key="k")
    for word in ("'k'", "'billing'", str(holder.task_id), "untouched", "another key"):
        assert word in str(refused.value)


def test_relationships_of_the_application_survive_a_refusal(scratch):
    durable = Durable(scratch)
    invoice = Invoice(id=1, task=durable.spawn(charge.call(1)).task)
    scratch.add(invoice)
    with pytest.raises(InvalidOptions):
        durable.spawn(charge.call(1), priority="high")
    scratch.flush()
    assert invoice.task_id == invoice.task.id
