"""Who is measured: a driver program each, in a virtual environment of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from typing import Any

from tests.children import complete_lines

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
ENVIRONMENTS = ROOT / ".venvs" / "peers"
PATIENCE = 300.0  # seconds for one order


@dataclass(frozen=True)
class Contender:
    name: str
    driver: str
    requirements: str = ""  # empty: this project's own environment
    argument: str = ""

    def python(self) -> str:
        """The interpreter that has what the driver needs; made when it is first asked for, and again when the pinned
        versions change."""
        if not self.requirements:
            return sys.executable
        wanted = HERE / "requirements" / f"{self.requirements}.txt"
        home = ENVIRONMENTS / self.requirements
        python, installed = home / "bin" / "python", home / "installed.txt"
        if not installed.exists() or installed.read_text() != wanted.read_text():
            venv.create(home, clear=True, with_pip=True)
            install = [
                str(python),
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-deps",
                "--requirement",
                str(wanted),
            ]
            subprocess.run(install, check=True)
            installed.write_text(wanted.read_text())
        return str(python)


CONTENDERS = [
    Contender("sa_durable", "on_sa_durable.py"),
    Contender("PgQueuer", "on_pgqueuer.py", "pgqueuer", "asyncpg"),
    Contender("PgQueuer/psycopg", "on_pgqueuer.py", "pgqueuer", "psycopg"),
    Contender("absurd-sdk", "on_absurd.py", "absurd"),
    Contender("Procrastinate", "on_procrastinate.py", "procrastinate"),
    Contender("DBOS", "on_dbos.py", "dbos"),
]


class DriverFailed(Exception):
    """What a driver said of its failure."""


class Driver:
    """A driver program, at work in a database that is only its own."""

    def __init__(self, contender: Contender, process: subprocess.Popen[str]) -> None:
        self.contender, self._process = contender, process
        about = self._listen()
        self.versions: dict[str, str] = about["versions"]
        self.workloads: list[str] = about["workloads"]

    def ask(self, workload: str, number: int, **details: float | None) -> dict[str, Any]:
        """Its answer: "seconds", or "milliseconds" one by one, for the "number" of operations. Raises DriverFailed."""
        assert self._process.stdin
        order = {"workload": workload, "number": number, **details}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._listen()

    def _listen(self) -> dict[str, Any]:
        assert self._process.stdout
        overdue = Timer(PATIENCE, self._process.kill)
        overdue.start()
        try:
            line = next(complete_lines(self._process.stdout), None)
        finally:
            overdue.cancel()
        if line is None:
            raise DriverFailed("the driver ended before it had printed a whole line")
        said = json.loads(line)
        if "error" in said:
            raise DriverFailed(said["error"])
        return dict(said)


@contextmanager
def driver(contender: Contender, url: str) -> Iterator[Driver]:
    """`url` as libpq has it, of an empty database."""
    command = [contender.python(), str(HERE / "drivers" / contender.driver), url]
    command += [contender.argument] if contender.argument else []
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        try:
            yield Driver(contender, process)
        finally:
            process.stdin.close()  # its input ends, and so does it
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
