"""Describe an application's own table of jobs as tasks."""

from __future__ import annotations

from collections.abc import Mapping

from ..ddl import literal
from .values import Rows

NOW = "statement_timestamp()"
_ACTIVE = "('pending', 'running', 'sleeping')"


def rows(
    source: str,
    *,
    name: str,
    params: str,
    state: str,
    states: Mapping[str, str] | None,
    identity: str,
    id: str | None,  # noqa: A002 - the column's name
    key: str | None,
    created_at: str | None,
    available_at: str | None,
    columns: Mapping[str, str] | None,
    where: str,
) -> Rows:
    """Return an expression for each of the task's columns, with defaults for those that are not given."""
    # Without times, rows are a microsecond apart in the order of `identity`. This order decides which task is
    # claimed first, and which of several rows with one key is the oldest.
    ordered = f"{NOW} - row_number() OVER (ORDER BY {identity} DESC) * interval '1 microsecond'"
    created = f"coalesce({created_at}, {NOW})" if created_at else f"({ordered})"
    due = f"coalesce({available_at}, {created})" if available_at else created
    mapped = _mapped(state, states)
    given = {
        "name": name,
        "params": params,
        "state": f"CASE WHEN {mapped} NOT IN {_ACTIVE} THEN {mapped} WHEN {due} > {NOW} THEN 'sleeping'"
        f" WHEN {mapped} IN {_ACTIVE} THEN 'pending' END",
        "created_at": created,
        "available_at": due,
        **(columns or {}),
    }
    if id is not None:
        given["id"] = id
    return Rows(source, given, identity, key, where)


def _mapped(state: str, states: Mapping[str, str] | None) -> str:
    """Return an expression for the task state. It is NULL for a state that `states` doesn't list."""
    if states is None:
        return f"CAST(({state}) AS text)"
    arms = " ".join(f"WHEN {literal(theirs)} THEN {literal(ours)}" for theirs, ours in states.items())
    return f"(CASE CAST(({state}) AS text) {arms} END)"
