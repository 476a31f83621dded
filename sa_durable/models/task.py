"""DurableTask: what an application mixes into a model to make it a queue."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast
from uuid import UUID

from sqlalchemy import FromClause, MetaData
from sqlalchemy.orm import (
    Mapped,
    declared_attr,
    registry,
)
from typing_extensions import Unpack

from .. import policy
from ..declaration import DeclarationKeywords, RunKeywords, resolve_run
from ..decorator import Decorator
from ..errors import DeclarationError, InvalidOptions, KeyedObject
from ..handlers import Call, Handler
from ..headers import encode_headers, spawn_headers
from ..ids import uuid7
from ..spawn_options import resolve
from ..values import HandlerKeywords, Json, SpawnKeywords
from . import clock
from .declare import base_of, finish, prepare
from .siblings import DurableCheckpoint, DurableEvent, DurableQueue, DurableRun, DurableWait


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

    __run_defaults__: ClassVar[RunKeywords] = {}
    """How its handlers' attempts are run (`timeout`, `non_retryable`); a handler's own options win over these."""

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
        awaited: Mapped[bool]
        """Somebody who is not its parent waits for its end."""
        max_duration: Mapped[timedelta | None]
        """From its first start to its end, over all attempts; then it is cancelled."""
        cancel_at: Mapped[datetime | None]
        """When it is cancelled if it is not over: its start's deadline at first, then its end's."""
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
            prepare(cls, DurableTask)
        elif (
            not cls.__dict__.get("__abstract__")
            and base_of(cls) is not None
            and not hasattr(cls, "__queue__")
        ):
            raise DeclarationError(f'{cls.__name__} needs a queue: __queue__ = "..."')
        super().__init_subclass__(**kw)
        if declares:
            finish(cls)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {self.id} {self.state}>"

    @classmethod
    def handler(
        cls, name: str | None = None, *, transactional: bool = False, **options: Unpack[DeclarationKeywords]
    ) -> Decorator[Self]:
        """Register a function as the handler of tasks called `name` (default: the function's own name).

        ::

            @BillingTask.handler(max_attempts=5)
            def charge(ctx: TaskContext, order_id: int) -> str: ...

        Its first parameter is the context; the others are the task's params, encoded and decoded by their
        annotations. `transactional`: the whole handler is one transaction on `ctx.session`, which commits together with
        the task's completion or not at all.

        `non_retryable=(CardDeclined,)`: errors that end the task at once, as Fail does, whatever its attempts.
        `timeout`: how long one execution may take. One that takes longer has failed, and is retried as any failure: an
        async handler is cancelled; a plain one can't be interrupted, so it goes on, its writes are rejected, its next
        context call raises, and it keeps its slot until it returns. A sleep or a wait ends an execution: that time
        doesn't count.

        Raises DeclarationError for a signature that can't be stored or a name that is taken, and InvalidOptions for
        options that can't work.
        """
        if "__handlers__" not in cls.__dict__:
            raise DeclarationError(
                f"{cls.__name__} is no queue: handlers are registered with a class that has __queue__"
            )
        own = {name: value for name, value in options.items() if name in RunKeywords.__annotations__}
        run = resolve_run(cast(RunKeywords, own), cls.__run_defaults__)
        spawn = {name: value for name, value in options.items() if name not in own}
        return Decorator(
            cls,
            cls.__register,
            name,
            cast(SpawnKeywords, spawn),
            transactional=transactional,
            run_options=run,
        )

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
        options = resolve(call.options, call.defaults, cast(SpawnKeywords, cls.__spawn_defaults__))
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
        task.params = call.params
        headers = spawn_headers(cls.__queue__, call.name, options.headers)
        encode_headers(headers)  # raises
        task.headers = dict(headers) if headers else None
        task.priority = options.priority
        task.max_attempts = options.max_attempts
        task.retry = policy.retry_to_json(options.retry)
        due: Any = clock.now()  # an expression, at flush
        if options.delay:
            due = clock.after(options.delay)
            task.state = "sleeping"
            task.available_at = due
        if options.cancellation is not None:
            task.max_duration = options.cancellation.max_duration
            if options.cancellation.start_within is not None:
                task.cancel_at = clock.after(options.cancellation.start_within, due)
        return task
