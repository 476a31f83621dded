"""Events that weren't emitted cost nothing, however many tasks wait for them; emitted events cost their share."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from sa_durable.statements import events, waits
from sa_durable.statements import wake as wake_stmt
from sa_durable.statements.arrays import texts, uuids
from tests.plans.explaining import LITTLE, Case, check
from tests.plans.large_dataset import RUNNING, SLEEPING, row
from tests.shop import BillingTask, MailTask

UPDATE = 40  # buffers: a search of each index of the table, twice if the row moves
OPEN, SETTLED, WAITS = "ix_mail_waits_event", "ix_mail_waits_settled", "mail_waits_pkey"
NAMES = "ix_mail_events_name"
one: dict[str, Any] = {"task_id": row(RUNNING[0]), "held_token": 1}
many = {"ids": uuids(row(n) for n in RUNNING[:300])}


def named(*names: str) -> dict[str, str]:
    return {"names": texts(names)}


never = [f"never {n}" for n in SLEEPING[:300]]

IDLE = [
    Case(
        "unsettled", events.unsettled(MailTask), {"limit": 500}, {"ix_mail_events_unsettled"}, touches=LITTLE
    ),
    Case("wake", wake_stmt.wake(MailTask), {"limit": 500}, {SETTLED}, touches=LITTLE),
    Case("forget idle", wake_stmt.forget_idle(MailTask), {"limit": 500}, {SETTLED}, touches=LITTLE),
    Case(
        "catch up",
        wake_stmt.awaited_events(MailTask),
        {"queues": texts(["billing", "none"]), "after": texts(["", "x"]), "limit": 500},
        {OPEN},
        touches=500,
    ),
]


@pytest.mark.parametrize("case", IDLE, ids=str)
def test_a_poll_that_finds_no_event_reads_nothing_that_waits(engine, mode, case):
    check(engine, case, mode)


BUSY = [
    Case("unsettled", events.unsettled(BillingTask), {"limit": 500}, {"ix_billing_events_unsettled"}),
    Case(
        "settle",
        events.settle(BillingTask),
        named(*(f"event {n}" for n in range(300))),
        {"ix_billing_events_name", "billing_events_pkey"},
        touches=600 * 25,
    ),
    Case(
        "wake",
        wake_stmt.wake(BillingTask),
        {"limit": 100},
        {"ix_billing_waits_settled", "billing_waits_pkey", "billing_tasks_pkey"},
        touches=1000 * 8 + 100 * UPDATE,  # it passes over a thousand that wait for more
        locks=100,
    ),
    Case(
        "forget waits of steps that wait for more",
        wake_stmt.forget_idle(BillingTask),
        {"limit": 100},
        {"ix_billing_waits_settled"},
        touches=100 * 25,
        locks=100,
    ),
]


@pytest.mark.parametrize("case", BUSY, ids=str)
def test_a_poll_that_finds_many_events_reads_its_share(engine, mode, case):
    check(engine, case, mode)


CASES = [
    Case("find", events.find(MailTask), {"name": "event 7"}, {NAMES}, touches=10),
    Case("find of an event that was not emitted", events.find(MailTask), {"name": "never"}, {NAMES}, touches=10),
    Case("settle one again", events.settle(MailTask), named("event 7"), {NAMES}, touches=10),
    Case("discard", events.discard(MailTask), named(*never), {NAMES}, touches=1000),
    Case(
        "register",
        waits.register(MailTask),
        {**one, "step": "s", **named("a", "b"), "queues": texts(["mail"] * 2), "timeout": timedelta(1)},
        {WAITS},
        touches=60,
        locks=1,
    ),
    Case(
        "narrow",
        waits.narrow(MailTask),
        {**one, "step": "s", "names": texts(["a", "b"])},
        {WAITS},
        touches=60,
        locks=1,
    ),
    Case("sleep", waits.sleep(MailTask), one, {"ix_mail_tasks_running", WAITS}, touches=60),
    Case(
        "forget",
        waits.forget(MailTask),
        {"id": row(RUNNING[0]), "step": "arrived"},
        {WAITS},
        touches=20,
        locks=1,
    ),
    Case(
        "waits for an event",
        wake_stmt.mark_settled(MailTask, notify=False),
        {**named(never[-2]), "queue": "mail"},
        {OPEN},
        touches=60,
    ),
    Case(
        "waits for many events",
        wake_stmt.mark_settled(MailTask, notify=True),
        {**named(*never), "queue": "mail"},
        {OPEN},
        touches=300 * 25,
    ),
    Case(
        "waits of what has ended",
        wake_stmt.forget_ended(MailTask),
        many,
        {WAITS, "mail_tasks_pkey"},
        touches=300 * 15,
    ),
    Case("outcomes", waits.outcomes(MailTask), many, {"mail_tasks_pkey"}, touches=1500),
    Case("mark awaited", waits.mark_awaited(MailTask), {"task_id": one["task_id"]}, {"mail_tasks_pkey"}, touches=60),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_event_s_statement_reads_what_it_names(engine, mode, case):
    check(engine, case, mode)
