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
from tests.services.clients import Client
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
    enter: Callable[[Client, Any], Any]


def column(client: Client, name: str, spawned: Any) -> Any:
    tasks = BillingTask.__table__
    return client.session.execute(select(tasks.c[name]).where(tasks.c.id == spawned.task_id)).scalar_one()


def _fits(limit: int) -> Callable[[Any], bool | None]:
    def good(value: Any) -> bool | None:
        fine = is_json(value)
        return fine if not fine else size(value) < limit - 1000 or None

    return good


def _params(client: Client, value: Any) -> Any:
    return column(client, "params", client.durable.spawn(BillingTask, "by name", {"v": value}))["v"]


def _batch(client: Client, value: Any) -> Any:
    calls = [call_by_name(BillingTask, "by name", {"v": v}, None) for v in (value, 1)]
    return column(client, "params", client.durable.spawn_many(calls)[0])["v"]


def _once(client: Client, value: Any) -> Any:
    first, second = (
        client.durable.spawn(BillingTask, "by name", {"v": value}, only_once=True) for _ in range(2)
    )
    assert (first.task_id, second.created, second.params_match) == (second.task_id, False, True)
    stored = column(client, "params", first)
    assert column(client, "idempotency_key", first) == once_key("by name", stored)  # also from the row
    return stored["v"]


def _headers(client: Client, value: Any) -> Any:
    return column(client, "headers", client.durable.spawn(charge.call(1), headers={"h": value}))["h"]


def _header_name(client: Client, name: Any) -> Any:
    [stored] = column(client, "headers", client.durable.spawn(charge.call(1), headers={name: 1}))
    return stored


def _key(client: Client, key: Any) -> Any:
    spawned = client.durable.spawn(charge.call(1), idempotency_key=key)
    again = client.durable.spawn(charge.call(1), idempotency_key=key)
    assert (again.created, again.task_id) == (False, spawned.task_id)
    assert client.durable.find_by_key(BillingTask, key).id == spawned.task_id
    assert client.durable.release_key(BillingTask, key)
    return column(client, "idempotency_key", spawned)


def _key_of_a_batch(client: Client, key: Any) -> Any:
    calls = [charge.call(1).using(idempotency_key=k) for k in (key, "another", key)]
    first, _, again = client.durable.spawn_many(calls)
    assert (again.created, again.task_id) == (False, first.task_id)
    return column(client, "idempotency_key", first)


def _task_name(client: Client, name: Any) -> Any:
    return column(client, "name", client.durable.spawn(BillingTask, name, {}))


def _argument(client: Client, text: Any) -> Any:
    spawned = client.durable.spawn(send_mail.call(to=text))
    tasks = MailTask.__table__
    stored = select(tasks.c.params).where(tasks.c.id == spawned.task_id)
    return client.session.execute(stored).scalar_one()["to"]


def _event(client: Client, name: str, payload: Any) -> Any:
    client.durable.emit_event(BillingTask, name, payload)
    event = BillingTask.Event.__table__
    [row] = client.session.execute(select(event.c.name, event.c.payload)).all()
    return row


def _column_name(client: Client, name: Any) -> Any:
    column(client, "order_id", client.durable.spawn(charge.call(1), columns={name: None}))
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
        lambda client, v: _event(client, v, 1)[0],
    ),
    "an event's payload": Entry(
        anything, lambda v: _fits(2**20)(v) or None, InvalidEvent, lambda client, v: _event(client, "e", v)[1]
    ),
    "a column's name": Entry(texts, lambda v: v == "order_id", InvalidOptions, _column_name),
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_input_is_stored_exactly_or_refused_and_the_transaction_goes_on(client, entry):
    way = ENTRIES[entry]

    @HOW
    @given(way.values)
    def try_(value: Any) -> None:
        client.session.execute(delete(BillingTask.Event.__table__))
        try:
            stored = way.enter(client, value)
        except way.refusal as error:
            assert not way.good(value), error
            assert len(str(error)) < 3000  # and is no dump
        else:
            assert way.good(value) is not False
            assert isinstance(value, set) or not is_json(value) or same(stored, value)
        client.session.add(Order())
        client.session.flush()  # the caller's transaction goes on
        client.session.rollback()

    try_()


@pytest.mark.parametrize("look", ["find_by_key", "release_key"])
def test_no_text_is_a_key_that_cant_be_asked_for(client, look):
    @HOW
    @given(texts | st.integers())
    def try_(key: Any) -> None:
        assert not getattr(client.durable, look)(BillingTask, key)
        client.session.execute(select(1))

    try_()
