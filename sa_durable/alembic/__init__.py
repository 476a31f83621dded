"""Migrations: what an application's `env.py` and revisions import. Importing it registers the operations.

::

    import sa_durable.alembic  # in a revision: op.durable_add_keys() and the others now exist

- `op.durable_add_keys(source=...)` gives every queue table of the database the columns, check and index of idempotency
  keys; `op.durable_add_key(table, ...)` does it for one. Both go on where an interrupted run stopped.
- `op.durable_drop_keys()` and `op.durable_drop_key(table)` are their reverse.
- `migration_lock(connection)`, in `env.py`: one migrator at a time, the others wait and find everything done.

docs/upgrading/keys.md says what each of them locks, and for how long.
"""

from . import plugin, rendering  # noqa: F401 - they register themselves with Alembic
from .backfill import BackfillReport
from .changes import CheckOp, ColumnOp, IndexOp
from .importing.operations import ImportOp
from .importing.values import ImportReport
from .online import migration_lock
from .operations import AddKeyOp, AddKeysOp, DropKeyOp, DropKeysOp
from .sources import ONCE, Source

__all__ = [
    "ONCE",
    "AddKeyOp",
    "AddKeysOp",
    "BackfillReport",
    "CheckOp",
    "ColumnOp",
    "DropKeyOp",
    "DropKeysOp",
    "ImportOp",
    "ImportReport",
    "IndexOp",
    "Source",
    "migration_lock",
]
