"""Notifications find an idle worker: whoever polls every ten minutes here starts a task at once, or the test fails."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest
from sqlalchemy import Engine, func, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from sa_durable import AsyncDurable, Durable
from sa_durable.runtime.loops import listener
from sa_durable.runtime.tuning import Tuning
from tests.listening import Ear, listening
from tests.proxy import Proxy
from tests.runtime import app, family
from tests.runtime.app import OtherTask, WorkTask
from tests.runtime.conftest import working
from tests.runtime.family import ChildTask, ParentTask
from tests.waiting import wait_until

SELDOM = timedelta(minutes=10)


def asked(engine: Engine) -> set[str]:
    with engine.connect() as connection:
        return set(connection.scalars(text("SELECT name FROM durable_queues WHERE notify_until > now()")))


def backends(engine: Engine) -> list[int]:
    """Who listens."""
    with engine.connect() as connection:
        return list(
            connection.scalars(
                text(
                    "SELECT pid FROM pg_stat_activity WHERE query = 'LISTEN sa_durable' AND datname = current_database()"
                )
            )
        )


@contextmanager
def idle(engine: Engine, *queues: type, **options) -> Iterator[object]:
    """A worker that seldom polls, and has nothing to do."""
    queues = queues or (WorkTask,)
    with working(engine, *queues, **{"poll_interval": SELDOM, **options}) as worker:
        wait_until(
            lambda: asked(engine) >= {queue.__queue__ for queue in queues}, what="the worker to be idle"
        )
        yield worker


def its_listener(engine: Engine) -> int:
    """The backend of the one worker that listens. Until it is: one of the test before may still be closing."""
    return wait_until(lambda: found[0] if len(found := backends(engine)) == 1 else 0, what="one listener")


async def async_spawn(url: str) -> object:
    engine = create_async_engine(url.replace("+psycopg", "+asyncpg"))
    async with AsyncSession(engine) as session, session.begin():
        task_id = (await AsyncDurable(session).spawn(app.double.call(number=1))).task_id
    await engine.dispose()
    return task_id


def many(shop) -> object:
    with Session(shop.engine) as session, session.begin():
        return Durable(session).spawn_many([app.double.call(number=n) for n in range(3)])[-1].task_id


def add(shop) -> object:
    with Session(shop.engine) as session, session.begin():
        task = app.double.task(number=1)
        session.add(task)
        return task.id


WAYS = {
    "spawn": lambda shop, _: shop.spawn(app.double.call(number=1)),
    "a key": lambda shop, _: shop.spawn(app.double.call(number=1), idempotency_key="k"),
    "a short delay": lambda shop, _: shop.spawn(app.double.call(number=1), delay=timedelta(milliseconds=50)),
    "a batch": lambda shop, _: many(shop),
    "an object": lambda shop, _: add(shop),
    "asyncpg": lambda _, url: asyncio.run(async_spawn(url)),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_an_idle_worker_starts_a_task_at_once_however_it_was_spawned(engine, shop, runtime_url, way):
    with idle(engine):
        assert shop.ended(WAYS[way](shop, runtime_url)).state == "completed"


def test_an_idle_worker_stays_reachable_task_after_task(engine, shop):
    with idle(engine):
        for number in range(30):
            assert shop.ended(shop.spawn(app.double.call(number=number))).result == 2 * number


def test_two_idle_workers_are_notified_of_their_own_queues(engine, shop):
    with idle(engine, WorkTask) as one, idle(engine, OtherTask) as other:
        assert shop.ended(shop.spawn(app.other.call()), model=OtherTask).state == "completed"
        # Until: it may have found that by the look that follows its asking.
        wait_until(lambda: other.parts.listener.received == 1)
        assert one.parts.listener.received == 0
        assert shop.ended(shop.spawn(app.triple.call(number=1))).result == 3
        wait_until(lambda: one.parts.listener.received == 1)
        assert other.parts.listener.received == 1


def test_event_wakes_its_waiter_at_once(home):
    with idle(home.engine, ParentTask):
        task = home.spawn(family.plain_awaits.call(name="paid"))
        home.state_is(task, "sleeping")
        with Session(home.engine) as session, session.begin():
            Durable(session).emit_event(ParentTask, "paid", 7)
        assert home.ended(task).result == 7


def test_parent_and_child_in_different_workers_start_at_once(home):
    with idle(home.engine, ParentTask), idle(home.engine, ChildTask):
        parent = home.spawn(family.plain_joins.call(kind="grows"))
        assert home.ended(parent).state == "completed"


def test_another_worker_starts_tasks_that_exceed_a_workers_capacity(engine, shop):
    full = {
        "concurrency": 1,
        "prefetch": 0,
        "worker_id": "full",
        "shutdown_timeout": timedelta(milliseconds=1),
        "notify": False,  # else it calls notifications off, having no room, and when it does is its own affair
    }
    with working(engine, **full) as busy:
        stuck = shop.spawn(app.waits.call(label="stuck"))
        wait_until(lambda: app.calls["stuck"])
        asleep = shop.spawn(app.double.call(number=1), delay=timedelta(hours=1))
        with idle(engine):
            shop.set(asleep, available_at=func.now())
            busy.parts.sleepers_changed.set()
            assert shop.ended(asleep).result == 2
            busy.request_stop()
            wait_until(lambda: app.calls["stuck"] == 2)
            app.gate.set()
            assert shop.ended(stuck).claimed_by != "full"


@pytest.mark.parametrize("as_new", [False, True])
def test_a_task_that_is_retried_starts_at_once(engine, shop, as_new):
    task = shop.spawn(app.once.call())
    with idle(engine):
        shop.ended(task)
        with Session(engine) as session, session.begin():
            again = Durable(session).retry(WorkTask, task, as_new=as_new).task_id
        wait_until(
            lambda: shop.task(again).state == "failed" and len(shop.runs(again)) == (1 if as_new else 2)
        )


def test_worker_reenables_notifications_that_others_disabled(engine, shop):
    tuning = Tuning(retry_notify_after_s=0.0)
    with idle(engine, poll_interval=timedelta(milliseconds=100), _tuning=tuning):
        with engine.begin() as connection:
            connection.execute(text("UPDATE durable_queues SET notify_until = NULL"))
        shop.ended(shop.spawn(app.double.call(number=1)))
        wait_until(lambda: asked(engine) >= {"work"})


@pytest.fixture
def ear(engine: Engine) -> Iterator[Ear]:
    with listening(engine) as ear:
        yield ear


def test_notify_false_neither_notifies_nor_listens_but_polls(engine, shop, ear):
    with working(engine, notify=False):
        for number in range(3):
            shop.ended(shop.spawn(app.double.call(number=number)))
            shop.ended(shop.spawn(app.anaps.call(seconds=0.05)))
        its_listener(engine)  # the test's
    assert ear.payloads() == [] and asked(engine) == set()


def test_worker_without_capacity_disables_notifications_until_idle(engine, shop, ear):
    with idle(engine, concurrency=1, prefetch=0):
        first = shop.spawn(app.waits.call(label="first"))
        wait_until(lambda: asked(engine) == set(), timeout=30)  # not by itself, which takes a minute
        ear.payloads()
        rest = [shop.spawn(app.double.call(number=number)) for number in range(20)]
        assert ear.payloads() == []
        app.gate.set()
        shop.ended(first, *rest)
        wait_until(lambda: asked(engine) == {"work"})
        assert shop.ended(shop.spawn(app.double.call(number=1))).result == 2


# C4, the listener's part
def test_a_listener_whose_backend_is_killed_listens_again_and_says_so_once(engine, shop, caplog):
    tuning = Tuning(echo_timeout_s=60.0)  # else a machine that stalls breaks the connection, too
    caplog.set_level(logging.INFO, "sa_durable.worker")
    with idle(engine, _tuning=tuning):
        before = its_listener(engine)
        with engine.begin() as connection:
            connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": before})
        wait_until(lambda: "notifications restored" in caplog.text)
        assert its_listener(engine) != before
        assert shop.ended(shop.spawn(app.double.call(number=1))).result == 2
    said = [record.message for record in caplog.records if ": listener" in record.message]
    assert len(said) == 2 and "notifications lost" in said[0]


def test_tasks_spawned_between_two_listeners_are_found(engine, shop):
    # It doesn't connect again until the test says so.
    tuning = Tuning(first_reconnect_pause_s=1200.0, longest_reconnect_pause_s=1200.0)
    with idle(engine, _tuning=tuning) as worker:
        with engine.begin() as connection:
            connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": its_listener(engine)})
        wait_until(lambda: worker.parts.listener.connection == 0)
        task = shop.spawn(app.double.call(number=1))
        worker.parts.listener.thread.wakeup.set()
        assert shop.ended(task).result == 2


@contextmanager
def listening_through_proxy(engine, runtime_url, tuning, poll_ms):
    """An idle worker that has received a notification through a proxy, and that proxy."""
    with (
        Proxy(runtime_url, listens=True) as through,
        idle(
            engine, listen_url=through.url, poll_interval=timedelta(milliseconds=poll_ms), _tuning=tuning
        ) as worker,
    ):
        wait_until(lambda: worker.parts.listener._echoes_received)
        yield worker, through


# C5
@pytest.mark.parametrize("how", ["half-open", "cut"])
def test_broken_listener_polls_and_then_listens_again(engine, shop, runtime_url, caplog, how):
    caplog.set_level(logging.INFO, "sa_durable.worker")
    tuning = Tuning(echo_timeout_s=0.5, renew_notify_after_s=0.5)
    with listening_through_proxy(engine, runtime_url, tuning, poll_ms=300) as (worker, through):
        through.freeze() if how == "half-open" else through.cut()
        assert shop.ended(shop.spawn(app.double.call(number=1))).result == 2
        wait_until(lambda: "notifications lost" in caplog.text)
        through.thaw()
        wait_until(lambda: "notifications restored" in caplog.text)
        received = worker.parts.listener.received
        # The first one may come before it has asked again.
        wait_until(
            lambda: (
                shop.ended(shop.spawn(app.double.call(number=1)))
                and worker.parts.listener.received > received
            )
        )


def test_that_nothing_arrives_is_noticed_while_tasks_keep_coming(engine, shop, runtime_url, caplog):
    """Each one that polling finds has the worker ask again."""
    caplog.set_level(logging.INFO, "sa_durable.worker")
    tuning = Tuning(echo_timeout_s=1.0, retry_notify_after_s=0.0)
    with listening_through_proxy(engine, runtime_url, tuning, poll_ms=50) as (_, through):
        through.freeze()
        wait_until(
            lambda: shop.ended(shop.spawn(app.double.call(number=1))) and "notifications lost" in caplog.text,
            what="the worker to notice",
        )


def test_a_worker_says_once_that_nothing_arrives_and_goes_on_polling(engine, shop, caplog, monkeypatch):
    monkeypatch.setattr(listener, "CHANNEL", "elsewhere")  # as behind a pooler that keeps no sessions
    with working(engine, _tuning=Tuning(echo_timeout_s=0.1)) as worker:
        wait_until(lambda: worker.parts.listener._connections >= 3)
        assert shop.ended(shop.spawn(app.double.call(number=1))).result == 2
    assert caplog.text.count("listen_url") == 1


@pytest.mark.owner
def test_a_worker_that_cannot_ask_polls(engine, shop):
    with Session(engine) as operator:
        Durable(operator).pause(WorkTask)
        operator.commit()
        Durable(operator).resume(WorkTask)
        operator.commit()
        operator.get(WorkTask.Queue, "work", with_for_update=True)  # an operator's open transaction
        with working(engine):
            assert shop.ended(shop.spawn(app.double.call(number=1))).result == 2
            assert asked(engine) == set()


def test_the_command_can_do_without_notifications_or_listen_elsewhere(
    engine, shop, ear, worker_process, runtime_url
):
    process = worker_process("--no-notify")
    assert shop.ended(shop.spawn(app.double.call(number=1))).result == 2
    assert ear.payloads() == [] and asked(engine) == set()
    process.kill()
    with Proxy(runtime_url, listens=True) as through:
        worker_process(
            "--listen-url", through.url.render_as_string(hide_password=False), "--poll-interval", "600"
        )
        wait_until(lambda: asked(engine) >= {"work"})
        assert shop.ended(shop.spawn(app.double.call(number=1))).result == 2
        assert through.links
