"""Saving checkpoints the short way, where it works."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from ...services.checkpoints import Saved
from ..connections.database import Database
from ..connections.fast_checkpoint import SaveStatement, prepared_connection, statement_for
from ..runs.active import ActiveRun

if TYPE_CHECKING:
    from ...models import DurableTask


class CheckpointSaver:
    """Saves what nothing stands in the way of, on connections that sessions of `database` keep. Whatever else it is
    (none is kept yet, the claim is over, the name is taken, the connection is lost, the reply says something unexpected):
    it answers None, and `services.checkpoints.save`, which may be called again, finds out what it means.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._statements: dict[type[DurableTask], SaveStatement] = {}

    def save(self, run: ActiveRun, name: str, text: str) -> Saved | None:
        """In one round trip, waiting for it."""
        statement = self._statement(run.model)
        if (kept := self._database.acquire()) is None:
            return None
        began = monotonic()
        try:
            line = prepared_connection(kept.session)
            return line.save(statement, statement.parameters(run.claim, name, text)) if line.usable else None
        finally:
            self._database.release(kept, duration_s=monotonic() - began)

    def _statement(self, model: type[DurableTask]) -> SaveStatement:
        if model not in self._statements:
            self._statements[model] = statement_for(model, self._database.engine)
        return self._statements[model]
