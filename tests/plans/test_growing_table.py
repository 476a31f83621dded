"""A plan that was made while a queue was empty doesn't outlive its emptiness."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from sa_durable import Durable
from sa_durable.runtime.connections.database import Database
from sa_durable.runtime.connections.plan_cache import PlanCache
from sa_durable.runtime.tuning import Tuning
from sa_durable.services import claims
from tests.apps import application
from tests.databases import throwaway
from tests.plans.explaining import Plan

LEASE = timedelta(minutes=1)


Base, GrowingTask = application(GrowingTask="growing")


@GrowingTask.handler()
def charge(ctx: object, order_id: int) -> None: ...


@pytest.fixture
def engine(server_url: str):
    with throwaway(server_url, Base.metadata) as engine:
        autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
        with autocommit.connect() as connection:  # nobody helps
            connection.execute(text("ALTER TABLE durable_growing_tasks SET (autovacuum_enabled = false)"))
            connection.execute(text("VACUUM durable_growing_tasks"))
        yield engine


@pytest.fixture
def plans() -> PlanCache:
    """No statement is slow."""
    return PlanCache(Tuning(slow_statement_s=1e6, slow_total_s=0))


@pytest.fixture
def database(engine, plans) -> Iterator[Database]:
    database = Database(create_engine(engine.url, pool_size=1), plans=plans)
    yield database
    database.close()


def claim(session: Session) -> list:
    return claims.claim(session, GrowingTask, names=["charge"], worker="w", lease=LEASE, limit=10)


def plan(session: Session) -> Plan:
    """What the claims of this connection do."""
    prepared = "SELECT name FROM pg_prepared_statements WHERE statement LIKE 'UPDATE durable_growing_tasks%'"
    name = session.scalar(text(prepared))
    arguments = session.execute(
        text("SELECT parameter_types::text[] FROM pg_prepared_statements WHERE name = :name"), {"name": name}
    ).scalar_one()
    nulls = ", ".join(f"NULL::{type_}" for type_ in arguments)
    found = session.scalar(text(f"EXPLAIN (FORMAT JSON) EXECUTE {name} ({nulls})"))
    return Plan(found[0]["Plan"] if not isinstance(found, str) else json.loads(found)[0]["Plan"])


def test_a_claim_that_took_long_is_planned_for_the_table_as_it_is_now(engine, database, plans):
    for _ in range(20):  # until it is prepared, with a plan for whatever parameters
        with database.autocommit() as session:
            assert claim(session) == []
    with Session(engine) as session, session.begin():
        Durable(session).spawn_many([charge.call(order_id=i) for i in range(5000)])
    with database.autocommit() as session:
        assert "Seq Scan" in types(plan(session)), "or else this test tests nothing"
        assert len(claim(session)) == 10
    with database.autocommit() as session:
        assert "Seq Scan" in types(plan(session)), "a quick one keeps its plan"
    plans._tuning = Tuning(slow_statement_s=0, slow_total_s=0)  # every statement is slow
    with database.autocommit() as session:
        assert len(claim(session)) == 10
    with database.autocommit() as session:
        assert len(claim(session)) == 10
        assert "Seq Scan" not in types(plan(session))


def types(found: Plan) -> set[str]:
    return {node["Node Type"] for node in found.nodes if node.get("Relation Name") == "durable_growing_tasks"}
