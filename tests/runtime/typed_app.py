"""Handlers whose params, steps, events and results are of every kind of type that applications annotate."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import TypeAlias
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from typing_extensions import TypedDict

from sa_durable import AsyncTaskContext, TaskContext
from tests.apps import Line
from tests.runtime.context_app import VerbTask


class Address(BaseModel):
    street: str
    since: datetime | None = None


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Size(TypedDict):
    width: Decimal
    unit: str


Values: TypeAlias = tuple[Line, Address, Decimal, datetime, UUID, Colour, Size]
MOMENT = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
VALUES: Values = (
    Line("a", Decimal("1.50"), frozenset({"x"})),
    Address(street="s", since=MOMENT),
    Decimal("1E+30"),
    MOMENT,
    UUID(int=7),
    Colour.BLUE,
    {"width": Decimal("2.10"), "unit": "mm"},
)
MINUTE = timedelta(minutes=1)


def kinds(values: Values) -> list[type]:
    return [type(value) for value in values]


def same(given: object, expected: Values) -> None:
    assert given == expected and kinds(given) == kinds(expected), given


def step(values: Values) -> Values:
    return values


def in_transaction(session: Session, values: Values) -> Values:
    return values


async def astep(values: Values) -> Values:
    return values


async def ain_transaction(session: AsyncSession, values: Values) -> Values:
    return values


@VerbTask.handler(max_attempts=1)
def returns(
    ctx: TaskContext,
    line: Line,
    address: Address,
    amount: Decimal,
    when: datetime,
    key: UUID,
    colour: Colour,
    size: Size,
) -> Values:
    return line, address, amount, when, key, colour, size


@VerbTask.handler(max_attempts=1)
def passes(
    ctx: TaskContext,
    line: Line,
    address: Address,
    amount: Decimal,
    when: datetime,
    key: UUID,
    colour: Colour,
    size: Size,
) -> Values:
    given = line, address, amount, when, key, colour, size
    same(given, VALUES)
    same(ctx.step("step", step, given), VALUES)
    same(ctx.step("lambda", lambda: given, returns=Values), VALUES)
    same(ctx.transaction("transaction", in_transaction, given), VALUES)
    begun = ctx.begin_step("begun", returns=Values)
    if not begun.done:
        ctx.complete_step(begun, given)
    same(begun.value, VALUES)
    ctx.emit_event(f"values of {ctx.task_id}", given)
    same(ctx.await_event(f"values of {ctx.task_id}", returns=Values, timeout=MINUTE), VALUES)
    child = ctx.join(ctx.spawn(returns.call(*given)), timeout=MINUTE)
    same(child, VALUES)
    return child


@VerbTask.handler(max_attempts=1)
async def apasses(
    ctx: AsyncTaskContext,
    line: Line,
    address: Address,
    amount: Decimal,
    when: datetime,
    key: UUID,
    colour: Colour,
    size: Size,
) -> Values:
    given = line, address, amount, when, key, colour, size
    same(given, VALUES)
    same(await ctx.step("step", astep, given), VALUES)
    same(await ctx.step("lambda", lambda: given, returns=Values), VALUES)
    same(await ctx.transaction("transaction", ain_transaction, given), VALUES)
    begun = ctx.begin_step("begun", returns=Values)
    if not begun.done:
        await ctx.complete_step(begun, given)
    same(begun.value, VALUES)
    await ctx.emit_event(f"values of {ctx.task_id}", given)
    same(await ctx.await_event(f"values of {ctx.task_id}", returns=Values, timeout=MINUTE), VALUES)
    child = await ctx.join(await ctx.spawn(returns.call(*given)), timeout=MINUTE)
    same(child, VALUES)
    return child
