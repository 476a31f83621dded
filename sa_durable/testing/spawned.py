"""Saying in tests what was spawned, and reading what was spawned instead."""

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

LISTED = 20


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
    """The task that was spawned: `assert_spawned(session, charge, order_id=7)`; or by name:
    `assert_spawned(session, BillingTask, "charge", order_id=7)`.

    Exactly `count` tasks, whatever their state, have these params (others don't matter), and the idempotency key `key`
    if it is given; the first one is returned. Params that are called `count` or `key` go into a mapping:
    `assert_spawned(session, pack, {"count": 3})`. With a Session, what it hasn't committed counts too; with an Engine,
    the task comes back detached.

    Raises AssertionError, which lists what is in the queue instead.
    """
    if type(count) is not int or count < 1:
        raise InvalidOptions(
            f"count={count!r} must be an integer from 1; for none there is assert_not_spawned"
        )
    wanted = _Wanted(what, more, key)
    with _session(where) as session:
        tasks = wanted.tasks(session)
        if len(tasks) != count:
            raise AssertionError(wanted.complaint(session, f"{count}", len(tasks)))
    return tasks[0]


def assert_not_spawned(where: AnySync, /, *what: Any, key: str | None = None, **more: Any) -> None:
    """No task was spawned that `assert_spawned` would find: takes what that takes, but for `count`.

    Raises AssertionError, which lists what is in the queue.
    """
    wanted = _Wanted(what, more, key)
    with _session(where) as session:
        if tasks := wanted.tasks(session):
            raise AssertionError(wanted.complaint(session, "no", len(tasks)))


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
    """As `assert_spawned`, with an AsyncSession, async_scoped_session or AsyncEngine."""
    return await _through(where, lambda session: assert_spawned(session, *what, **options))


async def assert_not_spawned_async(where: AnyAsync, /, *what: Any, **options: Any) -> None:
    """As `assert_not_spawned`, with an AsyncSession, async_scoped_session or AsyncEngine."""
    await _through(where, lambda session: assert_not_spawned(session, *what, **options))


async def _through(where: AnyAsync, check: Any) -> Any:
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
                f"{type(where).__name__}: give a Session or an Engine; for async ones there is assert_spawned_async"
            )


class _Wanted:
    """Which tasks are meant."""

    def __init__(self, what: tuple[Any, ...], more: Mapping[str, Any], key: str | None) -> None:
        match what:
            case (Handler() as handler, *rest):
                self.queue, self.name = queue_of(handler.model), handler.name
            case (type() as model, str() as name, *rest):
                self.queue, self.name = queue_of(model), name
            case _:
                raise InvalidOptions(
                    "say what was spawned: a handler, charge, or a queue and a task's name, BillingTask, 'charge'"
                )
        if len(rest) > 1 or not all(isinstance(params, Mapping) for params in rest):
            raise InvalidOptions("params are keyword arguments, or one mapping")
        params = {**(rest[0] if rest else {}), **more}
        handler = self.queue.__handlers__.get(self.name)
        self.params = handler.encoded(params) if handler else _plain(params)
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

    def complaint(self, session: Session, number: str, found: int) -> str:
        model, key = self.queue, f" with key {self.key!r}" if self.key is not None else ""
        queue = f"queue {model.__queue__!r}"
        lines = [f"expected {number} {_shown(self.name, self.params)}{key} in {queue}, found {found}"]
        tasks = session.scalars(select(model).order_by(model.id).limit(LISTED + 1)).all()
        lines[0] += ". It has:" if tasks else ". It is empty."
        lines += [f"  {_line(task)}" for task in tasks[:LISTED]]
        if len(tasks) > LISTED:
            lines.append("  ...")
        return "\n".join(lines)


def _plain(params: Mapping[str, Any]) -> dict[str, Json]:
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
