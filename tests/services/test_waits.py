"""Waits: registered, woken, timed out and forgotten. (B14 to B18, B21; with workers: tests/runtime/test_events.py and
test_joins.py)"""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import delete, select, text, update
from sqlalchemy.orm import Session

from sa_durable import Cancelled, Durable, LeaseLost
from sa_durable.ids import uuid7
from sa_durable.services import checkpoints, events, maintenance, polling, runs, waits
from sa_durable.services.polling import Due
from sa_durable.services.waits import Arrived, AwaitedTasks, Prerequisites, Registered
from sa_durable.values import TaskError
from tests.services import waiting
from tests.services.claiming import do, expire, row
from tests.services.observed import statements
from tests.services.waiting import (
    MINUTE,
    claim,
    emit,
    ends,
    event,
    let_pass,
    look,
    rows,
    run,
    sleep,
    tick,
    wait,
)
from tests.shop import BillingTask, MailTask
from tests.waiting import in_thread, pid_of, wait_until_blocked

pytestmark = pytest.mark.service

TIMED_OUT = Arrived({"timed_out": True})


def got(payload):
    return Arrived({"payload": payload})


def state(engine, run):
    return row(engine, run.task_id).state


# No lost wake-up


def test_existing_event_is_taken_at_once_and_leaves_no_wait(engine):  # B14
    emit(engine, "e", 7)
    waiter = run(engine)
    assert wait(engine, waiter, event()) == got(7)
    assert (state(engine, waiter), rows(engine)) == ("running", [])


def test_later_event_wakes_only_its_waiters(engine):
    waiter, other = run(engine), run(engine)
    assert wait(engine, waiter, event()) is wait(engine, other, event("another")) is None
    asleep = row(engine, waiter.task_id)
    assert (asleep.state, asleep.available_at, asleep.claimed_by, asleep.lease_expires_at) == (
        ("sleeping", None, None, None)
    )
    assert tick(engine) == 0
    emit(engine, "e", 7)
    assert tick(engine) == 1
    assert (state(engine, waiter), state(engine, other)) == ("pending", "sleeping")
    again = claim(engine)
    assert (again.task_id, again.attempt) == (waiter.task_id, 1)
    assert wait(engine, again, event()) == got(7)
    assert rows(engine) == [("$await:e", "another", False)]


@pytest.mark.parametrize("settled", [False, True])
def test_event_between_the_two_checks_is_seen_by_the_second(engine, settled):  # B15
    waiter = run(engine)
    assert isinstance(look(engine, waiter, event()), Registered)
    emit(engine, "e", 7)
    if settled:
        assert tick(engine) == 0  # it does not sleep yet
        assert rows(engine) == [("$await:e", "e", True)]
        assert sleep(engine, waiter, event()) == got(7)
    else:
        missing = sleep(engine, waiter, event())
        assert isinstance(missing, Prerequisites) and missing.first  # to be decided first
        assert wait(engine, waiter, event()) == got(7)
    assert (state(engine, waiter), rows(engine)) == ("running", [])


def test_an_event_that_comes_while_a_run_goes_to_sleep_wakes_it(engine, session):  # B15
    waiter = run(engine)
    look(engine, waiter, event())
    assert waits.sleep(session, MailTask, waiter, "$await:e", event()) is None
    emit(engine, "e", 7)
    assert tick(engine) == 0  # marked; its row is locked and still says that it runs
    session.commit()
    assert tick(engine) == 1
    assert wait(engine, claim(engine), event()) == got(7)


def test_waiting_does_not_wait_for_an_emit_in_an_open_transaction(engine, session):  # B17
    Durable(session).emit_event(MailTask, "e", 7)
    waiters = [run(engine) for _ in range(3)]
    assert [wait(engine, waiter, event()) for waiter in waiters] == [None, None, None]
    assert tick(engine) == 0
    session.commit()
    assert tick(engine) == 3


def test_rolled_back_emit_wakes_no_task(engine, session):  # B15
    waiter = run(engine)
    wait(engine, waiter, event())
    Durable(session).emit_event(MailTask, "e", 7)
    session.rollback()
    assert (tick(engine), state(engine, waiter)) == (0, "sleeping")


