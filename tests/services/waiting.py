"""Tasks that wait, for tests of what wakes them: what a run does, as transactions of the test's own."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import Engine, func, select, update
from sqlalchemy.orm import Session

from sa_durable import Durable
from sa_durable.services import claims, events, waits
from sa_durable.services.waits import Arrived, AwaitedEvent, AwaitedTasks, Prerequisites, Registered
from sa_durable.values import Claim
from tests.shop import BillingTask, MailTask, charge, send_mail

MINUTE = timedelta(minutes=1)
STEP = "$await:e"


def run(engine: Engine, model: Any = MailTask, **options: Any) -> Claim:
    """A new task, claimed."""
    call = send_mail.call("ada") if model is MailTask else charge.call(1)
    with Session(engine) as session, session.begin():
        Durable(session).spawn(call, **{"priority": -1, **options})
    return claim(engine, model)


def claim(engine: Engine, model: Any = MailTask) -> Claim:
    """The next task that is ready, claimed."""
    names = list(model.__handlers__)
    with Session(engine) as session, session.begin():
        [claimed] = claims.claim(session, model, names=names, worker="w", lease=MINUTE, limit=1)
    return claimed


def look(
    engine: Engine, run: Claim, what: Any, *, step: str = STEP, timeout: timedelta | None = None
) -> Arrived | Registered | Prerequisites:
    with Session(engine) as session, session.begin():
        return waits.find_or_register(session, _model(run), run, step, what, timeout=timeout)


def sleep(engine: Engine, run: Claim, what: Any, *, step: str = STEP) -> Arrived | Prerequisites | None:
    with Session(engine) as session, session.begin():
        return waits.sleep(session, _model(run), run, step, what)


def wait(engine: Engine, run: Claim, what: Any, **options: Any) -> Arrived | None:
    """As the runtime does: None, and the run sleeps; or what it was waiting for."""
    step = options.get("step", STEP)
    while True:
        found = look(engine, run, what, **options)
        if isinstance(found, Registered):
            found = sleep(engine, run, what, step=step)
        if not isinstance(found, Prerequisites):
            return found
        for act in found.first:
            with Session(engine) as session, session.begin():
                act(session)


def event(name: str = "e", model: Any = MailTask) -> AwaitedEvent:
    return AwaitedEvent(model, name)


def ends(*claimed: Claim) -> AwaitedTasks:
    return AwaitedTasks([(_model(claim), claim.task_id) for claim in claimed])


def emit(engine: Engine, name: str = "e", payload: Any = None, model: Any = MailTask) -> None:
    with Session(engine) as session, session.begin():
        Durable(session).emit_event(model, name, payload)


def tick(engine: Engine, *models: Any, limit: int = 500) -> int:
    """What a worker's tick does about events. Returns how many tasks it woke."""
    woken = 0
    for model in models or (MailTask, BillingTask):
        with Session(engine) as session, session.begin():
            events.settle(session, model, limit=limit)
    for model in models or (MailTask, BillingTask):
        with Session(engine) as session, session.begin():
            if here := events.wake(session, model, limit=limit):
                woken += here
            else:
                events.forget_idle(session, model, limit=limit)
    return woken


def rows(engine: Engine, model: Any = MailTask) -> list[Any]:
    """The waits of a queue: step, event and whether it is settled."""
    wait = model.Wait
    with Session(engine) as session:
        found = select(wait.step, wait.event_name, wait.settled).order_by(wait.step, wait.event_name)
        return [tuple(row) for row in session.execute(found)]


def events_of(engine: Engine, model: Any = MailTask) -> Sequence[Any]:
    """Its events: name, payload, and whether each is settled and was dropped."""
    event = model.Event
    with Session(engine) as session:
        found = select(event.name, event.payload, event.settled_at.is_not(None), event.dropped)
        return [tuple(row) for row in session.execute(found.order_by(event.id))]


def let_pass(engine: Engine, run: Claim, time: timedelta = MINUTE) -> None:
    """As if `time` had passed for the waits of a task, and its sleep."""
    model = _model(run)
    with Session(engine) as session, session.begin():
        wait = model.Wait
        session.execute(
            update(wait).where(wait.task_id == run.task_id).values(timeout_at=wait.timeout_at - time)
        )
        session.execute(
            update(model)
            .where(model.id == run.task_id)
            .values(available_at=func.least(model.available_at - time, model.available_at))
        )


def _model(claim: Claim) -> Any:
    return MailTask if claim.queue == "mail" else BillingTask
