"""Schema steps that change one index, check or column of an existing queue table.

`ddl` says what a schema step is.

Definitions are in PostgreSQL's own spelling, as `pg_get_indexdef` and `pg_get_constraintdef` return it,
because that is what autogenerate compares. If a server of another version spells them differently, a repeated
step does its work again.
"""

from __future__ import annotations

# ruff: noqa: S608 - names and definitions go through literal() and format()
from ..statements.catalog import INDEX_DEFINITION
from .ddl import SchemaStep, Targets, literal

NEW_SUFFIX = "_new"  # of an index that will replace another one; the whole name has at most 63 bytes


def build_index(targets: Targets, name: str, definition: str, *, concurrently: bool) -> list[SchemaStep]:
    """Create index `name`, or replace it if its definition differs.

    The old index serves until the new one is complete. What an interrupted build left is dropped first.

    Args:
        targets: The table.
        name: The index's name.
        definition: What follows the table's name in CREATE INDEX, after "UNIQUE " for a unique index: "UNIQUE
            btree (id) WHERE ...".
        concurrently: Whether other sessions go on writing meanwhile.
    """
    differs = f"{INDEX_DEFINITION} <> {literal(definition)}"
    if not concurrently:
        return [
            SchemaStep(_drop(targets, name, f"{differs} OR NOT i.indisvalid"), brief=False),
            SchemaStep(_create(targets, name, definition, f"NOT {_has(name)}"), brief=False),
        ]
    new = name + NEW_SUFFIX
    return [
        SchemaStep(_drop(targets, name, "NOT i.indisvalid", concurrently=True), brief=False),
        SchemaStep(_drop(targets, new, f"NOT i.indisvalid OR {differs}", concurrently=True), brief=False),
        SchemaStep(
            _create(targets, name, definition, f"NOT {_has(name)} AND NOT {_has(new)}", concurrently=True),
            brief=False,
        ),
        SchemaStep(
            _create(
                targets, new, definition, f"{_has(name, differs)} AND NOT {_has(new)}", concurrently=True
            ),
            brief=False,
        ),
        SchemaStep(_drop(targets, name, f"{_has(new)}", concurrently=True), brief=False),
        SchemaStep(
            f"SELECT format('ALTER INDEX %I.%I RENAME TO %I', schema, {literal(new)}, {literal(name)})"
            f" FROM {targets.rows} WHERE {_has(new)} AND NOT {_has(name)}",
            brief=True,
        ),
    ]


def drop_index(targets: Targets, name: str, *, concurrently: bool) -> list[SchemaStep]:
    """Drop index `name`, and what an interrupted build of its replacement left."""
    return [
        SchemaStep(_drop(targets, which, "true", concurrently=concurrently), brief=False)
        for which in (name, name + NEW_SUFFIX)
    ]


def set_check(targets: Targets, name: str, definition: str) -> list[SchemaStep]:
    """Add check `name`, or replace it if its definition differs.

    The check applies to new rows at once. Existing rows are read afterwards, while other sessions continue.

    Args:
        targets: The table.
        name: The check's name.
        definition: "CHECK (...)".
    """
    existing = (
        f"SELECT regexp_replace(pg_get_constraintdef(k.oid), ' NOT VALID$', '') AS definition {_check(name)}"
    )
    drop = (
        f"CASE WHEN old.definition IS NULL THEN '' ELSE format('DROP CONSTRAINT %I, ', {literal(name)}) END"
    )
    return [
        SchemaStep(
            f"SELECT format('ALTER TABLE %s %sADD CONSTRAINT %I %s NOT VALID', name, {drop}, {literal(name)},"
            f" {literal(definition)}) FROM {targets.rows} LEFT JOIN LATERAL ({existing}) AS old ON true"
            f" WHERE old.definition IS DISTINCT FROM {literal(definition)}",
            brief=True,
        ),
        _alter(
            targets,
            "VALIDATE CONSTRAINT %I",
            name,
            f"EXISTS (SELECT {_check(name)} AND NOT k.convalidated)",
            brief=False,
        ),
    ]


def drop_check(targets: Targets, name: str) -> list[SchemaStep]:
    """Drop check `name`."""
    return [_alter(targets, "DROP CONSTRAINT %I", name, f"EXISTS (SELECT {_check(name)})")]


def add_column(targets: Targets, name: str, specification: str) -> list[SchemaStep]:
    """Add column `name`. `specification` is the column as CREATE TABLE spells it."""
    return [_alter(targets, "ADD COLUMN %s", specification, f"NOT EXISTS ({_column(name)})")]


def drop_column(targets: Targets, name: str) -> list[SchemaStep]:
    """Drop column `name`."""
    return [_alter(targets, "DROP COLUMN %I", name, f"EXISTS ({_column(name)})")]


def _alter(targets: Targets, action: str, argument: str, where: str, *, brief: bool = True) -> SchemaStep:
    """Alter each target that satisfies `where`. `action` formats `argument` with %I or %s."""
    return SchemaStep(
        f"SELECT format('ALTER TABLE %s {action}', name, {literal(argument)})"
        f" FROM {targets.rows} WHERE {where}",
        brief=brief,
    )


def _index(name: str, where: str = "true") -> str:
    return (
        "SELECT FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid"
        f" WHERE i.indrelid = target.id AND x.relname = {literal(name)} AND ({where})"
    )


def _has(name: str, where: str = "true") -> str:
    return f"EXISTS ({_index(name, where)})"


def _drop(targets: Targets, name: str, where: str, *, concurrently: bool = False) -> str:
    drop = "DROP INDEX CONCURRENTLY" if concurrently else "DROP INDEX"
    return (
        f"SELECT format('{drop} %I.%I', schema, {literal(name)}) FROM {targets.rows}"
        f" WHERE {_has(name, where)}"
    )


def _create(targets: Targets, name: str, definition: str, where: str, *, concurrently: bool = False) -> str:
    method = definition.removeprefix("UNIQUE ")
    create = "CREATE UNIQUE INDEX" if method != definition else "CREATE INDEX"
    if concurrently:
        create += " CONCURRENTLY"
    return (
        f"SELECT format('{create} %I ON %s USING %s', {literal(name)}, name, {literal(method)})"
        f" FROM {targets.rows} WHERE {where}"
    )


def _check(name: str) -> str:
    return (
        "FROM pg_constraint k"
        f" WHERE k.conrelid = target.id AND k.contype = 'c' AND k.conname = {literal(name)}"
    )


def _column(name: str) -> str:
    return (
        "SELECT FROM pg_attribute WHERE attrelid = target.id AND NOT attisdropped"
        f" AND attname = {literal(name)}"
    )
