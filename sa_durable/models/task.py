"""DurableTask: what an application mixes into a model to make it a queue."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast
from uuid import UUID

from sqlalchemy import FromClause, MetaData, Table, event, func
from sqlalchemy.orm import (
    DeclarativeBase,
    DeclarativeBaseNoMeta,
    Mapped,
    class_mapper,
    declared_attr,
    registry,
    relationship,
)
from typing_extensions import Unpack

from .. import policy
from ..errors import DeclarationError, InvalidOptions, KeyedObject
from ..handlers import Call, Decorator, Handler, encode_headers
from ..ids import uuid7
from ..values import HandlerKeywords, Json, SpawnKeywords
from .names import Role, check_queue, comment, table_name
from .siblings import DurableCheckpoint, DurableEvent, DurableQueue, DurableRun, DurableWait
from .tables import info, queues_table, sibling_table, task_args, task_columns


class DurableTask:
    """A queue: a task model on the application's own Base, with columns and relationships of its own.

    ::

        class BillingTask(DurableTask, Base):
            __queue__ = "billing"
            order_id: Mapped[int | None] = mapped_column(ForeignKey("orders.id"))

    One class makes five tables (`durable_billing_tasks`, `_runs`, `_checkpoints`, `_events`, `_waits`) in the Base's
    metadata; the models of the others are `BillingTask.Run`, `.Checkpoint`, `.Event` and `.Wait`. Raises
    DeclarationError for a name that doesn't fit, or a second class for a queue of the same metadata and schema.
    """

    __queue__: ClassVar[str]
    """The queue's name: a-z, 0-9 and _, at most 32 characters."""
    __spawn_defaults__: ClassVar[HandlerKeywords] = {}
    """Spawn options for every task of the queue; a handler's own, a call's and a spawn's win over them."""

    __handlers__: ClassVar[dict[str, Handler[Any, ..., Any]]]

    if TYPE_CHECKING:
        __table__: ClassVar[FromClause]
        metadata: ClassVar[MetaData]
        registry: ClassVar[registry]
        Run: ClassVar[type[DurableRun]]
        Checkpoint: ClassVar[type[DurableCheckpoint]]
        Event: ClassVar[type[DurableEvent]]
        Wait: ClassVar[type[DurableWait]]
        Queue: ClassVar[type[DurableQueue]]

        # The columns themselves are in tables.task_columns: annotations would become arguments of a dataclass Base.
        id: Mapped[UUID]
        """UUIDv7, made by the client: ids sort by the time of spawning."""
        name: Mapped[str]
        """The handler's."""
        params: Mapped[Json]
        headers: Mapped[dict[str, Json] | None]
        state: Mapped[str]
        """A TaskState."""
        priority: Mapped[int]
        """Lower first."""
        available_at: Mapped[datetime | None]
        """Pending: claimed in this order. Sleeping: not before this; NULL: until an event."""
        created_at: Mapped[datetime]
        first_started_at: Mapped[datetime | None]
        finished_at: Mapped[datetime | None]
        """When it became terminal."""
        run_id: Mapped[UUID]
        """The current run's, or the last one's."""
        attempt: Mapped[int]
        """The current run's, from 1."""
        max_attempts: Mapped[int | None]
        """NULL: unlimited."""
        retry: Mapped[dict[str, Json] | None]
        started_at: Mapped[datetime | None]
        """When the current run was claimed."""
        claimed_by: Mapped[str | None]
        token: Mapped[int]
        """Raised by every claim and everything that ends one; a worker's writes name the one it got."""
        lease_expires_at: Mapped[datetime | None]
        result: Mapped[Json]
        error: Mapped[dict[str, Json] | None]
        parent_queue: Mapped[str | None]
        parent_id: Mapped[UUID | None]
        idempotency_key: Mapped[str | None]
        """Read-only on objects: spawn sets it. Stays as history when the key is free again."""
        key_hold: Mapped[str | None]
        """A Hold; NULL: no key, or released."""
        key_expires_at: Mapped[datetime | None]
        runs: Mapped[list[DurableRun]]
        """Earlier attempts, in order; read-only."""

    else:

        @declared_attr.directive
        def __tablename__(cls) -> str:  # noqa: N805 - as Declarative calls it
            raise DeclarationError(
                f"{cls.__name__}: DurableTask comes before the Base: class {cls.__name__}(DurableTask, Base)"
            )

    def __init_subclass__(cls, **kw: Any) -> None:
        declares = "__queue__" in cls.__dict__
        if declares:
            _prepare(cls)
        elif (
            not cls.__dict__.get("__abstract__") and _base(cls) is not None and not hasattr(cls, "__queue__")
        ):
            raise DeclarationError(f'{cls.__name__} needs a queue: __queue__ = "..."')
        super().__init_subclass__(**kw)
        if declares:
            _finish(cls)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {self.id} {self.state}>"

    @classmethod
    def handler(cls, name: str | None = None, **options: Unpack[HandlerKeywords]) -> Decorator[Self]:
        """Register a function as the handler of tasks called `name` (default: the function's own name).

        ::

            @BillingTask.handler(max_attempts=5)
            def charge(ctx: TaskContext, order_id: int) -> str: ...

        Its first parameter is the context; the others are the task's params, encoded and decoded by their
        annotations. Raises DeclarationError for a signature that can't be stored or a name that is taken, and
        InvalidOptions for options that can't work.
        """
        if "__handlers__" not in cls.__dict__:
            raise DeclarationError(
                f"{cls.__name__} is no queue: handlers are registered with a class that has __queue__"
            )
        return Decorator(cls, cls.__register, name, cast(SpawnKeywords, options))

    @classmethod
    def __register(cls, handler: Handler[Any, ..., Any]) -> None:
        known = cls.__handlers__.get(handler.name)
        # The same function again is a module that was loaded twice (a reload, or __main__); it replaces the first.
        if known is not None and known.fn.__qualname__ != handler.fn.__qualname__:
            raise DeclarationError(
                f"queue {cls.__queue__!r} has a handler {handler.name!r} already, {known.fn.__module__}."
                f"{known.fn.__qualname__}: give one of them another name"
            )
        cls.__handlers__[handler.name] = handler

    @classmethod
    def __new_task__(cls, call: Call[Self, Any]) -> Self:
        options = policy.resolve(call.options, call.defaults, cast(SpawnKeywords, cls.__spawn_defaults__))
        if options.only_once:
            raise KeyedObject(
                f"{call.name} is spawned only_once by default, which a flush can't do: use Durable(session).spawn"
            )
        try:
            task = cls(**(options.columns or {}))
        except TypeError as error:
            raise InvalidOptions(
                f"{cls.__name__} can't be made: {error}; give your own columns with call.using(columns=...) and spawn"
            ) from error
        task.id = uuid7()
        task.run_id = uuid7()
        task.name = call.name
        task.params = dict(call.params)
        encode_headers(options.headers)  # raises
        task.headers = dict(options.headers) if options.headers else None
        task.priority = options.priority
        task.max_attempts = options.max_attempts
        task.retry = policy.retry_to_json(options.retry)
        if options.delay:
            task.state = "sleeping"
            task.available_at = cast(
                Any, func.statement_timestamp() + options.delay
            )  # an expression, at flush
        return task


def _prepare(cls: type[DurableTask]) -> None:
    """Before Declarative looks at the class: table name, columns, constraints."""
    base = _base(cls)
    if base is None:
        raise DeclarationError(
            f"{cls.__name__} must also inherit your DeclarativeBase, after DurableTask: "
            f"class {cls.__name__}(DurableTask, Base)"
        )
    if cls.__mro__.index(base) < cls.__mro__.index(DurableTask):
        raise DeclarationError(
            f"{cls.__name__}: DurableTask comes before the Base: class {cls.__name__}(DurableTask, Base)"
        )
    queue = check_queue(cls.__queue__, cls.__name__)
    columns = task_columns()
    taken = sorted(columns.keys() & (cls.__dict__.keys() | inspect.get_annotations(cls).keys()))
    if taken:
        raise DeclarationError(
            f"{cls.__name__}: {', '.join(taken)} are columns of sa_durable; give yours another name"
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


def _finish(cls: type[DurableTask]) -> None:
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


def _base(cls: type) -> Any:
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
