"""What the tests of sa_durable.embedded share."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import create_engine, make_url, text

import sa_durable
from sa_durable.embedded import programs
from sa_durable.embedded.server import URL_VARIABLE

REPOSITORY = Path(sa_durable.__file__).parents[1]
FOUND = list(dict.fromkeys(path.resolve() for path in programs._candidates() if programs._complete(path)))


def ask(url: str, question: str):
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            return connection.scalar(text(question))
    finally:
        engine.dispose()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def home_of(url: str) -> Path:
    return Path(str(make_url(url).query["host"]))


def postmaster_of(url: str) -> int:
    return int((home_of(url) / "data" / "postmaster.pid").read_text().split()[0])


def without_url(**more: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != URL_VARIABLE} | more


@contextmanager
def open_directory() -> Iterator[Path]:
    """A place for temporary files that is short enough for a socket, and open to the user that runs the server."""
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        Path(place).chmod(0o755)
        yield Path(place)


@contextmanager
def command(*arguments: str, python: str = sys.executable, **options) -> Iterator[subprocess.Popen]:
    """`python -m sa_durable.embedded`, to be ended by the test; killed if the test doesn't get that far."""
    options = {"env": without_url(), "cwd": REPOSITORY, **options}
    run = [python, "-m", "sa_durable.embedded", *arguments]
    with subprocess.Popen(
        run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    ) as process:
        try:
            yield process
        finally:
            process.kill()
