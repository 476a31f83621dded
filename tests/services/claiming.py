"""Claims for tests of what happens to them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Engine, func, select, update
from sqlalchemy.orm import Session

from sa_durable import Durable
from sa_durable.services import claims
from sa_durable.values import Claim
from tests.shop import MailTask, send_mail

MINUTE = timedelta(minutes=1)


def spawn(engine: Engine, number: int = 1, **options: Any) -> list[UUID]:
    """New tasks, ready and in this order."""
    with Session(engine) as session, session.begin():
        return [
            Durable(session).spawn(send_mail.call(to=f"{n}@example.org"), **options).task_id
            for n in range(number)
        ]


def claim(engine: Engine, limit: int = 1, worker: str = "w1", names: Any = ("send",)) -> list[Claim]:
    with Session(engine) as session, session.begin():
        return claims.claim(session, MailTask, names=names, worker=worker, lease=MINUTE, limit=limit)


def do(engine: Engine, service: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a service in a transaction of its own."""
    with Session(engine) as session, session.begin():
        return service(session, MailTask, *args, **kwargs)


def change(engine: Engine, ids: Any, **values: Any) -> None:
    with Session(engine) as session, session.begin():
        session.execute(update(MailTask).where(MailTask.id.in_(ids)).values(**values))


def expire(engine: Engine, ids: Any, ago: timedelta = 5 * MINUTE) -> None:
    """As if the leases had run out that long ago."""
    change(engine, ids, lease_expires_at=func.now() - ago)


def row(engine: Engine, task_id: UUID) -> Any:
    with Session(engine) as session:
        task = session.get(MailTask, task_id)
        session.expunge(task)
        return task


def history(engine: Engine, task_id: UUID) -> list[Any]:
    run = MailTask.Run
    with Session(engine) as session:
        runs = list(session.scalars(select(run).where(run.task_id == task_id).order_by(run.attempt)))
        session.expunge_all()
        return runs
