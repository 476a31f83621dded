"""A statement that is on its way while the event loop goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

import psycopg

from ...services.checkpoints import Saved
from .database import CachedSession, Database

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult

    from .fast_checkpoint import PreparedConnection, SaveStatement

# No connection any more; or a loop that watches no sockets
_NO_WAY = (psycopg.Error, OSError, ValueError, NotImplementedError)


class AsyncQuery:
    """One statement on a borrowed connection: sent and read by the event loop's thread, which never waits for it.

    No thread is woken and none wakes the loop: 150 us less than a call to a thread. Whoever awaits it may be
    cancelled; the connection is handed back once the reply is there. Loop's thread only.
    """

    def __init__(
        self,
        database: Database,
        kept: CachedSession,
        line: PreparedConnection,
        *,
        landed: Callable[[AsyncQuery], None],
    ) -> None:
        self._database, self._kept, self._line, self._landed = database, kept, line, landed
        self._began = monotonic()
        self._loop = asyncio.get_running_loop()
        self._arrived: asyncio.Future[Saved | None] = self._loop.create_future()
        self._socket = -1
        self._over = False
        self._result: PGresult | None = None

    async def save(self, statement: SaveStatement, parameters: Sequence[bytes]) -> Saved | None:
        """As Line.save, of a statement that the line knows."""
        connection = self._line.pgconn
        try:
            self._socket = connection.socket
            self._loop.add_reader(self._socket, self._read)
            connection.send_query_prepared(statement.name, parameters)
            if connection.flush():
                self._loop.add_writer(self._socket, self._write)
        except _NO_WAY:
            self._finish(well=False)
        return await self._arrived

    def _write(self) -> None:
        try:
            if not self._line.pgconn.flush():
                self._loop.remove_writer(self._socket)
        except psycopg.Error:
            self._finish(well=False)

    def _read(self) -> None:
        connection = self._line.pgconn
        try:
            connection.consume_input()
            while not connection.is_busy():
                result = connection.get_result()
                if result is None:
                    self._finish(well=True)
                    return
                self._result = result
        except psycopg.Error:
            self._finish(well=False)

    def give_up(self) -> None:
        """From any thread: close the connection."""
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(partial(self._finish, well=False))

    def _finish(self, *, well: bool) -> None:
        if self._over:
            return
        self._over = True
        with suppress(ValueError, NotImplementedError):  # as when it was added
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
        self._landed(self)
        if well:
            self._database.release(self._kept, took=monotonic() - self._began)
        else:
            self._database.discard(self._kept)
        if self._arrived.done():  # cancelled meanwhile
            return
        try:
            self._arrived.set_result(self._line.saved(self._result) if well else None)
        except Exception as error:  # noqa: BLE001 - of a JSON decoder of the application's; whoever awaits it gets it
            self._arrived.set_exception(error)
