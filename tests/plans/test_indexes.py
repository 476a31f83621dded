"""Every index of a queue's tables serves a statement: its plan is tested, and uses the index."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import Executable

from sa_durable.statements import (
    cancellation,
    claims,
    cleanup,
    events,
    history,
    maintenance,
    polling,
    runs,
    waits,
    wake,
)
from tests.plans import test_run_plans, test_spawn_plans, test_sweep_plans, test_wait_plans
from tests.plans.explaining import Case
from tests.plans.test_sweep_plans import BOTH
from tests.shop import MailTask

CASES: list[Case] = [
    *test_run_plans.CASES,
    *test_sweep_plans.IDLE,
    *test_sweep_plans.BUSY,
    *test_sweep_plans.KIN,
    *test_wait_plans.IDLE,
    *test_wait_plans.BUSY,
    *test_wait_plans.CASES,
]
DUE = polling.due((MailTask,))

# Index, without `ix_durable_mail_` or `uq_durable_mail_`: the statements that need it. Builders return the same object
# for the same arguments, so each of these is the very statement of a case.
SERVES: dict[str, list[Executable]] = {
    "tasks_ready": [claims.claim(MailTask), claims.count_ready(MailTask, named=True), DUE],
    "tasks_due": [maintenance.promote(MailTask), claims.count_ready(MailTask, named=True), DUE],
    "tasks_running": [
        claims.expired(MailTask),
        claims.extend(MailTask),
        claims.release(MailTask),
        runs.complete_many(MailTask),
        runs.fail_many(MailTask),
        runs.sleep(MailTask),
        waits.sleep(MailTask),
        waits.touch(MailTask, wait=False),
        polling.expired((MailTask,)),
    ],
    "tasks_parent": [cancellation.children(MailTask), cancellation.with_children(MailTask, "mail")],
    "tasks_cancel": [
        cancellation.overdue(MailTask),
        cancellation.next_overdue(MailTask),
        polling.expired((MailTask,)),
    ],
    "tasks_finished": [cleanup.delete_finished(MailTask, BOTH)],
    "runs_attempt": [history.attempts(MailTask)],
    "events_name": [events.find(MailTask), events.settle(MailTask), events.discard(MailTask)],
    "events_unsettled": [events.unsettled(MailTask), DUE],
    "events_settled": [cleanup.delete_settled(MailTask, BOTH)],
    "waits_event": [wake.mark_settled(MailTask, notify=True), wake.awaited_events(MailTask), DUE],
    "waits_settled": [wake.wake(MailTask), wake.forget_idle(MailTask), DUE],
}
# Spawns are explained as the services send them.
SERVES_SPAWNS: dict[str, list[Callable[..., None]]] = {
    "tasks_key": [
        test_spawn_plans.test_inserting_a_key_checks_its_own_index,
        test_spawn_plans.test_finding_the_holder_of_a_key_reads_one_leaf_of_its_index,
        test_spawn_plans.test_looking_up_and_releasing_a_key_read_its_index,
    ],
}


def test_every_index_has_a_statement_that_it_serves():
    indexes = {
        index.name.split("_durable_mail_")[1]
        for table in MailTask.metadata.tables.values()
        for index in table.indexes
        if table.name.startswith("durable_mail_")
    }
    assert SERVES.keys() | SERVES_SPAWNS.keys() == indexes
    assert all((*SERVES.values(), *SERVES_SPAWNS.values()))


@pytest.mark.parametrize(
    ("index", "number"), [(index, n) for index, served in SERVES.items() for n in range(len(served))]
)
def test_a_statement_that_an_index_serves_is_explained_and_uses_it(index, number):
    statement = SERVES[index][number]
    uses = {name for case in CASES if case.statement is statement for name in case.uses}
    assert {f"ix_mail_{index}", f"uq_mail_{index}"} & uses
