"""The worker's own way to the database: one synchronous driver, pools of its own, isolation of its own choice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any, TypeAlias
from weakref import WeakSet

from sqlalchemy import URL, Dialect, Engine, create_engine, make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session

from ..errors import RetryTransaction, SchemaOutdated

DRIVER = "postgresql+psycopg"
# A dead peer must not hold a heartbeat for hours; libpq ignores these on Unix sockets.
_TCP = {"connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
_ASYNCPG_ONLY = ("prepared_statement_cache_size", "prepared_statement_name_func", "async_fallback")

EngineOrUrl: TypeAlias = Any  # str, URL, Engine or AsyncEngine: the last is not importable without greenlet


def engine_for(source: EngineOrUrl) -> Engine:
    """An engine on psycopg for what the application has: a URL, an Engine or an AsyncEngine."""
    if isinstance(source, str | URL):
        return _from_url(make_url(source))
    is_async = hasattr(source, "sync_engine")
    if not is_async and isinstance(source, Engine) and source.dialect.driver == "psycopg":
        return source
    return _from_url(source.url)


def _from_url(url: URL) -> Engine:
    query: dict[str, Any] = {name: value for name, value in url.query.items() if name not in _ASYNCPG_ONLY}
    if "ssl" in query:  # asyncpg's word
        query["sslmode"] = query.pop("ssl")
    return create_engine(
        url.set(drivername=DRIVER, query=query),
        connect_args={name: value for name, value in _TCP.items() if name not in query},
        hide_parameters=True,
    )


def _apart(engine: Engine) -> Engine:
    """`engine` with a pool of its own: whatever connects the one (connect_args, events, tokens that expire) connects
    the other too, and handlers that hold all of the application's connections don't keep the worker from writing.
    """
    # hide_parameters: what tasks carry is nobody's business in a log.
    return Engine(
        engine.pool.recreate(),
        engine.dialect,
        engine.url,
        execution_options=engine.get_execution_options(),
        hide_parameters=True,
    )


_introduced: WeakSet[Dialect] = WeakSet()
_introducing = Lock()


class Database:
    """Sessions for one of the worker's roles, on a pool of that role's own."""

    def __init__(self, engine: Engine) -> None:
        self._engine = _apart(engine)
        self._autocommit = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        self._read_committed = self._engine.execution_options(isolation_level="READ COMMITTED")

    @contextmanager
    def once(self) -> Iterator[Session]:
        """A session in which each statement is a transaction: one round trip.

        Where the database's default is a stricter isolation level, a READ COMMITTED transaction: claims pass over
        what others changed, they don't fail at it.
        """
        self._introduce()
        if self._engine.dialect.default_isolation_level == "READ COMMITTED":
            with Session(self._autocommit) as session:
                yield session
                session.commit()
        else:
            with self.transaction() as session:
                yield session

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """A session in a READ COMMITTED transaction."""
        self._introduce()
        with Session(self._read_committed) as session, session.begin():
            yield session

    def _introduce(self) -> None:
        """A dialect learns about its server when its engine first connects. Several pools that share a dialect must
        not do that at once: the others would use it half-initialised."""
        dialect = self._engine.dialect
        if dialect not in _introduced:
            with _introducing:
                if dialect not in _introduced:
                    self._engine.connect().close()
                    _introduced.add(dialect)

    def close(self) -> None:
        self._engine.dispose()


def passing(error: Exception) -> bool:
    """Whether the same again may succeed: the database was away, or a transaction lost a race."""
    if isinstance(error, DBAPIError):
        return error.connection_invalidated or isinstance(error, OperationalError | InterfaceError)
    return isinstance(error, RetryTransaction | PoolTimeoutError)


def refused(error: Exception) -> bool:
    """Whether PostgreSQL refused the values themselves: data, integrity, or a limit."""
    return isinstance(error, DBAPIError) and (getattr(error.orig, "sqlstate", None) or "")[:2] in {
        "22",
        "23",
        "54",
    }


def explain(error: BaseException) -> str:
    """What a log may say about an error: its type, and PostgreSQL's code and message, but no row and no params."""
    if isinstance(error, DBAPIError):
        diagnosis = getattr(error.orig, "diag", None)
        said = getattr(diagnosis, "message_primary", None) or (str(error.orig).splitlines() or [""])[0]
        return f"{type(error.orig).__name__} {getattr(error.orig, 'sqlstate', None) or ''} {said}"
    if isinstance(error, SchemaOutdated | RetryTransaction):
        return f"{type(error).__name__}: {error}"
    return type(error).__qualname__
