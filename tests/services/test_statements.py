"""What goes over the wire: how many statements, and that each still works once it is prepared."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from sa_durable import Durable
from tests.services.clients import CLIENTS, open_client
from tests.services.observed import statements
from tests.shop import BillingTask, Order, charge, send_mail

pytestmark = pytest.mark.service

TIMES = 30  # psycopg prepares after 5, PostgreSQL considers a generic plan after 5 more
KEY = {"idempotency_key": "k"}
FOREVER = {**KEY, "hold": "forever", "key_ttl": timedelta(days=1)}
EXPIRED = {**KEY, "hold": "forever", "key_ttl": timedelta(microseconds=1)}


def end(client) -> None:
    client.session.execute(
        update(BillingTask).values(state="completed", key_expires_at=func.statement_timestamp())
    )


# A6: every statement of the spawn side, by a use of it that is repeated on one connection
USES = {
    "a new task": lambda d, _: d.durable.spawn(charge.call(1)).created,
    "a new task with columns": lambda d, _: d.durable.spawn(charge.call(1), columns={"order_id": 1}).created,
    "a new task, later": lambda d, _: d.durable.spawn(charge.call(1), delay=timedelta(hours=1)).created,
    "a new key": lambda d, n: d.durable.spawn(charge.call(1), idempotency_key=f"{n}").created,
    "a new key, later, with columns": lambda d, n: (
        d.durable.spawn(
            charge.call(1),
            **{**FOREVER, "idempotency_key": f"{n}"},
            delay=timedelta(1),
            columns={"order_id": 1},
        ).created
    ),
    "the same key": lambda d, n: d.durable.spawn(charge.call(1), **KEY).created is (n == 0),
    "the same key, forever": lambda d, n: d.durable.spawn(charge.call(1), **FOREVER).created is (n == 0),
    "once": lambda d, n: d.durable.spawn(charge.call(1), only_once=True).created is (n == 0),
    "update": lambda d, n: (
        d.durable.spawn(charge.call(n), **KEY, on_duplicate="update", delay=timedelta(hours=n)).params_match
    ),
    "replace": lambda d, n: d.durable.spawn(charge.call(n), **KEY, on_duplicate="replace").created,
    "an expired key": lambda d, _: end(d) or d.durable.spawn(charge.call(1), **EXPIRED).created,
    "a batch of new tasks": lambda d, n: all(
        s.created for s in d.durable.spawn_many([charge.call(n), charge.call(n + 1)])
    ),
    "a batch of keys": lambda d, n: (
        [
            s.created
            for s in d.durable.spawn_many(charge.call(1).using(idempotency_key=f"{n + i}") for i in range(2))
        ]
        == [n == 0, True]
    ),
    "a batch of equal options": lambda d, n: (
        d.durable.spawn_many([charge.call(1)], **KEY)[0].created is (n == 0)
    ),
    "a batch with columns": lambda d, n: (
        [
            s.created
            for s in d.durable.spawn_many(
                [charge.call(1).using(idempotency_key=f"{n + i}") for i in range(2)], columns={"order_id": 1}
            )
        ]
        == [n == 0, True]
    ),
    "find and release": lambda d, _: (
        d.durable.spawn(charge.call(1), **KEY).created
        and d.durable.find_by_key(BillingTask, "k")
        and d.durable.release_key(BillingTask, "k")
        and d.durable.find_by_key(BillingTask, "k") is None
    ),
    "cancel": lambda d, _: d.durable.cancel(d.durable.spawn(charge.call(1))),
    "result": lambda d, _: d.durable.result(d.durable.spawn(charge.call(1))).state == "pending",
}


@pytest.mark.direct(reason="prepared statements and their plans")
@pytest.mark.parametrize("plan", ["auto", "force_generic_plan"])
@pytest.mark.parametrize("kind", CLIENTS)
def test_every_statement_works_however_often_it_is_prepared_and_run(engine, database_url, kind, plan):  # A6
    with open_client(kind, database_url, plan_cache_mode=plan) as client:
        for use, once in USES.items():
            client.session.add(Order(id=1))
            for n in range(TIMES if plan == "auto" else 3):
                assert once(client, n), f"{use}, time {n}"
            client.session.rollback()


@pytest.mark.parametrize("kind", CLIENTS)
def test_the_same_key_in_one_transaction_thirty_times(engine, database_url, kind):  # A6
    with open_client(kind, database_url) as client:
        spawned = [client.durable.spawn(charge.call(1), **KEY) for _ in range(TIMES)]
        assert [s.created for s in spawned] == [True] + [False] * (TIMES - 1)
        assert len({s.task_id for s in spawned}) == 1


def verbs(sent: list[str]) -> list[str]:
    return [sql.split()[0] for sql in sent]


# How many statements a call of the service costs, once its pool has seen the table.
COSTS = {
    "a new task": (lambda d: d.spawn(charge.call(1)), ["INSERT"]),
    "a new key": (lambda d: d.spawn(charge.call(1), idempotency_key="new"), ["INSERT"]),
    "a new task with every option": (
        lambda d: d.spawn(
            charge.call(1),
            **{**FOREVER, "idempotency_key": "new"},
            delay=timedelta(1),
            columns={"order_id": 1},
        ),
        ["INSERT"],
    ),
    "a duplicate": (lambda d: d.spawn(charge.call(1), **KEY), ["INSERT", "SELECT"]),
    "a duplicate to be updated": (
        lambda d: d.spawn(charge.call(1), **KEY, on_duplicate="update"),
        ["INSERT", "SELECT", "UPDATE"],
    ),
    "looking at a spawned task's id": (lambda d: d.spawn(charge.call(1)).task.id, ["INSERT"]),
    "an expired key": (
        lambda d: d.spawn(charge.call(1), idempotency_key="expired"),
        ["INSERT", "SELECT", "UPDATE", "INSERT"],
    ),
    "a batch of new tasks": (
        lambda d: d.spawn_many([charge.call(n) for n in range(100)]),
        ["SAVEPOINT", "WITH", "RELEASE"],
    ),
    "a batch of keys, one held": (
        lambda d: d.spawn_many(charge.call(n).using(idempotency_key=k) for n, k in enumerate("akb")),
        ["SAVEPOINT", "SAVEPOINT", "WITH", "SELECT", "RELEASE", "RELEASE"],
    ),
    "a batch with columns": (
        lambda d: d.spawn_many(
            (charge.call(n).using(idempotency_key=k) for n, k in enumerate("akb")), columns={"order_id": 1}
        ),
        ["SAVEPOINT", "SAVEPOINT", "INSERT", "SELECT", "RELEASE", "RELEASE"],
    ),
    "a batch of two queues": (
        lambda d: d.spawn_many([charge.call(1), send_mail.call("ada")]),
        ["SAVEPOINT", "WITH", "WITH", "RELEASE"],
    ),
    "find_by_key": (lambda d: d.find_by_key(BillingTask, "k"), ["SELECT"]),
    "release_key": (lambda d: d.release_key(BillingTask, "k"), ["UPDATE"]),
}


@pytest.mark.parametrize("use", COSTS)
def test_a_call_costs_so_many_statements(engine, use):
    call, expected = COSTS[use]
    with Session(engine) as session:
        durable = Durable(session)
        session.add(Order(id=1))
        durable.spawn(
            charge.call(1), idempotency_key="expired", hold="forever", key_ttl=timedelta(microseconds=1)
        )
        session.execute(update(BillingTask).values(state="completed"))
        durable.spawn(charge.call(1), **KEY)
        durable.spawn(send_mail.call("ada"))
        with statements(engine) as sent:
            call(durable)
        assert verbs(sent) == expected
        assert session.scalar(select(func.count()).select_from(BillingTask)) >= 2
