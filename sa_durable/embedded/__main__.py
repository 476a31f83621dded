"""The command `python -m sa_durable.embedded -- COMMAND`: run COMMAND with a private PostgreSQL."""

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

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def main(arguments: list[str]) -> int:
    """Return the exit status: the command's own, 128 + n if signal n ended it, or 2 if no server started."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    options, command = _parser().parse_args(arguments[:at]), arguments[at + 1 :]
    try:
        with postgres(bin_dir=options.bin_dir) as server:
            return _run(command, server.url) if command else _print_and_wait(server.url)
    except EmbeddedServerError as error:
        sys.stderr.write(f"sa_durable.embedded: {error}\n")
        return 2
    except KeyboardInterrupt:  # while the server started
        return 128 + signal.SIGINT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sa_durable.embedded",
        usage="%(prog)s [--bin-dir DIR] [-- COMMAND ...]",
        description="Run COMMAND with a private PostgreSQL. Its URL is in SA_DURABLE_DATABASE_URL and "
        "DATABASE_URL. Without a command, print the URL and run the server until Ctrl-C.",
    )
    parser.add_argument("--bin-dir", type=Path, metavar="DIR", help="directory of initdb and postgres")
    return parser


def _run(command: list[str], url: str) -> int:
    child: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def forward(number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and _terminal_is_ours():
            return  # the command got this Ctrl-C from the terminal; a second one could mean something else
        if child is None:
            early.append(number)
        else:
            child.send_signal(number)

    for stop in STOP_SIGNALS:
        signal.signal(stop, forward)
    try:
        child = subprocess.Popen(command, env={**os.environ, URL_VARIABLE: url, "DATABASE_URL": url})
    except OSError as error:
        sys.stderr.write(f"sa_durable.embedded: {error}\n")
        return 126 if isinstance(error, PermissionError) else 127  # the statuses that a shell returns
    for number in early:
        child.send_signal(number)
    status = _wait_for(child)
    return status if status >= 0 else 128 - status


def _wait_for(child: subprocess.Popen[bytes]) -> int:
    """Wait for the child in intervals. A signal that arrives just before a wait is forwarded after it."""
    while True:
        with suppress(subprocess.TimeoutExpired):
            return child.wait(1)


def _print_and_wait(url: str) -> int:
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    sys.stdout.write(f"{url}\n")
    sys.stdout.flush()
    signal.sigwait(STOP_SIGNALS)
    return 0


def _terminal_is_ours() -> bool:
    """Return whether a Ctrl-C in our terminal reaches our process group, which includes the command."""
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
