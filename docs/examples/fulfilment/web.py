"""The shop's web application: place orders, and receive the warehouse's messages."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy.orm import Session

from sa_durable import Durable, SpawnResult

from .models import Order, OrderTask, Product
from .tasks import Outcome, Shipment, fulfil


def place_order(
    session: Session, email: str, sku: str, quantity: int, *, ship_within: timedelta = timedelta(days=3)
) -> SpawnResult[Outcome]:
    """Add an order and the task that fulfils it. Both exist once the caller commits, or neither."""
    product = session.get_one(Product, sku)
    order = Order(email=email, sku=sku, quantity=quantity, total=quantity * product.price)
    session.add(order)
    session.flush()
    return Durable(session).spawn(
        fulfil.call(order.id, ship_within),
        idempotency_key=f"fulfil:{order.id}",
        hold="forever",
        columns={"order_id": order.id},
    )


def warehouse_webhook(session: Session, order_id: int, boxes: list[str]) -> None:
    """Record that the warehouse has packed an order. It may call this twice: the first event counts."""
    Durable(session).emit_event(OrderTask, f"packed:{order_id}", Shipment(boxes))
