"""Databases of a test's own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Connection, Engine, MetaData, NullPool, create_engine, delete, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from tests.waiting import wait_until

# Set: whoever is given a database with tables is no superuser there, but has the roles of docs/operations/roles.sql.
AS_ROLES = "SA_DURABLE_TEST_ROLES"
ROLES_SCRIPT = Path(__file__).parents[1] / "docs/operations/roles.sql"


@contextmanager
def throwaway(
    server_url: str, metadata: MetaData | None = None, *, template: str = "template1"
) -> Iterator[Engine]:
    """An engine on a new database, with the tables of `metadata`, or a copy of the database `template`, to which nobody
    is connected; both gone afterwards."""
    name = f"test_{uuid4().hex[:12]}"
    admin = create_engine(server_url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template}"))
    engine = create_engine(make_url(server_url).set(database=name))
    try:
        if metadata is not None:
            metadata.create_all(engine)
            engine.dispose()  # some tests count connections
        if metadata is not None and os.environ.get(AS_ROLES):
            with limited(engine, metadata) as theirs:
                yield theirs
        else:
            yield engine
    finally:
        engine.dispose()
        with admin.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        admin.dispose()


def database_fixture(metadata: MetaData) -> Any:
    """A fixture of the session: the URL of a database with the tables of `metadata`."""

    @pytest.fixture(scope="session")
    def url(server_url: str) -> Iterator[str]:
        with throwaway(server_url, metadata) as engine:
            yield url_of(engine)

    return url


def engine_fixture(url_fixture: str, **options: Any) -> Any:
    """A fixture of the session: an engine on the URL that another fixture gives."""

    @pytest.fixture(scope="session")
    def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
        engine = create_engine(request.getfixturevalue(url_fixture), **options)
        yield engine
        engine.dispose()

    return engine


def delete_all(connection: Connection | Session, metadata: MetaData) -> None:
    """Empty all tables. It takes 3 ms; TRUNCATE takes 79."""
    for table in reversed(metadata.sorted_tables):
        connection.execute(delete(table))


def emptied(engine: Engine, metadata: MetaData) -> Engine:
    """Return the engine, with all tables empty."""
    with engine.begin() as connection:
        delete_all(connection, metadata)
    return engine


@contextmanager
def limited(admin: Engine, metadata: MetaData) -> Iterator[Engine]:
    """An engine of somebody who may spawn and work, who owns the application's own tables, and who may empty every
    table, since tests do."""
    somebody = f"somebody_{admin.url.database}"
    own = [table for table in metadata.sorted_tables if "sa_durable" not in table.info]
    with alone(admin), admin.begin() as connection:
        connection.connection.driver_connection.execute(ROLES_SCRIPT.read_text())
        connection.execute(text(f"CREATE ROLE {somebody} LOGIN IN ROLE durable_spawn, durable_work"))
        for table in own:
            connection.execute(text(f"ALTER TABLE {table.fullname} OWNER TO {somebody}"))
        for schema in {table.schema or "public" for table in metadata.sorted_tables}:
            connection.execute(text(f"GRANT DELETE ON ALL TABLES IN SCHEMA {schema} TO {somebody}"))
    engine = create_engine(admin.url.set(username=somebody))
    try:
        yield engine
    finally:
        engine.dispose()
        with alone(admin), admin.begin() as connection:
            forget_roles(connection, somebody)


@contextmanager
def alone(admin: Engine) -> Iterator[None]:
    """Roles belong to the server, and other processes of these tests make the same."""
    server = create_engine(
        admin.url.set(database="postgres"), isolation_level="AUTOCOMMIT", poolclass=NullPool
    )
    with server.connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(7)"))
        yield


def forget_roles(connection: Connection, *people: str) -> None:
    """Drop `people`, and the script's roles unless other databases have them still. As superuser, within `alone`."""
    for name in (*people, "durable_migrate", "durable_spawn", "durable_work", "durable_view"):
        connection.execute(text(f"REASSIGN OWNED BY {name} TO CURRENT_USER"))
        connection.execute(text(f"DROP OWNED BY {name}"))
        with suppress(DBAPIError), connection.begin_nested():
            connection.execute(text(f"DROP ROLE {name}"))


def deadlocks(engine: Engine) -> int:
    """How many PostgreSQL has resolved in this database, once all that is connected through `engine` has said so."""
    end_sessions(engine)
    with engine.connect() as connection:
        counted = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        return int(connection.scalar(text(counted)))


def end_sessions(engine: Engine) -> None:
    """Close what is in the engine's pool, and wait until the server has noticed: a session reports what it has counted
    when it ends, and that may be some time after its client has gone."""
    idle = [engine.connect() for _ in range(engine.pool.checkedin())]
    # By the protocol, and not by asking: what a pooler calls so is no backend, and doesn't end.
    ending = [connection.connection.driver_connection.info.backend_pid for connection in idle]
    for connection in idle:
        connection.close()
    engine.dispose()
    watching = create_engine(engine.url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    left = text(
        "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY(:pids) AND datname = current_database()"
    )
    with watching.connect() as connection:
        wait_until(lambda: not connection.scalar(left, {"pids": ending}), what="sessions to end")


def url_of(engine: Engine) -> str:
    """The URL of an engine, with everything that another process needs."""
    return engine.url.render_as_string(hide_password=False)
