"""Run two orders from start to finish: `python -m fulfilment`, with the database's URL in DATABASE_URL."""

from __future__ import annotations

import asyncio
import os
from datetime import timedelta
from decimal import Decimal

from sqlalchemy import Engine, create_engine, select
from sqlalchemy.orm import Session

from sa_durable import Worker, wait_for

from .models import Base, Mail, MailTask, Order, OrderTask, ParcelTask, Payment, Product
from .web import place_order, warehouse_webhook

TIMEOUT = timedelta(seconds=30)


def run_a_day(engine: Engine) -> None:
    """Place two orders. The warehouse packs the first; the second misses its deadline and is refunded."""
    with Session(engine) as session, session.begin():
        session.add(Product(sku="kettle", price=Decimal("24.50"), available=9))
    with Session(engine, expire_on_commit=False) as session, session.begin():
        sent = place_order(session, "ada@example.org", "kettle", 2)
        lost = place_order(session, "bob@example.org", "kettle", 1, ship_within=timedelta(seconds=1))
        first = session.scalars(select(Order.id).where(Order.email == "ada@example.org")).one()

    with Session(engine) as session, session.begin():
        warehouse_webhook(session, first, ["box A", "box B"])
    for task in (sent, lost):
        print(wait_for(engine, task, timeout=TIMEOUT).value)

    with Session(engine) as session:
        for mail_task in session.scalars(select(MailTask).order_by(MailTask.id)):
            wait_for(engine, mail_task, timeout=TIMEOUT)
        for order in session.scalars(select(Order).order_by(Order.id)):
            paid = session.scalars(select(Payment.amount).where(Payment.order_id == order.id)).all()
            print(f"order {order.id}: {order.state}, paid {', '.join(map(str, paid))}")
        for mail in session.scalars(select(Mail).order_by(Mail.id)):
            print(f"mail to {mail.to}: {mail.text}")


async def main() -> None:
    engine = create_engine(os.environ["DATABASE_URL"])
    Base.metadata.create_all(engine)
    async with Worker(engine, [OrderTask, ParcelTask, MailTask]):
        await asyncio.to_thread(run_a_day, engine)
    engine.dispose()


asyncio.run(main())
