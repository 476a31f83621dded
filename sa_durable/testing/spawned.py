"""Assert in tests which tasks were spawned. A failure lists the tasks that the queue has instead."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, overload

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session, scoped_session

from ..codec import Coder, NotJson
from ..errors import InvalidOptions, InvalidParams
from ..handlers import Handler
from ..models import DurableTask, queue_of
from ..values import Json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_scoped_session

    AnyAsync = AsyncSession | async_scoped_session[Any] | AsyncEngine

T = TypeVar("T", bound=DurableTask)
AnySync = Session | scoped_session[Any] | Engine

MAX_LISTED = 20


@overload
def assert_spawned(
    where: AnySync,
    handler: Handler[T, ..., Any],
    params: Mapping[str, Any] = ...,
    /,
    *,
    count: int = 1,
    key: str | None = None,
    **more: Any,
) -> T: ...
@overload
def assert_spawned(
    where: AnySync,
    queue: type[T],
    name: str,
    params: Mapping[str, Any] = ...,
    /,
    *,
    count: int = 1,
    key: str | None = None,
    **more: Any,
) -> T: ...
def assert_spawned(where: AnySync, /, *what: Any, count: int = 1, key: str | None = None, **more: Any) -> Any:
    """Assert that a task was spawned, and return it: `assert_spawned(session, charge, order_id=7)`.

    Exactly `count` tasks, in any state, must match. Params that aren't given don't matter.

    Args:
        where: A Session, whose uncommitted tasks count too, or an Engine. With an Engine, the task comes back
            detached.
        what: The handler, or its queue and its name: `assert_spawned(session, BillingTask, "charge",
            order_id=7)`. Params that are called `count` or `key` follow as a mapping:
            `assert_spawned(session, pack, {"count": 3})`.
        count: How many tasks must match.
        key: The idempotency key.
        more: The params.

    Returns:
        The first of the tasks.

    Raises:
        AssertionError: Another number of tasks match. The message lists the tasks that the queue has.
        InvalidOptions: The arguments don't say what to look up.
    """
    if type(count) is not int or count < 1:
        raise InvalidOptions(
            f"count={count!r} must be an integer from 1. To assert that none was spawned: assert_not_spawned"
        )
    wanted = _Wanted(what, more, key)
    with _session(where) as session:
        tasks = wanted.tasks(session)
        if len(tasks) != count:
            raise AssertionError(wanted.describe_failure(session, f"{count}", len(tasks)))
    return tasks[0]


def assert_not_spawned(where: AnySync, /, *what: Any, key: str | None = None, **more: Any) -> None:
    """Assert that no task was spawned that `assert_spawned` would find.

    Takes the arguments of `assert_spawned`, except `count`.

    Raises:
        AssertionError: A task matches. The message lists the tasks that the queue has.
    """
    wanted = _Wanted(what, more, key)
    with _session(where) as session:
        if tasks := wanted.tasks(session):
            raise AssertionError(wanted.describe_failure(session, "no", len(tasks)))


@overload
async def assert_spawned_async(
    where: AnyAsync,
    handler: Handler[T, ..., Any],
    params: Mapping[str, Any] = ...,
    /,
    *,
    count: int = 1,
    key: str | None = None,
    **more: Any,
) -> T: ...
@overload
async def assert_spawned_async(
    where: AnyAsync,
    queue: type[T],
    name: str,
    params: Mapping[str, Any] = ...,
    /,
    *,
    count: int = 1,
    key: str | None = None,
    **more: Any,
) -> T: ...
async def assert_spawned_async(where: AnyAsync, /, *what: Any, **options: Any) -> Any:
    """Do what `assert_spawned` does, with an AsyncSession, async_scoped_session or AsyncEngine."""
    return await _run_sync(where, lambda session: assert_spawned(session, *what, **options))


async def assert_not_spawned_async(where: AnyAsync, /, *what: Any, **options: Any) -> None:
    """Do what `assert_not_spawned` does, with an AsyncSession, async_scoped_session or AsyncEngine."""
    await _run_sync(where, lambda session: assert_not_spawned(session, *what, **options))


async def _run_sync(where: AnyAsync, check: Any) -> Any:
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession  # noqa: PLC0415 - needs greenlet

    if not isinstance(where, AsyncEngine):
        return await (where() if callable(where) else where).run_sync(check)
    async with AsyncSession(where) as session:
        found = await session.run_sync(check)
        session.expunge_all()
        return found


@contextmanager
def _session(where: AnySync) -> Iterator[Session]:
    match where:
        case Session():
            yield where
        case scoped_session():
            yield where()
        case Engine():
            with Session(where) as session:
                yield session
                session.expunge_all()
        case _:
            raise InvalidOptions(
                f"{type(where).__name__} is neither a Session nor an Engine. "
                "For async ones, use assert_spawned_async."
            )


class _Wanted:
    """The tasks that an assertion is about."""

    def __init__(self, what: tuple[Any, ...], more: Mapping[str, Any], key: str | None) -> None:
        match what:
            case (Handler() as handler, *rest):
                self.queue, self.name = queue_of(handler.model), handler.name
            case (type() as model, str() as name, *rest):
                self.queue, self.name = queue_of(model), name
            case _:
                raise InvalidOptions(
                    "name the task by its handler (charge), or by queue and name (BillingTask, 'charge')"
                )
        if len(rest) > 1 or not all(isinstance(params, Mapping) for params in rest):
            raise InvalidOptions("give the params as keyword arguments, or as one mapping")
        params = {**(rest[0] if rest else {}), **more}
        handler = self.queue.__handlers__.get(self.name)
        self.params = handler.encoded(params) if handler else _encoded(params)
        self.key = key

    def tasks(self, session: Session) -> list[DurableTask]:
        model = self.queue
        named = select(model).where(model.name == self.name).order_by(model.id)
        if self.key is not None:
            named = named.where(model.idempotency_key == self.key)
        tasks = session.scalars(named, execution_options={"populate_existing": True})
        return [task for task in tasks if self._fits(task.params)]

    def _fits(self, params: Json) -> bool:
        missing = object()
        return all(params.get(name, missing) == value for name, value in self.params.items())

    def describe_failure(self, session: Session, number: str, found: int) -> str:
        model, key = self.queue, f" with key {self.key!r}" if self.key is not None else ""
        queue = f"queue {model.__queue__!r}"
        lines = [f"expected {number} {_shown(self.name, self.params)}{key} in {queue}, found {found}"]
        tasks = session.scalars(select(model).order_by(model.id).limit(MAX_LISTED + 1)).all()
        lines[0] += ". It has:" if tasks else ". It is empty."
        lines += [f"  {_line(task)}" for task in tasks[:MAX_LISTED]]
        if len(tasks) > MAX_LISTED:
            lines.append("  ...")
        return "\n".join(lines)


def _encoded(params: Mapping[str, Any]) -> dict[str, Json]:
    try:
        stored: dict[str, Json] = Coder(Any).encode(params, "params")
    except NotJson as error:
        raise InvalidParams(str(error)) from error
    return stored


def _line(task: DurableTask) -> str:
    key = f", key {task.idempotency_key!r}" if task.idempotency_key is not None else ""
    return f"{_shown(task.name, task.params)}: {task.state}{key}"


def _shown(name: str, params: Iterable[Any] | Mapping[str, Json]) -> str:
    if not isinstance(params, Mapping):
        return f"{name}({params!r})"
    return f"{name}({', '.join(f'{k}={json.dumps(v, ensure_ascii=False)}' for k, v in params.items())})"
