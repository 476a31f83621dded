r"""Write the steps as a script for psql (`alembic upgrade --sql`).

The script asks the database that it runs on which tables exist and what they lack: `\gexec` executes the
statements that a step's query returns. A DO block could not, because PostgreSQL refuses CREATE INDEX
CONCURRENTLY inside one. Only psql knows `\gexec`. In any other client, the script fails at the first line
that has it.
"""

from __future__ import annotations

# ruff: noqa: S608 - names come from the catalog by format(), texts from literal(); the source is trusted
from collections.abc import Iterable

from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError

from . import ddl, pages
from .ddl import SchemaStep, Targets, literal
from .sources import Backfill, LockRetry


def add(
    context: MigrationContext, targets: Targets, lock_retry: LockRetry, backfill: Backfill | None
) -> None:
    """Write what `upgrade.add` does."""
    if backfill is not None and not isinstance(backfill.source, str):
        raise CommandError(
            "`--sql` can't render source=sa_durable.alembic.ONCE, because its keys are computed in Python."
            " Either run this revision online, or leave `source` out here and backfill in a later revision"
            " that you run online."
        )
    with context.autocommit_block():
        _steps(context, ddl.add_steps(targets, concurrently=True), lock_retry)
        if backfill is not None:
            context.impl.static_output("SET lock_timeout = '50ms';")
            for name, setting in pages.PLANS.items():
                context.impl.static_output(f"SET {name} = {setting};")
            context.impl.static_output(_backfill(targets, str(backfill.source), backfill))
        _reset(context)


def write(context: MigrationContext, steps: Iterable[SchemaStep], lock_retry: LockRetry) -> None:
    """Write steps."""
    with context.autocommit_block():
        _steps(context, steps, lock_retry)
        _reset(context)


def _steps(context: MigrationContext, steps: Iterable[SchemaStep], lock_retry: LockRetry) -> None:
    output = context.impl.static_output
    output(
        "-- sa_durable: run it with psql -v ON_ERROR_STOP=1, without -1."
        " After an error, run it again from here."
    )
    output("SET statement_timeout = 0;\nSET client_min_messages = warning;")
    for step in steps:
        output(
            f"SET lock_timeout = '{lock_retry.lock_timeout * 1000:.0f}ms';"
            if step.brief
            else "SET lock_timeout = 0;"
        )
        output(rf"{step.query} \gexec")


def _reset(context: MigrationContext) -> None:
    context.impl.static_output(
        "\n".join(
            f"RESET {name};"
            for name in ("lock_timeout", "statement_timeout", "client_min_messages", *pages.PLANS)
        )
    )


def _backfill(targets: Targets, source: str, backfill: Backfill) -> str:
    """Return `backfill.fill` in PL/pgSQL. It waits for a key that is in use, instead of deferring the key."""
    nil = f"CAST({literal(pages.FIRST_ID)} AS uuid)"
    gather = _format(pages.gather(_mark("table"), source, nil, "ALL"), table="table_name")
    assign = _format(
        pages.assign(_mark("table"), backfill.hold, _mark("after"), _mark("last")),
        table="table_name",
        after="done",
        last="till",
    )
    without_key = _format(pages.without_key(_mark("table")), table="table_name")
    groups = "\n".join(f"    {statement};" for statement in map(_execute, pages.GROUP))
    return f"""\
DO $sa_durable$
DECLARE
  table_name text; total bigint; done bigint; till bigint; size bigint; wanted bigint; keyed bigint;
  rest record;
BEGIN
  FOR table_name IN SELECT name FROM {targets.rows} LOOP
    {_execute(pages.DROP)};
    {_execute(pages.CREATE)};
    EXECUTE {gather};
{groups}
    EXECUTE {literal(pages.COUNT)} INTO total;
    COMMIT;
    done := 0;
    size := {backfill.batch_size};
    WHILE done < total LOOP
      till := least(done + size, total);
      BEGIN
        EXECUTE {assign} INTO wanted, keyed;
      EXCEPTION WHEN lock_not_available OR unique_violation OR deadlock_detected THEN
        wanted := -1;
      END;
      COMMIT;
      IF wanted = keyed THEN
        done := till;
        size := least(size * 2, {backfill.batch_size});
      ELSIF till - done > 1 THEN
        size := (till - done + 1) / 2;
      ELSE
        PERFORM pg_sleep(0.2);
      END IF;
    END LOOP;
    FOR rest IN EXECUTE {without_key} LOOP
      RAISE WARNING '%: % rows are left without a key (%): %', table_name, rest.total, rest.kind, rest.ids;
    END LOOP;
    {_execute(pages.DROP)};
    COMMIT;
  END LOOP;
END $sa_durable$;"""


def _execute(statement: str) -> str:
    return f"EXECUTE {literal(statement)}"


def _format(statement: str, **variables: str) -> str:
    """Return an expression for `statement` with each mark replaced by the value of a PL/pgSQL variable."""
    template = statement.replace("%", "%%")
    for position, name in enumerate(variables, start=1):
        template = template.replace(_mark(name), f"%{position}$s")
    return f"format({literal(template)}, {', '.join(variables.values())})"


def _mark(name: str) -> str:
    return f"<sa_durable {name}>"  # no source contains it