def test_locked_sleeper_blocks_no_other_and_is_woken_once_free(engine, session):  # B3
    locked, other = run(engine), run(engine)
    for waiter in (locked, other):
        wait(engine, waiter, event())
    session.execute(select(MailTask.id).where(MailTask.id == locked.task_id).with_for_update())
    emit(engine, "e", 7)
    assert tick(engine, limit=1) == 1
    assert (state(engine, locked), state(engine, other)) == ("sleeping", "pending")
    session.rollback()
    assert tick(engine) == 1 and state(engine, locked) == "pending"


def test_waits_that_cannot_wake_do_not_block_those_that_can(engine):
    timed, sleeper = [run(engine) for _ in range(3)], run(engine)
    for waiter in timed:
        wait(engine, waiter, event(), timeout=MINUTE)
        let_pass(engine, waiter)
    assert do(engine, maintenance.promote, limit=10).woken == 3  # pending now, their waits still there
    wait(engine, sleeper, event())
    emit(engine, "e", 7)
    assert tick(engine, limit=1) == 1 and state(engine, sleeper) == "pending"
    tick(engine)
    assert rows(engine) == []  # they look for themselves


# Timeouts


def test_a_timeout_counts_from_the_first_time_and_is_remembered(engine):  # B18
    waiter = run(engine)
    assert wait(engine, waiter, event(), timeout=MINUTE) is None
    ends_at = row(engine, waiter.task_id).available_at
    assert do(engine, maintenance.promote, limit=10).next_due <= MINUTE
    let_pass(engine, waiter, MINUTE / 2)
    with Session(engine) as session, session.begin():  # woken for no reason
        session.execute(update(MailTask).values(state="pending"))
    again = claim(engine)
    assert wait(engine, again, event(), timeout=MINUTE) is None
    assert row(engine, waiter.task_id).available_at == ends_at - MINUTE / 2
    let_pass(engine, waiter, MINUTE / 2)
    assert do(engine, maintenance.promote, limit=10).woken == 1
    last = claim(engine)
    assert wait(engine, last, event(), timeout=MINUTE) == TIMED_OUT
    assert rows(engine) == []
    emit(engine, "e", 7)  # too late for this step
    with Session(engine) as session:
        assert checkpoints.find(session, MailTask, waiter.task_id, "$await:e").value == {"timed_out": True}
    assert wait(engine, last, event(), step="$await:e#2") == got(7)


def test_a_timeout_of_nothing_asks_and_does_not_sleep(engine):
    assert wait(engine, run(engine), event(), timeout=timedelta(0)) == TIMED_OUT
    emit(engine, "e", 7)
    assert wait(engine, run(engine), event(), timeout=timedelta(0)) == got(7)
    assert rows(engine) == []


def test_event_wins_over_an_unprocessed_timeout(engine):
    waiter = run(engine)
    wait(engine, waiter, event(), timeout=MINUTE)
    let_pass(engine, waiter)
    emit(engine, "e", 7)
    assert tick(engine) + do(engine, maintenance.promote, limit=10).woken == 1
    assert wait(engine, claim(engine), event(), timeout=MINUTE) == got(7)


def test_a_run_with_several_waits_wakes_at_the_first_end_of_any(engine):
    waiter = run(engine)
    look(engine, waiter, event("a"), step="$await:a", timeout=5 * MINUTE)
    look(engine, waiter, event("b"), step="$await:b", timeout=MINUTE)
    assert sleep(engine, waiter, event("a"), step="$await:a") is None
    assert do(engine, maintenance.promote, limit=10).next_due <= MINUTE
    emit(engine, "a", 1)
    assert tick(engine) == 1
    assert rows(engine) == [("$await:b", "b", False)]  # and its time goes on
    again = claim(engine)
    assert wait(engine, again, event("a"), step="$await:a") == got(1)
    assert wait(engine, again, event("b"), step="$await:b", timeout=MINUTE) is None
    assert do(engine, maintenance.promote, limit=10).next_due <= MINUTE


# Fences and left-overs


def test_a_run_that_lost_its_claim_registers_nothing(engine):
    waiter = run(engine)
    expire(engine, [waiter.task_id])
    do(engine, maintenance.sweep_expired, limit=10)
    with pytest.raises(LeaseLost):
        look(engine, waiter, event())
    with pytest.raises(LeaseLost):
        look(engine, waiter, event(), timeout=timedelta(0))
    assert rows(engine) == []


