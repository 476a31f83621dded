"""Making a queue of a class: its table and columns before Declarative looks at it, its siblings afterwards."""

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
    """Before Declarative looks at the class: table name, columns, constraints. `mixin` is DurableTask."""
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
    for taken, what in ((columns.keys(), "columns"), (_ATTRIBUTES, "attributes")):
        if names := sorted(taken & own):
            raise DeclarationError(
                f"{cls.__name__}: {', '.join(names)} are {what} of sa_durable; give yours another name"
            )
    own_args, own_options = _own_table_args(cls)
    schema = own_options.get("schema", base.metadata.schema)
    name = table_name(queue, Role.TASKS)
    if (f"{schema}.{name}" if schema else name) in base.metadata.tables:
        raise DeclarationError(
            f"{cls.__name__}: queue {queue!r} has a class already on this metadata; a queue has one"
        )
    for attribute, column in columns.items():
        setattr(cls, attribute, column)
    if "comment" in own_options:
        raise DeclarationError(
            f"{cls.__name__}: a queue is found by its table's comment, which sa_durable sets"
        )
    options = {**own_options, "comment": comment(queue, Role.TASKS)}
    options["info"] = {**own_options.get("info", {}), **info(queue, Role.TASKS)}
    cls.__tablename__ = name  # type: ignore[attr-defined]  # Declarative's, set before it looks
    cls.__table_args__ = (*task_args(queue), *own_args, options)  # type: ignore[attr-defined]  # as above
    cls.__handlers__ = {}


def finish(cls: type[DurableTask]) -> None:
    """After the class is mapped: its siblings, and the guard of its key."""
    if not isinstance(cls.__dict__.get("__table__"), Table):
        raise DeclarationError(
            f"{cls.__name__} was not mapped: its Base must be a DeclarativeBase (or DeclarativeBaseNoMeta) subclass"
        )
    tasks = cast(Table, cls.__table__)
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


def _subclass(cls: type[DurableTask], attribute: str, mixin: type[Any]) -> type[Any]:
    # The qualified name is where it is found, so that its rows pickle.
    namespace = {
        "__module__": cls.__module__,
        "__qualname__": f"{cls.__qualname__}.{attribute}",
        "__doc__": mixin.__doc__,
    }
    return type(f"{cls.__name__}{attribute}", (mixin,), namespace)


def _refuse_key(target: DurableTask, value: object, old: object, _: object) -> None:
    # A merge sets what is there already.
    if value is not None and value != old and value != target.__dict__.get("idempotency_key"):
        raise KeyedObject(
            f"idempotency_key={value!r} was set on a {type(target).__name__} object. A flush would answer a duplicate "
            "with a unique violation: use Durable(session).spawn(call, idempotency_key=...), and spawned.task"
        )


def base_of(cls: type) -> Any:
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
            raise DeclarationError(f"{cls.__name__}.__table_args__ = {other!r} is no tuple or mapping")
