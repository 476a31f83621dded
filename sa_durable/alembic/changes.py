"""Operations that change one index, check or column of an existing queue table while it is in use.

Autogenerate renders changes of the library's own schema as these operations. An interrupted operation
continues where it stopped when it is run again.
"""

from __future__ import annotations

from typing import Any

from alembic.operations import MigrateOperation, Operations
from sqlalchemy import Column, Dialect, MetaData, Table
from sqlalchemy.schema import CreateColumn

from . import parts, upgrade
from .ddl import SchemaStep, Targets
from .sources import DEFAULT_LOCK_RETRY


class ChangeOp(MigrateOperation):
    """A change of one part of a queue table.

    Args:
        table: The table's name.
        name: The part's name.
        definition: What the part becomes. None drops it.
        was: What the part was before. None: it did not exist. A downgrade needs it.
        schema: The table's schema.
    """

    set_operation: str
    """The name of the operation that creates or changes the part."""
    drop_operation: str
    """The name of the operation that drops the part."""

    def __init__(
        self, table: str, name: str, definition: Any, *, was: Any = None, schema: str | None = None
    ) -> None:
        self.targets, self.name, self.definition, self.was = Targets(table, schema), name, definition, was

    @property
    def operation(self) -> str:
        """The name of the operation, as a revision calls it."""
        return self.set_operation if self.definition is not None else self.drop_operation

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Return the operation as Alembic lists it among differences."""
        return (self.operation, self.targets.schema, self.targets.table, self.name)

    def reverse(self) -> ChangeOp:
        """Return the operation that a downgrade needs."""
        targets = self.targets
        return type(self)(str(targets.table), self.name, self.was, was=self.definition, schema=targets.schema)

    @classmethod
    def _invoke(
        cls, operations: Operations, table: str, name: str, definition: Any, schema: str | None
    ) -> None:
        operations.invoke(cls(table, name, definition, schema=schema))


@Operations.register_operation("durable_build_index")
@Operations.register_operation("durable_drop_index")
class IndexOp(ChangeOp):
    """A change of an index."""

    set_operation, drop_operation = "durable_build_index", "durable_drop_index"

    @classmethod
    def durable_build_index(
        cls, operations: Operations, name: str, table: str, definition: str, *, schema: str | None = None
    ) -> None:
        """Create an index, or replace one whose definition differs.

        The index is built concurrently: readers and writers continue. The old index serves until the new one
        is complete.

        Args:
            operations: Passed by Alembic.
            name: The index's name.
            table: The queue table.
            definition: The index in PostgreSQL's own spelling, from its method on, as `pg_get_indexdef`
                returns it. For a unique index it begins with `UNIQUE`.
            schema: The table's schema.
        """
        cls._invoke(operations, table, name, definition, schema)

    @classmethod
    def durable_drop_index(
        cls, operations: Operations, name: str, table: str, *, schema: str | None = None
    ) -> None:
        """Drop an index concurrently.

        Args:
            operations: Passed by Alembic.
            name: The index's name.
            table: The queue table.
            schema: The table's schema.
        """
        cls._invoke(operations, table, name, None, schema)


@Operations.register_operation("durable_set_check")
@Operations.register_operation("durable_drop_check")
class CheckOp(ChangeOp):
    """A change of a check."""

    set_operation, drop_operation = "durable_set_check", "durable_drop_check"

    @classmethod
    def durable_set_check(
        cls, operations: Operations, name: str, table: str, definition: str, *, schema: str | None = None
    ) -> None:
        """Add a check, or replace one whose definition differs.

        The table is locked for milliseconds. Existing rows are validated while readers and writers continue.

        Args:
            operations: Passed by Alembic.
            name: The check's name.
            table: The queue table.
            definition: The check in PostgreSQL's own spelling, as `pg_get_constraintdef` returns it.
            schema: The table's schema.
        """
        cls._invoke(operations, table, name, definition, schema)

    @classmethod
    def durable_drop_check(
        cls, operations: Operations, name: str, table: str, *, schema: str | None = None
    ) -> None:
        """Drop a check. The table is locked for milliseconds.

        Args:
            operations: Passed by Alembic.
            name: The check's name.
            table: The queue table.
            schema: The table's schema.
        """
        cls._invoke(operations, table, name, None, schema)


@Operations.register_operation("durable_add_column")
@Operations.register_operation("durable_drop_column")
class ColumnOp(ChangeOp):
    """A change of a column. No column has a default that is computed row by row, so no rows are written."""

    set_operation, drop_operation = "durable_add_column", "durable_drop_column"
    definition: Column[Any] | None

    @classmethod
    def durable_add_column(
        cls, operations: Operations, table: str, column: Column[Any], *, schema: str | None = None
    ) -> None:
        """Add a column. The table is locked for milliseconds.

        Args:
            operations: Passed by Alembic.
            table: The queue table.
            column: The column.
            schema: The table's schema.
        """
        cls._invoke(operations, table, column.name, column, schema)

    @classmethod
    def durable_drop_column(
        cls, operations: Operations, table: str, name: str, *, schema: str | None = None
    ) -> None:
        """Drop a column, with its values. The table is locked for milliseconds.

        Args:
            operations: Passed by Alembic.
            table: The queue table.
            name: The column's name.
            schema: The table's schema.
        """
        cls._invoke(operations, table, name, None, schema)


@Operations.implementation_for(IndexOp)
@Operations.implementation_for(CheckOp)
@Operations.implementation_for(ColumnOp)
def _change(operations: Operations, op: ChangeOp) -> None:
    context = operations.migration_context
    upgrade.change(
        context,
        lambda concurrently: _steps(op, context.dialect, concurrently=concurrently),
        DEFAULT_LOCK_RETRY,
    )


def _steps(op: ChangeOp, dialect: Dialect, *, concurrently: bool) -> list[SchemaStep]:
    match op:
        case IndexOp(definition=None):
            return parts.drop_index(op.targets, op.name, concurrently=concurrently)
        case IndexOp():
            return parts.build_index(op.targets, op.name, op.definition, concurrently=concurrently)
        case CheckOp(definition=None):
            return parts.drop_check(op.targets, op.name)
        case CheckOp():
            return parts.set_check(op.targets, op.name, op.definition)
        case ColumnOp(definition=Column() as column):
            return parts.add_column(op.targets, op.name, _specification(column, dialect))
        case _:
            return parts.drop_column(op.targets, op.name)


def _specification(column: Column[Any], dialect: Dialect) -> str:
    if column.table is None:  # the compiler needs the column's table
        Table("t", MetaData(), column)
    return str(CreateColumn(column).compile(dialect=dialect)).strip()
