"""What has passed through, and can't be vacuumed, costs a claim nothing that begins behind it (decision 0010)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from sa_durable import Durable
from sa_durable.services import claims, runs
from sa_durable.services.runs import Completed
from sa_durable.services.watermark import ALWAYS, HIGHEST, LOWEST, ScanRange
from sa_durable.statements import claims as stmt
from sa_durable.statements.arrays import texts
from tests.apps import application
from tests.databases import throwaway
from tests.plans.explaining import Plan, as_sent, explain

LEASE = timedelta(minutes=1)
PASSED, PAGES = 10_000, 200  # and they fill at least so many pages
CLAIM: dict[str, Any] = {"worker": "w", "lease": LEASE, "limit": 10}


Base, PassingTask = application(PassingTask="passing")


@PassingTask.handler()
def charge(ctx: object, order_id: int) -> None: ...


@pytest.fixture(scope="module")
def bloated(server_url: str):
    """A queue that 10,000 tasks that were due long ago have passed through, and 20 are ready, while a transaction holds its snapshot."""
    with throwaway(server_url, Base.metadata) as engine, engine.connect() as holder:
        holder.execution_options(isolation_level="REPEATABLE READ").execute(text("SELECT 1"))
        spawn(engine, PASSED, run_at=datetime(2026, 1, 1, tzinfo=UTC))
        with Session(engine) as session, session.begin():
            options = {**CLAIM, "limit": PASSED, "names": ["charge"]}
            claimed = claims.claim(session, PassingTask, **options)
            assert len(claimed) == PASSED
            ended = [Completed(claim.task_id, claim.token, "null") for claim in claimed]
            runs.complete_many(session, PassingTask, ended)
        spawn(engine, 20)
        yield engine


def spawn(engine: Engine, number: int, **options: Any) -> None:
    with Session(engine) as session, session.begin():
        Durable(session).spawn_many((charge.call(order_id=n) for n in range(number)), **options)


def plan(engine: Engine, mode: str, *, behind: bool) -> Plan:
    front = claims.scan_arrays(
        [ScanRange(LOWEST, -1, ALWAYS), ScanRange(0, 0, LEASE), ScanRange(1, HIGHEST, ALWAYS)]
    )
    parameters = {**CLAIM, "names": texts(["charge"]), **(front if behind else {})}
    with Session(engine) as session:
        sent = as_sent(session.connection(), stmt.claim(PassingTask, behind=behind), parameters)
        return explain(session, *sent, mode)


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
def test_a_claim_that_begins_behind_what_has_passed_reads_none_of_it(bloated, mode):
    everything, found = (plan(bloated, mode, behind=behind) for behind in (False, True))
    assert everything.touched >= found.touched + PAGES, "or else this test tests nothing"
    assert "ix_durable_passing_tasks_ready" in found.indexes
    assert found.locked == 10
    assert found.touched < PAGES
    scans = [node for node in found.nodes if node.get("Index Name") == "ix_durable_passing_tasks_ready"]
    walked = sum(node["Shared Hit Blocks"] + node["Shared Read Blocks"] for node in scans)
    assert walked <= 20, "no more of the index than a few pages, on every version of PostgreSQL"
    assert "Sort" not in {
        child["Node Type"]
        for node in found.nodes
        if node["Node Type"] == "LockRows"
        for child in node["Plans"]
    }
