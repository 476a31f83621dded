"""The autogenerate plugin: render differences of the library's own parts as operations that are safe online.

Alembic's own comparison doesn't see an index's predicate, INCLUDE or validity, nor a check's text. The
differences that it does see, it renders as statements that lock a table for as long as they take. So for each
existing queue table, the differences that `services.verify` finds replace Alembic's operations for the same
parts. Other operations stay.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from alembic.autogenerate.api import AutogenContext
from alembic.operations import MigrateOperation, ops
from alembic.runtime.plugins import Plugin, _all_plugins
from alembic.util import DispatchPriority, PriorityDispatchResult
from sqlalchemy import DefaultClause, Table, text

from ..models.names import Role, named
from ..services.verify import INVALID, Difference, Part, verify
from . import ddl
from .changes import CheckOp, ColumnOp, IndexOp
from .ddl import Targets
from .operations import AddKeyOp

logger = logging.getLogger("sa_durable.alembic")

NAME = "sa_durable"  # in env.py: autogenerate_plugins=["alembic.autogenerate.*", "sa_durable"]


def setup(plugin: Plugin) -> None:
    """Register the comparator. Alembic calls this when the plugin is set up."""
    plugin.add_autogenerate_comparator(
        compare, "autogenerate", qualifier="postgresql", priority=DispatchPriority.LAST
    )


def compare(context: AutogenContext, upgrade_ops: ops.UpgradeOps) -> PriorityDispatchResult:
    """Replace Alembic's operations for the library's parts by our own."""
    if context.connection is not None and context.metadata is not None:
        metadata = context.metadata
        for one in metadata if isinstance(metadata, Sequence) else [metadata]:
            for table, differences in _by_table(context, verify(context.connection, one)).items():
                _replace(_container(upgrade_ops, table), table, differences)
        upgrade_ops.ops[:] = [op for op in upgrade_ops.ops if not _empty(op)]
    return PriorityDispatchResult.CONTINUE


def _by_table(context: AutogenContext, differences: Iterable[Difference]) -> dict[Table, list[Difference]]:
    """Group by table. Skips missing tables and those that include_name or include_object excludes."""
    found: dict[Table, list[Difference]] = {}
    for difference in differences:
        table = difference.source
        parents: Any = {"schema_name": table.schema}
        if (
            difference.part is not Part.TABLE
            and context.run_name_filters(table.name, "table", parents)
            and context.run_object_filters(table, table.name, "table", False, None)
        ):
            found.setdefault(table, []).append(difference)
    return found


def _container(upgrade_ops: ops.UpgradeOps, table: Table) -> ops.ModifyTableOps:
    for op in upgrade_ops.ops:
        if isinstance(op, ops.ModifyTableOps) and (op.schema, op.table_name) == (table.schema, table.name):
            return op
    new = ops.ModifyTableOps(table.name, [], schema=table.schema)
    upgrade_ops.ops.append(new)
    return new


def _empty(op: MigrateOperation) -> bool:
    return isinstance(op, ops.ModifyTableOps) and not op.ops


Subject: TypeAlias = tuple[Part, str]


def _subject(op: MigrateOperation) -> Subject | None:
    """Return the part that one of Alembic's operations changes, or None."""
    match op:
        case ops.AddColumnOp(column=column):
            return Part.COLUMN, column.name
        case ops.DropColumnOp(column_name=name) | ops.AlterColumnOp(column_name=name):
            return Part.COLUMN, name
        case ops.CreateIndexOp(index_name=name) | ops.DropIndexOp(index_name=name):
            return Part.INDEX, str(name)
        case ops.CreateCheckConstraintOp(constraint_name=name) | ops.DropConstraintOp(constraint_name=name):
            return Part.CHECK, str(name)
        case _:
            return None


def _replace(container: ops.ModifyTableOps, table: Table, differences: Sequence[Difference]) -> None:
    stock = {subject: op for op in container.ops if (subject := _subject(op)) is not None}
    changes: dict[Subject, MigrateOperation] = {}
    keys, add_key = _keys(table, differences), AddKeyOp(Targets(table.name, table.schema))
    for difference in differences:
        subject = (difference.part, difference.name)
        if subject in keys:
            changes[subject] = add_key
        elif (change := _change(table, difference, stock.get(subject))) is not None:
            changes[subject] = change
        elif subject not in stock:
            logger.warning("%s; autogenerate has no operation for this: write it manually", difference)
    ours = dict.fromkeys(sorted(changes.values(), key=_order))
    container.ops[:] = [*(op for op in container.ops if _subject(op) not in changes), *ours]


def _keys(table: Table, differences: Iterable[Difference]) -> set[Subject]:
    """Return the parts that durable_add_key adds, if this task table is older than idempotency keys."""
    missing = {d.name for d in differences if d.part is Part.COLUMN and d.found is None}
    if table.info["sa_durable"]["role"] != Role.TASKS or not missing & ddl.COLUMNS.keys():
        return set()
    return {
        *((Part.COLUMN, name) for name in ddl.COLUMNS),
        (Part.CHECK, named("ck", table.name, "key")),
        (Part.INDEX, named("uq", table.name, "key")),
    }


def _change(table: Table, d: Difference, stock: MigrateOperation | None) -> MigrateOperation | None:
    """Return our operation for a difference, or None if Alembic's own is good enough or none exists."""
    match d.part:
        case Part.INDEX:
            was = d.found and d.found.removesuffix(INVALID)
            return IndexOp(table.name, d.name, d.wanted, was=was, schema=table.schema)
        case Part.CHECK:
            was = d.found and d.found.removesuffix(" NOT VALID")
            return CheckOp(table.name, d.name, d.wanted, was=was, schema=table.schema)
        case Part.COLUMN if isinstance(stock, ops.AddColumnOp):
            return ColumnOp(table.name, d.name, stock.column, schema=table.schema)
        case Part.COLUMN if isinstance(stock, ops.DropColumnOp):
            return ColumnOp(table.name, d.name, None, was=stock.to_column(), schema=table.schema)
        case Part.COLUMN if (
            stock is None and d.wanted and d.found and _without_default(d.wanted) == _without_default(d.found)
        ):
            column = table.c[d.name]
            default = d.found.partition(_DEFAULT)[2]
            return ops.AlterColumnOp(
                table.name,
                d.name,
                schema=table.schema,
                existing_type=column.type,
                existing_nullable=column.nullable,
                existing_server_default=DefaultClause(text(default)) if default else None,
                modify_server_default=column.server_default,
            )
        case _:
            return None


_DEFAULT = " DEFAULT "


def _without_default(definition: str) -> str:
    return definition.partition(_DEFAULT)[0]


def _order(op: MigrateOperation) -> int:
    """Sort columns first, because the other parts need them, and indexes last, because they take longest."""
    return next(i for i, kind in enumerate(_ORDER) if isinstance(op, kind))


_ORDER = (ops.AlterColumnOp, ColumnOp, AddKeyOp, CheckOp, IndexOp)

if NAME not in _all_plugins:  # env.py may run many times in a process
    Plugin.setup_plugin_from_module(sys.modules[__name__], NAME)
