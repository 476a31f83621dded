"""The tables that statements read and write: one of each role per queue."""

from __future__ import annotations

from typing import TypeAlias, cast

from sqlalchemy import Table

from ..models import DurableTask
from ..models.names import Role

Model: TypeAlias = type[DurableTask]
"""The task model of a queue."""


def table_of(model: Model, role: Role = Role.TASKS) -> Table:
    """Return the table of a queue that has this role."""
    match role:
        case Role.TASKS:
            return cast(
                "Table", model.__table__
            )  # a FromClause for type checkers: Declarative declares it so
        case Role.RUNS:
            return model.Run.__table__
        case Role.CHECKPOINTS:
            return model.Checkpoint.__table__
        case Role.EVENTS:
            return model.Event.__table__
        case Role.WAITS:
            return model.Wait.__table__
