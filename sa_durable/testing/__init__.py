"""Test helpers for applications: run due tasks, move the database's time, assert spawns, create rows.

They need factory-boy: `pip install "sa-durable[testing]"`. There is no pytest plugin: import what you use.

    >>> from datetime import timedelta
    >>> from sqlalchemy import create_engine
    >>> from sqlalchemy.orm import DeclarativeBase, Session
    >>> from sa_durable import AsyncTaskContext, Durable, DurableTask
    >>> from sa_durable.embedded import postgres
    >>> from sa_durable.testing import assert_spawned, clock, run_until_idle
    >>> class Base(DeclarativeBase): ...
    >>> class ShippingTask(DurableTask, Base):
    ...     __queue__ = "shipping"
    >>> @ShippingTask.handler()
    ... async def ship(ctx: AsyncTaskContext, order_id: int) -> str:
    ...     await ctx.step("pack", print, f"packing {order_id}")
    ...     await ctx.sleep_for(timedelta(days=7))
    ...     return f"shipped {order_id}"
    >>> with postgres() as server:
    ...     engine = create_engine(server.url)
    ...     Base.metadata.create_all(engine)
    ...     with clock(engine) as time:
    ...         with Session(engine) as session, session.begin():
    ...             spawned = Durable(session).spawn(ship.call(order_id=7), only_once=True)
    ...             print(assert_spawned(session, ship, order_id=7).state)
    ...         idle = run_until_idle(engine, ShippingTask)
    ...         print([(run.name, str(run.state)) for run in idle.runs])
    ...         print(idle.next_due - time.now() > timedelta(days=6))
    ...         moved = time.move_to(idle.next_due)
    ...         idle = run_until_idle(engine, ShippingTask)
    ...         print([(run.name, str(run.state)) for run in idle.runs], idle.remaining)
    ...         with Session(engine) as session:
    ...             print(Durable(session).result(spawned).value)
    ...     engine.dispose()
    pending
    packing 7
    [('ship', 'sleeping')]
    True
    [('ship', 'completed')] ()
    shipped 7

`run_until_idle` doesn't wake sleeping tasks. To skip all sleeps::

    while due := run_until_idle(engine, ShippingTask).next_due:
        time.move_to(due)

In a running event loop, use `await run_until_idle_async(async_engine, ShippingTask)` and `await
assert_spawned_async(async_session, ship)`. `clock` is the same there. As pytest fixtures::

    @pytest.fixture(scope="session")
    def database():
        with postgres() as server:  # or your own database, whose tables the tests may empty
            engine = create_engine(server.url)
            Base.metadata.create_all(engine)
            yield engine
            engine.dispose()


    @pytest.fixture
    def engine(database):
        with database.begin() as connection:
            for table in reversed(Base.metadata.sorted_tables):  # faster than TRUNCATE for small tables
                connection.execute(delete(table))
        return database


    @pytest.fixture
    def time(engine):
        with clock(engine) as time:
            yield time

Factories create rows of a queue's tables, in any state, as if sa_durable had written them. With a session,
each function returns the factory that is bound to the session. Without a session, it returns a factory to
subclass, with columns of your own and factory-boy's `Meta.sqlalchemy_session` or
`sqlalchemy_session_factory`.

    >>> from sa_durable.testing import checkpoint_factory, task_factory
    >>> with postgres() as server:
    ...     engine = create_engine(server.url)
    ...     Base.metadata.create_all(engine)
    ...     with Session(engine) as session:
    ...         tasks = task_factory(ShippingTask, session)
    ...         task = tasks(running=True, idempotency_key="ship:7", hold="forever")
    ...         print(task.state, task.claimed_by, task.token, task.lease_expires_at > task.started_at)
    ...         failed = tasks(failed=True, attempt=3)
    ...         print(failed.error["message"], [(run.attempt, run.state) for run in failed.runs])
    ...         print([task.priority for task in tasks.create_batch(3, sleeping=True, priority=-1)])
    ...         saved = checkpoint_factory(ShippingTask, session)(task=task, name="pack", value={"boxes": 2})
    ...         print(saved.name, saved.value, saved.task_id == task.id)
    ...     engine.dispose()
    running worker-1 1 True
    made up [(1, 'failed'), (2, 'failed'), (3, 'failed')]
    [-1, -1, -1]
    pack {'boxes': 2} True

With an AsyncSession: `await session.run_sync(lambda s: task_factory(ShippingTask, s)(running=True))`.

Rows are inserted at once and come back loaded. They are not committed. Times are the database's. Times that
you pass can be SQL expressions.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

from sqlalchemy.orm import Session, scoped_session

from ..models import (
    DurableCheckpoint,
    DurableEvent,
    DurableQueue,
    DurableRun,
    DurableTask,
    DurableWait,
    queue_of,
)
from . import factories
from .clock import Clock, clock
from .driven import FinishedRun, RemainingTask
from .idle import Idle, NotIdle, run_until_idle, run_until_idle_async
from .spawned import assert_not_spawned, assert_not_spawned_async, assert_spawned, assert_spawned_async

T = TypeVar("T", bound=DurableTask)
M = TypeVar("M")
AnySession = Session | scoped_session[Any]


class RowFactory(Protocol[M]):
    """The type of a factory, for type checkers: a subclass of `factory.alchemy.SQLAlchemyModelFactory`."""

    def __call__(self, **values: Any) -> M:
        """Do what `create` does."""

    def create(self, **values: Any) -> M:
        """Insert a row. Returns it as an object of the session."""

    def create_batch(self, size: int, **values: Any) -> list[M]:
        """Insert `size` rows."""


def task_factory(model: type[T], session: AnySession | None = None) -> RowFactory[T]:
    """Return the factory of a queue's tasks: `tasks(state="running")` or `tasks(running=True)`.

    Every TaskState is a trait. The default is pending. Further traits are:

    - `started`: a pending, sleeping or cancelled task that a worker has run before.
    - `lease_expired`: a running task whose worker has died.
    - `due`: a sleeping task whose wake-up time has passed.

    Columns are set by their names, and relationships take objects. A key is set as in spawn, by
    `idempotency_key`, `hold` (default: active; None: released) and `key_ttl`. A task with `attempt=3` has a
    history of two failed runs, unless `history=False`.

    Args:
        model: The task class of the queue.
        session: Where rows are inserted. None: the factory is for subclassing.

    Raises:
        InvalidOptions: `session` is an AsyncSession. Use its `run_sync`.
    """
    rows: RowFactory[T] = factories.bound(factories.task, queue_of(model), session)
    return rows


def run_factory(model: type[DurableTask], session: AnySession | None = None) -> RowFactory[DurableRun]:
    """Return the factory of ended runs: failed, or `cancelled=True`.

    They belong to `task`, by default a new task that waits for its second attempt. For the arguments, see
    `task_factory`.
    """
    rows: RowFactory[DurableRun] = factories.bound(factories.run, queue_of(model), session)
    return rows


def checkpoint_factory(
    model: type[DurableTask], session: AnySession | None = None
) -> RowFactory[DurableCheckpoint]:
    """Return the factory of checkpoints, with a `name` and a `value`.

    They belong to `task`, by default a new running task. For the arguments, see `task_factory`.
    """
    rows: RowFactory[DurableCheckpoint] = factories.bound(factories.checkpoint, queue_of(model), session)
    return rows


def event_factory(model: type[DurableTask], session: AnySession | None = None) -> RowFactory[DurableEvent]:
    """Return the factory of events, with a `name` and a `payload`.

    An event is unsettled, or `settled=True`, or `too_late=True` (dropped). For the arguments, see
    `task_factory`.
    """
    rows: RowFactory[DurableEvent] = factories.bound(factories.event, queue_of(model), session)
    return rows


def wait_factory(model: type[DurableTask], session: AnySession | None = None) -> RowFactory[DurableWait]:
    """Return the factory of waits for `event_name`. With `timed=True`, a wait times out in an hour.

    They belong to `task`, by default a new sleeping task. For the arguments, see `task_factory`.
    """
    rows: RowFactory[DurableWait] = factories.bound(factories.wait, queue_of(model), session)
    return rows


def queue_factory(model: type[DurableTask], session: AnySession | None = None) -> RowFactory[DurableQueue]:
    """Return the factory of the queue's own row. `paused=True` pauses the queue.

    For the arguments, see `task_factory`.
    """
    rows: RowFactory[DurableQueue] = factories.bound(factories.queue, queue_of(model), session)
    return rows


__all__ = [
    "Clock",
    "FinishedRun",
    "Idle",
    "NotIdle",
    "RemainingTask",
    "RowFactory",
    "assert_not_spawned",
    "assert_not_spawned_async",
    "assert_spawned",
    "assert_spawned_async",
    "checkpoint_factory",
    "clock",
    "event_factory",
    "queue_factory",
    "run_factory",
    "run_until_idle",
    "run_until_idle_async",
    "task_factory",
    "wait_factory",
]
