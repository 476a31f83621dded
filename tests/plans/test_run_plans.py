"""A worker's statements read only the tasks that they name, by an index, among 360,000 others."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sa_durable.statements import checkpoints, history, runs, waits
from sa_durable.statements import claims as claim_stmt
from sa_durable.statements.arrays import numbers, texts, uuids
from tests.plans.explaining import Case, check
from tests.plans.large_dataset import PENDING, RUNNING, SLEEPING, UNKNOWN, row
from tests.shop import MailTask

MINUTE = timedelta(minutes=1)
READY, RUNS, PKEY = "ix_mail_tasks_ready", "ix_mail_tasks_running", "mail_tasks_pkey"
UPDATE = 40  # buffers: a search of each index of the table, twice if the row moves


def names(*known: str) -> str:
    return texts(known)


def claim(name: str, known: str, limit: int, *, found: bool = True) -> Case:
    wanted = known.count(",") + 1
    taken = limit if found else 0
    return Case(
        name,
        claim_stmt.claim(MailTask),
        {"names": known, "worker": "w2", "lease": MINUTE, "limit": limit},
        uses={READY, PKEY},
        touches=30 + UPDATE * taken + 5 * taken * wanted,
        locks=2 * taken,
    )


def ids(*numbers_: int) -> str:
    return uuids(map(row, numbers_))


def held(number: int) -> dict[str, str]:
    return {"ids": ids(*RUNNING[:number]), "tokens": numbers([1] * number)}


def failing(number: int) -> dict[str, str]:
    """Fail every other one without a retry."""
    return {
        **held(number),
        "errors": texts(["{}"] * number),
        "delays": numbers([None, 5.0][n % 2] for n in range(number)),
        "next_runs": uuids(row(n) for n in range(number)),
    }


def completing(number: int) -> dict[str, str]:
    return {**held(number), "results": texts(["1"] * number)}


def many(name: str, statement: Any, parameters: dict[str, Any], number: int) -> Case:
    return Case(name, statement, parameters, {RUNS}, touches=30 + (UPDATE + 20) * number, locks=number)


one: dict[str, Any] = {"task_id": row(RUNNING[0]), "held_token": 1}
step: dict[str, Any] = {"id": row(RUNNING[0]), "token": 1, "name": "new"}
later = datetime(2999, 1, 1, tzinfo=UTC)

CASES = [
    claim("claim one", names("send"), 1),
    claim("claim of one name", names("send"), 20),
    claim("claim of two names", names("send", "remind"), 20),
    claim("claim of many names", names("send", "remind", *(f"other {n}" for n in range(20))), 200),
    claim("claim of a name that nothing has", names("nothing"), 200, found=False),
    Case(
        "count_ready",
        claim_stmt.count_ready(MailTask, named=False),
        {"limit": 100},
        {READY, "ix_mail_tasks_due"},
        touches=300,
    ),
    Case(
        "count_ready of names",
        claim_stmt.count_ready(MailTask, named=True),
        {"limit": 100, "names": names("send")},
        {READY, "ix_mail_tasks_due"},
        touches=300,
    ),
    many("heartbeat", claim_stmt.extend(MailTask), {**held(20), "lease": MINUTE}, 20),
    many("heartbeat of many", claim_stmt.extend(MailTask), {**held(300), "lease": MINUTE}, 300),
    many("release", claim_stmt.release(MailTask), held(20), 20),
    many("completion, waiting for its lock", runs.complete_many(MailTask, wait=True), completing(1), 1),
    many("completions", runs.complete_many(MailTask), completing(20), 20),
    many("many completions", runs.complete_many(MailTask), completing(300), 300),
    many("failure, waiting for its lock", runs.fail_many(MailTask, wait=True), failing(1), 1),
    many("failures", runs.fail_many(MailTask), failing(20), 20),
    many("many failures", runs.fail_many(MailTask), failing(300), 300),
    many("sleep", runs.sleep(MailTask), {**one, "wake": later}, 1),
    many("fence of a child's spawn", waits.touch(MailTask, wait=False), one, 1),
    Case("statuses", claim_stmt.statuses(MailTask), {"ids": ids(*RUNNING[:300])}, {PKEY}, touches=1200),
    Case(
        "history",
        history.attempts(MailTask),
        {"task_id": row(7)},
        {"uq_mail_runs_attempt", PKEY},
        touches=20,
    ),
    Case(
        "checkpoints of a batch",
        checkpoints.load(MailTask),
        {"ids": ids(*RUNNING[:500])},
        {"mail_checkpoints_pkey"},
        touches=500 * 5,
    ),
    Case(
        "a checkpoint",
        checkpoints.find(MailTask),
        {"id": row(RUNNING[0]), "name": "step 1"},
        {"mail_checkpoints_pkey"},
        touches=10,
    ),
    Case("save", checkpoints.save(MailTask), {**step, "value": "1"}, {RUNS}, touches=40, locks=1),
    Case(
        "save of a sleep's time",
        checkpoints.save_wake_time(MailTask),
        {**step, "delay": MINUTE, "until": None},
        {RUNS},
        touches=40,
        locks=1,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_worker_s_statement_reads_its_share_by_its_index(engine, mode, case):
    check(engine, case, mode)


def test_the_dataset_is_as_large_as_the_acceptance_criteria_say():
    assert [len(part) for part in (UNKNOWN, PENDING, RUNNING, SLEEPING)] == [100_000, 50_000, 10_000, 100_000]
