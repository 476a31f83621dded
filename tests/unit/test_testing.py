"""The factories of sa_durable.testing make rows that sa_durable itself could have written."""

from __future__ import annotations

import asyncio
import doctest
from datetime import timedelta
from typing import Any

import pytest
from factory.alchemy import SQLAlchemyModelFactory
from factory.errors import UnsupportedStrategy
from sqlalchemy import ForeignKey, func, inspect, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    mapped_column,
    scoped_session,
    sessionmaker,
)

import sa_durable.testing
from sa_durable import (
    Durable,
    DurableTask,
    Exponential,
    Fixed,
    InvalidOptions,
    TaskError,
    TaskState,
    UnknownQueue,
)
from sa_durable.policy import retry_from_json
from sa_durable.services import claims, runs
from sa_durable.testing import (
    checkpoint_factory,
    event_factory,
    queue_factory,
    run_factory,
    task_factory,
    wait_factory,
)
from tests.shop import BillingTask, Invoice, MailTask, Order, charge

FACTORIES = [task_factory, run_factory, checkpoint_factory, event_factory, wait_factory, queue_factory]
HOUR = timedelta(hours=1)


@pytest.fixture
def tasks(session):
    return task_factory(BillingTask, session)


def _now(session):
    return session.scalar(select(func.statement_timestamp()))


def _shape(row: Any) -> dict[str, Any]:
    """What rows of one state have in common: which columns are set, and the values that follow from the state."""
    exact = {"state", "attempt", "token", "max_attempts", "headers", "priority"}
    values = {c.key: getattr(row, c.key) for c in inspect(row).mapper.column_attrs if c.key != "order_id"}
    return {name: value if name in exact else value is not None for name, value in values.items()}


def _claim(session):
    (claim,) = claims.claim(session, BillingTask, names=["charge"], worker="w", lease=HOUR, limit=1)
    return claim


def _written(session, state: str, attempt: int, started: bool) -> BillingTask:
    """A task that sa_durable brought into `state` in that attempt; `started`: a worker had it then."""
    asleep = state == "sleeping" and not started
    retry = Fixed(HOUR if asleep else timedelta(0), jitter=0)
    delay = HOUR if asleep and attempt == 1 else None
    options = {"retry": retry, "delay": delay, "max_attempts": 5}
    task = Durable(session).spawn(charge.call(order_id=7), **options).task
    for _ in range(1, attempt):
        runs.fail(session, BillingTask, _claim(session), TaskError("RuntimeError", "no"))
    claim = _claim(session) if started else None
    match state:
        case "pending" if claim:
            claims.release(session, BillingTask, {claim.task_id: claim.token})
        case "sleeping" if claim:
            runs.sleep(session, BillingTask, claim, "nap", delay=HOUR)
        case "completed":
            runs.complete(session, BillingTask, claim, "done")
        case "failed":
            runs.fail(session, BillingTask, claim, TaskError("RuntimeError", "no"), retryable=False)
        case "cancelled":
            Durable(session).cancel(task)
    session.expire_all()
    return task


@pytest.mark.parametrize(
    "state, attempt, started",
    [
        ("pending", 1, False),
        ("pending", 1, True),
        ("pending", 3, False),
        ("running", 1, True),
        ("running", 3, True),
        ("sleeping", 1, False),
        ("sleeping", 1, True),
        ("sleeping", 2, False),
        ("completed", 1, True),
        ("completed", 2, True),
        ("failed", 1, True),
        ("failed", 3, True),
        ("cancelled", 1, False),
        ("cancelled", 1, True),
        ("cancelled", 3, False),
        ("cancelled", 2, True),
    ],
)
def test_made_up_task_is_like_one_that_sa_durable_wrote(session, tasks, state, attempt, started):
    written = _written(session, state, attempt, started)
    made = tasks(
        state=state, attempt=attempt, started=started, result="done" if state == "completed" else None
    )
    assert _shape(made) == _shape(written)
    assert [_shape(run) for run in made.runs] == [_shape(run) for run in written.runs]
    if made.runs and made.runs[-1].attempt == made.attempt:
        assert made.runs[-1].id == made.run_id


@pytest.mark.parametrize("state", TaskState)
def test_state_is_a_trait_or_a_value(tasks, state):
    assert tasks(**{state.value: True}).state == tasks(state=state).state == state


