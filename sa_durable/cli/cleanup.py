"""`sa-durable cleanup`: delete what is over and old."""

from __future__ import annotations

from datetime import timedelta

import click
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.orm import Session

from ..errors import DurableError
from ..models import DurableTask
from ..runtime.connections.engines import engine_for
from ..runtime.connections.errors import describe_for_log
from ..runtime.connections.retrying import retry_until
from ..services.durable import Durable
from ..values import CleanedUp
from . import application


@click.command()
@click.argument("module")
@click.option(
    "--days",
    type=click.FloatRange(min=0),
    required=True,
    help="Keep what ended less than this many days ago; 0.5 is twelve hours.",
)
@click.option("--queue", "names", multiple=True, metavar="NAME", help="Only this queue; may be repeated.")
@click.option("--database-url", metavar="URL", help="Instead of SA_DURABLE_DATABASE_URL or DATABASE_URL.")
@click.option(
    "--batch", type=click.IntRange(min=1), default=1000, show_default=True, help="Tasks in a transaction."
)
def cleanup(
    module: str, *, days: float, names: tuple[str, ...], database_url: str | None, batch: int
) -> None:
    """Delete ended tasks, with their history, and settled events of the queues that MODULE declares (a dotted name).

    What somebody still waits for stays. Workers do the same for queues that have a retention.
    """
    loaded = application.load(module)
    try:
        engine, older_than = engine_for(application.database_url(loaded, database_url)), timedelta(days=days)
    except (ArgumentError, OverflowError) as error:
        raise click.UsageError(str(error)) from error
    try:
        for queue in application.queues(loaded, names):
            tasks = events = 0
            more = True

            def delete(queue: type[DurableTask] = queue) -> CleanedUp:
                with Session(engine) as session, session.begin():
                    return Durable(session).clean_up(queue, older_than=older_than, limit=batch)

            while more:
                try:
                    cleaned = retry_until(f"cleanup of {queue.__queue__}", delete)
                except (DurableError, DBAPIError) as error:
                    said = describe_for_log(error) if isinstance(error, DBAPIError) else error
                    raise click.ClickException(f"{queue.__queue__}: {said}") from error
                tasks, events = tasks + cleaned.tasks, events + cleaned.events
                more = batch in (cleaned.tasks, cleaned.events)
            print(f"{queue.__queue__}: {tasks} tasks, {events} events deleted")
    finally:
        engine.dispose()
