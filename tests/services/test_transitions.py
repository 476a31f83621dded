"""The database records every change of a task's state; the transition table knows all of them."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from sa_durable import Durable, InvalidState, TaskState
from sa_durable.values import TERMINAL, TRANSITIONS, Operation
from tests.databases import throwaway
from tests.services import state_changes
from tests.services.state_changes import LIVES, live
from tests.shop import Base, BillingTask, charge

pytestmark = pytest.mark.service

RECORDER = """
CREATE TABLE moves (before text, after text);
CREATE FUNCTION record_move() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO moves VALUES (CASE WHEN TG_OP = 'UPDATE' THEN OLD.state END, NEW.state);
    RETURN NULL;
END $$;
CREATE TRIGGER record_move AFTER INSERT OR UPDATE OF state ON durable_billing_tasks
    FOR EACH ROW EXECUTE FUNCTION record_move();
"""


def allowed(*verbs: Operation) -> set[tuple[str | None, str]]:
    return {
        (before and before.value, after.value)
        for (before, verb), afters in TRANSITIONS.items()
        if verb in verbs
        for after in afters
    }


@pytest.mark.owner
def test_the_spawn_side_makes_exactly_the_transitions_of_spawn_and_cancel(server_url):
    with throwaway(server_url, Base.metadata) as engine:
        with engine.begin() as connection:
            connection.execute(text(RECORDER))

        def recorded() -> set[tuple[str | None, str]]:
            with engine.begin() as connection:
                rows = connection.execute(text("SELECT DISTINCT before, after FROM moves")).all()
                connection.execute(text("TRUNCATE moves"))
                return {(before, after) for before, after in rows}

        later = {"delay": timedelta(hours=1)}
        with Session(engine) as session, session.begin():
            durable = Durable(session)
            for first in ({}, later):
                for second in ({}, later):
                    key = {"idempotency_key": f"{first} {second}", "on_duplicate": "update"}
                    durable.spawn(charge.call(1), **key, **first)
                    durable.spawn(charge.call(2), **key, **second)
            session.add(charge.task(1))
            durable.spawn_many([charge.call(1), charge.call(2).using(**later)])
        assert recorded() == allowed(Operation.SPAWN)

        with Session(engine) as session, session.begin():
            durable = Durable(session)
            for life, end in [(life, end) for life in LIVES for end in ("replace", "cancel")]:
                key = {"idempotency_key": f"{life} {end}"}
                spawned = durable.spawn(charge.call(1), **key)
                live(session, spawned.task_id, life)
                before = durable.result(spawned).state
                session.execute(text("TRUNCATE moves"))
                if end == "replace":
                    durable.spawn(charge.call(1), **key, on_duplicate="replace")
                    session.execute(text("DELETE FROM moves WHERE before IS NULL"))
                else:
                    durable.cancel(spawned)
                seen = set(session.execute(text("SELECT before, after FROM moves")).all())
                assert seen == (set() if before in TERMINAL else {(before, "cancelled")}), (life, end)


@pytest.mark.owner
def test_retries_make_exactly_the_transitions_of_retry(server_url):
    with throwaway(server_url, Base.metadata) as engine, Session(engine) as session, session.begin():
        session.execute(text(RECORDER))
        durable = Durable(session)
        seen = set()
        for life, as_new in [(life, as_new) for life in LIVES for as_new in (False, True)]:
            task = durable.spawn(charge.call(1), idempotency_key=f"{life} {as_new}")
            live(session, task.task_id, life)
            before = durable.result(task).state
            session.execute(text("TRUNCATE moves"))
            with suppress(InvalidState):
                durable.retry(task, as_new=as_new)
            moved = session.execute(text("SELECT before, after FROM moves")).all()
            retried = before in (TaskState.FAILED, TaskState.CANCELLED)
            assert len(moved) == retried, life
            if as_new:
                assert {tuple(move) for move in moved} <= {(None, "pending")}
            else:
                seen |= {tuple(move) for move in moved}
        assert seen == allowed(Operation.RETRY)


@pytest.mark.owner
def test_asking_and_releasing_change_no_state(server_url):
    with throwaway(server_url, Base.metadata) as engine, Session(engine) as session, session.begin():
        durable = Durable(session)
        expired = {"hold": "forever", "key_ttl": timedelta(microseconds=1)}
        over = durable.spawn(charge.call(1), idempotency_key="expired", **expired)
        live(session, over.task_id, "completed")
        kept = durable.spawn(charge.call(1), idempotency_key="k")
        session.execute(text(RECORDER))
        durable.find_by_key(BillingTask, "k")
        durable.release_key(BillingTask, "k")
        durable.result(kept)
        durable.spawn(charge.call(1), idempotency_key="expired")
        assert session.execute(text("SELECT before, after FROM moves")).all() == [(None, "pending")]


def test_only_a_retry_leaves_a_terminal_state():
    assert {verb for before, verb in TRANSITIONS if before in TERMINAL} == {Operation.RETRY}
    assert {after for afters in TRANSITIONS.values() for after in afters} == set(TaskState)


def test_moves_that_the_table_doesnt_know_are_refused_by_these_tests(scratch):
    spawned = Durable(scratch).spawn(charge.call(1))
    with pytest.raises((AssertionError, KeyError)):
        state_changes.complete(scratch, spawned.task_id)  # it was never claimed
