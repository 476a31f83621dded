"""Names and keys are data: what looks like SQL, a format or Python in them is stored, found and left alone."""

from __future__ import annotations

import sys
import threading
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, delete, insert, inspect, text
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.schema import CreateSchema

from sa_durable import (
    DeclarationError,
    Durable,
    DurableTask,
    InvalidOptions,
    NoRetry,
    TaskContext,
    TaskState,
    Worker,
    verify,
    wait_for,
)
from sa_durable.testing import run_until_idle
from tests.databases import throwaway, url_of
from tests.security.app import Base, ChildTask, VaultTask, child, whole
from tests.services.clients import CLIENTS, open_client
from tests.waiting import wait_until

NASTY = [
    "'; DROP TABLE durable_vault_tasks; --",
    "\"; DELETE FROM durable_vault_tasks WHERE '1'='1",
    "%s %(name)s %% :name $1 ? {0} {name} \\' \\x27",
    "x $$; SELECT pg_sleep(60); $$",
    "*/ OR 1=1 /* \u2019 \uff07 \u02bc",
]


@pytest.fixture(scope="module")
def vault(server_url):
    with throwaway(server_url, Base.metadata) as engine:
        yield engine


@pytest.fixture(autouse=True)
def empty(vault: Engine):
    with vault.begin() as connection:
        for table in reversed(Base.metadata.sorted_tables):
            connection.execute(delete(table))
    yield
    assert verify(vault, Base.metadata) == []  # whatever was in names, the schema is what it was


@pytest.mark.parametrize("nasty", NASTY)
@pytest.mark.parametrize("kind", CLIENTS)
def test_keys_names_headers_and_events_are_stored_as_given(vault, kind, nasty):
    with open_client(kind, url_of(vault)) as client:
        durable, session = client.durable, client.session
        bystander = durable.spawn(whole.call(name="bystander"))
        spawned = durable.spawn(
            VaultTask, nasty, {nasty: nasty}, idempotency_key=nasty, headers={nasty: nasty}
        )
        assert not durable.spawn(VaultTask, nasty, {nasty: nasty}, idempotency_key=nasty).created
        update = {"idempotency_key": nasty, "on_duplicate": "update"}
        assert durable.spawn(VaultTask, nasty, {nasty: [nasty]}, **update).task_id == spawned.task_id
        assert durable.find_by_key(VaultTask, nasty).id == spawned.task_id
        assert durable.count_ready(VaultTask, [nasty]) == 1
        durable.emit_event(VaultTask, nasty, {nasty: nasty})
        durable.cancel(spawned)
        durable.retry(spawned)
        copy = durable.spawn(VaultTask, nasty, {}, idempotency_key=nasty, on_duplicate="replace")
        assert durable.release_key(VaultTask, nasty)
        session.commit()
        assert durable.result(bystander).state == "pending"
    with Session(vault) as session:
        task = session.get_one(VaultTask, spawned.task_id)
        assert (task.name, task.idempotency_key, task.params) == (nasty, nasty, {nasty: [nasty]})
        assert session.get_one(VaultTask, copy.task_id).name == nasty
        assert [(e.name, e.payload) for e in session.query(VaultTask.Event)] == [(nasty, {nasty: nasty})]


@pytest.mark.parametrize("nasty", NASTY)
def test_handlers_steps_events_and_workers_can_have_such_names(vault, nasty):
    nasty = nasty.replace("#", "")

    def runs(ctx: TaskContext, it: str) -> str:
        saved = ctx.step(nasty, lambda: it)
        ctx.emit_event(nasty, saved)
        ctx.transaction(f"{nasty} too", lambda session: session.execute(text("SELECT 1")).scalar())
        return ctx.await_event(nasty)

    runs.__annotations__ = {"it": str, "return": str}
    VaultTask.handler(nasty, retry=NoRetry())(runs)
    worker = Worker(vault, [VaultTask], worker_id=nasty, poll_interval=timedelta(milliseconds=20))
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        with Session(vault) as session, session.begin():
            task = Durable(session).spawn(VaultTask, nasty, {"it": nasty})
        assert wait_for(vault, task, timeout=timedelta(seconds=60)).value == nasty
        with Session(vault) as session:
            assert session.get_one(VaultTask, task.task_id).claimed_by == nasty
    finally:
        worker.request_stop()
        thread.join(20)
        del VaultTask.__handlers__[nasty]


@pytest.mark.parametrize(
    "queue", [*NASTY, "Billing", "a-b", "a b", "a.b", "a" * 33, "", "1a", "tasks\n", None, 7]
)
def test_queue_name_is_a_plain_identifier_or_refused(queue):
    class Other(DeclarativeBase):
        pass

    with pytest.raises(DeclarationError, match="a-z, 0-9 and _"):
        type("OddTask", (DurableTask, Other), {"__queue__": queue})


