"""Sessions for the worker's own statements: from a pool of their own, READ COMMITTED or in autocommit."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from time import monotonic
from typing import Any, NamedTuple
from weakref import WeakSet

from sqlalchemy import Dialect, Engine
from sqlalchemy.orm import Session

from .plan_cache import PlanCache

MAX_SESSION_AGE_S = 60.0
"""How long a session stays cached. Then the pool gets its connection back, and may recycle it."""

_LOGGING_NAME = "sa_durable"
"""The worker's engines log as `sqlalchemy.engine.Engine.sa_durable`."""

# SQLAlchemy logs result rows at level DEBUG. Rows carry the tasks' parameters, which don't belong in a log.
logging.getLogger(f"sqlalchemy.engine.Engine.{_LOGGING_NAME}").addFilter(
    lambda record: record.levelno > logging.DEBUG
)

_initialized_dialects: WeakSet[Dialect] = WeakSet()
_initializing = Lock()


class CachedSession(NamedTuple):
    """A session that keeps its connection, in AUTOCOMMIT, between two uses."""

    session: Session
    expires_at: float
    """`time.monotonic()` after which the session is closed instead of cached again."""


class Database:
    """Sessions for one role of the worker, such as its claims or its heartbeats.

    Keeps used sessions with their connections: taking a connection from the pool, setting AUTOCOMMIT and
    resetting it, and a session's life cycle cost three times as much as a statement (docs/decisions/0009). A
    thread that waits for the pool has priority: while there is one, released sessions give their connections
    back.

    Thread safety: any thread may call any method. A session belongs to the thread that has it.

    Args:
        engine: An engine on psycopg.
        own_pool: Whether to connect through a new pool, with the settings of `engine`. False uses the pool of
            `engine`, caches no sessions, and leaves the pool open in `close`.
        plans: Prepared plans of all roles of a worker. None makes a `PlanCache` for this role only.
    """

    def __init__(self, engine: Engine, *, own_pool: bool = True, plans: PlanCache | None = None) -> None:
        self._owns_pool, self._plans = own_pool, plans or PlanCache()
        self._engine = _with_own_pool(engine) if own_pool else engine
        self._autocommit_engine = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        self._read_committed_engine = self._engine.execution_options(isolation_level="READ COMMITTED")
        self._lock = Lock()
        """Guards `_cached`, `_pool_waiters`, `_caching` and `_closed`."""
        self._cached: list[CachedSession] = []
        self._pool_waiters = 0
        """Number of threads that are about to take a connection from the pool."""
        self._caching, self._closed = own_pool, False

    @property
    def engine(self) -> Engine:
        """The engine that this role connects with."""
        return self._engine

    @contextmanager
    def autocommit(self) -> Iterator[Session]:
        """Provide a session in which each statement is its own transaction: one round trip.

        If the database's default isolation level is stricter, all statements share one READ COMMITTED
        transaction instead. Claims rely on READ COMMITTED: they skip rows that another transaction changed,
        and don't fail.
        """
        self._initialize_dialect()
        if self._engine.dialect.default_isolation_level == "READ COMMITTED":
            with self._cached_autocommit() as session, self._plans.watching(session):
                yield session
        else:
            with self.transaction() as session:
                yield session

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """Provide a session in a READ COMMITTED transaction. Commit at the end; roll back after an error."""
        self._initialize_dialect()
        cached = self._take_cached(for_its_connection=True)
        with Session(self._read_committed_engine) as session, session.begin():
            self._connect(session, replaces=cached)
            with self._plans.watching(session):
                yield session

    @contextmanager
    def own_connection(self) -> Iterator[Any]:
        """Provide a driver connection in autocommit, for LISTEN. It is closed afterwards, not reused."""
        self._initialize_dialect()
        with self._autocommit_engine.connect() as connection:
            try:
                yield connection.connection.driver_connection
            finally:
                connection.invalidate()

    def acquire(self) -> CachedSession | None:
        """Take a cached session whose connection is in AUTOCOMMIT and whose prepared plans are current.

        Call `release` afterwards.

        Returns:
            None if there is no such session. Nothing is connected then.
        """
        with self._lock:
            cached = self._cached.pop() if self._cached else None
        if cached is not None and not self._plans.is_current(cached.session):
            self.release(cached)
            return None
        return cached

    def release(self, cached: CachedSession, *, duration_s: float = 0.0) -> None:
        """Cache a session again. Close it if it has expired or another thread needs its connection.

        Args:
            cached: What `acquire` returned.
            duration_s: How long its statement took.
        """
        if duration_s:
            self._plans.record_duration(duration_s)
        with self._lock:
            keep = self._caching and not self._pool_waiters and monotonic() < cached.expires_at
            if keep:
                self._cached.append(cached)
        if not keep:
            self._close_session(cached.session)

    def close(self) -> None:
        """Close the cached sessions and the role's own pool. A session in use closes its connection later."""
        with self._lock:
            self._caching, self._closed = False, self._owns_pool
            all_cached, self._cached = self._cached, []
        for cached in all_cached:
            cached.session.close()
        if self._owns_pool:
            self._engine.dispose()

    @contextmanager
    def _cached_autocommit(self) -> Iterator[Session]:
        cached = self._take_cached()
        if cached is None:
            cached = CachedSession(Session(self._autocommit_engine), monotonic() + MAX_SESSION_AGE_S)
            self._connect(cached.session)
        try:
            yield cached.session
        except BaseException:
            self._close_session(cached.session)
            raise
        self.release(cached)

    def _take_cached(self, *, for_its_connection: bool = False) -> CachedSession | None:
        """Take a cached session, if there is one.

        If there is none, or if only its connection is wanted, the caller must call `_connect` afterwards.
        Until then, released sessions give their connections back to the pool instead of being cached.
        """
        with self._lock:
            cached = self._cached.pop() if self._cached else None
            if cached is None or for_its_connection:
                self._pool_waiters += 1
        return cached

    def _connect(self, session: Session, *, replaces: CachedSession | None = None) -> None:
        """Take a connection from the pool. `replaces` gives its connection back first."""
        try:
            if replaces is not None:
                replaces.session.close()
            session.connection()
        finally:
            with self._lock:
                self._pool_waiters -= 1

    def _close_session(self, session: Session) -> None:
        if self._closed:  # the pool was disposed: a connection that goes back to it would stay open
            session.invalidate()
        else:
            session.close()

    def _initialize_dialect(self) -> None:
        """Connect once, so that the dialect learns its server's version and defaults.

        SQLAlchemy does this at the first connection. Several pools share a dialect here: if they did it at
        the same time, one pool would use a dialect that another one has initialized in part.
        """
        dialect = self._engine.dialect
        if dialect not in _initialized_dialects:
            with _initializing:
                if dialect not in _initialized_dialects:
                    self._engine.connect().close()
                    _initialized_dialects.add(dialect)


def _with_own_pool(engine: Engine) -> Engine:
    """Return an engine like `engine`, with a pool of its own.

    It connects in the same way (connect_args, events, tokens that expire). Handlers that hold all connections
    of the application's pool don't keep the worker from writing.
    """
    # `Database` derives engines with other isolation levels from this one. If two engines of such a chain set
    # the level, the older one wins.
    options = {name: v for name, v in engine.get_execution_options().items() if name != "isolation_level"}
    return Engine(
        engine.pool.recreate(),
        engine.dialect,
        engine.url,
        execution_options=options,
        logging_name=_LOGGING_NAME,
        hide_parameters=True,
    )
