"""The proof that the checker can fail: without each of the library's protections, the same faults are found to do harm.

The runs are those of test_workers.py, which find nothing with the library as it is.
"""

from __future__ import annotations

import pytest
from sqlalchemy import text

from tests.faults import checker, scenarios
from tests.faults.app import TASKS
from tests.faults.load import Load

SECONDS = 8.0


@pytest.fixture
def found(loaded):
    """`found(variant, scenario)`: the rules that don't hold without a protection."""

    def run(variant: str, scenario, **options) -> set[str]:
        options = {"patience": 15.0, **options}
        with loaded(f"without: {variant}", SECONDS, broken=variant, **options) as load:
            scenario(load)
            figures = load.settle()
        for finding in figures.findings:
            figures.notes[f"caught ({finding.rule})"] = finding.count
        rules = {finding.rule for finding in figures.findings}
        figures.findings.clear()  # they are what was to be shown
        return rules

    return run


def nothing(_: Load) -> None: ...


def test_a_token_that_is_not_checked_is_found(found):
    rules = found("token check off", scenarios.skip_time, **scenarios.SLOWLY)
    assert rules & {checker.LATE, checker.DUPLICATE, checker.STALE_END}


def test_a_sweep_that_believes_what_it_has_read_is_found(found):
    assert checker.TAKEN_EARLY in found("sweep without re-check", scenarios.skip_time, **scenarios.SLOWLY)


def test_an_insert_without_its_conflict_clause_is_found(found):
    assert checker.SPAWN_ERROR in found("insert without conflict clause", nothing)


def test_an_insert_without_its_conflict_clause_and_its_index_is_found(found):
    def forget_uniqueness(load: Load) -> None:
        index = f"uq_{TASKS}_key"
        with load.engine.begin() as connection:
            connection.execute(text(f"DROP INDEX {index}"))
            connection.execute(text(f"CREATE INDEX {index} ON {TASKS} (idempotency_key)"))

    assert checker.TWO_TASKS in found("insert without conflict clause", forget_uniqueness)


def test_a_checkpoint_outside_of_the_transaction_is_found(found):
    rules = found("checkpoint outside the transaction", scenarios.kill_workers)
    assert rules & {checker.LOST_EFFECT, checker.DUPLICATE}


def test_a_heartbeat_on_the_event_loop_is_found(found):
    options = {"workers": 2, "tasks": 40, "job": {"lease": 3.0}}
    assert checker.LIVING_LOST in found("heartbeat on the event loop", scenarios.block_loops, **options)
