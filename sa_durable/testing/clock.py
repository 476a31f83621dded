"""A database clock that tests move: sleeps of a week, backoff, leases, deadlines and key_ttl without waiting.

sa_durable reads the time only from the database, always by `statement_timestamp()`. While a test moves the
clock, a function of that name in the schema `sa_durable_clock` comes before PostgreSQL's own in the search
path.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta
from typing import TypeVar

from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.exc import OperationalError

from ..errors import InvalidOptions
from ..runtime.connections.engines import EngineOrUrl, engine_for

T = TypeVar("T")

SCHEMA = "sa_durable_clock"
# It follows the application's own schemas, so that the application still creates its tables in the first of
# those.
SUFFIX = f"{SCHEMA}, pg_catalog"
LOCK = 0x73615F636C6F636B  # "sa_clock"
MICROSECOND = timedelta(microseconds=1)


class Clock:
    """The time of a database, as sa_durable sees it. See `clock`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._shift = timedelta(0)
        self._frozen: datetime | None = None

    def now(self) -> datetime:
        """Return the current time of this clock."""
        return self._read(f"{SCHEMA}.statement_timestamp()")

    def advance(self, by: timedelta) -> datetime:
        """Move the clock forward, or backward, by a duration. Returns the new time."""
        if self._frozen is not None:
            self._frozen += by
        else:
            self._shift += by
        return self._set()

    def move_to(self, moment: datetime | None) -> datetime:
        """Move the clock to an aware datetime: `clock.move_to(idle.next_due)`. Returns the new time.

        Raises:
            InvalidOptions: `moment` is None, or has no time zone.
        """
        return self.advance(_aware(moment) - self.now())

    def freeze(self, at: datetime | None = None) -> datetime:
        """Stop the clock, now or at an aware datetime. A stopped clock can still be moved. Returns its time.

        Raises:
            InvalidOptions: `at` has no time zone.
        """
        self._frozen = self.now() if at is None else _aware(at)
        return self._set()

    def resume(self) -> datetime:
        """Let a stopped clock run again, from the time that it shows. Returns that time."""
        self._shift = self.now() - self._read("pg_catalog.statement_timestamp()")
        self._frozen = None
        return self._set()

    def _read(self, expression: str) -> datetime:
        moment: datetime = self._connection.scalar(text(f"SELECT {expression}"))
        return moment

    def _set(self) -> datetime:
        # The planner inlines a single expression of stable functions. So indexes are used as usual, and
        # prepared statements get new plans when the function is replaced.
        time = f"pg_catalog.statement_timestamp() + interval '{self._shift // MICROSECOND} microseconds'"
        if self._frozen is not None:
            time = f"timestamptz '{self._frozen.isoformat()}'"
        self._connection.execute(
            text(
                f"CREATE OR REPLACE FUNCTION {SCHEMA}.statement_timestamp() RETURNS timestamptz "
                f"LANGUAGE sql STABLE PARALLEL SAFE AS $$ SELECT {time} $$"
            )
        )
        return self.now()

    def _remove(self) -> None:
        self._shift, self._frozen = timedelta(0), None
        self._set()  # the time is right again even if a later statement fails
        for (statement,) in self._connection.execute(text(_DEFAULTS)).all():
            self._connection.execute(text(statement))
        self._connection.execute(text(f"DROP FUNCTION {SCHEMA}.statement_timestamp()"))
        self._connection.execute(text(f"DROP SCHEMA {SCHEMA}"))


# Tables that were created meanwhile have server defaults that call our function. They get PostgreSQL's
# function.
_DEFAULTS = """
SELECT format('ALTER TABLE %s ALTER COLUMN %I SET DEFAULT %s', adrelid::regclass, attname,
              replace(pg_get_expr(adbin, adrelid), 'sa_durable_clock.', ''))
FROM pg_depend JOIN pg_attrdef d ON d.oid = objid JOIN pg_attribute ON attrelid = adrelid AND attnum = adnum
WHERE classid = 'pg_attrdef'::regclass AND refclassid = 'pg_proc'::regclass
  AND refobjid = 'sa_durable_clock.statement_timestamp()'::regprocedure
"""

# The search paths that this user's new connections to this database get: one row per level, the strongest
# first.
_PATHS = """
SELECT setrole <> 0 AND setdatabase <> 0 AS own, substr(setting, 13) AS path
FROM pg_db_role_setting, unnest(setconfig) AS setting
WHERE setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
  AND setrole IN (0, current_user::regrole) AND starts_with(setting, 'search_path=')
ORDER BY setrole = 0, setdatabase = 0
"""
DEFAULT_PATH = '"$user", public'


