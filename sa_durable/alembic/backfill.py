"""Backfill keys for existing rows, one page per transaction.

A backfill can stop anywhere and start again: all its state is in the rows. No statement waits long for a
lock: the backfill holds other row locks meanwhile, and PostgreSQL could end a concurrent spawn to break a
deadlock.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter, deque
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, text
from sqlalchemy.exc import DBAPIError

from ..derived_key import once_key
from . import pages
from .ddl import literal
from .online import LOCK_NOT_AVAILABLE, POLL_INTERVAL_S, set_lock_timeout, settings, sql, sqlstate
from .sources import Backfill

logger = logging.getLogger("sa_durable.alembic")

PAGE_LOCK_TIMEOUT_S = 0.05  # far below deadlock_timeout, which is a second
UNIQUE_VIOLATION = "23505"
MAX_VIOLATIONS = 10
# A locked row, a spawn that took the key first, and a deadlock that happened although we give up early.
CONTENDED = {LOCK_NOT_AVAILABLE, UNIQUE_VIOLATION, "40P01"}
MAX_DEFERRED = 100
PROGRESS_ROWS = 50_000


@dataclass(frozen=True, slots=True)
class BackfillReport:
    """What a backfill did to one table. Rows for which the source is NULL are in none of the numbers."""

    table: str
    """The table's qualified name."""
    keyed: int
    """Number of rows that got a key."""
    duplicates: int
    """Number of rows that got no key because another row has, or had, the same key."""
    duplicate_ids: tuple[UUID, ...]
    """Ids of the oldest duplicates."""
    refused: int
    """Number of rows whose key `spawn` would refuse: it is empty, too long, or has the reserved prefix."""
    refused_ids: tuple[UUID, ...]
    """Ids of the oldest rows with such a key."""

    def log(self) -> None:
        """Log the number of keyed rows, and a warning for each reason why rows have no key."""
        logger.info("%s: added keys to %d rows", self.table, self.keyed)
        for number, ids, why in (
            (self.duplicates, self.duplicate_ids, "another row has the same key"),
            (self.refused, self.refused_ids, "spawn would refuse their key"),
        ):
            if number:
                more = ", ..." if number > len(ids) else ""
                logger.warning(
                    "%s: %d rows are left without a key because %s: %s%s",
                    self.table,
                    number,
                    why,
                    ", ".join(map(str, ids)),
                    more,
                )


def check_source(connection: Connection, table: str, backfill: Backfill) -> None:
    """Raise the database's error for a source that it can't evaluate, before anything is changed."""
    if isinstance(backfill.source, str):
        # The source is SQL by contract. Line breaks keep a comment at its end from hiding the rest.
        connection.execute(sql(f"SELECT CAST((\n{backfill.source}\n) AS text) FROM {table} LIMIT 0"))  # noqa: S608 - the migration's own SQL


def fill(connection: Connection, table: str, backfill: Backfill, *, online: bool) -> BackfillReport:
    """Give the rows of a task table their keys.

    Args:
        connection: Where to run. See `online`.
        table: The qualified, quoted name of the task table.
        backfill: Which keys the rows get.
        online: True: the connection autocommits, and other sessions write to the table. False: the connection
            is in a transaction that has locked the table against writers.
    """
    with settings(connection, pages.PLANS):
        report = _fill(connection, table, backfill, online=online)
    report.log()
    return report


def _fill(connection: Connection, table: str, backfill: Backfill, *, online: bool) -> BackfillReport:
    connection.execute(text(pages.DROP))
    connection.execute(text(pages.CREATE))
    _gather(connection, table, backfill)
    for statement in pages.GROUP:
        connection.execute(text(statement))
    keyed = _Assignment(connection, table, backfill, online=online).assign_all()
    rows = connection.execute(sql(pages.without_key(table)))
    unkeyed = {kind: (number, tuple(ids)) for kind, number, ids in rows}
    connection.execute(text(pages.DROP))
    return BackfillReport(table, keyed, *unkeyed.get("candidate", (0, ())), *unkeyed.get("refused", (0, ())))