@pytest.mark.parametrize("state", TaskState)
@pytest.mark.parametrize("attempt", [1, 2, 5])
def test_times_of_a_task_are_in_order(session, tasks, state, attempt):
    task = tasks(state=state, attempt=attempt, started=True)
    history = [time for run in task.runs for time in (run.started_at, run.ended_at)]
    started_at = None if task.started_at in history else task.started_at
    times = [task.created_at, task.first_started_at, *history, started_at, task.finished_at]
    present = [time for time in times if time is not None]
    assert present == sorted(present)
    assert [run.attempt for run in task.runs] == list(range(1, 1 + len(task.runs)))


def test_running_task_holds_its_lease_unless_it_is_expired(session, tasks):
    assert tasks(running=True).lease_expires_at > _now(session)
    lost = tasks(lease_expired=True)
    assert (lost.state, lost.started_at < lost.lease_expires_at < _now(session)) == ("running", True)


def test_sleeping_task_wakes_in_the_future_unless_it_is_due(session, tasks):
    assert tasks(sleeping=True).available_at > _now(session)
    due = tasks(due=True)
    assert (due.state, due.available_at <= _now(session)) == ("sleeping", True)


def test_key_goes_straight_into_the_row_and_holds(session, tasks):
    task = tasks(name="charge", idempotency_key="charge:7")
    assert task.key_hold == "active"
    assert Durable(session).find_by_key(BillingTask, "charge:7") is task
    assert Durable(session).spawn(charge.call(order_id=7), idempotency_key="charge:7").task is task


def test_released_key_is_free(session, tasks):
    tasks(idempotency_key="charge:7", hold=None)
    assert Durable(session).find_by_key(BillingTask, "charge:7") is None


@pytest.mark.parametrize("ttl, held", [(HOUR, True), (timedelta(minutes=1), False)])
def test_key_ttl_counts_from_the_spawn(session, tasks, ttl, held):
    task = tasks(completed=True, attempt=2, idempotency_key="k", hold="forever", key_ttl=ttl)
    assert task.key_expires_at == task.created_at + ttl
    assert (Durable(session).find_by_key(BillingTask, "k") is task) is held


def test_columns_win_over_what_the_state_says(tasks):
    task = tasks(running=True, claimed_by="me", token=40, params={"a": 1}, priority=-3, max_attempts=None)
    assert (task.claimed_by, task.token, task.params, task.priority, task.max_attempts) == (
        "me",
        40,
        {"a": 1},
        -3,
        None,
    )


def test_times_may_be_values_or_sql(session, tasks):
    now = _now(session)
    assert tasks(sleeping=True, available_at=now).available_at == now
    assert tasks(sleeping=True, available_at=func.statement_timestamp()).available_at > now


def test_relationship_takes_an_object_that_is_still_pending_in_the_session(session, tasks):
    order = Order(id=7)
    session.add(order)
    task = tasks(order=order)
    assert (task.order_id, task.order, order.tasks) == (7, order, [task])


def test_relationship_of_another_table_refers_to_a_made_up_task(session, tasks):
    invoice = Invoice(id=1, task=tasks())
    session.add(invoice)
    session.flush()
    assert invoice.task_id == invoice.task.id


def test_unknown_column_is_refused(tasks):
    with pytest.raises(TypeError, match="BillingTask has no column or relationship 'stat'"):
        tasks(stat="running")


def test_made_up_rows_are_not_committed(engine, session, tasks):
    tasks.create_batch(3)
    session.rollback()
    assert session.scalar(select(func.count()).select_from(BillingTask)) == 0


def test_rows_beside_the_tasks(session, tasks):
    task = tasks(running=True)
    run = run_factory(BillingTask, session)(task=task)
    assert (run.task_id, run.state, run.error["message"]) == (task.id, "failed", "made up")
    cancelled = run_factory(BillingTask, session)(cancelled=True)
    assert (cancelled.state, cancelled.error, cancelled.task.attempt) == ("cancelled", None, 2)
    saved = checkpoint_factory(BillingTask, session)(task=task, value=[1])
    assert (saved.task_id, saved.value, saved.attempt) == (task.id, [1], 1)
    assert checkpoint_factory(BillingTask, session)().task_id != task.id


def test_events_are_unsettled_settled_or_dropped(session):
    events = event_factory(BillingTask, session)
    assert [
        (e.settled_at is None, e.dropped) for e in (events(), events(settled=True), events(too_late=True))
    ] == [
        (True, False),
        (False, False),
        (False, True),
    ]
    assert events(name="paid", payload={"by": "card"}).payload == {"by": "card"}


