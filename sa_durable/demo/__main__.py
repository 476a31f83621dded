"""The demo: four processes read the same webhooks, some are killed, and each event is handled exactly once.

    python -m sa_durable.demo [--events FILE] [--database-url URL]

The exit status is 1 if an event was lost or handled twice, and 2 if the demo can't start.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import uuid4

from rich.console import Console
from sqlalchemy import create_engine, make_url, text

from ..embedded import EmbeddedServerError, postgres
from . import deliveries, report
from .stages import Demo

CONFIG = Path("alembic.ini")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m sa_durable.demo", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--events", type=Path, default=deliveries.LOG, help="log of deliveries, in JSON Lines format"
    )
    parser.add_argument(
        "--database-url", help="server to use (the demo creates a database there, and drops it at the end)"
    )
    parser.add_argument("--keep", action="store_true", help="don't drop the database")
    options = parser.parse_args()
    console = Console()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the exit stops all child processes
    try:
        log = list(deliveries.read(options.events))
    except (OSError, ValueError) as error:
        console.print(f"[red]{error}", highlight=False)
        return 2
    if not CONFIG.exists():
        console.print(
            f"[red]no {CONFIG} in the current directory: run the demo in the repository's root (make demo)"
        )
        return 2
    with ExitStack() as stack:
        try:
            server_url = options.database_url or stack.enter_context(postgres()).url
        except EmbeddedServerError as error:
            console.print(f"[red]{error}", highlight=False)
            return 2
        url = stack.enter_context(_database(server_url, keep=options.keep))
        os.environ["SA_DURABLE_DATABASE_URL"] = url  # for Alembic and the child processes
        demo = stack.enter_context(Demo(url, options.events, log, console))
        demo.migrate()
        demo.spawn()
        demo.work()
        return report.show(demo.engine, log, demo.spawns, console)


@contextmanager
def _database(server_url: str, *, keep: bool) -> Iterator[str]:
    """Create a database on the server, so that existing tables are not touched. Drops it at the end."""
    name = f"sa_durable_demo_{uuid4().hex[:8]}"
    admin = create_engine(
        make_url(server_url).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT"
    )
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    try:
        yield admin.url.set(database=name).render_as_string(hide_password=False)
    finally:
        if not keep:
            with admin.connect() as connection:
                connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        admin.dispose()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (KeyboardInterrupt, subprocess.CalledProcessError) as error:
        sys.exit(f"stopped: {error!r}")
