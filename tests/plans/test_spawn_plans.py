"""The statements of the spawn side use the index that was made for them, in a table of 60,000 tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, select, text, update
from sqlalchemy.orm import Session

from sa_durable import Durable
from sa_durable.ids import uuid7
from tests.databases import throwaway
from tests.plans.explaining import Plan, explain
from tests.shop import Base, BillingTask, charge

KEY, PARENT = "uq_durable_billing_tasks_key", "ix_durable_billing_tasks_parent"

# Half of the tasks are history, as in a queue that has run for a while. Of five tasks with a key, one holds it.
ROWS = """
INSERT INTO durable_billing_tasks
    (id, run_id, name, params, state, first_started_at, finished_at, idempotency_key, key_hold, parent_queue, parent_id)
SELECT gen_random_uuid(), gen_random_uuid(), 'charge', jsonb_build_object('order_id', n),
    CASE n % 10 WHEN 0 THEN 'pending' WHEN 1 THEN 'sleeping' ELSE 'completed' END,
    CASE WHEN n % 10 > 1 THEN now() END, CASE WHEN n % 10 > 1 THEN now() END,
    CASE WHEN n % 5 > 0 THEN 'key ' || n END,
    CASE WHEN n % 5 > 0 THEN (ARRAY['active', 'queued', 'succeeded', 'forever'])[n % 5] END,
    CASE WHEN n % 7 = 0 THEN 'billing' END, CASE WHEN n % 7 = 0 THEN gen_random_uuid() END
FROM generate_series(1, 60000) n
"""
HELD = "key 3"  # by a completed task, hold "succeeded"


@pytest.fixture(scope="module")
def large(server_url: str) -> Iterator[Engine]:
    with throwaway(server_url, Base.metadata) as engine:
        with engine.begin() as connection:
            connection.execute(text(ROWS))
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE durable_billing_tasks"))
        yield engine


def sent(session: Session, act: Callable[[], object]) -> list[tuple[str, Any]]:
    """What `act` sends, with its parameters as the driver gets them."""
    seen: list[tuple[str, Any]] = []

    def note(_: Connection, __: Any, statement: str, parameters: Any, *___: Any) -> None:
        seen.append((statement, parameters))

    connection = session.connection()
    event.listen(connection, "before_cursor_execute", note)
    act()
    event.remove(connection, "before_cursor_execute", note)
    return seen


def plan_of(engine: Engine, act: Callable[[Durable], object], beginning: str, mode: str) -> Plan:
    with Session(engine) as session:
        durable = Durable(session)
        durable.spawn(charge.call(1))  # the schema is checked once
        statements = sent(session, lambda: act(durable))
        session.rollback()
        statement, parameters = next(s for s in statements if s[0].startswith(beginning))
        plan = explain(session, statement, parameters, mode)
        session.rollback()
        return plan


@pytest.mark.parametrize("key", ["a new key", HELD])
def test_inserting_a_key_checks_its_own_index(large, mode, key):  # A15
    plan = plan_of(large, lambda d: d.spawn(charge.call(1), idempotency_key=key), "INSERT", mode)
    assert plan.root["Conflict Arbiter Indexes"] == [KEY]
    assert plan.root["Conflicting Tuples"] == (key == HELD)
    # A root to leaf walk of each of its indexes and the rows themselves: nothing that grows with the table.
    assert plan.touched < 40
    assert not plan.sequential


def test_inserting_a_batch_of_keys_checks_the_same_index(large, mode):
    calls = [charge.call(n).using(idempotency_key=f"batch {n}") for n in range(20)]
    plan = plan_of(large, lambda d: d.spawn_many(calls), "WITH", mode)
    (insert,) = (node for node in plan.nodes if node["Node Type"] == "ModifyTable")
    assert insert["Conflict Arbiter Indexes"] == [KEY]
    assert not plan.sequential


def test_finding_the_holder_of_a_key_reads_one_leaf_of_its_index(large, mode):  # A15
    plan = plan_of(large, lambda d: d.spawn(charge.call(1), idempotency_key=HELD), "SELECT", mode)
    assert plan.indexes == {KEY}
    assert plan.touched <= 5


@pytest.mark.parametrize("size", [3, 100])
def test_finding_the_holders_of_a_batch_reads_their_index_once_a_key(large, mode, size):
    keys = [f"key {10 * n + 3}" for n in range(size)]
    calls = [charge.call(1).using(idempotency_key=key) for key in keys]
    plan = plan_of(large, lambda d: d.spawn_many(calls), "SELECT", mode)
    assert plan.indexes == {KEY}
    assert not plan.sequential
    assert plan.touched < 5 * size + 20


@pytest.mark.parametrize("ask", ["find_by_key", "release_key"])
def test_looking_up_and_releasing_a_key_read_its_index(large, mode, ask):
    beginning = {"find_by_key": "SELECT", "release_key": "UPDATE"}[ask]
    plan = plan_of(large, lambda d: getattr(d, ask)(BillingTask, HELD), beginning, mode)
    assert KEY in plan.indexes
    assert not plan.sequential
    assert plan.touched < 40


@pytest.mark.parametrize("generation", [0, 1], ids=["of one task", "of fifty tasks"])
def test_finding_children_reads_the_index_of_parents(large, mode, generation):
    with Session(large) as session:
        durable = Durable(session)
        root = durable.spawn(charge.call(1))
        durable.spawn_many([charge.call(n).using(headers={"child": True}) for n in range(50)])
        children = update(BillingTask).where(BillingTask.headers.is_not(None))
        session.execute(children.values(parent_queue="billing", parent_id=root.task_id))
        searches = [
            (statement, parameters)
            for statement, parameters in sent(session, lambda: durable.cancel(root))
            if statement.startswith("SELECT") and "parent_id" in statement.split("WHERE")[1]
        ]
        # Of each generation, in each of the shop's two queues.
        [(statement, parameters)] = [s for s in searches if "FROM durable_billing_tasks" in s[0]][
            generation:
        ][:1]
        plan = explain(session, statement, parameters, mode)
        session.rollback()
    assert plan.indexes == {PARENT}
    assert not plan.sequential
    assert plan.touched < 250


@pytest.mark.parametrize("beginning", ["SELECT", "UPDATE"])
def test_cancelling_finds_its_rows_by_id(large, mode, beginning):
    with Session(large) as session:
        [id_] = session.scalars(select(BillingTask.id).where(BillingTask.state == "pending").limit(1))
    plan = plan_of(large, lambda d: d.cancel(BillingTask, id_), beginning, mode)
    assert plan.indexes == {"durable_billing_tasks_pkey"}
    assert not plan.sequential


def test_a_spawn_without_a_key_checks_no_index(large, mode):  # P3: no cost
    plan = plan_of(large, lambda d: d.spawn(charge.call(1)), "INSERT", mode)
    assert "Conflict Arbiter Indexes" not in plan.root
    with Session(large) as session:
        size = "SELECT pg_relation_size('uq_durable_billing_tasks_key')"
        before = session.scalar(text(size))
        Durable(session).spawn_many([charge.call(n) for n in range(500)])
        assert session.scalar(text(size)) == before
        session.rollback()


def test_a_key_costs_no_more_in_a_large_table_than_in_an_empty_one(large, server_url, mode):  # A15
    act = lambda d: d.spawn(charge.call(1), idempotency_key=f"k {uuid7()}")  # noqa: E731 - used twice
    with throwaway(server_url, Base.metadata) as empty:
        alone = plan_of(empty, act, "INSERT", mode).touched
    assert plan_of(large, act, "INSERT", mode).touched <= alone + 15  # a level or two of each index
