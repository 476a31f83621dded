"""`sa-durable worker`: run the tasks of an application's queues."""

from __future__ import annotations

import logging
import os
import sys
import time
from datetime import timedelta
from threading import Thread

import click
from sqlalchemy.exc import ArgumentError

from ..errors import DurableError, SchemaOutdated
from ..runtime import Worker
from . import application

EXIT_SECONDS = 3.0  # after the worker has let go of everything; what still runs then hangs

Seconds = click.FloatRange(min=0, min_open=True)


@click.command()
@click.argument("module")
@click.option(
    "--concurrency", type=click.IntRange(min=1), default=10, show_default=True, help="Handlers at once."
)
@click.option("--queue", "names", multiple=True, metavar="NAME", help="Only this queue; may be repeated.")
@click.option("--database-url", metavar="URL", help="Instead of SA_DURABLE_DATABASE_URL or DATABASE_URL.")
@click.option(
    "--prefetch", type=click.IntRange(min=0), help="Tasks claimed ahead. [default: follows their pace]"
)
@click.option(
    "--lease",
    type=Seconds,
    default=60.0,
    show_default=True,
    help="Seconds until a lost worker's tasks run elsewhere.",
)
@click.option(
    "--poll-interval", type=Seconds, default=0.25, show_default=True, help="Seconds between looks while idle."
)
@click.option(
    "--no-notify", is_flag=True, help="Find tasks by polling only: nobody sends a NOTIFY, nobody listens."
)
@click.option("--listen-url", metavar="URL", help="The database itself, where --database-url is a pooler's.")
@click.option(
    "--sweep-interval",
    type=Seconds,
    default=5.0,
    show_default=True,
    help="Seconds between sweeps of lost leases.",
)
@click.option(
    "--shutdown-timeout",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    help="Seconds that running tasks get after SIGTERM.",
)
@click.option("--worker-id", help="How this worker is called in tasks and runs. [default: host:pid:random]")
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
def worker(
    module: str,
    *,
    concurrency: int,
    names: tuple[str, ...],
    database_url: str | None,
    prefetch: int | None,
    lease: float,
    poll_interval: float,
    no_notify: bool,
    listen_url: str | None,
    sweep_interval: float,
    shutdown_timeout: float,
    worker_id: str | None,
    log_level: str,
) -> None:
    """Run the tasks of the queues that MODULE declares (a dotted name), until SIGTERM or Ctrl-C.

    The first signal stops claiming and lets running tasks finish; the second one gives them back at once. Either
    way no attempt is lost, and the exit status is 0.
    """
    logging.basicConfig(
        stream=sys.stderr, level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    loaded = application.load(module)
    try:
        running = Worker(
            application.database_url(loaded, database_url),
            application.queues(loaded, names),
            concurrency=concurrency,
            prefetch=prefetch,
            lease=timedelta(seconds=lease),
            poll_interval=timedelta(seconds=poll_interval),
            sweep_interval=timedelta(seconds=sweep_interval),
            shutdown_timeout=timedelta(seconds=shutdown_timeout),
            worker_id=worker_id,
            notify=not no_notify,
            listen_url=listen_url,
        )
    except (DurableError, ArgumentError) as error:
        raise click.UsageError(str(error)) from error
    Thread(target=_leave, args=(running,), daemon=True).start()
    try:
        running.run()
    except SchemaOutdated as error:
        raise click.ClickException(str(error)) from error


def _leave(running: Worker) -> None:
    """Exit although a handler blocks the loop, or its thread: everything is stored or given back by then."""
    running.closed.wait()
    time.sleep(EXIT_SECONDS)
    logging.getLogger("sa_durable.worker").warning("a handler doesn't end: leaving without it")
    logging.shutdown()
    flushing = Thread(target=_flush, daemon=True)  # what hangs may hang in a print
    flushing.start()
    flushing.join(1)
    os._exit(0)


def _flush() -> None:
    """What handlers have printed; os._exit would lose it."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
