"""The command `sa-durable worker`: run the tasks of an application's queues."""

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

EXIT_AFTER_S = 3.0  # after all tasks are stored or released; a handler that still runs then hangs
FLUSH_TIMEOUT_S = 1.0

Seconds = click.FloatRange(min=0, min_open=True)


@click.command()
@click.argument("module")
@click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Maximum number of concurrent handlers.",
)
@application.queue_option
@application.database_url_option
@click.option(
    "--prefetch",
    type=click.IntRange(min=0),
    help="Number of tasks claimed ahead. [default: adapts to how long tasks take]",
)
@click.option(
    "--lease",
    type=Seconds,
    default=60.0,
    show_default=True,
    help="Lease of a task, in seconds. Tasks of a dead worker are retried after it expires.",
)
@click.option(
    "--poll-interval",
    type=Seconds,
    default=0.25,
    show_default=True,
    help="Poll interval while idle, in seconds.",
)
@click.option("--no-notify", is_flag=True, help="Find tasks by polling only, without LISTEN/NOTIFY.")
@click.option(
    "--listen-url",
    metavar="URL",
    help="Direct URL for the listening connection, if --database-url points to a pooler.",
)
@click.option(
    "--sweep-interval",
    type=Seconds,
    default=5.0,
    show_default=True,
    help="Interval between checks for expired leases, in seconds.",
)
@click.option(
    "--shutdown-timeout",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    help="How long running tasks may continue after SIGTERM, in seconds.",
)
@click.option(
    "--worker-id", help="Name of this worker in tasks, runs and log lines. [default: host:pid:random]"
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="Least severe log lines that are printed.",
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
    """Run the tasks of the queues that MODULE declares, until SIGTERM or Ctrl-C.

    MODULE is a dotted name, such as app.tasks. The first signal stops claiming and lets running tasks finish.
    The second signal releases them at once. Neither counts an attempt, and the exit status is 0.
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
    Thread(target=_exit_when_closed, args=(running,), daemon=True).start()
    try:
        running.run()
    except SchemaOutdated as error:
        raise click.ClickException(str(error)) from error


def _exit_when_closed(running: Worker) -> None:
    """Exit the process even if a handler blocks the event loop or its thread.

    All tasks are stored or released by then.
    """
    running.closed.wait()
    time.sleep(EXIT_AFTER_S)
    logging.getLogger("sa_durable.worker").warning("exiting while a handler is still running")
    logging.shutdown()
    flushing = Thread(target=_flush, daemon=True)  # a handler that hangs in a print holds the stream's lock
    flushing.start()
    flushing.join(FLUSH_TIMEOUT_S)
    os._exit(0)


def _flush() -> None:
    """Flush what handlers have printed, because os._exit would lose it."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
