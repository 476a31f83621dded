"""Spawns, resolved and encoded, before anything is sent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from sqlalchemy import inspect

from .. import policy, spawn_options, telemetry
from ..codec import dumps, once_key, shown
from ..errors import InvalidOptions
from ..handlers import Call, encode_headers, spawn_headers
from ..ids import uuid7
from ..models import queue_of
from ..models.tables import task_columns
from ..policy import check_key
from ..statements import spawn as stmt
from ..statements.cache import cached_statement
from ..statements.tables import table_of
from ..values import OnDuplicate, SpawnKeywords, SpawnOptions

if TYPE_CHECKING:
    from ..models import DurableTask

Model = type["DurableTask"]
Parent = tuple[str, UUID]  # a queue's name and a task's id

_NO_DELAY = timedelta(0)
_NO_COLUMNS: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True, eq=False)
class SpawnTemplate:
    """What spawns of one task with the same options have in common; made once for all of them."""

    model: Model
    name: str
    options: SpawnOptions  # but for key, headers and columns, which are each spawn's own
    row: Mapping[str, Any]  # parameters of statements.spawn.insert_task
    hold: Mapping[str, Any]  # those that go with a key


class PreparedSpawn(NamedTuple):
    """A spawn, resolved and encoded: what is inserted, and what happens if its key is held. A tuple, as batches keep
    many: it is made, and looked over by the garbage collector, in half the time."""

    template: SpawnTemplate
    key: str | None
    params: str
    headers: str | None
    own: Mapping[str, Any]  # the application's columns, by the table's keys
    parent: Parent | None
    position: int  # in its batch

    @property
    def model(self) -> Model:
        return self.template.model

    @property
    def options(self) -> SpawnOptions:
        return self.template.options

    def row(self) -> dict[str, Any]:
        """A new task's parameters of statements.spawn.insert_task, with ids that no other has; without `own`."""
        parent_queue, parent_id = self.parent or (None, None)
        row = {
            **self.template.row,
            "id": uuid7(),
            "run_id": uuid7(),
            "params": self.params,
            "headers": self.headers,
            "parent_queue": parent_queue,
            "parent_id": parent_id,
        }
        if self.key is not None:
            row |= self.template.hold
            row["idempotency_key"] = self.key
        return row


def prepare_all(
    calls: Iterable[Call[Any, Any]], keywords: SpawnKeywords, parent: Parent | None = None
) -> Iterator[PreparedSpawn]:
    """As `prepare`, for the calls of a batch. Most have nothing of their own but a key, and the rest of their options is
    looked up once for all of a handler's."""
    shared: dict[tuple[object, str], tuple[SpawnKeywords, SpawnTemplate | None]] = {}
    for position, call in enumerate(calls):
        if not isinstance(call, Call):
            raise InvalidOptions(
                f"spawn_many takes calls, such as charge.call(...), not a {type(call).__qualname__}"
            )
        key = call.options.get("idempotency_key")
        if len(call.options) == (key is not None) and not telemetry.spawn_hooks:
            defaults, kind = shared.get((call.model, call.name), (None, None))
            if defaults is not call.defaults:
                kind = _shared_template(call, keywords)
                shared[call.model, call.name] = call.defaults, kind
            if kind is not None:
                if key is not None:
                    check_key(key)
                yield PreparedSpawn(kind, key, call.params_text, None, _NO_COLUMNS, parent, position)
                continue
        yield prepare(call, keywords, parent, position)


def _shared_template(call: Call[Any, Any], keywords: SpawnKeywords) -> SpawnTemplate | None:
    """The kind of calls that have the defaults of this one, and no options but perhaps a key; None, where more of their
    own follows from their defaults, or from having a key or none."""
    model = queue_of(call.model)
    merged = spawn_options.merge(keywords, call.defaults, model.__spawn_defaults__)
    if not merged.keys().isdisjoint(spawn_options.PER_TASK):
        return None
    kind = _template_for(model, call.name, merged)
    plain = kind.options.on_duplicate is OnDuplicate.RETURN and not kind.options.only_once
    return kind if plain else None


def prepare(
    call: Call[Any, Any], keywords: SpawnKeywords, parent: Parent | None = None, position: int = 0
) -> PreparedSpawn:
    """Resolve the options of a call and encode what it inserts. Raises InvalidOptions; touches no database."""
    model, name = queue_of(call.model), call.name
    merged = spawn_options.merge(keywords, call.options, call.defaults, model.__spawn_defaults__)
    key = merged.pop("idempotency_key", None)
    headers, columns = merged.pop("headers", None), merged.pop("columns", None)
    kind = _template_for(model, name, merged)
    spawn_options.check_own(kind.options, idempotency_key=key, headers=headers, columns=columns)
    if key is None and kind.options.only_once:
        key = once_key(name, call.params)
    headers_text = encode_headers(spawn_headers(model.__queue__, name, headers))
    own = _own_columns(model, columns) if columns else _NO_COLUMNS
    return PreparedSpawn(kind, key, call.params_text, headers_text, own, parent, position)


def _template_for(model: Model, name: str, merged: Mapping[str, Any]) -> SpawnTemplate:
    try:
        # With their types: 1 equals True, and is no option where that one is.
        return _template(model, name, tuple(merged.items()), tuple(map(type, merged.values())))  # type: ignore[arg-type]  # a class hashes; mypy looks at its instances
    except TypeError:  # one of them doesn't hash; so it is no option, most likely
        return _template.__wrapped__(model, name, tuple(merged.items()), ())


@lru_cache(1024)
def _template(
    model: Model, name: str, merged: tuple[tuple[str, Any], ...], _: tuple[type, ...]
) -> SpawnTemplate:
    options = spawn_options.resolve_shared(dict(merged))
    row: dict[str, Any] = {
        "name": name,
        "priority": options.priority,
        "max_attempts": options.max_attempts,
        "retry": dumps(policy.retry_to_json(options.retry)),
    }
    if options.delay is not None or options.run_at is not None:
        row |= stmt.start_parameters(options.run_at, options.delay or _NO_DELAY)
    if (limit := options.cancellation) is not None:
        row |= stmt.limit_parameters(limit.start_within, limit.max_duration)
    return SpawnTemplate(
        model, name, options, row, {"key_hold": options.hold.value, stmt.KEY_TTL: options.key_ttl}
    )


def _own_columns(model: Model, columns: Mapping[str, Any]) -> dict[str, Any]:
    own = own_attributes(model)
    if unknown := sorted(set(columns) - own.keys()):
        raise InvalidOptions(
            f"columns {shown(unknown)} are no columns of your own on {model.__name__}; it has {sorted(own) or 'none'}"
        )
    return {own[name]: value for name, value in columns.items()}


@cached_statement
def own_attributes(model: Model) -> Mapping[str, str]:
    """The application's own columns of a task model: attribute to the table's column key."""
    library = task_columns().keys()
    table = table_of(model)
    return {
        attribute.key: attribute.columns[0].key
        for attribute in inspect(model).column_attrs
        if attribute.key not in library and attribute.columns[0].table is table
    }
