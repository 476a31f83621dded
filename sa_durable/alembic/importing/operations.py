"""The import operations: what a revision calls."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from alembic.operations import MigrateOperation, Operations

from ...values import Hold
from ..ddl import Targets
from . import copying, own, references
from .references import System
from .values import Import, ImportReport

BATCH_SIZE = 1000


@Operations.register_operation("durable_import")
@Operations.register_operation("durable_import_queue")
class ImportOp(MigrateOperation):
    """An import of rows of other tables as tasks of a queue.

    Args:
        targets: The queue's task table.
        wanted: The import.
    """

    def __init__(self, targets: Targets, wanted: Import) -> None:
        self.targets, self.wanted = targets, wanted

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Return the operation as Alembic lists it among differences."""
        return ("durable_import", self.targets.schema, self.targets.table)

    @classmethod
    def durable_import(
        cls,
        operations: Operations,
        table: str,
        *,
        source: str,
        name: str,
        params: str,
        state: str,
        states: Mapping[str, str] | None = None,
        identity: str = "id",
        id: str | None = None,  # noqa: A002 - the column's name
        key: str | None = None,
        hold: Hold | str = "active",
        created_at: str | None = None,
        available_at: str | None = None,
        columns: Mapping[str, str] | None = None,
        where: str = "true",
        schema: str | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> ImportReport:
        """Copy the rows of a table of your own into a queue's table, as tasks.

        Stop the old workers first: nothing else keeps them from running an imported task too. The rows are
        copied in pages that commit. After an interruption, run the operation again: it copies only the rows
        that are missing. The source isn't changed.

        ::

            op.durable_import(
                "durable_mail_tasks",
                source="jobs",
                name="kind",
                params="payload",
                state="status",
                states={"queued": "pending", "working": "pending", "done": "completed", "error": "failed"},
                available_at="run_at",
                key="dedupe_key",
            )

        All arguments from `name` to `where` are SQL expressions over `source`, except `states` and `hold`.

        Args:
            operations: Passed by Alembic.
            table: The queue's task table.
            source: What follows FROM.
            name: The handler's name.
            params: A JSON object with the handler's arguments.
            state: The row's state.
            states: The task state for each state of the source. A row in a state that is not listed is
                skipped. A running row becomes a pending task.
            identity: What identifies a row. Without `created_at`, its order is the order of the tasks.
            id: The task's UUID. By default it is made from `identity`.
            key: The task's idempotency key. Of several rows with one key, the oldest active one gets it, as
                with `durable_add_key`.
            hold: How long the tasks hold their keys, as in `spawn`.
            created_at: When the task was created.
            available_at: When the task is due. A task that is due later sleeps until then.
            columns: Expressions for further columns of the queue's table, including your own.
            where: Which rows are imported.
            schema: The schema of `table`.
            batch_size: Rows per page. Each page is a transaction.

        Returns:
            The report, which is also logged.

        Raises:
            CommandError: With `--sql`: an import runs only online.
        """
        rows = own.rows(
            source,
            name=name,
            params=params,
            state=state,
            states=states,
            identity=identity,
            id=id,
            key=key,
            created_at=created_at,
            available_at=available_at,
            columns=columns,
            where=where,
        )
        op = cls(Targets(table, schema), Import(rows, Hold(hold), batch_size))
        return operations.invoke(op)  # type: ignore[no-any-return]  # what the implementation gives

    @classmethod
    def durable_import_queue(
        cls,
        operations: Operations,
        queue: str,
        *,
        system: System | str,
        source: str | None = None,
        source_schema: str | None = None,
        key: str | None = None,
        hold: Hold | str = "forever",
        sleeps: Collection[str] = (),
        terminal: bool = False,
        schema: str | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> ImportReport:
        """Copy a queue of another system: its tasks with their history, checkpoints, events and waits.

        The tasks continue where they stopped: finished steps are not run again. Stop the old workers first.
        For interruptions, see `durable_import`.

        Args:
            operations: Passed by Alembic.
            queue: The name of the queue that the tasks are copied into.
            system: "durable" or "absurd".
            source: The name of the queue that is copied. By default the same as `queue`.
            source_schema: The schema of its tables. By default the system's own.
            key: The column with idempotency keys, if its tables have one.
            hold: How long the tasks hold their keys, as in `spawn`.
            sleeps: The names that its handlers gave to sleeps. Sleeps have no names here.
            terminal: Whether completed, failed and cancelled tasks are copied too.
            schema: The schema of the queue's tables.
            batch_size: Rows per page. Each page is a transaction.

        Returns:
            The report, which is also logged.

        Raises:
            CommandError: With `--sql`: an import runs only online.
        """
        system = System(system)
        targets = Targets(f"durable_{queue}_tasks", schema)
        wanted = references.read_queue(
            system,
            source or queue,
            source_schema or system.value,
            targets,
            queue,
            sleeps=sleeps,
            key=key,
            terminal=terminal,
            hold=Hold(hold),
            batch_size=batch_size,
        )
        return operations.invoke(cls(targets, wanted))  # type: ignore[no-any-return]  # as above


@Operations.implementation_for(ImportOp)
def _import(operations: Operations, op: ImportOp) -> ImportReport:
    return copying.import_tasks(operations.migration_context, op.targets, op.wanted)
