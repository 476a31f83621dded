"""A plugin: the tests' databases are behind a PgBouncer with two connections for each, `make test-pooler`.

Through it goes whatever SQLAlchemy connects to a test's database, in this process and in those that it starts
(rerouting.py). Tests that are marked `direct` say why they can't be here. `pooled` gives a test more connections: those
that it holds itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from sqlalchemy import URL, NullPool, create_engine, make_url, text

from tests import proxy
from tests.faults import rerouting
from tests.faults.pooler import Pooler, pooler, version

POOL = int(os.environ.get("POOL") or 2)
# PgBouncer carries those settings; what asyncpg prepared it closes on whichever connection it has by then.
LEFT = """
SELECT 'session', pg_backend_pid()::text
UNION ALL SELECT 'setting', name FROM pg_settings WHERE source = 'session' AND name NOT IN
    ('client_encoding', 'DateStyle', 'TimeZone', 'standard_conforming_strings', 'application_name')
UNION ALL SELECT 'listens', pg_listening_channels()
UNION ALL SELECT 'advisory lock', objid::text FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()
UNION ALL SELECT 'temporary', relname FROM pg_class WHERE relnamespace = pg_my_temp_schema()
UNION ALL SELECT 'prepared', statement FROM pg_prepared_statements WHERE name NOT LIKE '\\_\\_asyncpg%'
"""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    direct = [item for item in items if item.get_closest_marker("direct")]
    config.hook.pytest_deselected(items=direct)
    items[:] = [item for item in items if item not in direct]


@pytest.fixture(scope="session", autouse=True)
def through_pooler(server_url: str) -> Iterator[Pooler]:
    """Set up before any database is made."""
    assert version(), "there is no pgbouncer here"
    with pooler(server_url, POOL) as running, pytest.MonkeyPatch.context() as patch:
        for name, value in rerouting.environment(make_url(server_url), running.url).items():
            patch.setenv(name, value)
        rerouting.install()
        server = make_url(server_url)

        def in_front(url: URL) -> URL:
            return running.url.set(database=url.database) if rerouting.same(server, url.query) else url

        patch.setattr(proxy, "in_front", in_front)
        yield running


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left(through_pooler: Pooler, server_url: str) -> Iterator[None]:
    """No session carries anything from one client to the next, after all the tests of a file."""
    yield
    look_for_leaks(through_pooler, server_url, POOL)


def look_for_leaks(through_pooler: Pooler, server_url: str, connections: int) -> None:
    """In all the sessions that there are. Whoever looks next gets new ones."""
    try:
        for name in {server["database"] for server in through_pooler.ask("SHOW SERVERS")}:
            if name.startswith("test_"):
                found = _left(server_url, name, connections)
                assert {what for what, _ in found} == {"session"} and len(found) == connections, found
    finally:
        through_pooler.ask("RECONNECT")


def _left(server_url: str, database: str, connections: int) -> set[tuple[str, str]]:
    engine = create_engine(make_url(server_url).set(database=database), poolclass=NullPool)
    with ExitStack() as stack:
        sessions = [stack.enter_context(engine.begin()) for _ in range(connections)]
        return {tuple(row) for session in sessions for row in session.execute(text(LEFT))}


@pytest.fixture(autouse=True)
def connections(request: pytest.FixtureRequest, through_pooler: Pooler, server_url: str) -> Iterator[None]:
    """As many as the test needs for itself, and those that are left are for the library."""
    marker = request.node.get_closest_marker("pooled")
    if marker is None:
        yield
        return
    through_pooler.ask(f"SET default_pool_size = {marker.kwargs['connections']}")
    yield
    try:
        look_for_leaks(through_pooler, server_url, marker.kwargs["connections"])
    finally:
        through_pooler.ask(f"SET default_pool_size = {POOL}")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.write_line(f"through PgBouncer {version()}, {POOL} connections for each database")
