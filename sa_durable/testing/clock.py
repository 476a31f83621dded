"""A database clock that tests move: sleeps of a week, backoff, leases, deadlines and key_ttl without waiting.

sa_durable asks the database what time it is, everywhere through `statement_timestamp()`. For as long as the clock is
in a test's hands, a function of that name in a schema of the kit's own comes before PostgreSQL's in the search path.
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
# After the application's own schemas: what it creates still goes into the first of those.
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
        """What time it is there."""
        return self._read(f"{SCHEMA}.statement_timestamp()")

    def advance(self, by: timedelta) -> datetime:
        """Move it forward, or back, by a duration. Returns what time it is then."""
        if self._frozen is not None:
            self._frozen += by
        else:
            self._shift += by
        return self._set()

    def move_to(self, moment: datetime | None) -> datetime:
        """Move it to a moment, an aware datetime: `clock.move_to(idle.next_due)`. Returns what time it is then."""
        return self.advance(_aware(moment) - self.now())

    def freeze(self, at: datetime | None = None) -> datetime:
        """Stop it, now or at a moment. It still can be moved."""
        self._frozen = self.now() if at is None else _aware(at)
        return self._set()

    def resume(self) -> datetime:
        """Let it go on from where it is."""
        self._shift = self.now() - self._read("pg_catalog.statement_timestamp()")
        self._frozen = None
        return self._set()

    def _read(self, expression: str) -> datetime:
        moment: datetime = self._connection.scalar(text(f"SELECT {expression}"))
        return moment

    def _set(self) -> datetime:
        # A plain expression of stable functions, which the planner puts in place: indexes are used as ever, and what
        # sessions have prepared is planned anew when the function is replaced.
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

    def _take_away(self) -> None:
        self._shift, self._frozen = timedelta(0), None
        self._set()  # whatever becomes of the rest
        for (statement,) in self._connection.execute(text(_DEFAULTS)).all():
            self._connection.execute(text(statement))
        self._connection.execute(text(f"DROP FUNCTION {SCHEMA}.statement_timestamp()"))
        self._connection.execute(text(f"DROP SCHEMA {SCHEMA}"))


# Tables that were made meanwhile have server defaults with our function: they get PostgreSQL's.
_DEFAULTS = """
SELECT format('ALTER TABLE %s ALTER COLUMN %I SET DEFAULT %s', adrelid::regclass, attname,
              replace(pg_get_expr(adbin, adrelid), 'sa_durable_clock.', ''))
FROM pg_depend JOIN pg_attrdef d ON d.oid = objid JOIN pg_attribute ON attrelid = adrelid AND attnum = adnum
WHERE classid = 'pg_attrdef'::regclass AND refclassid = 'pg_proc'::regclass
  AND refobjid = 'sa_durable_clock.statement_timestamp()'::regprocedure
"""

# The search paths that this user's new connections to this database get, the strongest first; a row for each level.
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
            time.advance(timedelta(days=7))
            run_until_idle(engine, BillingTask)

    For engines, also async ones, and URLs of one database: all of them that the test uses. Their connections are told,
    also those in their pools, but not those in use: enter it before sessions are opened and workers started. Other
    processes that connect to the database as the same user from then on see the moved time too. Needs the right to
    create schemas in the database, and no other; what it changed is put back at the end.

    It moves the library's time: leases, due times, deadlines, expiry of keys, and what it writes into rows. It doesn't
    move `now()` and `clock_timestamp()`, the times in UUIDv7 ids, or the server defaults of tables made before:
    `created_at` of a task that was added to a session as an object is real time.

    A worker measures its own leases by its process's clock, which isn't moved: to a worker that runs meanwhile a jump
    over its lease is as if it had hung for that long. Another one, or itself, sweeps its tasks; what it still writes
    for them is rejected. With `run_until_idle` nobody sweeps while a handler runs, so handlers may move it.

    Raises InvalidOptions if another clock moves this database, or if connections get a search_path of their own that
    can't be led past.
    """
    if not engines:
        raise InvalidOptions("clock needs an engine: with clock(engine) as time: ...")
    source = engine_for(engines[0])
    with ExitStack() as stack:
        if source is not engines[0]:
            stack.callback(source.dispose)
        connection = source.connect().execution_options(isolation_level="AUTOCOMMIT")
        stack.enter_context(connection)
        connection.detach()  # the pool may have no second one
        connection.execute(
            text("SET search_path TO pg_catalog")
        )  # PostgreSQL says our function's name in full
        connection.execute(
            text("SET lock_timeout TO '2s'")
        )  # a process that was killed may still be on its way out
        try:
            connection.execute(text(f"SELECT pg_advisory_lock({LOCK})"))
        except OperationalError as error:
            raise InvalidOptions("another clock moves this database: one at a time") from error
        stack.callback(connection.execute, text(f"SELECT pg_advisory_unlock({LOCK})"))
        connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
        moved = Clock(connection)
        moved.advance(timedelta(0))
        stack.callback(moved._take_away)  # noqa: SLF001 - the block's end is this function's
        _lead_new_connections(connection, stack)
        for engine in engines:
            _lead_pooled_connections(getattr(engine, "sync_engine", engine), stack)
        _check(source)
        yield moved


def _lead_new_connections(connection: Connection, stack: ExitStack) -> None:
    paths = connection.execute(text(_PATHS)).all()
    own = _without_ours(paths[0].path) if paths and paths[0].own else None
    name = connection.scalar(text("SELECT quote_ident(current_database())"))
    alter = f"ALTER ROLE CURRENT_USER IN DATABASE {name}"
    back = f"SET search_path TO {own}" if own else "RESET search_path"
    connection.execute(
        text(f"{alter} SET search_path TO {_with_ours(paths[0].path if paths else DEFAULT_PATH)}")
    )
    stack.callback(connection.execute, text(f"{alter} {back}"))


def _lead_pooled_connections(engine: EngineOrUrl, stack: ExitStack) -> None:
    def lead(used: Connection) -> None:
        if SCHEMA not in used.info:
            cursor = used.connection.cursor()
            cursor.execute("SHOW search_path")
            [path] = cursor.fetchall()[0]
            cursor.execute(f"SET search_path TO {_with_ours(path)}")
            cursor.close()
            used.connection.commit()
            used.info[SCHEMA] = True  # for good: without the schema, the path means what it meant before

    if isinstance(engine, Engine):
        event.listen(engine, "engine_connect", lead)
        stack.callback(event.remove, engine, "engine_connect", lead)


def _check(source: Engine) -> None:
    with source.connect() as connection:
        led = connection.scalar(
            text(
                f"SELECT 'statement_timestamp()'::regprocedure = '{SCHEMA}.statement_timestamp()'::regprocedure"
            )
        )
        path = connection.scalar(text("SHOW search_path"))
    if not led:
        raise InvalidOptions(
            f"clock can't lead the connections of {source!r} past PostgreSQL's own time: they set search_path to {path!r}"
        )


def _with_ours(path: str) -> str:
    path = _without_ours(path)
    return f"{path}, {SUFFIX}" if path else SUFFIX


def _without_ours(path: str) -> str:
    """A search path without what an earlier clock put there, in this connection or in a process that was killed."""
    return path.strip().removesuffix(SUFFIX).removesuffix(", ")


def _aware(moment: datetime | None) -> datetime:
    if not isinstance(moment, datetime) or moment.utcoffset() is None:
        raise InvalidOptions(f"{moment!r} is no moment: an aware datetime, e.g. with tzinfo=UTC")
    return moment
