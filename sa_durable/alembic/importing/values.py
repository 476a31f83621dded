"""What an import is told, and what it tells."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from ...values import Hold
from ..backfill import BackfillReport

logger = logging.getLogger("sa_durable.alembic")


PAGE = "<sa_durable page>"  # what no name contains


@dataclass(frozen=True, slots=True)
class Rows:
    """Where tasks come from, as SQL: what is selected, and an expression for each column of the queue's table.

    `identity`: what a report calls a row, and, where there is no column `id`, what its id is made from.
    """

    source: str  # what stands after FROM
    columns: Mapping[str, str]
    identity: str
    key: str | None = None
    where: str = "true"


@dataclass(frozen=True, slots=True)
class Import:
    """An import: the rows, what the keys do from then on, and what comes with each page of tasks.

    `following`: statements that copy what belongs to tasks (history, checkpoints), each with PAGE where the ids of the
    page's new tasks are selected; `closing`: statements for the whole, once.
    """

    rows: Rows
    hold: Hold = Hold.ACTIVE
    batch_size: int = 1000
    following: tuple[str, ...] = ()
    closing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Left:
    """Rows that were not taken over: how many, and the first of them as the source calls them."""

    number: int
    first: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import did to one queue's table."""

    table: str
    copied: int
    present: int  # rows that an earlier run had copied
    left: Mapping[str, Left] = field(default_factory=dict)  # by reason
    keys: BackfillReport | None = None

    def log(self) -> None:
        logger.info("%s: %d tasks taken over, %d were there", self.table, self.copied, self.present)
        for reason, left in self.left.items():
            more = ", ..." if left.number > len(left.first) else ""
            listed = ", ".join(left.first)
            logger.warning("%s: %d rows are left, %s: %s%s", self.table, left.number, reason, listed, more)
