"""PostgreSQL keeps the plans of a worker's statements: planning each execution takes longer than executing it."""

from __future__ import annotations

import pytest

from tests.plans import test_run_plans, test_sweep_plans, test_wait_plans
from tests.plans.explaining import kept

OFTEN = [
    *test_run_plans.CASES,
    *test_sweep_plans.IDLE,
    *test_sweep_plans.BUSY,
    *test_sweep_plans.KIN,
    *test_wait_plans.IDLE,
    *test_wait_plans.BUSY,
    *test_wait_plans.CASES,
]
# These are rare, and their best plan depends on how many rows are old enough.
SELDOM = {"clean-up of tasks", "clean-up of events", "waits of what has ended"}


@pytest.mark.parametrize("case", [case for case in OFTEN if case.name not in SELDOM], ids=str)
def test_a_statement_s_plan_is_kept(engine, case):
    assert kept(engine, case)
