r"""Schema steps that add and drop the key columns, check and index.

A step is a query that returns the statements that are still to be executed. Where its work is done already,
it returns none, so each step can be repeated after any interruption. The same text serves online (fetch, then
execute each statement), in psql (`\gexec`), and for one table or all of them.

The columns, the check and the index are spelled out here instead of being taken from the models: a revision
that calls the operation must still do the same after the models have changed. A test compares the two for as
long as they agree.
"""

from __future__ import annotations

# ruff: noqa: S608 - names come from the catalog by format(), texts from literal(); the source is trusted
from dataclasses import dataclass
from typing import NamedTuple

from ..models.names import COMMENT_PATTERN, named

COLUMNS = {
    "idempotency_key": 'text COLLATE "C"',
    "key_hold": "text",
    "key_expires_at": "timestamp with time zone",
}
CHECK = (
    "(key_hold IS NULL OR key_hold IN ('queued', 'active', 'succeeded', 'forever')"
    " AND idempotency_key IS NOT NULL)"
    " AND char_length(idempotency_key) BETWEEN 1 AND 255"
)
HELD = (
    "idempotency_key IS NOT NULL AND ("
    "key_hold = 'forever'"
    " OR key_hold = 'succeeded' AND state NOT IN ('failed', 'cancelled')"
    " OR key_hold = 'active' AND state NOT IN ('completed', 'failed', 'cancelled')"
    " OR key_hold = 'queued' AND state NOT IN ('completed', 'failed', 'cancelled')"
    " AND first_started_at IS NULL"
    ")"
)


class SchemaStep(NamedTuple):
    """A query that returns statements, and how to execute them."""

    query: str
    """Returns the statements that are still to be executed."""
    brief: bool
    """Whether the statements take a lock that blocks all other sessions. They must not wait for it long."""


@dataclass(frozen=True, slots=True)
class Targets:
    """The task tables that an operation changes: one by name, or all that have the library's comment."""

    table: str | None = None
    """The name of one table. None: all tables."""
    schema: str | None = None
    """The schema of `table`, or the only schema that is searched. None: the search path, or all schemas."""

    @property
    def rows(self) -> str:
        """A subquery: `id` (oid), `name` (qualified, quoted), `schema`, `index_name` and `check_name`."""
        if self.table is not None:
            qualified = ".".join(_identifier(part) for part in (self.schema, self.table) if part is not None)
            which = f"c.oid = CAST({literal(qualified)} AS regclass)"
        else:
            which = (
                f"c.relkind = 'r' AND obj_description(c.oid, 'pg_class') LIKE {literal(COMMENT_PATTERN)}"
                " AND NOT pg_is_other_temp_schema(n.oid)"
            )
            if self.schema is not None:
                which += f" AND n.nspname = {literal(self.schema)}"
        return (
            "(SELECT c.oid AS id, format('%I.%I', n.nspname, c.relname) AS name, n.nspname AS schema,"
            f" format('{named('uq', '%s', 'key')}', c.relname) AS index_name,"
            f" format('{named('ck', '%s', 'key')}', c.relname) AS check_name"
            f" FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE {which}"
            " ORDER BY n.nspname, c.relname) AS target"
        )

    def __str__(self) -> str:
        if self.table is None:
            return f"all queues of schema {self.schema}" if self.schema else "all queues"
        return f"{self.schema}.{self.table}" if self.schema else self.table


def add_steps(targets: Targets, *, concurrently: bool) -> list[SchemaStep]:
    """Add columns and check, then the index. It is built while empty, so duplicates can't make it fail."""
    build = "CREATE UNIQUE INDEX CONCURRENTLY" if concurrently else "CREATE UNIQUE INDEX"
    create = f"{build} %I ON %s (idempotency_key) WHERE {HELD}"
    return [
        SchemaStep(_foreign_columns(targets), brief=False),
        SchemaStep(_columns_and_check(targets), brief=True),
        # The check is added as NOT VALID, which reads no rows. VALIDATE reads them while other sessions
        # continue.
        SchemaStep(
            f"SELECT format('ALTER TABLE %s VALIDATE CONSTRAINT %I', name, check_name) FROM {targets.rows}"
            f" WHERE EXISTS (SELECT FROM pg_constraint k WHERE k.conrelid = target.id"
            " AND k.conname = target.check_name AND NOT k.convalidated)",
            brief=False,
        ),
        # An interrupted build leaves an invalid index behind, which CREATE ... IF NOT EXISTS would keep.
        SchemaStep(
            _drop_index(targets, concurrently=concurrently, where="AND NOT i.indisvalid"), brief=False
        ),
        SchemaStep(
            f"SELECT format({_template(create)}, index_name, name) FROM {targets.rows}"
            f" WHERE NOT EXISTS ({_index()})",
            brief=False,
        ),
    ]