@pytest.mark.pooled(connections=3, reason="who locks, who waits for that, who looks")
@pytest.mark.parametrize("moment", ["before", "between", "after"])
def test_a_cancelled_task_leaves_no_wait_behind(engine, session, moment):
    waiter = run(engine)
    if moment != "before":
        look(engine, waiter, event())
    if moment == "after":
        sleep(engine, waiter, event())
    Durable(session).cancel(MailTask, waiter.task_id)
    if moment == "before":
        with Session(engine) as rival:
            pid = pid_of(rival)
            late = in_thread(
                waits.find_or_register, rival, MailTask, waiter, "$await:e", event(), timeout=None
            )
            wait_until_blocked(engine, pid)  # who cancels was first
            session.commit()
            with pytest.raises(Cancelled):
                late.result(20)
    session.commit()
    if moment == "between":
        with pytest.raises(Cancelled):
            sleep(engine, waiter, event())
    tick(engine)
    assert rows(engine) == [] and waiting.events_of(engine) == []


def test_a_task_that_failed_with_a_wait_leaves_none_behind(engine):
    waiter = run(engine)
    look(engine, waiter, event())
    do(engine, runs.fail, waiter, TaskError("ValueError", "no"), retryable=False)
    tick(engine)
    assert rows(engine) == [] and waiting.events_of(engine) == []


def test_an_open_cancellation_holds_up_no_event(engine, session):
    """Its caller's transaction may stay open: whoever waits for the same events is woken all the same."""
    doomed, other = run(engine), run(engine)
    for waiter in (doomed, other):
        wait(engine, waiter, event())
    Durable(session).cancel(MailTask, doomed.task_id)
    emit(engine, "e", 7)
    assert tick(engine) == 1 and state(engine, other) == "pending"
    session.rollback()
    assert tick(engine) == 1 and state(engine, doomed) == "pending"


# Joins


def test_a_join_waits_for_all_and_takes_their_outcomes_in_order(engine):  # B21
    first, second, third = (run(engine, BillingTask) for _ in range(3))
    joiner = run(engine)
    assert wait(engine, joiner, ends(first, second, third)) is None
    assert len(rows(engine)) == 3
    do(engine, lambda s, _: runs.complete(s, BillingTask, second, {"a": None}))
    do(engine, lambda s, _: runs.fail(s, BillingTask, third, TaskError("E", "no luck"), retryable=False))
    assert tick(engine) == 0 and state(engine, joiner) == "sleeping"
    assert rows(engine) == [
        ("$await:e", f"$task:{first.task_id}", False)
    ]  # what is settled costs nothing more
    do(engine, lambda s, _: Durable(s).cancel(BillingTask, first.task_id))
    assert tick(engine) == 1 and rows(engine) == []
    error = {"type": "E", "message": "no luck", "traceback": None}
    found = wait(engine, claim(engine), ends(second, first, third))
    assert [(end["state"], end["result"], (end["error"] or {}).get("message")) for end in found.value] == [
        ("completed", {"a": None}, None),
        ("cancelled", None, None),
        ("failed", None, error["message"]),
    ]
    assert {end["name"] for end in found.value} == {"charge"}
    assert waiting.events_of(engine, BillingTask) == []  # internal events are gone once they are settled


@pytest.mark.parametrize("moment", ["before the first look", "between the looks", "while it falls asleep"])
def test_the_end_of_a_task_is_never_missed(engine, session, moment):
    """Also where nothing tells of it any more but its own row: its internal event is gone after the tick."""
    other, joiner = run(engine, BillingTask), run(engine)

    def complete():
        do(engine, lambda s, _: runs.complete(s, BillingTask, other, 7))
        tick(engine)

    if moment == "before the first look":
        complete()
    elif moment == "between the looks":
        [announce] = look(engine, joiner, ends(other)).first
        do(engine, lambda s, _: announce(s))
        assert isinstance(look(engine, joiner, ends(other)), Registered)
        complete()
    else:
        [announce] = look(engine, joiner, ends(other)).first
        do(engine, lambda s, _: announce(s))
        look(engine, joiner, ends(other))
        assert waits.sleep(session, MailTask, joiner, "$await:e", ends(other)) is None
        complete()
        session.commit()
        assert tick(engine) == 1
        joiner = claim(engine)
    assert wait(engine, joiner, ends(other)).value[0]["result"] == 7
    assert rows(engine) == []


