"""Transactions of the application.

Its rows and the library's record of them commit together, or not at all.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import cached_property
from time import sleep
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy.orm import Session

from ...errors import DeclarationError, MissingExtra
from ..connections.engines import EngineOrUrl, connect_args_of, copy_connect_listeners, engine_for
from ..runs.active import ActiveRun
from .transaction_record import Record
from .transaction_retry import TransactionRetry
from .transaction_scope import CommitGuard, open_transaction, transaction_scope

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

T = TypeVar("T")
V = TypeVar("V")

SessionFactory = Callable[[], Session]
AsyncSessionFactory = Callable[[], "AsyncSession"]


class Transactions:
    """Execute functions of the application exactly once, in sessions of the application's engine.

    After the function has returned, the record is written in the same transaction, fenced by the run's token.
    A transaction that lost a race, or its connection, is executed again from its start. If the answer to its
    COMMIT was lost, the record is read first.

    Args:
        source: The engine, or the URL, of the application's database.
        sessions: Makes sessions for sync functions; None for sessions of the engine.
        async_sessions: Makes sessions for async functions; None for sessions of an async engine that connects
            as the engine does.
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
        self._own_engine = None if engine is source else engine
        self._own_async_engine: AsyncEngine | None = None

    def execute(self, run: ActiveRun, work: Callable[[Session], T], record: Record[T, V]) -> V:
        """Execute `work` and `record` in one transaction, once.

        Args:
            run: The run that executes the transaction.
            work: The application's function. It may be called several times; one call is committed.
            record: Recorded with the value that `work` returned.

        Returns:
            What `record` returned, or found of an earlier attempt.

        Raises:
            DeclarationError: `work` returned an awaitable, committed, or the engine is in AUTOCOMMIT mode.
            Cancelled: The task was cancelled.
            LeaseLost: Another worker may run the task.
        """
        retry = TransactionRetry(run)
        while True:
            with retry:
                if retry.in_doubt:
                    with self._session() as session:
                        if (earlier := record.find(session)) is not None:
                            return earlier
                    retry.not_committed()
                with self._session() as session, CommitGuard(session) as guard:
                    with retry.connecting():
                        open_transaction(session, run.model)
                    with transaction_scope(run):
                        value = _refuse_awaitable(work(session))
                    return _commit(session, retry, guard, record, value)
            sleep(retry.pause_s)

    async def execute_async(
        self, run: ActiveRun, work: Callable[[AsyncSession], Awaitable[T]], record: Record[T, V]
    ) -> V:
        """Async version of `execute`: for an async function, which takes an AsyncSession."""
        retry = TransactionRetry(run)
        while True:
            with retry:
                if retry.in_doubt:
                    async with self._async_session_factory() as session:
                        if (earlier := await session.run_sync(record.find)) is not None:
                            return earlier
                    retry.not_committed()
                async with self._async_session_factory() as session:
                    with CommitGuard(session.sync_session) as guard:
                        with retry.connecting():
                            await session.run_sync(open_transaction, run.model)
                        with transaction_scope(run):
                            value = await work(session)
                        return await session.run_sync(_commit, retry, guard, record, value)
            await asyncio.sleep(retry.pause_s)

    def _session(self) -> Session:
        return Session(self._engine) if self._sessions is None else self._sessions()

    @cached_property
    def _async_session_factory(self) -> AsyncSessionFactory:
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
                    "transactions of async functions: the worker's engine has a `creator`, which makes no "
                    "async connections. Give the worker an async_session_factory"
                )
            self._own_async_engine = create_async_engine(
                example.url, connect_args=arguments, hide_parameters=example.hide_parameters
            )
            copy_connect_listeners(self._own_async_engine.sync_engine, example)
            engine = self._own_async_engine.execution_options(**example.get_execution_options())
        return lambda: AsyncSession(engine, expire_on_commit=False)

    def close(self) -> None:
        """Close the connections of the engine that was made here."""
        if self._own_engine is not None:
            self._own_engine.dispose()

    async def aclose(self) -> None:
        """Close the connections that belong to the event loop."""
        if self._own_async_engine is not None:
            await self._own_async_engine.dispose()


def _commit(
    session: Session, retry: TransactionRetry, guard: CommitGuard, record: Record[T, V], value: T
) -> V:
    session.flush()
    retry.run.check()
    with record.finishing_block():
        recorded = record.record(session, value)
        guard.allow_commit = retry.committing = True
        session.commit()
    return recorded


def _refuse_awaitable(value: T) -> T:
    if inspect.isawaitable(value):
        with suppress(AttributeError):
            value.close()  # type: ignore[attr-defined]  # a coroutine has it
        raise DeclarationError(
            "ctx.transaction: a sync function returned an awaitable. Nothing was written. An async function "
            "needs an async handler, and must not be in a lambda: ctx.transaction(name, fn, *args)"
        )
    return value
