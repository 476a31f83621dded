"""An application's own table of jobs, as tasks."""

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
    """What each task's columns are, with defaults for those that are not given."""
    # Without times, the order of `identity`, a microsecond apart: who is first, and which of equal keys is the oldest
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
    """The state in our words; NULL for one that `states` doesn't name."""
    if states is None:
        return f"CAST(({state}) AS text)"
    arms = " ".join(f"WHEN {literal(theirs)} THEN {literal(ours)}" for theirs, ours in states.items())
    return f"(CASE CAST(({state}) AS text) {arms} END)"
