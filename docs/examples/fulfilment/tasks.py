"""The workflow: `fulfil` is a sync handler, `send_parcel` an async handler, `notify` a single transaction."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from sa_durable import AsyncTaskContext, TaskContext, TimedOut

from . import carrier, orders
from .models import Mail, MailTask, Order, OrderTask, ParcelTask


@dataclass(frozen=True)
class Shipment:
    """The payload of the warehouse's event: an order was packed."""

    boxes: list[str]


@dataclass(frozen=True)
class Outcome:
    state: str
    tracking: list[str]


@OrderTask.handler()
def fulfil(ctx: TaskContext, order_id: int, ship_within: timedelta = timedelta(days=3)) -> Outcome:
    """Charge, reserve, wait for the warehouse, send each box, notify the customer."""
    ctx.transaction("charge", orders.charge, order_id)
    if not ctx.transaction("reserve", orders.reserve, order_id):
        return give_up(ctx, order_id, "it is sold out")
    try:
        shipment = ctx.await_event(f"packed:{order_id}", returns=Shipment, timeout=ship_within)
    except TimedOut:
        return give_up(ctx, order_id, "our warehouse didn't find it in time")
    parcels = ctx.spawn_many(send_parcel.call(order_id, box) for box in shipment.boxes)
    tracking = ctx.join_all(parcels)
    ctx.transaction("close", orders.close, order_id)
    ctx.spawn(notify.call(order_id, f"On its way: {', '.join(tracking)}"))
    return Outcome("shipped", tracking)


def give_up(ctx: TaskContext, order_id: int, why: str) -> Outcome:
    """Return goods and money. A part of `fulfil`."""
    ctx.transaction("undo", orders.undo, order_id)
    ctx.spawn(notify.call(order_id, f"You have your money back: {why}"))
    return Outcome("refunded", [])


@ParcelTask.handler()
async def send_parcel(ctx: AsyncTaskContext, order_id: int, box: str) -> str:
    """Book one box with the carrier and return its tracking number."""
    # This step runs again if the process dies after the carrier's answer and before the checkpoint. The
    # reference makes the second booking return the same parcel.
    tracking = await ctx.step("book", carrier.book, f"{order_id}/{box}")
    await ctx.transaction("record", orders.record_parcel, order_id, box, tracking)
    return tracking


@MailTask.handler(transactional=True)
def notify(ctx: TaskContext, order_id: int, text: str) -> None:
    """Notify the customer. The mail and the completion of this task commit together."""
    order = ctx.session.get_one(Order, order_id)
    ctx.session.add(Mail(to=order.email, text=text))
