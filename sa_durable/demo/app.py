"""The application's tasks, one for each payment event. `sa-durable worker sa_durable.demo.app` runs them."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from zlib import crc32

from sqlalchemy import create_engine
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from ..runtime import TaskContext
from ..values import Exponential
from .deliveries import Event
from .models import LedgerEntry, MailTask, PaymentTask, StepRun

engine = create_engine(os.environ["SA_DURABLE_DATABASE_URL"])
NETWORK_S = 0.02  # how long the provider, the bank and the mail server take to answer


class BankTimeout(Exception):
    """The bank didn't answer."""


@PaymentTask.handler(
    max_attempts=6, retry=Exponential(base=timedelta(milliseconds=100), cap=timedelta(seconds=1))
)
def handle_event(ctx: TaskContext, event: Event) -> str:
    """Confirm the event with the provider, book it, notify the customer."""

    def confirm() -> str:
        _count_step(event, "confirm", ctx.attempt)
        time.sleep(NETWORK_S)
        return event.type.removeprefix("payment.")

    def book(state: str) -> None:
        _count_step(event, "book", ctx.attempt)
        time.sleep(NETWORK_S)
        # The bank doesn't answer every fifth call. A retry is another call, so most events succeed on the
        # second attempt.
        if crc32(f"{event.id}/{ctx.attempt}".encode()) % 5 == 0:
            raise BankTimeout(f"no answer about {event.data.payment_id}")
        with Session(engine) as session, session.begin():
            # A step that is interrupted between its effect and its checkpoint runs again. ON CONFLICT DO
            # NOTHING keeps the ledger from booking the event twice.
            entry = {
                "event_id": event.id,
                "payment_id": event.data.payment_id,
                "state": state,
                "amount": event.data.amount,
            }
            session.execute(insert(LedgerEntry).values(entry).on_conflict_do_nothing())

    def notify() -> str:
        _count_step(event, "notify", ctx.attempt)
        time.sleep(NETWORK_S)
        return f"mail about {event.data.payment_id}"

    state = ctx.step("confirm", confirm)
    ctx.step("book", book, state)
    return ctx.step("notify", notify)


@MailTask.handler()
def send(ctx: TaskContext, to: str, subject: str) -> str:
    """Send a mail."""
    ctx.step("send", time.sleep, NETWORK_S)
    return f"{subject} to {to}"


def _count_step(event: Event, step: str, attempt: int) -> None:
    """Record that a step function runs, in a transaction of its own: steps that fail are counted too."""
    with Session(engine) as session, session.begin():
        session.add(StepRun(event_id=event.id, step=step, attempt=attempt, pid=os.getpid()))
