"""`assert_spawned` finds what was spawned, and says what was spawned instead."""

from __future__ import annotations

from decimal import Decimal

import pytest
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from sa_durable import Durable, InvalidOptions, InvalidParams, UnknownQueue
from sa_durable.testing import assert_not_spawned, assert_spawned
from tests.testing import app
from tests.testing.app import Effect, MainTask, SideTask


def test_a_task_is_found_by_its_handler_and_some_of_its_params(helpers):
    spawned = helpers.spawn(app.plain.call(number=7, price=Decimal("2.50")))
    helpers.spawn(app.plain.call(number=8))
    task = helpers.spawned(app.plain, number=7)
    assert (type(task), task.id, task.params) == (MainTask, spawned.task_id, {"number": 7, "price": "2.50"})
    assert helpers.spawned(app.plain, price=Decimal("2.50")).id == spawned.task_id
    assert helpers.spawned(app.plain, count=2).id == spawned.task_id  # the first
    helpers.not_spawned(app.plain, number=9)
    helpers.not_spawned(app.coroutine)


def test_a_task_is_found_by_its_queue_and_name(helpers):
    helpers.spawn(app.plain.call(number=7))
    assert helpers.spawned(MainTask, "plain", number=7).name == "plain"
    helpers.not_spawned(SideTask, "plain")
    helpers.not_spawned(MainTask, "of another application", number=7)


def test_a_key_is_compared_if_it_is_given(helpers):
    helpers.spawn(app.plain.call(number=7), idempotency_key="plain:7")
    assert helpers.spawned(app.plain, key="plain:7").params == {"number": 7}
    helpers.not_spawned(app.plain, key="plain:8")


def test_params_that_are_called_like_options_go_into_a_mapping(helpers):
    helpers.spawn(app.says.call(count=3, key="x"))
    helpers.spawned(app.says, {"count": 3, "key": "x"}, count=1)
    helpers.not_spawned(app.says, {"count": 4})


def test_what_a_session_has_not_committed_counts_in_that_session(helpers):
    assert helpers.spawned_in_a_session(app.plain.call(number=7), app.plain) == "plain"
    helpers.not_spawned(app.plain)


def test_the_failure_lists_what_is_there_instead(helpers):
    helpers.spawn(app.plain.call(number=8), idempotency_key="plain:8")
    helpers.spawn(app.says.call(count=1, key="é"))
    helpers.run()
    with pytest.raises(AssertionError) as raised:
        helpers.spawned(app.plain, number=7)
    assert str(raised.value).splitlines() == [
        "expected 1 plain(number=7) in queue 'main', found 0. It has:",
        "  plain(number=8): completed, key 'plain:8'",
        '  says(key="é", count=1): completed',
    ]
    with pytest.raises(
        AssertionError, match=r"expected no plain\(\) with key 'plain:8' in queue 'main', found 1"
    ):
        helpers.not_spawned(app.plain, key="plain:8")
    with pytest.raises(AssertionError, match=r"expected 1 child\(\) in queue 'side', found 0. It is empty."):
        helpers.spawned(app.child)
    with pytest.raises(AssertionError, match=r"expected 2 plain\(\) in queue 'main', found 1"):
        helpers.spawned(app.plain, count=2)


def test_a_long_list_is_cut(helpers):
    for n in range(25):
        helpers.spawn(app.plain.call(number=n))
    with pytest.raises(AssertionError) as raised:
        helpers.spawned(app.coroutine)
    lines = str(raised.value).splitlines()
    assert (len(lines), lines[-2], lines[-1]) == (22, "  plain(number=19): pending", "  ...")


def test_a_session_s_objects_say_what_is_there_now(engine):
    with Session(engine, expire_on_commit=False) as session:
        task = Durable(session).spawn(app.plain.call(number=7)).task
        session.commit()
        with Session(engine) as other, other.begin():
            other.get_one(MainTask, task.id).priority = 9
        assert assert_spawned(session, app.plain) is task
        assert task.priority == 9
    scoped = scoped_session(sessionmaker(engine))
    assert assert_spawned(scoped, app.plain).priority == 9
    scoped.remove()


def test_ambiguous_arguments_are_refused(engine):
    for wrong in ((), (MainTask,), ("plain",), (app.plain, 7), (app.plain, {}, {})):
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