def announced(engine, joiner, what):
    for announce in look(engine, joiner, what).first:
        do(engine, lambda s, _: announce(s))  # noqa: B023 - called at once


def test_task_that_ends_before_the_join_commits_is_not_awaited(engine, session):
    """Nothing tells of its end any more then: a worker has settled that, and saw nobody who waited."""
    one, other, joiner = run(engine, BillingTask), run(engine, BillingTask), run(engine)
    both = ends(one, other)
    announced(engine, joiner, both)
    assert isinstance(
        waits.find_or_register(session, MailTask, joiner, "$await:e", both, timeout=None), Registered
    )
    do(engine, lambda s, _: runs.complete(s, BillingTask, one, 1))
    tick(engine)
    session.commit()
    assert sleep(engine, joiner, both) is None
    do(engine, lambda s, _: runs.complete(s, BillingTask, other, 2))
    assert tick(engine) == 1
    assert [end["result"] for end in wait(engine, claim(engine), both).value] == [1, 2]
    assert rows(engine) == []


def test_run_whose_events_all_exist_checks_again_before_sleeping(engine, session):
    """Another of the tasks it joins had ended, and is retried just then."""
    one, other, joiner = run(engine, BillingTask), run(engine, BillingTask), run(engine)
    both = ends(one, other)
    announced(engine, joiner, both)
    error = TaskError("E", "no")
    do(engine, lambda s, _: runs.fail(s, BillingTask, other, error, retryable=False))
    waits.find_or_register(session, MailTask, joiner, "$await:e", both, timeout=None)
    do(engine, lambda s, _: runs.complete(s, BillingTask, one, 1))
    tick(engine)
    do(engine, lambda s, _: Durable(s).retry(BillingTask, other.task_id))
    session.commit()
    assert isinstance(sleep(engine, joiner, both), Prerequisites)
    assert state(engine, joiner) == "running"
    assert wait(engine, joiner, both) is None
    do(engine, lambda s, _: runs.complete(s, BillingTask, claim(engine, BillingTask), 2))
    assert tick(engine) == 1


def test_task_that_ends_before_it_is_marked_is_seen_by_the_next_check(engine):
    other, joiner = run(engine, BillingTask), run(engine)
    [announce] = look(engine, joiner, ends(other)).first
    do(engine, lambda s, _: runs.complete(s, BillingTask, other, 7))
    assert do(engine, lambda s, _: announce(s)) is False
    assert look(engine, joiner, ends(other)).value[0]["state"] == "completed"


def test_tasks_that_were_deleted_have_no_state_and_nothing_is_waited_for(engine):  # B21
    assert wait(engine, run(engine), AwaitedTasks([(BillingTask, uuid7())])) == Arrived([{"state": None}])
    assert wait(engine, run(engine), AwaitedTasks([])) == Arrived([])


def test_joined_task_deleted_after_its_end_still_wakes_the_joiner(engine):  # B21
    other, joiner = run(engine, BillingTask), run(engine)
    wait(engine, joiner, ends(other))
    do(engine, lambda s, _: runs.complete(s, BillingTask, other, 7))
    do(engine, lambda s, _: s.execute(delete(BillingTask)))
    assert tick(engine) == 1
    assert wait(engine, claim(engine), ends(other)) == Arrived([{"state": None}])


def test_what_a_waiting_join_has_not_read_yet_survives_clean_up(engine):  # B25
    first, second, stranger = (run(engine, BillingTask) for _ in range(3))
    for over in (stranger, first):
        if over is first:
            joiner = run(engine)
            wait(engine, joiner, ends(first, second))
        do(engine, lambda s, _: runs.complete(s, BillingTask, over, 7))  # noqa: B023 - called at once
    tick(engine)

    def clean_up():
        old = timedelta(microseconds=1)
        return do(engine, lambda s, _: Durable(s).clean_up(BillingTask, older_than=old, limit=10).tasks)

    assert clean_up() == 1  # the stranger
    do(engine, lambda s, _: runs.complete(s, BillingTask, second, 8))
    assert tick(engine) == 1 and clean_up() == 0
    joiner = claim(engine)
    assert [end["result"] for end in wait(engine, joiner, ends(first, second)).value] == [7, 8]
    do(engine, runs.complete, joiner, None)
    assert clean_up() == 2


