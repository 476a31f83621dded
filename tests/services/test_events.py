"""Emitting events, and which of them counts. (B14 to B17; with workers: tests/runtime/test_events.py)"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from sa_durable import Durable, InvalidEvent, UnknownQueue
from sa_durable.ids import uuid7
from sa_durable.services import events
from sa_durable.services.waits import Arrived
from tests.services import waiting
from tests.services.clients import CLIENTS, open_client
from tests.services.observed import statements
from tests.services.waiting import emit, events_of, tick, wait
from tests.shop import BillingTask, MailTask, Order
from tests.waiting import in_thread, wait_until_blocked

pytestmark = pytest.mark.service


@dataclass
class Paid:
    order_id: int
    amount: Decimal


@pytest.mark.parametrize("kind", CLIENTS)
def test_an_event_is_there_once_the_caller_commits_and_not_before(engine, database_url, kind):
    with open_client(kind, database_url) as client:
        client.durable.emit_event(MailTask, "paid", {"order": 7})
        client.durable.emit_event(MailTask, "paid:nothing")
        assert events_of(engine) == []
        client.session.commit()
        assert events_of(engine) == [
            ("paid", {"order": 7}, False, False),
            ("paid:nothing", None, False, False),
        ]
        client.durable.emit_event(MailTask, "rolled back")
        client.session.rollback()
        client.session.add(Order(id=1))
        savepoint = client.savepoint()
        client.durable.emit_event(MailTask, "rolled back to a savepoint")
        savepoint.rollback()
        client.durable.emit_event(BillingTask, "elsewhere", [1])
        client.session.commit()
    assert len(events_of(engine)) == 2 and events_of(engine, BillingTask) == [
        ("elsewhere", [1], False, False)
    ]


@pytest.mark.parametrize("kind", CLIENTS)
def test_emitting_one_name_twice_at_once_is_no_conflict_when_serializable(engine, database_url, kind):
    strict = {"isolation": "SERIALIZABLE"}
    with open_client(kind, database_url, **strict) as one, open_client(kind, database_url, **strict) as other:
        for client in (one, other):
            client.durable.emit_event(MailTask, "e", 1)
        one.session.commit()
        other.session.commit()
    assert len(events_of(engine)) == 2


@pytest.mark.direct(reason="prepared statements and their plans")
@pytest.mark.parametrize("kind", CLIENTS)
def test_an_emit_is_one_insert_however_often_it_is_prepared_and_run(engine, database_url, kind):
    with open_client(kind, database_url, plan_cache_mode="force_generic_plan") as client:
        client.durable.emit_event(MailTask, "e")
        with statements(client.engine) as sent:
            for n in range(30):
                client.durable.emit_event(MailTask, f"e{n}", {"n": n})
        assert [sql.split()[0] for sql in sent] == ["INSERT"] * 30
        client.session.rollback()


def test_a_payload_is_what_json_makes_of_its_type(engine):
    moment = datetime(2026, 1, 2, tzinfo=UTC)
    for payload in (Paid(7, Decimal("1.50")), moment, [Decimal(1)], "text", 2**70, {"a": {"b": None}}):
        emit(engine, "e", payload)
    assert [payload for _, payload, _, _ in events_of(engine)] == [
        {"order_id": 7, "amount": "1.50"},
        "2026-01-02T00:00:00Z",
        ["1"],
        "text",
        2**70,
        {"a": {"b": None}},
    ]


def test_what_cannot_be_an_event_is_refused_and_the_transaction_goes_on(engine, session):
    durable = Durable(session)
    for name in ("", "x" * 256, "a\0b", "line\nbreak", "$task:1", "\ud800", 7, None):
        with pytest.raises(InvalidEvent, match="event name"):
            durable.emit_event(MailTask, name)
    for payload in (float("nan"), "a\0b", {1: {2: object()}}, "\ud800", "x" * 2_000_000):
        with pytest.raises(InvalidEvent, match="payload of event 'e'"):
            durable.emit_event(MailTask, "e", payload)
    with pytest.raises(UnknownQueue):
        durable.emit_event(Order, "e")
    durable.emit_event(MailTask, "größe #2 / " + "x" * 244)
    session.commit()
    assert len(events_of(engine)) == 1


def test_earliest_visible_row_of_a_name_is_the_event(engine):  # B16
    emit(engine, "e", "first")
    emit(engine, "e", "second")
    emit(engine, "other", "its own")
    tick(engine)
    emit(engine, "e", "third")
    tick(engine)
    assert events_of(engine) == [
        ("e", "first", True, False),
        ("e", "second", True, True),
        ("other", "its own", True, False),
        ("e", "third", True, True),
    ]
    assert wait(engine, waiting.run(engine), waiting.event("e")) == Arrived({"payload": "first"})


def test_earlier_row_that_commits_late_does_not_replace_the_event(engine, session):  # B16
    Durable(session).emit_event(MailTask, "e", "earlier, but open")
    emit(engine, "e", "later, but there")
    tick(engine)
    session.commit()
    tick(engine)
    assert wait(engine, waiting.run(engine), waiting.event("e")) == Arrived({"payload": "later, but there"})
    assert [dropped for *_, dropped in events_of(engine)] == [True, False]


def test_run_that_needs_an_event_settles_it_for_others_too(engine):  # B14
    other = waiting.run(engine)
    assert wait(engine, other, waiting.event("e")) is None
    emit(engine, "e", 1)
    emit(engine, "e", 2)
    assert wait(engine, waiting.run(engine), waiting.event("e")) == Arrived({"payload": 1})
    assert tick(engine) == 1 and waiting.claim(engine).task_id == other.task_id
    emit(engine, "e", 3)
    assert tick(engine) == 0  # the second wakes nobody (B16)


def test_emits_in_opposite_orders_do_not_wait_for_each_other(engine, session):  # B17
    with Session(engine) as rival:
        for one, other, names in ((session, rival, "ab"), (rival, session, "ba")):
            one.execute(text("SET LOCAL lock_timeout = '30s'"))
            Durable(one).emit_event(MailTask, names[0])
            Durable(other).emit_event(MailTask, names[0])
        session.commit()
        rival.commit()
    assert sorted(name for name, *_ in events_of(engine)) == ["a", "a", "b", "b"]


def test_settling_takes_its_limit_and_says_that_there_is_more(engine, session):
    for n in range(5):
        emit(engine, f"e{n}")
    found = [events.settle(session, MailTask, limit=2) for _ in range(4)]
    assert [(settled.names, settled.more) for settled in found] == [
        (2, True),
        (2, True),
        (1, False),
        (0, False),
    ]


def test_two_workers_settle_different_names_and_neither_waits(engine, session):
    emit(engine, "e0")
    emit(engine, "e1")
    with Session(engine) as rival:
        assert events.settle(rival, MailTask, limit=1).names == 1
        settled = events.settle(session, MailTask, limit=10)  # passes over what the rival is at
        assert (settled.names, settled.more) == (1, False)
        session.commit()
        rival.rollback()
    assert [done for _, _, done, _ in events_of(engine)] == [False, True]


@pytest.mark.pooled(connections=3, reason="who locks, who waits for that, who looks")
def test_run_waits_while_another_worker_settles_its_event(engine, session):
    emit(engine, "e", 1)
    events.settle(session, MailTask, limit=10)
    with Session(engine) as rival:
        pid = rival.scalar(text("SELECT pg_backend_pid()"))
        done = in_thread(events.settle_one, rival, MailTask, "e")
        wait_until_blocked(engine, pid)
        session.commit()
        done.result(20)
        rival.commit()
    assert events_of(engine) == [("e", 1, True, False)]


def test_manually_inserted_internal_event_blocks_no_task(engine):
    with Session(engine) as session, session.begin():
        session.add(MailTask.Event(id=uuid7(), name="$task:7", payload=None))
    emit(engine, "e", 1)
    tick(engine)
    assert events_of(engine) == [("e", 1, True, False)]
