"""Save checkpoints without SQLAlchemy, where that works."""

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
    """Save checkpoints by a prepared statement, on the connections of cached sessions.

    Only success is handled here: see `connections.fast_checkpoint`.

    Args:
        database: Has the cached sessions.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._statements: dict[type[DurableTask], SaveStatement] = {}

    def save(self, run: ActiveRun, name: str, text: str) -> Saved | None:
        """Save a checkpoint in one round trip.

        Args:
            run: The run whose step it is.
            name: The step's key.
            text: The value, as JSON text.

        Returns:
            The stored value. None if no cached session is free, the claim is no longer valid, the step has a
            checkpoint already, or the connection failed: `services.checkpoints.save` must do it.
        """
        statement = self._statement(run.model)
        if (cached := self._database.acquire()) is None:
            return None
        started = monotonic()
        try:
            connection = prepared_connection(cached.session)
            if not connection.usable:
                return None
            return connection.save(statement, statement.parameters(run.claim, name, text))
        finally:
            self._database.release(cached, duration_s=monotonic() - started)

    def _statement(self, model: type[DurableTask]) -> SaveStatement:
        if model not in self._statements:
            self._statements[model] = statement_for(model, self._database.engine)
        return self._statements[model]
