"""C12: whatever JSON and text is passed at an entry is stored as it is, or refused by an error of ours; and then the
caller's transaction goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import delete, select

from sa_durable import DurableError, InvalidEvent, InvalidKey, InvalidOptions, InvalidParams, once_key
from sa_durable.handlers import call_by_name
from tests.fuzzing.values import HOW, anything, is_json, is_text, same, size, texts
from tests.services.doors import Door
from tests.shop import BillingTask, MailTask, Order, charge, send_mail

pytestmark = [
    pytest.mark.service,
    pytest.mark.timeout(3600),
    pytest.mark.filterwarnings("ignore:Generating overly large repr"),  # of an example that failed
]


@dataclass(frozen=True)
class Entry:
    """A way in: what it takes, which values are good (None: perhaps), what refuses the others, and what is stored."""

    values: st.SearchStrategy[Any]
    good: Callable[[Any], bool | None]
    refusal: type[DurableError]
    enter: Callable[[Door, Any], Any]


def column(door: Door, name: str, spawned: Any) -> Any:
    tasks = BillingTask.__table__
    return door.session.execute(select(tasks.c[name]).where(tasks.c.id == spawned.task_id)).scalar_one()


def _fits(limit: int) -> Callable[[Any], bool | None]:
    def good(value: Any) -> bool | None:
        fine = is_json(value)
        return fine if not fine else size(value) < limit - 1000 or None

    return good


def _params(door: Door, value: Any) -> Any:
    return column(door, "params", door.durable.spawn(BillingTask, "by name", {"v": value}))["v"]


def _batch(door: Door, value: Any) -> Any:
    calls = [call_by_name(BillingTask, "by name", {"v": v}, None) for v in (value, 1)]
    return column(door, "params", door.durable.spawn_many(calls)[0])["v"]


def _once(door: Door, value: Any) -> Any:
    first, second = (
        door.durable.spawn(BillingTask, "by name", {"v": value}, only_once=True) for _ in range(2)
    )
    assert (first.task_id, second.created, second.params_match) == (second.task_id, False, True)
    stored = column(door, "params", first)
    assert column(door, "idempotency_key", first) == once_key("by name", stored)  # also from the row
    return stored["v"]


def _headers(door: Door, value: Any) -> Any:
    return column(door, "headers", door.durable.spawn(charge.call(1), headers={"h": value}))["h"]


def _header_name(door: Door, name: Any) -> Any:
    [stored] = column(door, "headers", door.durable.spawn(charge.call(1), headers={name: 1}))
    return stored


def _key(door: Door, key: Any) -> Any:
    spawned = door.durable.spawn(charge.call(1), idempotency_key=key)
    again = door.durable.spawn(charge.call(1), idempotency_key=key)
    assert (again.created, again.task_id) == (False, spawned.task_id)
    assert door.durable.find_by_key(BillingTask, key).id == spawned.task_id
    assert door.durable.release_key(BillingTask, key)
    return column(door, "idempotency_key", spawned)


def _key_of_a_batch(door: Door, key: Any) -> Any:
    calls = [charge.call(1).using(idempotency_key=k) for k in (key, "another", key)]
    first, _, again = door.durable.spawn_many(calls)
    assert (again.created, again.task_id) == (False, first.task_id)
    return column(door, "idempotency_key", first)


def _task_name(door: Door, name: Any) -> Any:
    return column(door, "name", door.durable.spawn(BillingTask, name, {}))


def _argument(door: Door, text: Any) -> Any:
    spawned = door.durable.spawn(send_mail.call(to=text))
    tasks = MailTask.__table__
    stored = select(tasks.c.params).where(tasks.c.id == spawned.task_id)
    return door.session.execute(stored).scalar_one()["to"]


def _event(door: Door, name: str, payload: Any) -> Any:
    door.durable.emit_event(BillingTask, name, payload)
    event = BillingTask.Event.__table__
    [row] = door.session.execute(select(event.c.name, event.c.payload)).all()
    return row


def _column_name(door: Door, name: Any) -> Any:
    column(door, "order_id", door.durable.spawn(charge.call(1), columns={name: None}))
    return name


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= 255 and value.isprintable()


def _is_key(value: Any) -> bool:
    return is_text(value) and 1 <= len(value) <= 255 and not value.startswith("~")


ENTRIES = {
    "params": Entry(anything, _fits(2**20), InvalidParams, _params),
    "params of a batch": Entry(anything, _fits(2**20), InvalidParams, _batch),
    "params, only once": Entry(anything, _fits(2**20), InvalidParams, _once),
    "a typed argument": Entry(texts, lambda v: is_text(v) and len(v) < 2**19, InvalidParams, _argument),
    "headers": Entry(anything, _fits(2**16), InvalidOptions, _headers),
    "a header's name": Entry(
        texts | st.integers(),
        lambda v: is_text(v) and not v.startswith("durable:") and len(v) < 2**14,
        InvalidOptions,
        _header_name,
    ),
    "a key": Entry(texts | st.integers(), _is_key, InvalidKey, _key),
    "a key of a batch": Entry(texts, _is_key, InvalidKey, _key_of_a_batch),
    "a task's name": Entry(texts, _is_name, InvalidParams, _task_name),
    "an event's name": Entry(
        texts,
        lambda v: _is_name(v) and not v.startswith("$"),
        InvalidEvent,
        lambda door, v: _event(door, v, 1)[0],
    ),
    "an event's payload": Entry(
        anything, lambda v: _fits(2**20)(v) or None, InvalidEvent, lambda door, v: _event(door, "e", v)[1]
    ),
    "a column's name": Entry(texts, lambda v: v == "order_id", InvalidOptions, _column_name),
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_what_goes_in_is_kept_as_it_is_or_refused_and_the_transaction_goes_on(door, entry):
    way = ENTRIES[entry]

    @HOW
    @given(way.values)
    def try_(value: Any) -> None:
        door.session.execute(delete(BillingTask.Event.__table__))
        try:
            stored = way.enter(door, value)
        except way.refusal as error:
            assert not way.good(value), error
            assert len(str(error)) < 3000  # and is no dump
        else:
            assert way.good(value) is not False
            assert isinstance(value, set) or not is_json(value) or same(stored, value)
        door.session.add(Order())
        door.session.flush()  # the caller's transaction goes on
        door.session.rollback()

    try_()


@pytest.mark.parametrize("look", ["find_by_key", "release_key"])
def test_no_text_is_a_key_that_cant_be_asked_for(door, look):
    @HOW
    @given(texts | st.integers())
    def try_(key: Any) -> None:
        assert not getattr(door.durable, look)(BillingTask, key)
        door.session.execute(select(1))

    try_()
