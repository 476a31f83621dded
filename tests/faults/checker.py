"""What must hold after any fault: asked of the database, once all is quiet."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Engine, insert, text
from sqlalchemy.orm import Session

from tests.faults.app import STEPS, TASKS, Ack

RUNS = TASKS.replace("_tasks", "_runs")
TERMINAL = "('completed', 'failed', 'cancelled')"
_EXPECTED = ", ".join(f"('{name}', {steps})" for name, steps in STEPS.items())

# When each claim began and ended: from the move that gave it to a worker to the next one with another token. (Completing
# a task leaves the token.)
_CLAIMS = """
claims AS (
    SELECT m.task_id, m.token, m.at AS began,
           (SELECT min(later.at) FROM moves later WHERE later.task_id = m.task_id AND later.token > m.token) AS ended
    FROM moves m WHERE m.after = 'running' AND m.before <> 'running'
)"""
# How often each step of a task that has completed happened.
_COUNTS = f"""
counts AS (
    SELECT t.id AS task_id, n AS step, count(e.id) AS effects
    FROM {TASKS} t JOIN (VALUES {_EXPECTED}) AS expected(name, steps) USING (name)
    CROSS JOIN LATERAL generate_series(0, steps - 1) AS n
    LEFT JOIN effects e ON e.task_id = t.id AND e.step = n
    WHERE t.state = 'completed' GROUP BY t.id, n
)"""

LOST_SPAWN = "an acknowledged spawn has no task"
TWO_TASKS = "a key has more than one task"
NOT_ENDED = "a task has not ended"
LOST_EFFECT = "a completed task lacks an effect"
DUPLICATE = "a step happened more than once"
LATE = "an effect was committed for a claim that had ended"
STALE_END = "a task was ended by another claim than its last"
TAKEN_EARLY = "a task was taken away before its lease was over"
LIVING_LOST = "a worker that nobody disturbed lost a lease"
DEADLOCK = "PostgreSQL resolved a deadlock"
SPAWN_ERROR = "a spawn was answered with an error that says nothing about the fault"

LOST_LEASES = f"SELECT task_id || ' ' || worker, lease_expires_at, ended_at FROM {RUNS} WHERE error->>'type' = 'LeaseExpired'"

# Each must be empty. One row is one violation; its text goes into the report.
RULES = {
    LOST_SPAWN: f"SELECT a.key FROM acks a LEFT JOIN {TASKS} t ON t.id = a.task_id WHERE t.id IS NULL",
    TWO_TASKS: f"SELECT idempotency_key FROM {TASKS} GROUP BY 1 HAVING idempotency_key IS NOT NULL AND count(*) > 1",
    "a key was answered with two tasks": "SELECT key FROM acks GROUP BY key HAVING count(DISTINCT task_id) > 1",
    NOT_ENDED: f"SELECT id || ' ' || name || ' ' || state FROM {TASKS} WHERE state NOT IN {TERMINAL}",
    "a task has failed": f"SELECT id || ' ' || name || ' ' || coalesce(error::text, '') FROM {TASKS} "
    "WHERE state IN ('failed', 'cancelled') AND name <> ALL (:may_fail)",
    LOST_EFFECT: f"WITH {_COUNTS} SELECT task_id || ' step ' || step FROM counts WHERE effects = 0",
    DUPLICATE: "SELECT task_id || ' step ' || step FROM effects GROUP BY task_id, step HAVING count(*) > 1",
    LATE: f"WITH {_CLAIMS} SELECT e.task_id || ' step ' || e.step || ' token ' || e.token FROM effects e "
    "WHERE NOT EXISTS (SELECT FROM claims c WHERE c.task_id = e.task_id AND c.token = e.token "
    "AND pg_xact_commit_timestamp(e.xmin) BETWEEN c.began AND coalesce(c.ended, 'infinity'))",
    STALE_END: f"SELECT id || ' token ' || token || ' result ' || result::text FROM {TASKS} WHERE state = 'completed' "
    "AND name <> ALL (:may_fail) AND (result->>'token')::bigint <> token",
    "a result is not what the steps did": f"SELECT t.id || ' ' || t.result::text FROM {TASKS} t "
    "WHERE t.state = 'completed' AND t.name <> ALL (:may_fail) AND t.result->'effects' IS DISTINCT FROM "
    "(SELECT jsonb_agg(e.id ORDER BY e.step) FROM effects e WHERE e.task_id = t.id)",
    "more attempts than allowed": f"SELECT id || ' ' || attempt FROM {TASKS} WHERE attempt > max_attempts",
    "the history lacks an attempt": f"SELECT t.id || ' attempt ' || t.attempt FROM {TASKS} t WHERE t.state = 'completed' "
    f"AND (SELECT count(*) FROM {RUNS} r WHERE r.task_id = t.id) <> t.attempt - 1",
    "a terminal task was un-terminated": f"SELECT task_id || ' ' || before || ' -> ' || after FROM moves "
    f"WHERE before IN {TERMINAL}",
    "a token went back": "SELECT task_id || ' ' || token_before || ' -> ' || token FROM moves WHERE token < token_before",
    "a claim did not raise the token": "SELECT task_id || ' ' || token FROM moves "
    "WHERE after = 'running' AND before <> 'running' AND token <= token_before",
    TAKEN_EARLY: f"SELECT task_id || ' by ' || (lease_expires_at - ended_at) FROM {RUNS} "
    "WHERE error->>'type' = 'LeaseExpired' AND lease_expires_at > ended_at",
    "a parent has more than one child": f"SELECT parent_id FROM {TASKS} GROUP BY 1 "
    "HAVING parent_id IS NOT NULL AND count(*) > 1",
}


@dataclass(frozen=True)
class Finding:
    """A rule that doesn't hold."""

    rule: str
    count: int
    example: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.count} times, as {self.example}"


class Checker:
    """Asks whether every rule holds. Tasks called one of `may_fail` may fail; `undisturbed` says of a lease, by when it
    expired and when it was ended, whether it should have been kept."""

    def __init__(
        self,
        engine: Engine,
        *,
        undisturbed: Callable[[datetime, datetime], bool] | None = None,
        may_fail: Sequence[str] = (),
    ) -> None:
        self._engine, self._undisturbed, self._may_fail = engine, undisturbed, list(may_fail)

    def remember(self, acks: Iterable[tuple[str, UUID]]) -> None:
        """What spawners were answered."""
        if rows := [{"key": key, "task_id": task_id} for key, task_id in acks]:
            with Session(self._engine) as session, session.begin():
                session.execute(insert(Ack), rows)

    def findings(self) -> list[Finding]:
        found: list[Finding] = []
        with self._engine.connect() as connection:
            for rule, sql in RULES.items():
                asked = {"may_fail": self._may_fail} if ":may_fail" in sql else {}
                rows = connection.execute(text(sql), asked).scalars().all()
                if rows:
                    found.append(Finding(rule, len(rows), str(rows[0])))
            if self._undisturbed:
                leases = connection.execute(text(LOST_LEASES)).all()
                if lost := [what for what, *moments in leases if self._undisturbed(*moments)]:
                    found.append(Finding(LIVING_LOST, len(lost), lost[0]))
        return found

    def count(self, sql: str) -> int:
        with self._engine.connect() as connection:
            return int(connection.scalar(text(sql)))
