"""Spawns, resolved and encoded, before anything is sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from sqlalchemy import inspect

from .. import options as spawn_options
from .. import policy
from ..codec import dumps, once_key, shown
from ..errors import InvalidOptions
from ..handlers import Call, encode_headers, spawn_headers
from ..ids import uuid7
from ..models import queue_of
from ..models.tables import task_columns
from ..statements import tasks as stmt
from ..statements.memo import memo
from ..values import SpawnKeywords, SpawnOptions

if TYPE_CHECKING:
    from ..models import DurableTask

Model = type["DurableTask"]
Parent = tuple[str, UUID]  # a queue's name and a task's id

_NO_DELAY = timedelta(0)
_NO_COLUMNS: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True, eq=False)
class Kind:
    """What spawns of one task with the same options have in common; made once for all of them."""

    model: Model
    name: str
    options: SpawnOptions  # but for key, headers and columns, which are each spawn's own
    row: Mapping[str, Any]  # parameters of statements.tasks.insert_task
    hold: Mapping[str, Any]  # those that go with a key


class Prepared(NamedTuple):
    """A spawn, resolved and encoded: what is inserted, and what happens if its key is held. A tuple, as batches keep
    many: it is made, and looked over by the garbage collector, in half the time."""

    kind: Kind
    key: str | None
    params: str
    headers: str | None
    own: Mapping[str, Any]  # the application's columns, by the table's keys
    parent: Parent | None
    position: int  # in its batch

    @property
    def model(self) -> Model:
        return self.kind.model

    @property
    def options(self) -> SpawnOptions:
        return self.kind.options

    def row(self) -> dict[str, Any]:
        """A new task's parameters of statements.tasks.insert_task, with ids that no other has; without `own`."""
        parent_queue, parent_id = self.parent or (None, None)
        row = {
            **self.kind.row,
            "id": uuid7(),
            "run_id": uuid7(),
            "params": self.params,
            "headers": self.headers,
            "parent_queue": parent_queue,
            "parent_id": parent_id,
        }
        if self.key is not None:
            row |= self.kind.hold
            row["idempotency_key"] = self.key
        return row


def prepare(
    call: Call[Any, Any], keywords: SpawnKeywords, parent: Parent | None = None, position: int = 0
) -> Prepared:
    """Resolve the options of a call and encode what it inserts. Raises InvalidOptions; touches no database."""
    model, name = queue_of(call.model), call.name
    merged = spawn_options.merge(keywords, call.options, call.defaults, model.__spawn_defaults__)
    key = merged.pop("idempotency_key", None)
    headers, columns = merged.pop("headers", None), merged.pop("columns", None)
    try:
        # With their types: 1 equals True, and is no option where that one is.
        kind = _kind(model, name, tuple(merged.items()), tuple(map(type, merged.values())))
    except TypeError:  # one of them doesn't hash; so it is no option, most likely
        kind = _kind.__wrapped__(model, name, tuple(merged.items()), ())
    spawn_options.check_own(kind.options, idempotency_key=key, headers=headers, columns=columns)
    if key is None and kind.options.only_once:
        key = once_key(name, call.params)
    headers_text = encode_headers(spawn_headers(model.__queue__, name, headers))
    own = _own_columns(model, columns) if columns else _NO_COLUMNS
    return Prepared(kind, key, call.params_text, headers_text, own, parent, position)


@lru_cache(1024)
def _kind(model: Model, name: str, merged: tuple[tuple[str, Any], ...], _: tuple[type, ...]) -> Kind:
    options = spawn_options.resolve_shared(dict(merged))
    row: dict[str, Any] = {
        "name": name,
        "priority": options.priority,
        "max_attempts": options.max_attempts,
        "retry": dumps(policy.retry_to_json(options.retry)),
    }
    if options.delay is not None or options.run_at is not None:
        row |= stmt.starts(options.run_at, options.delay or _NO_DELAY)
    if (limit := options.cancellation) is not None:
        row |= stmt.limits(limit.start_within, limit.max_duration)
    return Kind(model, name, options, row, {"key_hold": options.hold.value, stmt.KEY_TTL: options.key_ttl})


def _own_columns(model: Model, columns: Mapping[str, Any]) -> dict[str, Any]:
    own = own_attributes(model)
    if unknown := sorted(set(columns) - own.keys()):
        raise InvalidOptions(
            f"columns {shown(unknown)} are no columns of your own on {model.__name__}; it has {sorted(own) or 'none'}"
        )
    return {own[name]: value for name, value in columns.items()}


@memo
def own_attributes(model: Model) -> Mapping[str, str]:
    """The application's own columns of a task model: attribute to the table's column key."""
    library = task_columns().keys()
    table = stmt.table_of(model)
    return {
        attribute.key: attribute.columns[0].key
        for attribute in inspect(model).column_attrs
        if attribute.key not in library and attribute.columns[0].table is table
    }
