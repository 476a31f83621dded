"""Compare a database with the schema that this version needs, part by part.

PostgreSQL writes both sides of the comparison. The library's tables are created as empty temporary tables, in
a savepoint that is rolled back, and the catalog describes them and the real ones. So no text of the library
is compared with a text of PostgreSQL, and two equal indexes never differ by their spelling.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from sqlalchemy import CheckConstraint, Connection, Engine, MetaData, Table, TextClause

from ..models.library import library_tables
from ..models.names import Role, named
from ..statements import catalog


class Part(StrEnum):
    """Kinds of parts that can be missing or different."""

    TABLE = "table"
    COLUMN = "column"
    INDEX = "index"
    CHECK = "check"
    KEY = "key"
    """A primary or foreign key."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A part of a queue's tables that differs from this version. `str()` describes it in one line."""

    table: str
    """The table's name, quoted, with its schema if it has one."""
    part: Part
    name: str
    wanted: str | None
    """The definition that this version needs, as PostgreSQL writes it. None: not a part of this version."""
    found: str | None
    """The definition in the database. None: the part is missing."""
    breaks: bool
    """Whether this version doesn't work without the part."""
    source: Table = field(repr=False, compare=False)
    """The table of the metadata."""

    def __str__(self) -> str:
        if self.part is Part.TABLE:
            return f"table {self.table} is missing"
        what = f"{self.table}: {self.part} {self.name}"
        if self.found is None:
            return f"{what} is missing: {self.wanted}" if self.wanted else f"{what} is missing"
        if self.wanted is None:
            return f"{what} is not of this version: {self.found}"
        return f"{what} is {self.found}, should be {self.wanted}"


INVALID = " INVALID"
"""The end of the definition of an index whose build was interrupted."""
Parts: TypeAlias = Mapping[Part, Mapping[str, str]]
"""Definitions by name."""
_QUERIES: Mapping[Part, TextClause] = {
    Part.COLUMN: catalog.COLUMNS,
    Part.INDEX: catalog.INDEXES,
    Part.CHECK: catalog.CHECKS,
    Part.KEY: catalog.KEYS,
}
_TEMPLATE = "q"  # the queue of the temporary tables; the tables of all queues differ in names only


def verify(bind: Engine | Connection, metadata: MetaData) -> list[Difference]:
    """Compare a database with the tables that the queues of `metadata` need.

    For tests, start-up and CI: `assert verify(engine, Base.metadata) == []`. Compares the library's columns,
    indexes, checks and keys exactly, and ignores columns and indexes of your own. To remove differences, run
    `alembic revision --autogenerate` with the plugin of sa_durable.alembic, then `alembic upgrade head`.

    With an AsyncEngine: `await connection.run_sync(verify, Base.metadata)`.

    Args:
        bind: An engine or a connection. Its role needs the right to create temporary tables, which all roles
            have by default.
        metadata: The metadata of the models.

    Returns:
        The differences. An empty list: there are none.
    """
    if isinstance(bind, Engine):
        # A savepoint needs a transaction, and the engine may be in AUTOCOMMIT.
        with bind.connect() as connection:
            return verify(connection.execution_options(isolation_level="READ COMMITTED"), metadata)
    began = not bind.in_transaction()
    try:
        return differences(bind, [t for t in metadata.tables.values() if "sa_durable" in t.info])
    finally:
        if began:
            bind.rollback()


def differences(connection: Connection, tables: Iterable[Table]) -> list[Difference]:
    """Compare some queues' tables as `verify` does, in the caller's transaction."""
    relations = {_relation(connection, table): table for table in tables}
    wanted = _wanted(connection) if relations else {}
    found = _read(connection, list(relations))
    compared: list[Difference] = []
    for relation, table in sorted(relations.items()):
        if relation not in found:
            missing = Difference(relation, Part.TABLE, table.name, "", None, breaks=True, source=table)
            compared.append(missing)
            continue
        own = _LibraryParts.of_table(table)
        for part in _QUERIES:
            compared += _compare(relation, part, own, wanted[own.role][part], found[relation][part])
    return compared


def _relation(connection: Connection, table: Table) -> str:
    translated = connection.get_execution_options().get("schema_translate_map") or {}
    schema = translated.get(table.schema, table.schema)
    return catalog.relation(table.name, schema)


@dataclass(frozen=True, slots=True)
class _LibraryParts:
    """The parts of a table of the metadata that belong to the library."""

    table: Table
    role: Role | None
    names: Mapping[str, str]
    """Names of indexes and checks, by their names in the template."""

    @classmethod
    def of_table(cls, table: Table) -> _LibraryParts:
        info = table.info["sa_durable"]
        role = Role(info["role"]) if "queue" in info else None
        ours = library_tables(info.get("queue", _TEMPLATE))[role]
        template = library_tables(_TEMPLATE)[role]
        return cls(table, role, dict(zip(_names(template), _names(ours), strict=True)))

    def is_foreign(self, part: Part, name: str) -> bool:
        """Return whether a part that only the database has is from another version of the library."""
        if part in (Part.INDEX, Part.CHECK):
            declared = {
                *(index.name for index in self.table.indexes),
                *(c.name for c in self.table.constraints),
            }
            ours = tuple(named(kind, self.table.name, "") for kind in ("ix", "uq", "ck"))
            return name not in declared and name.startswith(ours)
        return part is Part.COLUMN and self.role is not Role.TASKS


def _names(table: Table) -> list[str]:
    checks = [str(c.name) for c in table.constraints if isinstance(c, CheckConstraint) and c.name]
    return sorted(str(index.name) for index in table.indexes) + sorted(checks)


def _compare(
    relation: str, part: Part, own: _LibraryParts, wanted: Mapping[str, str], found: Mapping[str, str]
) -> Iterator[Difference]:
    expected = {own.names.get(name, name): definition for name, definition in wanted.items()}
    for name, definition in expected.items():
        there = found.get(name)
        if there != definition:
            # A spawn names the predicate of the key's index. A column that exists may have a type that works.
            breaks = (part is Part.COLUMN and there is None) or (
                part is Part.INDEX and definition.startswith("UNIQUE")
            )
            yield Difference(relation, part, name, definition, there, breaks, own.table)
    for name, there in found.items():
        if name not in expected and own.is_foreign(part, name):
            yield Difference(relation, part, name, None, there, breaks=False, source=own.table)


def _wanted(connection: Connection) -> Mapping[Role | None, Parts]:
    tables = library_tables(_TEMPLATE, "pg_temp")
    with connection.begin_nested() as savepoint:
        tables[None].metadata.create_all(connection, checkfirst=False)
        names = {role: catalog.relation(table.name, table.schema) for role, table in tables.items()}
        read = _read(connection, list(names.values()))
        savepoint.rollback()
    return {role: read[name] for role, name in names.items()}


def _read(connection: Connection, relations: list[str]) -> dict[str, Parts]:
    """Return the parts in the catalog, by relation. Leaves out relations that don't exist."""
    asked = {"relations": relations}
    found: dict[str, dict[Part, dict[str, str]]] = {
        relation: {part: {} for part in _QUERIES}
        for relation in connection.execute(catalog.TABLES, asked).scalars()
    }
    for part, query in _QUERIES.items():
        for relation, name, definition in connection.execute(query, asked):
            found[relation][part][name] = definition
    return dict(found)
