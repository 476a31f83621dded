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

from .plan_cache import Plans

KEPT = 60.0  # seconds: the pool has its own ideas of how old a connection may get


def _apart(engine: Engine) -> Engine:
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

Kept: TypeAlias = tuple[Session, float]  # with a connection, and until when
_introduced: WeakSet[Dialect] = WeakSet()
_introducing = Lock()


class Database:
    """Sessions for one of the worker's roles, on a pool of that role's own; or, not `apart`, on the engine's own. The
    roles of a worker share `plans`."""

    def __init__(self, engine: Engine, *, apart: bool = True, plans: Plans | None = None) -> None:
        self._apart, self._plans = apart, plans or Plans()
        self._engine = _apart(engine) if apart else engine
        self._autocommit = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        self._read_committed = self._engine.execution_options(isolation_level="READ COMMITTED")
        self._lock = Lock()
        self._kept: list[Kept] = []
        self._wanting = 0  # threads on their way to the pool
        self._keeps, self._closed = apart, False

    @property
    def engine(self) -> Engine:
        return self._engine

    @contextmanager
    def once(self) -> Iterator[Session]:
        """A session in which each statement is a transaction: one round trip.

        Where the database's default is a stricter isolation level, a READ COMMITTED transaction: claims pass over
        what others changed, they don't fail at it.
        """
        self._introduce()
        if self._engine.dialect.default_isolation_level == "READ COMMITTED":
            with self._autocommitting() as session, self._plans.watching(session):
                yield session
        else:
            with self.transaction() as session:
                yield session

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """A session in a READ COMMITTED transaction."""
        self._introduce()
        kept = self._take(for_its_connection=True)
        with Session(self._read_committed) as session, session.begin():
            self._connect(session, kept)
            with self._plans.watching(session):
                yield session

    @contextmanager
    def _autocommitting(self) -> Iterator[Session]:
        """A session that keeps its connection for the next time: to get one from the pool, to set it to AUTOCOMMIT and
        back, and a session's own life cost three times what a statement does (docs/decisions/0009)."""
        kept = self._take()
        if kept is None:
            kept = Session(self._autocommit), monotonic() + KEPT
            self._connect(kept[0])
        try:
            yield kept[0]
        except BaseException:
            self._give_back(kept[0])
            raise
        self.hand_back(kept)

    def borrow(self) -> Kept | None:
        """A session that was kept, with a connection in AUTOCOMMIT whose plans fit; None, if there is none. It has to be
        handed back, or let go."""
        with self._lock:
            kept = self._kept.pop() if self._kept else None
        if kept is not None and not self._plans.fit(kept[0]):
            self.hand_back(kept)
            return None
        return kept

    def hand_back(self, kept: Kept, *, took: float = 0.0) -> None:
        """`took`: seconds that a statement took."""
        if took:
            self._plans.took(took)
        session, until = kept
        with self._lock:
            keep = self._keeps and not self._wanting and monotonic() < until
            if keep:
                self._kept.append(kept)
        if not keep:
            self._give_back(session)

    def let_go(self, kept: Kept) -> None:
        """Close the connection: nobody knows what state it is in."""
        kept[0].invalidate()

    def _give_back(self, session: Session) -> None:
        if self._closed:  # the pool is gone: nobody would ever close the connection
            session.invalidate()
        else:
            session.close()

    def _take(self, *, for_its_connection: bool = False) -> Kept | None:
        """A session that was kept. Who then asks the pool has to call `_connect`: until then, nobody keeps any."""
        with self._lock:
            kept = self._kept.pop() if self._kept else None
            if kept is None or for_its_connection:
                self._wanting += 1
        return kept

    def _connect(self, session: Session, instead_of: Kept | None = None) -> None:
        try:
            if instead_of is not None:
                instead_of[0].close()
            session.connection()
        finally:
            with self._lock:
                self._wanting -= 1

    @contextmanager
    def own_connection(self) -> Iterator[Any]:
        """The driver's own connection, in autocommit, that nobody else gets afterwards: for LISTEN."""
        self._introduce()
        with self._autocommit.connect() as connection:
            try:
                yield connection.connection.driver_connection
            finally:
                connection.invalidate()

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
        with self._lock:
            self._keeps, self._closed = False, self._apart
            kept, self._kept = self._kept, []
        for session, _ in kept:
            session.close()
        if self._apart:
            self._engine.dispose()
