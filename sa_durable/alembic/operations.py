"""The operations: what a revision calls. An operation is a value; running it is in `upgrade` and `offline`."""

from __future__ import annotations

from typing import Any

from alembic.operations import MigrateOperation, Operations

from ..values import Hold
from . import ddl, offline, upgrade
from .backfill import BackfillReport
from .ddl import Targets
from .sources import DEFAULT_PATIENCE, Backfill, Patience, Source

BATCH_SIZE = 1000
LOCK_TIMEOUT, ATTEMPTS = DEFAULT_PATIENCE.lock_timeout, DEFAULT_PATIENCE.attempts


class _KeyOp(MigrateOperation):
    def __init__(self, targets: Targets, patience: Patience = DEFAULT_PATIENCE) -> None:
        self.targets, self.patience = targets, patience

    def to_diff_tuple(self) -> tuple[Any, ...]:
        return (self.verb, self.targets.schema, self.targets.table)

    verb: str


class _Add(_KeyOp):
    def __init__(
        self, targets: Targets, patience: Patience = DEFAULT_PATIENCE, backfill: Backfill | None = None
    ) -> None:
        super().__init__(targets, patience)
        self.backfill = backfill


@Operations.register_operation("durable_add_key")
class AddKeyOp(_Add):
    """Idempotency keys for the task table of one queue."""

    verb = "durable_add_key"

    @classmethod
    def durable_add_key(
        cls,
        operations: Operations,
        table: str,
        *,
        schema: str | None = None,
        source: Source | None = None,
        hold: Hold | str = "active",
        batch_size: int = BATCH_SIZE,
        lock_timeout: float = LOCK_TIMEOUT,
        attempts: int = ATTEMPTS,
    ) -> list[BackfillReport]:
        """Give the queue table `table` its key columns, check and index, and its rows the keys that `source` names.

        The work is committed step by step, blocks readers and writers for milliseconds only, and goes on where it
        stopped when it is run again. `source`: an SQL expression over the row (`"headers->>'idempotency_key'"`),
        `sa_durable.alembic.ONCE`, or None to leave existing rows without keys. `hold`: of the keys that they get.
        `lock_timeout`: seconds to wait for the short exclusive lock before others are let pass, up to `attempts`
        times. Online it gives a BackfillReport for each table that was filled.
        """
        options = _options(source, hold, batch_size)
        op = cls(Targets(table, schema), Patience(lock_timeout, attempts), options)
        return operations.invoke(op)  # type: ignore[no-any-return]  # what _add gives

    def reverse(self) -> DropKeyOp:
        return DropKeyOp(self.targets, self.patience)


@Operations.register_operation("durable_add_keys")
class AddKeysOp(_Add):
    """Idempotency keys for every queue's task table that the database has."""

    verb = "durable_add_keys"

    @classmethod
    def durable_add_keys(
        cls,
        operations: Operations,
        *,
        schema: str | None = None,
        source: Source | None = None,
        hold: Hold | str = "active",
        batch_size: int = BATCH_SIZE,
        lock_timeout: float = LOCK_TIMEOUT,
        attempts: int = ATTEMPTS,
    ) -> list[BackfillReport]:
        """As `durable_add_key`, for every queue table in the database, or in `schema`, that its comment tells to be one:
        also for those that no model of the running code names."""
        options = _options(source, hold, batch_size)
        op = cls(Targets(None, schema), Patience(lock_timeout, attempts), options)
        return operations.invoke(op)  # type: ignore[no-any-return]  # what _add gives

    def reverse(self) -> DropKeysOp:
        return DropKeysOp(self.targets, self.patience)


@Operations.register_operation("durable_drop_key")
class DropKeyOp(_KeyOp):
    """The reverse of AddKeyOp."""

    verb = "durable_drop_key"

    @classmethod
    def durable_drop_key(
        cls,
        operations: Operations,
        table: str,
        *,
        schema: str | None = None,
        lock_timeout: float = LOCK_TIMEOUT,
        attempts: int = ATTEMPTS,
    ) -> None:
        """Drop index, check and columns of the keys of `table`. The rows stay; their keys are lost, unless a later
        `durable_add_key(source=...)` can compute them again."""
        operations.invoke(cls(Targets(table, schema), Patience(lock_timeout, attempts)))

    def reverse(self) -> AddKeyOp:
        return AddKeyOp(self.targets, self.patience)


@Operations.register_operation("durable_drop_keys")
class DropKeysOp(_KeyOp):
    """The reverse of AddKeysOp."""

    verb = "durable_drop_keys"

    @classmethod
    def durable_drop_keys(
        cls,
        operations: Operations,
        *,
        schema: str | None = None,
        lock_timeout: float = LOCK_TIMEOUT,
        attempts: int = ATTEMPTS,
    ) -> None:
        """As `durable_drop_key`, for every queue table in the database, or in `schema`."""
        operations.invoke(cls(Targets(None, schema), Patience(lock_timeout, attempts)))

    def reverse(self) -> AddKeysOp:
        return AddKeysOp(self.targets, self.patience)


@Operations.implementation_for(AddKeyOp)
@Operations.implementation_for(AddKeysOp)
def _add(operations: Operations, op: AddKeyOp | AddKeysOp) -> list[BackfillReport]:
    context = operations.migration_context
    if context.as_sql:
        offline.add(context, op.targets, op.patience, op.backfill)
        return []
    return upgrade.add(context, op.targets, op.patience, op.backfill)


@Operations.implementation_for(DropKeyOp)
@Operations.implementation_for(DropKeysOp)
def _drop(operations: Operations, op: DropKeyOp | DropKeysOp) -> None:
    upgrade.change(
        operations.migration_context,
        lambda concurrently: ddl.drop_steps(op.targets, concurrently=concurrently),
        op.patience,
    )


def _options(source: Source | None, hold: Hold | str, batch_size: int) -> Backfill | None:
    return None if source is None else Backfill(source, Hold(hold), batch_size)
