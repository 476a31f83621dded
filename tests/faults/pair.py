"""Two clusters: a primary, and a standby that every commit waits for."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import SystemRandom

from sqlalchemy import create_engine, text

from sa_durable.embedded import programs
from sa_durable.embedded.server import _PrivateServer
from tests.faults.cluster import SETTINGS, Cluster, cluster

BACKUP = "pg_basebackup"
randrange = SystemRandom().randrange  # `random` is seeded alike for all that run at once


@dataclass(frozen=True)
class Pair:
    primary: Cluster
    standby: Cluster
    url: str
    """Whichever of the two takes writes."""

    def fail_over(self) -> None:
        """The primary is gone for good; returns once the standby takes writes."""
        self.primary.crash()
        engine = create_engine(self.standby.url)
        with engine.connect() as connection:
            assert connection.scalar(text("SELECT pg_promote()"))
        engine.dispose()


class _Standby(_PrivateServer):
    def copy(self, of: Cluster, port: str) -> None:
        serves: Path = Path(of.server._serve[0])
        data = str(self.data_dir)
        where = f"host=127.0.0.1 port={port} user=postgres"
        subprocess.run([_backup(), "-D", data, "-d", where, "-R", "-X", "stream", "-c", "fast"], check=True)
        if self._user is not None:
            for path in (self._directory, *self._directory.rglob("*")):
                os.chown(path, self._user.pw_uid, self._user.pw_gid, follow_symlinks=False)
        settings = {**SETTINGS, "listen_addresses": "127.0.0.1", "port": free_port()}
        settings |= {"unix_socket_directories": f'"{self._directory}"', "fsync": "off"}
        self.url += f"&port={settings['port']}"
        options = [option for name, value in settings.items() for option in ("-c", f"{name}={value}")]
        self._serve = [str(serves), "-D", data, *options]
        self._run(self._serve)

    def _postmaster(self) -> list[str]:
        return ["ready" if line == "standby" else line for line in super()._postmaster()]


def _backup() -> str:
    beside = programs.find(None, os.environ) / BACKUP
    return str(beside) if beside.exists() else str(shutil.which(BACKUP))


def free_port() -> str:
    """None that the system would give to a client's end of a connection before it is bound again."""
    while True:
        with suppress(OSError), socket.create_server(("127.0.0.1", randrange(15_000, 32_000))) as taken:
            return str(taken.getsockname()[1])


@contextmanager
def pair() -> Iterator[Pair]:
    port = free_port()
    with (
        cluster(listen_addresses="127.0.0.1", port=port) as primary,
        closing(_Standby(programs.server_user())) as server,
    ):
        server.copy(primary, port)
        engine = create_engine(primary.url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text("ALTER SYSTEM SET synchronous_standby_names = '*'"))
            connection.execute(text("SELECT pg_reload_conf()"))
        engine.dispose()
        standby = Cluster(server)
        ports = (port, server.url.rpartition("port=")[2])
        hosts = "&".join(f"host=127.0.0.1:{one}" for one in ports)
        yield Pair(
            primary,
            standby,
            f"postgresql+psycopg://postgres@/postgres?{hosts}&target_session_attrs=read-write",
        )
