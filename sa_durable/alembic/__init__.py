"""What an application's `env.py` and revisions import. Importing this package registers the operations.

::

    import sa_durable.alembic  # in a revision: op.durable_add_key() and the other operations now exist

- `op.durable_add_key(table, source=...)` adds the columns, check and index of idempotency keys to one task
  table, or to the task table of every queue in the database if `table` is left out. An interrupted run
  continues where it stopped.
- `op.durable_drop_key(table)` is the reverse.
- `migration_lock(connection)`, in `env.py`, lets one migrator run at a time.

docs/upgrading/keys.md says what each operation locks, and for how long.
"""

from . import plugin, rendering  # noqa: F401 - they register with Alembic
from .backfill import BackfillReport
from .changes import CheckOp, ColumnOp, IndexOp
from .importing.operations import ImportOp
from .importing.values import ImportReport
from .online import migration_lock
from .operations import AddKeyOp, DropKeyOp
from .sources import ONCE, Source

__all__ = [
    "ONCE",
    "AddKeyOp",
    "BackfillReport",
    "CheckOp",
    "ColumnOp",
    "DropKeyOp",
    "ImportOp",
    "ImportReport",
    "IndexOp",
    "Source",
    "migration_lock",
]
