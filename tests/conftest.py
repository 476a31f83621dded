"""One private PostgreSQL for the whole run (or SA_DURABLE_DATABASE_URL's), one database for each xdist worker."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from sa_durable.embedded import postgres
from tests.databases import database_fixture, emptied, engine_fixture
from tests.selection import pytest_addoption, pytest_collection_modifyitems  # noqa: F401 - hooks
from tests.shop import Base

_server = ExitStack()
_url = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        config.stash[_url] = config.workerinput["server_url"]


def _server_url(config: pytest.Config) -> str:
    """Started when it is first needed: by the first test, or by xdist for its workers."""
    if _url not in config.stash:
        # Many short connections and 16-way races: more than the default hundred.
        settings = {"max_connections": "300", "deadlock_timeout": "200ms"}
        server = _server.enter_context(postgres(settings=settings))
        config.stash[_url] = server.url
    return config.stash[_url]


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node) -> None:
    node.workerinput["server_url"] = _server_url(node.config)


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        _server.close()


@pytest.fixture(scope="session")
def server_url(request: pytest.FixtureRequest) -> str:
    """The URL of a server on which we are superuser, database `postgres`."""
    return _server_url(request.config)


database_url = database_fixture(Base.metadata)
shared_engine = engine_fixture("database_url", pool_size=40)


@pytest.fixture
def engine(shared_engine: Engine) -> Engine:
    """An engine on the shop's tables, all empty."""
    return emptied(shared_engine, Base.metadata)


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    with Session(engine) as session:
        yield session
