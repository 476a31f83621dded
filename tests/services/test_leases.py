"""Claims and leases: who gets a task, who keeps it, and how it is taken away."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
from sqlalchemy import Engine, func, insert, select, text
from sqlalchemy.orm import Session

from sa_durable import Cancelled, Durable, Fixed, LeaseLost
from sa_durable.services import checkpoints, claims, maintenance, runs
from sa_durable.statements import claims as stmt
from sa_durable.statements.arrays import texts
from sa_durable.values import TaskError
from tests.databases import deadlocks, throwaway
from tests.services.claiming import MINUTE, change, claim, do, expire, history, row, spawn
from tests.shop import Base, MailTask
from tests.waiting import in_thread

pytestmark = pytest.mark.service


def test_a_claim_raises_the_token_and_leases_the_task(engine):
    [task] = spawn(engine, headers={"trace": "7"})
    [got] = claim(engine)
    assert (got.task_id, got.queue, got.name, got.token, got.attempt) == (task, "mail", "send", 1, 1)
    assert got.params == {"to": "0@example.org"} and got.headers == {"trace": "7"} and not got.resumed
    claimed = row(engine, task)
    assert (claimed.state, claimed.claimed_by, claimed.token) == ("running", "w1", 1)
    assert claimed.lease_expires_at - claimed.started_at == MINUTE
    assert claimed.first_started_at == claimed.started_at and claim(engine) == []


def test_claims_come_by_priority_then_due_time_and_no_more_than_asked_for(engine):
    late, soon, first = (spawn(engine, priority=p)[0] for p in (9, 5, 1))
    [earlier] = spawn(engine, priority=5)
    change(engine, [earlier], available_at=func.now() - MINUTE)
    assert [c.task_id for c in claim(engine, 3)] == [first, earlier, soon]
    assert [c.task_id for c in claim(engine, 3)] == [late]


# B3
def test_claim_skips_a_locked_task_and_takes_it_once_unlocked(engine):
    locked, free = spawn(engine, 2)
    with Session(engine) as session, session.begin():
        session.get(MailTask, locked, with_for_update=True)
        assert [c.task_id for c in in_thread(claim, engine, 10).result(60)] == [free]
    assert [c.task_id for c in claim(engine, 10)] == [locked]


# B3
def test_a_locked_overdue_task_blocks_neither_claims_nor_sweeps(engine):
    overdue, other, ready = spawn(engine, 3)
    claim(engine, 2)
    expire(engine, [overdue, other])
    with Session(engine) as session, session.begin():
        session.get(MailTask, overdue, with_for_update=True)
        swept = in_thread(do, engine, maintenance.sweep_expired, limit=10).result(60)
        assert [run.task_id for run in swept] == [other]
        assert ready in {c.task_id for c in in_thread(claim, engine, 10).result(60)}
    assert [run.task_id for run in do(engine, maintenance.sweep_expired, limit=10)] == [overdue]


# B4
def test_ten_claims_at_once_give_each_of_fifty_tasks_to_one(engine):
    spawn(engine, 50)
    barrier, before = threading.Barrier(10), deadlocks(engine)

    def work(number: int) -> list:
        barrier.wait()
        mine, empty = [], 0
        while empty < 3:
            got = claim(engine, 4, worker=f"w{number}")
            mine += got
            empty = 0 if got else empty + 1
            for c in got:
                do(engine, runs.complete, c, number)
        return mine

    claimed = [c for done in [in_thread(work, n) for n in range(10)] for c in done.result(120)]
    assert len(claimed) == len({c.task_id for c in claimed}) == 50
    with Session(engine) as session:
        ends = session.execute(
            select(MailTask.state, MailTask.token, func.count()).group_by("state", "token")
        )
        assert [tuple(end) for end in ends] == [("completed", 1, 50)]
    assert deadlocks(engine) == before


# B24
def test_names_that_the_worker_does_not_know_are_unharmed(engine):
    [task] = spawn(engine)
    assert claim(engine, 10, names=["other"]) == [] and claim(engine, 10, names=[]) == []
    assert (row(engine, task).state, row(engine, task).token) == ("pending", 0)
    assert [c.task_id for c in claim(engine, 10, names=["other", "send"])] == [task]


# B24
def test_100000_tasks_of_another_name_cost_a_claim_nothing(engine):
    fill = text(
        "INSERT INTO durable_mail_tasks (id, name, params, run_id, available_at) SELECT gen_random_uuid(), :name, "
        "'{}', gen_random_uuid(), now() - interval '1 hour' FROM generate_series(1, :number)"
    )
    with engine.begin() as connection:
        connection.execute(fill, {"name": "unknown", "number": 100_000})
        connection.execute(fill, {"name": "send", "number": 500})
    parameters = {"names": texts(["send", "remind"]), "worker": "w", "lease": MINUTE, "limit": 100}
    statement = str(stmt.claim(MailTask).compile(engine, compile_kwargs={"render_postcompile": True}))
    with engine.connect() as connection:
        for fresh in (True, False):  # as after a bulk insert, and analysed
            for mode in ("force_custom_plan", "force_generic_plan"):
                connection.execute(text(f"SET LOCAL plan_cache_mode = {mode}"))
                explained = connection.exec_driver_sql(
                    f"EXPLAIN (ANALYZE, BUFFERS OFF) {statement}",
                    {**stmt.claim(MailTask).compile(engine).params, **parameters},
                )
                plan = "\n".join(explained.scalars())
                assert "ix_durable_mail_tasks_ready" in plan and "Seq Scan on durable_mail" not in plan, plan
                connection.rollback()
            if fresh:
                connection.execute(text("ANALYZE durable_mail_tasks"))
                connection.commit()


@pytest.mark.owner
def test_a_paused_queue_gives_nothing_until_it_goes_on(engine):
    spawn(engine)
    with engine.begin() as connection:
        connection.execute(insert(MailTask.Queue).values(name="mail", paused_at=func.now()))
    assert claim(engine) == []
    with engine.begin() as connection:
        connection.execute(text("UPDATE durable_queues SET paused_at = NULL"))
    assert len(claim(engine)) == 1


def test_only_held_claims_are_extended(engine):
    spawn(engine, 3)
    kept, ended, lost = claim(engine, 3)
    before = row(engine, kept.task_id).lease_expires_at
    do(engine, runs.complete, ended, None)
    held = {kept.task_id: 1, ended.task_id: 1, lost.task_id: 9}
    assert do(engine, claims.extend, held, lease=timedelta(hours=1)) == {kept.task_id}
    assert row(engine, kept.task_id).lease_expires_at - before > timedelta(minutes=58)
    standing = do(engine, claims.claim_status, held)
    assert (standing[kept.task_id], standing[ended.task_id]) == (
        claims.ClaimStatus.HELD,
        claims.ClaimStatus.STORED,
    )
    assert isinstance(standing[lost.task_id], LeaseLost)


def test_extending_a_lease_is_a_hot_update(server_url):
    with throwaway(server_url, Base.metadata) as engine:  # in a table of many tests the page may just be full
        assert updates_of_an_extended_lease(engine) == [1, 1]


def updates_of_an_extended_lease(engine: Engine) -> list[int]:
    """How many there are, and how many of these are hot."""
    [task] = spawn(engine)
    claim(engine)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        counts = text(
            "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_xact_user_tables WHERE relname = 'durable_mail_tasks'"
        )
        with (
            Session(connection.execution_options(isolation_level="READ COMMITTED")) as session,
            session.begin(),
        ):
            before = session.execute(counts).one()
            claims.extend(session, MailTask, {task: 1}, lease=MINUTE)
            after = session.execute(counts).one()
    return [new - old for new, old in zip(after, before, strict=True)]


def test_released_task_is_ready_at_once_and_keeps_its_attempt(engine):
    [task] = spawn(engine)
    [got] = claim(engine)
    assert do(engine, claims.release, {task: got.token}) == {task}
    released = row(engine, task)
    assert (released.state, released.attempt, released.run_id) == ("pending", 1, got.run_id)
    assert (released.claimed_by, released.started_at, released.lease_expires_at) == (None, None, None)
    assert released.first_started_at is not None and history(engine, task) == []
    with pytest.raises(LeaseLost):
        do(engine, runs.complete, got, None)
    [again] = claim(engine)
    assert (again.token, again.run_id, again.resumed) == (3, got.run_id, True)


# B1
def test_expired_lease_ends_the_attempt_and_fences_its_worker(engine):
    [task] = spawn(engine, retry=Fixed(timedelta(hours=1)))
    [first] = claim(engine, worker="w1")
    expire(engine, [task])
    lease = row(engine, task).lease_expires_at
    [swept] = do(engine, maintenance.sweep_expired, limit=10)
    assert (swept.task_id, swept.attempt, swept.worker, swept.retried) == (task, 1, "w1", True)
    [run] = history(engine, task)
    assert (run.id, run.attempt, run.state, run.worker) == (first.run_id, 1, "failed", "w1")
    assert run.lease_expires_at == lease and run.error["type"] == "LeaseExpired" and run.started_at

    [second] = claim(engine, worker="w2")  # at once: a lost lease has no backoff
    assert (second.attempt, second.token) == (2, 3) and second.run_id != first.run_id
    before = row(engine, task)
    late = (
        (runs.complete, first, "late"),
        (runs.fail, first, TaskError("E", "late")),
        (checkpoints.save, first, "step", "1"),
    )
    for service, *args in late:
        with pytest.raises(LeaseLost):
            do(engine, service, *args)
    with pytest.raises(LeaseLost):
        do(engine, runs.sleep, first, "$sleep", delay=MINUTE)
    assert do(engine, claims.extend, {task: first.token}, lease=MINUTE) == set()
    assert do(engine, claims.release, {task: first.token}) == set()
    after = row(engine, task)
    assert (after.state, after.token, after.lease_expires_at) == ("running", 3, before.lease_expires_at)
    assert do(engine, checkpoints.load, [task]) == {task: {}} and len(history(engine, task)) == 1
    do(engine, runs.complete, second, "in time")
    assert row(engine, task).result == "in time"


# B2
def test_a_sweep_takes_as_many_as_it_may_the_oldest_first(engine):
    tasks = spawn(engine, 5, retry=Fixed())
    claim(engine, 5)
    for age, task in enumerate(tasks):
        expire(engine, [task], MINUTE * (10 - age))
    assert [run.task_id for run in do(engine, maintenance.sweep_expired, limit=1)] == tasks[:1]
    assert [run.task_id for run in do(engine, maintenance.sweep_expired, limit=2)] == tasks[1:3]
    assert [row(engine, task).state for task in tasks] == 3 * ["pending"] + 2 * ["running"]


def test_a_lease_that_was_extended_while_the_sweep_began_is_not_taken(engine):
    [task] = spawn(engine)
    claim(engine)
    expire(engine, [task])
    with Session(engine) as session, session.begin():
        claims.extend(session, MailTask, {task: 1}, lease=MINUTE)
        assert in_thread(do, engine, maintenance.sweep_expired, limit=10).result(60) == []
    assert do(engine, maintenance.sweep_expired, limit=10) == [] and row(engine, task).state == "running"


def test_the_last_attempts_expired_lease_fails_the_task(engine):
    [task] = spawn(engine, max_attempts=1)
    claim(engine)
    expire(engine, [task])
    [swept] = do(engine, maintenance.sweep_expired, limit=10)
    failed = row(engine, task)
    assert not swept.retried and (failed.state, failed.attempt) == ("failed", 1)
    assert failed.error["type"] == "LeaseExpired" and failed.finished_at and len(history(engine, task)) == 1


# C11; docs/decisions/0011
def test_lost_worker_costs_each_task_one_attempt(engine):
    [bounded] = spawn(engine, max_attempts=2, retry=Fixed())
    [unbounded] = spawn(engine, max_attempts=None, retry=Fixed())
    for _death in range(2):
        claim(engine, 2)
        expire(engine, [bounded, unbounded])
        do(engine, maintenance.sweep_expired, limit=10)
    assert [(row(engine, task).state, row(engine, task).attempt) for task in (bounded, unbounded)] == [
        ("failed", 2),
        ("pending", 3),
    ]


# B7
def test_every_write_for_a_cancelled_task_raises_cancelled(engine):
    [task] = spawn(engine)
    [got] = claim(engine)
    with Session(engine) as session, session.begin():
        Durable(session).cancel(MailTask, task)
    for service, *args in (
        (runs.complete, got, "late"),
        (runs.fail, got, TaskError("E", "late")),
        (checkpoints.save, got, "step", "1"),
        (checkpoints.save_wake_time, got, "$sleep"),
    ):
        with pytest.raises(Cancelled):
            do(engine, service, *args)
    assert [(run.attempt, run.state) for run in history(engine, task)] == [(1, "cancelled")]


def test_due_sleepers_are_promoted_in_bounded_batches(engine):
    due = spawn(engine, 3, delay=MINUTE)
    spawn(engine, 1, delay=timedelta(hours=1))
    assert do(engine, maintenance.promote, limit=10).woken == 0
    change(engine, due, available_at=func.now() - MINUTE)
    with Session(engine) as session, session.begin():
        session.get(MailTask, due[0], with_for_update=True)
        assert in_thread(do, engine, maintenance.promote, limit=1).result(60).woken == 1
        assert in_thread(do, engine, maintenance.promote, limit=10).result(60).woken == 1
    last = do(engine, maintenance.promote, limit=10)
    assert last.woken == 1 and timedelta(minutes=58) < last.next_due < timedelta(hours=1)
    assert {c.task_id for c in claim(engine, 10)} == set(due)
    assert do(engine, maintenance.promote, limit=10).woken == 0
