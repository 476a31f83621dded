"""The operations that take tasks over: what a revision calls."""

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
    """Rows of other tables, as tasks of a queue."""

    def __init__(self, targets: Targets, wanted: Import) -> None:
        self.targets, self.wanted = targets, wanted

    def to_diff_tuple(self) -> tuple[Any, ...]:
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
        """Copy the rows of `source`, a table of your own, into the queue table `table`, as tasks.

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

        `source` is what stands after FROM; all others are SQL expressions over it, but for `states`, which says what
        its states are in ours: a row of another state is left. `name` is the handler's, `params` a JSON object with its
        arguments. A task that was running is pending: stop the old workers before, since nobody else keeps them from
        running it too. One that is due later sleeps until then. `id` is the task's UUID; by default it is made from
        `identity`, which must tell rows apart, and whose order is that of the tasks if `created_at` isn't given. `columns` are further columns of the queue's table, your own among them.

        `key` is its idempotency key; of several rows with one key the oldest active one gets it, as
        `durable_add_key` has it, and they hold it as `hold` says. The rows are copied in pages of `batch_size` that
        commit; run again, it copies what is not there. The source isn't changed. Returns, and logs, an ImportReport.
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
        """Copy the queue `source` (default: of the same name) of another system, "durable" or "absurd", into the queue
        `queue`: pending, running and sleeping tasks with their history, checkpoints, events and waits; with
        `terminal`, those that ended, too.

        They go on where they were: finished steps are not run again. `source_schema` is where its tables are, by
        default the system's own. `sleeps` are the names that its handlers gave to sleeps, which have none here; `key`
        is the column with idempotency keys, if its tables have one. Stop its workers before. As `durable_import`
        otherwise.
        """
        system = System(system)
        targets = Targets(f"durable_{queue}_tasks", schema)
        wanted = references.reading(
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
    return copying.take_over(operations.migration_context, op.targets, op.wanted)
