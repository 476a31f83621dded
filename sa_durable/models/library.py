"""The library's tables of a queue, without the application's additions: what a database is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from sqlalchemy import Column, MetaData, Table

from .names import Role, table_name
from .tables import queues_table, sibling_table, task_args, task_columns


@lru_cache(128)
def library_tables(queue: str, schema: str | None = None) -> Mapping[Role | None, Table]:
    """Return the five tables of a queue by role, and the table for all queues under None.

    They are on a metadata of their own, without the columns and constraints that an application adds.
    """
    metadata = MetaData()
    tasks = Table(table_name(queue, Role.TASKS), metadata, *_task_columns(), *task_args(queue), schema=schema)
    tables: dict[Role | None, Table] = {Role.TASKS: tasks, None: queues_table(metadata, schema)}
    for role in Role:
        if role is not Role.TASKS:
            tables[role] = sibling_table(metadata, queue, role, tasks)
    return tables


def _task_columns() -> list[Column[object]]:
    columns = []
    for name, mapped in task_columns().items():
        column = mapped.column
        column.name = column.key = name
        columns.append(column)
    return columns
