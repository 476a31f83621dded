"""Make a queue of a class: its table and columns before Declarative maps it, its siblings afterwards."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import Table, event
from sqlalchemy.orm import DeclarativeBase, DeclarativeBaseNoMeta, class_mapper, relationship

from ..errors import DeclarationError, KeyedObject
from .names import Role, check_queue, comment, table_name
from .siblings import DurableCheckpoint, DurableEvent, DurableQueue, DurableRun, DurableWait
from .tables import info, queues_table, sibling_table, task_args, task_columns

if TYPE_CHECKING:
    from .task import DurableTask


def prepare(cls: type[DurableTask], mixin: type) -> None:
    """Set table name, columns and constraints of a class, before Declarative maps it.

    `mixin` is DurableTask.
    """
    base = base_of(cls)
    if base is None:
        raise DeclarationError(
            f"{cls.__name__} must also inherit your DeclarativeBase, after DurableTask: "
            f"class {cls.__name__}(DurableTask, Base)"
        )
    if cls.__mro__.index(base) < cls.__mro__.index(mixin):
        raise DeclarationError(
            f"{cls.__name__}: DurableTask comes before the Base: class {cls.__name__}(DurableTask, Base)"
        )
    queue = check_queue(cls.__queue__, cls.__name__)
    columns = task_columns()
    own = cls.__dict__.keys() | inspect.get_annotations(cls).keys()
    for taken, what in (
        (columns.keys(), "columns of sa_durable have the same names"),
        (_ATTRIBUTES, "attributes of sa_durable have the same names"),
        (RESERVED, "these names are reserved for later versions of sa_durable"),
    ):
        if names := sorted(taken & own):
            raise DeclarationError(f"{cls.__name__}: {what}: {', '.join(names)}. Rename yours.")
    own_args, own_options = _own_table_args(cls)
    schema = own_options.get("schema", base.metadata.schema)
    name = table_name(queue, Role.TASKS)
    if (f"{schema}.{name}" if schema else name) in base.metadata.tables:
        raise DeclarationError(
            f"{cls.__name__}: queue {queue!r} has a class already on this metadata. "
            "Give each queue one class."
        )
    for attribute, column in columns.items():
        setattr(cls, attribute, column)
    if "comment" in own_options:
        raise DeclarationError(
            f"{cls.__name__}: sa_durable sets the comment of the table, by which migrations find a queue. "
            "Remove `comment` from __table_args__."
        )
    options = {**own_options, "comment": comment(queue, Role.TASKS)}
    options["info"] = {**own_options.get("info", {}), **info(queue, Role.TASKS)}
    cls.__tablename__ = name  # type: ignore[attr-defined]  # an attribute of Declarative's, not of the mixin
    cls.__table_args__ = (*task_args(queue), *own_args, options)  # type: ignore[attr-defined]  # as above
    cls.__handlers__ = {}


def finish(cls: type[DurableTask]) -> None:
    """Map the siblings of a class, and guard its key, after Declarative has mapped it."""
    if not isinstance(cls.__dict__.get("__table__"), Table):
        raise DeclarationError(
            f"{cls.__name__} was not mapped: "
            "its Base must be a subclass of DeclarativeBase (or DeclarativeBaseNoMeta)"
        )
    tasks = cast(Table, cls.__table__)
    # Also the columns of mixins and of the Base, which `prepare` doesn't see.
    if names := sorted({name for column in tasks.columns for name in (column.key, column.name)} & RESERVED):
        raise DeclarationError(
            f"{cls.__name__}: these names are reserved for later versions of sa_durable: {', '.join(names)}. "
            "Rename your columns."
        )
    registry, metadata, queue = cls.registry, tasks.metadata, cls.__queue__
    for attribute, role, mixin in _SIBLINGS:
        sibling = _subclass(cls, attribute, mixin)
        properties: dict[str, Any] = {}
        if role is Role.RUNS:
            properties["task"] = relationship(cls, viewonly=True)
        registry.map_imperatively(sibling, sibling_table(metadata, queue, role, tasks), properties=properties)
        setattr(cls, attribute, sibling)
    runs = relationship(cls.Run, viewonly=True, order_by=cls.Run.attempt)
    class_mapper(cls, configure=False).add_property("runs", runs)
    table = queues_table(metadata, tasks.schema)
    mapped = next((m.class_ for m in registry.mappers if m.local_table is table), None)
    if mapped is None:
        mapped = _subclass(cls, "Queue", DurableQueue)
        registry.map_imperatively(mapped, table)
    cls.Queue = mapped
    event.listen(cls.idempotency_key, "set", _refuse_key)


_SIBLINGS: tuple[tuple[str, Role, type[Any]], ...] = (
    ("Run", Role.RUNS, DurableRun),
    ("Checkpoint", Role.CHECKPOINTS, DurableCheckpoint),
    ("Event", Role.EVENTS, DurableEvent),
    ("Wait", Role.WAITS, DurableWait),
)
_ATTRIBUTES = frozenset({"handler", "runs", "Queue", *(attribute for attribute, _, _ in _SIBLINGS)})
RESERVED = frozenset(
    {
        "limit_key",  # limits per key
        "on_failure",  # a hook beside `handler`
        "progress",  # reported by a handler
        "progress_at",
        "progress_note",
        "purged_at",  # payloads were blanked
        "release",  # release of the code that ran the task
        "rerun_of",  # the task that this one repeats
        "schedule",  # periodic tasks
        "scheduled_for",
        "Signal",  # messages to a task
        "signal",
        "signals",
    }
)
"""Names that later versions need on task models. Reserved now, so that no upgrade collides with an
application's column.
"""


def _subclass(cls: type[DurableTask], attribute: str, mixin: type[Any]) -> type[Any]:
    # Rows can be pickled because the class is found by its qualified name.
    namespace = {
        "__module__": cls.__module__,
        "__qualname__": f"{cls.__qualname__}.{attribute}",
        "__doc__": mixin.__doc__,
    }
    return type(f"{cls.__name__}{attribute}", (mixin,), namespace)


def _refuse_key(target: DurableTask, value: object, old: object, _: object) -> None:
    # Session.merge sets the value that the object has already.
    if value is not None and value != old and value != target.__dict__.get("idempotency_key"):
        raise KeyedObject(
            f"idempotency_key={value!r} was set on a {type(target).__name__} object. "
            "A flush would answer a duplicate with a unique violation. "
            "Use Durable(session).spawn(call, idempotency_key=...), and spawned.task."
        )


def base_of(cls: type) -> Any:
    """Return the application's Base among the bases of a class, or None."""
    roots = (DeclarativeBase, DeclarativeBaseNoMeta)
    return next((c for c in cls.__mro__ if any(root in c.__bases__ for root in roots)), None)


def _own_table_args(cls: type) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    match getattr(cls, "__table_args__", ()):
        case Mapping() as options:
            return (), options
        case tuple() as args if args and isinstance(args[-1], Mapping):
            return args[:-1], args[-1]
        case tuple() as args:
            return args, {}
        case other:
            raise DeclarationError(
                f"{cls.__name__}.__table_args__ = {other!r} is neither a tuple nor a mapping"
            )
