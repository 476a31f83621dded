"""Exactly-once effects: the application's rows and the library's record of them commit together or not at all."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import cached_property
from time import sleep
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy.orm import Session

from ...errors import DeclarationError, MissingExtra, Signal
from ..connections.engines import EngineOrUrl, connect_args_of, copy_connect_listeners, engine_for
from ..runs.active import ActiveRun
from .transaction_record import CommitGuard, Record, begin, transaction_scope
from .transaction_retry import TransactionRetry

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

T = TypeVar("T")
V = TypeVar("V")

SessionFactory = Callable[[], Session]
AsyncSessionFactory = Callable[[], "AsyncSession"]


class Transactions:
    """Sessions of the application's, on its own engine, for what runs must do exactly once.

    `effect` records in the same transaction, after what the application does, that it happened, under the run's token.
    A transaction that lost a race with others, or its connection, is run again from its start; where the reply to its
    COMMIT was lost, only once it is known that it didn't commit.
    """

    def __init__(
        self,
        source: EngineOrUrl,
        sessions: SessionFactory | None,
        async_sessions: AsyncSessionFactory | None,
    ) -> None:
        engine = engine_for(source)
        self._source, self._sessions, self._async_sessions = source, sessions, async_sessions
        self._engine = engine
        self._own = None if engine is source else engine  # made here
        self._own_async: AsyncEngine | None = None

    def execute(self, run: ActiveRun, work: Callable[[Session], T], effect: Record[T, V]) -> V:
        """What `effect` made of the value of `work(session)`, once both are committed."""
        tries = TransactionRetry(run)
        while True:
            run.check()
            try:
                if tries.in_doubt:
                    with self._session() as session:
                        if (before := effect.find(session)) is not None:
                            return before
                    tries.not_committed()
                with self._session() as session, CommitGuard(session) as guard:
                    with tries.connecting():
                        begin(session, run.model)
                    with transaction_scope(run):
                        value = _plain(work(session))
                    return _commit(session, tries, guard, effect, value)
            except Signal as signal:
                run.end(signal)
                raise
            except Exception as error:
                if (pause := tries.pause_after(error)) is None:
                    raise
            sleep(pause)

    async def execute_async(
        self, run: ActiveRun, work: Callable[[AsyncSession], Awaitable[T]], effect: Record[T, V]
    ) -> V:
        """As `run`, for an async function and an AsyncSession."""
        tries = TransactionRetry(run)
        while True:
            run.check()
            try:
                if tries.in_doubt:
                    async with self._async_factory() as session:
                        if (before := await session.run_sync(effect.find)) is not None:
                            return before
                    tries.not_committed()
                async with self._async_factory() as session:
                    with CommitGuard(session.sync_session) as guard:
                        with tries.connecting():
                            await session.run_sync(begin, run.model)
                        with transaction_scope(run):
                            value = await work(session)
                        return await session.run_sync(_commit, tries, guard, effect, value)
            except Signal as signal:
                run.end(signal)
                raise
            except Exception as error:
                if (pause := tries.pause_after(error)) is None:
                    raise
            await asyncio.sleep(pause)

    def _session(self) -> Session:
        return Session(self._engine) if self._sessions is None else self._sessions()

    @cached_property
    def _async_factory(self) -> AsyncSessionFactory:
        if self._async_sessions is not None:
            return self._async_sessions
        try:
            from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine  # noqa: PLC0415 - needs greenlet
        except ImportError as error:
            raise MissingExtra(
                'transactions of async functions need greenlet: pip install "sa-durable[asyncio]"',
                name="greenlet",
            ) from error
        if isinstance(self._source, AsyncEngine):
            engine = self._source
        else:
            example = self._engine
            if (arguments := connect_args_of(example)) is None:
                raise DeclarationError(
                    "the engine has a creator, which makes no async connections: give the worker an async_session_factory "
                    "for transactions of async functions"
                )
            self._own_async = create_async_engine(
                example.url, connect_args=arguments, hide_parameters=example.hide_parameters
            )
            copy_connect_listeners(self._own_async.sync_engine, example)
            engine = self._own_async.execution_options(**example.get_execution_options())
        return lambda: AsyncSession(engine, expire_on_commit=False)

    def close(self) -> None:
        if self._own is not None:
            self._own.dispose()

    async def aclose(self) -> None:
        """Let go of what belongs to the event loop."""
        if self._own_async is not None:
            await self._own_async.dispose()


def _commit(
    session: Session, tries: TransactionRetry, guard: CommitGuard, effect: Record[T, V], value: T
) -> V:
    session.flush()
    tries.run.check()
    with effect.finishing_block():
        recorded = effect.record(session, value)
        guard.allow_commit = tries.committing = True
        session.commit()
    return recorded


def _plain(value: T) -> T:
    if inspect.isawaitable(value):
        with suppress(AttributeError):
            value.close()  # type: ignore[attr-defined]  # a coroutine has it
        raise DeclarationError(
            "a plain function in a transaction returned an awaitable: an async one needs an async handler, and is given "
            "itself, not in a lambda: ctx.transaction(name, fn, *args)"
        )
    return value
