"""Queries of PostgreSQL's catalog: definitions of tables in its spelling, so that they can be compared."""

from __future__ import annotations

# ruff: noqa: S608 - put together from constants of this module
from sqlalchemy import ARRAY, Text, TextClause, bindparam, text
from sqlalchemy.dialects import postgresql

# The preparer of a connection doubles each % for drivers that mark parameters by it. That is right in a
# statement, but wrong in a value.
_preparer = postgresql.dialect(paramstyle="named").identifier_preparer  # type: ignore[no-untyped-call]  # SQLAlchemy's


def relation(name: str, schema: str | None) -> str:
    """Return the name of a table or index as a value for `to_regclass`, quoted where necessary."""
    quoted = _preparer.quote(name)
    return f"{_preparer.quote_schema(schema)}.{quoted}" if schema else quoted


_RELATION = (
    "FROM unnest(CAST(:relations AS text[])) AS asked(relation)"
    " JOIN pg_class AS c ON c.oid = to_regclass(asked.relation)"
)


def _of(sql: str) -> TextClause:
    return text(sql).bindparams(bindparam("relations", type_=ARRAY(Text())))


TABLES = _of(f"SELECT asked.relation {_RELATION}")
"""The tables among `relations` (quoted names) that exist."""

COLUMNS = _of(
    "SELECT asked.relation, a.attname AS name, format_type(a.atttypid, a.atttypmod)"
    " || CASE WHEN o.collname <> 'default' THEN format(' COLLATE %I', o.collname) ELSE '' END"
    " || CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END"
    " || coalesce(' DEFAULT ' || pg_get_expr(d.adbin, d.adrelid), '') AS definition"
    f" {_RELATION} JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped"
    " LEFT JOIN pg_collation AS o ON o.oid = a.attcollation"
    " LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum"
)
"""The columns of `relations`: `relation`, `name`, `definition`."""
INDEX_DEFINITION = (
    "CASE WHEN i.indisunique THEN 'UNIQUE ' ELSE '' END"
    " || regexp_replace(pg_get_indexdef(i.indexrelid), '^.*? USING ', '')"
)
"""The definition of index `i`, without its name and table."""

INDEXES = _of(
    f"SELECT asked.relation, x.relname AS name, {INDEX_DEFINITION}"
    # An interrupted build leaves an invalid index behind.
    " || CASE WHEN i.indisvalid THEN '' ELSE ' INVALID' END AS definition"
    f" {_RELATION} JOIN pg_index AS i ON i.indrelid = c.oid JOIN pg_class AS x ON x.oid = i.indexrelid"
    " WHERE NOT EXISTS"
    " (SELECT FROM pg_constraint AS k WHERE k.conindid = i.indexrelid AND k.contype IN ('p', 'u', 'x'))"
)
"""The indexes of `relations` that belong to no constraint: `relation`, `name`, `definition`."""
CHECKS = _of(
    "SELECT asked.relation, k.conname AS name, pg_get_constraintdef(k.oid) AS definition"
    f" {_RELATION} JOIN pg_constraint AS k ON k.conrelid = c.oid AND k.contype = 'c'"
)
"""The check constraints of `relations`: `relation`, `name`, `definition`."""
# Primary and foreign keys are named by their definition, because the application's naming convention decides
# their names. The table that a foreign key refers to is left out: how it is spelled depends on the search
# path.
KEYS = _of(
    "SELECT asked.relation,"
    " regexp_replace(pg_get_constraintdef(k.oid), 'REFERENCES .*\\(', 'REFERENCES (') AS name,"
    " '' AS definition"
    f" {_RELATION} JOIN pg_constraint AS k ON k.conrelid = c.oid AND k.contype IN ('p', 'f')"
)
"""The primary and foreign keys of `relations`: `relation`, `name`, `definition`."""