def _gather(connection: Connection, table: str, backfill: Backfill) -> None:
    """Record the key that each row has or could get, page by page, in a temporary table."""
    after, total, reported = pages.FIRST_ID, 0, 0
    while True:
        position = f"CAST({literal(after)} AS uuid)"
        if isinstance(backfill.source, str):
            query = pages.gather(table, backfill.source, position, str(backfill.batch_size))
            last = connection.execute(sql(query)).one_or_none()
            if last is None:
                break
            after, number = str(last[0]), last[1]
        else:
            rows = connection.execute(sql(pages.read(table, position, str(backfill.batch_size)))).all()
            if not rows:
                break
            _record(connection, rows)
            after, number = str(rows[-1].id), len(rows)
        total += number
        if total - reported >= PROGRESS_ROWS:
            logger.info("%s: read %d rows", table, total)
            reported = total


def _record(connection: Connection, rows: list[Row[Any]] | Any) -> None:
    recorded: dict[str, list[Any]] = {"ids": [], "times": [], "keys": [], "kinds": []}
    for row in rows:
        key, kind = row.idempotency_key, "carried"
        if key is None:
            key = _once(row.name, row.params)
            kind = "refused" if key is None else "candidate"
        for values, value in zip(recorded.values(), (row.id, row.created_at, key, kind), strict=True):
            values.append(value)
    connection.execute(text(pages.RECORD), recorded)


def _once(name: str, params: str) -> str | None:
    """Return the key, or None for params that no spawn can have stored, such as numbers beyond a double."""
    try:
        return once_key(name, json.loads(params))
    except (ValueError, ArithmeticError, RecursionError):
        return None


class _Assignment:
    """Assign the numbered keys to rows, page by page.

    A page that another transaction's lock blocks is halved, down to the single key that is in use. That key
    is deferred until all others are assigned.
    """

    def __init__(self, connection: Connection, table: str, backfill: Backfill, *, online: bool) -> None:
        self._connection, self._table, self._backfill, self._online = connection, table, backfill, online
        self._total = connection.scalar(text(pages.COUNT)) or 0
        self._keyed = self._reported = 0
        self._violations: Counter[int] = Counter()

    def assign_all(self) -> int:
        """Assign every key. Returns the number of rows that got one."""
        if self._online:
            set_lock_timeout(self._connection, PAGE_LOCK_TIMEOUT_S)
        self._retry_deferred(self._assign_pages())
        if self._online:
            set_lock_timeout(self._connection, 0)
        return self._keyed

    def _assign_pages(self) -> deque[int]:
        """Assign the keys in pages. Returns the keys that are deferred."""
        deferred: deque[int] = deque()
        after, size = 0, self._backfill.batch_size
        while after < self._total:
            last = min(after + size, self._total)
            if self._assign(after, last):
                after, size = last, min(size * 2, self._backfill.batch_size)
            elif last - after > 1:
                size = (last - after + 1) // 2
            elif len(deferred) < MAX_DEFERRED:
                deferred.append(after)
                after = last
            else:  # another transaction has locked the whole table rather than some rows
                self._wait(self._total - after)
            self._log_progress(after)
        return deferred

    def _retry_deferred(self, deferred: deque[int]) -> None:
        while deferred:
            for _ in range(len(deferred)):
                after = deferred.popleft()
                if not self._assign(after, after + 1):
                    deferred.append(after)
            if deferred:
                self._wait(len(deferred))

    def _assign(self, after: int, last: int) -> bool:
        """Assign the keys numbered `after + 1` to `last`. Returns whether all of them are assigned."""
        statement = pages.assign(self._table, self._backfill.hold, str(after), str(last))
        try:
            wanted, keyed = self._connection.execute(sql(statement)).one()
        except DBAPIError as error:
            if not self._online or sqlstate(error) not in CONTENDED:
                raise
            if sqlstate(error) == UNIQUE_VIOLATION and last - after == 1:
                self._violations[after] += 1
                # Spawns can't take one key this often during our retries: another unique index is violated.
                if self._violations[after] > MAX_VIOLATIONS:
                    raise
            return False
        self._keyed += keyed
        return bool(wanted == keyed)

    def _wait(self, keys: int) -> None:
        logger.info(
            "%s: other transactions have locked rows; waiting to assign %d more keys", self._table, keys
        )
        time.sleep(POLL_INTERVAL_S)

    def _log_progress(self, done: int) -> None:
        if done - self._reported >= PROGRESS_ROWS:
            logger.info("%s: %d of %d keys assigned", self._table, done, self._total)
            self._reported = done
