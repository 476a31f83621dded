"""Run a server while its owner is alive. This file is a script, which `server.py` starts.

The owner holds the other end of our standard input. A letter there is an order to stop the server. The end of
the input means that the owner has ended, also by kill -9: then the keeper stops the server and removes its
directory. A server that isn't killed ends in this way too, so the path for crashes is always used.

The keeper only signals its own child before it has waited for it: the process id can't belong to another
process.
"""

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

OWNER = 0  # standard input
# A fast stop, an immediate stop, and the end of the input.
ORDERS = {b"f": signal.SIGINT, b"i": signal.SIGQUIT, b"": signal.SIGQUIT}
# From an order to SIGKILL. In an immediate stop, PostgreSQL kills its own processes after 5 s.
STOP_TIMEOUT_S = 30.0


def main(directory: str, commands: list[list[str]], user: dict[str, Any]) -> int:
    """Run the commands one after the other, until one fails. Returns its exit status.

    Args:
        directory: The server's directory.
        commands: The last one is the server, which runs until the owner orders its end.
        user: Arguments of Popen that change the user.
    """
    wake_reader, wake_writer = os.pipe()
    for end in (wake_reader, wake_writer):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wake_writer, warn_on_full_buffer=False)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the owner may have blocked some signals
    # Only the owner ends the keeper: Ctrl-C and hang-ups have no effect. A handler that does nothing is used
    # because children would inherit an ignored signal.
    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    status = 0
    for command in commands:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, cwd=directory, **user)
        if (status := _wait_for(child, wake_reader)) != 0:
            break
    if _owner_has_ended():
        remove(directory)
    return status


def _wait_for(child: subprocess.Popen[bytes], wake_reader: int) -> int:
    """Wait until the child ends, by itself or by an order. Returns its exit status, or 1 after an order."""
    while child.poll() is None:
        readable, _, _ = select.select([OWNER, wake_reader], [], [])
        if OWNER in readable:
            child.send_signal(ORDERS[os.read(OWNER, 1)])
            try:
                child.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            return 1  # the commands that follow are not wanted any more
        with contextlib.suppress(BlockingIOError):
            os.read(wake_reader, 512)
    return child.returncode


def _owner_has_ended() -> bool:
    readable, _, _ = select.select([OWNER], [], [], 0)
    return bool(readable) and os.read(OWNER, 1) == b""


def remove(directory: str) -> None:
    """Remove a directory. Retries for 5 s: the last children of an interrupted initdb may still add files."""
    for _ in range(100):
        shutil.rmtree(directory, ignore_errors=True)
        if not os.path.exists(directory):  # noqa: PTH110 - importing pathlib adds 10 ms to a start
            return
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main(**json.loads(sys.argv[1])))
