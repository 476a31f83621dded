"""PgBouncer in transaction mode in front of a server: no session of one's own, and few connections for everybody."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psycopg
from psycopg.rows import dict_row
from sqlalchemy import URL, create_engine, make_url
from sqlalchemy.exc import DBAPIError

from sa_durable.embedded import programs
from tests.faults.pair import free_port
from tests.waiting import wait_until

PROGRAM = shutil.which("pgbouncer") or "/usr/sbin/pgbouncer"
INI = """
[databases]
* = host={host} port={port} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = any
admin_users = postgres
pool_mode = transaction
default_pool_size = {pool}
server_round_robin = 1
query_wait_timeout = 30
max_client_conn = 2000
max_db_connections = 0
logfile = {log}
"""


def version() -> str | None:
    """None: there is none here."""
    if not Path(PROGRAM).exists():
        return None
    return subprocess.run([PROGRAM, "--version"], check=True, capture_output=True, text=True).stdout.split()[
        1
    ]


class Pooler:
    """One that runs, and its console."""

    def __init__(self, url: URL) -> None:
        self.url = url
        """The server's URL, through it."""

    def ask(self, command: str) -> list[dict[str, Any]]:
        """What its console answers."""
        place = {"host": self.url.host, "port": self.url.port, "user": "postgres", "dbname": "pgbouncer"}
        with psycopg.connect(**place, autocommit=True) as console:
            cursor = psycopg.ClientCursor(console)  # it knows the simple protocol only
            cursor.row_factory = dict_row
            cursor.execute(command)
            return cursor.fetchall() if cursor.description else []


@contextmanager
def pooler(url: str, pool: int) -> Iterator[Pooler]:
    """A PgBouncer in front of the server with so many connections for each database."""
    target, listen, user = make_url(url), free_port(), programs.server_user()
    with TemporaryDirectory(prefix="sa-durable-pooler-", dir="/tmp") as place:
        ini, log = Path(place, "pgbouncer.ini"), Path(place, "log")
        host, port = target.query.get("host") or target.host, target.query.get("port") or target.port or 5432
        ini.write_text(INI.format(host=host, port=port, listen=listen, pool=pool, log=log))
        Path(place).chmod(0o777)
        who = {} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        process = subprocess.Popen([PROGRAM, "-q", str(ini)], cwd="/", **who)
        through = target.set(host="127.0.0.1", port=int(listen), query={})
        try:
            wait_until(lambda: _answers(through), what="PgBouncer")
            yield Pooler(through)
        finally:
            process.terminate()
            process.wait()


def _answers(url: URL) -> bool:
    engine = create_engine(url)
    try:
        engine.connect().close()
    except DBAPIError:
        return False
    finally:
        engine.dispose()
    return True
