"""Resolve, check and encode spawns before anything is sent. Pure: no function here touches a database."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from sqlalchemy import inspect

from .. import policy, spawn_options, telemetry
from ..codec import dumps, short_repr
from ..derived_key import once_key
from ..errors import InvalidOptions
from ..handlers import Call
from ..headers import encode_headers, spawn_headers
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
Parent = tuple[str, UUID]
"""The queue's name and the id of a parent task."""

_NO_DELAY = timedelta(0)
_NO_COLUMNS: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True, eq=False)
class SpawnTemplate:
    """What all spawns of one task with the same options share. Made once, then cached."""

    model: Model
    name: str
    options: SpawnOptions
    """The options, without key, headers and columns: these belong to a single spawn."""
    row: Mapping[str, Any]
    """Parameters of statements.spawn.insert_task."""
    hold: Mapping[str, Any]
    """More parameters, for a spawn with a key."""


class PreparedSpawn(NamedTuple):
    """A checked and encoded spawn: the values to insert, and what to do if the key is held.

    A tuple, because a batch makes thousands: creation and garbage collection take half the time of a
    dataclass.
    """

    template: SpawnTemplate
    key: str | None
    params: str
    """JSON text."""
    headers: str | None
    """JSON text."""
    app_columns: Mapping[str, Any]
    """Values of the application's own columns, by the table's column keys."""
    parent: Parent | None
    position: int = 0
    """Index of the call in its batch."""

    @property
    def model(self) -> Model:
        return self.template.model

    @property
    def options(self) -> SpawnOptions:
        return self.template.options

    def row(self) -> dict[str, Any]:
        """Return the parameters of statements.spawn.insert_task, with new ids, without `app_columns`."""
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
    """Prepare the calls of a batch, one by one as they come.

    Most calls have no option of their own but a key. They share one template for each handler.
    """
    templates: dict[tuple[object, str], tuple[SpawnKeywords, SpawnTemplate | None]] = {}
    for position, call in enumerate(calls):
        if not isinstance(call, Call):
            raise InvalidOptions(
                f"spawn_many takes calls, such as charge.call(...), not a {type(call).__qualname__}"
            )
        key = call.options.get("idempotency_key")
        has_only_a_key = len(call.options) == (key is not None)
        if has_only_a_key and not telemetry.spawn_hooks:
            defaults, template = templates.get((call.model, call.name), (None, None))
            if defaults is not call.defaults:
                template = _shared_template(call, keywords)
                templates[call.model, call.name] = call.defaults, template
            if template is not None:
                if key is not None:
                    check_key(key)
                yield PreparedSpawn(template, key, call.params_text, None, _NO_COLUMNS, parent, position)
                continue
        yield prepare(call, keywords, parent, position)


def _shared_template(call: Call[Any, Any], keywords: SpawnKeywords) -> SpawnTemplate | None:
    """Return the template of all calls with the defaults of `call` and no option of their own but a key.

    Returns None if these calls differ in more: a default that belongs to a single spawn, a derived key, or an
    `on_duplicate` that only works with a key.
    """
    model = queue_of(call.model)
    merged = spawn_options.merge(keywords, call.defaults, model.__spawn_defaults__)
    if not merged.keys().isdisjoint(spawn_options.PER_TASK):
        return None
    template = _template_for(model, call.name, merged)
    options = template.options
    return template if options.on_duplicate is OnDuplicate.RETURN and not options.only_once else None


def prepare(
    call: Call[Any, Any], keywords: SpawnKeywords, parent: Parent | None = None, position: int = 0
) -> PreparedSpawn:
    """Resolve the options of a call and encode its values. Raises InvalidOptions or InvalidKey."""
    model, name = queue_of(call.model), call.name
    merged = spawn_options.merge(keywords, call.options, call.defaults, model.__spawn_defaults__)
    key = merged.pop("idempotency_key", None)
    headers, columns = merged.pop("headers", None), merged.pop("columns", None)
    template = _template_for(model, name, merged)
    spawn_options.check_own(template.options, idempotency_key=key, headers=headers, columns=columns)
    if key is None and template.options.only_once:
        key = once_key(name, call.params)
    headers_text = encode_headers(spawn_headers(model.__queue__, name, headers))
    app_columns = _app_columns(model, columns) if columns else _NO_COLUMNS
    return PreparedSpawn(template, key, call.params_text, headers_text, app_columns, parent, position)


def _template_for(model: Model, name: str, merged: Mapping[str, Any]) -> SpawnTemplate:
    try:
        # With the types of the values: 1 equals True, so the cache would take a bad option for a good one.
        return _template(model, name, tuple(merged.items()), tuple(map(type, merged.values())))  # type: ignore[arg-type]  # a class is hashable; mypy checks its instances
    except TypeError:  # a value doesn't hash: most likely a bad option, which resolve_shared refuses
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


def _app_columns(model: Model, columns: Mapping[str, Any]) -> dict[str, Any]:
    attributes = app_attributes(model)
    if unknown := sorted(set(columns) - attributes.keys()):
        raise InvalidOptions(
            f"columns {short_repr(unknown)} are no columns of your own on {model.__name__}. "
            f"It has {sorted(attributes) or 'none'}."
        )
    return {attributes[name]: value for name, value in columns.items()}


@cached_statement
def app_attributes(model: Model) -> Mapping[str, str]:
    """Return the application's own columns of a task model: the table's column key of each attribute."""
    library = task_columns().keys()
    table = table_of(model)
    return {
        attribute.key: attribute.columns[0].key
        for attribute in inspect(model).column_attrs
        if attribute.key not in library and attribute.columns[0].table is table
    }
