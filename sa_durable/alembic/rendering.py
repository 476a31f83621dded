"""Render the operations into a revision that autogenerate writes."""

from __future__ import annotations

from typing import Any

from alembic.autogenerate.api import AutogenContext
from alembic.autogenerate.render import render_op_text, renderers
from alembic.operations import ops

from .changes import ChangeOp, CheckOp, ColumnOp, IndexOp
from .operations import AddKeyOp, DropKeyOp

IMPORT = "import sa_durable.alembic  # noqa: F401 - registers op.durable_..."
_COLUMN = "add_column("


def _call(context: AutogenContext, name: str, *arguments: Any, **keywords: Any) -> str:
    """Return `op.name(...)`, without the keywords that are None."""
    context.imports.add(IMPORT)
    given = [*map(repr, arguments), *(f"{k}={v!r}" for k, v in keywords.items() if v is not None)]
    return f"{context.opts['alembic_module_prefix']}{name}({', '.join(given)})"


@renderers.dispatch_for(AddKeyOp)
def _add_key(context: AutogenContext, op: AddKeyOp) -> list[str]:
    return [
        "# Existing rows get keys if `source` says which, e.g. source=\"headers->>'idempotency_key'\".",
        _key_call(context, op),
    ]


@renderers.dispatch_for(DropKeyOp)
def _key_call(context: AutogenContext, op: AddKeyOp | DropKeyOp) -> str:
    table = () if op.targets.table is None else (op.targets.table,)
    return _call(context, op.operation, *table, schema=op.targets.schema)


@renderers.dispatch_for(IndexOp)
@renderers.dispatch_for(CheckOp)
def _part(context: AutogenContext, op: ChangeOp) -> str:
    definition = () if op.definition is None else (op.definition,)
    return _call(context, op.operation, op.name, op.targets.table, *definition, schema=op.targets.schema)


@renderers.dispatch_for(ColumnOp)
def _column(context: AutogenContext, op: ColumnOp) -> str:
    table, schema = str(op.targets.table), op.targets.schema
    if op.definition is None:
        return _call(context, op.operation, table, op.name, schema=schema)
    context.imports.add(IMPORT)
    stock = render_op_text(context, ops.AddColumnOp(table, op.definition, schema=schema))
    return stock.replace(_COLUMN, f"durable_{_COLUMN}", 1)
