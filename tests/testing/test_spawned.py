"""`assert_spawned` finds what was spawned, and says what was spawned instead."""

from __future__ import annotations

from decimal import Decimal

import pytest
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from sa_durable import Durable, InvalidOptions, InvalidParams, UnknownQueue
from sa_durable.testing import assert_not_spawned, assert_spawned
from tests.testing import app
from tests.testing.app import Effect, KitTask, SideTask


def test_a_task_is_found_by_its_handler_and_some_of_its_params(kit):
    spawned = kit.spawn(app.plain.call(number=7, price=Decimal("2.50")))
    kit.spawn(app.plain.call(number=8))
    task = kit.spawned(app.plain, number=7)
    assert (type(task), task.id, task.params) == (KitTask, spawned.task_id, {"number": 7, "price": "2.50"})
    assert kit.spawned(app.plain, price=Decimal("2.50")).id == spawned.task_id
    assert kit.spawned(app.plain, count=2).id == spawned.task_id  # the first
    kit.not_spawned(app.plain, number=9)
    kit.not_spawned(app.coroutine)


def test_a_task_is_found_by_its_queue_and_name(kit):
    kit.spawn(app.plain.call(number=7))
    assert kit.spawned(KitTask, "plain", number=7).name == "plain"
    kit.not_spawned(SideTask, "plain")
    kit.not_spawned(KitTask, "of another application", number=7)


def test_a_key_is_compared_if_it_is_given(kit):
    kit.spawn(app.plain.call(number=7), idempotency_key="plain:7")
    assert kit.spawned(app.plain, key="plain:7").params == {"number": 7}
    kit.not_spawned(app.plain, key="plain:8")


def test_params_that_are_called_like_options_go_into_a_mapping(kit):
    kit.spawn(app.says.call(count=3, key="x"))
    kit.spawned(app.says, {"count": 3, "key": "x"}, count=1)
    kit.not_spawned(app.says, {"count": 4})


def test_what_a_session_has_not_committed_counts_in_that_session(kit):
    assert kit.spawned_in_a_session(app.plain.call(number=7), app.plain) == "plain"
    kit.not_spawned(app.plain)


def test_the_failure_lists_what_is_there_instead(kit):
    kit.spawn(app.plain.call(number=8), idempotency_key="plain:8")
    kit.spawn(app.says.call(count=1, key="é"))
    kit.run()
    with pytest.raises(AssertionError) as raised:
        kit.spawned(app.plain, number=7)
    assert str(raised.value).splitlines() == [
        "expected 1 plain(number=7) in queue 'kit', found 0. It has:",
        "  plain(number=8): completed, key 'plain:8'",
        '  says(key="é", count=1): completed',
    ]
    with pytest.raises(
        AssertionError, match=r"expected no plain\(\) with key 'plain:8' in queue 'kit', found 1"
    ):
        kit.not_spawned(app.plain, key="plain:8")
    with pytest.raises(AssertionError, match=r"expected 1 child\(\) in queue 'side', found 0. It is empty."):
        kit.spawned(app.child)
    with pytest.raises(AssertionError, match=r"expected 2 plain\(\) in queue 'kit', found 1"):
        kit.spawned(app.plain, count=2)


def test_a_long_list_is_cut(kit):
    for n in range(25):
        kit.spawn(app.plain.call(number=n))
    with pytest.raises(AssertionError) as raised:
        kit.spawned(app.coroutine)
    lines = str(raised.value).splitlines()
    assert (len(lines), lines[-2], lines[-1]) == (22, "  plain(number=19): pending", "  ...")


def test_a_session_s_objects_say_what_is_there_now(engine):
    with Session(engine, expire_on_commit=False) as session:
        task = Durable(session).spawn(app.plain.call(number=7)).task
        session.commit()
        with Session(engine) as other, other.begin():
            other.get_one(KitTask, task.id).priority = 9
        assert assert_spawned(session, app.plain) is task
        assert task.priority == 9
    scoped = scoped_session(sessionmaker(engine))
    assert assert_spawned(scoped, app.plain).priority == 9
    scoped.remove()


def test_what_cannot_be_meant_is_refused(engine):
    for wrong in ((), (KitTask,), ("plain",), (app.plain, 7), (app.plain, {}, {})):
        with pytest.raises(InvalidOptions):
            assert_spawned(engine, *wrong)
    for count in (0, True, "1"):
        with pytest.raises(InvalidOptions, match="count"):
            assert_spawned(engine, app.plain, count=count)
    with pytest.raises(InvalidOptions, match="neither a Session nor an Engine"):
        assert_not_spawned("postgresql://", app.plain)
    with pytest.raises(UnknownQueue):
        assert_spawned(engine, Effect, "plain")
    with pytest.raises(InvalidParams, match="no parameter order_id"):
        assert_spawned(engine, app.plain, order_id=7)
    with pytest.raises(InvalidParams, match="number"):
        assert_spawned(engine, app.plain, number="many")
