"""What functions ctx.transaction takes, and what they and a transactional handler may do (B26)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import NullPool
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from tests.runtime import audit_app
from tests.runtime.audit_app import LedgerTask
from tests.runtime.transaction_helpers import asyncpg, count, ended

HOUR = timedelta(hours=1)


@dataclass
class Receipt:
    entry: int
    total: Decimal


class Desk:
    def book(self, session: Session, task_id: UUID, *, total: Decimal) -> Receipt:
        return Receipt(audit_app.write(session, task_id, 1, ""), total)

    async def abook(self, session: AsyncSession, task_id: UUID, *, total: Decimal) -> Receipt:
        return await session.run_sync(self.book, task_id, total=total)

    def __call__(self, session: Session, task_id: UUID) -> Receipt:
        return self.book(session, task_id, total=Decimal("7.50"))


class AsyncDesk(Desk):
    async def __call__(self, session: AsyncSession, task_id: UUID) -> Receipt:
        return await self.abook(session, task_id, total=Decimal("7.50"))


# Functions


def receipt(session: Session, task_id: UUID, total: Decimal) -> Any:
    return Receipt(audit_app.write(session, task_id, 1, ""), total)


def different(receipts: list[Any], attempt: int, total: Decimal) -> int:
    """How many different receipts there are, all typed; the first attempt fails, for them to be read back."""
    assert all(type(receipt) is Receipt and receipt.total == total for receipt in receipts)
    if attempt == 1:
        raise ValueError("once more, from what is saved")
    return len({receipt.entry for receipt in receipts})


def test_every_kind_of_function_gets_session_and_arguments(books, play):
    seen = []

    def plays(ctx: Any) -> int:
        total = Decimal("7.50")
        receipts = [
            ctx.transaction("method", Desk().book, ctx.task_id, total=total),
            ctx.transaction("partial", partial(Desk().book, total=total), ctx.task_id),
            ctx.transaction("object", Desk(), ctx.task_id),
            ctx.transaction("lambda", lambda session: receipt(session, ctx.task_id, total), returns=Receipt),
        ]
        seen.append(receipts)
        return different(receipts, ctx.attempt, total)

    play(plays)
    assert ended(books, audit_app.free).result == 4
    assert count(books) == 4 and seen[0] == seen[1]


@asyncpg
def test_async_handler_takes_sync_and_async_functions(books, play, driver):
    seen = []

    async def plays(ctx: Any) -> int:
        total = Decimal("7.50")
        receipts = [
            await ctx.transaction("method", Desk().abook, ctx.task_id, total=total),
            await ctx.transaction("partial", partial(Desk().abook, total=total), ctx.task_id),
            await ctx.transaction("object", AsyncDesk(), ctx.task_id),
            await ctx.transaction("plain", Desk().book, ctx.task_id, total=total),
            await ctx.transaction(
                "plain lambda", lambda session: receipt(session, ctx.task_id, total), returns=Receipt
            ),
        ]
        seen.append(receipts)
        return different(receipts, ctx.attempt, total)

    play(plays)
    source = create_async_engine(books.engine.url.set(drivername=driver), poolclass=NullPool)
    assert ended(books, audit_app.afree, source=source).result == 5
    assert count(books) == 5 and seen[0] == seen[1]


def test_transactions_of_one_async_handler_run_at_the_same_time(books, play):
    both = asyncio.Event()

    async def book(session: AsyncSession, ctx: Any, number: int) -> int:
        await session.run_sync(audit_app.write, ctx.task_id, number, "")
        if number == 1:
            both.set()
        await both.wait()
        return number

    async def plays(ctx: Any) -> list[int]:
        return list(await asyncio.gather(*(ctx.transaction(f"t{n}", book, ctx, n) for n in range(2))))

    play(plays)
    assert ended(books, audit_app.afree).result == [0, 1] and count(books) == 2


@pytest.mark.parametrize("handler", [audit_app.free, audit_app.afree])
def test_async_function_with_a_sync_session_is_refused(books, play, handler):
    def plays(ctx: Any) -> Any:
        return ctx.transaction("t", lambda session: audit_app.awrite(session, ctx.task_id, 1, ""))

    play(plays)
    failed = ended(books, handler)
    assert (failed.attempt, failed.error["type"]) == (1, "DeclarationError")
    assert "must not be in a lambda" in failed.error["message"] and count(books) == 0


# What is durable by itself has no place in a transaction that may roll back

VERBS = {
    "step": lambda ctx: ctx.step("inner", int),
    "transaction": lambda ctx: ctx.transaction("inner", lambda _: 1),
    "sleep": lambda ctx: ctx.sleep_for(audit_app.NOW.delay),
    "event": lambda ctx: ctx.await_event("paid"),
}
BESIDE = {
    "emit": lambda ctx: ctx.emit_event("paid"),
    "spawn": lambda ctx: ctx.spawn(audit_app.book.call("")),
}


@pytest.mark.parametrize("verb", [*VERBS, *BESIDE])
@pytest.mark.parametrize("handler", [audit_app.free, audit_app.afree])
def test_durable_operations_are_refused_in_a_transactions_function(books, play, handler, verb):
    call = {**VERBS, **BESIDE}[verb]

    def plays(ctx: Any) -> Any:
        def plain(session: Session) -> None:
            audit_app.write(session, ctx.task_id, 1, "")
            call(ctx)

        async def asynchronous(session: AsyncSession) -> None:
            await session.run_sync(audit_app.write, ctx.task_id, 1, "")
            await call(ctx)

        return ctx.transaction("outer", asynchronous if handler.is_async else plain)

    play(plays)
    failed = ended(books, handler)
    assert (failed.attempt, failed.error["type"]) == (1, "DeclarationError")
    assert "before or after" in failed.error["message"]
    assert count(books) == 0 and books.steps(failed.id) == {} and count(books, LedgerTask) == 1


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("handler", [audit_app.free_whole, audit_app.afree_whole])
def test_a_transactional_handler_has_no_steps(books, play, handler, verb):
    play(VERBS[verb])
    failed = ended(books, handler)
    assert (failed.attempt, failed.error["type"]) == (1, "DeclarationError")
    assert "a transactional handler can only use" in failed.error["message"]


@pytest.mark.parametrize("handler", [audit_app.free, audit_app.afree])
def test_other_handlers_have_no_session(books, play, handler):
    play(lambda ctx: ctx.session)
    assert "ctx.transaction(name, fn)" in ended(books, handler).error["message"]


@pytest.mark.parametrize("handler", [audit_app.free_whole, audit_app.afree_whole])
def test_what_a_transactional_handler_spawns_and_emits_is_part_of_it(books, play, handler):
    def check(ctx: Any) -> None:
        if ctx.attempt == 1:
            raise ValueError("and all of it is gone")

    def plain(ctx: Any) -> str:
        child = ctx.spawn(audit_app.close_books.call(), delay=HOUR)
        ctx.emit_event("booked", 7)
        audit_app.write(ctx.session, ctx.task_id, 1, "")
        check(ctx)
        return str(child.task_id)

    async def asynchronous(ctx: Any) -> str:
        child = await ctx.spawn(audit_app.close_books.call(), delay=HOUR)
        await ctx.emit_event("booked", 7)
        await audit_app.awrite(ctx.session, ctx.task_id, 1, "")
        check(ctx)
        return str(child.task_id)

    play(asynchronous if handler.is_async else plain)
    done = ended(books, handler)
    child = books.task(UUID(done.result))
    assert (done.attempt, child.parent_id, count(books, LedgerTask)) == (2, done.id, 2)
    assert count(books, LedgerTask.Event) == 1 and count(books) == 1
