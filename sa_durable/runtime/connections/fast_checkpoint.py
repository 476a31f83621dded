"""Checkpoints saved straight through libpq: a prepared statement of our own, for what a step mostly needs."""

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
_KEY = "sa_durable_line"
_JSONB = 3802
_UNKNOWN, _DUPLICATE = b"26000", b"42P05"  # prepared statement


@dataclass(frozen=True, slots=True)
class SaveStatement:
    """`stmt.save` as libpq takes it."""

    name: bytes
    sql: bytes
    order: tuple[str, ...]

    def parameters(self, claim: Claim, name: str, value: str) -> list[bytes]:
        given = {"id": str(claim.task_id), "token": str(claim.token), "name": name, "value": value}
        return [given[parameter].encode() for parameter in self.order]


def statement_for(model: Model, engine: Engine) -> SaveStatement:
    """The statement that saves a checkpoint of `model`, on connections of `engine`."""
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
    """A connection that a session keeps, and what is prepared on it."""

    def __init__(self, connection: Connection) -> None:
        raw: psycopg.Connection[Any] = connection.connection.driver_connection  # type: ignore[assignment]  # it is psycopg's
        self.pgconn = raw.pgconn
        self._prepared: set[bytes] = connection.info.setdefault(_KEY, set())  # by earlier sessions, too
        loader = raw.adapters.get_loader(_JSONB, pq.Format.TEXT) or JsonbLoader
        self._load = loader(_JSONB, raw).load
        # Poolers that keep no prepared statements; text that we would have to encode otherwise; and whoever wants to
        # see or log each statement: they all get SQLAlchemy's way.
        self.usable = (
            raw.prepare_threshold is not None
            and raw.info.encoding == "utf-8"
            and not connection.dispatch.before_cursor_execute
            and not connection.dispatch.after_cursor_execute
            and not logging.getLogger("sqlalchemy.engine.Engine.sa_durable").isEnabledFor(logging.INFO)
        )

    def save(self, statement: SaveStatement, parameters: Sequence[bytes]) -> Saved | None:
        """Save a checkpoint in one round trip. None, if that isn't known to have worked, for whatever reason."""
        try:
            if statement.name not in self._prepared:
                prepared = self.pgconn.prepare(statement.name, statement.sql)
                if prepared.status != pq.ExecStatus.COMMAND_OK and _sqlstate(prepared) != _DUPLICATE:
                    return None
                self._prepared.add(statement.name)
            return self._saved(self.pgconn.exec_prepared(statement.name, parameters))
        except psycopg.Error:  # no connection, mostly: who takes SQLAlchemy's way is told so
            return None

    def _saved(self, result: PGresult) -> Saved | None:
        """What a reply says, if it is that the checkpoint was written."""
        if result.status != pq.ExecStatus.TUPLES_OK:
            if _sqlstate(result) == _UNKNOWN:  # psycopg deallocates all after a ROLLBACK
                self._prepared.clear()
            return None
        value = result.get_value(0, 0) if result.ntuples else None
        return None if value is None else Saved(self._load(value), first=True)


def _sqlstate(result: PGresult) -> bytes | None:
    return result.error_field(pq.DiagnosticField.SQLSTATE)


def prepared_connection(session: Session) -> PreparedConnection:
    """The line of a session that is kept: it has one connection for as long as that."""
    line: PreparedConnection | None = session.info.get(_KEY)
    if line is None:
        line = session.info[_KEY] = PreparedConnection(session.connection())
    return line
