"""The key operations: what a revision calls. An operation is a value; `upgrade` and `offline` run it."""

from __future__ import annotations

from typing import Any

from alembic.operations import MigrateOperation, Operations

from ..values import Hold
from . import ddl, offline, upgrade
from .backfill import BackfillReport
from .ddl import Targets
from .sources import DEFAULT_LOCK_RETRY, Backfill, LockRetry, Source

BATCH_SIZE = 1000
LOCK_TIMEOUT_S, ATTEMPTS = DEFAULT_LOCK_RETRY.lock_timeout, DEFAULT_LOCK_RETRY.attempts


class _KeyOp(MigrateOperation):
    """What the two key operations share: the task tables they change, and how long they wait for a lock."""

    operation: str
    """The name of the operation, as a revision calls it."""

    def __init__(self, targets: Targets, lock_retry: LockRetry = DEFAULT_LOCK_RETRY) -> None:
        self.targets, self.lock_retry = targets, lock_retry

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Return the operation as Alembic lists it among differences."""
        return (self.operation, self.targets.schema, self.targets.table)


@Operations.register_operation("durable_add_key")
class AddKeyOp(_KeyOp):
    """Idempotency keys for the task table of one queue, or of every queue in the database.

    Args:
        targets: The task tables.
        lock_retry: How long to wait for a lock that blocks other sessions.
        backfill: The keys that existing rows get. None leaves existing rows without keys.
    """

    operation = "durable_add_key"

    def __init__(
        self, targets: Targets, lock_retry: LockRetry = DEFAULT_LOCK_RETRY, backfill: Backfill | None = None
    ) -> None:
        super().__init__(targets, lock_retry)
        self.backfill = backfill

    @classmethod
    def durable_add_key(
        cls,
        operations: Operations,
        table: str | None = None,
        *,
        schema: str | None = None,
        source: Source | None = None,
        hold: Hold | str = "active",
        batch_size: int = BATCH_SIZE,
        lock_timeout: float = LOCK_TIMEOUT_S,
        attempts: int = ATTEMPTS,
    ) -> list[BackfillReport]:
        """Add the key columns, check and index to task tables, and fill in the keys of existing rows.

        The work is committed step by step and blocks readers and writers for milliseconds only. After an
        interruption, run the operation again: it continues where it stopped.

        Args:
            operations: Passed by Alembic.
            table: The task table of one queue. None: the task table of every queue in the database, found by
                its comment. Queues that no model of the running code names are included.
            schema: The schema of `table`. Without `table`: the only schema that is searched.
            source: Where an existing row's key comes from: an SQL expression over the row
                (`"headers->>'idempotency_key'"`), `sa_durable.alembic.ONCE`, or None to leave existing rows
                without keys.
            hold: How long existing rows hold the keys that they get, as in `spawn`.
            batch_size: Rows per page of the backfill. Each page is a transaction.
            lock_timeout: Seconds to wait for the short exclusive lock. While the operation waits, other
                sessions queue behind it; after this time it lets them pass and tries again.
            attempts: Number of tries to get that lock.

        Returns:
            Online, one report for each table that was filled. Otherwise an empty list.

        Raises:
            CommandError: The lock was not free in any of the attempts. Committed steps are kept.
            ValueError: An option is out of range. Nothing was changed.
        """
        backfill = None if source is None else Backfill(source, Hold(hold), batch_size)
        op = cls(Targets(table, schema), LockRetry(lock_timeout, attempts), backfill)
        return operations.invoke(op)  # type: ignore[no-any-return]  # what _add returns

    def reverse(self) -> DropKeyOp:
        """Return the operation that a downgrade needs."""
        return DropKeyOp(self.targets, self.lock_retry)


@Operations.register_operation("durable_drop_key")
class DropKeyOp(_KeyOp):
    """The reverse of AddKeyOp.

    Args:
        targets: The task tables.
        lock_retry: How long to wait for a lock that blocks other sessions.
    """

    operation = "durable_drop_key"

    @classmethod
    def durable_drop_key(
        cls,
        operations: Operations,
        table: str | None = None,
        *,
        schema: str | None = None,
        lock_timeout: float = LOCK_TIMEOUT_S,
        attempts: int = ATTEMPTS,
    ) -> None:
        """Drop the key index, check and columns of task tables.

        The rows stay. Their keys are lost, unless a later `durable_add_key(source=...)` can compute them
        again.

        Args:
            operations: Passed by Alembic.
            table: The task table of one queue. None: the task table of every queue in the database.
            schema: The schema of `table`. Without `table`: the only schema that is searched.
            lock_timeout: Seconds to wait for the short exclusive lock before letting other sessions pass.
            attempts: Number of tries to get that lock.

        Raises:
            CommandError: The lock was not free in any of the attempts. Committed steps are kept.
        """
        operations.invoke(cls(Targets(table, schema), LockRetry(lock_timeout, attempts)))

    def reverse(self) -> AddKeyOp:
        """Return the operation that a downgrade needs. It adds no keys to rows: their source is unknown."""
        return AddKeyOp(self.targets, self.lock_retry)


@Operations.implementation_for(AddKeyOp)
def _add(operations: Operations, op: AddKeyOp) -> list[BackfillReport]:
    context = operations.migration_context
    if context.as_sql:
        offline.add(context, op.targets, op.lock_retry, op.backfill)
        return []
    return upgrade.add(context, op.targets, op.lock_retry, op.backfill)


@Operations.implementation_for(DropKeyOp)
def _drop(operations: Operations, op: DropKeyOp) -> None:
    upgrade.change(
        operations.migration_context,
        lambda concurrently: ddl.drop_steps(op.targets, concurrently=concurrently),
        op.lock_retry,
    )