def drop_steps(targets: Targets, *, concurrently: bool) -> list[SchemaStep]:
    """Drop the index, then the check and the columns, with the keys in them."""
    return [
        SchemaStep(_drop_index(targets, concurrently=concurrently), brief=False),
        SchemaStep(
            "SELECT format('ALTER TABLE %s %s', name, string_agg(format(action, part), ', ' ORDER BY nr))"
            f" FROM {targets.rows} CROSS JOIN LATERAL (SELECT 0 AS nr, 'DROP CONSTRAINT %I' AS action,"
            " conname AS part FROM pg_constraint"
            " WHERE conrelid = target.id AND conname = target.check_name"
            " UNION ALL SELECT attnum, 'DROP COLUMN %I', attname FROM pg_attribute WHERE attrelid = target.id"
            f" AND NOT attisdropped AND attname IN ({_list(COLUMNS)})) AS parts"
            " GROUP BY schema, name ORDER BY name",
            brief=True,
        ),
    ]


def _columns_and_check(targets: Targets) -> str:
    """Add everything that is missing in one ALTER TABLE, so that the lock is taken once."""
    columns = ", ".join(
        f"({nr}, {literal(name)}, {literal(f'ADD COLUMN {name} {type_}')})"
        for nr, (name, type_) in enumerate(COLUMNS.items())
    )
    check = _template(f"ADD CONSTRAINT %I CHECK ({CHECK}) NOT VALID")
    return (
        f"SELECT format('ALTER TABLE %s %s', name, string_agg(action, ', ' ORDER BY nr)) FROM {targets.rows}"
        f" CROSS JOIN LATERAL (SELECT nr, action FROM (VALUES {columns}) AS wanted (nr, part, action)"
        " WHERE NOT EXISTS (SELECT FROM pg_attribute"
        " WHERE attrelid = target.id AND attname = part AND NOT attisdropped)"
        f" UNION ALL SELECT {len(COLUMNS)}, format({check}, target.check_name)"
        " WHERE NOT EXISTS (SELECT FROM pg_constraint WHERE conrelid = target.id"
        " AND conname = target.check_name)"
        ") AS parts GROUP BY schema, name ORDER BY name"
    )


def _foreign_columns(targets: Targets) -> str:
    """Raise if a column has one of our names and another type: then the column belongs to the application."""
    wanted = ", ".join(f"({literal(name)}, {literal(type_)})" for name, type_ in COLUMNS.items())
    message = literal(
        "column %s of %s is %s, but sa_durable needs %s. Nothing was changed."
        " Rename your column, then run the"
        " migration again."
    )
    raise_it = literal("DO $sa_durable$ BEGIN RAISE EXCEPTION USING MESSAGE = %L; END $sa_durable$")
    return (
        f"SELECT format({raise_it}, format({message}, wanted.part, name, found.type, wanted.type))"
        f" FROM {targets.rows} CROSS JOIN LATERAL (SELECT a.attname, format_type(a.atttypid, a.atttypmod) ||"
        " CASE WHEN o.collname <> 'default' THEN format(' COLLATE %I', o.collname) ELSE '' END AS type"
        " FROM pg_attribute a LEFT JOIN pg_collation o ON o.oid = a.attcollation"
        " WHERE a.attrelid = target.id AND NOT a.attisdropped) AS found"
        f" JOIN (VALUES {wanted}) AS wanted (part, type)"
        " ON wanted.part = found.attname AND wanted.type <> found.type"
    )


def _index(where: str = "") -> str:
    return (
        "SELECT FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid"
        f" WHERE i.indrelid = target.id AND x.relname = target.index_name {where}"
    )


def _drop_index(targets: Targets, *, concurrently: bool, where: str = "") -> str:
    drop = "DROP INDEX CONCURRENTLY" if concurrently else "DROP INDEX"
    return (
        f"SELECT format('{drop} %I.%I', schema, index_name) FROM {targets.rows}"
        f" WHERE EXISTS ({_index(where)})"
    )


def literal(text: str) -> str:
    """Return `text` as an SQL string."""
    return "'" + text.replace("'", "''") + "'"


def _template(statement: str) -> str:
    return literal(statement)  # for format(): every % belongs to %I or %s


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _list(names: dict[str, str]) -> str:
    return ", ".join(map(literal, names))
