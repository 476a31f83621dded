"""The statements of a backfill, as text: executed page by page online, and inside a DO block offline.

They use two temporary tables of the session. `sa_durable_keys` has a line for every row that has, or could
get, a key. `sa_durable_groups` numbers the wanted keys in the order of their oldest rows. A page is a range
of those numbers, so all candidates for one key are in one page, and their state when that page is written
decides which of them gets it.
"""

from __future__ import annotations

# ruff: noqa: S608 - names come from the catalog by format(), texts from literal(); the source is trusted
from ..values import ACTIVE, Hold
from .ddl import HELD, literal

CREATE = (
    "CREATE TEMPORARY TABLE sa_durable_keys"
    ' (id uuid NOT NULL, created_at timestamptz NOT NULL, key text COLLATE "C", kind text NOT NULL)'
)
DROP = "DROP TABLE IF EXISTS pg_temp.sa_durable_keys, pg_temp.sa_durable_groups"
GROUP = (
    (
        "CREATE TEMPORARY TABLE sa_durable_groups AS"
        " SELECT row_number() OVER (ORDER BY min(CAST(id AS text))) AS n, key, bool_or(kind = 'carried')"
        " AS carried"
        " FROM pg_temp.sa_durable_keys WHERE kind <> 'refused' GROUP BY key"
        " HAVING bool_or(kind = 'candidate')"
    ),
    "CREATE INDEX ON pg_temp.sa_durable_groups (n)",
    "CREATE INDEX ON pg_temp.sa_durable_keys (key)",
    # Autovacuum does not see temporary tables. Without ANALYZE, the pages' plans are guesses.
    "ANALYZE pg_temp.sa_durable_groups",
    "ANALYZE pg_temp.sa_durable_keys",
)
PLANS = {
    # A page is a tiny part of its table. Up to some 100,000 rows, the planner would prefer to scan it for
    # each page.
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "plan_cache_mode": "force_custom_plan",
}
COUNT = "SELECT count(*) FROM pg_temp.sa_durable_groups"
FIRST_ID = "00000000-0000-0000-0000-000000000000"
LISTED = 20

# The keys that spawn refuses, see policy.check_key. Its other rules concern characters that PostgreSQL can't
# store.
_REFUSED = "char_length(source_key) NOT BETWEEN 1 AND 255 OR starts_with(source_key, '~')"


def gather(table: str, source: str, after: str, limit: str) -> str:
    """Record a page of rows, in the order of their ids.

    Returns the last row's id and the number of rows. Returns no row if the page is empty.

    The source is alone in its SELECT: beside a second reference to the table, its column names would be
    ambiguous.
    """
    return f"""\
WITH page AS MATERIALIZED (
  SELECT id, created_at, idempotency_key, CAST((
{source}
) AS text) AS source_key
  FROM {table} WHERE id > {after} ORDER BY id LIMIT {limit}
), recorded AS (
  INSERT INTO pg_temp.sa_durable_keys (id, created_at, key, kind)
  SELECT id, created_at, COALESCE(idempotency_key, source_key), CASE
      WHEN idempotency_key IS NOT NULL THEN 'carried' WHEN {_REFUSED} THEN 'refused' ELSE 'candidate' END
  FROM page WHERE COALESCE(idempotency_key, source_key) IS NOT NULL
)
SELECT id, (SELECT count(*) FROM page) FROM page ORDER BY id DESC LIMIT 1"""


def read(table: str, after: str, limit: str) -> str:
    """Return a page of rows, for keys that are computed in Python.

    Params are text: they are parsed where a failure concerns one row only.
    """
    return (
        "SELECT id, created_at, idempotency_key, name, CAST(params AS text) AS params"
        f" FROM {table} WHERE id > {after} ORDER BY id LIMIT {limit}"
    )


RECORD = (
    "INSERT INTO pg_temp.sa_durable_keys (id, created_at, key, kind) SELECT * FROM"
    " unnest(CAST(:ids AS uuid[]), CAST(:times AS timestamptz[]), CAST(:keys AS text[]),"
    " CAST(:kinds AS text[]))"
)


def assign(table: str, hold: Hold, after: str, last: str) -> str:
    """Write the keys numbered `after + 1` to `last` into the rows that should have them.

    Returns two numbers: the rows that should get a key, and the rows written. They differ if a row changed
    during the statement. Execute it again then.

    A task that holds the key already keeps it. So does a row that got the key from an earlier execution of
    this page, even if its task has ended since. Otherwise, the key goes to a row that would hold it: active
    ones before terminal ones, then the oldest. If no row would hold it, the oldest row carries it as history,
    unless a row does already.
    """
    active = ", ".join(sorted(literal(state.value) for state in ACTIVE))
    # OFFSET 0 is an optimization fence: first the page's keys, then their rows, then whether they are held,
    # each through its index. Columns this new have no statistics, and without the fence PostgreSQL chooses
    # plans that read both tables once per row.
    return f"""\
WITH chosen AS MATERIALIZED (
  SELECT DISTINCT ON (g.key) g.key, t.ctid AS place, t.state, t.idempotency_key IS NULL AS wanting
  FROM pg_temp.sa_durable_groups g
  CROSS JOIN LATERAL (
    SELECT id, created_at FROM pg_temp.sa_durable_keys WHERE key = g.key AND kind = 'candidate' OFFSET 0
  ) AS c
  CROSS JOIN LATERAL (
    SELECT ctid, state, first_started_at, idempotency_key FROM {table} WHERE id = c.id OFFSET 0
  ) AS t
  CROSS JOIN LATERAL (
    SELECT {HELD} AS holds FROM (
      SELECT g.key AS idempotency_key, '{hold.value}' AS key_hold, t.state, t.first_started_at
    ) AS keyed
  ) AS would
  WHERE g.n > {after} AND g.n <= {last} AND (t.idempotency_key IS NOT NULL OR (would.holds OR NOT g.carried)
    AND NOT EXISTS (SELECT FROM {table} WHERE idempotency_key = g.key AND {HELD} OFFSET 0))
  ORDER BY g.key, t.idempotency_key IS NOT NULL DESC, would.holds DESC, t.state IN ({active}) DESC,
    c.created_at, c.id
), winner AS (
  SELECT key, place, state FROM chosen WHERE wanting
), keyed AS (
  UPDATE {table} AS t SET idempotency_key = winner.key, key_hold = '{hold.value}'
  FROM winner WHERE t.ctid = winner.place AND t.state = winner.state AND t.idempotency_key IS NULL
  RETURNING 1
)
SELECT (SELECT count(*) FROM winner), (SELECT count(*) FROM keyed)"""


def without_key(table: str) -> str:
    """Count the candidates that got no key, by kind, and list the first of their ids."""
    return f"""\
SELECT kind, max(total) AS total, array_agg(id ORDER BY created_at, id) AS ids FROM (
  SELECT c.kind, c.id, c.created_at, count(*) OVER w AS total,
    row_number() OVER (w ORDER BY c.created_at, c.id) AS n
  FROM pg_temp.sa_durable_keys c JOIN {table} t ON t.id = c.id
  WHERE c.kind <> 'carried' AND t.idempotency_key IS NULL WINDOW w AS (PARTITION BY c.kind)
) AS unkeyed WHERE n <= {LISTED} GROUP BY kind"""
