"""Steps that change one index, check or column of a queue table that exists: see `ddl` for what a step is.

Definitions are PostgreSQL's own, as `pg_get_indexdef` and `pg_get_constraintdef` spell them, since that is what a
difference was found in. If a server of another version spells them otherwise, a repeated step does its work again.
"""

from __future__ import annotations

# ruff: noqa: S608 - names and definitions go through literal() and format()
from ..statements.catalog import INDEX_DEFINITION
from .ddl import Step, Targets, literal

NEW = "_new"  # the name of an index that is to take another one's place; 63 bytes at most


def build_index(targets: Targets, name: str, definition: str, *, concurrently: bool) -> list[Step]:
    """Have index `name` be `definition` ("UNIQUE btree (id) WHERE ..."). One that differs serves until the new one is
    there; what an interrupted build left is dropped first."""
    if not concurrently:
        return [
            Step(_drop(targets, name, f"{INDEX_DEFINITION} <> {literal(definition)} OR NOT i.indisvalid"), brief=False),
            Step(_create(targets, name, definition, f"NOT {_has(name)}"), brief=False),
        ]  # fmt: skip
    new = name + NEW
    differs = f"{INDEX_DEFINITION} <> {literal(definition)}"
    return [
        Step(_drop(targets, name, "NOT i.indisvalid", concurrently=True), brief=False),
        Step(_drop(targets, new, f"NOT i.indisvalid OR {differs}", concurrently=True), brief=False),
        Step(
            _create(targets, name, definition, f"NOT {_has(name)} AND NOT {_has(new)}", concurrently=True),
            brief=False,
        ),
        Step(
            _create(
                targets, new, definition, f"{_has(name, differs)} AND NOT {_has(new)}", concurrently=True
            ),
            brief=False,
        ),
        Step(_drop(targets, name, f"{_has(new)}", concurrently=True), brief=False),
        Step(
            f"SELECT format('ALTER INDEX %I.%I RENAME TO %I', schema, {literal(new)}, {literal(name)})"
            f" FROM {targets.rows} WHERE {_has(new)} AND NOT {_has(name)}",
            brief=True,
        ),
    ]


def drop_index(targets: Targets, name: str, *, concurrently: bool) -> list[Step]:
    """Have no index `name`."""
    return [
        Step(_drop(targets, which, "true", concurrently=concurrently), brief=False)
        for which in (name, name + NEW)
    ]


def set_check(targets: Targets, name: str, definition: str) -> list[Step]:
    """Have check `name` be `definition` ("CHECK (...)"): at once for new rows, then for those that are there, while
    others go on."""
    there = (
        f"SELECT regexp_replace(pg_get_constraintdef(k.oid), ' NOT VALID$', '') AS definition {_check(name)}"
    )
    drop = (
        f"CASE WHEN old.definition IS NULL THEN '' ELSE format('DROP CONSTRAINT %I, ', {literal(name)}) END"
    )
    return [
        Step(
            f"SELECT format('ALTER TABLE %s %sADD CONSTRAINT %I %s NOT VALID', name, {drop}, {literal(name)},"
            f" {literal(definition)}) FROM {targets.rows} LEFT JOIN LATERAL ({there}) AS old ON true"
            f" WHERE old.definition IS DISTINCT FROM {literal(definition)}",
            brief=True,
        ),
        Step(
            f"SELECT format('ALTER TABLE %s VALIDATE CONSTRAINT %I', name, {literal(name)}) FROM {targets.rows}"
            f" WHERE EXISTS (SELECT {_check(name)} AND NOT k.convalidated)",
            brief=False,
        ),
    ]


def drop_check(targets: Targets, name: str) -> list[Step]:
    """Have no check `name`."""
    return [
        Step(
            f"SELECT format('ALTER TABLE %s DROP CONSTRAINT %I', name, {literal(name)}) FROM {targets.rows}"
            f" WHERE EXISTS (SELECT {_check(name)})",
            brief=True,
        )
    ]


def add_column(targets: Targets, name: str, specification: str) -> list[Step]:
    """Have column `name`; `specification` is what CREATE TABLE would say."""
    return [
        Step(
            f"SELECT format('ALTER TABLE %s ADD COLUMN %s', name, {literal(specification)}) FROM {targets.rows}"
            f" WHERE NOT EXISTS ({_column(name)})",
            brief=True,
        )
    ]


def drop_column(targets: Targets, name: str) -> list[Step]:
    """Have no column `name`."""
    return [
        Step(
            f"SELECT format('ALTER TABLE %s DROP COLUMN %I', name, {literal(name)}) FROM {targets.rows}"
            f" WHERE EXISTS ({_column(name)})",
            brief=True,
        )
    ]


def _index(name: str, where: str = "true") -> str:
    return (
        "SELECT FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid"
        f" WHERE i.indrelid = target.id AND x.relname = {literal(name)} AND ({where})"
    )


def _has(name: str, where: str = "true") -> str:
    return f"EXISTS ({_index(name, where)})"


def _drop(targets: Targets, name: str, where: str, *, concurrently: bool = False) -> str:
    drop = "DROP INDEX CONCURRENTLY" if concurrently else "DROP INDEX"
    return f"SELECT format('{drop} %I.%I', schema, {literal(name)}) FROM {targets.rows} WHERE {_has(name, where)}"


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
    return f"FROM pg_constraint k WHERE k.conrelid = target.id AND k.contype = 'c' AND k.conname = {literal(name)}"


def _column(name: str) -> str:
    return (
        "SELECT FROM pg_attribute WHERE attrelid = target.id AND NOT attisdropped"
        f" AND attname = {literal(name)}"
    )
