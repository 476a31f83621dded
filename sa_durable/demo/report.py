"""Report how the deliveries were handled, computed from the database."""

from __future__ import annotations

from collections.abc import Collection
from decimal import Decimal

from rich.console import Console
from rich.table import Table
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from .deliveries import Delivery
from .models import LedgerEntry, PaymentTask, StepRun

STEPS = 3


def show(engine: Engine, log: list[Delivery], spawns: list[tuple[int, int]], console: Console) -> int:
    """Print the table of counts and the result of the checks. Returns the exit status."""
    events = {delivery.event.id: delivery.event for delivery in log}
    run, checkpoint = PaymentTask.Run, PaymentTask.Checkpoint
    with Session(engine) as session:
        tasks = session.scalar(select(func.count()).select_from(PaymentTask)) or 0
        completed = session.scalar(select(func.count()).where(PaymentTask.state == "completed")) or 0
        steps = session.scalar(select(func.count()).select_from(StepRun)) or 0
        saved = session.scalar(select(func.count()).select_from(checkpoint)) or 0
        lost = session.scalar(select(func.count()).where(run.error["type"].astext == "LeaseExpired")) or 0
        failed = session.scalar(select(func.count()).select_from(run)) or 0
        by_key = select(PaymentTask.idempotency_key, func.count()).group_by(PaymentTask.idempotency_key)
        handled = dict(session.execute(by_key.where(PaymentTask.state == "completed")).tuples().all())
        booked = dict(session.execute(select(LedgerEntry.event_id, LedgerEntry.amount)).tuples().all())
        resaved = session.execute(
            select(checkpoint.task_id).group_by(checkpoint.task_id).having(func.count() != STEPS)
        ).all()
    table = Table(title="What happened", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for label, value in (
        ("deliveries in the log", len(log)),
        ("distinct events among them", len(events)),
        (f"deliveries that {len(spawns)} processes spawned a task for", sum(seen for seen, _ in spawns)),
        ("of which deduplicated", sum(seen - created for seen, created in spawns)),
        ("tasks spawned, including those older than keys", tasks),
        ("tasks completed", completed),
        ("attempts that failed and were retried", failed - lost),
        ("attempts that died with the worker", lost),
        ("step functions run", steps),
        ("steps saved", saved),
    ):
        table.add_row(label, f"{value:,}")
    console.print(table)
    wrong: dict[str, Collection[object]] = {
        "events never handled": events.keys() - handled.keys(),
        "events handled twice": {key for key, times in handled.items() if times != 1},
        "tasks without an event": handled.keys() - events.keys(),
        "events not booked exactly once with their amount": {
            key for key, event in events.items() if booked.get(key, Decimal(-1)) != event.data.amount
        },
        "tasks whose steps were not each saved once": {row.task_id for row in resaved},
        "tasks that are not completed": set(range(tasks - completed)),
    }
    for what, found in wrong.items():
        if found:
            console.print(f"[red]WRONG: {len(found)} {what}: {sorted(map(str, found))[:5]}", highlight=False)
    if any(wrong.values()):
        return 1
    console.print(f"[green]Each of the {len(events)} distinct events was handled exactly once.")
    return 0
