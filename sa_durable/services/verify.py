"""Comparing a database with the schema that this version needs, part by part.

Both sides are spelled by PostgreSQL itself: the library's tables are made as empty temporary ones, in a savepoint that
is rolled back, and the catalogue is asked about them and about the real ones. So no text of ours is compared with text
of PostgreSQL's, and an index differs if and only if it is another index.
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
    """What can be missing, or different."""

    TABLE = "table"
    COLUMN = "column"
    INDEX = "index"
    CHECK = "check"
    KEY = "key"  # primary or foreign


@dataclass(frozen=True, slots=True)
class Difference:
    """A part of a queue's tables that is not as this version has it. Its text says it in one line."""

    table: str  # with its schema if it has one, quoted
    part: Part
    name: str
    wanted: str | None  # as PostgreSQL spells it; None: it is no part of this version
    found: str | None  # None: it is missing
    breaks: bool  # this version doesn't work without it
    source: Table = field(repr=False, compare=False)  # the table of the metadata

    def __str__(self) -> str:
        if self.part is Part.TABLE:
            return f"table {self.table} is missing"
        what = f"{self.table}: {self.part} {self.name}"
        if self.found is None:
            return f"{what} is missing: {self.wanted}" if self.wanted else f"{what} is missing"
        if self.wanted is None:
            return f"{what} is not of this version: {self.found}"
        return f"{what} is {self.found}, should be {self.wanted}"


INVALID = " INVALID"  # at the end of an index's definition: what an interrupted build leaves behind
Parts: TypeAlias = Mapping[Part, Mapping[str, str]]  # name to definition
_QUERIES: Mapping[Part, TextClause] = {
    Part.COLUMN: catalog.COLUMNS,
    Part.INDEX: catalog.INDEXES,
    Part.CHECK: catalog.CHECKS,
    Part.KEY: catalog.KEYS,
}
_TEMPLATE = "q"  # the queue whose tables are made; every queue's are the same but for names


def verify(bind: Engine | Connection, metadata: MetaData) -> list[Difference]:
    """How the database differs from what the queues of `metadata` need: an empty list if it doesn't.

    For tests, start-up and CI: `assert verify(engine, Base.metadata) == []`. The library's own columns, indexes, checks
    and keys are compared, exactly; columns and indexes of the application's own aren't looked at. What helps is
    `alembic upgrade head`, after `alembic revision --autogenerate` with the plugin of sa_durable.alembic.

    Needs the right to make temporary tables, which every role has by default. With an AsyncEngine:
    `await connection.run_sync(verify, Base.metadata)`.
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
    """As `verify`, for some queues' tables, in the caller's transaction."""
    relations = {_relation(connection, table): table for table in tables}
    wanted = _wanted(connection) if relations else {}
    found = _read(connection, list(relations))
    compared: list[Difference] = []
    for relation, table in sorted(relations.items()):
        if relation not in found:
            missing = Difference(relation, Part.TABLE, table.name, "", None, breaks=True, source=table)
            compared.append(missing)
            continue
        own = _LibraryParts.of(table)
        for part in _QUERIES:
            compared += _compare(relation, part, own, wanted[own.role][part], found[relation][part])
    return compared


def _relation(connection: Connection, table: Table) -> str:
    translated = connection.get_execution_options().get("schema_translate_map") or {}
    schema = translated.get(table.schema, table.schema)
    return catalog.relation(table.name, schema)


@dataclass(frozen=True, slots=True)
class _LibraryParts:
    """A table of the metadata, and what in it is the library's."""

    table: Table
    role: Role | None
    names: Mapping[str, str]  # of indexes and checks, from those of the template

    @classmethod
    def of(cls, table: Table) -> _LibraryParts:
        info = table.info["sa_durable"]
        role = Role(info["role"]) if "queue" in info else None
        ours = library_tables(info.get("queue", _TEMPLATE))[role]
        template = library_tables(_TEMPLATE)[role]
        return cls(table, role, dict(zip(_names(template), _names(ours), strict=True)))

    def disowns(self, part: Part, name: str) -> bool:
        """Whether a part that only the database has must be of another version of the library."""
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
            # A spawn names the predicate of the key's index; a column that is there may be of a type that will do.
            breaks = (part is Part.COLUMN and there is None) or (
                part is Part.INDEX and definition.startswith("UNIQUE")
            )
            yield Difference(relation, part, name, definition, there, breaks, own.table)
    for name, there in found.items():
        if name not in expected and own.disowns(part, name):
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
    """What the catalogue says, by relation; those that aren't there are left out."""
    asked = {"relations": relations}
    found: dict[str, dict[Part, dict[str, str]]] = {
        relation: {part: {} for part in _QUERIES}
        for relation in connection.execute(catalog.TABLES, asked).scalars()
    }
    for part, query in _QUERIES.items():
        for relation, name, definition in connection.execute(query, asked):
            found[relation][part][name] = definition
    return dict(found)
