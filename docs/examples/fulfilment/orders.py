"""The shop's changes to its own rows: ordinary functions of a session, without any knowledge of tasks."""

from __future__ import annotations

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from .models import Order, Parcel, Payment, Product, Reservation


def charge(session: Session, order_id: int) -> None:
    order = session.get_one(Order, order_id)
    session.add(Payment(order_id=order.id, amount=order.total))
    order.state = "paid"


def reserve(session: Session, order_id: int) -> bool:
    """Reserve the goods of an order. Returns False if there are not enough."""
    order = session.get_one(Order, order_id)
    enough = (Product.sku == order.sku) & (Product.available >= order.quantity)
    taken = update(Product).where(enough).values(available=Product.available - order.quantity)
    if session.execute(taken.returning(Product.sku)).first() is None:
        return False
    session.add(Reservation(order_id=order.id, quantity=order.quantity))
    order.state = "reserved"
    return True


def undo(session: Session, order_id: int) -> None:
    """Return reserved goods to the shelf, and the money to the customer."""
    order = session.get_one(Order, order_id)
    held = select(Reservation).where(Reservation.order_id == order.id, Reservation.state == "held")
    for reservation in session.scalars(held):
        reservation.state = "released"
        back = Product.available + reservation.quantity
        session.execute(update(Product).where(Product.sku == order.sku).values(available=back))
    session.add(Payment(order_id=order.id, amount=-order.total))
    order.state = "refunded"


async def record_parcel(session: AsyncSession, order_id: int, box: str, tracking: str) -> None:
    session.add(Parcel(order_id=order_id, box=box, tracking=tracking))


def close(session: Session, order_id: int) -> None:
    session.get_one(Order, order_id).state = "shipped"
    session.execute(update(Reservation).where(Reservation.order_id == order_id).values(state="shipped"))