@pytest.mark.parametrize("worker_id", ["", "a\0b", "a\nb", "x" * 256, 7])
def test_a_workers_name_is_printable_or_refused(vault, worker_id):
    with pytest.raises(InvalidOptions, match="worker_id"):
        Worker(vault, [VaultTask], worker_id=worker_id)


def test_a_schema_may_be_called_anything(vault):
    odd = "we\"ird'; DROP TABLE durable_vault_tasks; -- "
    moved = vault.execution_options(schema_translate_map={None: odd})
    with vault.begin() as connection:
        connection.execute(CreateSchema(odd))
    Base.metadata.create_all(moved)
    with Session(moved) as session, session.begin():
        task = Durable(session).spawn(child.call(), idempotency_key="k")
        assert Durable(session).spawn(child.call(), idempotency_key="k").task_id == task.task_id
    run_until_idle(moved, ChildTask)
    with Session(moved) as session:
        assert Durable(session).result(task).state == "completed"
    with Session(vault) as session:
        assert session.get(ChildTask, task.task_id) is None
    assert "durable_vault_tasks" in inspect(vault).get_table_names(schema=odd)


IMPORTABLE = [
    "antigravity",
    "this",
    "os.system",
    "builtins:exec",
    "tests.security.app:whole",
    "subprocess.Popen",
]


def test_a_name_in_the_database_that_python_knows_runs_nothing(vault, caplog):
    before = set(sys.modules)
    with Session(vault) as session, session.begin():
        odd = [Durable(session).spawn(VaultTask, name, {"args": ["true"]}) for name in IMPORTABLE]
        known = Durable(session).spawn(child.call())
    worker = Worker(vault, [VaultTask, ChildTask], poll_interval=timedelta(milliseconds=20))
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        assert wait_for(vault, known, timeout=timedelta(seconds=60)).value == "child"
    finally:
        worker.request_stop()
        thread.join(20)
    with Session(vault) as session:
        assert [Durable(session).result(task).state for task in odd] == ["pending"] * len(odd)
    assert not {"antigravity", "this"} & (set(sys.modules) - before)


# Its first attempt fails, so that the policy is asked: what can't be read is the default one.
FAILS = {"name": "everything", "params": {"name": "x"}, "max_attempts": 5}
ROWS = {
    "params that are no object": {"params": ["os.system", "true"]},
    "params that are null": {"params": None},
    "params with what pickle would run": {
        "params": {"name": {"py/object": "os.system", "__reduce__": ["true"]}}
    },
    "a retry policy of no kind": {**FAILS, "retry": {"kind": "os.system"}},
    "a retry policy of other types": {**FAILS, "retry": {"kind": "fixed", "delay_seconds": "soon"}},
    "a retry policy of more than a century": {**FAILS, "retry": {"kind": "fixed", "delay_seconds": 1e300}},
    "a retry policy that is a list": {**FAILS, "retry": ["fixed"]},
    "a retry policy with jitter that is none": {
        **FAILS,
        "retry": {"kind": "fixed", "delay_seconds": 1, "jitter": "x"},
    },
    "headers that are a list": {"headers": ["x"]},
    "no attempts": {"max_attempts": -5},
    "a parent in a queue that isn't": {"parent_queue": "'; --", "parent_id": uuid4()},
}


def settled(engine: Engine, task_id: UUID) -> bool:
    """It has ended, or its first attempt has, and it will go on."""
    with Session(engine) as session:
        task = session.get_one(VaultTask, task_id)
        return TaskState(task.state).terminal or task.attempt >= 2


@pytest.mark.parametrize("row", ROWS)
def test_worker_survives_any_value_written_into_a_row(vault, row):
    values = {"name": "whole", "params": {"name": 7}, "max_attempts": 1, **ROWS[row]}
    ids = [uuid4() for _ in range(3)]
    with vault.begin() as connection:
        connection.execute(insert(VaultTask), [{"id": each, "run_id": uuid4(), **values} for each in ids])
    worker = Worker(vault, [VaultTask], concurrency=1, poll_interval=timedelta(milliseconds=20))
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        wait_until(lambda: all(settled(vault, task_id) for task_id in ids))
        with Session(vault) as session, session.begin():
            good = Durable(session).spawn(whole.call(name="good"))
        assert wait_for(vault, good, timeout=timedelta(seconds=60)).state == "completed"
        wait_until(lambda: worker.parts.capacity.held == 0)
    finally:
        worker.request_stop()
        thread.join(20)
