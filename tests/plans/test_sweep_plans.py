"""Statements that depend on the clock read a few pages if nothing is due, and their share if much is."""

from __future__ import annotations

from datetime import timedelta

import pytest

from sa_durable.models import queues_beside
from sa_durable.statements import cancellation, cleanup, maintenance
from sa_durable.statements import claims as claim_stmt
from sa_durable.statements import polling as polling_stmt
from sa_durable.statements.arrays import uuids
from tests.plans.explaining import LITTLE, Case, check
from tests.plans.large_dataset import EXPIRED, RUNNING, TERMINAL, row
from tests.shop import BillingTask, MailTask

UPDATE = 40  # buffers: a search of each index of the table, twice if the row moves
BOTH = tuple(queues_beside(MailTask))
IDS = {"ids": uuids(row(n) for n in RUNNING[:500])}
YEAR, HOUR = timedelta(days=365), timedelta(hours=1)

IDLE = [
    Case("promote", maintenance.promote(MailTask), {"limit": 500}, {"ix_mail_tasks_due"}, touches=LITTLE),
    Case(
        "what is due",
        polling_stmt.due((MailTask,)),
        {"names_0": '{"none"}'},
        {
            "ix_mail_tasks_ready",
            "ix_mail_tasks_due",
            "ix_mail_events_unsettled",
            "ix_mail_waits_settled",
            "ix_mail_waits_event",
        },
        touches=LITTLE,
    ),
    # The 10,000 that are running, as for "expired".
    Case(
        "what has ended",
        polling_stmt.expired((MailTask,)),
        {},
        {"ix_mail_tasks_running", "ix_mail_tasks_cancel"},
        touches=3000,
    ),
    Case("overdue", cancellation.overdue(MailTask), {"limit": 100}, {"ix_mail_tasks_cancel"}, touches=LITTLE),
    Case("next overdue", cancellation.next_overdue(MailTask), {}, {"ix_mail_tasks_cancel"}, touches=LITTLE),
    # All 10,000 running tasks, and whatever else their pages hold.
    Case("expired", claim_stmt.expired(MailTask), {"limit": 100}, {"ix_mail_tasks_running"}, touches=3000),
    Case(
        "clean-up of tasks",
        cleanup.delete_finished(MailTask, BOTH),
        {"older_than": YEAR, "limit": 500},
        {"ix_mail_tasks_finished"},
    ),
    Case(
        "clean-up of events",
        cleanup.delete_settled(MailTask, BOTH),
        {"older_than": YEAR, "limit": 500},
        {"ix_mail_events_settled"},
    ),
]


@pytest.mark.parametrize("case", IDLE, ids=str)
def test_a_sweep_that_finds_nothing_due_reads_nothing_that_waits(engine, mode, case):
    check(engine, case, mode)


BUSY = [
    # Also the 10,000 tasks that are ready and overdue, which a claim passes over, too.
    Case(
        "what is due, in both",
        polling_stmt.due(BOTH),
        {"names_0": '{"charge","send"}', "names_1": '{"charge","send"}'},
        {"ix_billing_tasks_due", "ix_mail_tasks_ready"},
        touches=80 + 600,
    ),
    Case("what has ended, in one", polling_stmt.expired((BillingTask,)), {}, {"ix_billing_tasks_running"}),
    Case(
        "promote",
        maintenance.promote(BillingTask),
        {"limit": 100},
        {"ix_billing_tasks_due", "billing_tasks_pkey"},
        touches=100 * UPDATE,
        locks=100,
    ),
    Case(
        "overdue",
        cancellation.overdue(BillingTask),
        {"limit": 100},
        {"ix_billing_tasks_cancel"},
        touches=400,
        locks=100,
    ),
    # Sorts all running tasks by the end of their leases, which is in no index.
    Case(
        "expired",
        claim_stmt.expired(BillingTask),
        {"limit": 100},
        {"ix_billing_tasks_running"},
        touches=len(EXPIRED),
        locks=100,
    ),
    Case(
        "clean-up of tasks",
        cleanup.delete_finished(MailTask, (MailTask,)),
        {"older_than": HOUR, "limit": 50},
        {"ix_mail_tasks_finished", "mail_tasks_pkey"},
        touches=50 * 20,
        locks=50,
    ),
    Case(
        "clean-up of events",
        cleanup.delete_settled(MailTask, (MailTask,)),
        {"older_than": HOUR, "limit": 50},
        {"ix_mail_events_settled", "mail_events_pkey"},
        # Also reads, once, the 150,000 ready tasks on some 4,600 pages: have some waited for too long?
        touches=50 * 40 + 6000,
        locks=50,
    ),
]


@pytest.mark.parametrize("case", BUSY, ids=str)
def test_a_sweep_that_finds_much_reads_its_share(engine, mode, case):
    check(engine, case, mode)


KIN = [
    Case("children of one", cancellation.children(MailTask), {"ids": uuids([row(RUNNING[2])])}, {"ix_mail_tasks_parent"}),
    Case("children of many", cancellation.children(MailTask), IDS, {"ix_mail_tasks_parent"}, touches=3000),
    Case("with children", cancellation.with_children(MailTask, "mail"), IDS, {"ix_mail_tasks_parent"}, touches=3000),
    Case("lock", cancellation.lock_active(MailTask), IDS, {"mail_tasks_pkey"}, touches=500 * 6, locks=500),
    Case("cancel", cancellation.cancel(MailTask, notify=True), {**IDS, "error": None}, {"mail_tasks_pkey"}, touches=500 * UPDATE),
    Case("history", cancellation.insert_cancelled_runs(MailTask), IDS, {"mail_tasks_pkey"}, touches=500 * UPDATE),
    Case(
        "announce",
        cancellation.announce(MailTask, notify=True),
        IDS,
        {"mail_tasks_pkey", "mail_waits_pkey"},
        touches=500 * UPDATE,
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", KIN, ids=str)
def test_cancelling_a_family_finds_its_members_by_id_and_by_parent(engine, mode, case):
    check(engine, case, mode)


def test_the_history_is_as_long_as_the_acceptance_criteria_say():
    assert len(TERMINAL) == 100_000
