"""The command `sa-durable cleanup`: delete old tasks and events."""

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
    help="Keep tasks and events that ended less than this many days ago. 0.5 means twelve hours.",
)
@application.queue_option
@application.database_url_option
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    help="Number of tasks, and of events, per transaction.",
)
def cleanup(
    module: str, *, days: float, names: tuple[str, ...], database_url: str | None, batch: int
) -> None:
    """Delete ended tasks, with their history, and settled events of the queues that MODULE declares.

    MODULE is a dotted name, such as app.tasks. Tasks and events that another task waits for are kept. Workers
    do the same for queues that have a retention.
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
                    cause = describe_for_log(error) if isinstance(error, DBAPIError) else error
                    raise click.ClickException(f"{queue.__queue__}: {cause}") from error
                tasks, events = tasks + cleaned.tasks, events + cleaned.events
                more = batch in (cleaned.tasks, cleaned.events)
            print(f"{queue.__queue__}: {tasks} tasks, {events} events deleted")
    finally:
        engine.dispose()
