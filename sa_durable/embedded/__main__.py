"""`python -m sa_durable.embedded -- COMMAND`: run a command that finds a PostgreSQL in its environment."""

import argparse
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType

from .programs import EmbeddedServerError
from .server import URL_VARIABLE, postgres

STOPS = (signal.SIGINT, signal.SIGTERM)


def main(arguments: list[str]) -> int:
    """The exit status: the command's own, or 128 + n if signal n ended it; 2 if there is no server to offer."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    options, command = _parser().parse_args(arguments[:at]), arguments[at + 1 :]
    try:
        with postgres(bin_dir=options.bin_dir) as server:
            return _run(command, server.url) if command else _wait(server.url)
    except EmbeddedServerError as error:
        sys.stderr.write(f"sa_durable.embedded: {error}\n")
        return 2
    except KeyboardInterrupt:  # while the server started
        return 128 + signal.SIGINT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sa_durable.embedded",
        usage="%(prog)s [--bin-dir DIR] [-- COMMAND ...]",
        description="Run COMMAND with a PostgreSQL of its own, at SA_DURABLE_DATABASE_URL and DATABASE_URL. "
        "Without a command: print its URL and keep it until Ctrl-C.",
    )
    parser.add_argument("--bin-dir", type=Path, metavar="DIR", help="where initdb and postgres are")
    return parser


def _run(command: list[str], url: str) -> int:
    child: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def forward(number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and _terminal_is_ours():
            return  # Ctrl-C: the terminal has sent it to the command too, and a second one is a different request
        if child is None:
            early.append(number)
        else:
            child.send_signal(number)

    for stop in STOPS:
        signal.signal(stop, forward)
    try:
        child = subprocess.Popen(command, env={**os.environ, URL_VARIABLE: url, "DATABASE_URL": url})
    except OSError as error:
        sys.stderr.write(f"sa_durable.embedded: {error}\n")
        return 126 if isinstance(error, PermissionError) else 127  # as a shell says it
    for number in early:
        child.send_signal(number)
    status = _end_of(child)
    return status if status >= 0 else 128 - status


def _end_of(child: subprocess.Popen[bytes]) -> int:
    """Looked for now and then: a signal that comes just before we wait would be forwarded only afterwards."""
    while True:
        with suppress(subprocess.TimeoutExpired):
            return child.wait(1)


def _wait(url: str) -> int:
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    sys.stdout.write(f"{url}\n")
    sys.stdout.flush()
    signal.sigwait(STOPS)
    return 0


def _terminal_is_ours() -> bool:
    """Whether a Ctrl-C in our terminal, if we have one, reaches our process group, the command included."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    finally:
        os.close(terminal)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