def test_unannounced_end_is_found_by_catching_up(engine):
    """A worker that knows only the other queue has ended the task and thrown its internal event away."""
    ended, gone, active = (run(engine, BillingTask) for _ in range(3))
    joiners = [run(engine) for _ in range(3)]
    for joiner, other in zip(joiners, (ended, gone, active), strict=True):
        wait(engine, joiner, ends(other))
    do(engine, lambda s, _: runs.complete(s, BillingTask, ended, 7))
    with Session(engine) as session, session.begin():
        session.execute(delete(BillingTask).where(BillingTask.id == gone.task_id))
        session.execute(delete(BillingTask.Event))
    assert tick(engine) == 0
    assert do(engine, events.catch_up, {}, limit=10).marked == 2
    assert tick(engine) == 2
    assert [state(engine, joiner) for joiner in joiners] == ["pending", "pending", "sleeping"]


def test_catching_up_goes_from_name_to_name_a_few_at_a_time(engine):
    """However many wait, a look costs the same; the next one goes on where this one stopped."""
    others = [run(engine, BillingTask) for _ in range(5)]
    for other in others:
        wait(engine, run(engine), ends(other))
        do(engine, lambda s, _, other=other: runs.complete(s, BillingTask, other, 7))
    with Session(engine) as session, session.begin():
        session.execute(delete(BillingTask.Event))
    done = events.CaughtUp(0, {})
    found = []
    for _ in range(3):
        done = do(engine, events.catch_up, done.after, limit=2)
        found.append((done.marked, sorted(done.after)))
    assert found == [(2, ["billing"]), (2, ["billing"]), (1, [])]
    assert tick(engine) == 5


def test_internal_event_name_without_a_task_id_is_tolerated(engine):
    """Catching up reads ids out of names; it must not stumble over others."""
    wait(engine, run(engine), event("not-a-task", BillingTask))
    wait(engine, run(engine), event("not-a-task"))
    assert do(engine, events.catch_up, {}, limit=10).marked == 0


# What it costs


def test_what_waits_costs_a_tick_nothing(engine):
    """One statement that finds nothing, however many wait. (That it reads none of them: tests/plans.)"""
    with Session(engine) as session, session.begin():
        ids = "SELECT gen_random_uuid(), 'send', '{}', gen_random_uuid(), 'sleeping', NULL FROM generate_series(1, 5000)"
        columns = "id, name, params, run_id, state, available_at"
        session.execute(text(f"INSERT INTO durable_mail_tasks ({columns}) {ids}"))
        session.execute(
            text(
                "INSERT INTO durable_mail_waits (task_id, step, event_name, event_queue) "
                "SELECT id, 's', 'e:' || id, 'mail' FROM durable_mail_tasks"
            )
        )
    with statements(engine) as sent:
        found = do(engine, lambda session, model: polling.due(session, {model: ["send"]}))
    assert found == {MailTask: Due(ready=False, next_due=None, unsettled=False, settled=False, waiting=True)}
    assert len(sent) == 1


def test_a_run_that_waits_costs_two_short_transactions(engine):
    waiter = run(engine)
    with statements(engine) as sent:
        assert wait(engine, waiter, event()) is None
    assert [sql.split()[0] for sql in sent] == ["SELECT", "WITH", "SELECT", "UPDATE"]


@pytest.mark.parametrize("left", [1, 0])
def test_join_of_thousands_is_checked_once(engine, left):
    """Each wait that was settled, asked about all the others, took 26 s for half as many."""
    joiner = run(engine)
    wait(engine, joiner, event())
    many = 8000
    with Session(engine) as session, session.begin():
        session.execute(text("SET LOCAL statement_timeout = '30s'"))
        insert = "INSERT INTO durable_mail_waits (task_id, step, event_name, event_queue, settled) "
        session.execute(
            text(
                f"{insert} SELECT :task, 'join', '$task:' || i, 'mail', i > :left FROM generate_series(1, :n) i"
            ),
            {"task": joiner.task_id, "left": left, "n": many},
        )
        assert events.wake(session, MailTask, limit=500) == 1 - left
        while events.forget_idle(session, MailTask, limit=500):
            pass
    assert len(rows(engine)) == 1 + left  # and the one of the event