@contextmanager
def clock(*engines: EngineOrUrl) -> Iterator[Clock]:
    """Move the time of a database until the block ends.

        with clock(engine) as time:
            time.advance(timedelta(days=7)) run_until_idle(engine, BillingTask)

    The clock moves the library's time: leases, due times, deadlines, expiry of keys, and the times that the
    library writes into rows. It doesn't move `now()` and `clock_timestamp()`, the times in UUIDv7 ids, or the
    server defaults of tables that existed before: `created_at` of a task that was added to a session as an
    object is real time.

    Connections in the engines' pools use the moved time, but connections that are in use don't. So enter the
    block before you open sessions and start workers. Other processes that connect as the same user from then
    on use the moved time too. The block needs the right to create schemas in the database. At its end, all
    its changes are undone.

    A worker measures its own leases by its process's clock, which isn't moved. If a worker runs meanwhile, a
    jump past its lease looks as if the worker had hung for that long: a sweep expires its tasks, and what the
    worker still writes for them is rejected. `run_until_idle` doesn't sweep while a handler runs, so handlers
    can move the clock.

    Args:
        engines: All engines, async ones included, and URLs of this one database that the test uses.

    Raises:
        InvalidOptions: No engine is given, another clock moves this database, or connections set a
            search_path of their own that hides the clock's function.
    """
    if not engines:
        raise InvalidOptions("clock() needs at least one engine: with clock(engine) as time: ...")
    source = engine_for(engines[0])
    with ExitStack() as stack:
        if source is not engines[0]:
            stack.callback(source.dispose)
        connection = source.connect().execution_options(isolation_level="AUTOCOMMIT")
        stack.enter_context(connection)
        connection.detach()  # the pool may have no second connection
        # With this path, PostgreSQL spells our function's name with its schema.
        connection.execute(text("SET search_path TO pg_catalog"))
        # The backend of a killed process may hold the lock for a moment.
        connection.execute(text("SET lock_timeout TO '2s'"))
        try:
            connection.execute(text(f"SELECT pg_advisory_lock({LOCK})"))
        except OperationalError as error:
            raise InvalidOptions(
                "another clock moves this database already. Leave its block first, or use another database."
            ) from error
        stack.callback(connection.execute, text(f"SELECT pg_advisory_unlock({LOCK})"))
        connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
        moved = Clock(connection)
        moved.advance(timedelta(0))
        stack.callback(moved._remove)  # noqa: SLF001 - this function ends the block
        _set_path_of_new_connections(connection, stack)
        for engine in engines:
            _set_path_of_pooled_connections(getattr(engine, "sync_engine", engine), stack)
        _check(source)
        yield moved


def _set_path_of_new_connections(connection: Connection, stack: ExitStack) -> None:
    paths = connection.execute(text(_PATHS)).all()
    own = _without_ours(paths[0].path) if paths and paths[0].own else None
    name = connection.scalar(text("SELECT quote_ident(current_database())"))
    alter = f"ALTER ROLE CURRENT_USER IN DATABASE {name}"
    back = f"SET search_path TO {own}" if own else "RESET search_path"
    connection.execute(
        text(f"{alter} SET search_path TO {_with_ours(paths[0].path if paths else DEFAULT_PATH)}")
    )
    stack.callback(connection.execute, text(f"{alter} {back}"))


def _set_path_of_pooled_connections(engine: EngineOrUrl, stack: ExitStack) -> None:
    def set_path(used: Connection) -> None:
        if SCHEMA not in used.info:
            cursor = used.connection.cursor()
            cursor.execute("SHOW search_path")
            [path] = cursor.fetchall()[0]
            cursor.execute(f"SET search_path TO {_with_ours(path)}")
            cursor.close()
            used.connection.commit()
            # The path is never reset: once the schema is dropped, it means the same as before.
            used.info[SCHEMA] = True

    if isinstance(engine, Engine):
        event.listen(engine, "engine_connect", set_path)
        stack.callback(event.remove, engine, "engine_connect", set_path)


def _check(source: Engine) -> None:
    with source.connect() as connection:
        found = connection.scalar(
            text(
                "SELECT 'statement_timestamp()'::regprocedure ="
                f" '{SCHEMA}.statement_timestamp()'::regprocedure"
            )
        )
        path = connection.scalar(text("SHOW search_path"))
    if not found:
        raise InvalidOptions(
            f"connections of {source!r} can't use the clock: they set search_path to {path!r}. Nothing was"
            " moved. Set search_path on the role or the database instead."
        )


def _with_ours(path: str) -> str:
    path = _without_ours(path)
    return f"{path}, {SUFFIX}" if path else SUFFIX


def _without_ours(path: str) -> str:
    """Return a search path without the entries that an earlier clock, perhaps of a killed process, added."""
    return path.strip().removesuffix(SUFFIX).removesuffix(", ")


def _aware(moment: datetime | None) -> datetime:
    if not isinstance(moment, datetime) or moment.utcoffset() is None:
        raise InvalidOptions(f"{moment!r} is not an aware datetime: give it a time zone, e.g. tzinfo=UTC")
    return moment
