"""The proof that the checker can fail: without each of the library's protections, the same faults are found to do harm.

The runs are those of test_workers.py, which find nothing with the library as it is. Harm is a matter of chance, and of the
machine's speed: each variant gets as many short runs as fit into the time of the longest of them.
"""

from __future__ import annotations

import pytest
from sqlalchemy import text

from tests.faults import checker, scenarios
from tests.faults.app import TASKS
from tests.faults.load import Load

SECONDS = 8.0
RUNS = 7


@pytest.fixture
def caught(loaded):
    """`caught(variant, scenario, *rules)`: without a protection, one of the rules is found not to hold."""

    def caught(variant: str, scenario, *rules: str, **options) -> bool:
        options = {"patience": 15.0, **options}
        for _ in range(RUNS):
            with loaded(f"without: {variant}", SECONDS, broken=variant, **options) as load:
                scenario(load)
                figures = load.settle()
            for finding in figures.findings:
                figures.notes[f"caught ({finding.rule})"] = finding.count
            broken = {finding.rule for finding in figures.findings}
            figures.findings.clear()  # they are what was to be shown
            if broken.intersection(rules):
                return True
        return False

    return caught


def nothing(_: Load) -> None: ...


def test_a_token_that_is_not_checked_is_found(caught):
    rules = (checker.LATE, checker.DUPLICATE, checker.STALE_END)
    assert caught("token check off", scenarios.skip_time, *rules, **scenarios.SLOWLY)


def test_a_sweep_that_believes_what_it_has_read_is_found(caught):
    assert caught("sweep without re-check", scenarios.skip_time, checker.TAKEN_EARLY, **scenarios.SLOWLY)


def test_an_insert_without_its_conflict_clause_is_found(caught):
    assert caught("insert without conflict clause", nothing, checker.SPAWN_ERROR)


def test_an_insert_without_its_conflict_clause_and_its_index_is_found(caught):
    def forget_uniqueness(load: Load) -> None:
        index = f"uq_{TASKS}_key"
        with load.engine.begin() as connection:
            connection.execute(text(f"DROP INDEX {index}"))
            connection.execute(text(f"CREATE INDEX {index} ON {TASKS} (idempotency_key)"))

    assert caught("insert without conflict clause", forget_uniqueness, checker.TWO_TASKS)


def test_a_checkpoint_outside_of_the_transaction_is_found(caught):
    rules = (checker.LOST_EFFECT, checker.DUPLICATE)
    assert caught("checkpoint outside the transaction", scenarios.kill_workers, *rules)


def test_a_heartbeat_on_the_event_loop_is_found(caught):
    options = {"workers": 2, "tasks": 40, "job": {"lease": 3.0}}
    assert caught("heartbeat on the event loop", scenarios.block_loops, checker.LIVING_LOST, **options)
