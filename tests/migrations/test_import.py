"""Import tasks from an application's own table, and from the tables of the two reference systems."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, ForeignKey, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sa_durable import Durable, DurableTask, TaskContext
from sa_durable.alembic import ImportReport
from sa_durable.alembic.importing.references import System
from sa_durable.testing import run_until_idle
from tests.migrations.host import execute, fetch, operate, scalar
from tests.migrations.reference_tables import tables

JOBS = "CREATE TABLE jobs (id bigint PRIMARY KEY, kind text, payload jsonb, status text, dedupe_key text, run_at timestamptz)"
STATES = {"queued": "pending", "working": "running", "done": "completed", "error": "failed"}


class Base(DeclarativeBase):
    pass


class Customer(Base):
    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True)


class MailTask(DurableTask, Base):
    __queue__ = "mail"
    customer_id: Mapped[int | None] = mapped_column(ForeignKey("customers.id"))


ran: list[Any] = []


@MailTask.handler()
def send(ctx: TaskContext, to: str) -> str:
    return f"sent to {to}"


@MailTask.handler()
def order(ctx: TaskContext, number: int) -> list[Any]:
    """A handler as it was written for the other system: two steps of one name, a sleep, an event."""
    first = ctx.step("charge", lambda: ran.append("charge") or "charged again")
    second = ctx.step("charge", lambda: ran.append("charge#2") or "charged again")
    ctx.sleep_for(timedelta(days=3))
    shipped = ctx.await_event(f"shipped-{number}", timeout=timedelta(days=30))
    third = ctx.step("thank", lambda: ran.append("thank") or "thanked")
    return [first, second, shipped, third]


@pytest.fixture
def queue(empty: Engine) -> Iterator[Engine]:
    ran.clear()
    Base.metadata.create_all(empty)
    execute(empty, "INSERT INTO customers VALUES (7)")
    yield empty
    empty.dispose()


def import_jobs(engine: Engine, **changed: Any) -> ImportReport:
    options: dict[str, Any] = {
        "source": "jobs",
        "name": "kind",
        "params": "payload",
        "state": "status",
        "states": STATES,
        "available_at": "run_at",
        "key": "dedupe_key",
        "columns": {"customer_id": "CAST(payload->>'customer' AS integer)"},
        "batch_size": 2,
        **changed,
    }
    return operate(engine, lambda op: op.durable_import("durable_mail_tasks", **options))


ROWS = """INSERT INTO jobs VALUES
    (1, 'send', '{"to": "ann"}', 'queued', 'a', now() - interval '1 day'),
    (2, 'send', '{"to": "bob"}', 'working', 'b', NULL),
    (3, 'send', '{"to": "cid", "customer": 7}', 'queued', 'a', now() + interval '1 day'),
    (4, 'send', '{"to": "dan"}', 'done', 'd', NULL),
    (5, 'send', '{"to": "eve"}', 'queued', '~odd', NULL),
    (6, 'send', '{"to": "fay"}', 'paused', NULL, NULL),
    (7, NULL, '{}', 'queued', NULL, NULL),
    (8, 'send', '[1]', 'queued', NULL, NULL)"""


def test_an_own_table_becomes_a_queue_and_skipped_rows_are_reported(queue):
    execute(queue, JOBS, ROWS)
    report = import_jobs(queue)
    assert (report.copied, report.present) == (5, 0)
    assert {reason.split()[1]: (rows.number, rows.first) for reason, rows in report.skipped.items()} == {
        "name": (1, ("7",)), "params": (1, ("8",)), "state": (1, ("6",)),
    }  # fmt: skip
    assert report.keys is not None
    assert (report.keys.keyed, report.keys.duplicates, report.keys.refused) == (3, 1, 1)
    with Session(queue) as session:
        tasks = {task.params["to"]: task for task in session.scalars(select(MailTask))}
        assert {to: (task.state, task.idempotency_key) for to, task in tasks.items()} == {
            "ann": ("pending", "a"), "bob": ("pending", "b"), "cid": ("sleeping", None), "dan": ("completed", "d"),
            "eve": ("pending", None),
        }  # fmt: skip
        assert tasks["cid"].customer_id == 7
        assert tasks["dan"].finished_at is not None


def test_a_second_import_copies_new_rows_only(queue):
    execute(queue, JOBS, ROWS)
    import_jobs(queue)
    execute(
        queue,
        "UPDATE durable_mail_tasks SET state = 'completed', finished_at = now() WHERE idempotency_key = 'a'",
    )
    execute(queue, "INSERT INTO jobs VALUES (9, 'send', '{\"to\": \"gus\"}', 'queued', 'g', NULL)")
    report = import_jobs(queue)
    assert (report.copied, report.present) == (1, 5)
    assert report.keys is not None
    assert report.keys.keyed == 2  # gus, and cid, whose key is free now
    assert scalar(queue, "SELECT state FROM durable_mail_tasks WHERE idempotency_key = 'g'") == "pending"
    assert scalar(queue, "SELECT count(*) FROM jobs") == 9


def test_an_imported_task_runs_and_is_found_by_its_key(queue):
    execute(queue, JOBS, ROWS)
    import_jobs(queue, where="id IN (1, 2)")
    with Session(queue) as session, session.begin():
        found = Durable(session).spawn(send.call(to="ann"), idempotency_key="a")
        assert (found.created, found.params_match) == (False, True)
    run_until_idle(queue, MailTask)
    assert fetch(queue, "SELECT result FROM durable_mail_tasks ORDER BY 1") == [
        ("sent to ann",),
        ("sent to bob",),
    ]


def test_in_a_callers_transaction_it_is_all_or_nothing(queue):
    execute(queue, JOBS, ROWS)
    with queue.connect() as connection, connection.begin() as transaction:
        operations: Any = Operations(MigrationContext.configure(connection))
        report = operations.durable_import("durable_mail_tasks", source="jobs", name="kind", params="payload",
                                           state="status", states=STATES)  # fmt: skip
        assert report.copied == 5
        transaction.rollback()
    assert scalar(queue, "SELECT count(*) FROM durable_mail_tasks") == 0


class Reference:
    """A queue of another system, into whose tables tests insert tasks."""

    def __init__(self, engine: Engine, system: System) -> None:
        self.engine, self.system = engine, system
        execute(engine, *tables(system, "orders"))

    def insert(self, kind: str, **values: Any) -> None:
        columns = ", ".join(values)
        binds = ", ".join(f"CAST(:{name} AS jsonb)" if name in _JSON else f":{name}" for name in values)
        with self.engine.begin() as connection:
            connection.execute(
                text(f"INSERT INTO {self.system}.{kind}_orders ({columns}) VALUES ({binds})"), values
            )

    def task(self, state: str, run: dict[str, Any] | None = None, **values: Any) -> tuple[UUID, UUID]:
        task_id, run_id = uuid4(), uuid4()
        given = {"task_name": "order", "params": '{"number": 1}', "attempts": 2, "max_attempts": 5, **values}
        self.insert("t", task_id=task_id, state=state, last_attempt_run=run_id, **given)
        self.insert("r", run_id=run_id, task_id=task_id, attempt=2, state=state, **(run or {}))
        return task_id, run_id

    def checkpoint(self, task_id: UUID, run_id: UUID, name: str, value: str, age: int) -> None:
        with self.engine.begin() as connection:
            connection.execute(
                text(f"INSERT INTO {self.system}.c_orders (task_id, checkpoint_name, state, owner_run_id, updated_at)"
                     " VALUES (:t, :n, CAST(:v AS jsonb), :r, now() - make_interval(mins => :a))"),
                {"t": task_id, "n": name, "v": value, "r": run_id, "a": age},
            )  # fmt: skip

    def import_queue(self, **options: Any) -> ImportReport:
        return operate(self.engine, lambda op: op.durable_import_queue(
            "mail", system=self.system, source="orders", sleeps=["cool-down", "nap {1}"], **options
        ))  # fmt: skip

    def hashed(self, name: str, digest: str = "0f" * 32) -> str:
        """Return a checkpoint's name in the other system: durable appends a hash of the step's params."""
        return f"{name}-{digest}" if self.system is System.DURABLE else name

    def wrapped(self, payload: str) -> str:
        return f'{{"inner": {payload}, "metadata": {{}}}}' if self.system is System.DURABLE else payload


_JSON = {
    "params",
    "headers",
    "retry_strategy",
    "cancellation",
    "completed_payload",
    "payload",
    "failure_reason",
}
LONG_AGO = "2026-01-01T00:00:00+00:00"


@pytest.fixture(params=System)
def reference(queue: Engine, request: pytest.FixtureRequest) -> Reference:
    return Reference(queue, request.param)


def halfway(reference: Reference) -> UUID:
    """Insert a task whose first attempt failed. It was charged twice, has slept, and waits for its shipment."""
    task_id, run_id = reference.task(
        "sleeping", run={"wake_event": "shipped-1", "available_at": "infinity", "started_at": LONG_AGO},
        first_started_at=LONG_AGO, retry_strategy='{"kind": "fixed", "base_seconds": 7}',
    )  # fmt: skip
    reference.insert(
        "r", run_id=uuid4(), task_id=task_id, attempt=1, state="failed", claimed_by="old", failed_at=LONG_AGO,
        failure_reason='{"name": "ValueError", "message": "no"}',
    )  # fmt: skip
    second = "charge#2" if reference.system is System.ABSURD else reference.hashed("charge", "e1" * 32)
    reference.checkpoint(task_id, run_id, reference.hashed("charge"), '"first"', 3)
    reference.checkpoint(task_id, run_id, second, '"second"', 2)
    reference.checkpoint(task_id, run_id, reference.hashed("cool-down"), f'"{LONG_AGO}"', 1)
    reference.insert("w", task_id=task_id, run_id=run_id, step_name="s", event_name="shipped-1")
    return task_id


def test_a_task_of_another_system_continues_where_it_stopped(reference):
    task_id = halfway(reference)
    report = reference.import_queue()
    assert (report.copied, report.skipped) == (1, {})
    run_until_idle(reference.engine, MailTask)
    assert ran == []  # it waits, and has done nothing a second time
    with Session(reference.engine) as session, session.begin():
        assert session.get_one(MailTask, task_id).state == "sleeping"
        Durable(session).emit_event(MailTask, "shipped-1", {"by": "mule"})
    run_until_idle(reference.engine, MailTask)
    with Session(reference.engine) as session:
        task = session.get_one(MailTask, task_id)
        assert (task.state, task.result) == ("completed", ["first", "second", {"by": "mule"}, "thanked"])
        assert [(run.attempt, run.state, run.error["type"]) for run in task.runs] == [
            (1, "failed", "ValueError")
        ]
        assert (task.attempt, task.retry["delay_seconds"]) == (2, 7)
    assert ran == ["thank"]


def test_events_are_imported_and_placeholders_of_waiters_are_not(reference):
    task_id = halfway(reference)
    reference.insert("e", event_name="shipped-1", payload=reference.wrapped('{"by": "cart"}'))
    reference.insert("e", event_name="shipped-2", payload=None)
    reference.import_queue()
    reference.import_queue()
    assert fetch(reference.engine, "SELECT name, payload, dropped FROM durable_mail_events") == [
        ("shipped-1", {"by": "cart"}, False)
    ]
    run_until_idle(reference.engine, MailTask)
    with Session(reference.engine) as session:
        assert session.get_one(MailTask, task_id).result == ["first", "second", {"by": "cart"}, "thanked"]


def test_sleepers_timeouts_and_deadlines_keep_their_times(reference):
    later = "2126-01-01T00:00:00+00:00"
    asleep, _ = reference.task("sleeping", run={"available_at": later})
    waiting, run_id = reference.task(
        "sleeping", run={"wake_event": "shipped-1", "available_at": later}, first_started_at=LONG_AGO,
        cancellation='{"max_delay": 60, "max_duration": 86400}',
    )  # fmt: skip
    reference.insert(
        "w", task_id=waiting, run_id=run_id, step_name="s", event_name="shipped-1", timeout_at=later
    )
    running, _ = reference.task("running", run={"started_at": LONG_AGO, "claimed_by": "old"})
    reference.import_queue()
    with Session(reference.engine) as session:
        tasks = {task.id: task for task in session.scalars(select(MailTask))}
        assert [tasks[i].state for i in (asleep, waiting, running)] == ["sleeping", "pending", "pending"]
        assert tasks[asleep].available_at.isoformat() == later
        assert tasks[waiting].cancel_at.isoformat() == "2026-01-02T00:00:00+00:00"
        (wait,) = session.scalars(select(MailTask.Wait))
        assert (wait.step, wait.timeout_at.isoformat()) == ("$await:shipped-1", later)
        assert tasks[running].token == 1  # a worker that claims it looks for checkpoints


def test_ended_tasks_are_imported_only_on_request(reference):
    done, _ = reference.task("completed", run={"completed_at": LONG_AGO}, completed_payload="[1, 2]")
    failed, _ = reference.task(
        "failed", run={"failed_at": LONG_AGO, "failure_reason": '{"name": "E", "message": "m"}'}
    )
    assert reference.import_queue().copied == 0
    assert reference.import_queue(terminal=True).copied == 2
    with Session(reference.engine) as session:
        durable = Durable(session)
        assert durable.result(MailTask, done).value == [1, 2]
        error = durable.result(MailTask, failed).error
        assert error is not None
        assert (error.type, error.message) == ("E", "m")


def test_keys_of_absurd_hold_for_ever_here_too(queue):
    reference = Reference(queue, System.ABSURD)
    task_id, _ = reference.task("pending", idempotency_key="once")
    reference.import_queue(key="idempotency_key")
    with Session(queue) as session, session.begin():
        assert Durable(session).spawn(order.call(number=1), idempotency_key="once").task_id == task_id
        assert session.get_one(MailTask, task_id).key_hold == "forever"


def test_children_of_durable_keep_their_parent(queue):
    reference = Reference(queue, System.DURABLE)
    parent, _ = reference.task("running")
    child, _ = reference.task("pending", parent_task_id=parent)
    reference.import_queue()
    with Session(queue) as session:
        task = session.get_one(MailTask, child)
        assert (task.parent_queue, task.parent_id) == ("mail", parent)
