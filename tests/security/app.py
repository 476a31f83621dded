"""The application of these tests: everything that a task can do, in two queues."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy.orm import Session

from sa_durable import TaskContext, TimedOut
from tests.apps import NOW, NoteColumns, application, fail_first_attempt

Base, VaultTask, ChildTask = application(VaultTask="vault", ChildTask="vault_children")


class Booking(NoteColumns, Base):
    """A table of the application's own, that its tasks write."""

    __tablename__ = "bookings"


def book(session: Session, what: str) -> int:
    session.add(booking := Booking(what=what))
    session.flush()
    return booking.id


@ChildTask.handler()
def child(ctx: TaskContext) -> str:
    return "child"


@VaultTask.handler(retry=NOW)
def everything(ctx: TaskContext, name: str) -> list[str]:
    """Each verb of a context, and a second attempt."""
    first = ctx.step("first", lambda: "first")
    ctx.transaction("book", book, name)
    fail_first_attempt(ctx)
    ctx.sleep_for(timedelta(milliseconds=1))
    ctx.emit_event(f"{name} is here")
    spawned = ctx.spawn(child.call())
    try:
        ctx.await_event(f"{name} never comes", timeout=timedelta(milliseconds=1))
    except TimedOut:
        return [first, ctx.join(spawned), ctx.await_event(f"{name} may go")]
    return []


@VaultTask.handler(transactional=True)
def whole(ctx: TaskContext, name: str) -> int:
    return book(ctx.session, name)


@VaultTask.handler(max_attempts=1)
def leaves(ctx: TaskContext) -> None:
    """Fails, and takes a child along that sleeps, in its own queue."""
    ctx.spawn(whole.call(name="child"), delay=timedelta(days=1))
    raise ValueError("over")
