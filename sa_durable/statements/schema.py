"""What the tables that a spawn writes and reads lack in the database."""

from __future__ import annotations

from sqlalchemy import ARRAY, Text, TextualSelect, bindparam, column, text

from ..models.names import QUEUES_TABLE, Role, named, table_name
from .catalog import relation
from .tables import Model, table_of

_MISSING = text("""
    SELECT 'table ' || wanted.name AS missing
    FROM unnest(ARRAY[CAST(:relation AS text), CAST(:queues AS text)]) AS wanted(name)
    WHERE to_regclass(wanted.name) IS NULL
    UNION ALL
    SELECT 'column ' || wanted.name
    FROM unnest(CAST(:columns AS text[])) AS wanted(name)
    WHERE to_regclass(CAST(:relation AS text)) IS NOT NULL AND NOT EXISTS (
        SELECT 1 FROM pg_attribute
        WHERE attrelid = to_regclass(CAST(:relation AS text)) AND attname = wanted.name AND NOT attisdropped
    )
    UNION ALL
    SELECT 'column notify_until of ' || CAST(:queues AS text)
    WHERE to_regclass(CAST(:queues AS text)) IS NOT NULL AND NOT EXISTS (
        SELECT 1 FROM pg_attribute
        WHERE attrelid = to_regclass(CAST(:queues AS text)) AND attname = 'notify_until' AND NOT attisdropped
    )
    UNION ALL
    SELECT 'valid index ' || CAST(:index AS text)
    WHERE to_regclass(CAST(:relation AS text)) IS NOT NULL
    AND (SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(CAST(:index AS text))) IS NOT TRUE
""").columns(column("missing", Text()))


def missing(model: Model, schema: str | None) -> TextualSelect:
    """Return the tables, columns and valid key index that are missing: a table, or else its parts."""
    table = table_of(model)
    return _MISSING.bindparams(
        bindparam("columns", [c.name for c in table.c], type_=ARRAY(Text())),
        queues=relation(QUEUES_TABLE, schema),
        relation=relation(table.name, schema),
        index=relation(named("uq", table_name(model.__queue__, Role.TASKS), "key"), schema),
    )
