"""Save a checkpoint through libpq: one prepared statement on a cached connection.

This takes 10 us of processor time; through SQLAlchemy it takes 171 (docs/decisions/0009). Only success is
handled here. In every other case the answer is None, and the caller saves the checkpoint again through
SQLAlchemy, which finds the cause. Saving twice is safe: the first value of a name stays.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import pq
from psycopg.types.json import JsonbLoader
from sqlalchemy import Connection, Engine
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.orm import Session

from ...services.checkpoints import Saved
from ...statements import checkpoints as stmt
from ...values import Claim

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult

    from ...models import DurableTask

Model = type["DurableTask"]

_KEY = "sa_durable_prepared"
"""Key of a session's PreparedConnection, and of a connection's prepared statements, in their `info`."""

_JSONB_OID = 3802
_UNKNOWN_STATEMENT, _DUPLICATE_STATEMENT = b"26000", b"42P05"
"""SQLSTATEs of prepared statements."""


@dataclass(frozen=True, slots=True)
class SaveStatement:
    """The statement `checkpoints.save` of one model, compiled for libpq."""

    name: bytes
    """Name of the prepared statement: a hash of its text, so that each text has a name of its own."""
    sql: bytes
    order: tuple[str, ...]
    """Names of the parameters, in the order of $1, $2, ..."""

    def parameters(self, claim: Claim, name: str, value: str) -> list[bytes]:
        """Return the parameters that save `value`, a JSON text, under `name`."""
        by_name = {"id": str(claim.task_id), "token": str(claim.token), "name": name, "value": value}
        return [by_name[parameter].encode() for parameter in self.order]


def statement_for(model: Model, engine: Engine) -> SaveStatement:
    """Compile the statement that saves a checkpoint of `model` on connections of `engine`."""
    translated = engine.get_execution_options().get("schema_translate_map")
    compiled = stmt.save(model).compile(
        dialect=PGDialect_psycopg(paramstyle="numeric_dollar"),  # type: ignore[no-untyped-call]  # SQLAlchemy's
        **({"schema_translate_map": translated, "render_schema_translate": True} if translated else {}),
    )
    sql = str(compiled).encode()
    return SaveStatement(
        b"sa_durable_" + sha256(sql).hexdigest()[:32].encode(), sql, tuple(compiled.positiontup or ())
    )


class PreparedConnection:
    """The libpq connection of a cached session, and the names of the statements that are prepared on it."""

    usable: bool
    """Whether checkpoints may be saved on it: prepared statements work, the client encoding is UTF-8, and no
    event listener or SQL log expects to see each statement."""

    def __init__(self, connection: Connection) -> None:
        raw: psycopg.Connection[Any] = connection.connection.driver_connection  # type: ignore[assignment]  # it is psycopg's
        self._pgconn = raw.pgconn
        # Other sessions may have prepared statements on the same connection.
        self._prepared: set[bytes] = connection.info.setdefault(_KEY, set())
        loader = raw.adapters.get_loader(_JSONB_OID, pq.Format.TEXT) or JsonbLoader
        self._load = loader(_JSONB_OID, raw).load
        self.usable = (
            raw.prepare_threshold is not None
            and raw.info.encoding == "utf-8"
            and not connection.dispatch.before_cursor_execute
            and not connection.dispatch.after_cursor_execute
            and not logging.getLogger("sqlalchemy.engine.Engine.sa_durable").isEnabledFor(logging.INFO)
        )

    def save(self, statement: SaveStatement, parameters: Sequence[bytes]) -> Saved | None:
        """Save a checkpoint in one round trip.

        Returns:
            The stored value, or None if the checkpoint may not have been saved, for whatever reason.
        """
        try:
            if statement.name not in self._prepared:
                prepared = self._pgconn.prepare(statement.name, statement.sql)
                if (
                    prepared.status != pq.ExecStatus.COMMAND_OK
                    and _sqlstate(prepared) != _DUPLICATE_STATEMENT
                ):
                    return None
                self._prepared.add(statement.name)
            return self._saved(self._pgconn.exec_prepared(statement.name, parameters))
        except psycopg.Error:  # usually the connection was lost, which the caller's second way finds out, too
            return None

    def _saved(self, result: PGresult) -> Saved | None:
        if result.status != pq.ExecStatus.TUPLES_OK:
            if _sqlstate(result) == _UNKNOWN_STATEMENT:  # psycopg deallocates all statements after a ROLLBACK
                self._prepared.clear()
            return None
        value = result.get_value(0, 0) if result.ntuples else None
        return None if value is None else Saved(self._load(value), first=True)


def prepared_connection(session: Session) -> PreparedConnection:
    """Return the PreparedConnection of a cached session, which always has the same connection."""
    prepared: PreparedConnection | None = session.info.get(_KEY)
    if prepared is None:
        prepared = session.info[_KEY] = PreparedConnection(session.connection())
    return prepared


def _sqlstate(result: PGresult) -> bytes | None:
    return result.error_field(pq.DiagnosticField.SQLSTATE)
