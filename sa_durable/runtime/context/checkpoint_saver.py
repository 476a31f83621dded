"""Saving checkpoints the short way, where it works."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from ...services.checkpoints import Saved
from ..connections.async_query import AsyncQuery
from ..connections.database import Database
from ..connections.fast_checkpoint import SaveStatement, prepared_connection, statement_for
from ..runs.active import ActiveRun

if TYPE_CHECKING:
    from ...models import DurableTask

SHORT = 16_000  # characters of JSON text that the event loop's thread sends and reads


class CheckpointSaver:
    """Saves what nothing stands in the way of, on connections that sessions of `database` keep. Whatever else it is
    (none is kept yet, the claim is over, the name is taken, the connection is lost, the reply says something unexpected):
    it answers None, and `services.checkpoints.save`, which may be called again, finds out what it means.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._statements: dict[type[DurableTask], SaveStatement] = {}
        self._flying: set[AsyncQuery] = set()

    def save(self, run: ActiveRun, name: str, text: str) -> Saved | None:
        """In one round trip, waiting for it."""
        statement = self._statement(run.model)
        if (kept := self._database.acquire()) is None:
            return None
        began = monotonic()
        try:
            line = prepared_connection(kept[0])
            return line.save(statement, statement.parameters(run.claim, name, text)) if line.usable else None
        finally:
            self._database.release(kept, took=monotonic() - began)

    async def save_async(self, run: ActiveRun, name: str, text: str) -> Saved | None:
        """As `save`, not waiting for it; only on a connection that `save` has prepared."""
        statement = self._statement(run.model)
        if len(text) > SHORT or (kept := self._database.acquire()) is None:
            return None
        line = prepared_connection(kept[0])
        if not line.usable or not line.has_prepared(statement):
            self._database.release(kept)
            return None
        flight = AsyncQuery(self._database, kept, line, landed=self._flying.discard)
        self._flying.add(flight)
        return await flight.save(statement, statement.parameters(run.claim, name, text))

    def close(self) -> None:
        """From any thread: what is on its way is nobody's business any more."""
        for flight in list(self._flying):
            flight.give_up()

    def _statement(self, model: type[DurableTask]) -> SaveStatement:
        if model not in self._statements:
            self._statements[model] = statement_for(model, self._database.engine)
        return self._statements[model]
