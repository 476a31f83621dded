"""AsyncDurable: each method runs the one of Durable through SQLAlchemy's `run_sync`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, overload
from uuid import UUID

from typing_extensions import Unpack

from ..errors import InvalidOptions
from ..handlers import Call
from ..models import DurableTask
from ..values import CleanedUp, SpawnKeywords, SpawnResult, TaskResult, TaskRun
from .durable import Durable

if TYPE_CHECKING:  # needs greenlet, which is there if there is an AsyncSession
    from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session

R = TypeVar("R")
M = TypeVar("M", bound=DurableTask)


class AsyncDurable:
    """Durable for an AsyncSession or async_scoped_session: the same methods, awaited.

    Args:
        session: The AsyncSession or async_scoped_session.
    """

    __slots__ = ("session",)

    def __init__(self, session: AsyncSession | async_scoped_session[Any]) -> None:
        # async_scoped_session has no run_sync; called, it returns its session.
        self.session: AsyncSession = session() if callable(session) else session
        if not hasattr(self.session, "run_sync"):
            raise InvalidOptions(
                f"AsyncDurable takes an AsyncSession or async_scoped_session, not {type(session).__name__}: "
                "for a Session there is Durable"
            )

    @overload
    async def spawn(self, call: Call[Any, R], /, **options: Unpack[SpawnKeywords]) -> SpawnResult[R]: ...
    @overload
    async def spawn(
        self,
        queue: type[DurableTask],
        name: str,
        params: Mapping[str, Any],
        /,
        **options: Unpack[SpawnKeywords],
    ) -> SpawnResult[Any]: ...
    async def spawn(self, *what: Any, **options: Unpack[SpawnKeywords]) -> SpawnResult[Any]:
        """Add a task, or return the task that holds its key. See Durable.spawn for all options."""
        return await self.session.run_sync(lambda session: Durable(session).spawn(*what, **options))

    async def spawn_many(
        self, calls: Iterable[Call[Any, R]], **options: Unpack[SpawnKeywords]
    ) -> Sequence[SpawnResult[R]]:
        """Spawn a batch in a few statements. See Durable.spawn_many."""
        return await self.session.run_sync(lambda session: Durable(session).spawn_many(calls, **options))

    async def find_by_key(self, queue: type[M], key: str) -> M | None:
        """Return the task that holds a key; None if the key is free. See Durable.find_by_key."""
        return await self.session.run_sync(lambda session: Durable(session).find_by_key(queue, key))

    async def release_key(self, queue: type[DurableTask], key: str) -> bool:
        """Free a key. Returns whether a task held it. See Durable.release_key."""
        return await self.session.run_sync(lambda session: Durable(session).release_key(queue, key))

    async def emit_event(self, queue: type[DurableTask], name: str, payload: Any = None) -> None:
        """Emit an event. See Durable.emit_event."""
        await self.session.run_sync(lambda session: Durable(session).emit_event(queue, name, payload))

    @overload
    async def result(self, task: SpawnResult[R], /) -> TaskResult[R]: ...
    @overload
    async def result(self, task: DurableTask, /) -> TaskResult[Any]: ...
    @overload
    async def result(self, queue: type[DurableTask], task_id: UUID, /) -> TaskResult[Any]: ...
    async def result(self, *what: Any) -> TaskResult[Any]:
        """Return a task's state, result and error now. See Durable.result."""
        return await self.session.run_sync(lambda session: Durable(session).result(*what))

    @overload
    async def cancel(self, task: SpawnResult[Any] | DurableTask, /) -> bool: ...
    @overload
    async def cancel(self, queue: type[DurableTask], task_id: UUID, /) -> bool: ...
    async def cancel(self, *what: Any) -> bool:
        """Cancel a task and its descendants. See Durable.cancel."""
        return await self.session.run_sync(lambda session: Durable(session).cancel(*what))

    @overload
    async def retry(
        self, task: SpawnResult[R], /, *, as_new: bool = False, detach: bool = False
    ) -> SpawnResult[R]: ...
    @overload
    async def retry(
        self, task: DurableTask, /, *, as_new: bool = False, detach: bool = False
    ) -> SpawnResult[Any]: ...
    @overload
    async def retry(
        self, queue: type[DurableTask], task_id: UUID, /, *, as_new: bool = False, detach: bool = False
    ) -> SpawnResult[Any]: ...
    async def retry(self, *what: Any, as_new: bool = False, detach: bool = False) -> SpawnResult[Any]:
        """Give a failed or cancelled task another attempt. See Durable.retry."""
        return await self.session.run_sync(
            lambda session: Durable(session).retry(*what, as_new=as_new, detach=detach)
        )

    @overload
    async def runs(self, task: SpawnResult[Any] | DurableTask, /) -> list[TaskRun]: ...
    @overload
    async def runs(self, queue: type[DurableTask], task_id: UUID, /) -> list[TaskRun]: ...
    async def runs(self, *what: Any) -> list[TaskRun]:
        """Return every attempt at a task, in order. See Durable.runs."""
        return await self.session.run_sync(lambda session: Durable(session).runs(*what))

    async def count_ready(
        self, queue: type[DurableTask], names: Sequence[str] | None = None, *, limit: int = 10_000
    ) -> int:
        """Count the tasks that workers could claim now. See Durable.count_ready."""
        return await self.session.run_sync(
            lambda session: Durable(session).count_ready(queue, names, limit=limit)
        )

    async def clean_up(
        self, queue: type[DurableTask], *, older_than: timedelta, limit: int = 1000
    ) -> CleanedUp:
        """Delete tasks and events that ended long ago. See Durable.clean_up."""
        return await self.session.run_sync(
            lambda session: Durable(session).clean_up(queue, older_than=older_than, limit=limit)
        )

    async def pause(self, queue: type[DurableTask]) -> bool:
        """Pause a queue. Returns whether this call paused it. See Durable.pause."""
        return await self.session.run_sync(lambda session: Durable(session).pause(queue))

    async def resume(self, queue: type[DurableTask]) -> bool:
        """Resume a queue. Returns whether this call resumed it. See Durable.resume."""
        return await self.session.run_sync(lambda session: Durable(session).resume(queue))

    async def set_retention(self, queue: type[DurableTask], retention: timedelta | None) -> bool:
        """Set how long finished tasks are kept. See Durable.set_retention."""
        return await self.session.run_sync(lambda session: Durable(session).set_retention(queue, retention))
