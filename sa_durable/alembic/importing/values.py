"""Values of an import: where rows come from, how they become tasks, and what was done."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from ...values import Hold
from ..backfill import BackfillReport

logger = logging.getLogger("sa_durable.alembic")

PAGE = "<sa_durable page>"  # no name contains it


@dataclass(frozen=True, slots=True)
class Rows:
    """Where tasks come from, as SQL."""

    source: str
    """What follows FROM."""
    columns: Mapping[str, str]
    """An expression for each column of the queue's table."""
    identity: str
    """What a report calls a row. If there is no column `id`, the task's id is made from it."""
    key: str | None = None
    """The idempotency key."""
    where: str = "true"
    """Which rows are imported."""


@dataclass(frozen=True, slots=True)
class Import:
    """One import: the rows, and what is copied with them."""

    rows: Rows
    """The rows that become tasks."""
    hold: Hold = Hold.ACTIVE
    """How long the tasks hold their keys."""
    batch_size: int = 1000
    """Rows per page. Each page is a transaction."""
    following: tuple[str, ...] = ()
    """Statements that copy what belongs to a page's tasks, such as history and checkpoints.

    Each has PAGE in the place of a query for the ids of the page's new tasks.
    """
    closing: tuple[str, ...] = ()
    """Statements that are executed once, at the end."""


@dataclass(frozen=True, slots=True)
class SkippedRows:
    """Rows that were not imported, for one reason."""

    number: int
    """How many."""
    first: tuple[str, ...]
    """The first of them, as the source identifies them."""


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import did to one queue's table."""

    table: str
    """The table's qualified name."""
    copied: int
    """Number of tasks that were added."""
    present: int
    """Number of rows that an earlier run had copied."""
    skipped: Mapping[str, SkippedRows] = field(default_factory=dict)
    """The rows that were not imported, by reason."""
    keys: BackfillReport | None = None
    """What happened to the idempotency keys. None: the import has no `key`."""

    def log(self) -> None:
        """Log the numbers, and a warning for each reason why rows were skipped."""
        logger.info("%s: imported %d tasks, %d were present already", self.table, self.copied, self.present)
        for reason, rows in self.skipped.items():
            more = ", ..." if rows.number > len(rows.first) else ""
            listed = ", ".join(rows.first)
            logger.warning(
                "%s: skipped %d rows because %s: %s%s", self.table, rows.number, reason, listed, more
            )