def test_wait_belongs_to_a_sleeper_that_wakes_when_it_times_out(session):
    waits = wait_factory(BillingTask, session)
    endless, timed = waits(event_name="paid"), waits(timed=True)
    sleepers = [session.get_one(BillingTask, wait.task_id) for wait in (endless, timed)]
    assert [task.state for task in sleepers] == ["sleeping", "sleeping"]
    assert (endless.event_name, endless.timeout_at, sleepers[0].available_at) == ("paid", None, None)
    assert timed.timeout_at == sleepers[1].available_at is not None or timed.timeout_at > _now(session)


def test_paused_queue_gives_no_work(session, tasks):
    queue = queue_factory(BillingTask, session)(paused=True)
    tasks(name="charge")
    assert queue.name == "billing"
    assert claims.claim(session, BillingTask, names=["charge"], worker="w", lease=HOUR, limit=1) == []


@pytest.mark.parametrize("make", FACTORIES)
def test_there_is_one_factory_for_a_model_and_a_session(session, make):
    assert issubclass(make(BillingTask), SQLAlchemyModelFactory)
    assert make(BillingTask) is make(BillingTask) is not make(MailTask)
    assert make(BillingTask, session) is make(BillingTask, session) is not make(BillingTask)


def test_scoped_session_is_its_session(engine):
    scoped = scoped_session(sessionmaker(engine))
    assert task_factory(BillingTask, scoped) is task_factory(BillingTask, scoped())
    assert inspect(task_factory(BillingTask, scoped)()).session is scoped()
    scoped.remove()


def test_unbound_factory_is_subclassed_as_factory_boy_does(session):
    class LateTasks(task_factory(BillingTask)):
        class Meta:
            sqlalchemy_session_factory = lambda: session  # noqa: E731 - as factory-boy's manual has it
            sqlalchemy_session_persistence = "commit"

        priority = 9
        name = "charge"

    assert (LateTasks().priority, LateTasks(running=True).name) == (9, "charge")
    session.rollback()
    assert session.scalar(select(func.count()).select_from(BillingTask)) == 2


def test_factory_without_a_session_says_so():
    with pytest.raises(RuntimeError, match="No session"):
        task_factory(MailTask)()


def test_rows_are_not_built_without_a_database(tasks):
    with pytest.raises(UnsupportedStrategy, match="use create"):
        tasks.build()


def test_other_things_than_queues_and_sessions_are_refused(engine):
    with pytest.raises(UnknownQueue, match="no queue"):
        task_factory(Order)
    with pytest.raises(InvalidOptions, match="run_sync"):
        task_factory(BillingTask, AsyncSession())


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_rows_come_back_loaded_through_run_sync(engine, driver):
    async def use() -> list[Any]:
        # asyncpg takes a socket's directory as `host`, as psycopg does
        async_engine = create_async_engine(engine.url.set(drivername=f"postgresql+{driver}"))
        async with AsyncSession(async_engine) as session:
            task = await session.run_sync(lambda s: task_factory(BillingTask, s)(failed=True, attempt=2))
            loaded = [task.state, task.attempt, task.finished_at >= task.created_at]
        await async_engine.dispose()
        return loaded

    assert asyncio.run(use()) == ["failed", 2, True]


def test_dataclass_base_and_columns_of_other_names(engine, session):
    class Base(MappedAsDataclass, DeclarativeBase, kw_only=True):
        pass

    class Tenant(Base):
        __tablename__ = "test_testing_tenants"
        number: Mapped[int] = mapped_column("tenant_no", primary_key=True)

    class ImportTask(DurableTask, Base):
        __queue__ = "test_testing"
        tenant_no: Mapped[int | None] = mapped_column("tenant", ForeignKey(Tenant.number), default=None)
        label: Mapped[str] = mapped_column(default="none")

    Base.metadata.create_all(session.connection())
    session.add(Tenant(number=3))
    task = task_factory(ImportTask, session)(cancelled=True, tenant_no=3, started=True)
    assert (task.tenant_no, task.label, task.state, len(task.runs)) == (3, "none", "cancelled", 1)


def test_stored_retry_policy_is_the_default_one(tasks):
    assert retry_from_json(tasks().retry) == Exponential()


def test_example_runs():
    done = doctest.testmod(sa_durable.testing)
    assert (done.failed, done.attempted) == (0, 12)
