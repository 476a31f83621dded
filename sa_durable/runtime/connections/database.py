"""The worker's own way to the database: one synchronous driver, pools of its own, isolation of its own choice."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from time import monotonic
from typing import Any, TypeAlias
from weakref import WeakSet

from sqlalchemy import Dialect, Engine
from sqlalchemy.orm import Session

from .plan_cache import PlanCache

MAX_SESSION_AGE_S = 60.0  # seconds: the pool has its own ideas of how old a connection may get


def _with_own_pool(engine: Engine) -> Engine:
    """`engine` with a pool of its own: whatever connects the one (connect_args, events, tokens that expire) connects
    the other too, and handlers that hold all of the application's connections don't keep the worker from writing.
    """
    # Isolation is set by engines made of this one, and of two such options the older would win.
    options = {name: v for name, v in engine.get_execution_options().items() if name != "isolation_level"}
    # What tasks carry is nobody's business in a log: no parameters of statements, and no rows at level DEBUG.
    return Engine(
        engine.pool.recreate(),
        engine.dialect,
        engine.url,
        execution_options=options,
        logging_name=_LOG,
        hide_parameters=True,
    )


_LOG = "sa_durable"  # of the logger sqlalchemy.engine.Engine.sa_durable
logging.getLogger(f"sqlalchemy.engine.Engine.{_LOG}").addFilter(lambda record: record.levelno > logging.DEBUG)

CachedSession: TypeAlias = tuple[Session, float]  # with a connection, and until when
_initialized_dialects: WeakSet[Dialect] = WeakSet()
_initializing = Lock()


class Database:
    """Sessions for one of the worker's roles, on a pool of that role's own; or, not `apart`, on the engine's own. The
    roles of a worker share `plans`."""

    def __init__(self, engine: Engine, *, apart: bool = True, plans: PlanCache | None = None) -> None:
        self._owns_pool, self._plans = apart, plans or PlanCache()
        self._engine = _with_own_pool(engine) if apart else engine
        self._autocommit_engine = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        self._read_committed_engine = self._engine.execution_options(isolation_level="READ COMMITTED")
        self._lock = Lock()
        self._cached: list[CachedSession] = []
        self._pool_waiters = 0  # threads on their way to the pool
        self._caching, self._closed = apart, False

    @property
    def engine(self) -> Engine:
        return self._engine

    @contextmanager
    def autocommit(self) -> Iterator[Session]:
        """A session in which each statement is a transaction: one round trip.

        Where the database's default is a stricter isolation level, a READ COMMITTED transaction: claims pass over
        what others changed, they don't fail at it.
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
        """A session in a READ COMMITTED transaction."""
        self._initialize_dialect()
        kept = self._take_cached(for_its_connection=True)
        with Session(self._read_committed_engine) as session, session.begin():
            self._connect(session, kept)
            with self._plans.watching(session):
                yield session

    @contextmanager
    def _cached_autocommit(self) -> Iterator[Session]:
        """A session that keeps its connection for the next time: to get one from the pool, to set it to AUTOCOMMIT and
        back, and a session's own life cost three times what a statement does (docs/decisions/0009)."""
        kept = self._take_cached()
        if kept is None:
            kept = Session(self._autocommit_engine), monotonic() + MAX_SESSION_AGE_S
            self._connect(kept[0])
        try:
            yield kept[0]
        except BaseException:
            self._close_session(kept[0])
            raise
        self.release(kept)

    def acquire(self) -> CachedSession | None:
        """A session that was kept, with a connection in AUTOCOMMIT whose plans fit; None, if there is none. It has to be
        handed back, or let go."""
        with self._lock:
            kept = self._cached.pop() if self._cached else None
        if kept is not None and not self._plans.is_current(kept[0]):
            self.release(kept)
            return None
        return kept

    def release(self, kept: CachedSession, *, took: float = 0.0) -> None:
        """`took`: seconds that a statement took."""
        if took:
            self._plans.record_duration(took)
        session, until = kept
        with self._lock:
            keep = self._caching and not self._pool_waiters and monotonic() < until
            if keep:
                self._cached.append(kept)
        if not keep:
            self._close_session(session)

    def discard(self, kept: CachedSession) -> None:
        """Close the connection: nobody knows what state it is in."""
        kept[0].invalidate()

    def _close_session(self, session: Session) -> None:
        if self._closed:  # the pool is gone: nobody would ever close the connection
            session.invalidate()
        else:
            session.close()

    def _take_cached(self, *, for_its_connection: bool = False) -> CachedSession | None:
        """A session that was kept. Who then asks the pool has to call `_connect`: until then, nobody keeps any."""
        with self._lock:
            kept = self._cached.pop() if self._cached else None
            if kept is None or for_its_connection:
                self._pool_waiters += 1
        return kept

    def _connect(self, session: Session, instead_of: CachedSession | None = None) -> None:
        try:
            if instead_of is not None:
                instead_of[0].close()
            session.connection()
        finally:
            with self._lock:
                self._pool_waiters -= 1

    @contextmanager
    def own_connection(self) -> Iterator[Any]:
        """The driver's own connection, in autocommit, that nobody else gets afterwards: for LISTEN."""
        self._initialize_dialect()
        with self._autocommit_engine.connect() as connection:
            try:
                yield connection.connection.driver_connection
            finally:
                connection.invalidate()

    def _initialize_dialect(self) -> None:
        """A dialect learns about its server when its engine first connects. Several pools that share a dialect must
        not do that at once: the others would use it half-initialised."""
        dialect = self._engine.dialect
        if dialect not in _initialized_dialects:
            with _initializing:
                if dialect not in _initialized_dialects:
                    self._engine.connect().close()
                    _initialized_dialects.add(dialect)

    def close(self) -> None:
        with self._lock:
            self._caching, self._closed = False, self._owns_pool
            kept, self._cached = self._cached, []
        for session, _ in kept:
            session.close()
        if self._owns_pool:
            self._engine.dispose()
