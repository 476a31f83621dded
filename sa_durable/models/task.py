"""DurableTask: the mixin that makes an application's model a queue."""

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

    One class makes five tables (`durable_billing_tasks`, `_runs`, `_checkpoints`, `_events`, `_waits`) in the
    Base's metadata. The models of the other tables are `BillingTask.Run`, `.Checkpoint`, `.Event` and
    `.Wait`.

    Raises DeclarationError for a queue name that can't be one, a second class for a queue of the same
    metadata and schema, and own columns or attributes whose names sa_durable uses or reserves.
    """

    __queue__: ClassVar[str]
    """The queue's name: a-z, 0-9 and _, at most 32 characters, a letter first."""

    __spawn_defaults__: ClassVar[HandlerKeywords] = {}
    """Default spawn options for all tasks of the queue. Options of a handler, a call or a spawn take
    precedence.
    """

    __run_defaults__: ClassVar[RunKeywords] = {}
    """Default run options (`timeout`, `non_retryable`) for all handlers of the queue. A handler's own take
    precedence.
    """

    __handlers__: ClassVar[dict[str, Handler[Any, ..., Any]]]
    """The queue's handlers by name."""

    if TYPE_CHECKING:
        __table__: ClassVar[FromClause]
        metadata: ClassVar[MetaData]
        registry: ClassVar[registry]
        Run: ClassVar[type[DurableRun]]
        Checkpoint: ClassVar[type[DurableCheckpoint]]
        Event: ClassVar[type[DurableEvent]]
        Wait: ClassVar[type[DurableWait]]
        Queue: ClassVar[type[DurableQueue]]

        # The columns themselves are in tables.task_columns: annotations would become arguments of a dataclass
        # Base.
        id: Mapped[UUID]
        """UUIDv7, made by the client. Ids sort by the time of the spawn."""
        name: Mapped[str]
        """Name of the handler."""
        params: Mapped[Json]
        """The handler's arguments."""
        headers: Mapped[dict[str, Json] | None]
        """Metadata of the task."""
        state: Mapped[str]
        """A TaskState."""
        priority: Mapped[int]
        """Tasks with a lower priority are claimed first."""
        available_at: Mapped[datetime | None]
        """Pending tasks are claimed in this order. Sleeping tasks wake at this time; NULL: at an event."""
        created_at: Mapped[datetime]
        first_started_at: Mapped[datetime | None]
        finished_at: Mapped[datetime | None]
        """When the task became terminal."""
        run_id: Mapped[UUID]
        """Id of the current run, or of the last one."""
        attempt: Mapped[int]
        """Number of the current run, from 1."""
        max_attempts: Mapped[int | None]
        """NULL: unlimited."""
        retry: Mapped[dict[str, Json] | None]
        """The retry policy as JSON; NULL: the default one."""
        started_at: Mapped[datetime | None]
        """When the current run was claimed."""
        claimed_by: Mapped[str | None]
        """Id of the worker that runs the task, or ran it last."""
        token: Mapped[int]
        """Fencing token: raised by every claim and everything that ends one. A worker's writes name the token
        it got.
        """
        lease_expires_at: Mapped[datetime | None]
        result: Mapped[Json]
        error: Mapped[dict[str, Json] | None]
        """A TaskError as JSON, once the task has failed."""
        parent_queue: Mapped[str | None]
        parent_id: Mapped[UUID | None]
        awaited: Mapped[bool]
        """A task other than its parent, or a caller, waits for its end."""
        max_duration: Mapped[timedelta | None]
        """Deadline from the first start to the end, over all attempts. The task is cancelled then."""
        cancel_at: Mapped[datetime | None]
        """When the task is cancelled: its deadline to start at first, then its deadline to end."""
        idempotency_key: Mapped[str | None]
        """Read-only on objects: a spawn sets it. It stays as history after the key is free again."""
        key_hold: Mapped[str | None]
        """A Hold; NULL: no key, or the key was released."""
        key_expires_at: Mapped[datetime | None]
        runs: Mapped[list[DurableRun]]
        """Earlier attempts, in order. Read-only."""

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

        Its first parameter is the context. The other parameters are the task's params, encoded and decoded by
        their annotations.

        Args:
            name: Name of the tasks.
            transactional: Run the whole handler in one transaction on `ctx.session`, which commits together
                with the task's completion or not at all.
            options: Default spawn options (HandlerKeywords), and two options of every run.

        The options of a run are:

        - `non_retryable=(CardDeclined,)`: errors that fail the task at once, as Fail does, whatever attempts
          it has left.
        - `timeout`: how long one execution may take. An execution that takes longer has failed, and is
          retried like any failure. An async handler is cancelled. A sync handler can't be interrupted: it
          continues, and counts against the worker's concurrency until it returns, but its writes are rejected
          and its next context call raises. A sleep or a wait ends an execution, so that time doesn't count.

        Raises:
            DeclarationError: The signature can't be stored, or the name is taken.
            InvalidOptions: An option has a value that can't work.
        """
        if "__handlers__" not in cls.__dict__:
            raise DeclarationError(
                f"{cls.__name__} is no queue: register handlers with a class that has __queue__"
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
        # The same function is registered twice if its module is loaded twice (a reload, or __main__): the
        # last one counts.
        if known is not None and known.fn.__qualname__ != handler.fn.__qualname__:
            raise DeclarationError(
                f"queue {cls.__queue__!r} has a handler {handler.name!r} already: {known.fn.__module__}."
                f"{known.fn.__qualname__}. Give one of them another name."
            )
        cls.__handlers__[handler.name] = handler

    @classmethod
    def __new_task__(cls, call: Call[Self, Any]) -> Self:
        options = resolve(call.options, call.defaults, cast(SpawnKeywords, cls.__spawn_defaults__))
        if options.only_once:
            raise KeyedObject(
                f"{call.name} is spawned only_once by default, which a flush can't do. "
                "Use Durable(session).spawn."
            )
        try:
            task = cls(**(options.columns or {}))
        except TypeError as error:
            raise InvalidOptions(
                f"{cls.__name__} can't be made: {error}. Pass your own columns with call.using(columns=...)."
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
