"""The operations that a change of the library's own schema is rendered as: indexes, checks and columns of queue tables
that exist, changed while others use them. Each goes on where an interrupted run stopped."""

from __future__ import annotations

from typing import Any

from alembic.operations import MigrateOperation, Operations
from sqlalchemy import Column, Dialect, MetaData, Table
from sqlalchemy.schema import CreateColumn

from . import parts, upgrade
from .ddl import Step, Targets
from .sources import DEFAULT_PATIENCE


class ChangeOp(MigrateOperation):
    """One part of a queue table, and what it is to be. `definition`: None is not there; `was`: before."""

    verb: str
    undo: str

    def __init__(
        self, table: str, name: str, definition: Any, *, was: Any = None, schema: str | None = None
    ) -> None:
        self.targets, self.name, self.definition, self.was = Targets(table, schema), name, definition, was

    @property
    def call(self) -> str:
        """The name of the operation, as a revision calls it."""
        return self.verb if self.definition is not None else self.undo

    def to_diff_tuple(self) -> tuple[Any, ...]:
        return (self.call, self.targets.schema, self.targets.table, self.name)

    def reverse(self) -> ChangeOp:
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
    """An index of the library's."""

    verb, undo = "durable_build_index", "durable_drop_index"

    @classmethod
    def durable_build_index(
        cls, operations: Operations, name: str, table: str, definition: str, *, schema: str | None = None
    ) -> None:
        """Have index `name` of queue table `table` be `definition`: built concurrently, and only then put in the place of
        one that differs. Readers and writers go on."""
        cls._invoke(operations, table, name, definition, schema)

    @classmethod
    def durable_drop_index(
        cls, operations: Operations, name: str, table: str, *, schema: str | None = None
    ) -> None:
        """Drop index `name` of queue table `table`, concurrently."""
        cls._invoke(operations, table, name, None, schema)


@Operations.register_operation("durable_set_check")
@Operations.register_operation("durable_drop_check")
class CheckOp(ChangeOp):
    """A check of the library's."""

    verb, undo = "durable_set_check", "durable_drop_check"

    @classmethod
    def durable_set_check(
        cls, operations: Operations, name: str, table: str, definition: str, *, schema: str | None = None
    ) -> None:
        """Have check `name` of queue table `table` be `definition`. The table is locked for milliseconds; rows that are
        there are looked at while others go on."""
        cls._invoke(operations, table, name, definition, schema)

    @classmethod
    def durable_drop_check(
        cls, operations: Operations, name: str, table: str, *, schema: str | None = None
    ) -> None:
        """Drop check `name` of queue table `table`."""
        cls._invoke(operations, table, name, None, schema)


@Operations.register_operation("durable_add_column")
@Operations.register_operation("durable_drop_column")
class ColumnOp(ChangeOp):
    """A column of the library's. It has no default that would be computed row by row, so no rows are written."""

    verb, undo = "durable_add_column", "durable_drop_column"
    definition: Column[Any] | None

    @classmethod
    def durable_add_column(
        cls, operations: Operations, table: str, column: Column[Any], *, schema: str | None = None
    ) -> None:
        """Add `column` to queue table `table`. The table is locked for milliseconds."""
        cls._invoke(operations, table, column.name, column, schema)

    @classmethod
    def durable_drop_column(
        cls, operations: Operations, table: str, name: str, *, schema: str | None = None
    ) -> None:
        """Drop column `name` of queue table `table`, with what is in it."""
        cls._invoke(operations, table, name, None, schema)


@Operations.implementation_for(IndexOp)
@Operations.implementation_for(CheckOp)
@Operations.implementation_for(ColumnOp)
def _change(operations: Operations, op: ChangeOp) -> None:
    context = operations.migration_context
    upgrade.change(context, lambda concurrently: _steps(op, context.dialect, concurrently), DEFAULT_PATIENCE)


def _steps(op: ChangeOp, dialect: Dialect, concurrently: bool) -> list[Step]:  # noqa: FBT001 - the caller's shape
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
    if column.table is None:  # the compiler asks it
        Table("t", MetaData(), column)
    return str(CreateColumn(column).compile(dialect=dialect)).strip()
