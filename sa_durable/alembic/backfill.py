"""Keys for the rows of before: gathered and given in pages, each page a transaction of its own.

It can stop anywhere and start again: what it knows is in the rows. No statement ever waits long for a lock, because
it holds others meanwhile, and a spawn that runs against us must not be the one that PostgreSQL ends as a deadlock.
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

from ..codec import once_key
from . import pages
from .ddl import literal
from .online import LOCK_NOT_AVAILABLE, POLL_SECONDS, set_lock_timeout, settings, sql, sqlstate
from .sources import Backfill

logger = logging.getLogger("sa_durable.alembic")

YIELD_SECONDS = 0.05  # far below deadlock_timeout, which is a second
UNIQUE_VIOLATION = "23505"
VIOLATIONS = 10
CONTENDED = {
    LOCK_NOT_AVAILABLE,
    UNIQUE_VIOLATION,
    "40P01",
}  # a lock, a spawn that took the key, a deadlock after all
PUT_OFF_AT_MOST = 100
PROGRESS_EVERY = 50_000


@dataclass(frozen=True, slots=True)
class BackfillReport:
    """What a backfill did to one table. Rows for which the source is NULL wanted no key and are in no number."""

    table: str
    keyed: int
    duplicates: int  # rows without a key, because another one has or had it
    duplicate_ids: tuple[UUID, ...]  # the first of them, by age
    refused: int  # rows whose key spawn would refuse: empty, too long, or with the reserved prefix
    refused_ids: tuple[UUID, ...]

    def log(self) -> None:
        logger.info("%s: %d rows got their key", self.table, self.keyed)
        for number, ids, why in (
            (self.duplicates, self.duplicate_ids, "another row has the key that they would get"),
            (self.refused, self.refused_ids, "spawn would refuse the key that they would get"),
        ):
            if number:
                more = ", ..." if number > len(ids) else ""
                listed = ", ".join(map(str, ids))
                logger.warning(
                    "%s: %d rows are left without a key, because %s: %s%s",
                    self.table,
                    number,
                    why,
                    listed,
                    more,
                )


def check_source(connection: Connection, table: str, backfill: Backfill) -> None:
    """Raise the database's error for a source that can't be evaluated, before anything is changed."""
    if isinstance(backfill.source, str):
        connection.execute(sql(f"SELECT CAST((\n{backfill.source}\n) AS text) FROM {table} LIMIT 0"))  # noqa: S608 - the source is SQL, by contract, in a migration script


def fill(connection: Connection, table: str, backfill: Backfill, *, online: bool) -> BackfillReport:
    """Give the rows of `table` their keys. `online`: the connection autocommits and others are at work; else it is in
    a transaction that has locked the table against writers."""
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
    keyed = _Assignment(connection, table, backfill, online=online).run()
    left = {kind: (number, tuple(ids)) for kind, number, ids in connection.execute(sql(pages.left(table)))}
    connection.execute(text(pages.DROP))
    return BackfillReport(table, keyed, *left.get("candidate", (0, ())), *left.get("refused", (0, ())))


def _gather(connection: Connection, table: str, backfill: Backfill) -> None:
    after, total, told = pages.FIRST_ID, 0, 0
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
            _note(connection, rows)
            after, number = str(rows[-1].id), len(rows)
        total += number
        if total - told >= PROGRESS_EVERY:
            logger.info("%s: %d rows read", table, total)
            told = total


def _note(connection: Connection, rows: list[Row[Any]] | Any) -> None:
    noted: dict[str, list[Any]] = {"ids": [], "times": [], "keys": [], "kinds": []}
    for row in rows:
        key, kind = row.idempotency_key, "carried"
        if key is None:
            key = _once(row.name, row.params)
            kind = "refused" if key is None else "candidate"
        for values, value in zip(noted.values(), (row.id, row.created_at, key, kind), strict=True):
            values.append(value)
    connection.execute(text(pages.NOTE), noted)


def _once(name: str, params: str) -> str | None:
    """The key, or None for params that no spawn can have stored (numbers beyond a double, say)."""
    try:
        return once_key(name, json.loads(params))
    except (ValueError, ArithmeticError, RecursionError):
        return None


class _Assignment:
    """Gives out the keys of the numbered groups. Where a page meets somebody else's lock it is halved, down to the key
    that is in use; that one is put off until the others are done."""

    def __init__(self, connection: Connection, table: str, backfill: Backfill, *, online: bool) -> None:
        self._connection, self._table, self._backfill, self._online = connection, table, backfill, online
        self._total = connection.scalar(text(pages.COUNT)) or 0
        self._keyed = self._told = 0
        self._violations: Counter[int] = Counter()

    def run(self) -> int:
        """The number of rows that got a key."""
        if self._online:
            set_lock_timeout(self._connection, YIELD_SECONDS)
        self._settle(self._pages())
        if self._online:
            set_lock_timeout(self._connection, 0)
        return self._keyed

    def _pages(self) -> deque[int]:
        """Work through all keys; those put off."""
        put_off: deque[int] = deque()
        after, size = 0, self._backfill.batch_size
        while after < self._total:
            last = min(after + size, self._total)
            if self._assign(after, last):
                after, size = last, min(size * 2, self._backfill.batch_size)
            elif last - after > 1:
                size = (last - after + 1) // 2
            elif len(put_off) < PUT_OFF_AT_MOST:
                put_off.append(after)
                after = last
            else:  # somebody has locked the table, rather than a row
                self._wait(self._total - after)
            self._progress(after)
        return put_off

    def _settle(self, put_off: deque[int]) -> None:
        while put_off:
            for _ in range(len(put_off)):
                after = put_off.popleft()
                if not self._assign(after, after + 1):
                    put_off.append(after)
            if put_off:
                self._wait(len(put_off))

    def _assign(self, after: int, last: int) -> bool:
        """Whether every key of the range is given to the row that should have it."""
        statement = pages.assign(self._table, self._backfill.hold, str(after), str(last))
        try:
            wanted, keyed = self._connection.execute(sql(statement)).one()
        except DBAPIError as error:
            if not self._online or sqlstate(error) not in CONTENDED:
                raise
            if sqlstate(error) == UNIQUE_VIOLATION and last - after == 1:
                self._violations[after] += 1
                if (
                    self._violations[after] > VIOLATIONS
                ):  # no spawn is that fast: there is another unique index
                    raise
            return False
        self._keyed += keyed
        return bool(wanted == keyed)

    def _wait(self, keys: int) -> None:
        logger.info(
            "%s: other transactions use the rows of some of the %d keys to go; waiting", self._table, keys
        )
        time.sleep(POLL_SECONDS)

    def _progress(self, done: int) -> None:
        if done - self._told >= PROGRESS_EVERY:
            logger.info("%s: %d of %d keys done", self._table, done, self._total)
            self._told = done
