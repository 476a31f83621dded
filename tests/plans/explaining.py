"""Explain a statement as PostgreSQL runs it: the plan of the prepared statement, and the pages that it touched."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from psycopg import sql
from psycopg._queries import PostgresQuery
from psycopg.adapt import Transformer
from sqlalchemy import Connection, Engine, Executable, event, text
from sqlalchemy.orm import Session

LITTLE = 150  # buffers: a few pages, beside pages of dead index entries that earlier tests left
TRIES = 5  # executions with a custom plan, before PostgreSQL considers a generic one


@dataclass(frozen=True)
class Plan:
    """A plan that was executed."""

    root: dict[str, Any]

    @cached_property
    def nodes(self) -> list[dict[str, Any]]:
        return list(_nodes(self.root))

    @property
    def indexes(self) -> set[str]:
        return {node["Index Name"] for node in self.nodes if "Index Name" in node}

    @property
    def touched(self) -> int:
        """Buffers: pages of tables and indexes, counted each time they were read."""
        return int(self.root["Shared Hit Blocks"] + self.root["Shared Read Blocks"])

    @property
    def sequential(self) -> set[str]:
        """The tables that were read by a sequential scan."""
        scans = (node for node in self.nodes if node["Node Type"] == "Seq Scan" and node["Actual Loops"])
        return {node["Relation Name"] for node in scans}

    @property
    def locked(self) -> int:
        """Rows that FOR UPDATE locked."""
        locks = (node for node in self.nodes if node["Node Type"] == "LockRows")
        return sum(int(node["Actual Rows"] * node["Actual Loops"]) for node in locks)


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)


class _Sent(Exception):
    """Carries a statement out of its execution, before it is sent."""


def as_sent(connection: Connection, statement: Executable, parameters: Mapping[str, Any]) -> tuple[str, Any]:
    """Return the SQL of a statement and its parameters as the driver would get them, without sending it."""

    def stop(_: Connection, __: Any, sql: str, parameters: Any, *___: Any) -> None:
        raise _Sent(sql, parameters)

    event.listen(connection, "before_cursor_execute", stop)
    try:
        connection.execute(statement, parameters)
    except _Sent as sent:
        text, given = sent.args
        return text, given
    finally:
        event.remove(connection, "before_cursor_execute", stop)
    raise AssertionError("nothing was sent")


@dataclass(frozen=True)
class Case:
    """A statement, and the limits of its plan."""

    name: str
    statement: Executable
    parameters: Mapping[str, Any] = field(default_factory=dict)
    uses: frozenset[str] | set[str] = frozenset()
    """Indexes, without their `durable_`."""
    touches: int = 30
    locks: int = 0

    def __str__(self) -> str:
        return self.name


def check(engine: Engine, case: Case, mode: str) -> None:
    """Assert that a case's limits hold."""
    with Session(engine) as session:
        sent = as_sent(session.connection(), case.statement, case.parameters)
        # An ordinary index scan marks entries that earlier tests rolled back as dead; other scans don't.
        session.execute(text("SET LOCAL enable_bitmapscan = off"))
        session.execute(text("SET LOCAL enable_seqscan = off"))
        explain(session, *sent, mode)
        session.rollback()
        plan = explain(session, *sent, mode)
        session.rollback()
    sequential, touched, locked = plan.sequential, plan.touched, plan.locked
    indexes = {name.replace("durable_", "", 1) for name in plan.indexes}
    assert sequential <= {"durable_queues"}  # has a row a queue
    assert case.uses <= indexes
    assert touched <= case.touches, plan.root
    assert locked <= case.locks


def explain(session: Session, statement: str, parameters: Any, mode: str) -> Plan:
    """Prepare and execute what SQLAlchemy sends, in the session's transaction, and return the plan."""
    raw = session.connection().connection.cursor()
    raw.execute(f"SET LOCAL plan_cache_mode = {mode}")
    with prepared(session, statement, parameters) as execute:
        raw.execute(sql.SQL("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) ") + execute)
        [[found]] = raw.fetchall()
    return Plan((found if isinstance(found, list) else json.loads(found))[0]["Plan"])


@contextmanager
def prepared(session: Session, statement: str, parameters: Any) -> Iterator[sql.Composed]:
    """Prepare what SQLAlchemy sends as "plan", in the session's transaction, and yield how to execute it."""
    query = PostgresQuery(Transformer())
    query.convert(statement, parameters)
    raw = session.connection().connection.cursor()
    raw.execute(b"PREPARE plan AS " + query.query)
    values = [parameters[name] for name in query._order or []]
    given = sql.SQL("({})").format(sql.SQL(", ").join(map(sql.Literal, values))) if values else sql.SQL("")
    yield sql.SQL("EXECUTE plan{}").format(given)
    raw.execute("DEALLOCATE plan")


def kept(engine: Engine, case: Case) -> bool:
    """Return whether PostgreSQL keeps a generic plan after a few executions of a case.

    It keeps none that looks more expensive than planning the statement each time.
    """
    with Session(engine) as session:
        sent = as_sent(session.connection(), case.statement, case.parameters)
        with prepared(session, *sent) as execute:
            raw = session.connection().connection.cursor()
            for _ in range(TRIES + 1):
                raw.execute(sql.SQL("EXPLAIN ") + execute)
            raw.execute("SELECT generic_plans > 0 FROM pg_prepared_statements WHERE name = 'plan'")
            return raw.fetchall() == [(True,)]
